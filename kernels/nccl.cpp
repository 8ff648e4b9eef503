// SPDX-License-Identifier: Apache-2.0
#include "kernels/nccl.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

using Clock = std::chrono::steady_clock;

// Short pauses first: an operation takes from 20 us on.
class Pause {
 public:
  void wait() {
    if (++num_waits_ < 50) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(std::min(num_waits_, 1000)));
    }
  }

 private:
  int num_waits_ = 0;
};

Clock::time_point after(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

Result<NcclId> make_nccl_id(const Cuda& cuda, const NcclOptions& options) {
  const cuda::NcclFunctions& nccl = cuda.table().nccl;
  GRADUS_RETURN_IF_ERROR(cuda_call("nccl", nccl.load, options.library.c_str()));
  NcclId id;
  GRADUS_RETURN_IF_ERROR(cuda_call("nccl", nccl.make_id, id.bytes));
  return id;
}

Result<Nccl> Nccl::connect(const Cuda& cuda, const NcclId& id, int rank, int size,
                           const NcclOptions& options) {
  GRADUS_CHECK(size >= 1 && rank >= 0 && rank < size, fmt::format("rank {} of {}", rank, size));
  if (!(options.deadline_s > 0)) {
    return invalid_argument("nccl: deadline_s must be positive, got {}", options.deadline_s);
  }
  Nccl made(&cuda.table(), rank, size, options.deadline_s);
  if (size == 1) return made;
  const cuda::NcclFunctions& nccl = cuda.table().nccl;
  GRADUS_RETURN_IF_ERROR(cuda_call("nccl", nccl.load, options.library.c_str()));
  const std::string what = fmt::format("nccl: connect, rank {} of {}", rank, size);
  const Status begun = cuda_call(what, nccl.create, static_cast<const void*>(id.bytes), rank, size,
                                 &made.communicator_);
  if (!begun.ok()) return made.give_up("", begun.message());
  GRADUS_RETURN_IF_ERROR(made.until_idle(what));
  return made;
}

Nccl::Nccl(Nccl&& other) noexcept
    : table_(other.table_),
      rank_(other.rank_),
      size_(other.size_),
      deadline_s_(other.deadline_s_),
      communicator_(std::exchange(other.communicator_, nullptr)),
      pending_(std::exchange(other.pending_, {})),
      free_events_(std::exchange(other.free_events_, {})),
      failure_(other.failure_) {}

// A peer that is still at work is waited for; one that is lost costs the deadline.
Nccl::~Nccl() {
  cuda::CudaErrorText ignored;
  if (communicator_ != nullptr && wait().ok()) {
    const Status ended = cuda_call("nccl", table_->nccl.finalize, communicator_);
    if (ended.ok() && until_idle("nccl: finalize").ok()) {
      table_->nccl.destroy(communicator_, &ignored);
    } else if (communicator_ != nullptr) {
      table_->nccl.abort(communicator_, &ignored);
    }
  }
  for (const Operation& operation : pending_) free_events_.push_back(operation.done);
  for (void* event : free_events_) table_->stream.event_destroy(event, &ignored);
}

std::string Nccl::describe(const char* name, int64_t bytes) const {
  return fmt::format("nccl: {} of {} bytes, rank {} of {}", name, bytes, rank_, size_);
}

Status Nccl::check(const char* name, int64_t count, bool is_null) const {
  GRADUS_RETURN_IF_ERROR(failure_);
  if (count < 0) return invalid_argument("nccl: {}: a count of {} is negative", name, count);
  if (count > 0 && is_null) return invalid_argument("nccl: {}: a pointer is null", name);
  return {};
}

Status Nccl::copy(void* to, const void* from, int64_t bytes, Stream stream) {
  if (to == from || bytes == 0) return {};
  return cuda_call("nccl: copy", table_->device.copy, to, from, static_cast<size_t>(bytes), stream);
}

Status Nccl::all_reduce(const float* from, float* to, int64_t count, Stream stream) {
  GRADUS_RETURN_IF_ERROR(check("all_reduce", count, from == nullptr || to == nullptr));
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (size_ == 1 || count == 0) return copy(to, from, bytes, stream);
  return enqueued("all_reduce", bytes,
                  cuda_call(describe("all_reduce", bytes), table_->nccl.all_reduce, communicator_,
                            from, to, count, stream),
                  stream);
}

Status Nccl::reduce_scatter(const float* from, float* to, int64_t count, Stream stream) {
  GRADUS_RETURN_IF_ERROR(check("reduce_scatter", count, from == nullptr || to == nullptr));
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (size_ == 1 || count == 0) return copy(to, from, bytes, stream);
  return enqueued("reduce_scatter", bytes * size_,
                  cuda_call(describe("reduce_scatter", bytes * size_), table_->nccl.reduce_scatter,
                            communicator_, from, to, count, stream),
                  stream);
}

Status Nccl::all_gather(const void* from, void* to, int64_t bytes, Stream stream) {
  GRADUS_RETURN_IF_ERROR(check("all_gather", bytes, from == nullptr || to == nullptr));
  if (size_ == 1 || bytes == 0) return copy(to, from, bytes, stream);
  return enqueued("all_gather", bytes * size_,
                  cuda_call(describe("all_gather", bytes * size_), table_->nccl.all_gather,
                            communicator_, from, to, bytes, stream),
                  stream);
}

Status Nccl::broadcast(void* p, int64_t bytes, int root, Stream stream) {
  GRADUS_CHECK(root >= 0 && root < size_, fmt::format("broadcast from rank {}", root));
  GRADUS_RETURN_IF_ERROR(check("broadcast", bytes, p == nullptr));
  if (size_ == 1 || bytes == 0) return {};
  return enqueued("broadcast", bytes,
                  cuda_call(describe("broadcast", bytes), table_->nccl.broadcast, communicator_, p,
                            bytes, root, stream),
                  stream);
}

Result<void*> Nccl::take_event() {
  if (!free_events_.empty()) {
    void* event = free_events_.back();
    free_events_.pop_back();
    return event;
  }
  void* event = nullptr;
  GRADUS_RETURN_IF_ERROR(cuda_call("nccl: event", table_->device.event_create, &event));
  return event;
}

// The call may go on in a thread of NCCL, the first one above all, which sets up the links; the
// operation is on the stream only when that is over.
Status Nccl::enqueued(const char* name, int64_t bytes, const Status& call, Stream stream) {
  if (!call.ok()) return give_up("", call.message());
  GRADUS_RETURN_IF_ERROR(until_idle(describe(name, bytes)));
  const Result<void*> event = take_event();
  GRADUS_RETURN_IF_ERROR(event.status());
  pending_.push_back({name, bytes, *event});
  return cuda_call("nccl: event", table_->device.event_record, *event, stream);
}

Status Nccl::until_idle(const std::string& what) {
  const Clock::time_point end = after(deadline_s_);
  Pause pause;
  for (;;) {
    int32_t is_busy = 0;
    const Status state = cuda_call(what, table_->nccl.state, communicator_, &is_busy);
    if (!state.ok()) return give_up("", state.message());
    if (is_busy == 0) return {};
    if (Clock::now() > end) {
      return give_up(what, fmt::format("not begun after {:.1f} s", deadline_s_));
    }
    pause.wait();
  }
}

Status Nccl::wait() {
  GRADUS_RETURN_IF_ERROR(failure_);
  Clock::time_point end = after(deadline_s_);
  Pause pause;
  while (!pending_.empty()) {
    const Operation& next = pending_.front();
    const std::string what = describe(next.name, next.bytes);
    int32_t is_done = 0, is_busy = 0;
    Status state = cuda_call(what, table_->nccl.is_done, next.done, &is_done);
    if (state.ok() && is_done != 0) {
      free_events_.push_back(next.done);
      pending_.pop_front();
      end = after(deadline_s_);
      pause = {};
      continue;
    }
    if (state.ok()) state = cuda_call(what, table_->nccl.state, communicator_, &is_busy);
    if (!state.ok()) return give_up("", state.message());
    if (Clock::now() > end) {
      return give_up(what, fmt::format("not done after {:.1f} s", deadline_s_));
    }
    pause.wait();
  }
  return {};
}

Status Nccl::give_up(const std::string& what, const std::string& why) {
  failure_ = what.empty()
                 ? unavailable("{}; the devices are given up", why)
                 : unavailable("{}: {}; a peer is lost, or its calls are others", what, why);
  cuda::CudaErrorText ignored;
  if (communicator_ != nullptr) table_->nccl.abort(std::exchange(communicator_, nullptr), &ignored);
  return failure_;
}

}  // namespace gradus::kernels
