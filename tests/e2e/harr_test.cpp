// SPDX-License-Identifier: Apache-2.0
// `gradus train` with a section `harr`, as its users run it: a retriever learns to search.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>

#include "tests/support/tiny_retriever.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Harr : public test::TinyRetriever {
 protected:
  std::vector<json> evaluation(const std::string& name, int step) const {
    return test::json_rows(test::read_file(
        path("runs/" + name + "/evaluations/step_" + std::to_string(step) + ".jsonl")));
  }
};

TEST_F(Harr, RanksAndResumesChangeNeitherWeightsNorMetrics) {
  EXPECT_THAT(train("train", "one"), HasSubstr("step 6/6"));
  const std::vector<json> expected = metrics("one");
  ASSERT_EQ(expected.size(), 7u) << "the evaluation before training and six steps";
  for (const int ranks : {2, 4}) {
    const std::string name = "ranks" + std::to_string(ranks);
    train("train", name, "", test::mpirun(ranks));
    EXPECT_EQ(state(name), state("one")) << name;
    EXPECT_EQ(metrics(name), expected) << name;
    EXPECT_EQ(evaluation(name, 6), evaluation("one", 6));
  }
  // Back to step 4, by taking the checkpoint of step 6 away.
  fs::remove_all(path("runs/ranks2/checkpoints/step_6"));
  EXPECT_THAT(train("train", "ranks2", "--resume"), HasSubstr("after step 4"));
  EXPECT_EQ(state("ranks2"), state("one"));
  EXPECT_EQ(metrics("ranks2"), expected);
  // Another seed draws other lists.
  train("train", "other", "--set run.seed=4");
  EXPECT_NE(state("other"), state("one"));
}

TEST_F(Harr, AdapterTrainsAndResumesOnAnyNumberOfRanks) {
  const std::string lora = "--set lora.rank=4 --set lora.alpha=8 ";
  train("train", "one", lora);
  train("train", "two", lora, test::mpirun(2));
  EXPECT_EQ(state("two"), state("one"));
  fs::remove_all(path("runs/two/checkpoints/step_6"));
  EXPECT_THAT(train("train", "two", lora + "--resume"), HasSubstr("after step 4"));
  EXPECT_EQ(state("two"), state("one"));
  EXPECT_EQ(metrics("two"), metrics("one"));
  // Without it the checkpoint is another thing.
  const test::RunOutcome whole = call(arguments("train", "two", "--resume"));
  EXPECT_EQ(whole.exit_code, 2);
  EXPECT_THAT(whole.messages,
              HasSubstr("the checkpoint holds an adapter, this run trains all weights (lora.rank); "
                        "resume with the configuration that the run was started with"));
}

TEST_F(Harr, EveryUpdateBeginsAtRatioOne) {
  train("train", "a", "--set harr.final_temperature=0.2 --set harr.questions_per_step=16");
  const std::vector<json> rows = metrics("a");
  for (size_t i = 1; i < rows.size(); ++i) {
    ASSERT_TRUE(rows[i].contains("harr/max_abs_log_ratio")) << "no update in step " << i;
    EXPECT_EQ(rows[i]["harr/max_abs_log_ratio"], 0.0) << i;
    EXPECT_EQ(rows[i]["harr/clip_fraction"], 0.0) << i;
    EXPECT_GT(rows[i]["harr/steps"].get<double>(), 0) << i;
    EXPECT_NEAR(rows[i]["harr/temperature"].get<double>(),
                0.05 * std::pow(4, static_cast<double>(i - 1) / 5), 1e-12);
  }
}

TEST_F(Harr, StopsOnSigtermAndGoesOnToTheSameEnd) {
  train("train", "whole");
  const test::RunOutcome stopped =
      interrupt(arguments("train", "cut", "--set run.checkpoint_every=0"), "cut", "TERM", 3);
  EXPECT_EQ(stopped.exit_code, 0) << stopped.messages;
  EXPECT_THAT(stopped.messages, HasSubstr("a checkpoint was written: continue with --resume"));
  train("train", "cut", "--resume --set run.checkpoint_every=0");
  EXPECT_EQ(state("cut"), state("whole"));
}

TEST_F(Harr, CheckpointIsAnEncoder) {
  train("train", "a");
  test::write_file(path("texts.jsonl"), R"({"text": "What is its currency?"})");
  const auto vector_of = [&](const std::string& model) {
    EXPECT_EQ(call("index embed --model " + model + " --input " + path("texts.jsonl")).exit_code,
              0);
    return test::read_file(path("output"));
  };
  EXPECT_NE(vector_of(path("runs/a/checkpoints/latest")), vector_of(path("encoder")));
}

