// SPDX-License-Identifier: Apache-2.0
#include "model/training_pass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/parallel.h"
#include "kernels/isa.h"
#include "tests/support/gradient_reference.h"
#include "tests/support/tolerances.h"
#include "tests/support/training_batch.h"

namespace gradus::model {
namespace {

using testing::random_batch;
using testing::tiny_model;
using testing::TrainingBatch;

std::vector<float> ramp(size_t count, float start, float step) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = start + step * static_cast<float>(i);
  return values;
}

// Log-probs and gradients of a prompt shared by two responses against transformers and torch in
// float64, for every weight of every family, with and without checkpointing.
TEST(TrainingPass, GradientsMatchTheDoublePrecisionReference) {
  const auto golden =
      nlohmann::json::parse(std::ifstream("tests/golden/tiny_models/gradients.json"));
  const float temperature = golden["temperature"].get<float>();
  for (const std::string& name : testing::tiny_models()) {
    const auto& expected = golden["models"][name];
    const std::unique_ptr<Transformer> transformer = tiny_model(name);
    const data::PackGroup group{expected["prompt"].get<std::vector<int32_t>>(),
                                expected["responses"].get<std::vector<std::vector<int32_t>>>()};
    const data::Pack pack = data::make_pack({&group, 1});
    for (const bool checkpointing : {false, true}) {
      TrainingPass pass(*transformer, checkpointing);
      pass.forward(pack, temperature, true);
      for (size_t i = 0; i < pack.targets.size(); ++i) {
        EXPECT_NEAR(pass.logprobs()[i], expected["logprobs"][i].get<double>(), testing::kLogits);
      }
      Gradients gradients(transformer->layout());
      gradients.clear();
      pass.backward(ramp(pack.targets.size(), 0.5f, 0.1f), ramp(pack.targets.size(), 0, -0.05f),
                    gradients);
      gradients.finish(transformer->layout(), transformer->config().hidden_size);
      testing::expect_gradients(*transformer, gradients, expected["gradients"], name);
    }
  }
}

// Log-probs and gradient over micro-batches of at most `max_rows` rows.
std::pair<std::vector<float>, AlignedBuffer> gradient(Transformer& transformer,
                                                      const TrainingBatch& batch, int64_t max_rows,
                                                      bool checkpointing) {
  Gradients gradients(transformer.layout());
  std::vector<float> logprobs =
      testing::accumulate_gradient(transformer, batch, max_rows, checkpointing, gradients);
  return {std::move(logprobs), std::move(gradients.buffer)};
}

TEST(TrainingPass, BitsDoNotDependOnMicroBatchCheckpointingThreadsOrInstructionSet) {
  for (const std::string& name : testing::tiny_models()) {
    const std::unique_ptr<Transformer> transformer = tiny_model(name);
    const TrainingBatch batch = random_batch(transformer->config().vocab_size);
    const std::pair whole = gradient(*transformer, batch, 100000, false);
    const auto expect_equal = [&](int64_t max_rows, bool checkpointing, const std::string& what) {
      const auto [logprobs, buffer] = gradient(*transformer, batch, max_rows, checkpointing);
      ASSERT_EQ(whole.first.size(), logprobs.size());
      EXPECT_EQ(std::memcmp(whole.first.data(), logprobs.data(), logprobs.size() * sizeof(float)),
                0)
          << name << ", log-probs, " << what;
      EXPECT_EQ(std::memcmp(whole.second.data(), buffer.data(),
                            static_cast<size_t>(buffer.size()) * sizeof(float)),
                0)
          << name << ", gradient, " << what;
    };
    expect_equal(1, false, "one group a micro-batch");
    expect_equal(250, false, "micro-batches of 250 rows");
    expect_equal(100000, true, "checkpointing");
    set_num_threads(3);
    expect_equal(250, true, "three threads");
    set_num_threads(2);
    if (kernels::has_avx512()) {
      kernels::set_isa(kernels::Isa::kAvx2);
      expect_equal(250, false, "AVX2");
      kernels::set_isa(kernels::Isa::kAvx512);
    }
  }
}

// The trainer's log-probs have the bits of scoring each sequence alone, token by token.
TEST(TrainingPass, LogprobsOfASharedPromptEqualThoseOfDecodingBitForBit) {
  for (const std::string& name : testing::tiny_models()) {
    const std::unique_ptr<Transformer> transformer = tiny_model(name);
    const int64_t vocab = transformer->config().vocab_size;
    const TrainingBatch batch = random_batch(vocab);
    const std::vector<float> logprobs = gradient(*transformer, batch, 300, false).first;
    size_t target = 0;
    for (const data::PackGroup& group : batch.groups) {
      for (const std::vector<int32_t>& response : group.responses) {
        KvCache cache(transformer->config(), 8);
        const std::vector<int32_t> table = {4, 1, 6, 3, 0};
        std::vector<float> hidden =
            testing::hidden_rows(*transformer, cache, table, group.prompt, 0);
        for (size_t i = 0; i < response.size(); ++i) {
          std::vector<float> logits(static_cast<size_t>(transformer->padded_vocab_size()));
          transformer->head(hidden.data() + hidden.size() - transformer->config().hidden_size, 1,
                            logits.data());
          const kernels::LogitStats stats = kernels::logit_stats(logits.data(), vocab, 1.0f);
          const float logprob =
              kernels::token_logprob(stats, logits[static_cast<size_t>(response[i])], 1.0f);
          ASSERT_EQ(std::memcmp(&logprob, &logprobs[target++], sizeof(float)), 0) << name;
          hidden = testing::hidden_rows(*transformer, cache, table, {response[i]},
                                        static_cast<int64_t>(group.prompt.size() + i));
        }
      }
    }
    EXPECT_EQ(target, logprobs.size());
  }
}

}  // namespace
}  // namespace gradus::model
