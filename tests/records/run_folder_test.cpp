// SPDX-License-Identifier: Apache-2.0
#include "records/run_folder.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "records/checkpoint_store.h"
#include "tests/support/files.h"

namespace gradus::records {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;

TEST(RunFolder, MakesItsSubfoldersAndKeepsTheConfig) {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/a/b";
  Result<RunFolder> run = RunFolder::open(path, RunStart::kFresh);
  ASSERT_TRUE(run.ok()) << run.status().message();
  EXPECT_FALSE(run->is_resumed());
  EXPECT_TRUE(fs::is_directory(path + "/checkpoints"));
  EXPECT_TRUE(fs::is_directory(path + "/rollouts"));
  EXPECT_TRUE(fs::is_directory(path + "/logs"));
  ASSERT_TRUE(run->write_config("a: 1\n").ok());
  EXPECT_EQ(read_file(path + "/config.resolved.yaml"), "a: 1\n");
  EXPECT_EQ(run->paths().rollouts(7), path + "/rollouts/step_7.jsonl");
}

TEST(RunFolder, RefusesToOverwriteARunAndResumesIt) {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/run";
  { ASSERT_TRUE(RunFolder::open(path, RunStart::kFresh).ok()); }
  write_file(path + "/metrics.jsonl", "{\"step\": 1}\n{\"step\": 12}\n");
  EXPECT_EQ(RunFolder::open(path, RunStart::kFresh).status().message(),
            path +
                ": a run is already here (metrics up to step 12); continue it with --resume or "
                "set another run.name");
  for (const RunStart start : {RunStart::kResume, RunStart::kResumeOrFresh}) {
    Result<RunFolder> run = RunFolder::open(path, start);
    ASSERT_TRUE(run.ok()) << run.status().message();
    EXPECT_TRUE(run->is_resumed());
  }
  CheckpointStore store(path + "/checkpoints", {}, [](const std::string&) {});
  Result<CheckpointDraft> draft = store.begin(10);
  write_file(draft->folder() + "/w", "x");
  ASSERT_TRUE(store.commit(std::move(*draft), {}).ok());
  EXPECT_EQ(RunFolder::open(path, RunStart::kFresh).status().message(),
            path +
                ": a run is already here (metrics up to step 12, checkpoint step_10); continue it "
                "with --resume or set another run.name");
}

TEST(RunFolder, StartsAgainWhereARunEndedBeforeItsFirstStep) {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/run";
  {
    Result<RunFolder> run = RunFolder::open(path, RunStart::kFresh);
    ASSERT_TRUE(run->write_config("a: 1\n").ok());
    write_file(path + "/metrics.jsonl", "");
    write_file(path + "/events.out.tfevents.1.h.2", "");
    write_file(path + "/logs/rank_0.log", "started\n");
  }
  EXPECT_TRUE(RunFolder::open(path, RunStart::kFresh).ok());
}

TEST(RunFolder, RefusesAFolderOfOtherThings) {
  const TemporaryFolder temp;
  write_file(temp.path() + "/thesis.tex", "x");
  EXPECT_EQ(RunFolder::open(temp.path(), RunStart::kFresh).status().message(),
            temp.path() +
                ": not empty and not a run (it holds 'thesis.tex'); choose an empty or new folder");
  EXPECT_EQ(RunFolder::open(temp.path() + "/thesis.tex", RunStart::kFresh).status().message(),
            (temp.path() + "/thesis.tex") + ": is a file; choose a folder for the run");
  EXPECT_FALSE(fs::exists(temp.path() + "/checkpoints"));
}

TEST(RunFolder, SaysThatThereIsNothingToResume) {
  const TemporaryFolder temp;
  const Status status = RunFolder::open(temp.path() + "/none", RunStart::kResume).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(status.message(), (temp.path() + "/none") +
                                  ": no run to resume (no such folder); start it without --resume "
                                  "or check the path");
  EXPECT_FALSE(fs::exists(temp.path() + "/none"));
}

TEST(RunFolder, HasOneWriter) {
  const TemporaryFolder temp;
  Result<RunFolder> first = RunFolder::open(temp.path() + "/run", RunStart::kFresh);
  ASSERT_TRUE(first.ok());
  const Status second = RunFolder::open(temp.path() + "/run", RunStart::kResumeOrFresh).status();
  EXPECT_EQ(second.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(second.message().starts_with((temp.path() + "/run") +
                                           ": another process is writing to this run (process "))
      << second.message();
  EXPECT_TRUE(second.message().ends_with("); stop it or wait for it"));
}

TEST(RunFolder, CutsTheRolloutsOfLaterSteps) {
  const TemporaryFolder temp;
  Result<RunFolder> run = RunFolder::open(temp.path() + "/run", RunStart::kFresh);
  ASSERT_TRUE(run.ok());
  for (const int step : {2, 3, 10}) write_file(run->paths().rollouts(step), "");
  ASSERT_TRUE(run->cut_after(3).ok());
  EXPECT_TRUE(fs::exists(run->paths().rollouts(2)));
  EXPECT_TRUE(fs::exists(run->paths().rollouts(3)));
  EXPECT_FALSE(fs::exists(run->paths().rollouts(10)));
}

}  // namespace
}  // namespace gradus::records
