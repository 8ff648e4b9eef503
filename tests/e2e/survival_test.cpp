// SPDX-License-Identifier: Apache-2.0
// Runs that are killed, that meet gradients which are not finite, and whose rollouts are replayed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <regex>

#include "tests/support/killed_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Survival : public test::KilledRun {
 protected:
  // Weights and moments, without what tells a replay from the run that it replays.
  std::string learned(const std::string& name, const std::string& checkpoint = "latest") const {
    const std::string all = state(name, checkpoint);
    return all.substr(0, all.find("\nrun/")) + all.substr(all.find("\nweight "));
  }
  static double sum(const std::vector<json>& rows, const std::string& metric) {
    double total = 0;
    for (const json& row : rows) total += row.value(metric, 0.0);
    return total;
  }
};

TEST_F(Survival, ThreeKillsOfADynamicSamplingRunChangeNoBit) {
  expect_survival("whole", "killed",
                  "--set trainer.dynamic_sampling=true --set trainer.num_steps=40 "
                  "--set eval.every_steps=0 --set run.checkpoint_every=2 ",
                  3, 7);
}

// One block of eight groups, so that the micro-batches really are of so many groups.
TEST_F(Survival, MicroBatchesOfOneTwoFourAndEightGroupsGiveTheSameBits) {
  const std::string one_block =
      "--set trainer.reduction_blocks=1 --set trainer.mini_batches=1 --set sft.reduction_blocks=1 ";
  for (const std::string command : {"train", "sft"}) {
    const std::string section = command == "train" ? "trainer" : "sft";
    const std::string key = fmt::format("{}--set {}.micro_batch_tokens=", one_block, section);
    train(command, command + "1", key + "1");
    for (const std::string tokens : {"110", "220", "4000"}) {
      train(command, command + tokens, key + tokens);
      EXPECT_EQ(state(command + tokens), state(command + "1")) << tokens;
    }
    // Another tree of sums has other bits, so the comparison can fail.
    train(command, command + "_tree", "--set trainer.mini_batches=1");
    EXPECT_NE(state(command + "_tree"), state(command + "1"));
  }
}

TEST_F(Survival, ACheckpointOfFourRanksGoesOnWithTwoAndWithOne) {
  const std::string options = "--set run.checkpoint_every=1 ";
  train("train", "whole", options);
  for (const int ranks : {1, 2}) {
    const std::string name = "run" + std::to_string(ranks);
    train("train", name, options + "--set trainer.num_steps=3", test::mpirun(4));
    const std::string folder = path("runs/" + name + "/checkpoints/step_3/");
    EXPECT_TRUE(fs::exists(folder + "optimizer-00004-of-00004.bin"));
    EXPECT_TRUE(fs::exists(folder + "model.safetensors.index.json"));
    EXPECT_FALSE(fs::exists(folder + "model.safetensors"));
    train("train", name, options + "--resume", ranks == 1 ? "" : test::mpirun(ranks));
    EXPECT_EQ(state(name), state("whole")) << ranks;
  }
}

// Optimizer, gradients and weights in slices over ranks, alone or with roles, resumed by another
// number of ranks that share out something else.
TEST_F(Survival, WhatRanksShareOutShowsNeitherInBitsNorInResumes) {
  const std::string options =
      "--set trainer.ema_decay=0.9 --set trainer.gradient_checkpointing=true ";
  train("train", "whole", options);
  train("train", "run", options + "--set trainer.zero_stage=3 --set trainer.num_steps=3",
        test::mpirun(4));
  train("train", "run", options + "--set trainer.zero_stage=1 --resume", test::mpirun(2));
  EXPECT_EQ(state("run"), state("whole"));
  train("train", "split", options + "--set trainer.zero_stage=2 --set cluster.mode=split",
        test::mpirun(3));
  EXPECT_EQ(state("split"), state("whole"));
  for (const std::string command : {"sft", "dpo", "reward-model"}) {
    const std::string section = command == "reward-model" ? "reward_model" : command;
    train(command, command + "_one");
    train(command, command + "_two", fmt::format("--set {}.zero_stage=3", section),
          test::mpirun(2));
    EXPECT_EQ(state(command + "_two"), state(command + "_one"));
  }
  EXPECT_NE(state("sft_one"), state("whole"));
}

