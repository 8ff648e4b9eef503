// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "model/training_pass.h"
#include "rollout/cpu_engine.h"
#include "tests/support/model_rows.h"

// The contract of docs/numerics.md over many tokens: the engine samples under random settings, the
// trainer scores in other packs, and every log-prob must have the same bits.
namespace gradus::rollout {

// One round of random requests to a model, and how they are run.
struct ContractRound {
  std::vector<data::RolloutRequest> requests;  // the samples of a prompt are neighbours
  EngineOptions options;
  int64_t micro_batch_tokens = 0;
  float temperature = 1;
};

inline ContractRound random_round(const model::ModelConfig& config, uint64_t round) {
  RngSequence rng(hash64({round, uint64_t{17}}), RngStream::kTask);
  ContractRound result;
  const float temperatures[] = {0.6f, 1.0f, 1.4f};
  result.temperature = temperatures[rng.below(3)];
  for (uint64_t prompt = 0; prompt < 12; ++prompt) {
    const std::vector<int32_t> tokens =
        testing::random_tokens(rng.between(1, 150), config.vocab_size, hash64({round, prompt}));
    const int64_t num_samples = rng.between(1, 8);
    for (int32_t i = 0; i < num_samples; ++i) {
      data::RolloutRequest request;
      request.id = {prompt, i};
      request.token_ids = tokens;
      request.sampling.temperature = double{result.temperature};
      request.sampling.max_new_tokens = rng.between(1, 100);
      request.rng_key = request_seed(round, 0, prompt, i);
      result.requests.push_back(std::move(request));
    }
  }
  result.options = {rng.between(1, 40),
                    rng.between(6, 120) * model::KvCache::bytes_per_page(config),
                    rng.between(1, 200)};
  result.micro_batch_tokens = rng.between(1, 1500);
  return result;
}

// Log-probs of a round that are equal to the last bit; `num_different` counts the others. `skew` is
// added to the temperature of the scorer: a wrong scorer must be found.
inline int64_t count_equal_logprobs(model::Transformer& transformer, const ContractRound& round,
                                    float skew, int64_t& num_different) {
  class Collector : public TrajectorySink {
   public:
    explicit Collector(size_t count) : trajectories(count) {}
    void finished(size_t index, data::Trajectory trajectory) override {
      trajectories[index] = std::move(trajectory);
    }
    std::vector<data::Trajectory> trajectories;
  };
  CpuEngine engine(transformer, nullptr, round.options);
  Collector sink(round.requests.size());
  const Status status = engine.run(round.requests, 0, 0, sink);
  EXPECT_TRUE(status.ok()) << status.message();
  std::vector<data::PackGroup> groups;
  std::vector<int64_t> rows;
  std::vector<float> recorded;
  for (const data::Trajectory& trajectory : sink.trajectories) {
    const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
    if (trajectory.id.sample_index == 0) {
      groups.push_back({{trajectory.token_ids.begin(), split}, {}});
    }
    groups.back().responses.emplace_back(split, trajectory.token_ids.end());
    recorded.insert(recorded.end(), trajectory.behavior_logprobs.begin(),
                    trajectory.behavior_logprobs.end());
  }
  for (const data::PackGroup& group : groups) rows.push_back(data::num_pack_rows(group));
  const std::vector<int64_t> cuts = data::cut_micro_batches(rows, round.micro_batch_tokens);
  model::TrainingPass pass(transformer, false);
  int64_t num_equal = 0;
  size_t next = 0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const data::Pack pack = data::make_pack(std::span(groups).subspan(
        static_cast<size_t>(cuts[i]), static_cast<size_t>(cuts[i + 1] - cuts[i])));
    pass.forward(pack, round.temperature + skew, false);
    for (const float logprob : pass.logprobs()) {
      const bool is_equal = std::memcmp(&logprob, &recorded[next++], sizeof(float)) == 0;
      num_equal += is_equal ? 1 : 0;
      num_different += is_equal ? 0 : 1;
    }
  }
  EXPECT_EQ(next, recorded.size());
  return num_equal;
}

// Rounds over all tiny models until `num_tokens` log-probs were compared.
inline void expect_equal_logprobs(int64_t num_tokens) {
  std::vector<std::unique_ptr<model::Transformer>> models;
  for (const std::string& name : testing::tiny_models()) {
    auto loaded = model::Transformer::load(testing::tiny_model_dir(name));
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    models.push_back(std::move(*loaded));
  }
  int64_t num_compared = 0;
  for (uint64_t round = 0; num_compared < num_tokens; ++round) {
    model::Transformer& transformer = *models[round % models.size()];
    int64_t num_different = 0;
    num_compared += count_equal_logprobs(transformer, random_round(transformer.config(), round), 0,
                                         num_different);
    ASSERT_EQ(num_different, 0) << "round " << round;
  }
  ::testing::Test::RecordProperty("tokens", std::to_string(num_compared));
}

}  // namespace gradus::rollout
