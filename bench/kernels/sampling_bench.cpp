// SPDX-License-Identifier: Apache-2.0
// One row of logits: log-softmax statistics, their gradient, and sampling with each filter, in ns
// per element of the vocabulary and us per row. Rows are Gaussian: `spread` is their standard
// deviation in nats; at 2.5 the distribution is as flat as a small model's at temperature 1, at 6
// as peaked as where it is sure.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "bench/kernels/roof.h"
#include "common/rng.h"
#include "kernels/isa.h"
#include "kernels/logprob.h"
#include "kernels/sampling.h"

namespace gradus::bench {
namespace {

constexpr int64_t kV = 49152;
constexpr int kRows = 16;  // in turn: 3 MB, more than an L2

std::vector<float> make_rows(double spread) {
  RngSequence rng(1, RngStream::kTask);
  std::vector<float> rows(static_cast<size_t>(kRows * kV));
  for (float& logit : rows) logit = static_cast<float>(spread * rng.normal());
  return rows;
}

template <class Body>
void measure(benchmark::State& state, const Body& body) {
  Samples samples;
  int turn = 0;
  body(turn++);
  for (auto _ : state) {
    const double start = seconds();
    body(turn++);
    samples.add(seconds() - start);
    state.SetIterationTime(samples.values.back());
  }
  state.counters["us"] = samples.median() * 1e6;
  state.counters["min_us"] = samples.quantile(0) * 1e6;
  state.counters["ns_per_element"] = samples.median() * 1e9 / kV;
}

void statistics(benchmark::State& state, double temperature) {
  const std::vector<float> rows = make_rows(2.5);
  measure(state, [&](int turn) {
    benchmark::DoNotOptimize(
        kernels::logit_stats(&rows[turn % kRows * kV], kV, static_cast<float>(temperature)));
  });
}

void backward(benchmark::State& state) {
  std::vector<float> rows = make_rows(2.5);
  const kernels::LogitStats stats = kernels::logit_stats(rows.data(), kV, 1.0f);
  measure(state, [&](int turn) {
    kernels::logprob_backward({.logits_V = &rows[turn % kRows * kV],
                               .v = kV,
                               .padded_v = kV,
                               .stats = stats,
                               .temperature = 1,
                               .token = 3,
                               .dlogprob = 1,
                               .dentropy = 0});
  });
}

void sample(benchmark::State& state, double spread, kernels::SamplingParams params) {
  const std::vector<float> rows = make_rows(spread);
  params.v = kV;
  measure(state, [&](int turn) {
    params.logits_V = &rows[turn % kRows * kV];
    params.position = static_cast<uint32_t>(turn);
    benchmark::DoNotOptimize(kernels::sample_token(params)->token);
  });
}

template <class... Args>
void add(const std::string& name, Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), args...)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

void register_all() {
  add("statistics/T:1", statistics, 1.0);
  add("statistics/T:0.8", statistics, 0.8);
  add("backward", backward);
  const std::pair<const char*, kernels::SamplingParams> settings[] = {
      {"greedy", {.greedy = true}},
      {"all", {}},
      {"all/T:0.8", {.temperature = 0.8f}},
      {"top_k:50", {.top_k = 50}},
      {"top_k:1000", {.top_k = 1000}},
      {"top_p:0.9", {.top_p = 0.9}},
      {"top_p:0.95", {.top_p = 0.95}},
      {"min_p:0.05", {.min_p = 0.05}},
      {"top_k:50/top_p:0.95", {.top_k = 50, .top_p = 0.95}},
  };
  for (const double spread : {2.5, 6.0}) {
    for (const auto& [name, params] : settings) {
      add(fmt::format("sample/{}/spread:{}", name, spread), sample, spread, params);
    }
  }
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
  gradus::bench::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
