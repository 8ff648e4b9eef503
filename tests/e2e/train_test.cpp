// SPDX-License-Identifier: Apache-2.0
// `gradus train` and `gradus sft` as their users run them: repeated, stopped, killed, resumed, on
// several ranks, with broken input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

class Train : public test::TinyRun {};

const std::vector<std::string> kCommands = {"train", "sft"};
// Long enough to be caught in the middle: some 10 ms a step, with its checkpoint.
const std::string kLong =
    "--set trainer.num_steps=60 --set sft.num_steps=60 --set eval.every_steps=0 "
    "--set run.checkpoint_every=6 ";

TEST_F(Train, RepeatsWeightsAndMetricsBitForBit) {
  for (const std::string& command : kCommands) {
    const std::string messages = train(command, command + "_a");
    EXPECT_THAT(messages, HasSubstr("step 6/6"));
    EXPECT_THAT(messages, HasSubstr("the run is in " + path("runs/" + command + "_a")));
    EXPECT_EQ(test::read_file(path("output")), "") << "nothing on standard output";
    train(command, command + "_b");
    EXPECT_EQ(state(command + "_a"), state(command + "_b"));
    EXPECT_EQ(metrics(command + "_a"), metrics(command + "_b"));
    train(command, command + "_c", "--set run.seed=4");
    EXPECT_NE(state(command + "_a"), state(command + "_c"));
  }
  const std::vector<json> rows = metrics("train_a");
  ASSERT_EQ(rows.size(), 7u) << "the evaluation before training and six steps";
  EXPECT_EQ(rows[0]["val-aux/chain_sum/num_problems"], 12);
  for (size_t step = 1; step < rows.size(); ++step) {
    EXPECT_EQ(rows[step]["step"], step);
    EXPECT_EQ(rows[step]["mismatch/max_abs_logprob"], 0.0) << rows[step];
    EXPECT_EQ(rows[step].contains("val-core/chain_sum/acc/mean@2"), step % 3 == 0) << step;
  }
  // The loss of supervised training falls.
  const std::vector<json> sft = metrics("sft_a");
  ASSERT_EQ(sft.size(), 7u) << "the evaluation before training and six steps";
  EXPECT_LT(sft.back()["train/loss"].get<double>(), sft[1]["train/loss"].get<double>());
}

// val/loss is the mean negative log-prob of data.eval's responses: a run whose training batch is
// those rows says the same as its train/loss of the next step, which is taken before the update.
TEST_F(Train, HeldOutLossIsTheTrainingLossOfThoseRows) {
  const std::string rows = path("rows.jsonl");
  EXPECT_EQ(shell(std::string(GRADUS_BINARY) +
                  " data make chain_sum --num 12 --seed 1 --option style=compact > " + rows)
                .exit_code,
            0);
  const auto from_file = [&](const std::string& source) {
    return "--set 'data." + source + ".task=\"\"' --set data." + source +
           ".task_options={} --set data." + source + ".num_rows=0 --set 'data." + source +
           ".files=[" + rows + "]' ";
  };
  const std::string files = from_file("train") + from_file("eval") +
                            "--set sft.batch_rows=12 --set sft.num_steps=5 "
                            "--set eval.every_steps=2 --set data.shuffle=false ";
  for (const int ranks : {1, 2}) {
    const std::string name = "sft" + std::to_string(ranks);
    train("sft", name, files, ranks == 1 ? "" : test::mpirun(ranks));
    const std::vector<json> steps = metrics(name);
    ASSERT_EQ(steps.size(), 6u);
    for (size_t step = 0; step < steps.size(); ++step) {
      const bool is_evaluated = step == 0 || step == 2 || step == 4 || step == 5;
      ASSERT_EQ(steps[step].contains("val/loss"), is_evaluated) << step;
      if (!is_evaluated || step == 5) continue;
      const double next = steps[step + 1]["train/loss"];
      EXPECT_NEAR(steps[step]["val/loss"].get<double>(), next, 1e-12 * (1 + next)) << step;
    }
    EXPECT_LT(steps[5]["val/loss"].get<double>(), steps[0]["val/loss"].get<double>());
  }
  // With the average, the held-out loss is that of the model in ema/.
  train("sft", "average", files + "--set sft.ema_decay=0.9");
  EXPECT_NE(metrics("average")[2]["val/loss"], metrics("sft1")[2]["val/loss"]);
  EXPECT_EQ(metrics("average")[5]["train/loss"], metrics("sft1")[5]["train/loss"]);
  // Held-out rows need responses.
  test::write_file(rows, "{\"data_source\": \"a\", \"prompt\": \"1\", \"answer\": \"2\"}\n");
  const test::RunOutcome outcome = call(arguments("sft", "bad", from_file("eval")));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("data.eval: " + rows + ":1: response: is missing"));
}