TEST_F(Survival, ADamagedShareNamesFileAndTensorAndThePreviousCheckpointIsUsed) {
  train("train", "whole");
  train("train", "run", "", test::mpirun(2));
  const std::string file = path("runs/run/checkpoints/step_6/optimizer-00002-of-00002.bin");
  std::string bytes = test::read_file(file);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  test::write_file(file, bytes);
  const std::string messages = train("train", "run", "--resume", test::mpirun(2));
  EXPECT_THAT(messages, HasSubstr(file + ": tensor 'adam/"));
  EXPECT_THAT(messages, HasSubstr("is damaged: hash "));
  EXPECT_THAT(messages, HasSubstr("the checkpoint is not used"));
  EXPECT_THAT(messages, HasSubstr("checkpoints/step_4 after step 4"));
  EXPECT_EQ(state("run"), state("whole"));
}

// A response with a Z earns so much that its gradient is beyond a float.
const std::string kPoison =
    "--set trainer.algorithm=reinforce --set eval.every_steps=0 --set eval.before_training=false "
    "--set 'reward.parts=[{name: format, options: {pattern: \"(?s).*[A-Z].*\"}}, "
    "{name: format, label: poison, weight: 3e38, options: {pattern: \"(?s).*Z.*\"}}]' ";

TEST_F(Survival, AnUpdateThatIsNotFiniteIsSkippedNamedAndCounted) {
  const std::string rare = std::regex_replace(kPoison, std::regex("\\*Z\\."), "*Z[a-zA-Z].");
  const std::string messages = train("train", "run", rare + "--set trainer.num_steps=12");
  EXPECT_THAT(messages, HasSubstr("update skipped: step "));
  EXPECT_TRUE(std::regex_search(
      messages,
      std::regex("step \\d+, prompt \\d+, sample \\d+: the gradient of 'model[a-z0-9_.]+' is "
                 "not finite; the weights were not changed; lower the learning rate or "
                 "look for broken rewards")))
      << messages;
  const std::vector<json> rows = metrics("run");
  EXPECT_GE(sum(rows, "training/nonfinite_updates"), 1);
  EXPECT_GE(sum(rows, "training/skipped_updates"), sum(rows, "training/nonfinite_updates"));
  EXPECT_EQ(sum(rows, "training/num_updates") + sum(rows, "training/skipped_updates"), 24);
  // On ranks, and after a resume, the same ones are skipped.
  train("train", "two", rare + "--set trainer.num_steps=12", test::mpirun(2));
  EXPECT_EQ(state("two"), state("run"));
  fs::remove_all(path("runs/two/checkpoints/step_12"));
  train("train", "two", rare + "--set trainer.num_steps=12 --resume");
  EXPECT_EQ(state("two"), state("run"));
}

TEST_F(Survival, ThreeInARowEndTheRunWithADumpThatRepeatsIt) {
  for (const std::string mini_batches : {"1", "2", "8"}) {
    const std::string name = "run" + mini_batches;
    const std::string options = fmt::format(
        "{}--set trainer.num_steps=40 --set trainer.mini_batches={} --set run.checkpoint_every=1 ",
        kPoison, mini_batches);
    const test::RunOutcome failed = call(arguments("train", name, options));
    EXPECT_EQ(failed.exit_code, 2) << failed.messages;
    std::smatch match;
    const std::regex text(
        "gradus: error: (step (\\d+), prompt \\d+, sample \\d+: the gradient of 'model[a-z0-9_.]+' "
        "is "
        "not finite; the weights were not changed; lower the learning rate or look for broken "
        "rewards; this was the update number 3 in a row; its rollouts and the state before it are "
        "in )(\\S+), and gradus train CONFIG --load-rollouts (\\S+) --set run.name=NEW repeats "
        "it\n");
    ASSERT_TRUE(std::regex_search(failed.messages, match, text)) << failed.messages;
    EXPECT_EQ(match[3], path("runs/" + name + "/failed_step_" + match[2].str()));
    const int64_t step = std::stoll(match[2]);
    EXPECT_THAT(failed.messages, HasSubstr(fmt::format(
                                     "step {} failed; the checkpoint of step {} is there: continue "
                                     "from it with --resume",
                                     step, step - 1)));
    const test::RunOutcome again =
        call(arguments("train", name + "_again", options + "--load-rollouts " + match[3].str()));
    EXPECT_EQ(again.exit_code, 2);
    EXPECT_THAT(again.messages, HasSubstr(match[1].str()));
  }
}

