// SPDX-License-Identifier: Apache-2.0
// The learner on a transformer with an adapter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>

#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/lora_weights.h"
#include "tests/support/model_rows.h"
#include "tests/support/tolerances.h"
#include "trainer/cpu_learner.h"

namespace gradus::trainer {
namespace {

using testing::random_tokens;
using testing::run_ranks;

constexpr double kRate = 1e-3;
const model::LoraConfig kLora{.rank = 4, .alpha = 8, .targets = {"q_proj", "v_proj", "up_proj"}};

std::vector<data::PackGroup> make_groups(int64_t vocab_size) {
  std::vector<data::PackGroup> groups;
  for (uint64_t g = 0; g < 10; ++g) {
    groups.push_back({random_tokens(static_cast<int64_t>(2 + 9 * g), vocab_size, g),
                      {random_tokens(static_cast<int64_t>(1 + g), vocab_size, 50 + g),
                       random_tokens(static_cast<int64_t>(1 + 5 * (g % 3)), vocab_size, 90 + g)}});
  }
  return groups;
}

// -logprob of every token, whatever its place.
Status loss(int64_t, int64_t, std::span<const float> logprobs, std::span<const float>,
            std::span<float> dlogprobs, std::span<float>) {
  for (size_t i = 0; i < logprobs.size(); ++i) dlogprobs[i] = -0.01f - std::exp(logprobs[i]);
  return {};
}

struct Settings {
  int64_t micro_batch_tokens = 4096;
  bool checkpointing = false;
  int num_ranks = 1;
  int64_t reduction_blocks = 8;
};

// The hash of adapter and weights after three updates, the same on every rank.
uint64_t train(const Settings& settings) {
  std::mutex mutex;
  std::vector<uint64_t> hashes;
  run_ranks(settings.num_ranks, [&](comm::Communicator& communicator) {
    const auto transformer = testing::tiny_model("qwen2");
    testing::attach_adapter(*transformer, kLora);
    const auto groups = make_groups(transformer->config().vocab_size);
    CpuLearner learner(*transformer, {},
                       {.micro_batch_tokens = settings.micro_batch_tokens,
                        .gradient_checkpointing = settings.checkpointing,
                        .reduction_blocks = settings.reduction_blocks},
                       communicator);
    for (int step = 0; step < 3; ++step) {
      const auto stats = learner.update(groups, std::vector<bool>(10, true), 0.9f, kRate, loss);
      GRADUS_CHECK(stats.ok(), stats.status().message());
    }
    const uint64_t adapter = model::hash_parameters(transformer->adapter()->values(),
                                                    transformer->adapter()->layout().size);
    const uint64_t weights =
        model::hash_parameters(transformer->parameters(), transformer->layout().size);
    const std::lock_guard lock(mutex);
    hashes.push_back(hash64({adapter, weights}));
  });
  for (const uint64_t other : hashes) EXPECT_EQ(other, hashes[0]) << "ranks have unequal weights";
  return hashes[0];
}

TEST(LoraLearner, WeightsDoNotDependOnMicroBatchesCheckpointingOrRanks) {
  const uint64_t expected = train({});
  EXPECT_EQ(train({.micro_batch_tokens = 1}), expected);
  EXPECT_EQ(train({.micro_batch_tokens = 64}), expected);
  EXPECT_EQ(train({.checkpointing = true}), expected);
  EXPECT_EQ(train({.num_ranks = 2}), expected);
  EXPECT_EQ(train({.micro_batch_tokens = 64, .checkpointing = true, .num_ranks = 4}), expected);
  EXPECT_NE(train({.reduction_blocks = 1}), expected) << "the comparison can fail";
}

struct Training {
  std::unique_ptr<comm::Communicator> communicator = comm::make_communicator().value();
  std::unique_ptr<model::Transformer> transformer = testing::tiny_model("qwen2");
  std::vector<data::PackGroup> groups = make_groups(transformer->config().vocab_size);
  std::unique_ptr<CpuLearner> learner;

