// SPDX-License-Identifier: Apache-2.0
#include "sandbox/sandbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "sandbox/programs.h"
#include "tests/support/machine_state.h"

namespace gradus::sandbox {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

Sandbox& shared_sandbox() {
  static auto sandbox = Sandbox::create({});
  return **sandbox;
}

RunResult run(const sandbox::Run& run) {
  auto result = shared_sandbox().run(run);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? std::move(*result) : RunResult();
}

std::string compile(const Run& compilation) {
  const RunResult result = run(compilation);
  EXPECT_EQ(result.exit_code, 0) << result.stderr_text;
  EXPECT_FALSE(result.kept.empty());
  return result.kept;
}

TEST(Sandbox, NamesEveryLayerThatIsActive) {
  std::vector<std::string> names;
  for (const Layer& layer : shared_sandbox().layers()) {
    names.push_back(layer.name);
    if (layer.name == "control_group") continue;  // not needed, and seldom to be had
    EXPECT_TRUE(layer.is_active) << layer.name << ": " << layer.detail;
  }
  EXPECT_THAT(names,
              testing::ElementsAre("user_namespace", "private_uid", "mount_namespace",
                                   "pid_namespace", "network_namespace", "ipc_namespace", "seccomp",
                                   "landlock", "process_limit", "tree_watch", "control_group"));
}

TEST(Sandbox, RunsAPythonProgram) {
  const RunResult result = run(python_program(
      "import sys\nprint(int(input()) * 2)\nprint('aside', file=sys.stderr)", "21\n"));
  EXPECT_EQ(result.end, RunEnd::kExited);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.stdout_text, "42\n");
  EXPECT_EQ(result.stderr_text, "aside\n");
}

TEST(Sandbox, GivesTheExitCodeThatAPythonProgramMeans) {
  EXPECT_EQ(run(python_program("import sys; sys.exit(3)", "")).exit_code, 3);
  EXPECT_EQ(run(python_program("import sys; sys.exit('no')", "")).exit_code, 1);
  EXPECT_EQ(run(python_program("raise SystemExit", "")).exit_code, 0);
  const RunResult failed = run(python_program("print('a')\n1/0", ""));
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_EQ(failed.stdout_text, "a\n");
  EXPECT_THAT(failed.stderr_text, EndsWith("ZeroDivisionError: division by zero\n"));
  EXPECT_THAT(run(python_program("def f(:", "")).stderr_text, HasSubstr("SyntaxError"));
}

TEST(Sandbox, KeepsScriptsSeparate) {
  run(python_program("import math, builtins\nmath.pi = 3\nbuiltins.x = 1\nopen('f', 'w')", ""));
  EXPECT_EQ(run(python_program("import math, os, builtins\n"
                               "print(math.pi > 3.1, hasattr(builtins, 'x'), os.listdir('.'))",
                               ""))
                .stdout_text,
            "True False ['main.py']\n");
}

TEST(Sandbox, CallsAPythonFunction) {
  EXPECT_EQ(run(python_call("def f(a, b):\n print('noise')\n return [a + b, (a,), {'k': None}]",
                            "f", "[1, 2]"))
                .result,
            "[3, [1], {\"k\": null}]");
  const char* solution = "class Solution:\n def twice(self, s): return s * 2";
  EXPECT_EQ(run(python_call(solution, "twice", "[\"ab\"]")).result, "\"abab\"");
  EXPECT_EQ(run(python_call(solution, "Solution.twice", "[[1]]")).result, "[1, 1]");
  // A main block is no part of the function.
  EXPECT_EQ(
      run(python_call("def f(): return 1\nif __name__ == '__main__': input()", "f", "[]")).result,
      "1");
}

TEST(Sandbox, HasNoResultOfAFunctionThatDoesNotReturnOne) {
  for (const char* source :
       {"def f(): raise ValueError", "def f(): return {1}", "import os\ndef f(): os._exit(0)",
        "import sys\ndef f(): sys.exit(0)", "g = 1", "import sys\nsys.exit(0)"}) {
    EXPECT_EQ(run(python_call(source, "f", "[]")).result, "") << source;
  }
}

TEST(Sandbox, CompilesAndRunsCpp) {
  const std::string binary = compile(cpp_compilation(
      "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << 2 * n; return 5; }"));
  const RunResult result = run(cpp_program(binary, "21"));
  EXPECT_EQ(result.stdout_text, "42");
  EXPECT_EQ(result.exit_code, 5);
  const RunResult broken = run(cpp_compilation("int main() { return x; }"));
  EXPECT_EQ(broken.exit_code, 1);
  EXPECT_EQ(broken.kept, "");
  EXPECT_THAT(broken.stderr_text, HasSubstr("was not declared in this scope"));
}

