// SPDX-License-Identifier: Apache-2.0
// Runs of several ranks as their users start them, with ranks that stop or die.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/job_script.h"
#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using ::testing::HasSubstr;

class Cluster : public test::TinyRun {
 protected:
  // Shell commands that start a run in the background and wait until `num_rows` rows of its metrics
  // are there; then $pid is what was started and $rank_N the process of rank N.
  std::string start(const std::string& command, const std::string& name, int num_rows) const {
    const std::string metrics = path("runs/" + name + "/metrics.jsonl");
    return fmt::format(R"({} & pid=$!
while kill -0 $pid 2>/dev/null && [ $(cat {} 2>/dev/null | wc -l) -lt {} ]; do sleep 0.01; done
for p in $(pgrep -f run.dir={}); do
  rank=$(tr '\0' '\n' < /proc/$p/environ | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
  [ -z "$rank" ] || eval rank_$rank=$p
done
)",
                       command, metrics, num_rows, path("runs"));
  }
  // `gradus launch` of a run.
  std::string launch(int ranks, const std::string& name, const std::string& more,
                     const std::string& launch_options = "") const {
    return fmt::format(
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 {} launch -np {} --mpirun "
        "\"mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1\" {} -- {}",
        GRADUS_BINARY, ranks, launch_options, arguments("train", name, more));
  }
};

const std::string kLong =
    "--set trainer.num_steps=2000 --set eval.every_steps=0 --set eval.before_training=false "
    "--set trainer.reduction_blocks=6 --set trainer.prompts_per_step=12 "
    "--set run.dump_rollouts=false --set run.checkpoint_every=0 ";

TEST_F(Cluster, AStoppedRankIsNamedByAllOthersWhichEnd) {
  const test::RunOutcome outcome =
      shell(start(test::mpirun(3) + GRADUS_BINARY + " " +
                      arguments("train", "run", kLong + "--set cluster.stuck_after_s=2"),
                  "run", 2) +
            "kill -STOP $rank_1; before=$(date +%s%N); wait $pid; code=$?\n"
            "echo took $(( ($(date +%s%N) - before) / 1000000 )) ms >&2\n"
            "kill -0 $rank_0 $rank_1 $rank_2 2>/dev/null && echo still there >&2\nexit $code");
  EXPECT_EQ(outcome.exit_code, 70) << outcome.messages;
  for (const int rank : {0, 2}) {
    const std::string prefix = fmt::format("gradus: error (rank {}): ", rank);
    EXPECT_THAT(outcome.messages,
                HasSubstr(prefix + "the run is stuck: rank 1 gave no sign of life for 2."));
    EXPECT_THAT(outcome.messages, HasSubstr(prefix + fmt::format("rank {} waits for rank", rank)));
    EXPECT_THAT(outcome.messages, HasSubstr(prefix + "rank 1 is silent; when last heard of it "));
  }
  EXPECT_THAT(outcome.messages, HasSubstr("at step "));
  EXPECT_THAT(outcome.messages, ::testing::Not(HasSubstr("still there")));
  const size_t at = outcome.messages.find("took ");
  ASSERT_NE(at, std::string::npos);
  EXPECT_LT(std::stoi(outcome.messages.substr(at + 5)), 8000)
      << "2 s, and time to speak and to end";
}

// Ranks 0 to T - 1 train, the others sample for them.
TEST_F(Cluster, SplitRolesGiveTheWeightsOfOneRank) {
  train("train", "one");
  const std::vector<std::pair<int, int>> shapes = {{2, 1}, {3, 2}, {3, 1}};
  for (const auto& [ranks, rollout_ranks] : shapes) {
    const std::string name = fmt::format("split_{}_{}", ranks, rollout_ranks);
    train("train", name,
          fmt::format("--set cluster.mode=split --set cluster.rollout_ranks={}{}", rollout_ranks,
                      rollout_ranks == 2 ? " --set cluster.send_only_changed=true" : ""),
          test::mpirun(ranks));
    EXPECT_EQ(state(name), state("one")) << name;
    for (const nlohmann::json& row : metrics(name)) {
      if (row["step"] != 0) {
        EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0) << name;
        EXPECT_EQ(row["rollout/lost_ranks"], 0) << name;
      }
    }
  }
  // With dynamic sampling a step asks several times.
  train("train", "dynamic", "--set trainer.dynamic_sampling=true");
  train("train", "dynamic_split", "--set trainer.dynamic_sampling=true --set cluster.mode=split",
        test::mpirun(2));
  EXPECT_EQ(state("dynamic_split"), state("dynamic"));
  EXPECT_NE(state("dynamic"), state("one"));
}

TEST_F(Cluster, AsyncRunsRepeatAndResumeBitForBit) {
  train("train", "synchronous");
  for (const int staleness : {1, 3}) {
    const std::string options =
        fmt::format("--set cluster.mode=async --set cluster.staleness={} ", staleness);
    const auto name = [&](const char* what) { return fmt::format("{}_{}", what, staleness); };
    train("train", name("a"), options, test::mpirun(2));
    train("train", name("b"), options + "--set cluster.rollout_ranks=2", test::mpirun(3));
    EXPECT_EQ(state(name("a")), state(name("b")));
    EXPECT_NE(state(name("a")), state("synchronous")) << "it learns from older weights' responses";
    // Back to step 4, by taking the checkpoint of step 6 away.
    std::filesystem::remove_all(path("runs/" + name("b") + "/checkpoints/step_6"));
    EXPECT_THAT(train("train", name("b"), options + "--resume", test::mpirun(2)),
                HasSubstr("after step 4"));
    EXPECT_EQ(state(name("a")), state(name("b"))) << "resumed";
    EXPECT_EQ(metrics(name("a")).size(), metrics(name("b")).size());
  }
}

