// SPDX-License-Identifier: Apache-2.0
// The matrix products on the shapes of SmolLM2-135M against their roofs and, where torch is found,
// at::mm. Weights take turns through 256 MiB, as those of a model's layers do, so that no call
// finds its own in the cache. Ours, the rival and the roof alternate within one run; counters are
// of medians:
//   gflops, best_gflops, of_peak (ours / FMA roof), gb_per_s and of_read (weight bytes / read
//   roof), of_torch
// (torch's time / ours). For one core: taskset -c 0 bench_kernels_gemm. --isa=avx2 forces AVX2.
#include <benchmark/benchmark.h>

#include <cstring>
#include <string>
#include <vector>

#include "bench/kernels/roof.h"
#include "common/parallel.h"
#include "kernels/gemm.h"
#include "kernels/isa.h"

#if defined(GRADUS_BENCH_TORCH)
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#endif

namespace gradus::bench {
namespace {

using kernels::packed_size;
using kernels::padded;

enum class Product { kForward, kBackwardInput, kBackwardWeight };

struct Problem {
  Product product;
  int64_t m, n, k, num_copies;
  float *x, *y, *weights;  // [M, K], [M, N], copies of the weights in panels

  Problem(Product which, int64_t num_rows, int64_t outputs, int64_t inputs)
      : product(which), m(num_rows), n(outputs), k(inputs) {
    // One pool for all problems: memory is touched once.
    constexpr int64_t kPool = 64 << 20;
    static float* const pool = make_floats(kPool);
    static float* const activations = make_floats(2 * 1024 * int64_t{49152 + 1536});
    num_copies = kPool / packed_size(n, k);
    weights = pool;
    x = activations;
    y = activations + m * k;
  }
  float* weight(int64_t turn) const { return weights + turn % num_copies * packed_size(n, k); }

  void run(int64_t turn) const {
    float* w = weight(turn);
    switch (product) {
      case Product::kForward:
        return kernels::gemm_forward({.x_MK = x,
                                      .x_stride = k,
                                      .w_packed = w,
                                      .y_MN = y,
                                      .y_stride = padded(n),
                                      .m = m,
                                      .n = n,
                                      .k = k});
      case Product::kBackwardInput:
        return kernels::gemm_backward_input({.dy_MN = y,
                                             .dy_stride = padded(n),
                                             .w_packed = w,
                                             .dx_MK = x,
                                             .dx_stride = k,
                                             .m = m,
                                             .n = n,
                                             .k = k});
      case Product::kBackwardWeight:
        return kernels::gemm_backward_weight({.dy_MN = y,
                                              .dy_stride = padded(n),
                                              .x_MK = x,
                                              .x_stride = k,
                                              .dw_packed = w,
                                              .m = m,
                                              .n = n,
                                              .k = k});
    }
  }

#if defined(GRADUS_BENCH_TORCH)
  void run_torch(int64_t turn) const {
    at::Tensor x_MK = at::from_blob(x, {m, k}), y_MN = at::from_blob(y, {m, n});
    at::Tensor w_NK = at::from_blob(weight(turn), {n, k});
    switch (product) {
      case Product::kForward:
        at::mm_out(y_MN, x_MK, w_NK.t());
        return;
      case Product::kBackwardInput:
        at::mm_out(x_MK, y_MN, w_NK);
        return;
      case Product::kBackwardWeight:
        at::mm_out(w_NK, y_MN.t(), x_MK);
        return;
    }
  }
#endif
};

void measure(benchmark::State& state, Product product) {
  const Problem problem(product, state.range(0), state.range(1), state.range(2));
  const double flops = 2.0 * static_cast<double>(problem.m * problem.n * problem.k);
  const double weight_bytes = 4.0 * static_cast<double>(packed_size(problem.n, problem.k));
  Samples ours, peak, read, torch;
  int64_t turn = 0;
  problem.run(turn++);
  for (auto _ : state) {
    peak.add(fma_gflops());
    double start = seconds();
    problem.run(turn++);
    ours.add(seconds() - start);
    state.SetIterationTime(ours.values.back());
    if (problem.m <= 8) {
      const int64_t floats = packed_size(problem.n, problem.k);
      read.add(read_gb_per_s(problem.weight(turn++), floats));
    }
#if defined(GRADUS_BENCH_TORCH)
    start = seconds();
    problem.run_torch(turn++);
    torch.add(seconds() - start);
#endif
  }
  state.counters["gflops"] = flops / ours.median() * 1e-9;
  state.counters["best_gflops"] = flops / ours.quantile(0) * 1e-9;
  state.counters["of_peak"] = flops / ours.median() * 1e-9 / peak.median();
  if (!read.values.empty()) {
    state.counters["gb_per_s"] = weight_bytes / ours.median() * 1e-9;
    state.counters["of_read"] = weight_bytes / ours.median() * 1e-9 / read.median();
  }
  if (!torch.values.empty()) state.counters["of_torch"] = torch.median() / ours.median();
}

// Fused q, k and v; output projection; fused gate and up; down; the vocabulary.
constexpr int64_t kShapes[][2] = {{960, 576}, {576, 576}, {3072, 576}, {576, 1536}, {49152, 576}};

void register_all() {
  const auto add = [](const char* name, Product product, const std::vector<int64_t>& rows) {
    for (const auto& [n, k] : kShapes) {
      for (const int64_t m : rows) {
        benchmark::RegisterBenchmark(name, measure, product)
            ->Args({m, n, k})
            ->ArgNames({"m", "n", "k"})
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  };
  add("forward", Product::kForward, {1, 2, 4, 8, 16, 64, 256, 1024});
  add("backward_input", Product::kBackwardInput, {64, 1024});
  add("backward_weight", Product::kBackwardWeight, {64, 1024});
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--isa=avx2") == 0) {
      gradus::kernels::set_isa(gradus::kernels::Isa::kAvx2);
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
#if defined(GRADUS_BENCH_TORCH)
  at::set_num_threads(gradus::num_threads());
#endif
  gradus::bench::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("threads", std::to_string(gradus::num_threads()));
  benchmark::AddCustomContext(
      "isa", gradus::kernels::isa() == gradus::kernels::Isa::kAvx512 ? "avx512" : "avx2");
  benchmark::RunSpecifiedBenchmarks();
}
