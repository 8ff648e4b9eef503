// SPDX-License-Identifier: Apache-2.0
// PPO with a critic, by `gradus train` as its users run it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <regex>
#include <set>

#include "tests/support/killed_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// The reward is in sight of the critic: 1 from the first digit on.
const std::string kDigits =
    "--set 'reward.parts=[{name: format, options: {pattern: \"(?s).*[0-9].*\"}}]' ";
const std::string kPpo = "--set trainer.algorithm=ppo --set trainer.critic.learning_rate=3e-3 ";
const std::string kNoEvaluation = "--set eval.every_steps=0 --set eval.before_training=false ";

class Ppo : public test::KilledRun {
 protected:
  std::string message(const std::string& options) const {
    const test::RunOutcome outcome = call(arguments("train", "bad", options));
    EXPECT_EQ(outcome.exit_code, 2) << options << ": " << outcome.messages;
    return outcome.messages;
  }
};

TEST_F(Ppo, RaisesTheRewardAndLearnsToExpectIt) {
  train("train", "run",
        kDigits + kNoEvaluation +
            "--set trainer.algorithm=ppo --set trainer.num_steps=40 --set run.checkpoint_every=0 "
            "--set trainer.prompts_per_step=16 --set trainer.learning_rate=3e-3 "
            "--set trainer.critic.learning_rate=1e-2 ");
  const std::vector<json> rows = metrics("run");
  const auto mean = [&](const std::string& name, size_t first, size_t end) {
    double sum = 0;
    for (size_t i = first; i < end; ++i) sum += rows[i][name].get<double>();
    return sum / static_cast<double>(end - first);
  };
  EXPECT_LT(mean("critic/score/mean", 0, 5), 0.7);
  EXPECT_GT(mean("critic/score/mean", 30, 40), 0.95);
  EXPECT_LT(mean("critic/vf_explained_var", 0, 5), 0.2);
  EXPECT_GT(mean("critic/vf_explained_var", 25, 40), 0.5);
  for (const json& row : rows) {
    EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0);
    EXPECT_EQ(row["mismatch/max_abs_value"], 0.0);
    EXPECT_LE(row["critic/values/min"], row["critic/values/mean"]);
    EXPECT_LE(row["critic/returns/mean"], row["critic/returns/max"]);
    EXPECT_GT(row["critic/grad_norm"], 0.0);
  }
  // The critic is a reward model of its own, and other runs may start from it.
  const std::string critic = path("runs/run/checkpoints/latest/critic");
  EXPECT_EQ(call("score --model " + critic + " --input " + path("rows.jsonl"),
                 "echo '{\"text\": \"1+1=2\"}' > " + path("rows.jsonl") + "; ")
                .exit_code,
            0);
  train("train", "again", kDigits + kNoEvaluation + kPpo + "--set trainer.critic.path=" + critic);
  EXPECT_GT(metrics("again")[0]["critic/values/mean"].get<double>(), 0.7) << "it expects success";
  train("train", "new", kDigits + kNoEvaluation + kPpo);
  EXPECT_LT(metrics("new")[0]["critic/values/mean"].get<double>(), 0.4);
}

TEST_F(Ppo, RanksMicroBatchesAndResumesChangeNeitherWeightsNorMetrics) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"plain", ""},
      {"terms",
       "--set 'trainer.algorithm={name: ppo, gamma: 0.99, gae_lambda: 0.9, aggregation: "
       "seq_mean_token_mean, kl: {coef: 0.1, kind: k1, place: reward}}' "
       "--set trainer.critic.value_clip=0.05 --set trainer.critic.frozen_policy_steps=2 "
       "--set trainer.critic.lr_schedule=cosine --set rollout.num_samples=1 "
       "--set trainer.entropy_coef=0.01 "}};
  for (const auto& [name, more] : cases) {
    const std::string options = kPpo + more;
    train("train", name, options);
    const std::vector<json> expected = metrics(name);
    ASSERT_EQ(expected.size(), 7u);
    for (const int ranks : {2, 4}) {
      const std::string other = name + std::to_string(ranks);
      train("train", other, options, test::mpirun(ranks));
      EXPECT_EQ(state(other), state(name)) << other;
      const std::vector<json> rows = metrics(other);
      ASSERT_EQ(rows.size(), expected.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(rows[i].size(), expected[i].size());
        for (const auto& [key, value] : expected[i].items()) {
          const double want = value, got = rows[i][key];
          EXPECT_NEAR(got, want, 1e-12 * (1 + std::fabs(want))) << other << ", " << i << " " << key;
        }
      }
    }
    train("train", name + "_cut",
          options + "--set trainer.micro_batch_tokens=1 --set trainer.gradient_checkpointing=true");
    EXPECT_EQ(state(name + "_cut"), state(name)) << "micro-batches of one group";
    // Back to step 4, by taking the checkpoint of step 6 away.
    fs::remove_all(path("runs/" + name + "4/checkpoints/step_6"));
    EXPECT_THAT(train("train", name + "4", options + "--resume", test::mpirun(2)),
                HasSubstr("after step 4"));
    EXPECT_EQ(state(name + "4"), state(name));
  }
  // The comparison can fail: the critic's rate changes what both have learned.
  train("train", "other", kPpo + "--set trainer.critic.learning_rate=2e-3");
  EXPECT_NE(state("other"), state("plain"));
  // In the first steps the critic alone learned, and the clip held some of its values.
  const std::vector<json> rows = metrics("terms");
  double clipped = 0;
  for (size_t step = 1; step < rows.size(); ++step) {
    EXPECT_EQ(rows[step].contains("actor/grad_norm"), step > 2) << step;
    clipped += rows[step]["critic/vf_clipfrac"].get<double>();
  }
  EXPECT_GT(clipped, 0.0);
  EXPECT_GT(rows[3]["critic/lr"], rows[5]["critic/lr"]);
}

