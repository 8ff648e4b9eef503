// SPDX-License-Identifier: Apache-2.0
#include "cli/device_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/device_training.h"

namespace gradus::cli {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr int64_t kMib = 1 << 20;

// SmolLM2-135M's shape.
model::ModelConfig small_model() {
  return {.vocab_size = 49152,
          .hidden_size = 576,
          .intermediate_size = 1536,
          .num_layers = 30,
          .num_heads = 9,
          .num_kv_heads = 3,
          .head_dim = 64,
          .max_position_embeddings = 8192,
          .tie_embeddings = true};
}

const PlannedWork kWork = {.longest_prompt = 500, .groups_per_update = 16, .rows_per_group = 2000};

int64_t bytes_of(const std::vector<MemoryPart>& parts, const std::string& name) {
  for (const MemoryPart& part : parts) {
    if (part.name == name) return part.bytes;
  }
  ADD_FAILURE() << "no part '" << name << "'";
  return 0;
}

TEST(DevicePlan, CountsWeightsOnceInBf16AndFourTimesInFp32) {
  rollout::RolloutConfig rollout;
  rollout.kv_cache_mib = 100;
  const DevicePlan plan = plan_device_memory(small_model(), kWork, {}, &rollout);
  // 134.5M weights: 2 bytes each, then weight, gradient and two moments of 4 bytes.
  EXPECT_NEAR(static_cast<double>(bytes_of(plan.always, "weights, bf16")), 269.0e6, 1e6);
  EXPECT_NEAR(static_cast<double>(bytes_of(plan.always, "weights, gradients and moments, fp32")),
              2152.0e6, 8e6);
  // Pages of 64 positions: keys and values of 30 layers, 3 heads of 64 numbers, 2 bytes.
  const int64_t page = 64 * 30 * 2 * 3 * 64 * 2;
  EXPECT_EQ(bytes_of(plan.sampling, "key-value cache"), 100 * kMib / page * page);
  // Two groups of 2,000 tokens go beyond 4,096, so a pass has ... two.
  EXPECT_EQ(bytes_of(plan.updating, "activations of 4096 tokens"),
            model::DeviceTrainingPass::planned_bytes(small_model(), 4096, false, true));
}

TEST(DevicePlan, SamplingAndUpdatingGiveWayToEachOther) {
  const DevicePlan plan = {
      .always = {{"a", 10}, {"b", 5}}, .sampling = {{"c", 30}}, .updating = {{"d", 20}, {"e", 4}}};
  EXPECT_EQ(plan.peak(), 15 + 30);
}

TEST(DevicePlan, TheReferenceIsASecondModelWithItsActivations) {
  PlannedWork work = kWork;
  const int64_t without = plan_device_memory(small_model(), work, {}, nullptr).peak();
  work.has_reference = true;
  const DevicePlan plan = plan_device_memory(small_model(), work, {}, nullptr);
  EXPECT_EQ(plan.peak() - without,
            bytes_of(plan.always, "initial model") + bytes_of(plan.always, "its activations"));
  EXPECT_EQ(bytes_of(plan.always, "initial model"), bytes_of(plan.always, "weights, bf16"));
}

TEST(DevicePlan, SaysWhatWouldFit) {
  rollout::RolloutConfig rollout;
  rollout.kv_cache_mib = 200000;
  trainer::BackwardConfig backward;
  backward.micro_batch_tokens = 32000;
  const model::ModelConfig model = small_model();
  const DevicePlan plan = plan_device_memory(model, kWork, backward, &rollout);
  const auto message_on = [&](int64_t mib) {
    return check_device_memory(plan, mib * kMib, "this GPU", model, kWork, backward, "trainer")
        .message();
  };
  EXPECT_EQ(message_on(400000), "");
  EXPECT_THAT(message_on(81000),
              ContainsRegex("^run.device is cuda, whose plan needs [0-9]+ MiB where this GPU has "
                            "81000 MiB; what would fit: rollout.kv_cache_mib up to [0-9]+$"));
  const std::string both = message_on(10000);
  EXPECT_THAT(both, HasSubstr("; trainer.micro_batch_tokens up to "));
  EXPECT_THAT(both,
              ContainsRegex(", or trainer.gradient_checkpointing with micro_batch_tokens up to "));
  EXPECT_THAT(message_on(2000), ContainsRegex("what would fit: a smaller model: what is there all "
                                              "the time takes [0-9]+ MiB$"));
  // What it proposes does fit.
  const auto number_after = [&](const std::string& text, const std::string& before) {
    return std::stoll(text.substr(text.find(before) + before.size()));
  };
  rollout.kv_cache_mib = number_after(both, "rollout.kv_cache_mib up to ");
  backward.micro_batch_tokens = number_after(both, "trainer.micro_batch_tokens up to ");
  EXPECT_LT(backward.micro_batch_tokens, 32000);
  const DevicePlan smaller = plan_device_memory(model, kWork, backward, &rollout);
  EXPECT_TRUE(
      check_device_memory(smaller, 10000 * kMib, "this GPU", model, kWork, backward, "trainer")
          .ok());
  backward.micro_batch_tokens += 512;
  EXPECT_FALSE(check_device_memory(plan_device_memory(model, kWork, backward, &rollout),
                                   10000 * kMib, "this GPU", model, kWork, backward, "trainer")
                   .ok());
}

TEST(DevicePlan, TheHostKeepsWeightsAndWhatACheckpointNeeds) {
  const std::vector<MemoryPart> parts = plan_host_memory(small_model(), kWork);
  const int64_t weights = bytes_of(parts, "weights");
  EXPECT_NEAR(static_cast<double>(weights), 538e6, 2e6);
  EXPECT_EQ(bytes_of(parts, "checkpoint being written"), 5 * weights);
}

}  // namespace
}  // namespace gradus::cli
