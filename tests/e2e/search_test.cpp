// SPDX-License-Identifier: Apache-2.0
// The recipe of a policy that searches, from its shipped files: a tiny model asks an index and
// reads what comes back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Search : public test::TinyRun {
 protected:
  void SetUp() override {
    ok("sft configs/search_tiny_sft.yaml --set sft.num_steps=90 --set run.dir=" + path("runs"));
    ok("index new-encoder --texts configs/search_tiny_corpus.jsonl --out " + path("encoder"));
    ok("index build --corpus configs/search_tiny_corpus.jsonl --model " + path("encoder") +
       " --out " + path("index"));
  }
  void ok(const std::string& arguments) const {
    const test::RunOutcome outcome = call(arguments);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.messages;
  }
  std::string run_arguments(const std::string& name, const std::string& more = "",
                            const std::string& source = "") const {
    return "train configs/search_tiny.yaml --set run.dir=" + path("runs") +
           " --set run.name=" + name +
           " --set model.path=" + path("runs/search_tiny_sft/checkpoints/latest") +
           " --set 'rollout.tools=[{name: search, tag: s, top: 1, " +
           (source.empty() ? "index: " + path("index") : source) +
           "}]' --set trainer.num_steps=4 --set trainer.prompts_per_step=8 "
           "--set run.checkpoint_every=2 --set eval.every_steps=2 " +
           more;
  }
  std::string train_search(const std::string& name, const std::string& more = "",
                           const std::string& prefix = "", const std::string& source = "") const {
    const test::RunOutcome outcome = call(run_arguments(name, more, source), prefix);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return outcome.messages;
  }
  // Without the time that nothing was decoded, which is the clock's.
  std::vector<json> metrics_of(const std::string& name) const {
    std::vector<json> rows = metrics(name);
    for (json& row : rows) row.erase("tools/wait_s");
    return rows;
  }
};

TEST_F(Search, RanksResumesAndReplaysChangeNeitherWeightsNorMetrics) {
  train_search("one", "--set run.dump_rollouts=true");
  const std::vector<json> expected = metrics_of("one");
  ASSERT_EQ(expected.size(), 5u);
  for (size_t i = 1; i < expected.size(); ++i) {
    const json& row = expected[i];
    EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0) << i;
    EXPECT_GT(row["tools/search/calls"].get<double>(), 30) << i;
    EXPECT_EQ(row["tools/search/errors"], 0.0) << i;
    // The passage and its tags stand in the response and are not counted as its tokens.
    EXPECT_GT(row["tools/observation_tokens"].get<double>(), 10) << i;
    EXPECT_LE(row["response_length/max"].get<double>(), 32) << i;
  }
  const std::string weights = state("one");
  train_search("two", "", test::mpirun(2));
  EXPECT_EQ(state("two"), weights);
  const std::vector<json> of_two = metrics_of("two");
  for (size_t i = 1; i < expected.size(); ++i) {
    for (const auto& [key, value] : expected[i].items()) {
      // Losses are summed rank by rank, so their last bit may differ.
      const bool is_count = key.starts_with("tools/") || key.starts_with("response_length/");
      if (!is_count) continue;
      EXPECT_EQ(of_two[i][key], value) << key << " of step " << i;
    }
  }
  // Back to step 2, by taking the checkpoint of step 4 away.
  fs::remove_all(path("runs/one/checkpoints/step_4"));
  EXPECT_THAT(train_search("one", "--resume --set run.dump_rollouts=true"),
              HasSubstr("after step 2"));
  EXPECT_EQ(state("one"), weights);
  EXPECT_EQ(metrics_of("one"), expected);
  // On what was sampled before.
  const std::string rollouts = path("runs/one/rollouts");
  EXPECT_THAT(test::read_file(rollouts + "/step_1.jsonl"), HasSubstr("\"observations\": [["));
  train_search("replay", "--load-rollouts " + rollouts);
  EXPECT_EQ(state("replay"), weights);
}

