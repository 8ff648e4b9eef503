// SPDX-License-Identifier: Apache-2.0
// The recipe of code rewards from its shipped files: a tiny model that writes programs, which are
// run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

class Code : public test::TinyRun {
 protected:
  std::vector<nlohmann::json> run(const std::string& command, const std::string& config,
                                  const std::string& more) const {
    const test::RunOutcome outcome =
        call(command + " configs/" + config + " --set run.dir=" + path("runs") + " " + more);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return metrics(config.substr(0, config.find('.')));
  }
};

TEST_F(Code, ProgramsOfATinyModelEarnTheirTests) {
  run("sft", "code_tiny_sft.yaml", "--set sft.num_steps=70 --set eval.every_steps=0");
  const auto rows =
      run("train", "code_tiny.yaml",
          "--set model.path=" + path("runs/code_tiny_sft/checkpoints/latest") +
              " --set trainer.num_steps=3 --set trainer.warmup_steps=1 --set eval.every_steps=0 "
              "--set eval.before_training=false");
  ASSERT_EQ(rows.size(), 3u);
  for (const nlohmann::json& row : rows) {
    EXPECT_EQ(row["reward/code/failed_fraction"], 0.0) << row;
    // Some of 72 programs are right, and few: a reward that scored nothing or everything is
    // neither.
    EXPECT_GT(row["reward/code/mean"].get<double>(), 0.02) << row;
    EXPECT_LT(row["reward/code/mean"].get<double>(), 0.98) << row;
  }
}

TEST_F(Code, TheCommandPrintsTheLayersOfTheSandbox) {
  const test::Outcome outcome = test::run_gradus("sandbox check");
  EXPECT_EQ(outcome.exit_code, 0);
  std::vector<std::string> layers, languages;
  for (const nlohmann::json& row : test::json_rows(outcome.output)) {
    // Control groups are used where they can be made.
    const bool is_required = row.value("layer", "") != "control_group";
    EXPECT_TRUE(row["active"].get<bool>() || !is_required) << row;
    (row.contains("layer") ? layers : languages)
        .push_back(row.value("layer", row.value("language", "")));
  }
  EXPECT_EQ(layers.size(), 11u);
  EXPECT_THAT(languages, ::testing::ElementsAre("python", "cpp"));
  EXPECT_EQ(call("sandbox check --allow-missing seccom").messages,
            "gradus: error: sandbox: allow_missing: 'seccom' is no layer; did you mean "
            "'seccomp'?; known: user_namespace, private_uid, network_namespace, ipc_namespace, "
            "seccomp, landlock, process_limit, tree_watch\n");
}

}  // namespace
}  // namespace gradus
