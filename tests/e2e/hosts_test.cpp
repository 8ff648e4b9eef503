// SPDX-License-Identifier: Apache-2.0
// A run over two hosts: network namespaces joined by a cable, which is pulled. Needs root and `ip`.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using ::testing::HasSubstr;

class Hosts : public test::TinyRun {
 protected:
  void SetUp() override {
    TinyRun::SetUp();
    if (geteuid() != 0 || test::run_command("ip netns list").exit_code != 0) {
      GTEST_SKIP() << "network namespaces need root and the ip command";
    }
    test::write_file(path("agent"),
                     "#!/bin/sh\nhost=$1; shift\nexec ip netns exec \"$host\" sh -c \"$*\"\n");
    const std::string up = fmt::format(
        "chmod +x {2} && ip netns add {0} && ip netns add {1} && "
        "ip link add {3}a type veth peer name {3}b && "
        "ip link set {3}a netns {0} && ip link set {3}b netns {1} && "
        "ip netns exec {0} ip addr add 10.77.0.1/24 dev {3}a && "
        "ip netns exec {1} ip addr add 10.77.0.2/24 dev {3}b && "
        "for host in {0} {1}; do ip netns exec $host ip link set lo up; done && "
        "ip netns exec {0} ip link set {3}a up && ip netns exec {1} ip link set {3}b up",
        host(1), host(2), path("agent"), cable());
    ASSERT_EQ(test::run_command(up).exit_code, 0) << up;
    train("train", "whole", kOptions);
  }
  void TearDown() override {
    // The namespaces take the cable along; what still runs in them is this test's own.
    (void)test::run_command(fmt::format(
        "for host in {} {}; do for p in $(ip netns pids $host); do kill -KILL $p; done; "
        "ip netns del $host; done",
        host(1), host(2)));
  }

  // Open MPI takes letters, digits and hyphens in the name of a host.
  static std::string host(int number) { return fmt::format("gradus{}-{}", number, getpid()); }
  static std::string cable() { return fmt::format("gv{}", getpid() % 1000000); }
  static std::string pull() {
    return fmt::format("ip netns exec {} ip link set {}b down; ", host(2), cable());
  }
  static std::string plug() {
    return fmt::format("ip netns exec {} ip link set {}b up; ", host(2), cable());
  }
  std::string mpirun() const {
    return fmt::format(
        "ip netns exec {} mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 "
        "--map-by node --mca plm_rsh_agent {} --mca btl_tcp_if_include 10.77.0.0/24 --mca "
        "oob_tcp_if_include 10.77.0.0/24",
        host(1), path("agent"));
  }
  static std::string hosts() { return host(1) + ":2," + host(2) + ":2"; }
  // Starts `command` in the background and waits for the tenth row of the run's metrics.
  std::string start(const std::string& command, const std::string& name) const {
    return fmt::format(
        "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1\n{} & pid=$!\n"
        "while kill -0 $pid && [ $(cat {} 2>/dev/null | wc -l) -lt 10 ]; do sleep 0.01; done\n",
        command, path("runs/" + name + "/metrics.jsonl"));
  }

  const std::string kOptions =
      "--set trainer.num_steps=200 --set eval.every_steps=0 --set run.checkpoint_every=20 "
      "--set run.dump_rollouts=false ";
};

TEST_F(Hosts, ALinkThatIsCutForFiveSecondsIsWaitedFor) {
  const test::RunOutcome outcome =
      shell(start(mpirun() + " --host " + hosts() + " -np 2 " + GRADUS_BINARY + " " +
                      arguments("train", "cut", kOptions),
                  "cut") +
            pull() + "sleep 5; " + plug() + "wait $pid");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_TRUE(state("cut") == state("whole"));
}

TEST_F(Hosts, ADeadHostIsDoneWithoutAfterARestart) {
  const test::RunOutcome outcome = shell(
      start(fmt::format("{} launch -np 2 --hosts {} --checkpoint-every 5 --mpirun \"{}\" -- {}",
                        GRADUS_BINARY, hosts(), mpirun(), arguments("train", "dead", kOptions)),
            "dead") +
      pull() +
      fmt::format("for p in $(ip netns pids {0}); do kill -STOP $p; done\n"
                  "( sleep 14; for p in $(ip netns pids {0}); do kill -KILL $p; done\n",
                  host(2)) +
      plug() + ") &\nwait $pid");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_THAT(outcome.messages, HasSubstr("the run is stuck: rank 1 gave no sign of life for 8."));
  EXPECT_THAT(outcome.messages, HasSubstr("the run starts again from its newest checkpoint"));
  EXPECT_TRUE(state("dead") == state("whole"));
}

}  // namespace
}  // namespace gradus
