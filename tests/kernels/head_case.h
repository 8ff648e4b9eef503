// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda.h"
#include "kernels/cuda_check.h"
#include "kernels/lm_head.h"
#include "kernels/sampling.h"

namespace gradus::testing {

using kernels::Cuda;
using kernels::CudaBuffer;
using kernels::LmHeadRow;

// The device, opened once for the process (the number of the first call). Null without one: the
// test skips, or fails where GRADUS_REQUIRE_GPU is set.
inline const Cuda* gpu(std::string* why, int32_t device = 0) {
  static const Result<Cuda> cuda = Cuda::open("", device);
  if (cuda.ok()) return &cuda.value();
  *why = cuda.status().message();
  return nullptr;
}

#define GRADUS_NEEDS_GPU(name) GRADUS_NEEDS_GPU_NUMBER(name, 0)
#define GRADUS_NEEDS_GPU_NUMBER(name, device)                                                \
  std::string why_no_gpu;                                                                    \
  const ::gradus::kernels::Cuda* const name = ::gradus::testing::gpu(&why_no_gpu, (device)); \
  if ((name) == nullptr) {                                                                   \
    ASSERT_EQ(std::getenv("GRADUS_REQUIRE_GPU"), nullptr) << why_no_gpu;                     \
    GTEST_SKIP() << why_no_gpu;                                                              \
  }

inline void must(const Status& status) { ASSERT_TRUE(status.ok()) << status.message(); }

template <class T>
class DeviceArray {
 public:
  DeviceArray(const Cuda& cuda, size_t count)
      : buffer_(std::move(CudaBuffer::allocate(cuda, count * sizeof(T)).value())), count_(count) {}
  DeviceArray(const Cuda& cuda, const std::vector<T>& values) : DeviceArray(cuda, values.size()) {
    upload(values);
  }
  void upload(const std::vector<T>& values) {
    must(buffer_.copy_from_host(values.data(), values.size() * sizeof(T)));
  }
  std::vector<T> download() const {
    std::vector<T> values(count_);
    must(buffer_.copy_to_host(values.data(), count_ * sizeof(T)));
    return values;
  }
  void fill(uint8_t byte) { must(buffer_.fill(byte)); }
  T* data() const { return buffer_.as<T>(); }
  size_t count() const { return count_; }

 private:
  CudaBuffer buffer_;
  size_t count_;
};

struct HeadResult {
  std::vector<int32_t> token, num_kept, top_ids;
  std::vector<float> logprob, sampling_logprob, lse, entropy, top_logprobs;
};

inline bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(float)) == 0; }

// A head with random weights and up to `b` rows on the device.
class HeadCase {
 public:
  HeadCase(const Cuda& cuda, int64_t v, int64_t d, int64_t b, float logit_scale, uint64_t seed)
      : cuda_(cuda),
        v_(v),
        d_(d),
        b_(b),
        w_(cuda, static_cast<size_t>(v * d)),
        h_(cuda, static_cast<size_t>(b * d)),
        workspace_(cuda, kernels::lm_head_sample_workspace_bytes(cuda, b, v)),
        score_workspace_(cuda, kernels::lm_head_score_workspace_bytes(cuda, b, v)) {
    must(kernels::check_random_bf16(cuda, w_.data(), v * d, 1.0f, seed));
    must(kernels::check_random_bf16(cuda, h_.data(), b * d,
                                    logit_scale / std::sqrt(static_cast<float>(d)), seed + 1));
    workspace_.fill(0);
    score_workspace_.fill(0);
  }

  // The plain kernel's logits [b, V].
  std::vector<float> logits(int parts = 1) const {
    DeviceArray<float> z(cuda_, static_cast<size_t>(b_ * v_));
    must(kernels::check_logits(cuda_, w_.data(), h_.data(), z.data(), b_, v_, d_, parts));
    return z.download();
  }

