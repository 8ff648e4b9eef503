// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "comm/communicator.h"

// What every communicator does, whatever carries it. Each body is run by all ranks.
namespace gradus::testing {

struct ContractCase {
  std::string name;
  std::function<void(comm::Communicator&)> body;
};
inline std::ostream& operator<<(std::ostream& out, const ContractCase& one) {
  return out << one.name;
}

inline void knows_its_place(comm::Communicator& ranks) {
  EXPECT_GE(ranks.rank(), 0);
  EXPECT_LT(ranks.rank(), ranks.size());
  EXPECT_EQ(ranks.first_world_rank(), 0);
  EXPECT_EQ(ranks.local_size(), ranks.size());
  EXPECT_FALSE(ranks.is_lost(0));
  ranks.barrier();
}

inline void gathers_texts_of_different_length(comm::Communicator& ranks) {
  const auto texts = ranks.all_gather(std::string(static_cast<size_t>(3 * ranks.rank()), 'x'));
  ASSERT_EQ(static_cast<int>(texts.size()), ranks.size());
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    EXPECT_EQ(texts[rank], std::string(3 * rank, 'x'));
  }
}

inline void broadcasts_the_roots_values(comm::Communicator& ranks) {
  const int root = ranks.size() - 1;
  std::vector<float> values(1001, static_cast<float>(ranks.rank())), none;
  ranks.broadcast(values, root);
  EXPECT_EQ(values, std::vector<float>(1001, static_cast<float>(root)));
  ranks.broadcast(none, 0);
}

// Each rank to the next, the last to the first; lower ranks send first.
inline void sends_around_the_ring(comm::Communicator& ranks) {
  const int size = ranks.size(), rank = ranks.rank();
  if (size == 1) return;
  const std::vector<float> mine = {static_cast<float>(rank), 0.5f};
  std::vector<float> theirs(2);
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  if (rank % 2 == 0 && rank != size - 1) {
    ranks.send(mine, next);
    ranks.receive(theirs, previous);
  } else {
    ranks.receive(theirs, previous);
    ranks.send(mine, next);
  }
  EXPECT_EQ(theirs, (std::vector<float>{static_cast<float>(previous), 0.5f}));
}

// More than one part of 16 MiB, and halves of different size.
inline void swaps_between_neighbours(comm::Communicator& ranks) {
  const int peer = ranks.rank() ^ 1;
  if (peer >= ranks.size()) return;
  const auto value = [](int rank, size_t i) {
    return static_cast<float>(rank + 1) + static_cast<float>(i % 1000);
  };
  const size_t sizes[] = {5'000'003, 3};
  std::vector<float> mine(sizes[ranks.rank() % 2]), theirs(sizes[peer % 2]);
  for (size_t i = 0; i < mine.size(); ++i) mine[i] = value(ranks.rank(), i);
  ranks.swap(mine, theirs, peer);
  for (size_t i = 0; i < theirs.size(); ++i) ASSERT_EQ(theirs[i], value(peer, i)) << i;
  ranks.swap({}, {}, peer);
}

// Posted messages of one tag keep their order, tags do not mix, and long ones come in parts.
inline void posted_messages_keep_their_order(comm::Communicator& ranks) {
  const int size = ranks.size(), rank = ranks.rank();
  std::string large(40'000'001, '\0');
  for (size_t i = 0; i < large.size(); i += 997) large[i] = static_cast<char>(i + 7 * i / 997);
  const auto text = [&](int from, int number) { return fmt::format("{}:{}", from, number); };
  for (int to = 0; to < size; ++to) {
    if (to == rank) continue;
    ranks.post(text(rank, 0), to, comm::Tag::kWork);
    ranks.post("", to, comm::Tag::kRollouts);
    if (rank == 0 && to == 1) ranks.post(large, to, comm::Tag::kWork);
    ranks.post(text(rank, 1), to, comm::Tag::kWork);
  }
  for (int from = 0; from < size; ++from) {
    if (from == rank) continue;
    EXPECT_EQ(ranks.wait(comm::Tag::kWork, from)->bytes, text(from, 0));
    if (from == 0 && rank == 1) {
      EXPECT_TRUE(ranks.wait(comm::Tag::kWork, from)->bytes == large);
    }
    EXPECT_EQ(ranks.wait(comm::Tag::kWork, from)->bytes, text(from, 1));
  }
  int num_empty = 0;
  while (num_empty < size - 1) {
    if (const auto message = ranks.poll(comm::Tag::kRollouts)) {
      EXPECT_EQ(message->bytes, "");
      EXPECT_NE(message->from, rank);
      ++num_empty;
    }
  }
  ranks.flush();
  ranks.barrier();
  EXPECT_FALSE(ranks.poll(comm::Tag::kWork).has_value());
  EXPECT_FALSE(ranks.poll(comm::Tag::kRollouts).has_value());
}

