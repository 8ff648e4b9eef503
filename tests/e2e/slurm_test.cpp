// SPDX-License-Identifier: Apache-2.0
// The job script of docs/cluster.md under a Slurm of this test's own, on this host: munged,
// slurmctld and slurmd with their files in the test's folder.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/support/job_script.h"
#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using ::testing::HasSubstr;

class Slurm : public test::TinyRun {
 protected:
  void SetUp() override {
    TinyRun::SetUp();
    ASSERT_EQ(geteuid(), 0) << "slurmd starts jobs for others and wants root";
    ASSERT_EQ(test::run_command("PATH=$PATH:/usr/sbin; command -v munged slurmctld slurmd sbatch "
                                ">/dev/null")
                  .exit_code,
              0)
        << "Debian's slurm-wlm and munge are not installed; run tools/setup --slow";
    test::write_file(path("slurm.conf"), fmt::format(R"(ClusterName=gradus
SlurmctldHost=HOST(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={0}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={0}/state
SlurmdSpoolDir={0}/spool
SlurmctldPidFile={0}/slurmctld.pid
SlurmdPidFile={0}/slurmd.pid
SlurmctldPort={1}
SlurmdPort={2}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldLogFile={0}/slurmctld.log
SlurmdLogFile={0}/slurmd.log
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
NodeName=HOST NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=HOST Default=YES MaxTime=INFINITE State=UP
)",
                                                     path(""), port(), port() + 1));
    const std::string up = fmt::format(
        R"(cd {0}; sed -i "s/HOST/$(hostname -s)/" slurm.conf; mkdir munge state spool; chmod 700 munge
dd if=/dev/urandom of=munge/key bs=1 count=1024 2>/dev/null; chmod 400 munge/key
/usr/sbin/munged --foreground --force --key-file={0}/munge/key --socket={0}/munge/socket --pid-file={0}/munge/pid --log-file={0}/munge/log --seed-file={0}/munge/seed & echo $! >daemons
for i in $(seq 100); do [ -S munge/socket ] && break; sleep 0.1; done
export SLURM_CONF={0}/slurm.conf
/usr/sbin/slurmctld -D & echo $! >>daemons
for i in $(seq 100); do sinfo >/dev/null 2>&1 && break; sleep 0.1; done
/usr/sbin/slurmd -D & echo $! >>daemons
for i in $(seq 100); do sinfo -h -o %T | grep -q idle && exit 0; sleep 0.1; done
tail -n 5 *.log; exit 1)",
        path(""));
    const test::RunOutcome outcome = shell("( " + up + " ) </dev/null");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.messages << test::read_file(path("output"));
  }
  void TearDown() override {
    (void)shell(
        fmt::format("cd {}; export SLURM_CONF=$PWD/slurm.conf; scancel --user=root; "
                    "for p in $(tac daemons); do kill $p; done; sleep 1",
                    path("")));
  }
  static int port() { return 20000 + static_cast<int>(getpid()) % 10000 * 2; }

  // Submits the script as one task of two ranks; `meanwhile` knows its $job.
  test::RunOutcome submit(const std::string& name, const std::string& options,
                          const std::string& meanwhile) const {
    test::write_file(path(name + ".sh"), test::job_script(name, options));
    return shell(fmt::format(
        "cd {0}; export SLURM_CONF={0}/slurm.conf OMPI_ALLOW_RUN_AS_ROOT=1 "
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1\n"
        "job=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --output=job.out {1}.sh) || exit 1\n"
        "{2}\nwhile squeue -h -j $job -o %T | grep -q .; do "
        "scontrol update JobId=$job StartTime=now 2>/dev/null; sleep 0.3; done\n"
        "cat job.out >&2; scontrol show job $job >&2; "
        "scontrol show job $job | grep -q JobState=COMPLETED",
        path(""), name, meanwhile));
  }
};

TEST_F(Slurm, TheJobScriptOfTheDocsTrains) {
  train("train", "whole");
  const test::RunOutcome outcome = submit("job", "", "");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_TRUE(state("job") == state("whole"));
}

// What Slurm sends before a job's time is up.
TEST_F(Slurm, AJobWhoseTimeIsUpGoesOnInTheNextOne) {
  const std::string longer =
      "--set trainer.num_steps=60 --set eval.every_steps=0 --set run.dump_rollouts=false";
  train("train", "whole", longer);
  const test::RunOutcome outcome =
      submit("job", longer,
             fmt::format("while [ $(cat {}/runs/job/metrics.jsonl 2>/dev/null | wc -l) -lt 5 ]; do "
                         "sleep 0.05; done; scancel --signal=TERM --batch $job",
                         path("")));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_THAT(outcome.messages, HasSubstr("resumed from "));
  EXPECT_THAT(outcome.messages, HasSubstr("Restarts=1"));
  EXPECT_TRUE(state("job") == state("whole"));
}

}  // namespace
}  // namespace gradus
