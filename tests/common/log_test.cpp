// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace gradus {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

class Log : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "gradus_log_" + std::to_string(getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override {
    ASSERT_TRUE(configure_logging({}).ok());
    std::filesystem::remove_all(folder_);
  }

  std::string read(int rank) const {
    flush_logs();
    std::ifstream file(folder_ + "/logs/rank_" + std::to_string(rank) + ".log");
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }

  std::string folder_;
};

TEST_F(Log, WritesOneLineWithTimeLevelRankModuleMessageAndFields) {
  ASSERT_TRUE(configure_logging({.rank = 3, .run_folder = folder_}).ok());
  log_warn("rollout", "the cache\nis full",
           {{"preempted", 3}, {"why", "no \"room\""}, {"rate", 0.5}, {"empty", ""}});
  EXPECT_THAT(read(3),
              MatchesRegex("[0-9]+-[0-9]+-[0-9]+T[0-9:]+\\.[0-9]+ warn rank=3 rollout: the "
                           "cache\\\\nis full preempted=3 why=\"no \\\\\"room\\\\\"\" rate=0.5 "
                           "empty=\"\"\n"));
}

TEST_F(Log, RankZeroAloneWritesToTheTerminal) {
  ASSERT_TRUE(configure_logging({.rank = 1, .run_folder = folder_}).ok());
  ::testing::internal::CaptureStderr();
  log_info("trainer", "hidden");
  flush_logs();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_THAT(read(1), HasSubstr("info rank=1 trainer: hidden"));

  ASSERT_TRUE(configure_logging({.rank = 0, .run_folder = folder_}).ok());
  ::testing::internal::CaptureStderr();
  log_info("trainer", "shown", {{"step", 4}});
  flush_logs();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("info rank=0 trainer: shown step=4"));
  EXPECT_THAT(read(0), HasSubstr("shown step=4"));
}

TEST_F(Log, LeavesOutWhatIsLessImportantThanTheLevel) {
  ASSERT_TRUE(configure_logging({.rank = 1, .level = LogLevel::kWarn, .run_folder = folder_}).ok());
  log_debug("a", "debug");
  log_info("a", "info");
  log_warn("a", "warn");
  log_error("a", "error");
  EXPECT_THAT(read(1), Not(HasSubstr("a: info")));
  EXPECT_THAT(read(1), Not(HasSubstr("a: debug")));
  EXPECT_THAT(read(1), HasSubstr("warn rank=1 a: warn"));
  EXPECT_THAT(read(1), HasSubstr("error rank=1 a: error"));
}

TEST_F(Log, WarnsOncePerCauseWhateverTheMessage) {
  ASSERT_TRUE(configure_logging({.rank = 1, .run_folder = folder_}).ok());
  EXPECT_TRUE(warn_once("data", "Log.long rows", "row 1 is long"));
  EXPECT_FALSE(warn_once("data", "Log.long rows", "row 2 is long"));
  EXPECT_TRUE(warn_once("rollout", "Log.long rows", "another module"));
  EXPECT_THAT(read(1), HasSubstr("row 1 is long"));
  EXPECT_THAT(read(1), Not(HasSubstr("row 2 is long")));
  EXPECT_THAT(read(1), HasSubstr("another module"));
}

TEST_F(Log, ARunThatGoesOnAppends) {
  ASSERT_TRUE(configure_logging({.rank = 1, .run_folder = folder_}).ok());
  log_info("a", "first");
  ASSERT_TRUE(configure_logging({.rank = 1, .run_folder = folder_}).ok());
  log_info("a", "second");
  EXPECT_THAT(read(1), ContainsRegex("first\n.*second\n"));
}

TEST_F(Log, LinesOfThreadsStayWhole) {
  ASSERT_TRUE(configure_logging({.rank = 1, .run_folder = folder_}).ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int n = 0; n < 100; ++n) log_info("a", "whole", {{"n", n}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::istringstream lines(read(1));
  int num_lines = 0;
  for (std::string line; std::getline(lines, line); ++num_lines) {
    EXPECT_THAT(line, MatchesRegex(".* info rank=1 a: whole n=[0-9]+"));
  }
  EXPECT_EQ(num_lines, 400);
}

TEST_F(Log, AFolderThatCannotBeMadeIsAStatus) {
  std::ofstream(folder_ + "/logs") << "a file in the way";
  const Status status = configure_logging({.rank = 1, .run_folder = folder_});
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr(folder_ + "/logs: cannot create the log folder: "));
  EXPECT_THAT(status.message(), HasSubstr("; choose another run.dir"));
}

}  // namespace
}  // namespace gradus
