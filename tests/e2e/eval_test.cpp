// SPDX-License-Identifier: Apache-2.0
// `gradus eval` as its users run it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

class Eval : public test::TinyRun {
 protected:
  // Standard output of an evaluation that must end well.
  std::string table(const std::string& more, const std::string& prefix = "") const {
    const test::RunOutcome outcome = call("eval " + path("run.yaml") + " " + more, prefix);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return test::read_file(path("output"));
  }
  std::vector<json> json_of(const std::string& more, const std::string& prefix = "") const {
    EXPECT_EQ(table(more + " --out " + path("eval.jsonl"), prefix), "");
    return test::json_rows(test::read_file(path("eval.jsonl")));
  }
  // Rows of two tasks that ask the same and want another answer.
  void write_two_tasks() const {
    std::vector<json> rows;
    for (const std::string answer : {"7", "8"}) {
      for (int i = 0; i < 3; ++i) {
        rows.push_back({{"data_source", "wants_" + answer},
                        {"prompt", "q" + std::to_string(i)},
                        {"response", "7"},
                        {"reward_model", {{"style", "rule"}, {"ground_truth", answer}}}});
      }
    }
    test::write_file(path("rows.jsonl"), test::json_lines(rows));
  }
  std::string two_tasks(const std::string& section) const {
    return "--set data." + section + ".task='\"\"' --set data." + section +
           ".task_options={} --set data." + section + ".num_rows=0 --set 'data." + section +
           ".files=[" + path("rows.jsonl") + "]' ";
  }
};

TEST_F(Eval, PassAtKIsThatOfTheResponsesOneCanGenerate) {
  // The responses to problem p have the seeds of `gradus generate --seed S` with S = run.seed + 1.
  train("train", "run");
  const std::string model = path("runs/run/checkpoints/latest");
  const std::vector<json> problems = test::json_rows(
      test::run_gradus("data make chain_sum --num 12 --seed 1 --option style=compact").output);
  ASSERT_EQ(problems.size(), 12u);
  std::vector<json> prompts;
  for (const json& problem : problems) {
    const json& prompt = problem["prompt"];
    prompts.push_back({{"text", prompt.is_string() ? prompt : prompt[0]["content"]}});
  }
  test::write_file(path("prompts.jsonl"), test::json_lines(prompts));
  const test::Outcome generated =
      test::run_gradus("generate --model " + model + " --prompts " + path("prompts.jsonl") +
                       " --num-samples 4 --max-new-tokens 12 --seed 4");
  std::vector<int> num_right(12, 0);
  for (const json& row : test::json_rows(generated.output)) {
    const std::string text = row["text"];
    const bool has_capital = std::any_of(text.begin(), text.end(), [](char c) {
      return std::isupper(static_cast<unsigned char>(c)) != 0;
    });
    num_right[row["prompt_index"]] += has_capital ? 1 : 0;
  }
  double mean = 0, pass_at_2 = 0;
  for (const int right : num_right) {
    mean += right / 4.0 / 12;
    const int wrong = 4 - right;
    pass_at_2 += (1 - wrong * (wrong - 1) / 12.0) / 12;  // 1 - C(wrong, 2) / C(4, 2)
  }
  const std::vector<json> rows =
      json_of("--model " + model + " --set eval.num_samples=4 --k 1 --k 2");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["task"], "chain_sum");
  EXPECT_EQ(rows[0]["num_problems"], 12);
  EXPECT_NEAR(rows[0]["accuracy"].get<double>(), mean, 1e-12);
  EXPECT_NEAR(rows[0]["pass@1"].get<double>(), mean, 1e-12);
  EXPECT_NEAR(rows[0]["pass@2"].get<double>(), pass_at_2, 1e-12);
  EXPECT_GT(mean, 0.1);
  EXPECT_LT(mean, 0.99) << "neither all right nor all wrong, or this shows nothing";
}