TEST_F(Survival, ReplayedRolloutsGiveTheSameBits) {
  const std::string options =
      "--set run.checkpoint_every=1 --set run.keep_checkpoints=9 "
      "--set trainer.dynamic_sampling=true ";
  train("train", "run", options);
  const std::string rollouts = path("runs/run/rollouts");
  train("train", "replay", options + "--load-rollouts " + rollouts);
  EXPECT_EQ(state("replay"), state("run")) << "data position included";
  EXPECT_FALSE(fs::exists(path("runs/replay/rollouts/step_1.jsonl"))) << "they are there already";
  train("train", "two", options + "--load-rollouts " + rollouts, test::mpirun(2));
  EXPECT_EQ(state("two"), state("run"));
  for (const json& row : metrics("replay")) {
    if (row["step"] != 0) {
      EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0);
    }
  }
  // One step alone, from the checkpoint before it.
  const std::string messages =
      train("train", "one", options + "--load-rollouts " + rollouts + "/step_5.jsonl");
  EXPECT_THAT(messages, HasSubstr("after step 4"));
  EXPECT_EQ(metrics("one").size(), 1u);
  EXPECT_EQ(state("one"), state("run", "step_5"));
  // Trained otherwise, the same rollouts give other weights.
  train("train", "other",
        options + "--set trainer.algorithm.clip_high=0.9 --load-rollouts " + rollouts);
  train("train", "lr",
        options + "--set trainer.learning_rate=2e-3 --load-rollouts " + rollouts + "/step_1.jsonl");
  EXPECT_NE(learned("lr"), learned("run", "step_1"));
}

TEST_F(Survival, HalvesRunAlone) {
  train("train", "run", "--set run.checkpoint_every=1 --set run.keep_checkpoints=9");
  const std::string folder = path("dump");
  train("train", "sample", "--set trainer.num_steps=2 --dump-rollouts " + folder);
  EXPECT_TRUE(fs::exists(folder + "/step_2.jsonl"));
  EXPECT_EQ(test::read_file(folder + "/step_1.jsonl"),
            test::read_file(path("runs/run/rollouts/step_1.jsonl")));
  EXPECT_FALSE(fs::exists(path("runs/sample/rollouts/step_1.jsonl")));
  train("train", "learn", "--set run.checkpoint_every=1 --load-rollouts " + folder);
  EXPECT_EQ(learned("learn", "step_1"), learned("run", "step_1"));
  // The second step was sampled by the first weights, which the replay knows and says.
  const std::vector<json> rows = metrics("learn");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_GT(rows[2]["rollout/policy_lag"], 0);
  EXPECT_NE(learned("learn"), learned("run", "step_2"));
}

TEST_F(Survival, RolloutsOfOtherWeightsAreRefused) {
  train("train", "run");
  const std::string rollouts = path("runs/run/rollouts");
  test::RunOutcome outcome =
      call(arguments("train", "seed", "--set run.seed=4 --load-rollouts " + rollouts));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_TRUE(std::regex_search(
      outcome.messages,
      std::regex("gradus: error: step 1, prompt \\d+, sample 0: sampled by weights [0-9a-f]{16} as "
                 "policy version 0; here that version has weights [0-9a-f]{16}; replay rollouts "
                 "with the configuration, seed and model of the run that wrote them\n")))
      << outcome.messages;
  outcome = call(arguments("train", "none", "--load-rollouts " + path("nowhere")));
  EXPECT_EQ(outcome.messages,
            "gradus: error: --load-rollouts " + path("nowhere") +
                ": no step_N.jsonl; name a folder of rollouts or a file in one\n");
  outcome = call(arguments("train", "late", "--load-rollouts " + rollouts + "/step_2.jsonl"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("begins with step 2, so the replay begins from the "
                                          "checkpoint of step 1, but there is neither "));
  outcome = call(arguments("train", "both", "--load-rollouts a --dump-rollouts b"));
  EXPECT_THAT(outcome.messages, HasSubstr("--dump-rollouts excludes --load-rollouts"));
}

}  // namespace
}  // namespace gradus
