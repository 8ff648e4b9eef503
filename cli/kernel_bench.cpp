// SPDX-License-Identifier: Apache-2.0
#include "cli/kernel_bench.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda_check.h"
#include "kernels/device_forward.h"
#include "kernels/lm_head.h"

namespace gradus::cli {
namespace {

using kernels::CudaBuffer;
constexpr size_t kFlushBytes = size_t{256} << 20;
constexpr int64_t kTopK = 50;

double rounded(double x) { return std::round(x * 100) / 100; }

// Device memory of `count` numbers; throws nothing, but a failed allocation ends the bench.
struct Memory {
  const kernels::Cuda& cuda;
  std::vector<CudaBuffer> buffers;
  Status status;

  template <class T>
  T* take(int64_t count, bool zeroed = false) {
    Result<CudaBuffer> buffer = CudaBuffer::allocate(cuda, static_cast<size_t>(count) * sizeof(T));
    if (!buffer.ok()) {
      status = buffer.status();
      return nullptr;
    }
    buffers.push_back(std::move(buffer).value());
    if (zeroed && status.ok()) status = buffers.back().fill(0);
    return buffers.back().as<T>();
  }
  uint16_t* normals(int64_t count, float scale, uint64_t seed) {
    auto* p = take<uint16_t>(count);
    if (status.ok()) status = kernels::check_random_bf16(cuda, p, count, scale, seed);
    return p;
  }
};

}  // namespace

Result<KernelBench::Times> KernelBench::time(const Call& call) {
  for (int i = 0; i < 3; ++i) GRADUS_RETURN_IF_ERROR(call());
  std::vector<double> us;
  for (int64_t i = 0; i < repeats_; ++i) {
    GRADUS_RETURN_IF_ERROR(flush_->enqueue_fill(static_cast<uint8_t>(i)));
    GRADUS_RETURN_IF_ERROR(timer_->begin());
    GRADUS_RETURN_IF_ERROR(call());
    const Result<double> elapsed = timer_->end_us();
    GRADUS_RETURN_IF_ERROR(elapsed.status());
    us.push_back(*elapsed);
  }
  std::sort(us.begin(), us.end());
  return Times{us[us.size() / 2], us.front()};
}

Status KernelBench::report(Json row, const Times& times, double bytes, double flops,
                           const Times* peer) {
  row["median_us"] = rounded(times.median_us);
  row["min_us"] = rounded(times.min_us);
  row["gb_per_s"] = rounded(bytes / times.median_us / 1e3);
  row["tflop_per_s"] = rounded(flops / times.median_us / 1e6);
  if (read_bytes_per_us_ > 0) {
    row["percent_of_read"] = rounded(100 * bytes / times.median_us / read_bytes_per_us_);
  }
  if (flops_per_us_ > 0) {
    row["percent_of_gemm"] = rounded(100 * flops / times.median_us / flops_per_us_);
  }
  if (peer != nullptr) {
    row["cublas_us"] = rounded(peer->median_us);
    row["cublas_over_ours"] = rounded(peer->median_us / times.median_us);
  }
  return write_(row);
}

Status KernelBench::calibrate() {
  const int64_t v = 151936, d = 4096;
  Memory memory{cuda_, {}, {}};
  const uint16_t* w = memory.normals(v * d, 1, 1);
  auto* sum = memory.take<float>(1);
  GRADUS_RETURN_IF_ERROR(memory.status);
  const auto bytes = static_cast<double>(v * d * 2);
  const Result<Times> read =
      time([&] { return kernels::check_read(cuda_, w, static_cast<size_t>(v * d) * 2, sum); });
  GRADUS_RETURN_IF_ERROR(read.status());
  GRADUS_RETURN_IF_ERROR(
      report({{"case", "read"}, {"device", cuda_.description()}}, *read, bytes, 0, nullptr));
  read_bytes_per_us_ = bytes / read->median_us;
  const int64_t m = 8192, n = 16384;
  const uint16_t* h = memory.normals(m * d, 0.02f, 2);
  auto* out = memory.take<uint16_t>(m * n);
  GRADUS_RETURN_IF_ERROR(memory.status);
  const Result<Times> gemm =
      time([&] { return kernels::check_cublas_logits(cuda_, w, h, out, m, n, d); });
  GRADUS_RETURN_IF_ERROR(gemm.status());
  const double flops = 2.0 * static_cast<double>(m * n * d);
  GRADUS_RETURN_IF_ERROR(
      report({{"case", "gemm"}, {"b", m}, {"v", n}, {"d", d}}, *gemm, 0, flops, nullptr));
  flops_per_us_ = flops / gemm->median_us;
  return {};
}

Status KernelBench::sampler(int64_t v, int64_t d, const std::vector<int64_t>& batches) {
  const int64_t most = *std::max_element(batches.begin(), batches.end());
  Memory memory{cuda_, {}, {}};
  const uint16_t* w = memory.normals(v * d, 1, 1);
  const uint16_t* h = memory.normals(most * d, 3 / std::sqrt(static_cast<float>(d)), 2);
  const size_t workspace_bytes = kernels::lm_head_sample_workspace_bytes(cuda_, most, v);
  auto* workspace = memory.take<uint8_t>(static_cast<int64_t>(workspace_bytes), true);
  auto* out = memory.take<uint16_t>(most * v);
  auto* rows = memory.take<kernels::LmHeadRow>(most);
  auto* token = memory.take<int32_t>(most);
  auto* kept = memory.take<int32_t>(most);
  auto* numbers = memory.take<float>(4 * most);
  auto* top_ids = memory.take<int32_t>(20 * most);
  auto* top_logprobs = memory.take<float>(20 * most);
  GRADUS_RETURN_IF_ERROR(memory.status);
  for (const int64_t b : batches) {
    const double bytes = static_cast<double>((v + b) * d * 2);
    const double flops = 2.0 * static_cast<double>(v * d * b);
    const Result<Times> peer =
        time([&] { return kernels::check_cublas_logits(cuda_, w, h, out, b, v, d); });
    GRADUS_RETURN_IF_ERROR(peer.status());
    for (const std::string kind : {"greedy", "noise", "top_k 50", "top_k 50 top_p 0.95 top 20"}) {
      std::vector<kernels::LmHeadRow> settings(static_cast<size_t>(b));
      for (size_t i = 0; i < settings.size(); ++i) {
        settings[i] = {.seed = i * 77 + 5, .temperature = kind == "greedy" ? 0.0f : 1.0f};
        if (kind.starts_with("top_k")) settings[i].top_k = kTopK;
        if (kind.size() > 10) settings[i].top_p = 0.95;
      }
      GRADUS_RETURN_IF_ERROR(kernels::copy_to_device(cuda_, rows, settings.data(),
                                                     settings.size() * sizeof(settings[0])));
      kernels::LmHeadSampleParams p = {.w_VD = w,
                                       .h_BD = h,
                                       .rows_B = rows,
                                       .b = b,
                                       .v = v,
                                       .d = d,
                                       .filters = kind.starts_with("top_k"),
                                       .token_B = token,
                                       .logprob_B = numbers,
                                       .sampling_logprob_B = numbers + most,
                                       .lse_B = numbers + 2 * most,
                                       .entropy_B = numbers + 3 * most,
                                       .num_kept_B = kept,
                                       .workspace = workspace,
                                       .workspace_bytes = workspace_bytes};
      if (kind.size() > 10) {
        p.num_top = kernels::kLmHeadMaxTop;
        p.top_ids_BN = top_ids;
        p.top_logprobs_BN = top_logprobs;
      }
      const Result<Times> times = time([&] { return kernels::lm_head_sample(cuda_, p); });
      GRADUS_RETURN_IF_ERROR(times.status());
      GRADUS_RETURN_IF_ERROR(
          report({{"case", "sample"}, {"kind", kind}, {"v", v}, {"d", d}, {"b", b}}, *times, bytes,
                 flops, &*peer));
    }
  }
  return {};
}

Status KernelBench::scorer(int64_t rows, int64_t v, int64_t d) {
  Memory memory{cuda_, {}, {}};
  const uint16_t* w = memory.normals(v * d, 1, 1);
  const uint16_t* h = memory.normals(rows * d, 3 / std::sqrt(static_cast<float>(d)), 2);
  const size_t workspace_bytes = kernels::lm_head_score_workspace_bytes(cuda_, rows, v);
  auto* workspace = memory.take<uint8_t>(static_cast<int64_t>(workspace_bytes), true);
  auto* out = memory.take<uint16_t>(rows * v);
  auto* token = memory.take<int32_t>(rows);
  auto* numbers = memory.take<float>(4 * rows);
  GRADUS_RETURN_IF_ERROR(memory.status);
  std::vector<int32_t> tokens(static_cast<size_t>(rows));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>((i * 7919) % static_cast<size_t>(v));
  }
  const std::vector<float> temperatures(static_cast<size_t>(rows), 1.0f);
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_device(cuda_, token, tokens.data(), tokens.size() * 4));
  GRADUS_RETURN_IF_ERROR(
      kernels::copy_to_device(cuda_, numbers, temperatures.data(), temperatures.size() * 4));
  const Result<Times> peer =
      time([&] { return kernels::check_cublas_logits(cuda_, w, h, out, rows, v, d); });
  GRADUS_RETURN_IF_ERROR(peer.status());
  const Result<Times> times = time([&] {
    return kernels::lm_head_score(cuda_, {.w_VD = w,
                                          .h_BD = h,
                                          .temperature_B = numbers,
                                          .token_B = token,
                                          .b = rows,
                                          .v = v,
                                          .d = d,
                                          .logprob_B = numbers + rows,
                                          .lse_B = numbers + 2 * rows,
                                          .entropy_B = numbers + 3 * rows,
                                          .workspace = workspace,
                                          .workspace_bytes = workspace_bytes});
  });
  GRADUS_RETURN_IF_ERROR(times.status());
  return report({{"case", "score"},
                 {"v", v},
                 {"d", d},
                 {"b", rows},
                 {"workspace_mib", rounded(static_cast<double>(workspace_bytes) / (1 << 20))}},
                *times, static_cast<double>((v + rows) * d * 2),
                2.0 * static_cast<double>(v * d * rows), &*peer);
}

