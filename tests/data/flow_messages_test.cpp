// SPDX-License-Identifier: Apache-2.0
#include "data/wire/flow_messages.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "data/wire/flow.pb.h"
#include "tests/support/message_fields.h"

namespace gradus::data {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::fill;
using ::testing::HasSubstr;
using testing::num_fields;

// A field that a struct gains and its message lacks makes the counts differ.
template <class Struct, class Message>
void expect_equal_counts() {
  EXPECT_EQ(static_cast<int>(num_fields<Struct>()), Message::descriptor()->field_count())
      << "add the field to data/wire/flow.proto and to the conversions: "
      << Message::descriptor()->full_name();
}

TEST(FlowMessages, HaveAsManyFieldsAsTheirStructs) {
  expect_equal_counts<RequestId, wire::RequestId>();
  expect_equal_counts<SamplingParams, wire::SamplingParams>();
  expect_equal_counts<RolloutRequest, wire::RolloutRequest>();
  expect_equal_counts<Segment, wire::Segment>();
  expect_equal_counts<Observation, wire::Observation>();
  expect_equal_counts<Trajectory, wire::Trajectory>();
  expect_equal_counts<MetricPart, wire::MetricPart>();
  // The count can be wrong: a struct with one field more is seen.
  struct Grown {
    int64_t begin = 0, end = 0;
    uint64_t policy_version = 0, weights_hash = 0;
    std::string reason;
  };
  EXPECT_EQ(num_fields<Grown>(), 5u);
}

// A message whose numbers fit together: one prompt token, two sampled tokens in two segments and
// two observations.
wire::Trajectory sound_trajectory() {
  wire::Trajectory message;
  int counter = 0;
  fill(message, counter);
  message.add_token_ids(77);
  message.set_prompt_length(1);
  for (int i = 0; i < 2; ++i) {
    message.mutable_segments(i)->set_begin(i);
    message.mutable_segments(i)->set_end(i + 1);
  }
  // Two more tokens, which tools wrote.
  for (int i = 0; i < 2; ++i) {
    message.add_token_ids(78 + i);
    message.mutable_observations(i)->set_begin(2 + i);
    message.mutable_observations(i)->set_end(3 + i);
  }
  return message;
}

TEST(FlowMessages, EveryFieldOfARequestComesBack) {
  wire::RolloutRequest sent, back;
  int counter = 0;
  fill(sent, counter);
  *sent.mutable_begun() = sound_trajectory();
  const Result<RolloutRequest> request = from_message(sent);
  ASSERT_TRUE(request.ok()) << request.status().message();
  to_message(*request, back);
  std::string differences;
  MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&differences);
  EXPECT_TRUE(differencer.Compare(sent, back)) << differences;
}

TEST(FlowMessages, EveryFieldOfATrajectoryComesBack) {
  const wire::Trajectory sent = sound_trajectory();
  const Result<Trajectory> trajectory = from_message(sent);
  ASSERT_TRUE(trajectory.ok()) << trajectory.status().message();
  wire::Trajectory back;
  to_message(*trajectory, back);
  std::string differences;
  MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&differences);
  EXPECT_TRUE(differencer.Compare(sent, back)) << differences;
  for (const FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kCancelled,
        FinishReason::kInterrupted, FinishReason::kToolLimit}) {
    Trajectory one = *trajectory;
    one.finish_reason = reason;
    EXPECT_EQ(decode_trajectory(encode(one))->finish_reason, reason);
  }
  for (const ToolStatus status :
       {ToolStatus::kOk, ToolStatus::kInvalid, ToolStatus::kError, ToolStatus::kTimeout}) {
    Trajectory one = *trajectory;
    one.observations[1].status = status;
    EXPECT_EQ(decode_trajectory(encode(one))->observations, one.observations);
  }
}