const std::string kCaughtInTheMiddle =
    "--set trainer.num_steps=60 --set eval.every_steps=0 --set run.checkpoint_every=20 "
    "--set run.dump_rollouts=false ";

TEST_F(Cluster, ADeadRolloutRankLeavesTheRunToTheOthers) {
  train("train", "whole", kCaughtInTheMiddle);
  const std::string options =
      kCaughtInTheMiddle + "--set cluster.mode=split --set cluster.rollout_ranks=2 ";
  const test::RunOutcome outcome =
      shell(start(launch(3, "run", options, "--checkpoint-every 0"), "run", 5) +
            "kill -KILL $rank_2; wait $pid");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_THAT(outcome.messages, HasSubstr("a rollout rank died; another does its share"));
  EXPECT_THAT(outcome.messages, ::testing::Not(HasSubstr("starts again")));
  EXPECT_EQ(state("run"), state("whole"));
  EXPECT_EQ(metrics("run").back()["rollout/lost_ranks"], 1);
}

TEST_F(Cluster, ADeadTrainerIsStartedAgainFromTheNewestCheckpoint) {
  train("train", "whole", kCaughtInTheMiddle);
  const test::RunOutcome outcome = shell(start(launch(2, "run", kCaughtInTheMiddle), "run", 9) +
                                         "kill -KILL $rank_1; wait $pid");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_THAT(outcome.messages, HasSubstr("rank 1 ended without a word"));
  EXPECT_THAT(outcome.messages,
              HasSubstr("the run starts again from its newest checkpoint (restart 1 of 3)"));
  EXPECT_THAT(outcome.messages, HasSubstr("resumed from "));
  EXPECT_EQ(state("run"), state("whole"));
  EXPECT_EQ(metrics("run").size(), metrics("whole").size());
}

TEST_F(Cluster, LaunchDoesNotRepeatAMistake) {
  test::RunOutcome outcome = shell(launch(2, "run", "--set trainer.prompts_per_step=7"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("trainer.prompts_per_step (7)"));
  EXPECT_THAT(outcome.messages, HasSubstr("the run ended by a mistake and is not started again"));
  outcome = call("launch -np 2 -- eval run.yaml");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("gradus launch starts 'train' or 'sft', got 'eval'"));
  outcome = call("launch -np 2 --mpirun /no/such/mpirun -- train run.yaml");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("/no/such/mpirun: No such file or directory"));
}

TEST_F(Cluster, ShapesThatCannotTrainAreRefused) {
  const test::RunOutcome outcome = call(arguments("train", "run", "--set cluster.mode=split"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("cluster.rollout_ranks is 1 of 1 ranks"));
}

TEST_F(Cluster, AnImpatientWatchdogIsRefused) {
  const test::RunOutcome outcome = call(arguments("train", "run", "--set cluster.stuck_after_s=1"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("cluster.stuck_after_s"));
  EXPECT_THAT(outcome.messages, HasSubstr("must be in [2, 3600]"));
}

// The script for Slurm, with what it asks of Slurm played: the number of ranks, the signal before
// the end, and a job that is put back (under Slurm itself it runs in Slurm.*).
TEST_F(Cluster, TheJobScriptOfTheDocsStopsAndGoesOn) {
  const std::string longer =
      "--set trainer.num_steps=40 --set eval.every_steps=0 --set run.dump_rollouts=false";
  train("train", "whole", longer);
  test::write_file(path("job.sh"), test::job_script("job", longer));
  test::write_file(path("scontrol"), "#!/bin/sh\necho played: scontrol $* >&2\n");
  const std::string job = fmt::format(
      "cd {}; chmod +x scontrol; export PATH=$PWD:$PATH SLURM_NTASKS=2 SLURM_JOB_ID=77 "
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 "
      "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none\n",
      path(""));
  const test::RunOutcome first = shell(
      job +
      "bash job.sh & pid=$!\nwhile kill -0 $pid && [ $(cat runs/job/metrics.jsonl 2>/dev/null | wc "
      "-l) -lt 3 ]; do sleep 0.02; done; kill -TERM $pid; wait $pid");
  EXPECT_EQ(first.exit_code, 0) << first.messages;
  EXPECT_THAT(first.messages, HasSubstr("stopped after step "));
  EXPECT_THAT(first.messages, HasSubstr("played: scontrol requeue 77"));
  const test::RunOutcome second = shell(job + "bash job.sh");
  EXPECT_EQ(second.exit_code, 0) << second.messages;
  EXPECT_THAT(second.messages, HasSubstr("resumed from "));
  EXPECT_THAT(second.messages, ::testing::Not(HasSubstr("scontrol requeue")));
  EXPECT_TRUE(state("job") == state("whole"));
}

}  // namespace
}  // namespace gradus
