// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <dirent.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "common/strings.h"
#include "sandbox/programs.h"
#include "sandbox/sandbox.h"
#include "tests/support/files.h"
#include "tests/support/machine_state.h"

// Programs that want out (hostile.py, hostile.cpp), as the caller and, where that is root, as a
// plain user too: none reaches anything, and after each nothing is left.
namespace gradus::sandbox {
namespace {

using test::descendants;
using test::lines_of;
using test::machine_state;
using test::read_file;

// Things outside that attacks are told of.
class Canaries {
 public:
  Canaries() {
    setenv("GRADUS_CANARY", "CANARY", 1);
    char folder[] = "/tmp/gradus_canary_XXXXXX";
    folder_ = mkdtemp(folder);
    chmod(folder_.c_str(), 0777);
    std::ofstream(folder_ + "/file") << "CANARY";
    chmod((folder_ + "/file").c_str(), 0666);
    tcp_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(tcp_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(tcp_, 8) != 0) {
      ADD_FAILURE() << "no listener";
    }
    getsockname(tcp_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    name_ = fmt::format("gradus_canary_{}", getpid());
    abstract_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un path = {};
    path.sun_family = AF_UNIX;
    name_.copy(path.sun_path + 1, name_.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name_.size());
    if (bind(abstract_, reinterpret_cast<sockaddr*>(&path), length) != 0 ||
        listen(abstract_, 8) != 0) {
      ADD_FAILURE() << "no abstract listener";
    }
  }
  ~Canaries() {
    close(tcp_);
    close(abstract_);
    unlink((folder_ + "/file").c_str());
    rmdir(folder_.c_str());
    unsetenv("GRADUS_CANARY");
  }

  std::string argument_for(const std::string& attack) const {
    if (attack == "tcp") return std::to_string(port_);
    if (attack == "abstract_socket") return name_;
    return folder_ + "/file";
  }

 private:
  std::string folder_, name_;
  int tcp_ = -1, abstract_ = -1, port_ = 0;
};

RunLimits small_limits() {
  return {.cpu_ms = 100,
          .wall_ms = 250,
          .memory_mib = 128,
          .num_processes = 24,
          .output_kib = 64,
          .disk_mib = 8};
}

// Attacks that must not end by themselves, and what must end them.
const std::map<std::string, std::set<RunEnd>>& expected_ends() {
  static const std::set<RunEnd> kTime = {RunEnd::kCpuLimit, RunEnd::kWallLimit};
  static const std::map<std::string, std::set<RunEnd>> ends = {
      {"fork_bomb", kTime},
      {"infinite_loop", {RunEnd::kCpuLimit}},
      {"ignore_signals", {RunEnd::kCpuLimit}},
      {"sleep_forever", {RunEnd::kWallLimit}},
      {"stop_self", {RunEnd::kWallLimit}},
      {"memory_of_many", {RunEnd::kMemoryLimit}},
      {"stdout_flood", {RunEnd::kOutputLimit}},
      {"stderr_flood", {RunEnd::kOutputLimit}},
      {"long_line", {RunEnd::kOutputLimit}},
      {"other_architecture", {RunEnd::kSignalled}},
      {"x32_call", {RunEnd::kSignalled}},
      {"crash", {RunEnd::kSignalled}},
      {"core_dump", {RunEnd::kSignalled}},
  };
  return ends;
}

std::string judge(const std::string& attack, const Result<RunResult>& result) {
  if (!result.ok()) return result.status().message();
  std::string seen = result->stdout_text.substr(0, 300);
  if (!seen.starts_with("tried\n")) return "did not begin: " + result->stderr_text;
  if (result->stdout_text.find("ESCAPED") != std::string::npos) return seen;
  const auto expected = expected_ends().find(attack);
  if (expected != expected_ends().end() && expected->second.count(result->end) == 0) {
    return fmt::format("ended by {} after {} ms, {} ms of a core", run_end_name(result->end),
                       result->wall_ms, result->cpu_ms);
  }
  return "";
}

struct Language {
  const char* name;
  std::function<Run(std::string)> make_run;
};

std::vector<Language> languages(Sandbox& sandbox) {
  const std::string python = read_file("tests/sandbox/hostile.py");
  auto compiled = sandbox.run(cpp_compilation(read_file("tests/sandbox/hostile.cpp")));
  GRADUS_CHECK(compiled.ok(), compiled.status().message());
  GRADUS_CHECK(!compiled->kept.empty(), compiled->stderr_text);
  return {
      {"Python", [=](std::string input) { return python_program(python, input); }},
      {"C++", [binary = compiled->kept](std::string input) { return cpp_program(binary, input); }}};
}

// What went wrong, a line each.
std::vector<std::string> run_suite(int num_rounds) {
  std::vector<std::string> failures;
  const Canaries canaries;
  auto sandbox = Sandbox::create({});
  if (!sandbox.ok()) return {sandbox.status().message()};
  for (const Language& language : languages(**sandbox)) {
    const auto listed = (*sandbox)->run(language.make_run("list\n"));
    const std::vector<std::string> attacks = lines_of(listed.ok() ? listed->stdout_text : "");
    if (attacks.size() < 60) failures.push_back(fmt::format("{} attacks", attacks.size()));
    const std::string before = machine_state();
    for (int round = 0; round < num_rounds; ++round) {
      for (const std::string& attack : attacks) {
        Run run = language.make_run(attack + "\n" + canaries.argument_for(attack) + "\n");
        run.limits = small_limits();
        const std::string failure = judge(attack, (*sandbox)->run(run));
        if (!failure.empty()) {
          failures.push_back(fmt::format("{} {}: {}", language.name, attack, failure));
        }
        const std::string after = machine_state();
        if (after != before) {
          failures.push_back(fmt::format("{} {} left something\n  before: {}\n  after:  {}",
                                         language.name, attack, before, after));
        }
      }
    }
  }
  sandbox->reset();
  if (!descendants().empty()) failures.push_back("a process outlived the sandbox");
  return failures;
}

// In a child process with the rights of a plain user.
std::vector<std::string> run_suite_as_plain_user(int num_rounds) {
  int both[2];
  if (pipe(both) != 0) return {"pipe"};
  const pid_t pid = fork();
  if (pid == 0) {
    constexpr uid_t kPlainUser = 23456;
    if (setgroups(0, nullptr) != 0 || setresgid(kPlainUser, kPlainUser, kPlainUser) != 0 ||
        setresuid(kPlainUser, kPlainUser, kPlainUser) != 0) {
      _exit(1);
    }
    std::string text = join(run_suite(num_rounds), "\n") + "\ndone\n";
    _exit(write(both[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(both[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t size; (size = read(both[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(size));
  }
  close(both[0]);
  waitpid(pid, nullptr, 0);
  if (!text.ends_with("\ndone\n")) return {"the plain user's process ended: " + text};
  text.resize(text.size() - 6);
  return text.empty() ? std::vector<std::string>() : lines_of(text);
}

TEST(HostilePrograms, ReachNothingAndLeaveNothing) { EXPECT_EQ(join(run_suite(1), "\n"), ""); }

TEST(HostilePrograms, ReachNothingAndLeaveNothingUnderAPlainUser) {
  if (geteuid() != 0) GTEST_SKIP() << "the caller is a plain user: the other test is this one";
  EXPECT_EQ(join(run_suite_as_plain_user(1), "\n"), "");
}

// The attacks mean what they say: those that do no harm reach their goals without a sandbox.
TEST(HostilePrograms, SucceedOutside) {
  const Canaries canaries;
  for (const char* attack : {"read_passwd", "own_environment", "tcp", "abstract_socket", "list_sys",
                             "read_canary_file", "write_canary_file", "read_environment_of_init"}) {
    const std::string input = std::string(attack) + "\n" + canaries.argument_for(attack) + "\n";
    std::ofstream("/tmp/gradus_hostile_input") << input;
    FILE* python =
        popen("/usr/bin/python3 tests/sandbox/hostile.py < /tmp/gradus_hostile_input", "r");
    std::string output;
    char buffer[4096];
    for (size_t size; (size = fread(buffer, 1, sizeof buffer, python)) > 0;)
      output.append(buffer, size);
    pclose(python);
    EXPECT_NE(output.find("ESCAPED"), std::string::npos) << attack << ": " << output;
  }
  unlink("/tmp/gradus_hostile_input");
}

}  // namespace
}  // namespace gradus::sandbox
