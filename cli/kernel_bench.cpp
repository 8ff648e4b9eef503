// SPDX-License-Identifier: Apache-2.0
#include "cli/kernel_bench.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda_check.h"
#include "kernels/device_forward.h"
#include "kernels/device_product.h"
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

Status KernelBench::head_training(int64_t rows, int64_t v, int64_t d) {
  Memory memory{cuda_, {}, {}};
  const uint16_t* w = memory.normals(v * d, 1, 1);
  const uint16_t* h = memory.normals(rows * d, 3 / std::sqrt(static_cast<float>(d)), 2);
  auto* logits = memory.take<uint16_t>(rows * v);
  auto* dh = memory.take<float>(rows * d);
  auto* dw = memory.take<float>(v * d, true);
  auto* token = memory.take<int32_t>(rows);
  auto* listed = memory.take<int32_t>(rows);
  auto* numbers = memory.take<float>(6 * rows);
  const size_t score_bytes = kernels::lm_head_score_workspace_bytes(cuda_, rows, v);
  const size_t backward_bytes = kernels::lm_head_backward_workspace_bytes(cuda_, rows, v, d);
  const size_t half_bytes = kernels::lm_head_backward_workspace_bytes(cuda_, rows / 2, v, d, true);
  const size_t train_bytes = kernels::lm_head_train_workspace_bytes(cuda_, rows, v, d);
  const size_t most = std::max({score_bytes, backward_bytes, half_bytes, train_bytes});
  auto* score_workspace = memory.take<uint8_t>(static_cast<int64_t>(score_bytes), true);
  auto* workspace = memory.take<uint8_t>(static_cast<int64_t>(most), true);
  GRADUS_RETURN_IF_ERROR(memory.status);
  // Of every row: temperature, log-prob, lse, entropy, and the loss' gradients.
  std::vector<int32_t> tokens(static_cast<size_t>(rows)), half;
  std::vector<float> values(static_cast<size_t>(6 * rows), 1.0f);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>((i * 7919) % static_cast<size_t>(v));
    if (i % 2 == 0) half.push_back(static_cast<int32_t>(i));
    values[4 * tokens.size() + i] = (static_cast<float>(i % 17) - 8.5f) / 8;
    values[5 * tokens.size() + i] = 0.01f;
  }
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_device(cuda_, token, tokens.data(), tokens.size() * 4));
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_device(cuda_, listed, half.data(), half.size() * 4));
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_device(cuda_, numbers, values.data(), values.size() * 4));

  const Result<Times> forward_product =
      time([&] { return kernels::check_cublas_logits(cuda_, w, h, logits, rows, v, d); });
  GRADUS_RETURN_IF_ERROR(forward_product.status());
  const Result<Times> hidden_product = time([&] {
    return kernels::device_product(cuda_,
                                   {.a = logits, .b = w, .c = dh, .m = rows, .n = d, .k = v});
  });
  GRADUS_RETURN_IF_ERROR(hidden_product.status());
  const Result<Times> weights_product = time([&] {
    return kernels::device_product(
        cuda_, {.a = logits, .b = h, .c = dw, .m = v, .n = d, .k = rows, .a_transposed = true});
  });
  GRADUS_RETURN_IF_ERROR(weights_product.status());
  const double backward_products = hidden_product->median_us + weights_product->median_us;
  const Times three = {forward_product->median_us + backward_products};
  const Times four = {2 * forward_product->median_us + backward_products};

  const auto score = [&] {
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
                                          .workspace = score_workspace,
                                          .workspace_bytes = score_bytes});
  };
  const auto backward = [&](bool half_of_rows) {
    return kernels::lm_head_backward(cuda_,
                                     {.w_VD = w,
                                      .h_BD = h,
                                      .token_B = token,
                                      .lse_B = numbers + 2 * rows,
                                      .entropy_B = numbers + 3 * rows,
                                      .dlogprob_B = numbers + 4 * rows,
                                      .dentropy_B = numbers + 5 * rows,
                                      .b = rows,
                                      .v = v,
                                      .d = d,
                                      .rows_R = half_of_rows ? listed : nullptr,
                                      .r = half_of_rows ? static_cast<int64_t>(half.size()) : 0,
                                      .dh_BD = dh,
                                      .dw_VD = dw,
                                      .workspace = workspace,
                                      .workspace_bytes = most});
  };
  const auto train = [&] {
    return kernels::lm_head_train(cuda_, {.w_VD = w,
                                          .h_BD = h,
                                          .token_B = token,
                                          .dlogprob_B = numbers + 4 * rows,
                                          .b = rows,
                                          .v = v,
                                          .d = d,
                                          .logprob_B = numbers + rows,
                                          .lse_B = numbers + 2 * rows,
                                          .entropy_B = numbers + 3 * rows,
                                          .dh_BD = dh,
                                          .dw_VD = dw,
                                          .workspace = workspace,
                                          .workspace_bytes = most});
  };
  const double flops = 2.0 * static_cast<double>(rows * v * d);
  const auto write = [&](const char* kind, const Call& call, double products,
                         double workspace_bytes, const Times* peer) -> Status {
    const Result<Times> times = time(call);
    GRADUS_RETURN_IF_ERROR(times.status());
    return report({{"case", "head_training"},
                   {"kind", kind},
                   {"b", rows},
                   {"v", v},
                   {"d", d},
                   {"workspace_mb", rounded(workspace_bytes / 1e6)}},
                  *times, 0, products * flops, peer);
  };
  const auto bytes_of = [](size_t bytes) { return static_cast<double>(bytes); };
  GRADUS_RETURN_IF_ERROR(write("score", score, 1, bytes_of(score_bytes), &*forward_product));
  GRADUS_RETURN_IF_ERROR(write(
      "backward", [&] { return backward(false); }, 3, bytes_of(backward_bytes), &three));
  GRADUS_RETURN_IF_ERROR(write(
      "backward, half the rows", [&] { return backward(true); }, 1.5, bytes_of(half_bytes),
      nullptr));
  const auto both = [&]() -> Status {
    GRADUS_RETURN_IF_ERROR(score());
    return backward(false);
  };
  GRADUS_RETURN_IF_ERROR(
      write("score and backward", both, 4, bytes_of(std::max(score_bytes, backward_bytes)), &four));
  GRADUS_RETURN_IF_ERROR(write("train", train, 3, bytes_of(train_bytes), &three));
  const auto write_product = [&](const char* kind, const Times& times) {
    return report({{"case", "head_training"}, {"kind", kind}, {"b", rows}, {"v", v}, {"d", d}},
                  times, 0, flops, nullptr);
  };
  GRADUS_RETURN_IF_ERROR(write_product("product h W^T", *forward_product));
  GRADUS_RETURN_IF_ERROR(write_product("product dz W", *hidden_product));
  return write_product("product dz^T h", *weights_product);
}