TEST_F(Train, ResourcesChangeNeitherWeightsNorMetrics) {
  train("train", "a");
  train("train", "b",
        "--set rollout.max_batch=3 --set rollout.kv_cache_mib=1 "
        "--set rollout.prefill_chunk_tokens=2 --set trainer.micro_batch_tokens=2000 "
        "--set trainer.gradient_checkpointing=true");
  EXPECT_EQ(state("a"), state("b"));
  EXPECT_EQ(metrics("a"), metrics("b"));
}

TEST_F(Train, RanksChangeNeitherWeightsNorMetrics) {
  for (const std::string& command : kCommands) {
    train(command, command + "1");
    for (const int ranks : {2, 4}) {
      const std::string name = command + std::to_string(ranks);
      const std::string messages = train(command, name, "", test::mpirun(ranks));
      EXPECT_EQ(state(name), state(command + "1")) << name;
      // Supervised sums over ranks are added in another order than over one rank's tokens.
      const std::vector<json> rows = metrics(name), expected = metrics(command + "1");
      ASSERT_EQ(rows.size(), expected.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ(rows[i].size(), expected[i].size());
        for (const auto& [key, value] : expected[i].items()) {
          const double want = value, got = rows[i][key];
          const double tolerance = command == "train" ? 0 : 1e-12 * (1 + std::fabs(want));
          EXPECT_NEAR(got, want, tolerance) << name << ", " << i << ", " << key;
        }
      }
    }
  }
  for (const json& row : metrics("train2")) {
    if (row["step"] != 0) {
      EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0);
    }
  }
}

TEST_F(Train, EveryAlgorithmAndTermIsTheSameOnRanksAndAfterAResume) {
  const std::map<std::string, std::string> options = {
      {"kl", "--set trainer.algorithm.kl.coef=0.2 --set trainer.algorithm.kl.kind=k3 "},
      {"entropy", "--set trainer.entropy_coef=0.02 --set trainer.overlong_buffer_tokens=6 "},
      {"dynamic", "--set trainer.dynamic_sampling=true "},
      {"reward_kl",
       "--set 'trainer.algorithm={name: rloo, kl: {coef: 0.1, controller: adaptive, target: 0.01, "
       "horizon: 200}}' "},
      {"returns",
       "--set 'trainer.algorithm={name: reinforce_pp, gamma: 0.9, mask_truncated: true}' "},
      {"remax", "--set trainer.algorithm=remax "},
      {"whole_batch",
       "--set 'trainer.algorithm={loss: clip_cov, covariance: {fraction: 0.05, low: 0}, "
       "top_entropy_quantile: 0.5}' "},
      {"bypass",
       "--set 'trainer.algorithm={name: reinforce, opsm_threshold: 0.0001, correction: {kind: "
       "bypass, "
       "normalize: true}}' "},
      {"reinforce",
       "--set trainer.algorithm=reinforce --set trainer.lr_schedule=cosine "
       "--set trainer.warmup_steps=3 "}};
  std::set<std::string> states;
  for (const auto& [name, option] : options) {
    train("train", name, option);
    states.insert(state(name));
    train("train", name + "2", option, test::mpirun(2));
    EXPECT_EQ(state(name + "2"), state(name)) << name;
    // Back to step 4, by taking the checkpoint of step 6 away.
    fs::remove_all(path("runs/" + name + "2/checkpoints/step_6"));
    EXPECT_THAT(train("train", name + "2", option + "--resume"), HasSubstr("after step 4"));
    EXPECT_EQ(state(name + "2"), state(name)) << name;
    EXPECT_EQ(metrics(name + "2").size(), metrics(name).size());
  }
  EXPECT_EQ(states.size(), options.size()) << "each option changes what is learned";
}

