// SPDX-License-Identifier: Apache-2.0
#include "cli/step_time.h"

#include <gtest/gtest.h>

#include <cmath>

namespace gradus::cli {
namespace {

// Two layers of width 4, inner 8, one head of width 4, vocabulary 10. Weights of a layer: q, k, v
// and o of 4 x 4 and three of 4 x 8, 160; of the head 40.
model::ModelConfig tiny() {
  model::ModelConfig config;
  config.vocab_size = 10;
  config.hidden_size = 4;
  config.intermediate_size = 8;
  config.num_layers = 2;
  config.num_heads = config.num_kv_heads = 1;
  config.head_dim = 4;
  config.max_position_embeddings = 64;
  config.tie_embeddings = true;
  return config;
}

// Arithmetic alone counts: memory is without end, kernels start at once.
Device arithmetic() { return {.name = "a", .flops = 1e6, .bytes_per_s = 1e18}; }

StepWork work() {
  StepWork work;
  work.num_prompts = 2;
  work.num_samples = 4;
  work.prompt_tokens = 6;
  work.response_tokens = 5;
  work.longest_response = 5;
  work.max_batch = 8;
  return work;
}

// Decoding: 8 responses of 5 tokens in 5 passes of 8 rows that see 6 + 5 / 2 tokens: each
// 2 8 320 + 2 8 40 + 4 8 2 4 8.5 = 5120 + 640 + 2176 = 7936 operations; 5 of them 39680.
// Prefill: 12 rows that see 3 tokens, 2 logits: 2 12 320 + 2 2 40 + 4 12 2 4 3 = 7680 + 160 + 1152.
// Update: 12 + 40 - 8 = 44 rows that see 5.5, 40 logits: 2 44 320 + 2 40 40 + 4 44 2 4 5.5 = 28160
// + 3200 + 7744 = 39104, three times.
TEST(StepTime, CountsMultiplyAddsByHand) {
  const StepTime time = predict_step(tiny(), work(), arithmetic(), {});
  EXPECT_NEAR(time.decode, 39680e-6, 1e-12);
  EXPECT_NEAR(time.prefill, 8992e-6, 1e-12);
  EXPECT_NEAR(time.forward_backward, 3 * 39104e-6, 1e-12);
  EXPECT_EQ(time.reduce_gradients + time.exchange, 0) << "one rank talks to nobody";
}

TEST(StepTime, TheLongestResponseAndTheBatchBoundDecoding) {
  Device device = arithmetic();
  device.kernel_seconds = 1;  // passes are what counts: 22 kernels each
  StepWork longer = work();
  longer.longest_response = 20;
  EXPECT_NEAR(predict_step(tiny(), longer, device, {}).decode, 20 * 22, 1);
  StepWork narrow = work();
  narrow.max_batch = 2;  // 40 tokens, two at a time
  EXPECT_NEAR(predict_step(tiny(), narrow, device, {}).decode, 20 * 22, 1);
}

TEST(StepTime, MemoryBoundsASingleRow) {
  Device device{.name = "m", .flops = 1e18, .bytes_per_s = 1e6};
  StepWork one = work();
  one.num_prompts = one.num_samples = 1;
  // Weights 360 floats, keys and values of 8.5 tokens 2 2 4 floats, and what lies beside: 5 passes.
  const double beside = 2 * (10 * 4 + 4 * 8 + 5 * 8);
  const double bytes = 4 * (360 + 8.5 * 16 + beside);
  EXPECT_NEAR(predict_step(tiny(), one, device, {}).decode, 5 * bytes * 1e-6, 1e-12);
}

// Weights: embedding 40, layers 2 (160 + 8), norm 4: 380 floats, 1520 bytes.
TEST(StepTime, GradientsAreHalvedThereAndBack) {
  StepWork eight = work();
  eight.num_ranks = 8;
  eight.num_prompts = 8;
  const Links links{
      .bytes_per_s = 1e3, .local_bytes_per_s = 1e6, .ranks_per_host = 4, .message_seconds = 0};
  EXPECT_NEAR(predict_step(tiny(), eight, arithmetic(), links).reduce_gradients, 1.75 * 1.520, 1e-9)
      << "7/8 of them out and 7/8 in, between hosts";
  Links one_host = links;
  one_host.ranks_per_host = 8;
  EXPECT_NEAR(predict_step(tiny(), eight, arithmetic(), one_host).reduce_gradients, 1.75 * 1.520e-3,
              1e-9);
}

// 7/8 of 1,520 bytes at 1e3 bytes/s: 1.33 s, once out as gradients and as often in as a stage needs
// weights.
TEST(StepTime, ZeroStagesMoveSlices) {
  StepWork eight = work();
  eight.num_ranks = eight.num_prompts = 8;
  const Links links{
      .bytes_per_s = 1e3, .local_bytes_per_s = 1e3, .ranks_per_host = 8, .message_seconds = 0};
  const double expected[4][2] = {{2.66, 0}, {1.33, 1.33}, {1.33, 1.33}, {1.33, 3 * 1.33}};
  for (int64_t stage = 0; stage < 4; ++stage) {
    eight.backward.zero_stage = stage;
    const StepTime time = predict_step(tiny(), eight, arithmetic(), links);
    EXPECT_NEAR(time.reduce_gradients, expected[stage][0], 1e-9) << stage;
    EXPECT_NEAR(time.gather_weights, expected[stage][1], 1e-9) << stage;
  }
}

// One rank trains for two that sample: they take half each of what one takes, it trains on all of
// it and sends its weights twice; asynchronous, the longer of both counts.
TEST(StepTime, RolesShareTheStep) {
  const StepTime one = predict_step(tiny(), work(), arithmetic(), {});
  StepWork roles = work();
  roles.rollout_ranks = 2;
  const Links links{
      .bytes_per_s = 1e9, .local_bytes_per_s = 1e3, .ranks_per_host = 3, .message_seconds = 0};
  const StepTime split = predict_step(tiny(), roles, arithmetic(), links);
  EXPECT_NEAR(split.decode, one.decode / 2, 1e-12);
  EXPECT_NEAR(split.prefill, one.prefill / 2, 1e-12);
  EXPECT_NEAR(split.forward_backward, one.forward_backward, 1e-12);
  EXPECT_EQ(split.reduce_gradients, 0);
  EXPECT_NEAR(split.send_weights, 2 * 1.520, 1e-9);
  EXPECT_NEAR(split.total(), split.rollout() + split.update() + split.exchange + 3.04, 1e-9);
  roles.is_async = true;
  const StepTime async = predict_step(tiny(), roles, arithmetic(), links);
  EXPECT_NEAR(async.total(), std::max(split.rollout(), split.update()) + split.exchange + 3.04,
              1e-9);
}

// bf16 weights are half of the 1,520 bytes; with two micro-batches stages 2 and 3 exchange twice.
TEST(StepTime, OnGpusWeightsTravelInBf16AndByMicroBatch) {
  StepWork eight = work();
  eight.num_ranks = eight.num_prompts = 8;
  const Links links{
      .bytes_per_s = 1e3, .local_bytes_per_s = 1e3, .ranks_per_host = 8, .message_seconds = 0};
  Device gpu = arithmetic();
  gpu.number_bytes = 2;
  const double rows = 6 + 4 * (5 - 1);  // of a rank: a prompt and its responses
  eight.backward.micro_batch_tokens = static_cast<int64_t>(rows / 2);
  const double expected[4][2] = {{2.66, 0}, {1.33, 0.665}, {2.66, 0.665}, {2.66, 5 * 0.665}};
  for (int64_t stage = 0; stage < 4; ++stage) {
    eight.backward.zero_stage = stage;
    const StepTime time = predict_step(tiny(), eight, gpu, links);
    EXPECT_NEAR(time.reduce_gradients, expected[stage][0], 1e-9) << stage;
    EXPECT_NEAR(time.gather_weights, expected[stage][1], 1e-9) << stage;
  }
}

TEST(StepTime, KnowsItsDevices) {
  EXPECT_EQ(find_device("h100")->name, "h100");
  EXPECT_GT(find_device("h200")->bytes_per_s, find_device("h100")->bytes_per_s);
  EXPECT_EQ(find_device("h900").status().message(),
            "--device h900: unknown device; known: a100, h100, h200, cpu (this machine)");
  const Device cpu = measure_cpu(tiny());
  for (const double value : {cpu.flops, cpu.bytes_per_s, cpu.kernel_seconds, cpu.logit_seconds}) {
    EXPECT_GT(value, 0);
    EXPECT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace gradus::cli
