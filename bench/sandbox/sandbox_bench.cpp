// SPDX-License-Identifier: Apache-2.0
#include "sandbox/sandbox.h"

#include <benchmark/benchmark.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>

#include "sandbox/programs.h"
#include "tests/support/machine_state.h"

// What a run costs over what it cannot do without: the same program by fork and exec. One worker,
// so that programs run one after another: what it does in a second is what a core does.
//
// bench_sandbox_sandbox --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
namespace gradus::sandbox {
namespace {

Sandbox& shared_sandbox() {
  static auto sandbox = Sandbox::create({});
  return **sandbox;
}

// Of this process and those below it, with what they have waited for.
double core_seconds() {
  int64_t ticks = 0;
  std::vector<int> pids = test::descendants();
  pids.push_back(getpid());
  for (const int pid : pids) {
    const std::string stat = test::read_if_there(fmt::format("/proc/{}/stat", pid));
    std::istringstream fields(stat.substr(stat.rfind(')') + 1));
    std::string field;
    int64_t value = 0;
    for (int i = 3; i < 14 && fields >> field; ++i) {
    }
    for (int i = 14; i < 18 && fields >> value; ++i) ticks += value;
  }
  return static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

void ForkAndExec(benchmark::State& state, const char* program, const char* argument) {
  const double before = core_seconds();
  for (auto _ : state) {
    const pid_t pid = fork();
    if (pid == 0) {
      execl(program, program, "-c", argument, nullptr);
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (status != 0) state.SkipWithError("exit code");
  }
  state.counters["core_ms"] =
      1000 * (core_seconds() - before) / static_cast<double>(state.iterations());
}
BENCHMARK_CAPTURE(ForkAndExec, true, "/bin/true", "")->UseRealTime()->MinTime(2);
BENCHMARK_CAPTURE(ForkAndExec, python, "/usr/bin/python3", "x = 1")->UseRealTime()->MinTime(2);

void run_all(benchmark::State& state, const Run& run, const char* output) {
  const double before = core_seconds();
  for (auto _ : state) {
    const auto result = shared_sandbox().run(run);
    if (!result.ok() || result->stdout_text != output) state.SkipWithError("no result");
  }
  state.counters["core_ms"] =
      1000 * (core_seconds() - before) / static_cast<double>(state.iterations());
}

void SandboxedTrue(benchmark::State& state) { run_all(state, {.arguments = {"/bin/true"}}, ""); }
BENCHMARK(SandboxedTrue)->UseRealTime()->MinTime(2);

void OnePythonTest(benchmark::State& state) {
  run_all(state, python_program("n = int(input())\nprint(n * (n + 1) // 2)", "100\n"), "5050\n");
}
BENCHMARK(OnePythonTest)->UseRealTime()->MinTime(2);

void OneCppTest(benchmark::State& state) {
  const auto compiled = shared_sandbox().run(cpp_compilation(
      "#include <cstdio>\nint main() { int n; scanf(\"%d\", &n); printf(\"%d\\n\", 2 * n); }"));
  run_all(state, cpp_program(compiled->kept, "100\n"), "200\n");
}
BENCHMARK(OneCppTest)->UseRealTime()->MinTime(2);

}  // namespace
}  // namespace gradus::sandbox

BENCHMARK_MAIN();
