// SPDX-License-Identifier: Apache-2.0
#include "records/state_file.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "tests/support/files.h"

namespace gradus::records {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;

// 0, 1, odd, around a chunk of the hash (1 MiB of floats), several chunks.
const std::vector<size_t> kSizes = {0, 1, 17, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1000003};

std::string write_example(const std::string& path) {
  Result<StateWriter> writer = StateWriter::create(path);
  EXPECT_TRUE(writer.ok());
  for (const size_t size : kSizes) {
    std::vector<float> values(size);
    std::iota(values.begin(), values.end(), 0.5f);
    EXPECT_TRUE(writer->add("floats/" + std::to_string(size), std::span<const float>(values)).ok());
  }
  const std::vector<int64_t> positions = {-1, std::numeric_limits<int64_t>::min()};
  EXPECT_TRUE(writer->add("positions", std::span<const int64_t>(positions)).ok());
  EXPECT_TRUE(writer->add("step", int64_t{40}).ok());
  EXPECT_TRUE(writer->add("seed", ~uint64_t{0}).ok());
  EXPECT_TRUE(writer->add("learning_rate", 1e-6).ok());
  EXPECT_TRUE(writer->add_text("data", std::string_view("a\0b", 3)).ok());
  EXPECT_TRUE(writer->finish().ok());
  return path;
}

TEST(StateFile, GivesBackEveryBit) {
  const TemporaryFolder temp;
  const Result<StateReader> reader = StateReader::open(write_example(temp.path() + "/s"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  for (const size_t size : kSizes) {
    std::vector<float> values(size, -1.0f);
    const Status status = reader->read("floats/" + std::to_string(size), std::span<float>(values));
    ASSERT_TRUE(status.ok()) << status.message();
    for (size_t i = 0; i < size; ++i) {
      ASSERT_EQ(values[i], 0.5f + static_cast<float>(i)) << size << " " << i;
    }
  }
  std::vector<int64_t> positions(2);
  ASSERT_TRUE(reader->read("positions", std::span<int64_t>(positions)).ok());
  EXPECT_EQ(positions[1], std::numeric_limits<int64_t>::min());
  EXPECT_EQ(*reader->read_i64("step"), 40);
  EXPECT_EQ(*reader->read_u64("seed"), ~uint64_t{0});
  EXPECT_EQ(*reader->read_f64("learning_rate"), 1e-6);
  EXPECT_EQ(*reader->read_text("data"), std::string("a\0b", 3));
  EXPECT_TRUE(reader->has("step"));
  EXPECT_FALSE(reader->has("stop"));
  EXPECT_EQ(reader->entries().size(), kSizes.size() + 5);
}

TEST(StateFile, KeepsNaNsAndSignedZeros) {
  const TemporaryFolder temp;
  const std::vector<float> values = {std::bit_cast<float>(0x7FC12345u), -0.0f, 1e-45f, INFINITY};
  {
    Result<StateWriter> writer = StateWriter::create(temp.path() + "/s");
    ASSERT_TRUE(writer->add("x", std::span<const float>(values)).ok());
    ASSERT_TRUE(writer->finish().ok());
  }
  std::vector<float> back(values.size());
  ASSERT_TRUE(StateReader::open(temp.path() + "/s")->read("x", std::span<float>(back)).ok());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(values[i])) << i;
  }
}

TEST(StateFile, SaysWhatDoesNotFit) {
  const TemporaryFolder temp;
  const std::string path = write_example(temp.path() + "/s");
  const Result<StateReader> reader = StateReader::open(path);
  ASSERT_TRUE(reader.ok());
  std::vector<float> values(3);
  EXPECT_EQ(reader->read("adam/m", std::span<float>(values)).message(),
            path + ": no entry 'adam/m'; was it written by another version or configuration?");
  EXPECT_EQ(reader->read("step", std::span<float>(values)).message(),
            path + ": entry 'step' is int64; expected float32");
  EXPECT_EQ(reader->read("floats/17", std::span<float>(values)).message(),
            path + ": entry 'floats/17' has 17 elements; this run expects 3");
}

TEST(StateFile, TellsForeignTruncatedUnfinishedAndCorruptFilesApart) {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/s";
  const auto message = [&] { return StateReader::open(path).status().message(); };
  EXPECT_EQ(message(), path +
                           ": cannot open: No such file or directory; check the path and its "
                           "permissions");
  write_file(path, "PK\x03\x04 something else");
  const std::string foreign =
      path + ": not a Gradus state file; expected it to start with 'GRADUSST'";
  EXPECT_EQ(message(), foreign);
  write_file(path, "");
  EXPECT_EQ(message(), foreign);

  write_example(path);
  const std::string whole = read_file(path);
  write_file(path, whole.substr(0, whole.size() - 1));
  EXPECT_EQ(message(),
            fmt::format("{}: truncated: {} bytes, expected {}; use an earlier checkpoint", path,
                        whole.size() - 1, whole.size()));
  write_file(path, whole.substr(0, 20));
  EXPECT_EQ(message(), path + ": truncated: 20 bytes, expected more; use an earlier checkpoint");

  const auto with_flipped = [&](size_t at) {
    std::string text = whole;
    text[at] = static_cast<char>(text[at] ^ 1);
    write_file(path, text);
  };
  with_flipped(8);  // the version
  EXPECT_EQ(message(), path + ": state file version 0; this build reads version 1");
  with_flipped(20);  // the offset of the index
  EXPECT_EQ(message(), path + ": corrupt header; use an earlier checkpoint");
  with_flipped(whole.size() - 1);
  EXPECT_EQ(message(), path + ": corrupt index; use an earlier checkpoint");

  with_flipped(whole.size() / 2);  // inside the largest array
  const Result<StateReader> reader = StateReader::open(path);
  ASSERT_TRUE(reader.ok());
  std::vector<float> values(1000003);
  EXPECT_EQ(reader->read("floats/1000003", std::span<float>(values)).message(),
            path +
                ": entry 'floats/1000003' is corrupt: its hash is wrong; use an earlier "
                "checkpoint");
  std::vector<float> other(17);
  EXPECT_TRUE(reader->read("floats/17", std::span<float>(other)).ok());
}

TEST(StateFile, RefusesAFileThatWasNotFinished) {
  const TemporaryFolder temp;
  {
    Result<StateWriter> writer = StateWriter::create(temp.path() + "/s");
    ASSERT_TRUE(writer->add("step", int64_t{1}).ok());
  }
  EXPECT_EQ(StateReader::open(temp.path() + "/s").status().message(),
            (temp.path() + "/s") + ": writing it did not finish; use an earlier checkpoint");
}

TEST(StateFile, ReportsAFullDisk) {
  // The device file of Linux on which every write fails with ENOSPC.
  const Status status = StateWriter::create("/dev/full").status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "/dev/full: cannot write: No space left on device; free some space or choose a place "
            "on another disk");
}

TEST(StateFile, ThrowsOnANameUsedTwice) {
  const TemporaryFolder temp;
  Result<StateWriter> writer = StateWriter::create(temp.path() + "/s");
  ASSERT_TRUE(writer->add("step", int64_t{1}).ok());
  EXPECT_THROW(static_cast<void>(writer->add("step", int64_t{2})), InternalError);
}

}  // namespace
}  // namespace gradus::records