Status KernelBench::run(bool quick, const std::string& only) {
  Result<CudaBuffer> flush = CudaBuffer::allocate(cuda_, kFlushBytes);
  GRADUS_RETURN_IF_ERROR(flush.status());
  flush_.emplace(std::move(flush).value());
  Result<kernels::CudaTimer> timer = kernels::CudaTimer::create(cuda_);
  GRADUS_RETURN_IF_ERROR(timer.status());
  timer_.emplace(std::move(timer).value());
  GRADUS_RETURN_IF_ERROR(calibrate());
  const auto wanted = [&](const char* kind) { return only.empty() || only == kind; };
  if (wanted("linear")) {
    // Of Qwen3-0.6B: q, k and v; output; gate and up; down.
    for (const auto& [n, k] : {std::pair{4096, 1024}, {1024, 2048}, {6144, 1024}, {1024, 3072}}) {
      GRADUS_RETURN_IF_ERROR(linear(n, k, {1, 16, 64, 256, 8192}));
    }
  }
  if (wanted("sample")) {
    if (!quick) {
      GRADUS_RETURN_IF_ERROR(sampler(49152, 576, {1, 64, 256}));
      GRADUS_RETURN_IF_ERROR(sampler(151936, 896, {1, 16, 64, 128, 256}));
      GRADUS_RETURN_IF_ERROR(sampler(151936, 2048, {1, 16, 64, 128, 256}));
      GRADUS_RETURN_IF_ERROR(sampler(128256, 4096, {1, 16, 64, 128, 256}));
      GRADUS_RETURN_IF_ERROR(sampler(128256, 8192, {1, 64, 256}));
    }
    GRADUS_RETURN_IF_ERROR(sampler(151936, 4096, {1, 8, 16, 32, 64, 128, 192, 256}));
  }
  if (wanted("score")) {
    if (!quick) GRADUS_RETURN_IF_ERROR(scorer(8192, 151936, 2048));
    GRADUS_RETURN_IF_ERROR(scorer(8192, 151936, 4096));
  }
  if (wanted("head_training")) {
    if (!quick) {
      GRADUS_RETURN_IF_ERROR(head_training(8192, 151936, 896));
      GRADUS_RETURN_IF_ERROR(head_training(8192, 151936, 4096));
    }
    GRADUS_RETURN_IF_ERROR(head_training(4096, 128256, 4096));
  }
  return {};
}

}  // namespace gradus::cli
