// SPDX-License-Identifier: Apache-2.0
// Training by several ranks with a device each: needs two (tools/gpu_check starts it by mpirun).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <vector>

#include "comm/communicator.h"
#include "records/checkpoint_store.h"
#include "tests/kernels/head_case.h"
#include "tests/support/device_run.h"
#include "tests/support/mpi_main.h"
#include "trainer/device_learner.h"

namespace gradus::trainer {
namespace {

using testing::DeviceCourse;
using testing::DeviceRunOptions;
using ::testing::HasSubstr;

comm::Communicator* world = nullptr;

DeviceCourse train(const kernels::Cuda& cuda, DeviceRunOptions options) {
  return testing::train_on_device(cuda, *world, std::move(options));
}

TEST(DeviceRanks, WhatIsSharedOutChangesNoBitOfARunWhoseBatchIsOnePass) {
  GRADUS_NEEDS_GPU_NUMBER(cuda, device_of_rank(*world));
  std::vector<DeviceCourse> courses;
  for (const int64_t stage : {0, 1, 2, 3}) {
    // Few steps: later a group has one reward, and the batch falls into several passes.
    courses.push_back(
        train(*cuda, {.num_steps = 6, .micro_batch_tokens = 1 << 16, .zero_stage = stage}));
    const DeviceCourse& course = courses.back();
    for (const double mismatch : course.mismatches) EXPECT_EQ(mismatch, 0) << "stage " << stage;
    EXPECT_EQ(course.weights, courses[0].weights) << "stage " << stage;
    EXPECT_EQ(course.rewards, courses[0].rewards) << "stage " << stage;
    EXPECT_EQ(course.gradient_norms, courses[0].gradient_norms) << "stage " << stage;
  }
}

// With several passes a step, sums over ranks come pass by pass from stage 2 on: other last bits,
// the same ones for 2 and 3, and as exact.
TEST(DeviceRanks, StagesRepeatAlsoInSeveralPasses) {
  GRADUS_NEEDS_GPU_NUMBER(cuda, device_of_rank(*world));
  const auto run = [&](int64_t stage, bool checkpointing) {
    const DeviceCourse course = train(
        *cuda,
        {.micro_batch_tokens = 256, .gradient_checkpointing = checkpointing, .zero_stage = stage});
    for (const double mismatch : course.mismatches) EXPECT_EQ(mismatch, 0) << "stage " << stage;
    return course.weights;
  };
  EXPECT_EQ(run(0, false), run(1, false));
  const uint64_t second = run(2, false);
  EXPECT_EQ(second, run(3, false));
  EXPECT_EQ(second, run(3, true));
  EXPECT_EQ(second, run(2, false));
}

TEST(DeviceRanks, ACheckpointOfOneStageGoesOnInAnother) {
  GRADUS_NEEDS_GPU_NUMBER(cuda, device_of_rank(*world));
  const DeviceCourse whole = train(*cuda, {.micro_batch_tokens = 1 << 16});
  const std::string folder = "/tmp/gradus_device_ranks_test";
  if (world->rank() == 0) std::filesystem::remove_all(folder);
  world->barrier();
  train(*cuda, {.folder = folder,
                .checkpoint_every = 5,
                .num_steps = 10,
                .micro_batch_tokens = 1 << 16,
                .zero_stage = 3});
  world->barrier();
  records::CheckpointStore store(folder, records::CheckpointPolicy{.keep_last = 2},
                                 [](const std::string&) {});
  const auto latest = store.latest();
  ASSERT_TRUE(latest.has_value());
  const DeviceCourse rest =
      train(*cuda, {.resume_from = latest->folder, .micro_batch_tokens = 1 << 16, .zero_stage = 1});
  EXPECT_EQ(rest.rewards.size(), 10u);
  EXPECT_EQ(rest.weights, whole.weights);
  world->barrier();
  if (world->rank() == 0) std::filesystem::remove_all(folder);
}

TEST(DeviceRanks, AGradientThatIsNotFiniteIsTracedToItsGroupAtEveryStage) {
  GRADUS_NEEDS_GPU_NUMBER(cuda, device_of_rank(*world));
  for (const int64_t stage : {0, 1, 2, 3}) {
    Policy policy = testing::tiny_device_policy();
    OptimizerConfig optimizer;
    BackwardConfig backward;
    backward.zero_stage = stage;
    Result<ComputeParts> parts =
        make_device_parts(*cuda, policy, {.optimizer = optimizer, .backward = backward}, *world);
    ASSERT_TRUE(parts.ok()) << parts.status().message();
    std::vector<data::PackGroup> groups;
    for (int32_t g = 0; g < 7; ++g) groups.push_back({{g, 3, 5}, {{7, 8, g}, {9, 10}}});
    const std::vector<bool> needs_gradient(groups.size(), true);
    const auto loss = [](float poison) {
      return [poison](int64_t first, int64_t count, std::span<const float>, std::span<const float>,
                      std::span<float> dlogprobs, std::span<float>) {
        for (float& slope : dlogprobs) slope = 0.1f;
        if (first <= 5 && 5 < first + count) dlogprobs[dlogprobs.size() - 1] = poison;
        return Status();
      };
    };
    const uint64_t before = parts->learner->weights_hash().value();
    const auto broken = parts->learner->update(groups, needs_gradient, 1, 1e-3, loss(3e38f));
    ASSERT_FALSE(broken.ok());
    EXPECT_THAT(broken.status().message(), HasSubstr("is not finite (group ")) << "stage " << stage;
    EXPECT_EQ(parts->learner->weights_hash().value(), before);
    ASSERT_TRUE(parts->learner->update(groups, needs_gradient, 1, 1e-3, loss(0.2f)).ok());
    EXPECT_NE(parts->learner->weights_hash().value(), before);
  }
}

}  // namespace
}  // namespace gradus::trainer

int main(int argc, char** argv) {
  return gradus::testing::run_tests_of_ranks(argc, argv, gradus::trainer::world);
}
