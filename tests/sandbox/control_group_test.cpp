// SPDX-License-Identifier: Apache-2.0
#include "sandbox/internal/control_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "sandbox/programs.h"
#include "sandbox/sandbox.h"
#include "tests/support/files.h"

namespace gradus::sandbox {
namespace {

namespace fs = std::filesystem;

// A process that does what it is told once it has been put into a group.
class HeldProcess {
 public:
  explicit HeldProcess(int (*work)()) {
    EXPECT_EQ(pipe(fds_), 0);
    pid_ = fork();
    if (pid_ == 0) {
      char go = 0;
      _exit(read(fds_[0], &go, 1) == 1 ? work() : 99);
    }
  }
  pid_t pid() const { return pid_; }
  int finish() {
    EXPECT_EQ(write(fds_[1], "g", 1), 1);
    int status = 0;
    waitpid(pid_, &status, 0);
    close(fds_[0]);
    close(fds_[1]);
    return status;
  }

 private:
  int fds_[2];
  pid_t pid_ = 0;
};

int touch_100_mib() {
  constexpr size_t kSize = 100 << 20;
  auto* const data = static_cast<char*>(
      mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (size_t i = 0; i < kSize; i += 4096) data[i] = 1;
  return 0;
}

int count_forks() {
  pid_t children[20];
  int num_forks = 0;
  for (; num_forks < 20; ++num_forks) {
    const pid_t child = fork();
    if (child < 0) break;
    if (child == 0) {
      pause();
      _exit(0);
    }
    children[num_forks] = child;
  }
  for (int i = 0; i < num_forks; ++i) {
    kill(children[i], SIGKILL);
    waitpid(children[i], nullptr, 0);
  }
  return num_forks;
}

TEST(ControlGroup, BoundsMemoryAndProcessesOfThisMachine) {
  auto group = ControlGroup::create();
  if (!group.ok()) GTEST_SKIP() << group.status().message();
  SCOPED_TRACE((*group)->description());
  HeldProcess hog(touch_100_mib);
  const Status status = (*group)->add(hog.pid());
  if (!status.ok()) {
    hog.finish();
    GTEST_SKIP() << status.message();
  }
  ASSERT_TRUE((*group)->set_limits(32 << 20, 4).ok());
  EXPECT_EQ((*group)->num_memory_kills(), 0u);
  const int end = hog.finish();
  EXPECT_TRUE(WIFSIGNALED(end) && WTERMSIG(end) == SIGKILL) << end;
  EXPECT_EQ((*group)->num_memory_kills(), 1u);

  ASSERT_TRUE((*group)->set_limits(64 << 20, 4).ok());
  HeldProcess forker(count_forks);
  ASSERT_TRUE((*group)->add(forker.pid()).ok());
  EXPECT_EQ(WEXITSTATUS(forker.finish()), 3);

  const std::string text = (*group)->description();
  const std::string folder = text.substr(text.rfind(' ') + 1);
  EXPECT_TRUE(fs::exists(folder)) << folder;
  group->reset();
  EXPECT_FALSE(fs::exists(folder)) << folder;
}

TEST(ControlGroup, HoldsEveryWorkerOfASandbox) {
  auto sandbox = Sandbox::create({});
  ASSERT_TRUE(sandbox.ok()) << sandbox.status().message();
  const Layer& layer = (*sandbox)->layers().back();
  ASSERT_EQ(layer.name, "control_group");
  const auto own = ControlGroup::create();
  if (!own.ok()) {
    EXPECT_EQ(layer.detail, own.status().message());
  }
  if (!layer.is_active && !own.ok()) GTEST_SKIP() << layer.detail;
  ASSERT_TRUE(layer.is_active) << layer.detail;
  sandbox::Run run = python_program("print(1)", "");
  run.limits.memory_mib = 100;
  run.limits.disk_mib = 10;
  run.limits.num_processes = 10;
  ASSERT_TRUE((*sandbox)->run(run).ok());
  const bool is_version_2 = layer.detail.starts_with("version 2");
  const std::string memory =
      layer.detail.substr(layer.detail.find('/'), layer.detail.find(',') - layer.detail.find('/'));
  const std::string pids = layer.detail.substr(layer.detail.rfind(' ') + 1);
  EXPECT_EQ(test::read_file(memory + (is_version_2 ? "/memory.max" : "/memory.limit_in_bytes")),
            std::to_string((100 + 10 + 64) << 20) + "\n");
  EXPECT_EQ(test::read_file(pids + "/pids.max"), "26\n");
  // The launcher, the worker and the Python zygote.
  const std::string members = test::read_file(pids + "/cgroup.procs");
  EXPECT_EQ(std::count(members.begin(), members.end(), '\n'), 3) << members;

  // Faster than the watch can look, whoever of them is killed, and the worker goes on.
  sandbox::Run bomb = python_program(
      "import os\nfor i in range(8):\n if os.fork() == 0: break\n"
      "b = bytearray(50 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\n"
      "import time\ntime.sleep(9)",
      "");
  bomb.limits = run.limits;
  for (int i = 0; i < 10; ++i) {
    const auto result = (*sandbox)->run(bomb);
    ASSERT_TRUE(result.ok()) << result.status().message();
    EXPECT_EQ(result->end, RunEnd::kMemoryLimit) << run_end_name(result->end);
  }

  // What the watch takes for the zygote's: pages of it that each of many processes has copied.
  sandbox::Run copies = python_program(
      "import gc, os, time\nfor i in range(50):\n if os.fork() == 0:\n"
      "  gc.unfreeze(); gc.collect()\n  time.sleep(2)\n  os._exit(0)\n"
      "for i in range(50): os.wait()",
      "");
  copies.limits = run.limits;
  copies.limits.memory_mib = 60;
  copies.limits.num_processes = 64;
  const auto copied = (*sandbox)->run(copies);
  ASSERT_TRUE(copied.ok()) << copied.status().message();
  EXPECT_EQ(copied->end, RunEnd::kMemoryLimit) << run_end_name(copied->end);
  EXPECT_EQ((*sandbox)->run(run)->stdout_text, "1\n");
  sandbox->reset();
  EXPECT_FALSE(fs::exists(memory));
  EXPECT_FALSE(fs::exists(pids));
}

// A machine on paper: its /proc/self and its hierarchies are folders of files.
class PaperMachine : public ::testing::Test {
 protected:
  void mount(const std::string& type, const std::string& root, const std::string& options) {
    mountinfo_ += "31 23 0:28 " + root + " " + point(options) + " rw shared:1 - " + type +
                  " cgroup " + options + "\n";
    test::write_file(proc() + "/mountinfo", mountinfo_);
  }
  void member(const std::string& line) {
    cgroup_ += line + "\n";
    test::write_file(proc() + "/cgroup", cgroup_);
  }
  std::string proc() const { return folder_.path(); }
  std::string point(const std::string& options) const { return folder_.path() + "/" + options; }
  std::string message() const { return ControlGroup::create(proc()).status().message(); }

  test::TemporaryFolder folder_;
  std::string mountinfo_ = "22 1 254:0 / / rw - ext4 /dev/vda rw\n", cgroup_;
};

TEST_F(PaperMachine, HasAGroupOfVersion2BesideItsOwn) {
  mount("cgroup2", "/", "rw");
  member("0::/user/scope");
  fs::create_directories(point("rw") + "/user/scope");
  test::write_file(point("rw") + "/user/cgroup.subtree_control", "cpu memory pids\n");
  test::write_file(point("rw") + "/user/scope/cgroup.subtree_control", "\n");
  // Of a process that is no more, and of one that is still there.
  const std::string abandoned = point("rw") + "/user/gradus-sandbox-999999999-0";
  const std::string alive = point("rw") + "/user/gradus-sandbox-" + std::to_string(getpid()) + "-x";
  fs::create_directory(abandoned);
  fs::create_directory(alive);
  auto group = ControlGroup::create(proc());
  ASSERT_TRUE(group.ok()) << group.status().message();
  EXPECT_FALSE(fs::exists(abandoned));
  EXPECT_TRUE(fs::exists(alive));
  const std::string description = (*group)->description();
  EXPECT_THAT(description,
              testing::StartsWith("version 2: " + point("rw") + "/user/gradus-sandbox-"));
  const std::string own = description.substr(description.rfind(' ') + 1);
  EXPECT_THAT((*group)->add(7).message(),
              testing::HasSubstr("cgroup.procs: No such file or directory"));
  for (const char* file : {"cgroup.procs", "memory.max", "pids.max"}) {
    test::write_file(own + "/" + file, "");
  }
  test::write_file(own + "/memory.events", "oom 3\noom_kill 2\noom_group_kill 0\n");
  EXPECT_TRUE((*group)->add(7).ok());
  EXPECT_TRUE((*group)->set_limits(1 << 20, 5).ok());
  EXPECT_EQ(test::read_file(own + "/cgroup.procs"), "7");
  EXPECT_EQ(test::read_file(own + "/memory.max"), "1048576");
  EXPECT_EQ(test::read_file(own + "/pids.max"), "5");
  EXPECT_EQ((*group)->num_memory_kills(), 2u);
  for (const fs::directory_entry& file : fs::directory_iterator(own)) fs::remove(file.path());
}

TEST_F(PaperMachine, HasAGroupOfVersion1InItsOwn) {
  // As in a container: what is mounted begins at the group that the process is in.
  mount("cgroup", "/box/1", "rw,memory");
  mount("cgroup", "/box/1", "rw,pids");
  mount("cgroup2", "/", "rw");
  member("4:memory:/box/1/job");
  member("8:pids:/box/1");
  member("0::/");
  fs::create_directories(point("rw,memory") + "/job");
  fs::create_directories(point("rw,pids"));
  auto group = ControlGroup::create(proc());
  ASSERT_TRUE(group.ok()) << group.status().message();
  EXPECT_THAT(
      (*group)->description(),
      testing::AllOf(testing::StartsWith("version 1: " + point("rw,memory") + "/job/gradus-"),
                     testing::HasSubstr(", " + point("rw,pids") + "/gradus-")));
}

TEST_F(PaperMachine, SaysWhyThereIsNone) {
  EXPECT_EQ(message(), "no hierarchy with the controllers memory and pids is mounted");
  mount("cgroup2", "/", "rw");
  member("0::/user");
  fs::create_directories(point("rw") + "/user");
  EXPECT_EQ(message(), point("rw") + " hands down no controllers memory and pids");
  test::write_file(point("rw") + "/cgroup.subtree_control", "memory pids");
  EXPECT_TRUE(ControlGroup::create(proc()).ok());
  // Version 1 that has one of the two cannot be joined with version 2.
  mount("cgroup", "/", "rw,memory");
  mount("cgroup", "/", "rw,pids");
  member("4:memory:/none");
  member("8:pids:/none");
  EXPECT_THAT(message(),
              testing::MatchesRegex("mkdir .*/none/gradus-.*: No such file or directory"));
}

}  // namespace
}  // namespace gradus::sandbox