TEST(Sandbox, CallsACppFunctionWithEveryTypeOfArgument) {
  const std::string binary = compile(cpp_call_compilation(
      "#include <bits/stdc++.h>\nusing namespace std;\n"
      "tuple<bool, vector<string>, map<string, vector<double>>, optional<int>, pair<char, long>> "
      "f(bool b, const vector<string>& words, map<string, vector<double>> m, optional<int> o,\n"
      "  pair<char, long>& p) { p.second *= 2; words.size(); return {!b, words, m, o, p}; }\n"
      "int main() { return f(true, {}, {}, {}, *new pair<char, long>), 1; }",
      "f"));
  EXPECT_EQ(run(cpp_call(binary, R"([true, ["a\"\u00e9\n", ""], {"k": [1, 2.5e3], "l": []}, null,
                                   ["x", -9007199254740993]])"))
                .result,
            "[false,[\"a\\\"\xc3\xa9\\u000a\",\"\"],{\"k\":[1,2500],\"l\":[]},null,"
            "[\"x\",-18014398509481986]]");
  const RunResult misfit = run(cpp_call(binary, R"([true, [], {}, null, ["x", 1.5]])"));
  EXPECT_EQ(misfit.result, "");
  EXPECT_EQ(misfit.exit_code, 3);
  EXPECT_THAT(misfit.stderr_text,
              StartsWith("arguments do not fit the function: expected a whole number at '.5]"));
}

TEST(Sandbox, CallsACppMethodAndTakesTheFirstArgumentOfAVoidOne) {
  const std::string binary = compile(
      cpp_call_compilation("#include <vector>\n#include <algorithm>\nclass Solution { public:\n"
                           "void order(std::vector<int>& v) { std::sort(v.begin(), v.end()); } };",
                           "order"));
  EXPECT_EQ(run(cpp_call(binary, "[[3, 1, 2]]")).result, "[1,2,3]");
}

TEST(Sandbox, CarriesLargeInputsAndOutputs) {
  std::string input;
  while (input.size() < 5 << 20) input += "0123456789abcdef\n";
  sandbox::Run echo =
      python_program("import sys; sys.stdout.write(sys.stdin.read()); print('end')", input);
  echo.limits.output_kib = 8192;
  const RunResult result = run(echo);
  EXPECT_EQ(result.end, RunEnd::kExited);
  EXPECT_TRUE(result.stdout_text == input + "end\n");
}

TEST(Sandbox, EndsWhatPassesALimitAndSaysWhich) {
  sandbox::Run loop = python_program("print('begun', flush=True)\nwhile True: pass", "");
  loop.limits.cpu_ms = 150;
  const RunResult looped = run(loop);
  EXPECT_EQ(looped.end, RunEnd::kCpuLimit);
  EXPECT_EQ(looped.stdout_text, "begun\n");
  EXPECT_GE(looped.cpu_ms, 150);

  sandbox::Run sleep = python_program("import time; time.sleep(100)", "");
  sleep.limits.wall_ms = 100;
  EXPECT_EQ(run(sleep).end, RunEnd::kWallLimit);

  sandbox::Run flood = python_program("while True: print('x' * 1000)", "");
  flood.limits.output_kib = 3;
  const RunResult flooded = run(flood);
  EXPECT_EQ(flooded.end, RunEnd::kOutputLimit);
  EXPECT_EQ(flooded.stdout_text.size(), 3 * 1024u);

  // Each of eight is within its own limit, all together are not.
  sandbox::Run many = python_program(
      "import os, time\nfor i in range(8):\n if os.fork() == 0: break\n"
      "b = bytearray(40 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\ntime.sleep(100)",
      "");
  many.limits.memory_mib = 128;
  EXPECT_EQ(run(many).end, RunEnd::kMemoryLimit);

  sandbox::Run one = python_program("b = bytearray(400 << 20)", "");
  one.limits.memory_mib = 128;
  EXPECT_THAT(run(one).stderr_text, EndsWith("MemoryError\n"));

  sandbox::Run output_at_once = python_program("import os; os.write(1, b'x' * 5000)", "");
  output_at_once.limits.output_kib = 4;
  EXPECT_EQ(run(output_at_once).end, RunEnd::kOutputLimit);
}

