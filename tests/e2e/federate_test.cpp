// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/killed_run.h"
#include "tests/support/run_gradus.h"

// `gradus federate`, as a user runs it.
namespace gradus {
namespace {

using ::testing::HasSubstr;

class Federate : public ::testing::Test {
 protected:
  std::string arguments(const std::string& name, const std::string& more = "") const {
    return "federate " + folder_.path() + "/run.yaml --set run.dir=" + folder_.path() +
           " --set run.name=" + name + " " + more;
  }
  void SetUp() override {
    test::write_file(folder_.path() + "/run.yaml", R"(
run: {checkpoint_every: 10, log_level: warn}
federated:
  num_rounds: 60
  eval_every: 10
  strategy: scaffold
  clients: {num_clients: 12, per_round: 5, dropout: 0.1}
  local: {num_epochs: 2, batch_size: 16, lr: 0.05, momentum: 0}
  task:
    data: {kind: mnist1d, num_samples: 400}
    hidden: [12]
)");
  }
  // The model and everything else of the last checkpoint.
  std::string state(const std::string& name) const {
    return test::read_file(folder_.path() + "/" + name + "/checkpoints/step_60/federated.bin");
  }
  // The rows of the metrics without what the clock on the wall says.
  std::vector<nlohmann::json> metrics(const std::string& name) const {
    std::vector<nlohmann::json> rows;
    std::istringstream lines(test::read_file(folder_.path() + "/" + name + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      rows.push_back(nlohmann::json::parse(line));
      for (const char* key : {"time", "timing_s/step", "federated/client_rounds_per_s"}) {
        rows.back().erase(key);
      }
    }
    return rows;
  }

  test::TemporaryFolder folder_;
};

TEST_F(Federate, LeavesMetricsCheckpointsAndAReport) {
  const test::Outcome outcome = test::run_gradus(arguments("whole", "2>&1"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("whole: scaffold, "));
  EXPECT_THAT(outcome.output, HasSubstr(" after 60 rounds"));
  const auto rows = metrics("whole");
  ASSERT_EQ(rows.size(), 60u);
  EXPECT_GT(rows[59]["federated/accuracy"].get<double>(), 0.15);
  EXPECT_FALSE(rows[0].contains("federated/accuracy")) << "evaluated every 10 rounds";
  const test::Outcome report = test::run_gradus("report " + folder_.path() + "/whole 2>&1");
  ASSERT_EQ(report.exit_code, 0) << report.output;
  const std::string page = test::read_file(folder_.path() + "/whole/report.html");
  for (const char* part : {"federated/accuracy", "Weights of clients", "Scores of clients"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
}

TEST_F(Federate, GivesTheSameBitsOnTwoRanks) {
  ASSERT_EQ(test::run_gradus(arguments("one", "2>&1")).exit_code, 0);
  const test::CommandOutcome two = test::run_command("mpirun -np 2 " + std::string(GRADUS_BINARY) +
                                                     " " + arguments("two", "2>&1"));
  ASSERT_EQ(two.exit_code, 0) << two.output;
  EXPECT_EQ(state("one"), state("two"));
}

class KilledFederation : public Federate {
 protected:
  // Kills the run when it has written `rows` rows; false if it had ended before.
  bool kill_after(const std::string& command, int64_t rows) const {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::execl("/bin/sh", "sh", "-c", ("exec " + command + " >/dev/null 2>&1").c_str(), nullptr);
      ::_exit(127);
    }
    int status = 0;
    for (;;) {
      if (::waitpid(pid, &status, WNOHANG) == pid) return false;
      std::ifstream file(folder_.path() + "/killed/metrics.jsonl");
      int64_t seen = 0;
      for (std::string line; std::getline(file, line);) ++seen;
      if (seen >= rows) break;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    ::kill(pid, SIGKILL);
    ::waitpid(pid, &status, 0);
    return WIFSIGNALED(status) != 0;
  }
};

TEST_F(KilledFederation, GoesOnToTheSameBits) {
  // Stateful clients: what they changed after the checkpoint is undone. The run is slowed, so that
  // a kill finds it alive.
  const std::string slow = "--set federated.local.num_epochs=40 ";
  ASSERT_EQ(test::run_gradus(arguments("whole", slow + "2>&1")).exit_code, 0);
  const std::string command = std::string(GRADUS_BINARY) + " " + arguments("killed", slow);
  ASSERT_TRUE(kill_after(command, 14)) << "the kill came too late";
  ASSERT_TRUE(kill_after(command + "--resume", 27)) << "the kill came too late";
  const test::Outcome end = test::run_gradus(arguments("killed", slow + "--resume 2>&1"));
  ASSERT_EQ(end.exit_code, 0) << end.output;
  EXPECT_THAT(end.output, HasSubstr("resumed from "));
  EXPECT_EQ(state("killed"), state("whole"));
  EXPECT_EQ(metrics("killed"), metrics("whole"));
}

TEST_F(Federate, EndsWhereItsPrivacyIsSpent) {
  const std::string noise =
      "--set federated.strategy=fedavg --set federated.clients.sampler=poisson --set "
      "federated.privacy.noise_multiplier=2 --set federated.privacy.max_epsilon=6 "
      "--set federated.secure_aggregation=true 2>&1";
  const test::Outcome outcome = test::run_gradus(arguments("private", noise));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto rows = metrics("private");
  ASSERT_LT(rows.size(), 60u);
  ASSERT_GT(rows.size(), 1u);
  EXPECT_LE(rows.back()["federated/epsilon"].get<double>(), 6);
  EXPECT_THAT(outcome.output,
              HasSubstr("stopped after " + std::to_string(rows.size()) +
                        " rounds: another one would exceed federated.privacy.max_epsilon (6)"));
  EXPECT_TRUE(rows.back().contains("federated/accuracy")) << "the last round is evaluated";
}

TEST_F(Federate, SaysBeforeARunWhatItWouldDoAndWhatIsWrong) {
  const test::Outcome plan = test::run_gradus(arguments("plan", "--dry-run 2>&1"));
  ASSERT_EQ(plan.exit_code, 0) << plan.output;
  EXPECT_THAT(plan.output, HasSubstr("clients    12 of "));
  EXPECT_THAT(plan.output, HasSubstr("nothing was trained"));
  const test::Outcome wrong =
      test::run_gradus(arguments("wrong", "--set federated.clients.per_round=40 2>&1"));
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.output,
              HasSubstr("--set federated.clients.per_round=40: federated.clients.per_round (40) "
                        "exceeds federated.clients.num_clients (12)"));
  const test::Outcome missing =
      test::run_gradus(arguments("missing",
                                 "--set federated.task.data.kind=csv --set "
                                 "federated.task.data.path=none.csv 2>&1"));
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.output, HasSubstr("none.csv: cannot open"));
}

}  // namespace
}  // namespace gradus
