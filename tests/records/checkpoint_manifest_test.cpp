// SPDX-License-Identifier: Apache-2.0
#include "records/checkpoint_manifest.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <cmath>

#include "data/wire/flow.pb.h"
#include "tests/support/message_fields.h"

namespace gradus::records {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::num_fields;

TEST(CheckpointManifest, HasAsManyFieldsAsItsMessage) {
  constexpr char kRemedy[] =
      "add the field to data/wire/flow.proto and to records/checkpoint_manifest.cpp";
  EXPECT_EQ(static_cast<int>(num_fields<CheckpointManifest>()),
            wire::CheckpointManifest::descriptor()->field_count())
      << kRemedy;
  EXPECT_EQ(static_cast<int>(num_fields<FileRecord>()),
            wire::FileRecord::descriptor()->field_count())
      << kRemedy;
  EXPECT_EQ(static_cast<int>(num_fields<FileRegion>()),
            wire::FileRegion::descriptor()->field_count())
      << kRemedy;
}

TEST(CheckpointManifest, EveryFieldComesBack) {
  wire::CheckpointManifest sent, back;
  int counter = 0;
  testing::fill(sent, counter);
  const Result<CheckpointManifest> manifest = decode_manifest(sent.SerializeAsString());
  ASSERT_TRUE(manifest.ok()) << manifest.status().message();
  ASSERT_TRUE(back.ParseFromString(encode(*manifest)));
  std::string differences;
  MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&differences);
  EXPECT_TRUE(differencer.Compare(sent, back)) << differences;
}

TEST(CheckpointManifest, NoMetricIsNotZero) {
  EXPECT_FALSE(decode_manifest(encode({.step = 3}))->metric.has_value());
  EXPECT_EQ(decode_manifest(encode({.metric = 0.0}))->metric, 0.0);
  EXPECT_TRUE(std::isnan(*decode_manifest(encode({.metric = std::nan("")}))->metric));
}

TEST(CheckpointManifest, WhatIsNoMessageIsAnError) {
  EXPECT_EQ(decode_manifest("\x01").status().message(),
            "a message of 1 bytes is no checkpoint manifest; it was cut or damaged");
}

// The text that checkpoints have had since version 2: it may not change.
constexpr char kText[] = R"({
  "format": "gradus checkpoint",
  "version": 2,
  "step": 40,
  "metric": {"name": "val/pass@1", "value": 0.25},
  "files": [
    {"name": "model/a.safetensors", "bytes": 24, "regions": [
      ["", 0, 16, "00000000000000ff"],
      ["lm_head.weight", 16, 8, "fedcba9876543210"]]},
    {"name": "positions.json", "bytes": 0, "regions": []}]
}
)";

TEST(CheckpointManifest, IsReadAndWrittenAsTheJsonOfVersionTwo) {
  const Result<CheckpointManifest> manifest = manifest_from_json(kText);
  ASSERT_TRUE(manifest.ok()) << manifest.status().message();
  EXPECT_EQ(manifest->step, 40);
  EXPECT_EQ(manifest->metric_name, "val/pass@1");
  EXPECT_EQ(manifest->metric, 0.25);
  ASSERT_EQ(manifest->files.size(), 2u);
  ASSERT_EQ(manifest->files[0].regions.size(), 2u);
  const FileRegion& head = manifest->files[0].regions[1];
  EXPECT_EQ(head.name, "lm_head.weight");
  EXPECT_EQ(head.offset, 16);
  EXPECT_EQ(head.num_bytes, 8);
  EXPECT_EQ(head.hash, 0xfedcba9876543210u);
  EXPECT_EQ(to_json(*manifest), kText);
}

TEST(CheckpointManifest, OfAnotherVersionOrWithoutAFieldIsRefused) {
  EXPECT_EQ(manifest_from_json(R"({"version": 3})").status().message(),
            "manifest version 3; this build reads version 2");
  EXPECT_THAT(manifest_from_json(R"({"version": 2, "step": 1})").status().message(),
              ::testing::HasSubstr("key 'files' not found"));
}

}  // namespace
}  // namespace gradus::records
