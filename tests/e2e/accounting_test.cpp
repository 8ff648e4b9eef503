// SPDX-License-Identifier: Apache-2.0
// Where the time of a step goes, as the metrics and the report of a run say.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class Accounting : public test::TinyRun {
 protected:
  // All of metrics.jsonl, measured values included, without the row of the first evaluation.
  std::vector<json> rows(const std::string& name) const {
    std::vector<json> all =
        test::json_rows(test::read_file(path("runs/" + name + "/metrics.jsonl")));
    std::erase_if(all, [](const json& row) { return row["step"] == 0; });
    return all;
  }
};

// Some tens of milliseconds a step.
const std::string kLonger =
    "--set rollout.num_samples=16 --set run.checkpoint_every=1 --set eval.every_steps=2 "
    "--set trainer.algorithm.kl.coef=0.01 ";

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Medians over the steps, since the system may take the processor away at any moment of one.
void expect_accounted(const std::vector<json>& rows, const std::string& name) {
  ASSERT_GE(rows.size(), 9u);
  std::vector<double> named, by_wall;
  for (size_t i = 0; i < rows.size(); ++i) {
    const json& row = rows[i];
    double sum = 0;
    for (const auto& [key, value] : row.items()) {
      if (key.starts_with("timing_s/") && key != "timing_s/step") sum += value.get<double>();
    }
    const double step = row["timing_s/step"];
    EXPECT_NEAR(sum, step, 1e-9 * step) << row;
    named.push_back(1 - row["timing_s/other"].get<double>() / step);
    if (i == 0) continue;
    // Nothing between the lines is left out.
    by_wall.push_back((row["time"].get<double>() - rows[i - 1]["time"].get<double>()) / step);
  }
  EXPECT_GE(median(named), 0.98) << name;
  EXPECT_NEAR(median(by_wall), 1, 0.02) << name;
}

TEST_F(Accounting, NamedPhasesAddUpToTheStep) {
  for (const int ranks : {1, 2}) {
    const std::string name = "run" + std::to_string(ranks);
    train("train", name, kLonger + "--set trainer.num_steps=9",
          ranks == 1 ? "" : test::mpirun(ranks));
    expect_accounted(rows(name), name);
    for (const json& row : rows(name)) {
      EXPECT_EQ(row["perf/time_per_step"], row["timing_s/step"]);
      for (const char* phase : {"gen", "reward", "ref", "update_actor", "adv", "hash_weights"}) {
        EXPECT_GT(row[std::string("timing_s/") + phase], 0) << phase;
      }
    }
  }
}

TEST_F(Accounting, NamedPhasesAddUpInEveryCommandThatTrains) {
  for (const std::string command : {"sft", "dpo", "reward-model"}) {
    const std::string section = command == "reward-model" ? "reward_model" : command;
    train(command, command,
          fmt::format("--set {}.num_steps=12 --set eval.every_steps=2 --set run.checkpoint_every=1 "
                      "--set model.init.architecture.hidden_size=64",
                      section));
    expect_accounted(rows(command), command);
    for (const json& row : rows(command)) EXPECT_GT(row["timing_s/update_actor"], 0);
  }
}

TEST_F(Accounting, ImbalanceAndTheLongestResponseAreInMetricsAndReport) {
  train("train", "run", kLonger + "--set rollout.max_batch=16", test::mpirun(2));
  for (const json& row : rows("run")) {
    for (const char* metric : {"perf/imbalance/gen", "perf/imbalance/update_actor"}) {
      EXPECT_GE(row[metric], 1) << row;
      EXPECT_LE(row[metric], 2) << row;
    }
    EXPECT_GE(row["perf/rank_idle_fraction"], 0);
    EXPECT_LT(row["perf/rank_idle_fraction"], 1);
    EXPECT_GT(row["perf/tail_idle_fraction"], 0) << "responses differ in length";
    EXPECT_LT(row["perf/tail_idle_fraction"], 1);
    EXPECT_GT(row["rollout/longest_tokens_per_s"], 0);
  }
  // One rank waits for nobody.
  train("train", "alone", "--set trainer.num_steps=1 --set eval.every_steps=0");
  EXPECT_EQ(rows("alone")[0]["perf/imbalance/gen"], 1);
  EXPECT_NEAR(rows("alone")[0]["perf/rank_idle_fraction"].get<double>(), 0, 1e-12);
  const test::RunOutcome report = call("report " + path("runs/run"));
  EXPECT_EQ(report.exit_code, 0) << report.messages;
  const std::string page = test::read_file(path("runs/run/report.html"));
  for (const char* text : {"Imbalance of ranks", "Speed of the longest response",
                           "perf/tail_idle_fraction", "timing_s/exchange"}) {
    EXPECT_THAT(page, HasSubstr(text));
  }
}

