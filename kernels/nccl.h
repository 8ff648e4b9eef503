// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/stream.h"

namespace gradus::kernels {

// What the devices of one communicator are told so that they find each other; made by one process.
struct NcclId {
  char bytes[128] = {};
};

struct NcclOptions {
  std::string library;        // libnccl.so.2; if empty, where the machine has it
  double deadline_s = 120.0;  // > 0: how long nothing may move before the peers are given up
};

// Loads NCCL, 2.14 or newer, at the first call. Unavailable says what to install.
Result<NcclId> make_nccl_id(const Cuda& cuda, const NcclOptions& options = {});

// Collectives between the devices of several processes, by NVIDIA's NCCL (looked for at run time).
// Of one rank they are the identity, and NCCL is not needed. Every rank makes the same calls in the
// same order; comm/device_communicator.h brings the ranks together.
//
// Operations enqueue on `stream` and are done once wait() has returned ok or the stream says so.
// Memory is the device's that was current at connect(). The same call gives the same bits again
// for one number of ranks, NCCL version and machine; sums over another number of ranks have other
// bits (comm::all_reduce_tree has not).
//
// A peer that is lost does not hang this rank: when nothing has moved for `deadline_s`, or NCCL
// reports an error, the communicator is aborted, and this and all later calls return Unavailable,
// which names the operation, its bytes and the rank. Only wait() and the calls themselves look:
// work behind an operation is waited for by wait() first, never by a plain synchronisation. Not
// thread-safe, not to be recorded into a graph. Move only.
class Nccl {
 public:
  // Called by all ranks; the device of each is another one, and current. `id` may be empty for one
  // rank. Unavailable if the peers do not come within the deadline.
  static Result<Nccl> connect(const Cuda& cuda, const NcclId& id, int rank, int size,
                              const NcclOptions& options = {});
  ~Nccl();
  Nccl(Nccl&& other) noexcept;
  Nccl& operator=(Nccl&&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // to[i] = sum over ranks of from[i], i < count; in place if they are the same.
  Status all_reduce(const float* from, float* to, int64_t count, Stream stream);
  // to[i] = sum over ranks of from[rank() count + i], i < count; `from` has size() count values.
  // In place if to == from + rank() count.
  Status reduce_scatter(const float* from, float* to, int64_t count, Stream stream);
  // Bytes [r bytes, (r + 1) bytes) of `to` = the `bytes` bytes of rank r's `from`, whatever their
  // type. In place if from == to + rank() bytes.
  Status all_gather(const void* from, void* to, int64_t bytes, Stream stream);
  // The `bytes` bytes at `p` become those of rank `root`.
  Status broadcast(void* p, int64_t bytes, int root, Stream stream);

  // Waits on the host until all operations so far are done.
  Status wait();

 private:
  struct Operation {
    const char* name;
    int64_t bytes;
    void* done;  // event behind it
  };

  Nccl(const cuda::CudaTable* table, int rank, int size, double deadline_s)
      : table_(table), rank_(rank), size_(size), deadline_s_(deadline_s) {}
  Status check(const char* name, int64_t count, bool is_null) const;
  Status copy(void* to, const void* from, int64_t bytes, Stream stream);
  Status enqueued(const char* name, int64_t bytes, const Status& call, Stream stream);
  Status until_idle(const std::string& what);
  Status give_up(const std::string& what, const std::string& why);
  std::string describe(const char* name, int64_t bytes) const;
  Result<void*> take_event();

  const cuda::CudaTable* table_;
  int rank_, size_;
  double deadline_s_;
  void* communicator_ = nullptr;  // null for one rank, and once given up
  std::deque<Operation> pending_{};
  std::deque<void*> free_events_{};
  Status failure_{};  // ok until given up
};

}  // namespace gradus::kernels