TEST_F(Eval, RepeatsItsNumbersAloneAndOnRanks) {
  const std::string options = "--set eval.num_samples=3 --k 1 --k 3 ";
  const std::string expected = table(options);
  EXPECT_THAT(expected, HasSubstr("pass@3"));
  EXPECT_THAT(expected, HasSubstr("maj@3"));
  EXPECT_THAT(expected, HasSubstr("\nchain_sum                  12 "));
  EXPECT_EQ(table(options), expected);
  EXPECT_EQ(table(options + "--set rollout.max_batch=2"), expected);
  EXPECT_EQ(table(options, test::mpirun(2)), expected);
  EXPECT_NE(table(options + "--set run.seed=5"), expected);
  const std::vector<json> rows = json_of(options);
  EXPECT_EQ(json_of(options, test::mpirun(2)), rows);
}

TEST_F(Eval, JudgesEachTaskByItselfAndTheGivenModel) {
  write_two_tasks();
  const std::string number = "--set 'reward.parts=[{name: number}]' ";
  train("sft", "run",
        two_tasks("train") + number +
            "--set sft.num_steps=60 --set sft.learning_rate=1e-2 --set 'data.eval.task=\"\"' --set "
            "data.eval.task_options={} --set data.eval.num_rows=0 --set eval.every_steps=0 --set "
            "eval.before_training=false --set run.checkpoint_every=0");
  const std::string options =
      two_tasks("eval") + number + "--set eval.temperature=0 --set eval.num_samples=3 --k 1 --k 3 ";
  const std::vector<json> rows =
      json_of(options + "--model " + path("runs/run/checkpoints/latest"));
  ASSERT_GE(rows.size(), 2u);
  for (const json& row : rows) {
    if (row["task"] != "wants_7" && row["task"] != "wants_8") continue;
    const double expected = row["task"] == "wants_7" ? 1 : 0;
    EXPECT_EQ(row["num_problems"], 3);
    for (const std::string key : {"accuracy", "pass@1", "pass@3", "maj@1", "maj@3"}) {
      EXPECT_EQ(row[key].get<double>(), expected) << row;
    }
    EXPECT_LE(row["low"], expected);
    EXPECT_GE(row["high"], expected);
  }
  // Without --model it is the configuration's model, which has learned nothing.
  for (const json& row : json_of(options)) EXPECT_EQ(row["accuracy"], 0.0) << row;
}

TEST_F(Eval, NamesWhatIsWrong) {
  const auto message = [&](const std::string& more, const std::string& prefix = "") {
    const test::RunOutcome outcome = call("eval " + path("run.yaml") + " " + more, prefix);
    EXPECT_EQ(outcome.exit_code, 2) << more;
    EXPECT_EQ(test::read_file(path("output")), "") << more;
    return outcome.messages;
  };
  EXPECT_EQ(message("--k 3"),
            "gradus: error: --k 3: must be in [1, 2], the responses per problem "
            "(eval.num_samples)\n");
  EXPECT_THAT(message("--model nowhere"), HasSubstr("nowhere/config.json"));
  EXPECT_THAT(message("--set model.init=null"), HasSubstr("neither model.path nor model.init"));
  EXPECT_THAT(message("--out /dev/full"), HasSubstr("/dev/full: cannot write: No space left on "
                                                    "device"));
  EXPECT_THAT(message("--model nowhere", test::mpirun(2)),
              HasSubstr("gradus: error (rank 0): nowhere/config.json"));
  EXPECT_THAT(
      message(
          "--set 'data.eval.task=\"\"' --set data.eval.task_options={} --set data.eval.num_rows=0 "
          "--set eval.before_training=false --set eval.every_steps=0"),
      HasSubstr("neither data.eval.files nor data.eval.task is set; name the problems to evaluate "
                "on"));
  EXPECT_THAT(message("--set data.max_prompt_tokens=2"),
              HasSubstr("all 12 prompts have more than 2 tokens"));
}

}  // namespace
}  // namespace gradus