TEST_F(Accounting, ARunSaysWhatWasPredictedOfItsSteps) {
  for (const int ranks : {1, 2}) {
    const std::string messages =
        train("train", "run" + std::to_string(ranks), "", ranks == 1 ? "" : test::mpirun(ranks));
    EXPECT_TRUE(std::regex_search(
        messages, std::regex("step time: predicted [0-9.e-]+ s, measured [0-9.e-]+ s \\(error "
                             "[+-]\\d+ %\\): rollout [0-9.e-]+ / [0-9.e-]+, update [0-9.e-]+ / "
                             "[0-9.e-]+\n")))
        << messages;
  }
}

TEST_F(Accounting, APlanForOtherMachinesHasMemoryAndStepTime) {
  const auto plan = [&](const std::string& more) {
    const test::RunOutcome outcome = call("plan " + path("run.yaml") + " " + more);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return test::read_file(path("output"));
  };
  const std::string wide =
      "--world 4096 --set trainer.prompts_per_step=32768 --set trainer.reduction_blocks=4096 ";
  const std::string page = plan(wide + "--device h100 --bandwidth 50 --local-bandwidth 450");
  EXPECT_THAT(page, HasSubstr("world      4096 x h100: "));
  EXPECT_THAT(page, HasSubstr("fits the 80 GiB of a h100"));
  EXPECT_THAT(page, HasSubstr("at the peak, per rank"));
  const auto seconds_of = [](const std::string& text, const std::string& row) {
    std::smatch match;
    EXPECT_TRUE(std::regex_search(text, match, std::regex("  " + row + " +([0-9.e-]+) s")))
        << row << " in\n"
        << text;
    return match.empty() ? 0.0 : std::stod(match[1]);
  };
  const std::string sum = "sum of gradients over ranks";
  EXPECT_GT(seconds_of(page, sum), 0);
  // Half the bandwidth, twice the time.
  const std::string slow = plan(wide + "--device h100 --bandwidth 0.005");
  EXPECT_NEAR(seconds_of(plan(wide + "--device h100 --bandwidth 0.0025"), sum),
              2 * seconds_of(slow, sum), 0.02 * seconds_of(slow, sum));
  // Stage 3 moves half of it where an update is one pass, and weights, in bf16, for both passes and
  // for sampling.
  const std::string shared = plan(wide + "--device h100 --bandwidth 0.005 --set " +
                                  "trainer.zero_stage=3 --set trainer.micro_batch_tokens=100000");
  EXPECT_NEAR(2 * seconds_of(shared, sum), seconds_of(slow, sum), 0.02 * seconds_of(slow, sum));
  EXPECT_NEAR(seconds_of(shared, "slices of weights"), (2 * 2 + 1) / 4.0 * seconds_of(shared, sum),
              0.02 * seconds_of(shared, sum));
  EXPECT_THAT(shared, HasSubstr("weights and gradients"));
  // Roles: 4096 ranks train, 1024 sample meanwhile.
  const std::string roles = plan(
      "--world 5120 --set trainer.prompts_per_step=32768 --set trainer.reduction_blocks=4096 --set "
      "cluster.mode=async --set cluster.rollout_ranks=1024 --device h100");
  EXPECT_THAT(roles, HasSubstr("memory of each of the 1024 ranks that only sample"));
  EXPECT_THAT(roles, HasSubstr("sampling and training at the same time"));
  EXPECT_GT(seconds_of(roles, "weights to ranks that sample"), 0);
  EXPECT_EQ(seconds_of(plan("--world 1"), sum), 0);
  const test::RunOutcome bad = call("plan " + path("run.yaml") + " --world 3");
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_THAT(bad.messages, HasSubstr("must be a multiple of the number of ranks (3)"));
}

}  // namespace
}  // namespace gradus