  // The rows [first, first + rows.size()), in `shards` parts of the vocabulary.
  HeadResult sample(const std::vector<LmHeadRow>& rows, int64_t first = 0, bool filters = false,
                    int num_top = 0, int64_t shards = 1) {
    const auto n = rows.size();
    DeviceArray<LmHeadRow> settings(cuda_, rows);
    DeviceArray<int32_t> token(cuda_, n), kept(cuda_, n),
        ids(cuda_, n * static_cast<size_t>(num_top));
    DeviceArray<float> logprob(cuda_, n), sampling(cuda_, n), lse(cuda_, n), entropy(cuda_, n),
        top(cuda_, n * static_cast<size_t>(num_top));
    for (auto* array : {&token, &kept}) array->fill(0xAA);
    for (auto* array : {&logprob, &sampling, &lse, &entropy}) array->fill(0xAA);
    const int64_t blocks = (v_ + 127) / 128, each = (blocks + shards - 1) / shards * 128;
    for (int64_t begin = 0; begin < v_; begin += each) {
      const int64_t count = std::min(each, v_ - begin);
      must(kernels::lm_head_sample(cuda_, {.w_VD = w_.data() + begin * d_,
                                           .h_BD = h_.data() + first * d_,
                                           .rows_B = settings.data(),
                                           .b = static_cast<int64_t>(n),
                                           .v = count,
                                           .d = d_,
                                           .vocab_begin = begin,
                                           .vocab_size = v_,
                                           .filters = filters,
                                           .token_B = token.data(),
                                           .logprob_B = logprob.data(),
                                           .sampling_logprob_B = sampling.data(),
                                           .lse_B = lse.data(),
                                           .entropy_B = entropy.data(),
                                           .num_kept_B = kept.data(),
                                           .num_top = num_top,
                                           .top_ids_BN = ids.data(),
                                           .top_logprobs_BN = top.data(),
                                           .workspace = workspace_.data(),
                                           .workspace_bytes = workspace_.count(),
                                           .workspace_rows = b_}));
    }
    must(kernels::synchronize(cuda_));
    return {token.download(),    kept.download(), ids.download(),     logprob.download(),
            sampling.download(), lse.download(),  entropy.download(), top.download()};
  }

  HeadResult score(const std::vector<float>& temperatures, const std::vector<int32_t>& tokens,
                   int64_t first = 0) {
    const auto n = tokens.size();
    DeviceArray<float> t(cuda_, temperatures), logprob(cuda_, n), lse(cuda_, n), entropy(cuda_, n);
    DeviceArray<int32_t> token(cuda_, tokens);
    for (auto* array : {&logprob, &lse, &entropy}) array->fill(0xAA);
    must(kernels::lm_head_score(cuda_, {.w_VD = w_.data(),
                                        .h_BD = h_.data() + first * d_,
                                        .temperature_B = t.data(),
                                        .token_B = token.data(),
                                        .b = static_cast<int64_t>(n),
                                        .v = v_,
                                        .d = d_,
                                        .logprob_B = logprob.data(),
                                        .lse_B = lse.data(),
                                        .entropy_B = entropy.data(),
                                        .workspace = score_workspace_.data(),
                                        .workspace_bytes = score_workspace_.count()}));
    must(kernels::synchronize(cuda_));
    HeadResult result;
    result.logprob = logprob.download();
    result.lse = lse.download();
    result.entropy = entropy.download();
    return result;
  }

  int64_t v() const { return v_; }
  int64_t d() const { return d_; }
  int64_t b() const { return b_; }
  DeviceArray<uint16_t>& w() { return w_; }
  DeviceArray<uint16_t>& h() { return h_; }

 private:
  const Cuda& cuda_;
  int64_t v_, d_, b_;
  DeviceArray<uint16_t> w_, h_;
  DeviceArray<uint8_t> workspace_, score_workspace_;
};

// Parameters of the CPU's sampler for one row.
inline kernels::SamplingParams cpu_params(const float* logits_V, int64_t v, const LmHeadRow& row) {
  return {.logits_V = logits_V,
          .v = v,
          .temperature = row.temperature == 0 ? 1.0f : row.temperature,
          .greedy = row.temperature == 0,
          .top_k = row.top_k,
          .top_p = row.top_p,
          .min_p = row.min_p,
          .seed = row.seed,
          .position = row.position};
}

}  // namespace gradus::testing
