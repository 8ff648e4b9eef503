// SPDX-License-Identifier: Apache-2.0
// Training on the device, from rewards to weights: needs one (tools/gpu_check).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/communicator.h"
#include "records/checkpoint_store.h"
#include "tests/kernels/head_case.h"
#include "tests/support/device_run.h"
#include "tests/support/files.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/cpu_learner.h"
#include "trainer/device_parts.h"
#include "trainer/rl_trainer.h"
#include "trainer/sft_trainer.h"

namespace gradus::trainer {
namespace {

using testing::DeviceCourse;
using testing::DeviceRunOptions;
using testing::Killed;
using testing::tiny_device_policy;

constexpr int64_t kSteps = 20;

DeviceCourse train(const kernels::Cuda& cuda, const DeviceRunOptions& options) {
  const std::unique_ptr<comm::Communicator> alone = comm::make_communicator().value();
  return testing::train_on_device(cuda, *alone, options);
}

double mean(const std::vector<double>& values, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += values[i];
  return sum / static_cast<double>(end - begin);
}

TEST(DeviceTraining, GrpoLearnsWithoutAnyMismatchAndRepeatsBitForBit) {
  GRADUS_NEEDS_GPU(cuda);
  const DeviceCourse first = train(*cuda, {});
  ASSERT_EQ(first.rewards.size(), static_cast<size_t>(kSteps));
  for (size_t step = 0; step < first.mismatches.size(); ++step) {
    EXPECT_EQ(first.mismatches[step], 0) << "step " << step + 1;
    EXPECT_GT(first.gradient_norms[step], 0) << "step " << step + 1;
  }
  EXPECT_GT(mean(first.rewards, 15, 20), mean(first.rewards, 0, 5) + 0.15);
  const DeviceCourse second = train(*cuda, {});
  EXPECT_EQ(second.weights, first.weights);
  EXPECT_EQ(second.rewards, first.rewards);
}

TEST(DeviceTraining, AKilledRunGoesOnFromItsCheckpointAsIfItHadNotStopped) {
  GRADUS_NEEDS_GPU(cuda);
  const DeviceCourse whole = train(*cuda, {});
  const test::TemporaryFolder folder;
  DeviceRunOptions options = {
      .folder = folder.path() + "/checkpoints", .checkpoint_every = 5, .killed_at_step = 13};
  EXPECT_THROW(train(*cuda, options), Killed);
  records::CheckpointStore store(options.folder, records::CheckpointPolicy{.keep_last = 2},
                                 [](const std::string&) {});
  const auto latest = store.latest();
  ASSERT_TRUE(latest.has_value());
  EXPECT_EQ(latest->step, 10);
  const DeviceCourse rest = train(*cuda, {.resume_from = latest->folder});
  EXPECT_EQ(rest.rewards.size(), 10u);
  EXPECT_EQ(rest.weights, whole.weights);
}

// The reference is a model of its own, which updates leave alone: the first step's KL is exactly 0.
TEST(DeviceTraining, KlToTheInitialModelIsZeroAtFirstAndGrows) {
  GRADUS_NEEDS_GPU(cuda);
  const DeviceCourse course = train(*cuda, {.has_kl = true});
  ASSERT_EQ(course.kls.size(), static_cast<size_t>(kSteps));
  EXPECT_EQ(course.kls[0], 0);
  EXPECT_GT(course.kls.back(), 1e-4);
  for (const double mismatch : course.mismatches) EXPECT_EQ(mismatch, 0);
}

TEST(DeviceTraining, CheckpointedLayersAndOtherMicroBatchesKeepLogProbsExact) {
  GRADUS_NEEDS_GPU(cuda);
  const DeviceCourse plain = train(*cuda, {});
  const DeviceCourse checkpointed = train(*cuda, {.gradient_checkpointing = true});
  EXPECT_EQ(checkpointed.weights, plain.weights) << "the layers' forward is the same again";
  const DeviceCourse small = train(*cuda, {.micro_batch_tokens = 64});
  for (const double mismatch : small.mismatches) EXPECT_EQ(mismatch, 0);
  EXPECT_NEAR(small.rewards.back(), plain.rewards.back(), 0.3);
}

TEST(DeviceTraining, SupervisedLossFallsAndItsCheckpointIsReadByTheCpu) {
  GRADUS_NEEDS_GPU(cuda);
  Policy policy = tiny_device_policy(), on_cpu = tiny_device_policy();
  const std::unique_ptr<comm::Communicator> alone = comm::make_communicator().value();
  SftConfig config;
  config.num_steps = 30;
  config.batch_rows = 8;
  config.optimizer.learning_rate = 3e-3;
  std::vector<SftExample> examples;
  for (int32_t i = 0; i < 32; ++i) {
    examples.push_back({{i, 7, 9}, {65, 66 + i % 4, 67, 68, 256}});
  }
  Result<ComputeParts> parts = make_device_parts(
      *cuda, policy, {.optimizer = config.optimizer, .backward = config.backward}, *alone);
  ASSERT_TRUE(parts.ok()) << parts.status().message();
  const test::TemporaryFolder folder;
  records::CheckpointStore store(folder.path() + "/checkpoints",
                                 records::CheckpointPolicy{.keep_last = 1},
                                 [](const std::string&) {});
  CheckpointSaver saver(&store, *alone);
  records::RunDisplay display({.is_quiet = true});
  const auto loss_of = [&](Learner& learner) {
    double sum = 0;
    std::vector<data::PackGroup> groups;
    for (const SftExample& example : examples) {
      groups.push_back({example.prompt, {example.response}});
    }
    EXPECT_TRUE(learner
                    .forward(groups, 1.0f,
                             [&](int64_t, int64_t, std::span<const float> logprobs,
                                 std::span<const float>) {
                               for (const float logprob : logprobs) sum -= logprob;
                             })
                    .ok());
    return sum / (5.0 * static_cast<double>(examples.size()));
  };
  Learner* const learner = parts->learner.get();
  const double before = loss_of(*learner);
  RunSettings run;
  run.checkpoint_every = 0;
  SftTrainer trainer({.sft = config, .run = run, .examples = examples, .parts = std::move(*parts)},
                     policy, *alone, {.saver = &saver}, display);
  const Status status = trainer.run();
  ASSERT_TRUE(status.ok()) << status.message();
  const double after = loss_of(*learner);
  EXPECT_LT(after, before / 3);

  CpuLearner cpu(*on_cpu.transformer, config.optimizer, {}, *alone);
  RunPosition position;
  const Status loaded = load_checkpoint(store.latest()->folder, on_cpu, cpu, position);
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  EXPECT_EQ(cpu.num_updates(), 30);
  EXPECT_NEAR(loss_of(cpu), after, 0.02) << "fp32 weights that the device rounds to bf16";
}

}  // namespace
}  // namespace gradus::trainer
