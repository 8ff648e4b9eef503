// SPDX-License-Identifier: Apache-2.0
#include "comm/communicator.h"

#include <cstring>

#include "comm/internal/backoff.h"
#include "kernels/norm.h"

namespace gradus::comm {

const char* tag_name(Tag tag) {
  switch (tag) {
    case Tag::kTree:
      return "tree";
    case Tag::kWeights:
      return "weights";
    case Tag::kWork:
      return "work";
    case Tag::kRollouts:
      return "rollouts";
  }
  return "none";  // of an operation without one
}

Wait Communicator::collective(const char* name) {
  return {.kind = WaitKind::kCollective,
          .name = name,
          .first = first_world_rank(),
          .count = size(),
          .number = num_collectives_++};
}

Wait Communicator::message(WaitKind kind, const char* name, int peer, Tag tag) const {
  return {.kind = kind,
          .name = name,
          .first = first_world_rank() + peer,
          .count = 1,
          .tag = static_cast<int32_t>(tag)};
}

void Communicator::barrier(const char* name) {
  const WaitScope scope(*watch_, collective(name));
  do_barrier();
}

std::vector<std::string> Communicator::all_gather(const std::string& text, const char* name) {
  const WaitScope scope(*watch_, collective(name));
  return do_all_gather(text);
}

void Communicator::broadcast(std::span<float> values, int root, const char* name) {
  GRADUS_CHECK(root >= 0 && root < size(), fmt::format("broadcast from rank {}", root));
  const WaitScope scope(*watch_, collective(name));
  do_broadcast(values, root);
}

void Communicator::send(std::span<const float> values, int to, Tag tag, const char* name) {
  GRADUS_CHECK(to >= 0 && to < size() && to != rank(), fmt::format("send to rank {}", to));
  const WaitScope scope(*watch_, message(WaitKind::kSend, name, to, tag));
  do_send(values, to, tag);
}

void Communicator::receive(std::span<float> values, int from, Tag tag, const char* name) {
  GRADUS_CHECK(from >= 0 && from < size() && from != rank(),
               fmt::format("receive from rank {}", from));
  const WaitScope scope(*watch_, message(WaitKind::kReceive, name, from, tag));
  do_receive(values, from, tag);
}

void Communicator::post(std::string bytes, int to, Tag tag) {
  GRADUS_CHECK(to >= 0 && to < size() && to != rank(), fmt::format("post to rank {}", to));
  if (!is_lost(to)) do_post(std::move(bytes), to, tag);
}

std::optional<Message> Communicator::poll(Tag tag, int from) { return do_poll(tag, from); }

void Communicator::flush(const char* name) {
  const WaitScope scope(
      *watch_,
      {.kind = WaitKind::kReceiveAny, .name = name, .first = first_world_rank(), .count = size()});
  internal::Backoff backoff;
  while (!do_is_flushed()) backoff.wait();
}

Result<Message> Communicator::wait(Tag tag, int from, const char* name) {
  const WaitScope scope(*watch_, message(WaitKind::kReceive, name, from, tag));
  internal::Backoff backoff;
  for (;;) {
    std::optional<Message> come = do_poll(tag, from);
    if (come) return std::move(*come);
    if (is_lost(from)) {
      return unavailable("rank {} died while rank {} waited for it in '{}'",
                         first_world_rank() + from, first_world_rank() + rank(), name);
    }
    backoff.wait();
  }
}

std::optional<Message> Communicator::wait_any(Tag tag, int first, int end, size_t num_lost,
                                              const char* name) {
  const WaitScope scope(*watch_, {.kind = WaitKind::kReceiveAny,
                                  .name = name,
                                  .first = first_world_rank() + first,
                                  .count = end - first,
                                  .tag = static_cast<int32_t>(tag)});
  internal::Backoff backoff;
  for (;;) {
    std::optional<Message> come = do_poll(tag, kAnyRank);
    if (come || watch_->num_lost() > num_lost) return come;
    backoff.wait();
  }
}

bool Communicator::is_lost(int rank) const { return watch_->is_lost(first_world_rank() + rank); }

std::unique_ptr<Communicator> Communicator::subset(int first, int count) const {
  GRADUS_CHECK(first >= 0 && count >= 1 && first + count <= size(),
               fmt::format("ranks {} to {} of {}", first, first + count - 1, size()));
  if (rank() < first || rank() >= first + count) return nullptr;
  return do_subset(first, count);
}

void all_reduce_tree(Communicator& communicator, std::span<float> values, std::span<float> scratch,
                     const char* name) {
  const int rank = communicator.rank(), size = communicator.size();
  GRADUS_CHECK(scratch.size() >= values.size(), "all_reduce_tree needs scratch memory");
  const std::span<float> received = scratch.first(values.size());
  for (int step = 1; step < size; step *= 2) {
    if (rank % (2 * step) == step) {
      communicator.send(values, rank - step, Tag::kTree, name);
      break;
    }
    if (rank % (2 * step) == 0 && rank + step < size) {
      communicator.receive(received, rank + step, Tag::kTree, name);
      kernels::add_in_place(values.data(), received.data(), static_cast<int64_t>(values.size()));
    }
  }
  if (size > 1) communicator.broadcast(values, 0, name);
}

std::vector<double> all_reduce_sum(Communicator& communicator, std::span<const double> values,
                                   const char* name) {
  std::vector<double> sums(values.size(), 0.0);
  const std::string mine(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  for (const std::string& theirs : communicator.all_gather(mine, name)) {
    GRADUS_CHECK(theirs.size() == mine.size(), "ranks sum different numbers of values");
    for (size_t i = 0; i < sums.size(); ++i) {
      double value;
      std::memcpy(&value, theirs.data() + i * sizeof(double), sizeof(double));
      sums[i] += value;
    }
  }
  return sums;
}

Status agree(Communicator& communicator, const Status& status, const char* name) {
  const std::string mine =
      status.ok() ? ""
                  : static_cast<char>('0' + static_cast<int>(status.code())) + status.message();
  const std::vector<std::string> all = communicator.all_gather(mine, name);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].empty()) continue;
    const StatusCode code = static_cast<StatusCode>(all[rank][0] - '0');
    const std::string message = all[rank].substr(1);
    return {code, all.size() == 1 ? message : fmt::format("rank {}: {}", rank, message)};
  }
  return {};
}

}  // namespace gradus::comm