TEST_F(Train, MuonAndTheAverageAreTheSameOnRanksAndAfterAResume) {
  for (const std::string& command : kCommands) {
    const std::string section = command == "train" ? "trainer" : "sft", set = "--set " + section;
    const std::string option =
        set + ".optimizer=muon " + set + ".muon_learning_rate=0.01 " + set + ".ema_decay=0.9 ";
    const std::string name = command + "_muon", resumed = command + "_resumed";
    train(command, name, option);
    train(command, resumed, option, test::mpirun(2));
    EXPECT_EQ(state(resumed), state(name));
    fs::remove_all(path("runs/" + resumed + "/checkpoints/step_6"));
    EXPECT_THAT(train(command, resumed, option + "--resume"), HasSubstr("after step 4"));
    EXPECT_EQ(state(resumed), state(name));
    EXPECT_EQ(metrics(resumed).size(), metrics(name).size());
    const test::RunOutcome other = call(arguments(
        command, resumed,
        "--resume --set " + section + ".ema_decay=0 --set " + section + ".optimizer=muon"));
    EXPECT_EQ(other.exit_code, 2);
    EXPECT_THAT(other.messages,
                HasSubstr("/checkpoints/step_6: the checkpoint has a running average "
                          "of the weights, but ema_decay is 0; resume with the "
                          "ema_decay that the run was started with"));
  }
  // It learns: 5.5 nats at the start, uniform over the 257 tokens; 1.4 after 40 steps, and 2.6 with
  // Muon's rate next to 0 or with AdamW alone.
  train("sft", "learns",
        "--set sft.optimizer=muon --set sft.muon_learning_rate=0.05 "
        "--set sft.learning_rate=1e-2 --set sft.num_steps=40 "
        "--set run.checkpoint_every=0 --set eval.every_steps=0 ");
  const std::vector<json> rows = metrics("learns");
  EXPECT_GT(rows[1]["train/loss"].get<double>(), 5.0);
  EXPECT_LT(rows.back()["train/loss"].get<double>(), 2.0);
  // The average is a model of its own.
  const std::string average = path("runs/sft_muon/checkpoints/latest/ema");
  EXPECT_EQ(call("generate --model " + average + " --prompts " + path("prompts.jsonl") +
                     " --greedy --max-new-tokens 2",
                 "echo '{\"text\": \"1+1\"}' > " + path("prompts.jsonl") + "; ")
                .exit_code,
            0);
}

TEST_F(Train, CorrectionsActOnResponsesOfEarlierWeights) {
  const std::string async =
      "--set cluster.mode=async --set cluster.rollout_ranks=1 --set trainer.learning_rate=1e-2 "
      "--set trainer.algorithm=";
  std::set<std::string> states;
  for (const std::string algorithm :
       {"grpo", "m2po", "'{correction: {kind: tis_token, high: 1.01}}'",
        "'{correction: {kind: geometric}}'"}) {
    const std::string name = "run" + std::to_string(states.size());
    train("train", name, async + algorithm, test::mpirun(2));
    states.insert(state(name));
    // The second step's responses are of the weights before the first update.
    const json row = metrics(name).at(2);
    EXPECT_GT(row["rollout/policy_lag"], 0) << algorithm;
    EXPECT_EQ(row.contains("rollout_corr/k3_kl"), algorithm != "grpo") << algorithm;
    if (algorithm != "grpo") {
      EXPECT_GT(row["rollout_corr/k3_kl"], 0.0) << algorithm;
    }
    // Another trainer changes nothing.
    train("train", name + "_3", async + algorithm, test::mpirun(3));
    EXPECT_EQ(state(name + "_3"), state(name)) << algorithm;
  }
  EXPECT_EQ(states.size(), 4u) << "each changes what is learned";
}

