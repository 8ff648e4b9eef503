// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>

#include "tests/support/files.h"

namespace gradus::cli {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;

struct Outcome {
  int exit_code;
  std::string output;
};

// Runs `gradus report`; `arguments` go through the shell.
Outcome run_report(const std::string& arguments) {
  std::FILE* pipe = popen((std::string(GRADUS_BINARY) + " report " + arguments).c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    output.append(buffer.data(), size);
  }
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

TEST(ReportCommand, WritesThePageAndPrintsItsPathAsJson) {
  const TemporaryFolder temp;
  const std::string run = temp.path() + "/run";
  fs::create_directory(run);
  write_file(run + "/metrics.jsonl", "{\"step\": 1, \"critic/rewards/mean\": 0.5}\n{\"st");
  const std::string warnings = temp.path() + "/warnings";
  const Outcome outcome = run_report(run + " 2>" + warnings);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "{\"report\":\"" + run +
                                "/report.html\",\"num_steps\":1,\"num_rollouts\":0,"
                                "\"num_warnings\":2}\n");
  EXPECT_TRUE(read_file(warnings).starts_with("gradus report: " + run +
                                              "/metrics.jsonl: 1 unreadable lines\n"));
  EXPECT_TRUE(read_file(run + "/report.html").starts_with("<!doctype html>"));
  EXPECT_EQ(run_report(run + " --out " + temp.path() + "/other.html 2>&1").exit_code, 0);
  EXPECT_TRUE(fs::exists(temp.path() + "/other.html"));
}

TEST(ReportCommand, EndsWithTwoWhenThereIsNoRun) {
  const TemporaryFolder temp;
  const Outcome outcome = run_report(temp.path() + "/none 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output,
            "gradus: error: " + temp.path() +
                "/none: no such folder; give the folder of a run, e.g. runs/NAME\n");
}

}  // namespace
}  // namespace gradus::cli
