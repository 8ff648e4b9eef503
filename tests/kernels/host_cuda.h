// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/cuda.h"
#include "kernels/device_optimizer_params.h"
#include "kernels/internal/cuda_table.h"
#include "kernels/optimizer.h"

namespace gradus::testing {

// Who talks for the device of this thread: NCCL between threads that are ranks.
inline thread_local comm::Communicator* host_cuda_ranks = nullptr;

// Memory, optimizer and NCCL of a device, over the host's memory: what is above them (who holds
// which weights, in which order what is exchanged) runs without a GPU. Kernels of models are
// missing. Work is done when it is enqueued.
inline const kernels::cuda::CudaTable& host_cuda_table() {
  using Error = kernels::cuda::CudaErrorText;
  using kernels::cuda::CudaCode;
  constexpr auto ok = CudaCode::kOk;
  static const kernels::cuda::CudaTable table = [] {
    kernels::cuda::CudaTable t = {};
    t.version = kernels::cuda::kCudaTableVersion;
    t.bytes = sizeof(t);
    t.device.allocate = [](void** p, size_t bytes, Error*) {
      *p = std::malloc(bytes);
      std::memset(*p, 0x7F, bytes);  // numbers that nobody wrote are large
      return ok;
    };
    t.device.release = [](void* p, Error*) {
      std::free(p);
      return ok;
    };
    t.device.fill = [](void* p, int32_t byte, size_t bytes, void*, Error*) {
      std::memset(p, byte, bytes);
      return ok;
    };
    t.device.copy = [](void* to, const void* from, size_t bytes, void*, Error*) {
      std::memmove(to, from, bytes);
      return ok;
    };
    t.device.synchronize = [](Error*) { return ok; };
    t.device.event_create = [](void** event, Error*) {
      *event = std::malloc(1);
      return ok;
    };
    t.device.event_record = [](void*, void*, Error*) { return ok; };
    t.stream.event_destroy = [](void* event, Error*) {
      std::free(event);
      return ok;
    };
    t.backward.round = [](const float* x, void* y, int64_t count, void*, Error*) {
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = std::bit_cast<uint32_t>(x[i]);
        static_cast<uint16_t*>(y)[i] =
            static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
      }
      return ok;
    };
    t.optimizer.adamw = [](const kernels::DeviceAdamWParams& p, Error* e) {
      kernels::adamw({.weights = p.weights,
                      .gradients = p.gradients,
                      .m = p.m,
                      .v = p.v,
                      .count = p.count,
                      .gradient_scale = p.gradient_scale,
                      .learning_rate = p.learning_rate,
                      .beta1 = p.beta1,
                      .beta2 = p.beta2,
                      .eps = p.eps,
                      .weight_decay = p.weight_decay,
                      .correction1 = p.correction1,
                      .correction2 = p.correction2});
      if (p.weights_f32 != nullptr) std::copy_n(p.weights, p.count, p.weights_f32);
      if (p.weights_bf16 == nullptr) return ok;
      return host_cuda_table().backward.round(p.weights, p.weights_bf16, p.count, nullptr, e);
    };
    t.optimizer.sum_of_squares = [](const kernels::DeviceSumOfSquaresParams& p, Error*) {
      double& sum = p.sums[kernels::kSquaresParts] = 0;
      for (int64_t i = 0; i < p.count; ++i) sum += double{p.values[i]} * p.values[i];
      return ok;
    };
    t.optimizer.hash = [](const kernels::DeviceHashParams& p, Error*) {
      uint64_t& sum = p.sums[kernels::kSquaresParts] = 0;
      for (int64_t i = 0; i < p.count; ++i) {
        const uint64_t place = static_cast<uint64_t>(p.first + i + 1) * 0x9E3779B97F4A7C15ull;
        sum += (place ^ static_cast<const uint32_t*>(p.values)[i]) * 0xD6E8FEB86659FD93ull;
      }
      return ok;
    };
    t.nccl.load = [](const char*, Error*) { return ok; };
    t.nccl.make_id = [](void* id, Error*) {
      std::memset(id, 1, 128);
      return ok;
    };
    t.nccl.create = [](const void*, int32_t, int32_t, void** communicator, Error*) {
      *communicator = host_cuda_ranks;
      return ok;
    };
    t.nccl.all_gather = [](void* communicator, const void* from, void* to, int64_t bytes, void*,
                           Error*) {
      auto& ranks = *static_cast<comm::Communicator*>(communicator);
      const auto all =
          ranks.all_gather(std::string(static_cast<const char*>(from), static_cast<size_t>(bytes)));
      for (size_t r = 0; r < all.size(); ++r) {
        std::memcpy(static_cast<char*>(to) + r * all[r].size(), all[r].data(), all[r].size());
      }
      return ok;
    };
    t.nccl.reduce_scatter = [](void* communicator, const float* from, float* to, int64_t count,
                               void*, Error*) {
      auto& ranks = *static_cast<comm::Communicator*>(communicator);
      const size_t size = static_cast<size_t>(count);
      std::vector<float> theirs(size), sum(size);
      for (const std::string& text : ranks.all_gather(
               std::string(reinterpret_cast<const char*>(from),
                           size * sizeof(float) * static_cast<size_t>(ranks.size())))) {
        std::memcpy(theirs.data(),
                    text.data() + static_cast<size_t>(ranks.rank()) * size * sizeof(float),
                    size * sizeof(float));
        for (size_t i = 0; i < size; ++i) sum[i] += theirs[i];
      }
      std::copy(sum.begin(), sum.end(), to);
      return ok;
    };
    t.nccl.all_reduce = [](void* communicator, const float* from, float* to, int64_t count, void*,
                           Error*) {
      auto& ranks = *static_cast<comm::Communicator*>(communicator);
      const size_t size = static_cast<size_t>(count);
      std::vector<float> theirs(size), sum(size);
      for (const std::string& text : ranks.all_gather(
               std::string(reinterpret_cast<const char*>(from), size * sizeof(float)))) {
        std::memcpy(theirs.data(), text.data(), text.size());
        for (size_t i = 0; i < size; ++i) sum[i] += theirs[i];
      }
      std::copy(sum.begin(), sum.end(), to);
      return ok;
    };
    t.nccl.state = [](void*, int32_t* is_busy, Error*) {
      *is_busy = 0;
      return ok;
    };
    t.nccl.is_done = [](void*, int32_t* is_done, Error*) {
      *is_done = 1;
      return ok;
    };
    t.nccl.finalize = [](void*, Error*) { return ok; };
    t.nccl.destroy = [](void*, Error*) { return ok; };
    t.nccl.abort = [](void*, Error*) { return ok; };
    return t;
  }();
  return table;
}

}  // namespace gradus::testing