TEST_F(Train, EveryPresetTrains) {
  const std::string output =
      test::run_command(std::string(GRADUS_BINARY) + " inspect loss --algorithm none 2>&1").output;
  const size_t begin = output.find("known: ") + 7;
  std::stringstream names(output.substr(begin, output.find('\n') - begin));
  std::set<std::string> states;
  int count = 0;
  const std::string quick =
      "--set trainer.num_steps=2 --set eval.every_steps=0 --set eval.before_training=false "
      "--set trainer.algorithm=";
  for (std::string name; std::getline(names >> std::ws, name, ',');) {
    train("train", name, quick + name);
    for (const json& row : metrics(name)) {
      EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0) << name;
      EXPECT_GT(row["actor/grad_norm"], 0.0) << name;
      EXPECT_LE(row["actor/ratio_min"], 1.0) << name;
    }
    states.insert(state(name));
    ++count;
  }
  EXPECT_EQ(count, 20);
  // The first of two updates is the same for losses that agree at r = 1; the second tells most
  // apart.
  EXPECT_GT(states.size(), 12u);
}

TEST_F(Train, AKilledRunResumesToTheSameWeights) {
  for (const std::string& command : kCommands) {
    train(command, command, kLong);
    const std::string name = command + "_killed";
    const test::RunOutcome killed = interrupt(arguments(command, name, kLong), name, "KILL", 14);
    EXPECT_EQ(killed.exit_code, 128 + 9) << killed.messages;
    EXPECT_LT(metrics(name).size(), metrics(command).size()) << "killed too late";
    const std::string messages = train(command, name, kLong + "--resume");
    EXPECT_THAT(messages, HasSubstr("resumed from " + path("runs/" + name + "/checkpoints/step_")));
    EXPECT_EQ(state(name), state(command));
    EXPECT_EQ(metrics(name), metrics(command)) << "each step stands there once";
  }
}

TEST_F(Train, ARunKilledBeforeItsFirstCheckpointStartsAgain) {
  train("train", "whole", kLong);
  const std::string options = kLong + "--set run.checkpoint_every=100 ";
  interrupt(arguments("train", "killed", options), "killed", "KILL", 3);
  EXPECT_FALSE(fs::exists(path("runs/killed/checkpoints/latest")));
  train("train", "killed", options + "--resume");
  EXPECT_EQ(state("killed"), state("whole"));
  EXPECT_EQ(metrics("killed"), metrics("whole"));
}

TEST_F(Train, AStopSignalEndsAfterTheStepWithACheckpoint) {
  train("train", "whole", kLong);
  train("sft", "sft_whole", kLong);
  const std::vector<std::vector<std::string>> cases = {
      {"train", "TERM", "whole"}, {"train", "INT", "whole"}, {"sft", "TERM", "sft_whole"}};
  for (const std::vector<std::string>& c : cases) {
    const std::string name = c[0] + "_" + c[1];
    const test::RunOutcome stopped = interrupt(arguments(c[0], name, kLong), name, c[1], 10);
    EXPECT_EQ(stopped.exit_code, 0) << stopped.messages;
    std::smatch match;
    ASSERT_TRUE(std::regex_search(
        stopped.messages, match,
        std::regex("stopped after step (\\d+) of 60; a checkpoint was written: continue with "
                   "--resume\n")))
        << stopped.messages;
    EXPECT_EQ(metrics(name).back()["step"], std::stoi(match[1])) << "the step is whole";
    EXPECT_TRUE(fs::exists(path("runs/" + name + "/checkpoints/step_" + match[1].str())));
    train(c[0], name, kLong + "--resume");
    EXPECT_EQ(state(name), state(c[2]));
    EXPECT_EQ(metrics(name), metrics(c[2]));
  }
}

