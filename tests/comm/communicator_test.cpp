// SPDX-License-Identifier: Apache-2.0
// The reductions over ranks in threads; mpi_communicator_test.cpp runs them over MPI.
#include "comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "comm/in_process.h"
#include "common/rng.h"
#include "tests/support/communicator_contract.h"

namespace gradus::comm {
namespace {

constexpr size_t kSize = 1003;

// Eight blocks of values whose sum depends on the order of additions.
std::vector<std::vector<float>> blocks() {
  std::vector<std::vector<float>> all;
  for (uint64_t b = 0; b < 8; ++b) {
    RngSequence rng(b, RngStream::kTask);
    std::vector<float> values(kSize);
    for (float& value : values) value = static_cast<float>(rng.normal() * std::exp(rng.normal()));
    all.push_back(values);
  }
  return all;
}

std::vector<float> sum(const std::vector<float>& left, const std::vector<float>& right) {
  std::vector<float> values(left.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = left[i] + right[i];
  return values;
}

// The binary tree over blocks [begin, end), a power of two of them.
std::vector<float> tree(const std::vector<std::vector<float>>& all, size_t begin, size_t end) {
  if (end - begin == 1) return all[begin];
  const size_t middle = (begin + end) / 2;
  return sum(tree(all, begin, middle), tree(all, middle, end));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class InProcessContract : public ::testing::TestWithParam<testing::ContractCase> {};

TEST_P(InProcessContract, HoldsForOneToFourRanks) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(num_ranks);
    run_ranks(num_ranks, GetParam().body);
  }
}
INSTANTIATE_TEST_SUITE_P(Communicator, InProcessContract,
                         ::testing::ValuesIn(testing::communicator_contract()),
                         [](const auto& one) { return one.param.name; });

TEST(InProcess, RanksThatWaitForEachOtherAreNamed) {
  try {
    run_ranks(2,
              [](Communicator& ranks) {
                std::vector<float> value(1);
                ranks.watch().set_step(4);
                ranks.receive(value, 1 - ranks.rank(), Tag::kTree, "a swap");
              },
              {.stuck_after_s = 0.3});
    FAIL() << "two ranks that both receive are stuck";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(std::string(error.what()),
                ::testing::MatchesRegex("the ranks are stuck: ranks 0, 1 wait for each other; rank "
                                        "[01] waits for rank [01] in 'a swap' "
                                        "\\(receive, tag tree\\) at step 4, .* s by now"));
  }
}

TEST(InProcess, ARankThatEndsWithoutItsPartIsNamed) {
  try {
    run_ranks(3,
              [](Communicator& ranks) {
                if (ranks.rank() != 2) ranks.barrier("the last meeting");
              },
              {.stuck_after_s = 0.3});
    FAIL() << "a barrier without rank 2 cannot end";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr("cannot go on: others have ended"));
    EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr("in 'the last meeting'"));
  }
}

// A computing rank is waited for as long as it takes.
TEST(InProcess, ARankThatComputesIsNotStuck) {
  run_ranks(2,
            [](Communicator& ranks) {
              if (ranks.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(700));
              ranks.barrier();
            },
            {.stuck_after_s = 0.2});
}

TEST(InProcess, OthersGoOnWithoutARankThatMayDie) {
  run_ranks(3,
            [](Communicator& ranks) {
              if (ranks.rank() == 2) throw RankDied();
              if (ranks.rank() == 1) return;
              EXPECT_FALSE(ranks.wait_any(Tag::kRollouts, 1, 3, 0).has_value());
              const Result<Message> message = ranks.wait(Tag::kRollouts, 2, "rollouts");
              EXPECT_EQ(message.status().message(),
                        "rank 2 died while rank 0 waited for it in 'rollouts'");
              EXPECT_TRUE(ranks.is_lost(2));
              EXPECT_FALSE(ranks.is_lost(1));
              ranks.post("to nobody", 2, Tag::kWork);
              ranks.flush();
            },
            {.may_lose = [](int rank) { return rank == 2; }});
  EXPECT_THROW(run_ranks(2,
                         [](Communicator& ranks) {
                           if (ranks.rank() == 1) throw RankDied();
                         }),
               std::runtime_error);
}

