// SPDX-License-Identifier: Apache-2.0
#include "records/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "records/internal/event_file.h"
#include "tests/support/files.h"

namespace gradus::records {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;
using ::testing::ElementsAre;

std::vector<int64_t> steps_of(const std::string& path) {
  std::vector<int64_t> steps;
  const auto lines = read_metrics(path);
  for (const MetricLine& line : *lines) steps.push_back(line.step);
  return steps;
}

// The payloads of a TFRecord file; checks both sums of each frame.
std::vector<std::string> event_payloads(const std::string& path) {
  const std::string bytes = read_file(path);
  const auto sum_at = [&](size_t at) {
    uint32_t sum;
    std::memcpy(&sum, bytes.data() + at, 4);
    const uint32_t rotated = sum - 0xA282EAD8u;
    return rotated >> 17 | rotated << 15;
  };
  std::vector<std::string> payloads;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t size;
    std::memcpy(&size, bytes.data() + at, 8);
    EXPECT_EQ(sum_at(at + 8), internal::crc32c(bytes.substr(at, 8)));
    payloads.push_back(bytes.substr(at + 12, size));
    EXPECT_EQ(sum_at(at + 12 + size), internal::crc32c(payloads.back()));
    at += 16 + size;
  }
  return payloads;
}

std::vector<std::string> event_files(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("events.out.tfevents.")) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(MetricsLog, WritesOneObjectPerStepAndReadsItBack) {
  const TemporaryFolder temp;
  const RunPaths paths(temp.path());
  {
    Result<MetricsLog> log = MetricsLog::open(paths, {});
    ASSERT_TRUE(log.ok()) << log.status().message();
    ASSERT_TRUE(log->write(1, {{"actor/pg_loss", 0.1}, {"critic/rewards/mean", 0.625}}).ok());
    ASSERT_TRUE(log->write(2, {{"a \"b\"", -INFINITY}, {"actor/grad_norm", std::nan("")}}).ok());
    ASSERT_TRUE(log->sync().ok());
  }
  const std::string text = read_file(paths.metrics());
  EXPECT_TRUE(text.starts_with("{\"step\": 1, \"time\": ")) << text;
  EXPECT_NE(text.find(", \"actor/pg_loss\": 0.1, \"critic/rewards/mean\": 0.625}\n{\"step\": 2"),
            std::string::npos)
      << text;
  EXPECT_TRUE(text.ends_with(", \"a \\\"b\\\"\": \"-Infinity\", \"actor/grad_norm\": \"NaN\"}\n"))
      << text;
  const auto lines = read_metrics(paths.metrics());
  ASSERT_TRUE(lines.ok());
  ASSERT_EQ(lines->size(), 2u);
  EXPECT_GT((*lines)[0].time, 1.7e9);
  EXPECT_EQ((*lines)[0].metrics,
            (MetricRow{{"actor/pg_loss", 0.1}, {"critic/rewards/mean", 0.625}}));
  EXPECT_TRUE(std::isnan((*lines)[1].metrics.at("actor/grad_norm")));
  EXPECT_EQ((*lines)[1].metrics.at("a \"b\""), -INFINITY);
}

TEST(MetricsLog, CutsLaterStepsAndAHalfLineWhenResumed) {
  const TemporaryFolder temp;
  const RunPaths paths(temp.path());
  {
    Result<MetricsLog> log = MetricsLog::open(paths, {});
    for (int64_t step = 1; step <= 5; ++step) ASSERT_TRUE(log->write(step, {{"x", 1.0}}).ok());
  }
  // Killed inside a write.
  write_file(paths.metrics(), read_file(paths.metrics()) + "{\"step\": 1");
  {
    Result<MetricsLog> log = MetricsLog::open(paths, 3);
    ASSERT_TRUE(log.ok()) << log.status().message();
    EXPECT_THAT(steps_of(paths.metrics()), ElementsAre(1, 2, 3));
    ASSERT_TRUE(log->write(4, {{"x", 2.0}}).ok());
  }
  EXPECT_THAT(steps_of(paths.metrics()), ElementsAre(1, 2, 3, 4));
}

TEST(MetricsLog, CountsUnreadableLines) {
  const TemporaryFolder temp;
  write_file(temp.path() + "/m",
             "{\"step\": 1, \"x\": 2, \"y\": null}\nnonsense\n[1]\n{\"x\": 1}\n\n{\"step\": 2");
  int64_t num_bad = -1;
  const auto lines = read_metrics(temp.path() + "/m", &num_bad);
  ASSERT_TRUE(lines.ok());
  EXPECT_EQ(lines->size(), 1u);
  EXPECT_EQ(lines->front().metrics, (MetricRow{{"x", 2.0}})) << "null is no value";
  EXPECT_EQ(num_bad, 4);
  EXPECT_EQ(read_metrics(temp.path() + "/none").status().message(),
            (temp.path() + "/none") +
                ": cannot open: No such file or directory; check the path and its permissions");
}

TEST(EventFile, ComputesThePublishedChecksum) {
  EXPECT_EQ(internal::crc32c("123456789"), 0xE3069283u);  // RFC 3720, appendix B.4's check value
  EXPECT_EQ(internal::crc32c(std::string(32, '\0')), 0x8A9136AAu);
}

TEST(EventFile, EncodesEventsAsProtobufDoes) {
  const TemporaryFolder temp;
  std::string path;
  {
    auto events = internal::EventFile::create(temp.path(), 2.0);
    ASSERT_TRUE(events.ok());
    ASSERT_TRUE(events->write_restart(2.0, 4).ok());
    ASSERT_TRUE(events->write_scalars(2.0, 300, {{"loss", 0.5}}).ok());
  }
  const auto files = event_files(temp.path());
  ASSERT_EQ(files.size(), 1u);
  EXPECT_TRUE(
      fs::path(files[0]).filename().string().starts_with("events.out.tfevents.0000000002."));
  const auto payloads = event_payloads(files[0]);
  ASSERT_EQ(payloads.size(), 3u);
  // wall_time (1, double) 2.0; step (2, varint); then file_version (3, bytes)
  const std::string time("\x09\0\0\0\0\0\0\0\x40", 9);
  EXPECT_EQ(payloads[0], time + std::string("\x10\0", 2) + "\x1A\x0D" + "brain.Event:2");
  // session_log (7) {status (1, varint) = START}
  EXPECT_EQ(payloads[1], time + "\x10\x04" + "\x3A\x02\x08\x01");
  // summary (5) {value (1) {tag (1) "loss", simple_value (2, float) 0.5}}; 300 = 0xAC 0x02
  EXPECT_EQ(payloads[2], time + "\x10\xAC\x02" + "\x2A\x0D\x0A\x0B\x0A\x04" + "loss" +
                             std::string("\x15\0\0\0\x3F", 5));
}

TEST(EventFile, OfAResumedRunIsANewFile) {
  const TemporaryFolder temp;
  { ASSERT_TRUE(MetricsLog::open(RunPaths(temp.path()), {}).ok()); }
  { ASSERT_TRUE(MetricsLog::open(RunPaths(temp.path()), 3).ok()); }
  const auto files = event_files(temp.path());
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(event_payloads(files[0]).size() + event_payloads(files[1]).size(), 3u);
}

}  // namespace
}  // namespace gradus::records