TEST_F(Train, ASecondStopSignalEndsAtOnceAndLeavesAWholeCheckpoint) {
  // One step takes seconds, so that the second signal finds the first one waiting.
  const std::string slow =
      "--set trainer.num_steps=60 --set eval.before_training=false --set eval.every_steps=0 "
      "--set run.checkpoint_every=1 ";
  train("train", "run", slow + "--set trainer.num_steps=1");
  const std::string before = state("run");
  const std::string big = "--set rollout.num_samples=16000 --set rollout.max_batch=64 --resume";
  const test::RunOutcome outcome =
      shell(std::string(GRADUS_BINARY) + " " + arguments("train", "run", slow + big) +
            " & pid=$!\nwhile kill -0 $pid 2>/dev/null && ! grep -q resumed " + path("messages") +
            "; do sleep 0.01; done\nkill -INT $pid; sleep 0.3; kill -INT $pid; wait $pid");
  EXPECT_EQ(outcome.exit_code, 130) << outcome.messages;
  EXPECT_EQ(state("run"), before);
}

TEST_F(Train, RanksStopTogether) {
  const std::string options = "--set trainer.num_steps=2000 --set eval.every_steps=0 ";
  const test::RunOutcome stopped =
      interrupt(arguments("train", "two", options), "two", "USR1", 5, test::mpirun(2));
  EXPECT_EQ(stopped.exit_code, 0) << stopped.messages;
  EXPECT_THAT(stopped.messages, HasSubstr(" of 2000; a checkpoint was written"));
  const int step = metrics("two").back()["step"];
  EXPECT_TRUE(fs::exists(path("runs/two/checkpoints/step_" + std::to_string(step))));
  // One rank continues what two began.
  const std::string more =
      "--set trainer.num_steps=" + std::to_string(step + 2) + " --set eval.every_steps=0 ";
  train("train", "two", more + "--resume");
  train("train", "one", more);
  EXPECT_EQ(state("two"), state("one"));
}

TEST_F(Train, AFinishedRunResumesToNothingOrToMoreSteps) {
  for (const std::string& command : kCommands) {
    train(command, command);
    const std::string before = state(command);
    const std::vector<json> rows = metrics(command);
    const std::string section = command == "train" ? "trainer" : "sft";
    EXPECT_THAT(train(command, command, "--resume"),
                HasSubstr("the run has made all of its 6 steps; raise " + section +
                          ".num_steps to train on\n"));
    EXPECT_EQ(state(command), before);
    EXPECT_EQ(metrics(command), rows);
    const std::string more = "--set " + section + ".num_steps=8 ";
    train(command, command, more + "--resume");
    EXPECT_EQ(metrics(command).back()["step"], 8);
    train(command, command + "8", more);
    EXPECT_EQ(state(command), state(command + "8"));
  }
}

TEST_F(Train, KeepsTheBestCheckpointAndMakesAReport) {
  train("train", "run",
        "--set run.keep_checkpoints=1 --set run.checkpoint_every=1 --set trainer.num_steps=8 "
        "--set run.save_best_metric=critic/rewards/mean");
  int best_step = 0;
  double best = -1;
  for (const json& row : metrics("run")) {
    if (row.contains("critic/rewards/mean") && row["critic/rewards/mean"] > best) {
      best = row["critic/rewards/mean"];
      best_step = row["step"];
    }
  }
  const std::string checkpoints = path("runs/run/checkpoints");
  EXPECT_EQ(fs::read_symlink(checkpoints + "/best"), "step_" + std::to_string(best_step));
  EXPECT_EQ(fs::read_symlink(checkpoints + "/latest"), "step_8");
  const test::RunOutcome report = call("report " + path("runs/run"));
  EXPECT_EQ(report.exit_code, 0) << report.messages;
  EXPECT_THAT(test::read_file(path("runs/run/report.html")), HasSubstr("chain_sum"));
  // Every response of a step is in the dump.
  EXPECT_EQ(test::json_rows(test::read_file(path("runs/run/rollouts/step_1.jsonl"))).size(), 32u);
}