TEST(AllReduceTree, HasTheBitsOfOneTreeForOneTwoFourAndEightRanks) {
  const auto all = blocks();
  const std::vector<float> expected = tree(all, 0, 8);
  for (const size_t num_ranks : {1u, 2u, 4u, 8u}) {
    run_ranks(static_cast<int>(num_ranks), [&](Communicator& communicator) {
      const size_t rank = static_cast<size_t>(communicator.rank()), share = 8 / num_ranks;
      std::vector<float> values = tree(all, rank * share, (rank + 1) * share), scratch(kSize);
      all_reduce_tree(communicator, values, scratch);
      EXPECT_TRUE(same_bits(values, expected)) << "rank " << rank << " of " << num_ranks;
    });
  }
  // Block after block gives other bits, so the comparison can fail.
  std::vector<float> chain = all[0];
  for (size_t b = 1; b < 8; ++b) chain = sum(chain, all[b]);
  EXPECT_FALSE(same_bits(chain, expected));
}

// Three ranks: (0 + 1) + 2.
TEST(AllReduceTree, TakesRanksThatAreNoPowerOfTwo) {
  const auto all = blocks();
  const std::vector<float> expected = sum(sum(all[0], all[1]), all[2]);
  run_ranks(3, [&](Communicator& communicator) {
    std::vector<float> values = all[static_cast<size_t>(communicator.rank())], scratch(kSize);
    all_reduce_tree(communicator, values, scratch);
    EXPECT_TRUE(same_bits(values, expected));
  });
}

TEST(AllReduceTree, NanOfOneRankReachesAll) {
  run_ranks(4, [](Communicator& communicator) {
    std::vector<float> values = {1, communicator.rank() == 2 ? std::nanf("") : 1.0f}, scratch(2);
    all_reduce_tree(communicator, values, scratch);
    EXPECT_EQ(values[0], 4);
    EXPECT_TRUE(std::isnan(values[1]));
  });
}

// A rank ends up with its slice of the same sum; slices differ in size and some are empty.
TEST(ReduceScatterTree, LeavesEveryRankItsSliceOfTheTreesSum) {
  const auto all = blocks();
  const std::vector<float> expected = tree(all, 0, 8);
  for (const size_t num_ranks : {1u, 2u, 4u, 8u}) {
    std::vector<int64_t> bounds = {0};
    for (size_t i = 1; i < num_ranks; ++i) bounds.push_back(i % 3 == 0 ? bounds.back() : 100 * i);
    bounds.push_back(kSize);
    std::vector<int> owners;
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      owners.push_back(tree_slice(static_cast<int>(rank), static_cast<int>(num_ranks)));
    }
    std::sort(owners.begin(), owners.end());
    for (size_t i = 0; i < num_ranks; ++i) EXPECT_EQ(owners[i], static_cast<int>(i));
    run_ranks(static_cast<int>(num_ranks), [&](Communicator& communicator) {
      const size_t rank = static_cast<size_t>(communicator.rank()), share = 8 / num_ranks;
      std::vector<float> values = tree(all, rank * share, (rank + 1) * share), scratch(kSize);
      reduce_scatter_tree(communicator, values, bounds, scratch);
      const size_t slice =
          static_cast<size_t>(tree_slice(communicator.rank(), communicator.size()));
      for (int64_t i = bounds[slice]; i < bounds[slice + 1]; ++i) {
        ASSERT_EQ(values[static_cast<size_t>(i)], expected[static_cast<size_t>(i)]) << i;
      }
      // What lies outside of the slice is nobody's sum: gathering replaces it.
      for (int64_t i = 0; i < static_cast<int64_t>(kSize); ++i) {
        if (i < bounds[slice] || i >= bounds[slice + 1]) values[static_cast<size_t>(i)] = -1;
      }
      all_gather_tree(communicator, values, bounds);
      EXPECT_TRUE(same_bits(values, expected)) << "rank " << rank << " of " << num_ranks;
    });
  }
}

