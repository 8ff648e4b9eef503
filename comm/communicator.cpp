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

void Communicator::swap(std::span<const float> mine, std::span<float> theirs, int peer, Tag tag,
                        const char* name) {
  GRADUS_CHECK(peer >= 0 && peer < size() && peer != rank(),
               fmt::format("swap with rank {}", peer));
  const WaitScope scope(*watch_, message(WaitKind::kSwap, name, peer, tag));
  do_swap(mine, theirs, peer, tag);
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

namespace {

bool is_power_of_two(int n) { return (n & (n - 1)) == 0; }

// Slices [begin, end) that a rank still works on; half of them in each round of halving.
struct Slices {
  int begin = 0, end = 0;
  // Of the two halves, the one of the rank whose bit is `is_upper`.
  Slices half(bool is_upper) const {
    const int middle = (begin + end) / 2;
    return is_upper ? Slices{middle, end} : Slices{begin, middle};
  }
};

std::span<float> values_of(std::span<float> values, std::span<const int64_t> bounds,
                           Slices slices) {
  const size_t first = static_cast<size_t>(bounds[static_cast<size_t>(slices.begin)]);
  return values.subspan(first,
                        static_cast<size_t>(bounds[static_cast<size_t>(slices.end)]) - first);
}

// For numbers of ranks that do not halve: sums at rank 0, which tells all.
void sum_along_tree(Communicator& communicator, std::span<float> values, std::span<float> scratch,
                    const char* name) {
  const int rank = communicator.rank(), size = communicator.size();
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
  communicator.broadcast(values, 0, name);
}

void check_bounds(const Communicator& communicator, std::span<const float> values,
                  std::span<const int64_t> bounds) {
  GRADUS_CHECK(static_cast<int>(bounds.size()) == communicator.size() + 1 && bounds[0] == 0 &&
                   bounds.back() == static_cast<int64_t>(values.size()),
               "bounds cut all values into a slice for each rank");
}

}  // namespace

int tree_slice(int rank, int num_ranks) {
  if (!is_power_of_two(num_ranks)) return rank;
  Slices slices{0, num_ranks};
  for (int step = 1; step < num_ranks; step *= 2) slices = slices.half((rank & step) != 0);
  return slices.begin;
}

// Halving: in round i ranks that differ in bit i meet, neighbours first, and each adds up the half
// of the values that it keeps. So every value is summed along the same tree. A sum of two floats
// does not depend on which of them stands on the left.
void reduce_scatter_tree(Communicator& communicator, std::span<float> values,
                         std::span<const int64_t> bounds, std::span<float> scratch,
                         const char* name) {
  const int rank = communicator.rank(), size = communicator.size();
  check_bounds(communicator, values, bounds);
  GRADUS_CHECK(scratch.size() >= values.size(), "a sum over ranks needs scratch memory");
  if (!is_power_of_two(size)) return sum_along_tree(communicator, values, scratch, name);
  Slices slices{0, size};
  for (int step = 1; step < size; step *= 2) {
    const bool is_upper = (rank & step) != 0;
    const std::span<float> kept = values_of(values, bounds, slices.half(is_upper));
    const std::span<float> received = scratch.first(kept.size());
    communicator.swap(values_of(values, bounds, slices.half(!is_upper)), received, rank ^ step,
                      Tag::kTree, name);
    kernels::add_in_place(kept.data(), received.data(), static_cast<int64_t>(kept.size()));
    slices = slices.half(is_upper);
  }
}

// The same rounds backwards.
void all_gather_tree(Communicator& communicator, std::span<float> values,
                     std::span<const int64_t> bounds, const char* name) {
  const int rank = communicator.rank(), size = communicator.size();
  check_bounds(communicator, values, bounds);
  if (!is_power_of_two(size)) {
    for (int root = 0; root < size; ++root) {
      communicator.broadcast(values_of(values, bounds, {root, root + 1}), root, name);
    }
    return;
  }
  for (int step = size / 2; step >= 1; step /= 2) {
    Slices slices{0, size};
    for (int earlier = 1; earlier < step; earlier *= 2) slices = slices.half((rank & earlier) != 0);
    const bool is_upper = (rank & step) != 0;
    communicator.swap(values_of(values, bounds, slices.half(is_upper)),
                      values_of(values, bounds, slices.half(!is_upper)), rank ^ step, Tag::kTree,
                      name);
  }
}

void all_reduce_tree(Communicator& communicator, std::span<float> values, std::span<float> scratch,
                     const char* name) {
  const int64_t size = communicator.size();
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= size; ++i) {
    bounds.push_back(static_cast<int64_t>(values.size()) * i / size);
  }
  reduce_scatter_tree(communicator, values, bounds, scratch, name);
  // Other numbers of ranks have the whole sum by now.
  if (is_power_of_two(communicator.size())) all_gather_tree(communicator, values, bounds, name);
}

void all_reduce_ring(Communicator& communicator, std::span<float> values, std::span<float> scratch,
                     const char* name) {
  const int rank = communicator.rank(), size = communicator.size();
  GRADUS_CHECK(scratch.size() >= values.size(), "all_reduce_ring needs scratch memory");
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  const auto part = [&](int index) {
    const size_t i = static_cast<size_t>((index + 2 * size) % size), n = static_cast<size_t>(size);
    const size_t begin = values.size() * i / n, end = values.size() * (i + 1) / n;
    return values.subspan(begin, end - begin);
  };
  // Part `sent` to the next rank while part `sent - 1` comes from the one before. A send may wait
  // for its receiver, so every second rank receives first.
  const auto turn = [&](int sent, std::span<float> received) {
    if (rank % 2 == 0) communicator.send(part(sent), next, Tag::kTree, name);
    communicator.receive(received, previous, Tag::kTree, name);
    if (rank % 2 != 0) communicator.send(part(sent), next, Tag::kTree, name);
  };
  for (int step = 0; step < size - 1; ++step) {
    const std::span<float> sum = part(rank - step - 1);
    const std::span<float> received = scratch.first(sum.size());
    turn(rank - step, received);
    kernels::add_in_place(sum.data(), received.data(), static_cast<int64_t>(sum.size()));
  }
  for (int step = 0; step < size - 1; ++step) turn(rank + 1 - step, part(rank - step));
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