Status KernelBench::linear(int64_t n, int64_t k, const std::vector<int64_t>& batches) {
  const int64_t most = *std::max_element(batches.begin(), batches.end());
  Memory memory{cuda_, {}, {}};
  const uint16_t* w = memory.normals(n * k, 1, 1);
  const uint16_t* x = memory.normals(most * k, 1, 2);
  auto* y = memory.take<uint16_t>(most * n);
  GRADUS_RETURN_IF_ERROR(memory.status);
  for (const int64_t t : batches) {
    const Result<Times> peer =
        time([&] { return kernels::check_cublas_logits(cuda_, w, x, y, t, n, k); });
    GRADUS_RETURN_IF_ERROR(peer.status());
    const Result<Times> times = time([&] {
      return kernels::device_linear(
          cuda_, {.x_TK = x, .w_NK = w, .t = t, .n = n, .k = k, .y = y, .y_stride = n});
    });
    GRADUS_RETURN_IF_ERROR(times.status());
    GRADUS_RETURN_IF_ERROR(report({{"case", "linear"}, {"n", n}, {"k", k}, {"t", t}}, *times,
                                  static_cast<double>((n * k + t * (n + k)) * 2),
                                  2.0 * static_cast<double>(n * k * t), &*peer));
  }
  return {};
}