// The largest val/loss, since the largest value is what is kept.
TEST_F(Train, SupervisedTrainingKeepsTheBestCheckpointToo) {
  train("sft", "run",
        "--set run.keep_checkpoints=1 --set run.checkpoint_every=1 --set eval.every_steps=1 "
        "--set run.save_best_metric=val/loss");
  int best_step = 0;
  double best = -1;
  for (const json& row : metrics("run")) {
    if (row["step"] == 0 || row["val/loss"] <= best) continue;
    best = row["val/loss"];
    best_step = row["step"];
  }
  EXPECT_EQ(fs::read_symlink(path("runs/run/checkpoints/best")),
            "step_" + std::to_string(best_step));
  EXPECT_EQ(fs::read_symlink(path("runs/run/checkpoints/latest")), "step_6");
  EXPECT_NE(best_step, 6);
}

TEST_F(Train, NeverOverwritesARunAndNeedsOneToResume) {
  for (const std::string& command : kCommands) {
    train(command, command);
    const std::string before = state(command);
    const std::string folder = path("runs/" + command);
    test::RunOutcome outcome = call(arguments(command, command));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_EQ(outcome.messages, "gradus: error: " + folder +
                                    ": a run is already here (metrics up to step 6, checkpoint "
                                    "step_6); continue it with --resume or set another run.name\n");
    EXPECT_EQ(state(command), before);
    outcome = call(arguments(command, "none", "--resume"));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_EQ(outcome.messages, "gradus: error: " + path("runs/none") +
                                    ": no run to resume (no such folder); start it without "
                                    "--resume or check the path\n");
    outcome =
        call(arguments(command, command, "--resume --set model.init.architecture.num_layers=3"));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.messages, HasSubstr("differs from the model of this run; resume with the "
                                            "configuration that the run was started with"));
  }
}

TEST_F(Train, ATruncatedCheckpointIsPassedOver) {
  train("train", "whole");
  const std::string broken = path("runs/whole/checkpoints/step_6/model.safetensors");
  const std::string before = state("whole");
  fs::resize_file(broken, fs::file_size(broken) - 10);
  const std::string messages = train("train", "whole", "--resume");
  EXPECT_THAT(messages, HasSubstr(path("runs/whole/checkpoints/step_6")));
  EXPECT_THAT(messages,
              HasSubstr("resumed from " + path("runs/whole/checkpoints/step_4") + " after step 4"));
  EXPECT_EQ(state("whole"), before);
  // The same for a flipped bit.
  std::string bytes = test::read_file(broken);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  test::write_file(broken, bytes);
  EXPECT_THAT(train("train", "whole", "--resume"), HasSubstr("after step 4"));
  EXPECT_EQ(state("whole"), before);
}

TEST_F(Train, AFullDiskKeepsThePreviousCheckpoint) {
  for (const std::string& command : kCommands) {
    const std::string two = "--set trainer.num_steps=2 --set sft.num_steps=2 ";
    train(command, command, two);
    const std::string before = state(command);
    // No file may grow beyond 64 KiB: smaller than the weights, larger than everything else.
    const test::RunOutcome full =
        call(arguments(command, command, "--resume"), "trap '' XFSZ; ulimit -f 128; ");
    EXPECT_EQ(full.exit_code, 2) << full.messages;
    EXPECT_THAT(full.messages, HasSubstr("/checkpoints/.tmp_step_"));
    EXPECT_THAT(full.messages, HasSubstr("File too large"));
    EXPECT_EQ(state(command), before);
    for (const fs::directory_entry& entry :
         fs::directory_iterator(path("runs/" + command + "/checkpoints"))) {
      EXPECT_TRUE(entry.path().filename() == "step_2" || entry.path().filename() == "latest")
          << entry.path();
    }
    train(command, command, "--resume");
    train(command, command + "_whole");
    EXPECT_EQ(state(command), state(command + "_whole"));
  }
}

