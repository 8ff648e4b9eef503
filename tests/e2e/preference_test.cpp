// SPDX-License-Identifier: Apache-2.0
// `gradus dpo`, `gradus reward-model` and `gradus score` as their users run them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Preference : public test::TinyRun {
 protected:
  std::string latest(const std::string& name) const {
    return path("runs/" + name + "/checkpoints/latest");
  }
};

const std::vector<std::string> kCommands = {"dpo", "reward-model"};

TEST_F(Preference, RanksAndResumesChangeNeitherWeightsNorMetrics) {
  for (const std::string& command : kCommands) {
    EXPECT_THAT(train(command, command), HasSubstr("step 6/6"));
    const std::vector<json> expected = metrics(command);
    ASSERT_EQ(expected.size(), 7u) << "the evaluation before training and six steps";
    for (const int ranks : {2, 4}) {
      const std::string name = command + std::to_string(ranks);
      train(command, name, "", test::mpirun(ranks));
      EXPECT_EQ(state(name), state(command)) << name;
      const std::vector<json> rows = metrics(name);
      ASSERT_EQ(rows.size(), expected.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        for (const auto& [key, value] : expected[i].items()) {
          const double want = value, got = rows[i][key];
          EXPECT_NEAR(got, want, 1e-12 * (1 + std::fabs(want))) << name << ", " << i << ", " << key;
        }
      }
    }
    train(command, command + "_cut",
          "--set " + std::string(command == "dpo" ? "dpo" : "reward_model") +
              ".micro_batch_tokens=16 ");
    EXPECT_EQ(state(command + "_cut"), state(command)) << "micro-batches of one pair";
    // Back to step 4, by taking the checkpoint of step 6 away.
    fs::remove_all(path("runs/" + command + "2/checkpoints/step_6"));
    EXPECT_THAT(train(command, command + "2", "--resume"), HasSubstr("after step 4"));
    EXPECT_EQ(state(command + "2"), state(command));
    EXPECT_EQ(metrics(command + "2").size(), expected.size());
  }
}

TEST_F(Preference, DpoStartsAtTheReferenceAndLeavesIt) {
  train("dpo", "a");
  const std::vector<json> rows = metrics("a");
  // Policy and reference are the same at first: every log-ratio is 0, the loss log 2.
  EXPECT_NEAR(rows[0]["val/loss"].get<double>(), std::log(2.0), 1e-12);
  EXPECT_EQ(rows[0]["val/rewards/chosen"], 0.0);
  EXPECT_NEAR(rows[1]["train/loss"].get<double>(), std::log(2.0), 1e-12);
  EXPECT_EQ(rows[1]["rewards/accuracies"], 0.0);
  EXPECT_LT(rows[1]["logps/chosen"].get<double>(), 0.0);
  EXPECT_LT(rows[6]["train/loss"].get<double>(), rows[1]["train/loss"].get<double>());
  EXPECT_GT(rows[6]["rewards/margins"].get<double>(), 0.0);
  // The same model as a path is the same reference; what was learned is another.
  const std::string from_a = "--set model.init=null --set model.path=" + latest("a") + " ";
  train("dpo", "b", from_a);
  train("dpo", "c", from_a + "--set dpo.reference_path=" + latest("a"));
  EXPECT_EQ(state("b"), state("c"));
  train("sft", "other", "--set run.seed=9");
  train("dpo", "d", from_a + "--set dpo.reference_path=" + latest("other"));
  EXPECT_NE(state("b"), state("d"));
  EXPECT_GT(std::fabs(metrics("d")[0]["val/loss"].get<double>() - std::log(2.0)), 1e-4);
}

TEST_F(Preference, EveryLossOfDpoMovesTheWeightsItsOwnWay) {
  std::set<std::string> states;
  const std::vector<std::string> options = {"",
                                            "--set dpo.loss_type=hinge",
                                            "--set dpo.loss_type=ipo",
                                            "--set dpo.label_smoothing=0.1",
                                            "--set dpo.beta=0.5",
                                            "--set dpo.sft_coef=0.5"};
  for (size_t i = 0; i < options.size(); ++i) {
    const std::string name = "dpo" + std::to_string(i);
    train("dpo", name, options[i]);
    states.insert(state(name));
    const json last = metrics(name)[6];
    if (i < 5) {
      EXPECT_GT(last["rewards/margins"].get<double>(), 0.0) << options[i];
    } else {
      EXPECT_GT(last["logps/chosen"].get<double>(),
                metrics("dpo0")[6]["logps/chosen"].get<double>());
    }
  }
  EXPECT_EQ(states.size(), options.size());
}

