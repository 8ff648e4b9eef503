// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/watch.h"
#include "common/status.h"

namespace gradus::comm {

// What a message between two ranks is for. Messages of one tag from one rank to another keep their
// order.
enum class Tag : int32_t { kTree = 1, kWeights, kWork, kRollouts };
const char* tag_name(Tag tag);  // "tree", "weights", ...

inline constexpr int kAnyRank = -1;

struct Message {
  int from = 0;
  std::string bytes;
};

// How the error begins that is thrown when the transport itself fails.
inline constexpr char kTransportFailed[] = "the transport between the ranks failed: ";

// How the ranks of one run talk. World size 1 is the identity, not a special case. Collectives are
// called by every rank of the communicator, in the same order; they return when this rank's part is
// done. Every operation has a name, by default that of the calling function, under which it is
// watched (comm/watch.h). A failure of the transport throws InternalError (kTransportFailed). Not
// thread-safe.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_size() const = 0;  // ranks of the world on this host
  // These ranks are [first_world_rank(), first_world_rank() + size()) of the world's.
  virtual int first_world_rank() const = 0;

  void barrier(const char* name = __builtin_FUNCTION());
  // `text` of every rank, by rank.
  std::vector<std::string> all_gather(const std::string& text,
                                      const char* name = __builtin_FUNCTION());
  // Replaces `values` by those of rank `root`.
  void broadcast(std::span<float> values, int root, const char* name = __builtin_FUNCTION());
  // A pair of calls with equal sizes and tags.
  void send(std::span<const float> values, int to, Tag tag = Tag::kTree,
            const char* name = __builtin_FUNCTION());
  void receive(std::span<float> values, int from, Tag tag = Tag::kTree,
               const char* name = __builtin_FUNCTION());
  // Both at once, between two ranks that make matching calls. The spans do not overlap.
  void swap(std::span<const float> mine, std::span<float> theirs, int peer, Tag tag = Tag::kTree,
            const char* name = __builtin_FUNCTION());

  // Messages of any length that neither side waits for: post() takes the bytes and returns,
  // poll() gives the next message that has come whole, from `from` or from anyone. Bytes move while
  // poll(), progress() or another operation with messages is called; flush() waits until all posted
  // ones are gone, save those for lost ranks.
  void post(std::string bytes, int to, Tag tag);
  std::optional<Message> poll(Tag tag, int from = kAnyRank);
  void flush(const char* name = __builtin_FUNCTION());
  void progress() { do_is_flushed(); }
  // Waits for a message of rank `from`. Unavailable if that rank is lost.
  Result<Message> wait(Tag tag, int from, const char* name = __builtin_FUNCTION());
  // Waits for a message of any rank in [first, end); nothing once more than `num_lost` ranks of the
  // world (Watch::num_lost) are lost.
  std::optional<Message> wait_any(Tag tag, int first, int end, size_t num_lost,
                                  const char* name = __builtin_FUNCTION());

  // Whether rank `rank` died while the run goes on without it.
  bool is_lost(int rank) const;

  // Ranks [first, first + count) as a communicator of their own; null on the others. Called by
  // those ranks (and, to no effect, by others).
  std::unique_ptr<Communicator> subset(int first, int count) const;

  Watch& watch() const { return *watch_; }
  // What to write down while this rank waits for an operation of all ranks that runs elsewhere, on
  // their devices. Counts as a collective: every rank calls it, in the same order.
  Wait begin_elsewhere(const char* name) { return collective(name); }

 protected:
  explicit Communicator(std::shared_ptr<Watch> watch) : watch_(std::move(watch)) {}
  const std::shared_ptr<Watch>& shared_watch() const { return watch_; }

 private:
  virtual void do_barrier() = 0;
  virtual std::vector<std::string> do_all_gather(const std::string& text) = 0;
  virtual void do_broadcast(std::span<float> values, int root) = 0;
  virtual void do_send(std::span<const float> values, int to, Tag tag) = 0;
  virtual void do_receive(std::span<float> values, int from, Tag tag) = 0;
  virtual void do_swap(std::span<const float> mine, std::span<float> theirs, int peer, Tag tag) = 0;
  virtual void do_post(std::string bytes, int to, Tag tag) = 0;
  virtual std::optional<Message> do_poll(Tag tag, int from) = 0;
  virtual bool do_is_flushed() = 0;
  virtual std::unique_ptr<Communicator> do_subset(int first, int count) const = 0;
  Wait collective(const char* name);
  Wait message(WaitKind kind, const char* name, int peer, Tag tag) const;

  std::shared_ptr<Watch> watch_;
  uint64_t num_collectives_ = 0;
};

// True under mpirun (or another launcher that Open MPI knows).
bool is_launched_by_mpi();

// MPI under mpirun, else one rank. Call once, from the main thread; MPI is finalised when it is
// destroyed. Unavailable if MPI does not start.
Result<std::unique_ptr<Communicator>> make_communicator();

// Takes leave of MPI, if it is up: the last call of a process that ends well.
void finalize();
// Ends all ranks at once with `exit_code`, if MPI is up; returns otherwise.
void abort_all_ranks(int exit_code);
// Rank of this process for messages: 0 without MPI.
int rank_for_messages();

// Adds the buffers of all ranks, each holding the sum of its own consecutive blocks, along one
// binary tree: neighbours first, the lower rank's value on the left. With a power of two of ranks
// the result has the bits of the tree over all blocks, however they are shared out. Every rank gets
// the sum; `scratch` has the size of `values`.
void all_reduce_tree(Communicator& communicator, std::span<float> values, std::span<float> scratch,
                     const char* name = __builtin_FUNCTION());

// The two halves of it, for ranks that each need a part of the sum alone. `bounds` cut the values
// into size() slices, [bounds[i], bounds[i + 1]), some perhaps empty; tree_slice() says which one a
// rank has in the end. With a power of two of ranks each sends and receives (size - 1) / size of
// the values; other numbers sum all of them everywhere.
int tree_slice(int rank, int num_ranks);
void reduce_scatter_tree(Communicator& communicator, std::span<float> values,
                         std::span<const int64_t> bounds, std::span<float> scratch,
                         const char* name = __builtin_FUNCTION());
// Every rank's slice to all.
void all_gather_tree(Communicator& communicator, std::span<float> values,
                     std::span<const int64_t> bounds, const char* name = __builtin_FUNCTION());

// The sum of all_reduce_tree in another order: parts go round the ring of ranks, once to be summed
// and once to be told, 2 (ranks - 1) / ranks of the values for any number of ranks. Every rank gets
// the same bits, but they depend on the number of ranks. `scratch` as above.
void all_reduce_ring(Communicator& communicator, std::span<float> values, std::span<float> scratch,
                     const char* name = __builtin_FUNCTION());

// Sum over ranks of each value, in rank order.
std::vector<double> all_reduce_sum(Communicator& communicator, std::span<const double> values,
                                   const char* name = __builtin_FUNCTION());

// `values` of all ranks, by rank, to the bit.
template <class T>
std::vector<T> all_gather_values(Communicator& communicator, const std::vector<T>& values) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (communicator.size() == 1) return values;
  std::vector<T> all;
  for (const std::string& bytes : communicator.all_gather(
           std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)))) {
    const size_t begin = all.size();
    all.resize(begin + bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(all.data() + begin, bytes.data(), bytes.size());
  }
  return all;
}

// The first failure by rank, with its rank, on all ranks; ok if all are.
Status agree(Communicator& communicator, const Status& status,
             const char* name = __builtin_FUNCTION());

}  // namespace gradus::comm