TEST_F(Train, WeightsThatBlowUpEndTheRunAndKeepTheCheckpoint) {
  const test::RunOutcome outcome =
      call(arguments("train", "run",
                     "--set trainer.learning_rate=1e30 --set run.checkpoint_every=1 "
                     "--set eval.before_training=false --set eval.every_steps=0"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("gradus: error: step "));
  EXPECT_THAT(outcome.messages, HasSubstr("learning rate"));
}

TEST_F(Train, BrokenWeightsAreNamed) {
  fs::copy("tests/golden/tiny_models/qwen3", path("model"));
  std::string bytes = test::read_file(path("model/model.safetensors"));
  std::fill(bytes.end() - 1024, bytes.end(), '\xFF');
  test::write_file(path("model/model.safetensors"), bytes);
  for (const std::string& command : kCommands) {
    const test::RunOutcome outcome =
        call(arguments(command, "run", "--set model.init=null --set model.path=" + path("model")));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.messages, HasSubstr("values are NaN or infinite; the weights are broken"));
    EXPECT_FALSE(fs::exists(path("runs/run"))) << "nothing is left behind";
  }
}

TEST_F(Train, BadDataIsNamedByFileAndLine) {
  const std::string rows = path("rows.jsonl");
  const auto message = [&](const std::string& text, const std::string& more = "",
                           const std::string& command = "train") {
    test::write_file(rows, text);
    std::string all;
    for (const std::string dry_run : {"", " --dry-run"}) {
      const test::RunOutcome outcome =
          call(arguments(command, "run",
                         "--set 'data.train.task=\"\"' --set data.train.task_options={} --set "
                         "data.train.num_rows=0 "
                         "--set 'data.train.files=[" +
                             rows + "]' " + more + dry_run));
      EXPECT_EQ(outcome.exit_code, 2) << text;
      if (dry_run.empty()) {
        all = outcome.messages;
      } else {
        EXPECT_EQ(outcome.messages, all);
      }
    }
    EXPECT_FALSE(fs::exists(path("runs/run")));
    return all;
  };
  const std::string good =
      R"({"data_source": "sum", "prompt": "1+1=", "reward_model": {"ground_truth": "2"}})"
      "\n";
  EXPECT_EQ(message(""), "gradus: error: " + rows + ": no rows; a data set needs at least one\n");
  EXPECT_THAT(message(good + "{\"prompt\": \n"), HasSubstr("gradus: error: " + rows + ":2: "));
  EXPECT_THAT(message(good + good, "--set data.max_prompt_tokens=3"),
              HasSubstr("all 2 prompts have more than 3 tokens (the longest 4); allow longer "
                        "prompts"));
  EXPECT_THAT(message(good, "--set data.max_prompt_tokens=3 --set data.overlong_prompts=error"),
              HasSubstr(rows + ":1: the prompt has 4 tokens, at most 3 are allowed"));
  EXPECT_THAT(message(good, "", "sft"), HasSubstr(rows + ":1: "));
}

TEST_F(Train, ATemplateThatFailsIsNamedByFileAndLine) {
  fs::copy("tests/golden/tiny_models/qwen3", path("model"));
  const std::string file = path("model/chat_template.jinja");
  const std::string options =
      "--set model.init=null --set model.path=" + path("model") + " --set data.prompt_format=chat ";
  for (const std::string& command : kCommands) {
    for (const std::string dry_run : {"", "--dry-run"}) {
      test::write_file(file, "\n{{ raise_exception('no such role') }}");
      test::RunOutcome outcome = call(arguments(command, "run", options + dry_run));
      EXPECT_EQ(outcome.exit_code, 2);
      EXPECT_THAT(outcome.messages,
                  HasSubstr("template " + file + ":2: raise_exception: no such role\n"));
      test::write_file(file, "{% unknown %}");
      outcome = call(arguments(command, "run", options + dry_run));
      EXPECT_EQ(outcome.exit_code, 2);
      EXPECT_EQ(outcome.messages,
                "gradus: error: template " + file + ":1: unknown tag 'unknown'\n");
    }
  }
}

TEST_F(Train, APromptThatLeavesNoRoomInTheContextIsAnError) {
  for (const std::string dry_run : {"", " --dry-run"}) {
    const test::RunOutcome outcome =
        call(arguments("train", "run",
                       "--set model.init=null --set model.path=tests/golden/tiny_models/qwen3 "
                       "--set rollout.max_new_tokens=4000" +
                           dry_run));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.messages, HasSubstr("with rollout.max_new_tokens (4000) that is beyond "
                                            "the model's context of 512; lower"));
  }
}