// Sorting two digits, the right answer against that of another problem.
const std::string kSorting =
    "--set 'data.train={task: number_sorting, num_rows: 4000, task_options: {style: compact, "
    "count: \"2\", digits: \"1\", solution: answer, split: train}}' "
    "--set 'data.eval={task: number_sorting, num_rows: 200, task_options: {style: compact, "
    "count: \"2\", digits: \"1\", solution: answer, split: heldout}}' ";

TEST_F(Preference, DpoRaisesHeldOutAccuracyAndTheChosenResponse) {
  train("sft", "sft", kSorting + "--set sft.num_steps=60 --set sft.learning_rate=5e-3");
  train("dpo", "dpo",
        kSorting + "--set model.init=null --set model.path=" + latest("sft") +
            " --set dpo.num_steps=40 --set dpo.batch_pairs=32 --set dpo.sft_coef=1 "
            "--set dpo.beta=0.3 --set eval.every_steps=40");
  const std::vector<json> rows = metrics("dpo");
  EXPECT_GT(rows.back()["val/rewards/accuracies"].get<double>(), 0.8);
  EXPECT_GT(rows.back()["val/logps/chosen"].get<double>(),
            rows.front()["val/logps/chosen"].get<double>());
}

// From scratch to telling the right answer from that of another problem.
TEST_F(Preference, ARewardModelLearnsToTellRightFromWrongAndScoresRows) {
  const std::string options =
      kSorting +
      "--set model.init.architecture.hidden_size=64 --set model.init.architecture.num_heads=4 "
      "--set model.init.architecture.num_kv_heads=4 --set reward_model.batch_pairs=32 "
      "--set reward_model.num_steps=250 --set reward_model.learning_rate=5e-3 "
      "--set reward_model.warmup_steps=20 --set eval.every_steps=50 "
      "--set run.checkpoint_every=0 ";
  train("reward-model", "rm", options);
  const std::vector<json> rows = metrics("rm");
  const double before = rows[0]["val/rewards/accuracies"];
  const double after = rows.back()["val/rewards/accuracies"];
  EXPECT_LT(before, 0.7);
  EXPECT_GT(after, 0.85);
  // The same pairs from a file, scored by the command.
  const std::string pairs = path("pairs.jsonl");
  EXPECT_EQ(call("data make number_sorting --pairs --num 200 --seed 1 --option style=compact "
                 "--option count=2 --option digits=1 --option solution=answer --option "
                 "split=heldout --out " +
                 pairs)
                .exit_code,
            0);
  const test::RunOutcome scored =
      call("score --pairs --model " + latest("rm") + " --input " + pairs);
  EXPECT_EQ(scored.exit_code, 0) << scored.messages;
  EXPECT_EQ(scored.messages, std::to_string(std::lround(after * 200)) +
                                 " of 200 pairs have the higher score on the chosen response\n");
  const std::vector<json> scores = test::json_rows(test::read_file(path("output")));
  ASSERT_EQ(scores.size(), 200u);
  // One row by its text: prompt, response, end token.
  const json pair = test::json_rows(test::read_file(pairs))[0];
  std::vector<int> ids;
  for (const char c : pair["prompt"].get<std::string>() + pair["chosen"].get<std::string>()) {
    ids.push_back(c);
  }
  ids.push_back(256);
  test::write_file(path("rows.jsonl"), json{{"ids", ids}}.dump() + "\n");
  EXPECT_EQ(call("score --model " + latest("rm") + " --input " + path("rows.jsonl")).exit_code, 0);
  EXPECT_EQ(test::json_rows(test::read_file(path("output")))[0]["score"], scores[0]["chosen"]);
}

