// SPDX-License-Identifier: Apache-2.0
#include "records/checkpoint_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <thread>

#include "records/state_shards.h"
#include "tests/support/files.h"

namespace gradus::records {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class CheckpointStoreTest : public ::testing::Test {
 protected:
  CheckpointStore store(CheckpointPolicy policy) {
    return {temp_.path(), std::move(policy),
            [this](const std::string& text) { warnings_.push_back(text); }};
  }

  void save(CheckpointStore& store, int64_t step, std::optional<double> metric = {}) {
    Result<CheckpointDraft> draft = store.begin(step);
    ASSERT_TRUE(draft.ok()) << draft.status().message();
    write_file(draft->folder() + "/weights", "weights of " + std::to_string(step));
    fs::create_directory(draft->folder() + "/tokenizer");
    write_file(draft->folder() + "/tokenizer/vocab", "a b c");
    const Status status = store.commit(std::move(*draft), metric);
    ASSERT_TRUE(status.ok()) << status.message();
  }

  static std::vector<int64_t> steps(const CheckpointStore& store) {
    std::vector<int64_t> all;
    for (const Checkpoint& checkpoint : store.list()) all.push_back(checkpoint.step);
    return all;
  }

  std::string at(const std::string& name) const { return temp_.path() + "/" + name; }

