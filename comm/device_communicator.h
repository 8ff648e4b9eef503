// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "comm/communicator.h"
#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/nccl.h"

namespace gradus::comm {

// The devices of a communicator's ranks, one each, as a communicator of their own: what a trainer
// that shares data or optimizer state out over GPUs says to the others, without a way through the
// host. By NCCL, whose id travels over `host`; of one rank it is the identity, without NCCL. Its
// twin on the CPU is the Communicator itself.
//
// The operations are those of kernels/nccl.h, which says what they do, when they are done and what
// becomes of a lost peer. wait() is written down for the watchdog (comm/watch.h), so that a stuck
// rank is reported as anywhere else, and long before the deadline here. Not thread-safe.
class DeviceCommunicator {
 public:
  // Collective over `host`, which must outlive it. The device of each rank is current and no other
  // rank's. The first failure of any rank, with its rank, on all of them: NCCL is missing or too
  // old, or a rank did not come within the deadline.
  static Result<std::unique_ptr<DeviceCommunicator>> create(
      const kernels::Cuda& cuda, Communicator& host, const kernels::NcclOptions& options = {});

  int rank() const { return nccl_.rank(); }
  int size() const { return nccl_.size(); }
  Communicator& host() { return host_; }

  Status all_reduce(const float* from, float* to, int64_t count, kernels::Stream stream) {
    return nccl_.all_reduce(from, to, count, stream);
  }
  Status reduce_scatter(const float* from, float* to, int64_t count, kernels::Stream stream) {
    return nccl_.reduce_scatter(from, to, count, stream);
  }
  Status all_gather(const void* from, void* to, int64_t bytes, kernels::Stream stream) {
    return nccl_.all_gather(from, to, bytes, stream);
  }
  Status broadcast(void* p, int64_t bytes, int root, kernels::Stream stream) {
    return nccl_.broadcast(p, bytes, root, stream);
  }

  // Waits until all operations so far are done. Every rank calls it.
  Status wait(const char* name = __builtin_FUNCTION());

 private:
  DeviceCommunicator(kernels::Nccl nccl, Communicator& host)
      : nccl_(std::move(nccl)), host_(host) {}

  kernels::Nccl nccl_;
  Communicator& host_;
};

}  // namespace gradus::comm