// A reward model as a part of the reward of reinforcement learning.
TEST_F(Preference, ARewardModelRewardsAPolicyWithItsScores) {
  train("reward-model", "rm");
  const std::string part = "{name: reward_model, options: {path: " + latest("rm") + "}}";
  const std::string options =
      "--set 'reward.parts=[{name: format, weight: 0, options: {pattern: "
      "\"(?s).*[A-Z].*\"}}, " +
      part + "]' ";
  train("train", "run", options);
  for (const json& row : metrics("run")) {
    if (row["step"] == 0) continue;
    EXPECT_EQ(row["reward/reward_model/failed_fraction"], 0.0);
    EXPECT_EQ(row["reward/reward_model/mean"], row["critic/score/mean"]);
    EXPECT_GT(row["actor/grad_norm"], 0.0);
  }
  for (const int ranks : {2, 4}) {
    const std::string name = "run" + std::to_string(ranks);
    train("train", name, options, test::mpirun(ranks));
    EXPECT_TRUE(state(name) == state("run")) << name;
  }
  // Threads that score while others are sampled change nothing.
  train("train", "threads", options + "--set reward.threads=3 --set rollout.max_batch=3");
  EXPECT_TRUE(state("threads") == state("run"));
  // The recorded scores are those of the command.
  const std::vector<json> rollouts =
      test::json_rows(test::read_file(path("runs/run/rollouts/step_1.jsonl")));
  std::string rows;
  for (const json& rollout : rollouts) {
    rows += json{{"text",
                  rollout["prompt"].get<std::string>() + rollout["response"].get<std::string>()}}
                .dump() +
            "\n";
  }
  test::write_file(path("rows.jsonl"), rows);
  EXPECT_EQ(call("score --model " + latest("rm") + " --input " + path("rows.jsonl")).exit_code, 0);
  const std::vector<json> scores = test::json_rows(test::read_file(path("output")));
  int num_cut_off = 0;
  for (size_t i = 0; i < rollouts.size(); ++i) {
    // Behind a response that has ended stands the end token.
    const bool is_cut_off = rollouts[i]["finish_reason"] == "length";
    const float rewarded = rollouts[i]["parts"][1]["raw"], scored = scores[i]["score"];
    EXPECT_EQ(rewarded == scored, is_cut_off) << i;
    num_cut_off += is_cut_off ? 1 : 0;
  }
  EXPECT_GE(num_cut_off, 20);
  const test::RunOutcome none = call(arguments(
      "train", "none", "--set 'reward.parts=[{name: reward_model, options: {path: nowhere}}]'"));
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_THAT(none.messages,
              HasSubstr("reward.parts[0].options: reward reward_model: path: nowhere"));
  EXPECT_EQ(call(arguments("train", "plan", options + "--dry-run")).exit_code, 0);
  EXPECT_THAT(test::read_file(path("output")), HasSubstr("\n  reward models "));
}

TEST_F(Preference, ARewardModelIsNotAskedForText) {
  train("reward-model", "rm");
  train("sft", "sft");
  test::write_file(path("rows.jsonl"), "{\"text\": \"1+2=\"}\n");
  const auto message = [&](const std::string& arguments) {
    const test::RunOutcome outcome = call(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments << ": " << outcome.messages;
    return outcome.messages;
  };
  const std::string is_no_text =
      ": the model (LlamaForSequenceClassification) gives a score, not text; name a causal "
      "language model, or ask it with gradus score\n";
  const std::string rows = " --input " + path("rows.jsonl");
  EXPECT_EQ(message("generate --model " + latest("rm") + rows),
            "gradus: error: " + latest("rm") + is_no_text);
  EXPECT_THAT(message("logprobs --model " + latest("rm") + rows), HasSubstr(is_no_text));
  for (const std::string command : {"train", "sft", "dpo"}) {
    for (const std::string dry : {"", "--dry-run"}) {
      EXPECT_THAT(
          message(arguments(command, "x",
                            "--set model.init=null --set model.path=" + latest("rm") + " " + dry)),
          HasSubstr(is_no_text))
          << command << dry;
    }
  }
  EXPECT_THAT(message("score --model " + latest("sft") + rows),
              HasSubstr(": the model (LlamaForCausalLM) gives text, not a score; name a reward "
                        "model, as gradus reward-model writes it\n"));
  test::write_file(
      path("chat.jsonl"),
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})");
  EXPECT_THAT(message("score --model " + latest("rm") + " --input " + path("chat.jsonl")),
              HasSubstr("chat.jsonl:1: " + latest("rm") + ": the model has no chat template"));
  // A reward model is trained on from where it is, and a language model becomes one.
  train("reward-model", "rm2", "--set model.init=null --set model.path=" + latest("rm"));
  train("reward-model", "rm3", "--set model.init=null --set model.path=" + latest("sft"));
}