TEST_F(Harr, DryRunSaysWhatItWouldDo) {
  const test::RunOutcome outcome = call(arguments("train", "run", "--dry-run"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  const std::string plan = test::read_file(path("output"));
  for (const std::string part :
       {"1 layers of width 64, vocabulary ", "index      240 passages, flat, in ",
        "data       160 questions looked at, 20 for evaluation\n",
        "run        6 steps of 8 questions x 8 trajectories into ",
        " MiB at the peak, per rank\n"}) {
    EXPECT_THAT(plan, HasSubstr(part));
  }
  EXPECT_FALSE(fs::exists(path("runs")));
}

TEST_F(Harr, MistakesAreNamed) {
  const auto message = [&](const std::string& options, const std::string& prefix = "") {
    const test::RunOutcome outcome = call(arguments("train", "run", options), prefix);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.messages;
    return outcome.messages;
  };
  EXPECT_THAT(message("--set harr.list_length=16"),
              HasSubstr("harr.list_length (16) must be at most harr.pool_size (15)"));
  EXPECT_THAT(message("--set harr.optimizer=muon"),
              HasSubstr("harr.optimizer is muon; an encoder is trained with adamw"));
  EXPECT_THAT(message("--set harr.ema_decay=0.5"),
              HasSubstr("harr.ema_decay is 0.5; an encoder has no running average: set it to 0"));
  EXPECT_THAT(message("--set harr.encoder=tests/golden/retrieval/tiny_bert"),
              ::testing::ContainsRegex("harr.encoder: tests/golden/retrieval/tiny_bert is not the "
                                       "encoder that .*/index was built with \\(hash "
                                       "[0-9a-f]{16}, expected [0-9a-f]{16}\\); name its "
                                       "directory, or build the index again"));
  EXPECT_THAT(message("--set lora.targets=[q_proj]"),
              HasSubstr("lora.targets is set, but an encoder's adapter is on all matrices of its "
                        "layers; leave it out"));
  EXPECT_THAT(message("--load-rollouts x"),
              HasSubstr("a retriever is trained on fresh searches alone; drop the option"));
  EXPECT_THAT(message("", test::mpirun(3)),
              HasSubstr("a run with harr takes 1, 2, 4 or 8 ranks, not 3, so that its weights do "
                        "not depend on their number"));
}

// z of the mean of per-question differences between two evaluations.
double paired_z(const std::vector<json>& before, const std::vector<json>& after) {
  double sum = 0, squares = 0;
  const double n = static_cast<double>(before.size());
  for (size_t i = 0; i < before.size(); ++i) {
    const double difference = after[i]["em"].get<double>() - before[i]["em"].get<double>();
    sum += difference;
    squares += difference * difference;
  }
  const double mean = sum / n, variance = (squares - n * mean * mean) / (n - 1);
  return variance == 0 ? 0 : mean / std::sqrt(variance / n);
}

double em_of(const std::vector<json>& rows) {
  double sum = 0;
  for (const json& row : rows) sum += row["em"].get<double>();
  return sum / static_cast<double>(rows.size());
}

// The smoke test of learning: all searches are elliptical that can be. What a retriever that sees
// the query alone can find is bounded; one that sees the history is not.
class HarrLearns : public Harr {
 protected:
  static constexpr int kSteps = 80;
  void SetUp() override { make("1", 800); }
  void learn(const std::string& name, int num_steps, const std::string& options) {
    train("train", name,
          "--set data.eval.files=[" + path("multihop/train.jsonl") +
              "] --set eval.max_rows=400 --set eval.every_steps=1000 "
              "--set harr.questions_per_step=16 --set harr.pool_size=30 --set "
              "harr.learning_rate=2e-4 --set run.checkpoint_every=0 --set harr.num_steps=" +
              std::to_string(num_steps) + " " + options);
  }
  // Mean reward of ten steps of training from `first` on.
  double reward(const std::string& name, size_t first) const {
    const std::vector<json> rows = metrics(name);
    double sum = 0;
    for (size_t i = first; i < first + 10; ++i) sum += rows[i]["harr/reward"].get<double>() / 10;
    return sum;
  }
  // Share of the elliptical searches that are evaluated whose passage is among the three most
  // frequent of its query: what a fixed list per query can reach.
  double ceiling() const {
    std::map<std::string, std::map<std::string, int>> passages;
    std::vector<json> rows = test::json_rows(test::read_file(path("multihop/train.jsonl")));
    rows.resize(400);
    for (const json& row : rows) {
      for (const json& search : row["extra_info"]["searches"]) {
        if (search["is_elliptical"]) ++passages[search["query"]][search["passage"]];
      }
    }
    double found = 0, total = 0;
    for (const auto& [query, counts] : passages) {
      std::vector<int> sorted;
      for (const auto& [passage, count] : counts) {
        sorted.push_back(count);
        total += count;
      }
      std::ranges::sort(sorted, std::greater<>());
      for (size_t i = 0; i < std::min<size_t>(3, sorted.size()); ++i) found += sorted[i];
    }
    return found / total;
  }
};

TEST_F(HarrLearns, RewardRisesPastWhatAQueryAloneCanFindAndAFrozenEncoderShowsNoRise) {
  learn("history", kSteps, "");
  const std::vector<json> before = evaluation("history", 0), after = evaluation("history", kSteps);
  ASSERT_EQ(before.size(), 400u);
  EXPECT_GT(paired_z(before, after), 4) << em_of(before) << " to " << em_of(after);
  EXPECT_GT(reward("history", 71), reward("history", 1) + 0.1);

  // The same searches and updates, but of no size.
  learn("frozen", 30, "--set harr.learning_rate=1e-30");
  EXPECT_EQ(evaluation("frozen", 0), before);
  EXPECT_EQ(evaluation("frozen", 30), before);
  EXPECT_LT(std::fabs(reward("frozen", 21) - reward("frozen", 1)), 0.1);

  // A leak would show here: no query-only retriever, however trained, finds more of the elliptical
  // searches than its ceiling, since it has one list for all that are worded alike.
  learn("query", kSteps, "--set harr.history=false");
  const double bound = ceiling();
  const double query = metrics("query").back()["val/harr/recall_elliptical"];
  const double history = metrics("history").back()["val/harr/recall_elliptical"];
  EXPECT_LE(query, bound + 1e-12);
  EXPECT_GT(history, bound + 0.05) << "ceiling " << bound << ", query alone " << query;
  std::cout << "EM " << em_of(before) << " to " << em_of(after) << ", z " << paired_z(before, after)
            << "; elliptical searches found: " << history << ", query alone " << query
            << ", its ceiling " << bound << "\n";
}

}  // namespace
}  // namespace gradus