inline void posted_and_sized_messages_do_not_mix(comm::Communicator& ranks) {
  if (ranks.size() < 2) return;
  std::vector<float> value(1);
  if (ranks.rank() == 0) {
    ranks.post("posted first", 1, comm::Tag::kWeights);
    ranks.send(std::vector<float>{3}, 1, comm::Tag::kWeights);
    ranks.send(std::vector<float>{4}, 1, comm::Tag::kTree);
    ranks.flush();
  } else if (ranks.rank() == 1) {
    ranks.receive(value, 0, comm::Tag::kWeights);
    EXPECT_EQ(value[0], 3);
    EXPECT_EQ(ranks.wait(comm::Tag::kWeights, 0)->bytes, "posted first");
    ranks.receive(value, 0, comm::Tag::kTree);
    EXPECT_EQ(value[0], 4);
  }
}

// The upper ranks talk among themselves while rank 0 takes no part.
inline void a_subset_is_a_communicator_of_its_own(comm::Communicator& ranks) {
  const int size = ranks.size();
  const int first = size / 2, count = size - first;
  const std::unique_ptr<comm::Communicator> upper = ranks.subset(first, count);
  ASSERT_EQ(upper == nullptr, ranks.rank() < first);
  if (upper == nullptr) return;
  EXPECT_EQ(upper->rank(), ranks.rank() - first);
  EXPECT_EQ(upper->size(), count);
  EXPECT_EQ(upper->first_world_rank(), first);
  std::vector<float> one(3, 1.0f), scratch(3);
  comm::all_reduce_tree(*upper, one, scratch);
  EXPECT_EQ(one, std::vector<float>(3, static_cast<float>(count)));
  const std::vector<std::string> texts = upper->all_gather(std::to_string(ranks.rank()));
  ASSERT_EQ(static_cast<int>(texts.size()), count);
  EXPECT_EQ(texts[0], std::to_string(first));
  if (count < 2) return;
  // A message in the subset is none in the world.
  if (upper->rank() == 0) upper->post("inside", 1, comm::Tag::kWork);
  if (upper->rank() == 1) {
    EXPECT_EQ(upper->wait(comm::Tag::kWork, 0)->bytes, "inside");
    EXPECT_FALSE(ranks.poll(comm::Tag::kWork).has_value());
  }
  upper->flush();
}

inline void operations_are_written_down(comm::Communicator& ranks) {
  ranks.watch().set_step(7);
  ranks.barrier("a barrier");
  const comm::RankReport report = ranks.watch().report();
  EXPECT_EQ(report.kind, comm::WaitKind::kNone) << "it has ended";
  EXPECT_EQ(report.step, 7);
  EXPECT_EQ(report.rank, ranks.rank());
}

inline std::vector<ContractCase> communicator_contract() {
  return {{"KnowsItsPlace", knows_its_place},
          {"GathersTextsOfDifferentLength", gathers_texts_of_different_length},
          {"BroadcastsTheRootsValues", broadcasts_the_roots_values},
          {"SendsAroundTheRing", sends_around_the_ring},
          {"SwapsBetweenNeighbours", swaps_between_neighbours},
          {"PostedMessagesKeepTheirOrder", posted_messages_keep_their_order},
          {"PostedAndSizedMessagesDoNotMix", posted_and_sized_messages_do_not_mix},
          {"ASubsetIsACommunicatorOfItsOwn", a_subset_is_a_communicator_of_its_own},
          {"OperationsAreWrittenDown", operations_are_written_down}};
}

}  // namespace gradus::testing
