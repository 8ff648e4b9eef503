// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <map>
#include <thread>

#include "records/state_file.h"
#include "tests/support/files.h"
#include "tests/support/run_gradus.h"

// `gradus federate serve`, `join` and `keygen`, as processes over localhost.
namespace gradus {
namespace {

using ::testing::HasSubstr;

constexpr int kClients = 3;

class DeploymentProcesses : public ::testing::Test {
 protected:
  void SetUp() override {
    // SCAFFOLD: clients and server both keep something, and an update has two vectors.
    test::write_file(path("run.yaml"), R"(
run: {log_level: warn}
federated:
  num_rounds: 8
  eval_every: 4
  strategy: scaffold
  clients: {num_clients: 3, per_round: 3}
  local: {num_epochs: 2, batch_size: 16, lr: 0.05, momentum: 0}
  deploy: {round_timeout_s: 60, retry_s: 60, linger_s: 20}
  task:
    data: {kind: mnist1d, num_samples: 300}
    hidden: [64]
)");
    std::string keys;
    for (const std::string who : {"server", "client_0", "client_1", "client_2"}) {
      const test::Outcome made = test::run_gradus("federate keygen " + path(who));
      ASSERT_EQ(made.exit_code, 0) << made.output;
      EXPECT_EQ(made.output, test::read_file(path(who + ".pub")));
      if (who != "server") keys += made.output;
    }
    test::write_file(path("clients"), keys);
  }
  void TearDown() override {
    for (const auto& [name, pid] : running_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
  }

  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  std::string run(const std::string& name, const std::string& more = "") const {
    return path("run.yaml") + " --set run.dir=" + folder_.path() + " --set run.name=" + name + " " +
           more;
  }
  std::string log(const std::string& name) const { return test::read_file(path(name + ".log")); }

  void start(const std::string& name, const std::string& arguments) {
    std::ofstream(path(name + ".log"), std::ios::app);  // there to be read from now on
    const std::string text = "exec " + std::string(GRADUS_BINARY) + " federate " + arguments +
                             " >>" + path(name + ".log") + " 2>&1";
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::execl("/bin/sh", "sh", "-c", text.c_str(), nullptr);
      ::_exit(127);
    }
    running_[name] = pid;
  }
  // The server takes a free port at first, and the same one again.
  void start_server(const std::string& more = "") {
    start("server", "serve " + run("deployed", more) +
                        " --listen 127.0.0.1:" + std::to_string(port_) + " --key " +
                        path("server") + " --clients " + path("clients"));
    const std::string before = "listening on 127.0.0.1:";
    ASSERT_TRUE(eventually([&] { return log("server").find(before) != std::string::npos; }))
        << log("server");
    const std::string text = log("server");
    port_ = std::stoi(text.substr(text.rfind(before) + before.size()));
  }
  std::string join(int client, const std::string& more = "") const {
    const std::string number = std::to_string(client);
    return "join " + run("deployed", more) + " --server 127.0.0.1:" + std::to_string(port_) +
           " --server-key " + path("server.pub") + " --key " + path("client_" + number) +
           " --client " + number;
  }
  void start_client(int client, const std::string& more = "") {
    start("client_" + std::to_string(client), join(client, more));
  }

