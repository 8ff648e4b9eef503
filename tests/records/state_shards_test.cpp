// SPDX-License-Identifier: Apache-2.0
#include "records/state_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>

#include "tests/support/files.h"

namespace gradus::records {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> numbers(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

class StateShardsTest : public ::testing::Test {
 protected:
  // An array of ten, cut at 3 and 7, on three ranks; rank 0 has the rest.
  void write_three() {
    const std::vector<float> all = numbers(10);
    const int64_t cuts[] = {0, 3, 7, 10};
    for (int rank = 0; rank < 3; ++rank) {
      StateSnapshot snapshot;
      const auto part = std::span(all).subspan(static_cast<size_t>(cuts[rank]),
                                               static_cast<size_t>(cuts[rank + 1] - cuts[rank]));
      snapshot.add_slice("m/[odd] name", cuts[rank], 10, part);
      if (rank == 0) {
        snapshot.add("step", int64_t{4});
        snapshot.add("position", uint64_t{1} << 63);
        snapshot.add("share", 0.25);
        snapshot.add("small", std::span(all).first(2));
        snapshot.add_text("note", "abc");
      }
      ASSERT_TRUE(snapshot.write(path(rank, 3)).ok());
    }
  }
  std::string path(int index, int count) const {
    return state_shard_path(temp_.path(), "state", index, count);
  }
  Result<StateShards> open() const { return StateShards::open(temp_.path(), "state"); }

  test::TemporaryFolder temp_;
};

TEST_F(StateShardsTest, SlicesOfManyFilesAreOneArray) {
  write_three();
  EXPECT_EQ(path(1, 3), temp_.path() + "/state-00002-of-00003.bin");
  const Result<StateShards> shards = open();
  ASSERT_TRUE(shards.ok()) << shards.status().message();
  EXPECT_THAT(shards->names(),
              ElementsAre("m/[odd] name", "note", "position", "share", "small", "step"));
  EXPECT_EQ(shards->size("m/[odd] name").value(), 10);
  std::vector<float> whole(10);
  ASSERT_TRUE(shards->read("m/[odd] name", std::span<float>(whole)).ok());
  EXPECT_EQ(whole, numbers(10));
  // Any part of it, within one file and over several.
  for (int64_t begin = 0; begin < 10; ++begin) {
    for (int64_t end = begin; end <= 10; ++end) {
      std::vector<float> part(static_cast<size_t>(end - begin));
      ASSERT_TRUE(shards->read_slice("m/[odd] name", begin, part).ok()) << begin << ", " << end;
      for (int64_t i = begin; i < end; ++i) {
        EXPECT_EQ(part[static_cast<size_t>(i - begin)], static_cast<float>(i + 1));
      }
    }
  }
  EXPECT_EQ(shards->read_i64("step").value(), 4);
  EXPECT_EQ(shards->read_u64("position").value(), uint64_t{1} << 63);
  EXPECT_EQ(shards->read_f64("share").value(), 0.25);
  EXPECT_EQ(shards->read_text("note").value(), "abc");
  EXPECT_FALSE(shards->has("other"));
}

TEST_F(StateShardsTest, NamesWhatIsMissingOrDamaged) {
  const std::string place = temp_.path() + "/state";
  EXPECT_EQ(open().status().message(), temp_.path() + ": no state.bin and no shards of it");
  write_three();
  const Result<StateShards> shards = open();
  std::vector<float> values(11);
  EXPECT_EQ(shards->read("other", std::span<float>(values)).message(),
            place + ": no entry 'other'; was it written by another version or configuration?");
  EXPECT_EQ(shards->read("m/[odd] name", std::span<float>(values)).message(),
            place + ": entry 'm/[odd] name' has 10 elements; this run expects 11");
  EXPECT_EQ(shards->read_slice("m/[odd] name", 5, values).message(),
            place +
                ": 'm/[odd] name' lacks its elements from 10 on (of 10); a shard is not "
                "complete");
  // One flipped bit of the second slice.
  std::string bytes = test::read_file(path(1, 3));
  bytes[64] = static_cast<char>(bytes[64] ^ 1);
  test::write_file(path(1, 3), bytes);
  values.resize(10);
  EXPECT_EQ(open()->read("m/[odd] name", std::span<float>(values)).message(),
            path(1, 3) +
                ": entry 'm/[odd] name[3:7:10]' is corrupt: its hash is wrong; use an "
                "earlier checkpoint");
  values.resize(3);
  EXPECT_TRUE(open()->read_slice("m/[odd] name", 0, values).ok()) << "the first one is sound";
  std::filesystem::remove(path(2, 3));
  EXPECT_EQ(open().status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(open().status().message(), HasSubstr(path(2, 3) + ": cannot open"));
}

}  // namespace
}  // namespace gradus::records