TEST_F(Train, AnUnknownAlgorithmIsPlacedAndTheNearestNamed) {
  const test::RunOutcome outcome =
      call(arguments("train", "run", "--set trainer.algorithm=grpoo --dry-run"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.messages,
            "gradus: error: --set trainer.algorithm=grpoo: 'trainer.algorithm.name' must be one of "
            "cispo, dapo, dppo_tv, dr_grpo, gmpo, gpg, grpo, gspo, luspo, m2po, maxrl, opo, ppo, "
            "reinforce, reinforce_pp, reinforce_pp_baseline, remax, rloo, sapo, vespo, got "
            "'grpoo'; did you mean 'grpo'?\n");
}

TEST_F(Train, UnderMpirunRanksSpeakOnceAndEndTogether) {
  // What all ranks find is said once.
  test::RunOutcome outcome =
      call(arguments("train", "run", "--set trainer.num_stepss=3"), test::mpirun(2));
  EXPECT_EQ(outcome.exit_code, 2);
  const std::string error =
      "gradus: error (rank 0): --set trainer.num_stepss=3: unknown key "
      "'num_stepss' in 'trainer'; did you mean 'num_steps'?\n";
  EXPECT_THAT(outcome.messages, HasSubstr(error));
  EXPECT_THAT(outcome.messages, Not(HasSubstr("error (rank 1)")));
  outcome = call(arguments("train", "run", "--set trainer.prompts_per_step=9"), test::mpirun(2));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("trainer.prompts_per_step (9) must be a multiple of the "
                                          "number of ranks (2)"));
  // What only one rank finds ends all of them.
  outcome =
      shell(test::mpirun(1) + GRADUS_BINARY + " " + arguments("train", "run") + " : -np 1 " +
            GRADUS_BINARY + " " + arguments("train", "run", "--set model.init.tokenizer=nowhere"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("gradus: error (rank 1): nowhere"));
}

TEST_F(Train, TheMemoryPlanHolds) {
  // 13M weights, so that arrays dominate.
  const std::string big =
      "--set model.init.architecture.hidden_size=512 "
      "--set model.init.architecture.intermediate_size=1024 "
      "--set model.init.architecture.num_layers=6 --set model.init.architecture.num_heads=8 "
      "--set eval.before_training=false --set eval.every_steps=0 "
      "--set trainer.num_steps=1 --set sft.num_steps=1 --set trainer.mini_batches=1 ";
  const std::string further =
      "--set trainer.optimizer=muon --set trainer.ema_decay=0.9 --set "
      "trainer.algorithm.kl.coef=0.1 ";
  struct Case {
    std::string command, name, more;
    int ranks;
  };
  for (const Case& run : {Case{"train", "train", "", 1}, Case{"sft", "sft", "", 2},
                          Case{"train", "further", further, 1}}) {
    const std::string prefix = run.ranks == 1 ? "" : test::mpirun(run.ranks);
    const std::string messages = train(run.command, run.name, big + run.more, prefix);
    std::smatch match;
    ASSERT_TRUE(std::regex_search(messages, match,
                                  std::regex("peak memory (\\d+) MiB \\(planned (\\d+) MiB\\)")))
        << messages;
    const double peak = std::stod(match[1]), planned = std::stod(match[2]);
    EXPECT_GT(peak, 0.9 * planned) << run.name << ", " << match[0];
    EXPECT_LT(peak, 1.1 * planned) << run.name << ", " << match[0];
    // The dry run says the same.
    const test::RunOutcome plan =
        call(arguments(run.command, "plan", big + run.more + "--dry-run"), prefix);
    EXPECT_EQ(plan.exit_code, 0) << plan.messages;
    EXPECT_THAT(test::read_file(path("output")),
                HasSubstr(" " + match[2].str() + " MiB at the peak, per rank\n"));
  }
}

}  // namespace
}  // namespace gradus
