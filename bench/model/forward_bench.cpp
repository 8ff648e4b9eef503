// SPDX-License-Identifier: Apache-2.0
// What the exact forward costs: the rollout engine and the trainer's forward on the shape of
// SmolLM2-135M with random weights, once as they are and once with at::mm in the place of our
// matrix product, in turns within one run. The linker's --wrap puts the switch before every call of
// gemm_forward; all else is the same program. Counters are of medians: tokens_per_s, and of_torch
// (torch's time / ours: above 1 exactness is free).
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <benchmark/benchmark.h>

#include <memory>
#include <unordered_map>

#include "bench/kernels/roof.h"
#include "common/parallel.h"
#include "kernels/gemm.h"
#include "model/parameters.h"
#include "model/training_pass.h"
#include "rollout/cpu_engine.h"

namespace gradus::bench {
namespace {

bool uses_torch = false;

// Row-major copies of the weights, as torch wants them, made on first use.
const float* row_major(const float* packed, int64_t n, int64_t k) {
  static std::unordered_map<const float*, std::unique_ptr<float[]>> copies;
  std::unique_ptr<float[]>& copy = copies[packed];
  if (copy == nullptr) {
    copy = std::make_unique<float[]>(static_cast<size_t>(n * k));
    kernels::unpack_weight(packed, n, k, copy.get(), k);
  }
  return copy.get();
}

void torch_forward(const kernels::GemmForwardParams& p) {
  const at::NoGradGuard no_gradients;
  const auto tensor = [](const float* data, int64_t rows, int64_t columns, int64_t stride) {
    return at::from_blob(const_cast<float*>(data), {rows, columns}, {stride, 1});
  };
  at::Tensor y = tensor(p.y_MN, p.m, p.n, p.y_stride);
  at::mm_out(y, tensor(p.x_MK, p.m, p.k, p.x_stride),
             tensor(row_major(p.w_packed, p.n, p.k), p.n, p.k, p.k).t());
  if (p.bias_N != nullptr) y.add_(at::from_blob(const_cast<float*>(p.bias_N), {p.n}));
}

}  // namespace
}  // namespace gradus::bench

// The names that --wrap gives: calls of gemm_forward come to the first, the second is the original.
void wrapped_gemm_forward(const gradus::kernels::GemmForwardParams& params) asm(
    "__wrap__ZN6gradus7kernels12gemm_forwardERKNS0_17GemmForwardParamsE");
void real_gemm_forward(const gradus::kernels::GemmForwardParams& params) asm(
    "__real__ZN6gradus7kernels12gemm_forwardERKNS0_17GemmForwardParamsE");
void wrapped_gemm_forward(const gradus::kernels::GemmForwardParams& params) {
  if (gradus::bench::uses_torch) {
    gradus::bench::torch_forward(params);
  } else {
    real_gemm_forward(params);
  }
}

namespace gradus::bench {
namespace {

model::Transformer& transformer() {
  static const std::unique_ptr<model::Transformer> instance = [] {
    model::ModelConfig config;
    config.vocab_size = 49152;
    config.hidden_size = 576;
    config.intermediate_size = 1536;
    config.num_layers = 30;
    config.num_heads = 9;
    config.num_kv_heads = 3;
    config.head_dim = 64;
    config.max_position_embeddings = 2048;
    config.tie_embeddings = true;
    auto made = std::make_unique<model::Transformer>(config);
    model::init_parameters(config, made->layout(), 1, 0.02, made->parameters());
    return made;
  }();
  return *instance;
}

std::vector<int32_t> tokens(int64_t count, int64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>((i * 7919 + seed * 104729) % 49152));
  }
  return ids;
}

// Runs `body`, which computes `num_tokens`, both ways in turns.
template <class Body>
void compare(benchmark::State& state, double num_tokens, const Body& body) {
  Samples ours, torch;
  const auto timed = [&](bool with_torch, Samples& samples) {
    uses_torch = with_torch;
    const double start = seconds();
    body();
    samples.add(seconds() - start);
    uses_torch = false;
  };
  Samples warm_up;
  timed(false, warm_up);
  timed(true, warm_up);
  for (auto _ : state) {
    timed(false, ours);
    timed(true, torch);
    state.SetIterationTime(ours.values.back());
  }
  state.counters["tokens_per_s"] = num_tokens / ours.median();
  state.counters["torch_tokens_per_s"] = num_tokens / torch.median();
  state.counters["of_torch"] = torch.median() / ours.median();
}

class DropAll : public rollout::TrajectorySink {
 public:
  void finished(size_t, data::Trajectory) override {}
};

// Decoding of `batch` sequences, 12 tokens each after a prompt of 8.
void decode(benchmark::State& state) {
  const int64_t batch = state.range(0);
  rollout::CpuEngine engine(transformer(), nullptr,
                            {.max_batch = batch, .kv_cache_bytes = 1ll << 28});
  std::vector<data::RolloutRequest> requests;
  for (int64_t i = 0; i < batch; ++i) {
    data::RolloutRequest request;
    request.id = {static_cast<uint64_t>(i), 0};
    request.token_ids = tokens(8, i);
    request.sampling.max_new_tokens = 12;
    request.rng_key = static_cast<uint64_t>(i);
    requests.push_back(std::move(request));
  }
  compare(state, static_cast<double>(batch * 12), [&] {
    DropAll sink;
    GRADUS_CHECK(engine.run(requests, 0, 0, sink).ok(), "the engine runs");
  });
}

// The trainer's forward of `rows` tokens, in sequences of 128, with log-probs of half of them.
void score(benchmark::State& state) {
  const int64_t rows = state.range(0);
  std::vector<data::PackGroup> groups;
  for (int64_t i = 0; i < rows / 128; ++i) groups.push_back({tokens(64, i), {tokens(65, i + 1)}});
  const data::Pack pack = data::make_pack(groups);
  model::TrainingPass pass(transformer(), false);
  compare(state, static_cast<double>(pack.num_rows()), [&] { pass.forward(pack, 1.0f, false); });
}

BENCHMARK(decode)->Arg(1)->Arg(16)->Arg(64)->ArgName("batch")->UseManualTime()->Iterations(5);
BENCHMARK(score)->Arg(512)->ArgName("rows")->UseManualTime()->Iterations(5);

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  at::set_num_threads(gradus::num_threads());
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("threads", std::to_string(gradus::num_threads()));
  benchmark::RunSpecifiedBenchmarks();
}