  TemporaryFolder temp_;
  std::vector<std::string> warnings_;
};

TEST_F(CheckpointStoreTest, KeepsTheNewestTheLastAndTheBest) {
  CheckpointStore store = this->store({.keep_last = 2, .best_metric = "pass@1"});
  EXPECT_FALSE(store.latest().has_value());
  save(store, 10, 0.3);
  save(store, 20, 0.8);
  save(store, 30, 0.5);
  save(store, 40, std::nan(""));
  save(store, 50, 0.8);
  EXPECT_THAT(steps(store), ElementsAre(20, 40, 50)) << "20 came first to 0.8";
  EXPECT_EQ(store.best()->step, 20);
  EXPECT_EQ(store.latest()->step, 50);
  EXPECT_EQ(read_file(at("latest/weights")), "weights of 50");
  EXPECT_EQ(read_file(at("best/weights")), "weights of 20");
  EXPECT_EQ(read_file(at("step_20/tokenizer/vocab")), "a b c");
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(CheckpointStoreTest, TakesTheLowestWhenLowerIsBetter) {
  CheckpointStore store =
      this->store({.keep_last = 1, .best_metric = "loss", .higher_is_better = false});
  save(store, 1, 2.0);
  save(store, 2, 1.0);
  save(store, 3, 3.0);
  EXPECT_THAT(steps(store), ElementsAre(2, 3));
}

TEST_F(CheckpointStoreTest, NeverDeletesWhatItHasJustWritten) {
  CheckpointStore store = this->store({.keep_last = 1});
  save(store, 40);
  save(store, 30);  // a run that went back to step 20
  EXPECT_THAT(steps(store), ElementsAre(30, 40));
}

TEST_F(CheckpointStoreTest, PassesOverABrokenOneByName) {
  CheckpointStore store = this->store({.keep_last = 0});
  for (const int64_t step : {1, 2, 3, 4}) save(store, step);
  fs::remove(at("step_4/manifest.json"));
  fs::resize_file(at("step_3/weights"), 5);
  write_file(at("step_2/weights"), "weights 0f 2");  // same size
  const auto latest = store.latest();
  ASSERT_TRUE(latest.has_value());
  EXPECT_EQ(latest->step, 1);
  std::sort(warnings_.begin(), warnings_.end());
  ASSERT_EQ(warnings_.size(), 3u);
  EXPECT_TRUE(warnings_[0].starts_with(at("step_2/weights") + ": hash ")) << warnings_[0];
  EXPECT_TRUE(warnings_[0].ends_with(": the content has changed; the checkpoint is not used"));
  EXPECT_EQ(warnings_[1],
            at("step_3/weights") + ": 5 bytes; the manifest says 12; the checkpoint is not used");
  EXPECT_EQ(warnings_[2], at("step_4") +
                              ": no manifest.json; writing or copying it did not finish; the "
                              "checkpoint is not used");
  EXPECT_EQ(store.at(2).status().code(), StatusCode::kDataLoss);
}

TEST_F(CheckpointStoreTest, PassesOverAManifestThatIsNotOne) {
  CheckpointStore store = this->store({});
  save(store, 1);
  save(store, 2);
  save(store, 3);
  write_file(at("step_2/manifest.json"), "{\"version\": 9}");
  write_file(at("step_3/manifest.json"), "{\"versi");
  EXPECT_EQ(store.latest()->step, 1);
  std::sort(warnings_.begin(), warnings_.end());
  ASSERT_EQ(warnings_.size(), 2u);
  EXPECT_EQ(warnings_[0], at("step_2/manifest.json") +
                              ": manifest version 9; this build reads version 2; the checkpoint "
                              "is not used");
  EXPECT_TRUE(warnings_[1].starts_with(at("step_3/manifest.json") + ": not a manifest: "));
}

TEST_F(CheckpointStoreTest, NamesTheStepsThatExist) {
  CheckpointStore store = this->store({});
  EXPECT_EQ(store.at(5).status().message(),
            temp_.path() + ": no checkpoint of step 5; there are: none");
  save(store, 10);
  save(store, 20);
  EXPECT_EQ(store.at(5).status().message(),
            temp_.path() + ": no checkpoint of step 5; there are: 10, 20");
  EXPECT_EQ(store.at(10)->folder, at("step_10"));
}

TEST_F(CheckpointStoreTest, RemovesAbandonedAndInterruptedWrites) {
  CheckpointStore store = this->store({});
  fs::create_directory(at(".tmp_step_7"));
  write_file(at(".tmp_step_7/weights"), "half");
  {
    Result<CheckpointDraft> draft = store.begin(8);
    ASSERT_TRUE(draft.ok());
    EXPECT_FALSE(fs::exists(at(".tmp_step_7")));
    EXPECT_TRUE(fs::exists(at(".tmp_step_8")));
  }
  EXPECT_FALSE(fs::exists(at(".tmp_step_8")));
  EXPECT_THAT(steps(store), IsEmpty());
}

TEST_F(CheckpointStoreTest, ReplacesACheckpointOfTheSameStep) {
  CheckpointStore store = this->store({});
  save(store, 3);
  write_file(at("step_3/weights"), "damaged");
  save(store, 3);
  EXPECT_EQ(store.latest()->step, 3);
  EXPECT_THAT(warnings_, IsEmpty());
  EXPECT_FALSE(fs::exists(at(".tmp_replaced_step_3")));
}

TEST_F(CheckpointStoreTest, AsksForTheSpaceFirst) {
  CheckpointStore store = this->store({});
  const Status status = store.begin(3, int64_t{1} << 60).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(status.message().starts_with(temp_.path() +
                                           ": the checkpoint of step 3 needs 1152921504606.8 MB, "))
      << status.message();
  EXPECT_TRUE(
      status.message().ends_with(" MB are free; free some space or keep fewer checkpoints"));
}

// Weights of a safetensors file and entries of a state file are named; bytes between them are not.
TEST_F(CheckpointStoreTest, NamesTheTensorThatIsDamaged) {
  CheckpointStore store = this->store({.keep_last = 0});
  save(store, 1);
  Result<CheckpointDraft> draft = store.begin(2);
  ASSERT_TRUE(draft.ok());
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})";
  const char length[8] = {static_cast<char>(header.size())};
  write_file(draft->folder() + "/model.safetensors",
             std::string(length, 8) + header + "aaaaaaaabbbb");
  StateSnapshot state;
  state.add("step", int64_t{2});
  state.add("adam/m", std::vector<float>(40, 1.5f));
  ASSERT_TRUE(state.write(draft->folder() + "/optimizer.bin").ok());
  ASSERT_TRUE(store.commit(std::move(*draft), {}).ok());
  EXPECT_EQ(store.latest()->step, 2);
  const auto warning_after_flip = [&](const std::string& file, int64_t at) {
    const std::string path = this->at("step_2/") + file, before = read_file(path);
    std::string bytes = before;
    bytes[static_cast<size_t>(at)] = static_cast<char>(bytes[static_cast<size_t>(at)] ^ 4);
    write_file(path, bytes);
    warnings_.clear();
    EXPECT_EQ(store.latest()->step, 1) << "the one before is used";
    write_file(path, before);
    return warnings_.empty() ? std::string() : warnings_[0].substr(this->at("step_2/").size());
  };
  const int64_t data = 8 + static_cast<int64_t>(header.size());
  EXPECT_TRUE(warning_after_flip("model.safetensors", data)
                  .starts_with("model.safetensors: tensor 'a' is damaged: hash "));
  EXPECT_TRUE(warning_after_flip("model.safetensors", data + 11)
                  .starts_with("model.safetensors: tensor 'b' is damaged: hash "));
  EXPECT_TRUE(warning_after_flip("model.safetensors", 20).starts_with("model.safetensors: hash "));
  EXPECT_TRUE(warning_after_flip("optimizer.bin", 64)
                  .starts_with("optimizer.bin: tensor 'step' is damaged: "));
  EXPECT_TRUE(warning_after_flip("optimizer.bin", 128 + 159)
                  .starts_with("optimizer.bin: tensor 'adam/m' is damaged: "));
}

