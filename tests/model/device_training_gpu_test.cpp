// SPDX-License-Identifier: Apache-2.0
#include "model/device_training.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "common/aligned_buffer.h"
#include "model/training_pass.h"
#include "tests/kernels/head_case.h"
#include "tests/support/device_model.h"
#include "tests/support/tolerances.h"

namespace gradus::model {
namespace {

using gradus::testing::DeviceModel;
using gradus::testing::must;
using gradus::testing::qwen2_like;
using gradus::testing::qwen3_like;
using gradus::testing::random_ids;

// Like Llama: neither biases nor norms of heads, a tied head.
ModelConfig llama_like() {
  return {.family = Family::kLlama,
          .vocab_size = 640,
          .hidden_size = 192,
          .intermediate_size = 256,
          .num_layers = 2,
          .num_heads = 3,
          .num_kv_heads = 3,
          .head_dim = 64,
          .max_position_embeddings = 1024,
          .tie_embeddings = true};
}

// Prompts shorter and longer than a page and exactly one, responses of one token and of several
// pages.
std::vector<data::PackGroup> groups_of(const ModelConfig& config) {
  std::vector<data::PackGroup> groups;
  const std::vector<std::pair<int64_t, std::vector<int64_t>>> shapes = {
      {5, {9, 1, 70}}, {64, {3, 65}}, {131, {40, 1, 1, 64}}, {1, {1}}, {63, {2, 140}}};
  uint64_t seed = 0;
  for (const auto& [prompt, responses] : shapes) {
    data::PackGroup group;
    group.prompt = random_ids(prompt, config.vocab_size, ++seed);
    for (const int64_t length : responses) {
      group.responses.push_back(random_ids(length, config.vocab_size, ++seed));
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

struct Slopes {
  std::vector<float> dlogprobs, dentropies;
  explicit Slopes(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      // Some targets without a gradient, some with one by entropy alone.
      dlogprobs.push_back(i % 5 == 0 ? 0.0f : 0.1f * static_cast<float>(i * 7 % 11) - 0.4f);
      dentropies.push_back(i % 3 == 0 ? 0.05f : 0.0f);
    }
  }
};

std::unique_ptr<DeviceTrainingState> state_of(DeviceModel& model) {
  auto state = DeviceTrainingState::create(*model.device, model.cpu);
  EXPECT_TRUE(state.ok()) << state.status().message();
  return std::move(*state);
}

AlignedBuffer device_gradient(DeviceModel& model, DeviceTrainingState& state,
                              const data::Pack& pack, float temperature, bool checkpointing) {
  DeviceTrainingPass pass(*model.device, &state, checkpointing);
  const Slopes slopes(pack.targets.size());
  must(state.clear_gradients());
  must(pass.forward(pack, temperature, true));
  must(pass.backward(slopes.dlogprobs, slopes.dentropies));
  AlignedBuffer gradient(model.cpu.layout().size);
  must(state.gradients_to_host(gradient.data()));
  return gradient;
}

bool are_equal(const AlignedBuffer& a, const AlignedBuffer& b) {
  return std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size()) * sizeof(float)) == 0;
}

TEST(DeviceTrainingSmall, LogProbsAreThoseOfScoringBitForBit) {
  GRADUS_NEEDS_GPU(cuda);
  for (const ModelConfig& config : {qwen3_like(), qwen2_like(), llama_like()}) {
    DeviceModel model(*cuda, config, 1);
    const std::unique_ptr<DeviceTrainingState> state = state_of(model);
    const std::vector<data::PackGroup> groups = groups_of(config);
    std::vector<std::vector<int32_t>> sequences;
    for (const data::PackGroup& group : groups) {
      for (const std::vector<int32_t>& response : group.responses) {
        sequences.push_back(group.prompt);
        sequences.back().insert(sequences.back().end(), response.begin(), response.end());
      }
    }
    DeviceScorer scorer(*model.device, 512);
    const auto scored = scorer.score(sequences, 0.7f);
    ASSERT_TRUE(scored.ok()) << scored.status().message();
    std::vector<float> expected;
    for (size_t g = 0, s = 0; g < groups.size(); ++g) {
      for (const std::vector<int32_t>& response : groups[g].responses) {
        expected.insert(expected.end(), (*scored)[s].end() - static_cast<int64_t>(response.size()),
                        (*scored)[s].end());
        ++s;
      }
    }
    for (const bool keep : {false, true}) {
      for (const bool checkpointing : {false, true}) {
        DeviceTrainingPass pass(*model.device, state.get(), checkpointing);
        must(pass.forward(data::make_pack(groups), 0.7f, keep));
        EXPECT_EQ(std::vector<float>(pass.logprobs().begin(), pass.logprobs().end()), expected);
        // Alone, and in memory that another pack was in.
        std::vector<float> one_by_one;
        for (const data::PackGroup& group : groups) {
          must(pass.forward(data::make_pack({&group, 1}), 0.7f, keep));
          one_by_one.insert(one_by_one.end(), pass.logprobs().begin(), pass.logprobs().end());
        }
        EXPECT_EQ(one_by_one, expected);
      }
    }
  }
}

TEST(DeviceTrainingSmall, GradientsAreThoseOfTheCpuAsFarAsBf16Goes) {
  GRADUS_NEEDS_GPU(cuda);
  for (const ModelConfig& config : {llama_like(), qwen2_like(), qwen3_like()}) {
    DeviceModel model(*cuda, config, 2);
    const std::unique_ptr<DeviceTrainingState> state = state_of(model);
    const data::Pack pack = data::make_pack(groups_of(config));
    const AlignedBuffer got = device_gradient(model, *state, pack, 0.7f, false);
    const Slopes slopes(pack.targets.size());
    TrainingPass reference(model.cpu, false);
    Gradients gradients(model.cpu.layout());
    gradients.clear();
    reference.forward(pack, 0.7f, true);
    reference.backward(slopes.dlogprobs, slopes.dentropies, gradients);
    gradients.finish(model.cpu.layout(), config.hidden_size);
    double all_difference = 0, all_size = 0, all_product = 0;
    for (const ParameterPlace& place : model.cpu.layout().places) {
      double difference = 0, size = 0, product = 0;
      for (int64_t i = place.offset; i < place.offset + place.size; ++i) {
        const double expected = gradients.buffer.data()[i];
        difference += (got.data()[i] - expected) * (got.data()[i] - expected);
        size += expected * expected;
        product += got.data()[i] * expected;
      }
      all_difference += difference;
      all_size += size;
      all_product += product;
      if (place.hf_name.ends_with("k_proj.bias")) {
        // Attention does not see what is added to all keys alike: rounding is all there is.
        EXPECT_LT(std::sqrt(difference), 0.01 * std::sqrt(all_size)) << place.hf_name;
        continue;
      }
      EXPECT_LT(std::sqrt(difference / size), testing::kDeviceGradient) << place.hf_name;
      // Rounding has no direction: what is along the gradient is a factor that is wrong.
      EXPECT_NEAR(product / size, 1, testing::kDeviceGradient / 4) << place.hf_name;
    }
    EXPECT_LT(std::sqrt(all_difference / all_size), testing::kDeviceGradient);
    EXPECT_NEAR(all_product / all_size, 1, testing::kDeviceGradient / 10);
  }
}

TEST(DeviceTrainingSmall, GradientsRepeatAndCheckpointingChangesNoBit) {
  GRADUS_NEEDS_GPU(cuda);
  for (const ModelConfig& config : {qwen3_like(), qwen2_like()}) {
    DeviceModel model(*cuda, config, 3);
    const std::unique_ptr<DeviceTrainingState> state = state_of(model);
    const data::Pack pack = data::make_pack(groups_of(config));
    const AlignedBuffer first = device_gradient(model, *state, pack, 1, false);
    EXPECT_TRUE(are_equal(first, device_gradient(model, *state, pack, 1, false)));
    EXPECT_TRUE(are_equal(first, device_gradient(model, *state, pack, 1, true)));
  }
}

TEST(DeviceTrainingSmall, UpdatesAreTheCpusAndReachTheWeightsThatAreRead) {
  GRADUS_NEEDS_GPU(cuda);
  DeviceModel model(*cuda, qwen2_like(), 4);
  const std::unique_ptr<DeviceTrainingState> state = state_of(model);
  const ParameterLayout& layout = model.cpu.layout();
  const data::Pack pack = data::make_pack(groups_of(model.cpu.config()));
  AlignedBuffer weights(layout.size), m(layout.size), v(layout.size);
  std::copy_n(model.cpu.parameters(), layout.size, weights.data());
  for (int64_t step = 1; step <= 2; ++step) {
    const AlignedBuffer gradient = device_gradient(model, *state, pack, 1, false);
    double squares = 0;
    for (int64_t i = 0; i < layout.size; ++i) {
      squares += double{gradient.data()[i]} * gradient.data()[i];
    }
    must(state->sum_gradients());
    const auto norm = state->gradient_norm();
    ASSERT_TRUE(norm.ok());
    EXPECT_NEAR(*norm, std::sqrt(squares), 1e-6 * std::sqrt(squares));
    must(state->apply({.learning_rate = 0.01, .weight_decay = 0.1, .step = step, .scale = 0.5}));
    testing::adamw_on_host(layout, step, gradient.data(), weights.data(), m.data(), v.data());
  }
  AlignedBuffer got(layout.size), got_m(layout.size), got_v(layout.size);
  must(state->download(got.data()));
  must(state->moments_to_host(got_m.data(), got_v.data()));
  int64_t wrong = 0;
  for (int64_t i = 0; i < layout.size; ++i) wrong += got.data()[i] != weights.data()[i];
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(are_equal(got_m, m));
  EXPECT_TRUE(are_equal(got_v, v));

  // What is read is the masters rounded: a transformer made of them gives the same log-probs.
  DeviceTrainingPass pass(*model.device, state.get(), false);
  must(pass.forward(pack, 1, false));
  const std::vector<float> updated(pass.logprobs().begin(), pass.logprobs().end());
  std::copy_n(got.data(), layout.size, model.cpu.parameters());
  const std::unique_ptr<DeviceTransformer> fresh = model.upload(*cuda);
  DeviceTrainingPass fresh_pass(*fresh, nullptr, false);
  must(fresh_pass.forward(pack, 1, false));
  EXPECT_EQ(updated,
            std::vector<float>(fresh_pass.logprobs().begin(), fresh_pass.logprobs().end()));

  // The hash is one of bits and places: of the same masters the same, after an exchange another.
  const auto hash = state->hash();
  ASSERT_TRUE(hash.ok());
  must(state->upload(got.data()));
  EXPECT_EQ(state->hash().value(), *hash);
  const ParameterPlace& last = layout.places.back();
  std::swap(got.data()[last.offset], got.data()[last.offset + 1]);
  must(state->upload(got.data()));
  EXPECT_NE(state->hash().value(), *hash);
  std::swap(got.data()[last.offset], got.data()[last.offset + 1]);
  must(state->upload(got.data()));

  // Moments and masters that were taken away and brought back go on in the same way.
  must(state->apply({.learning_rate = 0.01, .step = 3}));
  AlignedBuffer third(layout.size), again(layout.size);
  must(state->download(third.data()));
  must(state->upload(got.data()));
  must(state->moments_from_host(got_m.data(), got_v.data()));
  must(state->apply({.learning_rate = 0.01, .step = 3}));
  must(state->download(again.data()));
  EXPECT_TRUE(are_equal(third, again));
}

}  // namespace
}  // namespace gradus::model
