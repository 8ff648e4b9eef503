// SPDX-License-Identifier: Apache-2.0
#include "records/rollout_messages.h"

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

wire::RolloutRecord full_message() {
  wire::RolloutRecord message;
  int counter = 0;
  testing::fill(message, counter);
  wire::Trajectory& trajectory = *message.mutable_trajectory();
  trajectory.add_token_ids(77);
  trajectory.set_prompt_length(1);
  for (int i = 0; i < 2; ++i) {
    trajectory.mutable_segments(i)->set_begin(i);
    trajectory.mutable_segments(i)->set_end(i + 1);
  }
  // Two more tokens, which tools wrote.
  for (int i = 0; i < 2; ++i) {
    trajectory.add_token_ids(78 + i);
    trajectory.mutable_observations(i)->set_begin(2 + i);
    trajectory.mutable_observations(i)->set_end(3 + i);
  }
  return message;
}

TEST(RolloutMessages, HaveAsManyFieldsAsTheirStructs) {
  EXPECT_EQ(static_cast<int>(num_fields<RolloutRecord>()),
            wire::RolloutRecord::descriptor()->field_count())
      << "add the field to data/wire/flow.proto and to records/rollout_messages.cpp";
  EXPECT_EQ(static_cast<int>(num_fields<RewardPartRecord>()),
            wire::RewardPartRecord::descriptor()->field_count())
      << "add the field to data/wire/flow.proto and to records/rollout_messages.cpp";
}

TEST(RolloutMessages, EveryFieldComesBack) {
  const wire::RolloutRecord sent = full_message();
  const Result<RolloutRecord> record = from_message(sent);
  ASSERT_TRUE(record.ok()) << record.status().message();
  wire::RolloutRecord back;
  to_message(*record, back);
  std::string differences;
  MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&differences);
  EXPECT_TRUE(differencer.Compare(sent, back)) << differences;
}

TEST(RolloutMessages, ListsKeepOrderAndUnscoredResponses) {
  std::vector<RolloutRecord> records(3, *from_message(full_message()));
  for (size_t i = 0; i < records.size(); ++i) records[i].step = static_cast<int64_t>(i);
  records[1].reward = records[1].advantage = std::nan("");
  const Result<std::vector<RolloutRecord>> back = decode_rollouts(encode(records));
  ASSERT_TRUE(back.ok()) << back.status().message();
  ASSERT_EQ(back->size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ((*back)[i].step, static_cast<int64_t>(i));
  EXPECT_TRUE(std::isnan((*back)[1].reward));
  EXPECT_TRUE(decode_rollouts(encode({}))->empty());
}

TEST(RolloutMessages, WhatIsNoMessageIsAnError) {
  EXPECT_EQ(decode_rollouts("\x01").status().message(),
            "a message of 1 bytes is no list of rollouts; it was cut or damaged on its way");
  wire::RolloutRecords message;
  *message.add_records() = full_message();
  message.mutable_records(0)->mutable_trajectory()->set_prompt_length(9);
  EXPECT_THAT(decode_rollouts(message.SerializeAsString()).status().message(),
              ::testing::HasSubstr("prompt_length 9 is not in [1, 5]"));
}

}  // namespace
}  // namespace gradus::records