TEST_F(Ppo, RolesOfTheirOwnChangeNoBit) {
  train("train", "one", kPpo + kNoEvaluation);
  train("train", "split",
        kPpo + kNoEvaluation + "--set cluster.mode=split --set cluster.rollout_ranks=1 ",
        test::mpirun(3));
  EXPECT_EQ(state("split"), state("one"));
  train("train", "async",
        kPpo + kNoEvaluation + "--set cluster.mode=async --set cluster.rollout_ranks=1 ",
        test::mpirun(2));
  EXPECT_GT(metrics("async")[1]["rollout/policy_lag"], 0);
}

// Optimizer, gradients and weights of policy and critic shared out over the ranks.
TEST_F(Ppo, SharedOutStateChangesNoBit) {
  train("train", "one", kPpo);
  for (const std::string stage : {"1", "3"}) {
    const std::string options = kPpo + "--set trainer.zero_stage=" + stage + " ";
    train("train", "zero" + stage, options, test::mpirun(2));
    EXPECT_TRUE(state("zero" + stage) == state("one")) << stage;
    fs::remove_all(path("runs/zero" + stage + "/checkpoints/step_6"));
    train("train", "zero" + stage, options + "--resume", test::mpirun(2));
    EXPECT_TRUE(state("zero" + stage) == state("one")) << stage;
  }
}

TEST_F(Ppo, ThreeKillsChangeNoBit) {
  expect_survival("whole", "killed",
                  kPpo + kNoEvaluation +
                      "--set trainer.num_steps=40 --set run.checkpoint_every=2 "
                      "--set trainer.critic.frozen_policy_steps=4 ",
                  3, 11);
}

TEST_F(Ppo, ReplayedRolloutsGiveTheSameBits) {
  const std::string options =
      kPpo + kNoEvaluation + "--set run.checkpoint_every=1 --set run.keep_checkpoints=9 ";
  train("train", "run", options);
  const std::string rollouts = path("runs/run/rollouts");
  train("train", "replay", options + "--load-rollouts " + rollouts, test::mpirun(2));
  EXPECT_EQ(state("replay"), state("run"));
  train("train", "one", options + "--load-rollouts " + rollouts + "/step_5.jsonl");
  EXPECT_EQ(state("one"), state("run", "step_5"));
  train("train", "sample", options + "--set trainer.num_steps=1 --dump-rollouts " + path("dump"));
  EXPECT_EQ(test::read_file(path("dump/step_1.jsonl")), test::read_file(rollouts + "/step_1.jsonl"))
      << "the critic's values included";
  const json row = test::json_rows(test::read_file(rollouts + "/step_1.jsonl"))[0];
  EXPECT_EQ(row["values"].size(), row["ids"].size());
}

// A response with a Z earns so much that the critic's gradient is beyond a float. A dump may begin
// within a step, where the critic has moved on from the values that the step has.
TEST_F(Ppo, ACriticThatBlowsUpEndsTheRunWithADumpThatRepeatsIt) {
  const std::string poison =
      kNoEvaluation + kPpo +
      "--set 'reward.parts=[{name: format, weight: 3e38, options: {pattern: \"(?s).*Z.*\"}}]' "
      "--set trainer.num_steps=40 ";
  int num_within_step = 0;
  for (const std::string mini_batches : {"1", "2", "8"}) {
    const std::string name = "run" + mini_batches;
    const std::string options = poison + "--set trainer.mini_batches=" + mini_batches + " ";
    const test::RunOutcome failed = call(arguments("train", name, options));
    EXPECT_EQ(failed.exit_code, 2) << failed.messages;
    std::smatch match;
    const std::regex text(
        "gradus: error: (step (\\d+), critic, [a-z0-9, ]+: the gradient of '[a-z0-9_.]+' is not "
        "finite; the weights were not changed; lower trainer.critic.learning_rate or look for "
        "broken rewards; this was the update number 3 in a row; its rollouts and the state before "
        "it are in )(\\S+), and gradus train CONFIG --load-rollouts (\\S+) --set run.name=NEW "
        "repeats it\n");
    ASSERT_TRUE(std::regex_search(failed.messages, match, text)) << failed.messages;
    const test::RunOutcome again =
        call(arguments("train", name + "_again", options + "--load-rollouts " + match[3].str()));
    EXPECT_EQ(again.exit_code, 2);
    EXPECT_THAT(again.messages, HasSubstr(match[1].str()));
    // Values and advantages too are those of the step.
    const std::string dump = "/failed_step_" + match[2].str(),
                      rollouts = dump + "/step_" + match[2].str() + ".jsonl";
    const bool is_equal = test::read_file(path("runs/" + name + "_again" + rollouts)) ==
                          test::read_file(path("runs/" + name + rollouts));
    EXPECT_TRUE(is_equal) << name;
    const auto state =
        records::StateShards::open(path("runs/" + name + dump + "/checkpoint"), "optimizer");
    ASSERT_TRUE(state.ok()) << state.status().message();
    num_within_step += state->read_i64("run/mini_batches_done").value() > 0 ? 1 : 0;
  }
  EXPECT_GE(num_within_step, 1);
}