TEST(Sandbox, StopsTheClockForAProgramThatGetsNoCore) {
  // Four programs that want 200 ms of a core each within 300 ms, on whatever the machine has left:
  // with a clock that did not stop, a loaded machine would decide about them.
  auto sandbox = Sandbox::create({.num_workers = 4});
  ASSERT_TRUE(sandbox.ok());
  std::vector<std::thread> threads;
  std::vector<RunEnd> ends(4, RunEnd::kStarved);
  for (size_t i = 0; i < ends.size(); ++i) {
    threads.emplace_back([&, i] {
      sandbox::Run run =
          python_program("import time\nwhile time.process_time() < 0.2: pass\nprint('done')", "");
      run.limits.wall_ms = 300;
      const auto result = (*sandbox)->run(run);
      if (result.ok()) ends[i] = result->end;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const RunEnd end : ends) EXPECT_EQ(end, RunEnd::kExited) << run_end_name(end);
}

TEST(Sandbox, KeepsAFileButNeverWhatALinkPointsAt) {
  sandbox::Run keep = python_program("open('out', 'w').write('kept')", "");
  keep.kept_file = "out";
  EXPECT_EQ(run(keep).kept, "kept");
  sandbox::Run link = python_program("import os; os.symlink('/usr/bin/env', 'out')", "");
  link.kept_file = "out";
  EXPECT_EQ(run(link).kept, "");
  sandbox::Run pipe = python_program("import os; os.mkfifo('out')", "");
  pipe.kept_file = "out";
  EXPECT_EQ(run(pipe).kept, "");
}

TEST(Sandbox, RunsProgramsOfManyThreadsAtOnce) {
  auto sandbox = Sandbox::create({.num_workers = 2});
  ASSERT_TRUE(sandbox.ok());
  std::vector<std::thread> threads;
  std::vector<std::string> outputs(24);
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < outputs.size(); i += 4) {
        const auto result = (*sandbox)->run(python_program("print(input())", std::to_string(i)));
        if (result.ok()) outputs[i] = result->stdout_text;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < outputs.size(); ++i) EXPECT_EQ(outputs[i], std::to_string(i) + "\n");
}

TEST(Sandbox, SaysWhatIsWrongWithItsOptions) {
  EXPECT_EQ(Sandbox::create({.num_workers = 0}).status().message(),
            "sandbox: num_workers is 0; expected at least 1");
  EXPECT_EQ(Sandbox::create({.read_only = {"opt"}}).status().message(),
            "sandbox: read_only: 'opt' is no absolute path below /");
  EXPECT_THAT(
      Sandbox::create({.allow_missing = {"pid_namespace"}}).status().message(),
      StartsWith("sandbox: allow_missing: nothing can be run without 'pid_namespace'; known: "));
  EXPECT_THAT(Sandbox::create({.allow_missing = {"landlok"}}).status().message(),
              HasSubstr("did you mean 'landlock'?; known: user_namespace, private_uid, "));
  const auto missing_path = Sandbox::create({.read_only = {"/no/such/path"}});
  EXPECT_THAT(missing_path.status().message(),
              HasSubstr("mount_namespace (bind of a read_only path: No such file or directory)"));
}

TEST(Sandbox, ReadsWhatItIsAllowedToBesideUsr) {
  char folder[] = "/tmp/gradus_read_only_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  ASSERT_EQ(chmod(folder, 0755), 0);
  std::ofstream(std::string(folder) + "/data") << "seen";
  // Below /tmp it would be hidden by the working folder, so it is said to be wrong.
  EXPECT_EQ(Sandbox::create({.read_only = {folder}}).status().message(),
            std::string("sandbox: read_only: '") + folder +
                "' lies below /tmp, which every run has for itself; choose another place");
  unlink((std::string(folder) + "/data").c_str());
  rmdir(folder);
}

TEST(Sandbox, SaysThatPythonIsMissing) {
  auto sandbox = Sandbox::create({.python = "/usr/bin/no-python"});
  ASSERT_TRUE(sandbox.ok());
  EXPECT_EQ((*sandbox)->run(python_program("", "")).status().message(),
            "sandbox: python '/usr/bin/no-python' does not start: No such file or directory");
  // Other programs do not need it.
  EXPECT_TRUE((*sandbox)->run({.arguments = {"/bin/true"}}).ok());
  EXPECT_EQ((*sandbox)->run({.arguments = {"/bin/no-program"}}).status().message(),
            "sandbox: exec: No such file or directory");
}

TEST(Sandbox, GoesOnAfterAWorkerWasKilled) {
  auto sandbox = Sandbox::create({});
  ASSERT_TRUE(sandbox.ok());
  ASSERT_TRUE((*sandbox)->run(python_program("", "")).ok());
  // Its launcher is the youngest child.
  std::ifstream children("/proc/thread-self/children");
  int pid = 0;
  while (children >> pid) {
  }
  ASSERT_GT(pid, 0);
  kill(pid, SIGKILL);
  EXPECT_EQ((*sandbox)->run(python_program("", "")).status().message(),
            "sandbox: a worker has ended or does not answer; it is started anew");
  EXPECT_EQ((*sandbox)->run(python_program("print(1)", ""))->stdout_text, "1\n");
}

TEST(Sandbox, DiesWithItsOwner) {
  const std::vector<int> others = test::descendants();  // of the sandbox that tests share
  const auto find_new = [&] {
    std::vector<int> pids;
    for (const int pid : test::descendants()) {
      if (std::find(others.begin(), others.end(), pid) == others.end()) pids.push_back(pid);
    }
    return pids;
  };
  int both[2];
  ASSERT_EQ(pipe(both), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    auto sandbox = Sandbox::create({});
    if (!sandbox.ok() || !(*sandbox)->run(python_program("", "")).ok()) _exit(1);
    if (write(both[1], "r", 1) != 1) _exit(1);
    sandbox::Run sleep = python_program("import time; time.sleep(1000)", "");
    sleep.limits.wall_ms = 1000000;
    if (!(*sandbox)->run(sleep).ok()) _exit(1);
    _exit(0);
  }
  char ready = 0;
  ASSERT_EQ(read(both[0], &ready, 1), 1);
  // The owner, the launcher, the worker, the zygote, the run's init and its program.
  std::vector<int> pids;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while ((pids = find_new()).size() < 6 && std::chrono::steady_clock::now() < deadline) {
    usleep(10000);
  }
  ASSERT_GE(pids.size(), 6u);
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  const auto num_alive = [&] {
    return std::count_if(pids.begin(), pids.end(), [&](int pid) {
      return pid != owner && kill(pid, 0) == 0 &&
             test::read_if_there(fmt::format("/proc/{}/stat", pid)).find(") Z ") ==
                 std::string::npos;
    });
  };
  while (num_alive() > 0 && std::chrono::steady_clock::now() < deadline) usleep(10000);
  EXPECT_EQ(num_alive(), 0);
}

// Makes one system call fail for this process and its children, as an older kernel would.
void forbid(int call) {
  sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<uint32_t>(call)},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | ENOSYS},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog program = {4, code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

// What `question` answers in a process in which `call` is forbidden.
std::string without_call(int call, const std::function<std::string()>& question) {
  int both[2];
  if (pipe(both) != 0) return "pipe";
  const pid_t pid = fork();
  if (pid == 0) {
    forbid(call);
    const std::string answer = question();
    _exit(write(both[1], answer.data(), answer.size()) < 0 ? 1 : 0);
  }
  close(both[1]);
  char buffer[4096];
  const ssize_t size = read(both[0], buffer, sizeof buffer);
  close(both[0]);
  waitpid(pid, nullptr, 0);
  return std::string(buffer, size > 0 ? static_cast<size_t>(size) : 0);
}

TEST(Sandbox, RefusesToRunWithoutALayerUnlessItIsNamed) {
  EXPECT_EQ(
      without_call(SYS_landlock_create_ruleset,
                   [] { return Sandbox::create({}).status().message(); }),
      "sandbox: 1 of 10 layers missing, so nothing is run: landlock (landlock_create_ruleset: "
      "Function not implemented): the mount namespace alone keeps programs from files; let "
      "the kernel give them, or name in allow_missing what you can do without");
  EXPECT_EQ(without_call(SYS_landlock_create_ruleset,
                         [] {
                           auto sandbox = Sandbox::create({.allow_missing = {"landlock"}});
                           if (!sandbox.ok()) return sandbox.status().message();
                           return (*sandbox)->run(python_program("print('ran')", ""))->stdout_text;
                         }),
            "ran\n");
  const std::string no_namespaces =
      without_call(SYS_unshare, [] { return Sandbox::create({}).status().message(); });
  EXPECT_THAT(no_namespaces, HasSubstr("mount_namespace (unshare: Function not implemented)"));
  EXPECT_THAT(no_namespaces, HasSubstr("network_namespace"));
  EXPECT_THAT(no_namespaces, HasSubstr("user_namespace"));
}

}  // namespace
}  // namespace gradus::sandbox
