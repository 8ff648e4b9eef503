// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

#include "sandbox/programs.h"
#include "sandbox/sandbox.h"
#include "tests/support/files.h"
#include "tests/support/machine_state.h"

namespace gradus::sandbox {
namespace {

// Resident memory of the sandbox's processes, in KiB.
int64_t resident_kib() {
  int64_t total = 0;
  for (const int pid : test::descendants()) {
    std::ifstream statm(fmt::format("/proc/{}/statm", pid));
    int64_t size = 0, resident = 0;
    statm >> size >> resident;
    total += resident * 4;
  }
  return total;
}

TEST(Sandbox, LeavesNothingAfterTenThousandRuns) {
  auto sandbox = Sandbox::create({});
  ASSERT_TRUE(sandbox.ok()) << sandbox.status().message();
  const std::string attacks = test::read_file("tests/sandbox/hostile.py");
  const auto compiled =
      (*sandbox)->run(cpp_compilation(test::read_file("tests/sandbox/hostile.cpp")));
  ASSERT_TRUE(compiled.ok());
  // Those that try to leave something and take no time.
  const std::vector<std::string> names = {
      "daemon",       "leave_files",    "orphans_that_hold_output", "zombies",
      "many_files",   "shared_memory",  "message_queues",           "kill_all",
      "close_output", "find_left_files"};
  const auto one = [&](size_t i) {
    const std::string input = names[i / 4 % names.size()] + "\n";
    sandbox::Run run = i % 4 == 0   ? python_program(attacks, input)
                       : i % 4 == 1 ? cpp_program(compiled->kept, input)
                       : i % 4 == 2 ? python_program("print(input())", "1\n")
                                    : python_call("def f(x): return x", "f", "[1]");
    const auto result = (*sandbox)->run(run);
    ASSERT_TRUE(result.ok()) << result.status().message();
    ASSERT_EQ(result->stdout_text.find("ESCAPED"), std::string::npos) << result->stdout_text;
  };
  for (size_t i = 0; i < 100; ++i) one(i);
  const std::string before = test::machine_state();
  const int64_t memory_before = resident_kib();
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < 10000; ++i) one(i);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(test::machine_state(), before);
  EXPECT_LT(resident_kib(), memory_before + 4096);
  std::printf("10000 runs in %.1f s; memory %ld KiB before, %ld after; %s\n", seconds.count(),
              memory_before, resident_kib(), before.c_str());
  sandbox->reset();
  EXPECT_TRUE(test::descendants().empty());
}

}  // namespace
}  // namespace gradus::sandbox