TEST_F(Preference, SaysWhatIsWrong) {
  const auto message = [&](const std::string& command, const std::string& options) {
    const test::RunOutcome outcome = call(arguments(command, "bad", options));
    EXPECT_EQ(outcome.exit_code, 2) << options << ": " << outcome.messages;
    return outcome.messages;
  };
  test::write_file(path("pairs.jsonl"), "{\"prompt\":\"1+2=\",\"chosen\":\"3\"}\n");
  const std::string files =
      "--set data.train.task=\"''\" --set data.train.task_options={} --set data.train.files=[" +
      path("pairs.jsonl") + "] ";
  for (const std::string& command : kCommands) {
    for (const std::string dry : {"", "--dry-run"}) {
      EXPECT_THAT(message(command, files + dry),
                  HasSubstr("pairs.jsonl:1: rejected: is missing; "));
    }
  }
  EXPECT_THAT(message("dpo", "--set dpo.num_steps=0"),
              HasSubstr("dpo.num_steps is 0; say how many updates to make"));
  EXPECT_THAT(message("dpo", "--set dpo.loss_type=ipo --set dpo.label_smoothing=0.1"),
              HasSubstr("dpo.label_smoothing is 0.1 but dpo.loss_type is ipo, which has none"));
  EXPECT_THAT(message("dpo", "--set dpo.loss_type=sigmoit"),
              HasSubstr("dpo.loss_type=sigmoit: must be one of sigmoid, hinge, ipo; did you mean "
                        "'sigmoid'?"));
  EXPECT_THAT(
      message("dpo", "--set dpo.reference_path=tests/golden/tiny_models/qwen2"),
      HasSubstr("dpo.reference_path: the model in tests/golden/tiny_models/qwen2 differs in "
                "its shape from the one that is trained"));
  EXPECT_THAT(message("reward-model", "--set model.init.architecture.max_position_embeddings=8"),
              HasSubstr("prompt and response have "));
}

// With such a beta the slopes are finite and the gradient is not.
TEST_F(Preference, TheThirdUpdateInARowThatIsNotFiniteEndsTheRun) {
  const test::RunOutcome failed = call(arguments("dpo", "run", "--set dpo.beta=3e38"));
  EXPECT_EQ(failed.exit_code, 2) << failed.messages;
  for (const int step : {1, 2, 3}) {
    EXPECT_THAT(failed.messages,
                HasSubstr("update skipped: step " + std::to_string(step) + ": update 1: "));
  }
  EXPECT_THAT(failed.messages, HasSubstr("gradus: error: step 3: update 1: "));
  EXPECT_THAT(failed.messages, HasSubstr("; this was the update number 3 in a row\n"));
  const std::vector<json> rows = metrics("run");
  ASSERT_EQ(rows.size(), 3u) << "the evaluation before training and the steps before the last";
  for (size_t i = 1; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["training/nonfinite_updates"], 1);
    EXPECT_FALSE(rows[i].contains("train/loss")) << rows[i];
  }
}

TEST_F(Preference, ADryRunPrintsThePlan) {
  for (const std::string& command : kCommands) {
    const test::RunOutcome outcome = call(arguments(command, "run", "--dry-run"));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    const std::string plan = test::read_file(path("output"));
    EXPECT_THAT(plan, HasSubstr("data       40 pairs looked at, 0 with a prompt too long\n"));
    EXPECT_THAT(plan, HasSubstr("run        6 steps of 16 pairs into "));
    EXPECT_THAT(plan, HasSubstr(" MiB at the peak, per rank\n"));
    EXPECT_FALSE(fs::exists(path("runs")));
  }
}

}  // namespace
}  // namespace gradus