  explicit Training(const model::LoraConfig& lora = kLora, const OptimizerConfig& optimizer = {}) {
    transformer->set_adapter(
        model::LoraAdapter::create(transformer->config(), lora, transformer->parameters(), 7)
            .value());
    learner =
        std::make_unique<CpuLearner>(*transformer, optimizer, BackwardConfig{}, *communicator);
  }
  UpdateStats update() {
    return learner->update(groups, std::vector<bool>(10, true), 1.0f, kRate, loss).value();
  }
  double sum_of_logprobs() {
    double sum = 0;
    EXPECT_TRUE(learner
                    ->forward(groups, 1.0f,
                              [&](int64_t, int64_t, std::span<const float> logprobs,
                                  std::span<const float>) {
                                for (const float logprob : logprobs) sum += logprob;
                              })
                    .ok());
    return sum;
  }
};

TEST(LoraLearner, ChangesTheAdaptedMatricesAloneAndLearns) {
  Training run;
  const model::ParameterLayout& layout = run.transformer->layout();
  const std::vector<float> before(run.transformer->parameters(),
                                  run.transformer->parameters() + layout.size);
  const double first = run.sum_of_logprobs();
  for (int step = 0; step < 5; ++step) EXPECT_GT(run.update().grad_norm, 0);
  EXPECT_GT(run.sum_of_logprobs(), first + 1);
  for (const model::ParameterPlace& place : layout.places) {
    const bool is_same =
        std::memcmp(before.data() + place.offset, run.transformer->parameters() + place.offset,
                    static_cast<size_t>(place.size) * sizeof(float)) == 0;
    bool is_target = false;
    for (const std::string& target : kLora.targets) {
      is_target |= place.hf_name.ends_with(target + ".weight");
    }
    EXPECT_EQ(is_same, !is_target) << place.hf_name;
  }
}

// A first step of AdamW moves B, whose gradient is the only one there is, by the rate, and A, which
// has none while B is 0, only by its decay.
TEST(LoraLearner, TheFirstUpdateMovesBByTheRate) {
  Training run(kLora, {.weight_decay = 0.1});
  const auto values = [&](const model::ParameterPlace& place) {
    return testing::matrix_at(run.transformer->adapter()->values(), place.offset, place.rows,
                              place.columns);
  };
  const std::vector<model::ParameterPlace> places = run.transformer->adapter()->layout().places;
  std::vector<std::vector<float>> before;
  for (const model::ParameterPlace& place : places) before.push_back(values(place));
  run.update();
  for (size_t p = 0; p < places.size(); ++p) {
    const std::vector<float> after = values(places[p]);
    const bool is_a = places[p].hf_name.find("lora_A") != std::string::npos;
    for (size_t i = 0; i < after.size(); ++i) {
      if (is_a) {
        ASSERT_NEAR(after[i], before[p][i] * (1 - 0.1 * kRate),
                    testing::rounding_bound(3, std::fabs(before[p][i])));
      } else {
        // eps of 1e-8 shows where a gradient is small.
        ASSERT_LE(std::fabs(after[i]), kRate * (1 + testing::kAdamWStep));
        ASSERT_GE(std::fabs(after[i]), 0.9 * kRate) << places[p].hf_name << " " << i;
      }
    }
  }
}

TEST(LoraLearner, HoldsGradientAndMomentsOfTheAdaptersSize) {
  Training run;
  const test::TemporaryFolder folder;
  records::StateSnapshot snapshot;
  ASSERT_TRUE(run.learner->save(snapshot).ok());
  ASSERT_TRUE(snapshot.write(folder.path() + "/state.bin").ok());
  const auto shards = records::StateShards::open(folder.path(), "state").value();
  for (const std::string moment : {"adam/m/", "adam/v/"}) {
    int64_t size = 0;
    for (const std::string& name : shards.names()) {
      if (name.starts_with(moment)) size += shards.size(name).value();
    }
    EXPECT_EQ(size, run.transformer->adapter()->layout().size) << moment;
  }
  EXPECT_LT(3 * run.transformer->adapter()->layout().size, run.transformer->layout().size);
}

TEST(LoraLearner, SavedAndLoadedItGoesOnAsIfNeverStopped) {
  Training whole, first, second;
  for (int step = 0; step < 5; ++step) whole.update();
  for (int step = 0; step < 2; ++step) first.update();
  const test::TemporaryFolder folder;
  records::StateSnapshot snapshot;
  ASSERT_TRUE(first.learner->save(snapshot).ok());
  ASSERT_TRUE(snapshot.write(folder.path() + "/state.bin").ok());
  const model::LoraAdapter& from = *first.transformer->adapter();
  std::copy_n(from.values(), from.layout().size, second.transformer->adapter()->values());
  second.transformer->trainable_changed();
  const auto shards = records::StateShards::open(folder.path(), "state").value();
  ASSERT_TRUE(second.learner->load(shards).ok());
  for (int step = 0; step < 3; ++step) second.update();
  EXPECT_EQ(
      model::hash_parameters(second.transformer->parameters(), second.transformer->layout().size),
      model::hash_parameters(whole.transformer->parameters(), whole.transformer->layout().size));
}

}  // namespace
}  // namespace gradus::trainer