  void kill(const std::string& name) {
    ::kill(running_.at(name), SIGKILL);
    int status = 0;
    ::waitpid(running_.at(name), &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << name << " had ended by itself: " << log(name);
    running_.erase(name);
  }
  void expect_end(const std::string& name) {
    int status = 0;
    const pid_t pid = running_.at(name);
    const bool has_ended = eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; });
    ASSERT_TRUE(has_ended) << name << " hangs: " << log(name);
    running_.erase(name);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << name << ": " << log(name);
  }
  void expect_all_end() {
    for (int k = 0; k < kClients; ++k) expect_end("client_" + std::to_string(k));
    expect_end("server");
  }
  template <class Happens>
  bool eventually(const Happens& happens) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (!happens()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  int64_t rounds() const {
    std::ifstream file(path("deployed/metrics.jsonl"));
    int64_t rows = 0;
    for (std::string line; std::getline(file, line);) ++rows;
    return rows;
  }

  std::vector<float> model(const std::string& name, int rounds) const {
    const auto reader = records::StateReader::open(
        path(name + "/checkpoints/step_" + std::to_string(rounds) + "/federated.bin"));
    EXPECT_TRUE(reader.ok()) << reader.status().message();
    if (!reader.ok()) return {};
    for (const records::StateEntry& entry : reader->entries()) {
      if (entry.name != "model") continue;
      std::vector<float> values(entry.count);
      EXPECT_TRUE(reader->read("model", std::span(values)).ok());
      return values;
    }
    return {};
  }
  void simulate(const std::string& more) const {
    const test::Outcome outcome = test::run_gradus("federate " + run("simulated", more) + " 2>&1");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  }
  void expect_the_simulations_model(int rounds) const {
    const std::vector<float> deployed = model("deployed", rounds);
    ASSERT_FALSE(deployed.empty());
    EXPECT_EQ(deployed, model("simulated", rounds)) << log("server");
  }

  test::TemporaryFolder folder_;
  int port_ = 0;
  std::map<std::string, pid_t> running_;
};

TEST_F(DeploymentProcesses, EndWithTheModelOfTheSimulation) {
  simulate("");
  start_server();
  for (int k = 0; k < kClients; ++k) start_client(k);
  expect_all_end();
  EXPECT_EQ(rounds(), 8);
  expect_the_simulations_model(8);
  EXPECT_THAT(log("server"), HasSubstr("deployed: scaffold, "));
  EXPECT_THAT(log("server"), HasSubstr(" after 8 rounds; peak memory "));
  EXPECT_THAT(log("client_1"), HasSubstr("the run has ended after 8 rounds"));
  struct stat info {};
  ASSERT_EQ(stat(path("client_0").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const test::Outcome again = test::run_gradus("federate keygen " + path("client_0") + " 2>&1");
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.output, HasSubstr("exists; a key is not written over"));
}

TEST_F(DeploymentProcesses, EndWithTheSameModelAfterKillsOnBothSides) {
  // Enough work that kills find the processes alive: in training, in uploads, wherever they are.
  const std::string slow =
      "--set federated.num_rounds=30 --set federated.local.num_epochs=40 --set "
      "federated.task.hidden=[600]";
  simulate(slow);
  start_server(slow);
  for (int k = 0; k < kClients; ++k) start_client(k, slow);
  // Five kills of each side in turn, at moments spread over a round.
  for (int i = 0; i < 10; ++i) {
    const int64_t from = rounds();
    ASSERT_TRUE(eventually([&] { return rounds() > from; })) << log("server");
    std::this_thread::sleep_for(std::chrono::milliseconds(7 * i));
    if (i % 2 == 0) {
      const int client = i / 2 % kClients;
      kill("client_" + std::to_string(client));
      start_client(client, slow);
    } else {
      kill("server");
      start_server(slow + " --resume");
    }
  }
  EXPECT_LT(rounds(), 30) << "the kills came too late";
  expect_all_end();
  EXPECT_EQ(rounds(), 30) << "each round stands there once";
  expect_the_simulations_model(30);
  EXPECT_THAT(log("server"), HasSubstr("resumed from "));
  EXPECT_THAT(log("client_0"), HasSubstr("the server is gone ("));
}

TEST_F(DeploymentProcesses, GoOnWithoutAClientThatNeverComesBack) {
  const std::string options =
      "--set federated.deploy.round_timeout_s=1 --set federated.deploy.linger_s=1 --set "
      "federated.num_rounds=3 --set federated.local.num_epochs=40";
  start_server(options);
  for (int k = 0; k < kClients; ++k) start_client(k, options);
  ASSERT_TRUE(eventually([&] { return rounds() >= 1; })) << log("server");
  kill("client_2");
  expect_end("client_0");
  expect_end("client_1");
  expect_end("server");
  EXPECT_EQ(rounds(), 3);
  EXPECT_THAT(log("server"), HasSubstr("round 3 goes on without client 2: no report within 1 s"));
}

TEST_F(DeploymentProcesses, TellUsersWhatIsWrong) {
  const auto problem = [&](const std::string& arguments) {
    const test::Outcome outcome = test::run_gradus("federate " + arguments + " 2>&1");
    EXPECT_EQ(outcome.exit_code, 2) << outcome.output;
    return outcome.output;
  };
  EXPECT_THAT(problem(""), HasSubstr("CONFIG is required; name the YAML file of a simulation, or "
                                     "one of serve, join, keygen"));
  port_ = 1;
  EXPECT_THAT(problem(join(0, "--set federated.deploy.retry_s=0")),
              HasSubstr("127.0.0.1:1: Connection refused; tried for 0 s; is gradus federate serve "
                        "running there?"));
  EXPECT_THAT(problem(join(0,
                           "--set federated.mode=async --set "
                           "federated.strategy.staleness_exponent=0.5 --set "
                           "federated.concurrency=1 --set federated.clients.per_round=1")),
              HasSubstr("federated.mode is async, which a deployment does not have"));
  port_ = 0;
  start_server();
  EXPECT_THAT(problem(join(1, "--set federated.local.lr=0.1")),
              HasSubstr("refused: configurations differ"));
  const std::string swapped = "join " + run("deployed") +
                              " --server 127.0.0.1:" + std::to_string(port_) + " --server-key " +
                              path("client_0.pub") + " --key " + path("client_0") + " --client 0";
  EXPECT_THAT(problem(swapped), HasSubstr("the server has the key ed25519:"));
  ASSERT_EQ(::chmod(path("client_2").c_str(), 0644), 0);
  EXPECT_THAT(problem(join(2)), HasSubstr("others may read this private key (mode 0644)"));
  EXPECT_THAT(problem("serve " + run("another") + " --listen 127.0.0.1:" + std::to_string(port_) +
                      " --key " + path("server") + " --clients " + path("clients")),
              HasSubstr("Address already in use; stop what listens there, or take another port"));
  EXPECT_THAT(problem("serve " + run("another") + " --listen 127.0.0.1:0 --key " + path("server") +
                      " --clients " + path("server.pub")),
              HasSubstr("server.pub: 1 client keys, but federated.clients.num_clients is 3"));
  kill("server");
}

}  // namespace
}  // namespace gradus