Status KernelBench::run(bool quick) {
  Result<CudaBuffer> flush = CudaBuffer::allocate(cuda_, kFlushBytes);
  GRADUS_RETURN_IF_ERROR(flush.status());
  flush_.emplace(std::move(flush).value());
  Result<kernels::CudaTimer> timer = kernels::CudaTimer::create(cuda_);
  GRADUS_RETURN_IF_ERROR(timer.status());
  timer_.emplace(std::move(timer).value());
  GRADUS_RETURN_IF_ERROR(calibrate());
  // Of Qwen3-0.6B: q, k and v; output; gate and up; down.
  for (const auto& [n, k] : {std::pair{4096, 1024}, {1024, 2048}, {6144, 1024}, {1024, 3072}}) {
    GRADUS_RETURN_IF_ERROR(linear(n, k, {1, 16, 64, 256, 8192}));
  }
  if (!quick) {
    GRADUS_RETURN_IF_ERROR(sampler(49152, 576, {1, 64, 256}));
    GRADUS_RETURN_IF_ERROR(sampler(151936, 896, {1, 16, 64, 128, 256}));
    GRADUS_RETURN_IF_ERROR(sampler(151936, 2048, {1, 16, 64, 128, 256}));
    GRADUS_RETURN_IF_ERROR(sampler(128256, 4096, {1, 16, 64, 128, 256}));
    GRADUS_RETURN_IF_ERROR(sampler(128256, 8192, {1, 64, 256}));
    GRADUS_RETURN_IF_ERROR(scorer(8192, 151936, 2048));
  }
  GRADUS_RETURN_IF_ERROR(sampler(151936, 4096, {1, 8, 16, 32, 64, 128, 192, 256}));
  return scorer(8192, 151936, 4096);
}

}  // namespace gradus::cli