TEST_F(Ppo, AnAdapterTrainsBesideACriticThatIsOneToo) {
  train("sft", "base");
  const std::string options = kPpo + kNoEvaluation + "--set model.init=null --set model.path=" +
                              path("runs/base/checkpoints/latest") +
                              " --set lora.rank=4 --set run.checkpoint_every=1 ";
  train("train", "run", options);
  const std::string folder = path("runs/run/checkpoints/step_6/");
  EXPECT_TRUE(fs::exists(folder + "adapter_model.safetensors"));
  EXPECT_TRUE(fs::exists(folder + "critic/adapter_model.safetensors"));
  EXPECT_FALSE(fs::exists(folder + "critic/model.safetensors"));
  train("train", "two", options, test::mpirun(2));
  EXPECT_EQ(state("two"), state("run"));
  fs::remove_all(path("runs/two/checkpoints/step_6"));
  EXPECT_THAT(train("train", "two", options + "--resume"), HasSubstr("after step 5"));
  EXPECT_EQ(state("two"), state("run"));
  EXPECT_GT(metrics("run")[5]["critic/grad_norm"], 0.0);
}

TEST_F(Ppo, SaysWhatIsWrong) {
  for (const std::string dry : {"", "--dry-run "}) {
    EXPECT_THAT(message(kPpo + dry + "--set trainer.critic.path=tests/golden/tiny_models/qwen2"),
                HasSubstr("gradus: error: trainer.critic.path: the model in "
                          "tests/golden/tiny_models/qwen2 has a vocabulary of "));
    EXPECT_THAT(message(kPpo + dry + "--set trainer.critic.path=nowhere"),
                HasSubstr("gradus: error: trainer.critic.path: nowhere"));
    EXPECT_THAT(message(dry + "--set trainer.critic.path=nowhere"),
                HasSubstr("trainer.critic is set but trainer.algorithm.advantage is grpo"));
  }
  train("train", "short", kNoEvaluation + kPpo + "--set trainer.num_steps=2");
  EXPECT_THAT(message(kPpo +
                      "--set model.init.architecture.max_position_embeddings=128 "
                      "--set trainer.critic.path=" +
                      path("runs/short/checkpoints/latest/critic")),
              HasSubstr("has a context of 96, the policy one of 128; name a model with one at "
                        "least as long"));
  // A checkpoint without critic, and one with.
  train("train", "grpo", kNoEvaluation + "--set trainer.num_steps=2");
  test::RunOutcome outcome = call(arguments("train", "grpo", kPpo + "--resume"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages,
              HasSubstr("/checkpoints/step_2: the checkpoint holds no critic, this run trains one "
                        "(trainer.algorithm.advantage); resume with the configuration that the run "
                        "was started with\n"));
  outcome = call(arguments("train", "short", "--resume"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("the checkpoint holds a critic, this run trains none"));
}

TEST_F(Ppo, TheMemoryPlanCountsTheCritic) {
  // 7M weights, and as many of the critic, so that arrays dominate.
  const std::string big =
      kPpo + kNoEvaluation +
      "--set model.init.architecture.hidden_size=512 "
      "--set model.init.architecture.intermediate_size=1024 "
      "--set model.init.architecture.num_layers=3 --set model.init.architecture.num_heads=8 "
      "--set trainer.num_steps=1 --set trainer.mini_batches=1 ";
  const std::string messages = train("train", "run", big);
  std::smatch match;
  ASSERT_TRUE(std::regex_search(messages, match,
                                std::regex("peak memory (\\d+) MiB \\(planned (\\d+) MiB\\)")))
      << messages;
  const double peak = std::stod(match[1]), planned = std::stod(match[2]);
  EXPECT_GT(peak, 0.9 * planned) << match[0];
  EXPECT_LT(peak, 1.1 * planned) << match[0];
  EXPECT_EQ(call(arguments("train", "plan", big + "--dry-run")).exit_code, 0);
  const std::string plan = test::read_file(path("output"));
  EXPECT_THAT(plan, HasSubstr(" " + match[2].str() + " MiB at the peak, per rank\n"));
  EXPECT_THAT(plan, HasSubstr("\n  critic: weights "));
}

}  // namespace
}  // namespace gradus
