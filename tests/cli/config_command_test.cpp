// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace gradus::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  int exit_code;
  std::string output;
};

// Runs the built binary; `arguments` go through the shell, with standard error in the output unless
// it is redirected.
Outcome run_gradus(const std::string& arguments) {
  std::FILE* pipe = popen((std::string(GRADUS_BINARY) + " " + arguments).c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    output.append(buffer.data(), size);
  }
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

TEST(ConfigCommand, PrintsResolvedYamlWithOrigins) {
  const Outcome outcome = run_gradus(
      "config print tests/golden/config/chain_sum.yaml --set rollout.top_p=0.9 --set "
      "'data.train.files=[a.jsonl, b.jsonl]' 2>&1");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const std::string line :
       {"  name: chain_sum  # tests/golden/config/chain_sum.yaml:6:9\n",
        "  max_prompt_tokens: 64  # tests/golden/config/base.yaml:10:22\n",
        "  top_p: 0.9  # --set rollout.top_p=0.9\n", "  top_k: 0  # default\n",
        "    files: [a.jsonl, b.jsonl]  # --set data.train.files=[a.jsonl, b.jsonl]\n"}) {
    EXPECT_THAT(outcome.output, HasSubstr(line));
  }
}

TEST(ConfigCommand, ReportsEveryProblemOnALineAndExitsWithTwo) {
  const Outcome outcome = run_gradus(
      "config print tests/golden/config/chain_sum.yaml --set rollout.top_p=1.4 --set "
      "rolout.top_k=1 "
      "2>&1 >/dev/null");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output,
            "gradus: error: --set rollout.top_p=1.4: must be in (0, 1]; use 1 to disable\n"
            "gradus: error: --set rolout.top_k=1: unknown key 'rolout' at the top level; did you "
            "mean 'rollout'?\n");
}

TEST(ConfigCommand, NeedsAFileAndASubcommand) {
  EXPECT_EQ(run_gradus("config print 2>&1").exit_code, 2);
  EXPECT_EQ(run_gradus("config 2>&1").exit_code, 2);
  const Outcome missing = run_gradus("config print no_such.yaml 2>&1");
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_EQ(missing.output,
            "gradus: error: no_such.yaml: cannot open: No such file or directory\n");
}

TEST(ConfigCommand, PrintsTheReferences) {
  EXPECT_THAT(run_gradus("config docs").output, HasSubstr("| `clip_high` | number | `0.28` |"));
  EXPECT_THAT(run_gradus("config metrics").output, StartsWith("<!-- Printed by `gradus config"));
}

TEST(ConfigCommand, SaysWhenTheDiskIsFull) {
  const Outcome outcome = run_gradus("config docs 2>&1 >/dev/full");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("standard output: cannot write"));
}

}  // namespace
}  // namespace gradus::cli
