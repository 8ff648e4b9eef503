// SPDX-License-Identifier: Apache-2.0
#include "trainer/checkpoint_saver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>

#include <sys/resource.h>

#include "tests/support/checkpoint_state.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/model_rows.h"
#include "trainer/cpu_learner.h"

namespace gradus::trainer {
namespace {

using ::testing::HasSubstr;
using testing::run_ranks;

Policy tiny_policy() {
  Policy policy;
  policy.transformer = model::Transformer::load(testing::tiny_model_dir("qwen2")).value();
  policy.tokenizer_dir = testing::tiny_model_dir("qwen2");
  return policy;
}

std::unique_ptr<records::CheckpointStore> store_on_rank_0(const std::string& folder, int rank) {
  if (rank != 0) return nullptr;
  return std::make_unique<records::CheckpointStore>(
      folder, records::CheckpointPolicy{.keep_last = 9}, [](const std::string&) {});
}

// Training goes on at once: what changes after save() is not in the checkpoint.
TEST(CheckpointSaver, WritesTheStateOfTheMomentOnAnyNumberOfRanks) {
  std::vector<std::string> states;
  for (const int num_ranks : {1, 2, 4}) {
    const test::TemporaryFolder folder;
    run_ranks(num_ranks, [&](comm::Communicator& communicator) {
      Policy policy = tiny_policy();
      CpuLearner learner(*policy.transformer, {}, {}, communicator);
      const auto store = store_on_rank_0(folder.path(), communicator.rank());
      CheckpointSaver saver(store.get(), communicator);
      ASSERT_TRUE(saver.save(policy, learner, {.step = 3, .data_position = 24}, {}).ok());
      for (int64_t i = 0; i < policy.transformer->layout().size; ++i) {
        policy.transformer->parameters()[i] = -7;
      }
      // The next save waits for the first.
      ASSERT_TRUE(saver.save(policy, learner, {.step = 4}, {}).ok());
      const Status status = saver.finish();
      ASSERT_TRUE(status.ok()) << status.message();
      RunPosition position;
      Policy loaded = tiny_policy();
      ASSERT_TRUE(load_checkpoint(folder.path() + "/step_3", loaded, learner, position).ok());
      EXPECT_EQ(position.step, 3);
      EXPECT_EQ(position.data_position, 24u);
      const Policy fresh = tiny_policy();
      EXPECT_EQ(std::memcmp(loaded.transformer->parameters(), fresh.transformer->parameters(),
                            static_cast<size_t>(fresh.transformer->layout().size) * sizeof(float)),
                0);
    });
    states.push_back(test::checkpoint_state(folder.path() + "/step_3"));
  }
  EXPECT_EQ(states[1], states[0]);
  EXPECT_EQ(states[2], states[0]);
}

// Two updates, a checkpoint, and a third update by another number of ranks that share out something
// else: the bits of one rank.
TEST(CheckpointSaver, WhatTheRanksShareOutDoesNotShowAndMayChangeOnResume) {
  struct Shape {
    int num_ranks;
    int64_t zero_stage;
  };
  const OptimizerConfig optimizer{.ema_decay = 0.9};
  const auto update = [&](Policy& policy, Learner& learner, int64_t steps) {
    std::vector<data::PackGroup> groups;
    const int64_t vocab_size = policy.transformer->config().vocab_size;
    for (uint64_t g = 0; g < 8; ++g) {
      groups.push_back({testing::random_tokens(5, vocab_size, g),
                        {testing::random_tokens(4, vocab_size, 50 + g)}});
    }
    for (int64_t step = 0; step < steps; ++step) {
      const auto loss = [](int64_t, int64_t, std::span<const float>, std::span<const float>,
                           std::span<float> dlogprobs, std::span<float>) -> Status {
        std::fill(dlogprobs.begin(), dlogprobs.end(), -0.01f);
        return {};
      };
      ASSERT_TRUE(learner.update(groups, std::vector<bool>(8, true), 1.0f, 1e-3, loss).ok());
    }
  };
  std::vector<std::string> states, ends;
  const std::pair<Shape, Shape> runs[] = {
      {{1, 0}, {1, 0}}, {{4, 3}, {2, 1}}, {{2, 1}, {4, 3}}, {{2, 2}, {1, 0}}, {{1, 0}, {2, 3}}};
  for (const std::pair<Shape, Shape>& run : runs) {
    const Shape& first = run.first;
    const Shape& second = run.second;
    const test::TemporaryFolder folder;
    run_ranks(first.num_ranks, [&](comm::Communicator& communicator) {
      Policy policy = tiny_policy();
      CpuLearner learner(*policy.transformer, optimizer, {.zero_stage = first.zero_stage},
                         communicator);
      const auto store = store_on_rank_0(folder.path(), communicator.rank());
      CheckpointSaver saver(store.get(), communicator);
      update(policy, learner, 2);
      ASSERT_TRUE(saver.save(policy, learner, {.step = 2}, {}).ok());
      ASSERT_TRUE(saver.finish().ok());
    });
    states.push_back(test::checkpoint_state(folder.path() + "/step_2"));
    run_ranks(second.num_ranks, [&](comm::Communicator& communicator) {
      Policy policy = tiny_policy();
      CpuLearner learner(*policy.transformer, optimizer, {.zero_stage = second.zero_stage},
                         communicator);
      const auto store = store_on_rank_0(folder.path(), communicator.rank());
      CheckpointSaver saver(store.get(), communicator);
      RunPosition position;
      const Status loaded = load_checkpoint(folder.path() + "/step_2", policy, learner, position);
      ASSERT_TRUE(loaded.ok()) << loaded.message();
      update(policy, learner, 1);
      ASSERT_TRUE(saver.save(policy, learner, {.step = 3}, {}).ok());
      ASSERT_TRUE(saver.finish().ok());
    });
    ends.push_back(test::checkpoint_state(folder.path() + "/step_3"));
    EXPECT_EQ(states.back() == states[0], true) << states.size();
    EXPECT_EQ(ends.back() == ends[0], true) << ends.size();
  }
  EXPECT_NE(ends[0], states[0]);
}

// No file may grow beyond 16 KiB, as on a full disk: the error comes up in a later call, on every
// rank, and the next save is a new attempt.
TEST(CheckpointSaver, AnErrorOfTheWriterComesUpLaterAndOnAllRanks) {
  const test::TemporaryFolder folder;
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  run_ranks(2, [&](comm::Communicator& communicator) {
    const Policy policy = tiny_policy();
    CpuLearner learner(*policy.transformer, {}, {}, communicator);
    const auto store = store_on_rank_0(folder.path(), communicator.rank());
    CheckpointSaver saver(store.get(), communicator);
    if (communicator.rank() == 0) {
      const struct rlimit tiny { 16384, before.rlim_max };
      ::setrlimit(RLIMIT_FSIZE, &tiny);
    }
    communicator.barrier();
    EXPECT_TRUE(saver.save(policy, learner, {.step = 1}, {}).ok()) << "nothing is known yet";
    const Status status = saver.finish();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr(folder.path() + "/.tmp_step_1/"));
    EXPECT_THAT(status.message(), HasSubstr("File too large"));
    communicator.barrier();
    if (communicator.rank() == 0) ::setrlimit(RLIMIT_FSIZE, &before);
    communicator.barrier();
    EXPECT_TRUE(saver.save(policy, learner, {.step = 2}, {}).ok());
    EXPECT_TRUE(saver.finish().ok());
  });
  std::signal(SIGXFSZ, previous);
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/.tmp_step_1"))
      << "the space is given back";
  EXPECT_TRUE(std::filesystem::exists(folder.path() + "/step_2"));
}

}  // namespace
}  // namespace gradus::trainer