TEST_F(Search, AServerAnswersAsTheIndexDoes) {
  // Leaves with the test, whatever happens.
  const test::RunOutcome served = shell(
      std::string(GRADUS_BINARY) + " index serve --port 0 --index " + path("index") + " >" +
      path("served") + " &\npid=$!\nfor i in $(seq 200); do grep -q serving " + path("served") +
      " && break; sleep 0.05; done\nurl=$(grep -o 'http:[^ ]*' " + path("served") + ")\n" +
      GRADUS_BINARY + " " + run_arguments("served", "", "url: '\"$url\"'") +
      "\necho \"train: $?\" >&2\n" + GRADUS_BINARY + " index serve --index " + path("index") +
      " --port $(grep -o '[0-9]*/retrieve' " + path("served") +
      " | grep -o '[0-9]*')\nkill $pid\nwait $pid\necho \"served: $?\" >&2");
  EXPECT_THAT(served.messages, HasSubstr("train: 0")) << served.messages;
  EXPECT_THAT(served.messages, HasSubstr("served: 0")) << "SIGTERM ends it in good order";
  EXPECT_THAT(served.messages,
              ::testing::ContainsRegex("gradus index serve: cannot listen on 127.0.0.1:[0-9]+: "
                                       "Address already in use; stop what listens there, or take "
                                       "another port"));
  EXPECT_THAT(test::read_file(path("served")),
              ::testing::StartsWith("serving 200 passages of " + path("index") + " at http://"));
  train_search("here");
  EXPECT_EQ(state("served"), state("here"));
  // A server that is not there is said to the model, and counted.
  train_search("down",
               "--set trainer.num_steps=3 --set eval.every_steps=0 "
               "--set eval.before_training=false --set rollout.tool_seconds=1",
               "", "url: 'http://127.0.0.1:9/retrieve', retries: 0");
  const json row = metrics("down").at(0);
  EXPECT_GT(row["tools/search/calls"].get<double>(), 30);
  EXPECT_EQ(row["tools/search/errors"].get<double>() + row["tools/search/invalid"].get<double>(),
            row["tools/search/calls"].get<double>());
  EXPECT_GT(row["tools/search/errors"].get<double>(), 30);
}

// The retriever as a second policy in the rollouts.
class Joint : public Search {
 protected:
  std::string joint(const std::string& name, const std::string& more = "",
                    const std::string& prefix = "") const {
    std::string arguments = run_arguments(name, more);
    const std::string from = "configs/search_tiny.yaml";
    arguments.replace(arguments.find(from), from.size(), "configs/harr_joint_tiny.yaml");
    const test::RunOutcome outcome = call(arguments, prefix);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return outcome.messages;
  }
  std::string encoder(const std::string& name) const {
    return test::read_file(
        path("runs/" + name + "/checkpoints/latest/retriever/model.safetensors"));
  }
};

TEST_F(Joint, RanksAndResumesChangeNeitherSide) {
  joint("one");
  const std::vector<json> expected = metrics_of("one");
  ASSERT_EQ(expected.size(), 5u);
  double num_searches = 0;
  for (size_t i = 1; i < expected.size(); ++i) {
    const json& row = expected[i];
    EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0) << i;
    EXPECT_EQ(row["tools/search/errors"], 0.0) << i;
    num_searches += row["harr/steps"].get<double>();
    if (!row.contains("harr/objective")) continue;
    EXPECT_EQ(row["harr/max_abs_log_ratio"], 0.0) << i;
    EXPECT_GT(row["harr/effective_documents"].get<double>(), 1.0) << i;
    EXPECT_GT(row["harr/grad_norm"].get<double>(), 0.0) << i;
  }
  EXPECT_GT(num_searches, 30) << "searches whose responses differ from their siblings in reward";
  const std::string weights = state("one"), vectors = encoder("one");
  EXPECT_NE(vectors, test::read_file(path("encoder/model.safetensors")));
  joint("two", "", test::mpirun(2));
  EXPECT_EQ(state("two"), weights);
  EXPECT_EQ(encoder("two"), vectors);
  fs::remove_all(path("runs/one/checkpoints/step_4"));
  EXPECT_THAT(joint("one", "--resume"), HasSubstr("after step 2"));
  EXPECT_EQ(state("one"), weights);
  EXPECT_EQ(encoder("one"), vectors);
  EXPECT_EQ(metrics_of("one"), expected);
}

TEST_F(Joint, TheSideThatDoesNotTrainStaysToTheBit) {
  joint("policy", "--set joint.train=policy");
  joint("retriever", "--set joint.train=retriever");
  const std::string begun = test::read_file(path("encoder/model.safetensors"));
  EXPECT_EQ(encoder("policy"), begun);
  EXPECT_NE(encoder("retriever"), begun);
  const auto model = [this](const std::string& name) {
    return test::read_file(path("runs/" + name + "/checkpoints/latest/model.safetensors"));
  };
  EXPECT_EQ(model("retriever"), model("search_tiny_sft"));
  EXPECT_NE(model("policy"), model("search_tiny_sft"));
}

TEST_F(Joint, WhatDoesNotGoTogetherIsSaid) {
  const auto message = [this](const std::string& more) {
    std::string arguments = run_arguments("bad", more);
    arguments.replace(arguments.find("search_tiny"), 11, "harr_joint_tiny");
    return call(arguments).messages;
  };
  EXPECT_THAT(message("--set trainer.prompts_per_step=12"),
              HasSubstr("trainer.prompts_per_step is 12 and trainer.reduction_blocks is 8; with "
                        "joint the first must be a multiple of 8"));
  EXPECT_THAT(message("--set 'rollout.tools=[{name: calculator}]'"),
              HasSubstr("rollout.tools has 0 tools search; joint needs exactly one"));
  EXPECT_THAT(message("--set trainer.dynamic_sampling=true"),
              HasSubstr("trainer.dynamic_sampling is set with joint"));
}

}  // namespace
}  // namespace gradus