TEST(AllReduceTree, TooLittleScratchIsABug) {
  EXPECT_THROW(run_ranks(2,
                         [](Communicator& communicator) {
                           std::vector<float> values(4), scratch(3);
                           all_reduce_tree(communicator, values, scratch);
                         }),
               InternalError);
}

// Part i of n starts at rank i and goes round: value by value the sum is that order's.
TEST(AllReduceRing, AddsEachPartInTheOrderOfTheRing) {
  const auto all = blocks();
  for (const int num_ranks : {1, 2, 3, 4, 7}) {
    const size_t n = static_cast<size_t>(num_ranks);
    std::vector<float> expected(kSize);
    for (size_t part = 0; part < n; ++part) {
      for (size_t i = kSize * part / n; i < kSize * (part + 1) / n; ++i) {
        float value = all[part][i];
        for (size_t r = 1; r < n; ++r) value = all[(part + r) % n][i] + value;
        expected[i] = value;
      }
    }
    run_ranks(num_ranks, [&](Communicator& communicator) {
      std::vector<float> values = all[static_cast<size_t>(communicator.rank())], scratch(kSize);
      all_reduce_ring(communicator, values, scratch);
      EXPECT_TRUE(same_bits(values, expected))
          << num_ranks << " ranks, rank " << communicator.rank();
    });
  }
  // Fewer values than ranks: some parts are empty.
  run_ranks(4, [](Communicator& communicator) {
    std::vector<float> values = {1, 2}, scratch(2);
    all_reduce_ring(communicator, values, scratch);
    EXPECT_EQ(values, (std::vector<float>{4, 8}));
  });
}

TEST(AllReduceSum, AddsInRankOrder) {
  run_ranks(3, [](Communicator& communicator) {
    // (1e17 + 1) + -1e17 is 0 in this order: the 1 is lost first.
    const double values[] = {std::vector<double>{1e17, 1, -1e17}[communicator.rank()], 1};
    EXPECT_EQ(all_reduce_sum(communicator, values), (std::vector<double>{0, 3}));
  });
}

TEST(Agree, GivesTheFirstFailureByRankToAll) {
  run_ranks(4, [](Communicator& communicator) {
    EXPECT_TRUE(agree(communicator, {}).ok());
    Status mine;
    if (communicator.rank() == 1) mine = data_loss("row 7: not a number");
    if (communicator.rank() == 3) mine = invalid_argument("something else");
    const Status agreed = agree(communicator, mine);
    EXPECT_EQ(agreed.code(), StatusCode::kDataLoss);
    EXPECT_EQ(agreed.message(), "rank 1: row 7: not a number");
  });
  run_ranks(1, [](Communicator& communicator) {
    EXPECT_EQ(agree(communicator, not_found("no such file")).message(), "no such file");
  });
}

// Without mpirun a process is one rank, for which every collective is the identity.
TEST(MakeCommunicator, GivesOneRankWithoutMpirun) {
  if (is_launched_by_mpi()) GTEST_SKIP() << "this process was started by mpirun";
  auto communicator = make_communicator();
  ASSERT_TRUE(communicator.ok()) << communicator.status().message();
  EXPECT_EQ((*communicator)->rank(), 0);
  EXPECT_EQ((*communicator)->size(), 1);
  EXPECT_EQ((*communicator)->all_gather("text"), std::vector<std::string>{"text"});
  std::vector<float> values = {1, 2}, scratch(2);
  (*communicator)->broadcast(values, 0);
  all_reduce_tree(**communicator, values, scratch);
  EXPECT_EQ(values, (std::vector<float>{1, 2}));
  EXPECT_EQ(rank_for_messages(), 0);
}

}  // namespace
}  // namespace gradus::comm
