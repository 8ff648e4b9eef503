// SPDX-License-Identifier: Apache-2.0
// Training steps with a LoRA adapter beside steps of full fine-tuning, on a model of SmolLM2-135M's
// shape with random weights (time does not depend on their values): one update of packed tokens,
// all of them targets, in turns within one run. Prints JSON: tokens/s of both (median), their
// ratio, and the bytes of gradient and AdamW moments, for the adapter also with the matrices that
// it keeps. usage: bench_trainer_lora [RANK] [TOKENS] [UPDATES]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "common/rng.h"
#include "trainer/cpu_learner.h"

namespace gradus {
namespace {

model::ModelConfig smollm2_135m() {
  model::ModelConfig config;
  config.vocab_size = 49152;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.num_layers = 30;
  config.num_heads = 9;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  config.max_position_embeddings = 8192;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 100000;
  config.tie_embeddings = true;
  return config;
}

// Sequences of 128 tokens.
std::vector<data::PackGroup> packed_groups(int64_t num_tokens, int64_t vocab_size) {
  RngSequence rng(1, RngStream::kTask);
  std::vector<data::PackGroup> groups;
  for (int64_t i = 0; i < num_tokens; i += 128) {
    std::vector<int32_t> response;
    for (int64_t t = 0; t < 128; ++t) {
      response.push_back(static_cast<int32_t>(rng.between(0, vocab_size - 1)));
    }
    groups.push_back({{0}, {std::move(response)}});
  }
  return groups;
}

// One way of training, with its own copy of the model.
struct Training {
  std::unique_ptr<model::Transformer> transformer;
  std::unique_ptr<trainer::CpuLearner> learner;
  std::vector<double> seconds;

  Training(int64_t rank, comm::Communicator& communicator) {
    const model::ModelConfig config = smollm2_135m();
    transformer = std::make_unique<model::Transformer>(config);
    model::init_parameters(config, transformer->layout(), 1, 0.02, transformer->parameters());
    if (rank > 0) {
      transformer->set_adapter(
          model::LoraAdapter::create(config, {.rank = rank}, transformer->parameters(), 1).value());
    }
    learner = std::make_unique<trainer::CpuLearner>(
        *transformer, trainer::OptimizerConfig{},
        trainer::BackwardConfig{.micro_batch_tokens = 1 << 20, .reduction_blocks = 1},
        communicator);
  }

  void update(const std::vector<data::PackGroup>& groups) {
    const auto start = std::chrono::steady_clock::now();
    const auto stats =
        learner->update(groups, std::vector<bool>(groups.size(), true), 1.0f, 1e-5,
                        [](int64_t, int64_t, std::span<const float>, std::span<const float>,
                           std::span<float> dlogprobs, std::span<float>) -> Status {
                          std::fill(dlogprobs.begin(), dlogprobs.end(),
                                    -1.0f / static_cast<float>(dlogprobs.size()));
                          return {};
                        });
    GRADUS_CHECK(stats.ok(), stats.status().message());
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }

  // Of the steps after the first, which touches memory for the first time.
  double tokens_per_s(int64_t num_tokens) const {
    std::vector<double> sorted(seconds.begin() + 1, seconds.end());
    std::sort(sorted.begin(), sorted.end());
    return static_cast<double>(num_tokens) / sorted[sorted.size() / 2];
  }
  // Of the gradient and both moments.
  int64_t state_bytes() {
    return 3 * transformer->trainable().layout.size * int64_t{sizeof(float)};
  }
};

int run(int64_t rank, int64_t num_tokens, int64_t num_updates) {
  const auto communicator = comm::make_communicator().value();
  Training full(0, *communicator), lora(rank, *communicator);
  const auto groups = packed_groups(num_tokens, full.transformer->config().vocab_size);
  for (int64_t i = 0; i <= num_updates; ++i) {
    full.update(groups);
    lora.update(groups);
  }
  const double before = full.tokens_per_s(num_tokens), after = lora.tokens_per_s(num_tokens);
  const int64_t kept = lora.transformer->adapter()->layout().base_size * int64_t{sizeof(float)};
  const double whole = static_cast<double>(full.state_bytes());
  fmt::print(
      "{{\"rank\": {}, \"tokens\": {}, \"threads\": {}, \"full_tokens_per_s\": {:.1f}, "
      "\"lora_tokens_per_s\": {:.1f}, \"speed_ratio\": {:.3f}, \"full_state_mib\": {:.1f}, "
      "\"lora_state_mib\": {:.1f}, \"lora_kept_mib\": {:.1f}, \"state_ratio\": {:.4f}, "
      "\"state_and_kept_ratio\": {:.4f}}}\n",
      rank, num_tokens, num_threads(), before, after, after / before, whole / 1048576,
      static_cast<double>(lora.state_bytes()) / 1048576, static_cast<double>(kept) / 1048576,
      static_cast<double>(lora.state_bytes()) / whole,
      static_cast<double>(lora.state_bytes() + kept) / whole);
  return 0;
}

}  // namespace
}  // namespace gradus

int main(int argc, char** argv) {
  const auto argument = [&](int i, int64_t fallback) {
    return argc > i ? std::strtoll(argv[i], nullptr, 10) : fallback;
  };
  return gradus::run(argument(1, 16), argument(2, 1024), argument(3, 2));
}