TEST_F(CheckpointStoreTest, SharesOfOtherRanksAreWaitedForAndTakenIn) {
  CheckpointStore store = this->store({});
  Result<CheckpointDraft> draft = store.begin(1);
  ASSERT_TRUE(draft.ok());
  write_file(draft->folder() + "/a", "of rank 0");
  std::atomic<bool> gives_up = true;
  EXPECT_EQ(CheckpointStore::await_shares(*draft, 2, gives_up).message(),
            at(".tmp_step_1") + ": rank 1 has not written its share of the checkpoint");
  gives_up = false;
  std::thread other([&, folder = draft->folder()] {
    write_file(folder + "/b", "of rank 1");
    const std::vector<std::string> files = {"b"};
    EXPECT_TRUE(CheckpointStore::finish_share(folder, 1, files).ok());
  });
  EXPECT_TRUE(CheckpointStore::await_shares(*draft, 2, gives_up).ok());
  other.join();
  ASSERT_TRUE(store.commit(std::move(*draft), {}).ok());
  EXPECT_EQ(store.latest()->step, 1);
  EXPECT_EQ(std::distance(fs::directory_iterator(at("step_1")), fs::directory_iterator()), 3)
      << "two files and the manifest";
  write_file(at("step_1/b"), "of rank 2");
  EXPECT_FALSE(store.latest().has_value()) << "the note's hash is checked";
}

// A full disk cannot be had in a test; a limit on the size of files fails the same call with EFBIG.
TEST_F(CheckpointStoreTest, LeavesTheEarlierOnesWhenTheDiskRefuses) {
  CheckpointStore store = this->store({.keep_last = 1});
  save(store, 1);
  Result<CheckpointDraft> draft = store.begin(2);
  ASSERT_TRUE(draft.ok());
  write_file(draft->folder() + "/weights", "w");
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tiny { 16, before.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tiny), 0);
  const Status status = store.commit(std::move(*draft), {});
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, previous);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(
      status.message(),
      at(".tmp_step_2/manifest.json") +
          ": cannot write after 16 bytes: File too large; free some space or choose another place");
  EXPECT_EQ(store.latest()->step, 1);
  EXPECT_FALSE(fs::exists(at(".tmp_step_2"))) << "the space is given back";
}

}  // namespace
}  // namespace gradus::records