TEST(FlowMessages, ObservationsThatDoNotFitAreAnError) {
  const Trajectory sound = *from_message(sound_trajectory());
  const auto message_of = [&](int64_t begin, int64_t end) {
    Trajectory one = sound;
    one.observations[1].begin = begin;
    one.observations[1].end = end;
    return validate(one).message();
  };
  EXPECT_EQ(message_of(3, 4), "");
  EXPECT_THAT(message_of(2, 4), HasSubstr("an observation has tokens [2, 4) of 4 response tokens, "
                                          "after one that ends at 3"));
  EXPECT_THAT(message_of(3, 5), HasSubstr("an observation has tokens [3, 5) of 4 response tokens"));
  EXPECT_THAT(message_of(3, 3), HasSubstr("an observation has tokens [3, 3)"));
  Trajectory longer = sound;
  longer.token_ids.push_back(1);
  EXPECT_THAT(validate(longer).message(), HasSubstr("2 and 2 log-probs for 3 sampled tokens"));
}

TEST(FlowMessages, LogprobsKeepEveryBit) {
  const std::vector<float> hard = {-0.0f, std::bit_cast<float>(0x7FC01234u),
                                   std::bit_cast<float>(1u), -INFINITY};
  const Trajectory sent = {{~uint64_t{0}, 3},
                           {-1, 2, 3, 4, 5},
                           1,
                           hard,
                           hard,
                           FinishReason::kStop,
                           9,
                           ~uint64_t{0},
                           "",
                           {}};
  const Result<Trajectory> back = decode_trajectory(encode(sent));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->id, sent.id);
  EXPECT_EQ(back->weights_hash, sent.weights_hash);
  EXPECT_EQ(back->token_ids, sent.token_ids);
  ASSERT_EQ(back->behavior_logprobs.size(), hard.size());
  for (size_t i = 0; i < hard.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(back->behavior_logprobs[i]),
              std::bit_cast<uint32_t>(hard[i]));
  }
}

TEST(FlowMessages, MetricsGoOnAsIfTheyHadNotTravelled) {
  Metrics metrics;
  metrics.add("critic/rewards/mean", 1.0, 3.0);
  metrics.add("critic/rewards/max", 7.0);
  metrics.set("timing_s/gen", 2.5);
  Result<Metrics> back = decode_metrics(encode(metrics));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->values(), metrics.values());
  back->add("critic/rewards/mean", 5.0, 1.0);  // the weight of 3 came along
  EXPECT_EQ(back->value("critic/rewards/mean"), 2.0);
}

TEST(FlowMessages, WhatIsNoMessageIsAnError) {
  const std::string bytes = encode(*from_message(sound_trajectory()));
  EXPECT_EQ(decode_trajectory(bytes.substr(0, bytes.size() - 1)).status().message(),
            fmt::format("a message of {} bytes is no trajectory; it was cut or damaged on its way",
                        bytes.size() - 1));
  wire::Trajectory broken = sound_trajectory();
  broken.set_finish_reason(static_cast<wire::FinishReason>(9));
  EXPECT_EQ(from_message(broken).status().message(),
            "a trajectory's finish reason is 9, which no version knows");
  broken = sound_trajectory();
  broken.mutable_segments(1)->set_begin(0);
  EXPECT_THAT(from_message(broken).status().message(),
              HasSubstr("a segment has tokens [0, 2) after 1 tokens"));
  broken = sound_trajectory();
  broken.mutable_segments()->RemoveLast();
  EXPECT_THAT(from_message(broken).status().message(),
              HasSubstr("segments have 1 of 2 sampled tokens"));
  wire::MetricParts metrics;
  metrics.add_parts()->set_name("no/such_metric");
  EXPECT_EQ(decode_metrics(metrics.SerializeAsString()).status().message(),
            "a message has the metric 'no/such_metric', which is not declared");
  EXPECT_THAT(decode_request("\xFF").status().message(), HasSubstr("is no request"));
}

}  // namespace
}  // namespace gradus::data
