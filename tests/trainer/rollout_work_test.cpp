// SPDX-License-Identifier: Apache-2.0
#include "trainer/rollout_work.h"

#include <gtest/gtest.h>

#include "data/wire/flow.pb.h"
#include "tests/support/message_fields.h"

namespace gradus::trainer {
namespace {

using testing::num_fields;

TEST(RolloutMessages, OfWorkHaveAsManyFieldsAsTheirStructs) {
  EXPECT_EQ(static_cast<int>(num_fields<RolloutWork>()),
            wire::RolloutWork::descriptor()->field_count());
  EXPECT_EQ(static_cast<int>(num_fields<RolloutAnswer>()),
            wire::RolloutAnswer::descriptor()->field_count());
  EXPECT_EQ(static_cast<int>(num_fields<comm::WeightStamp>()),
            wire::WeightStamp::descriptor()->field_count());
}

TEST(RolloutMessages, OfWorkComeBack) {
  RolloutWork work = {7, 2, 41, {~uint64_t{0}, 0xFEDCBA9876543210u}, true, true};
  work.requests.resize(2);
  work.requests[1].id = {9, 3};
  work.requests[1].token_ids = {5, 6};
  work.requests[1].begun = {{9, 3}, {5, 6, 7}, 2,  {-1}, {-1}, data::FinishReason::kInterrupted,
                            4,      5,         "", {}};
  work.requests[1].token_budget = 12;
  const Result<RolloutWork> back = decode_work(encode(work));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->number, 7u);
  EXPECT_EQ(back->share, 2u);
  EXPECT_EQ(back->step, 41);
  EXPECT_EQ(back->weights, work.weights);
  EXPECT_TRUE(back->brings_weights);
  EXPECT_TRUE(back->is_end);
  ASSERT_EQ(back->requests.size(), 2u);
  EXPECT_TRUE(back->requests[0].begun.token_ids.empty());
  EXPECT_EQ(back->requests[1].id, work.requests[1].id);
  EXPECT_EQ(back->requests[1].begun.token_ids, work.requests[1].begun.token_ids);
  EXPECT_EQ(back->requests[1].token_budget, 12);
  EXPECT_EQ(decode_work("\xFF").status().message(),
            "a message of 1 bytes is no work for a rollout rank; it was cut or damaged on its way");
}

TEST(RolloutMessages, OfAnswersComeBack) {
  RolloutAnswer answer;
  answer.number = 7;
  answer.share = 1;
  answer.records.resize(1);
  answer.records[0].trajectory = {{9, 3}, {5, 6, 7}, 2,  {-1}, {-1}, data::FinishReason::kStop,
                                  4,      5,         "", {}};
  answer.records[0].reward = 0.5;
  answer.metrics.add("rollout/preemptions", 3);
  answer.error_code = 3;
  answer.error = "row 7: \xFF";
  const Result<RolloutAnswer> back = decode_answer(encode(answer));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->number, 7u);
  EXPECT_EQ(back->share, 1u);
  ASSERT_EQ(back->records.size(), 1u);
  EXPECT_EQ(back->records[0].reward, 0.5);
  EXPECT_EQ(back->metrics.values(), answer.metrics.values());
  EXPECT_EQ(back->error_code, 3);
  EXPECT_EQ(back->error, answer.error);
  EXPECT_EQ(
      decode_answer("\xFF").status().message(),
      "a message of 1 bytes is no answer of a rollout rank; it was cut or damaged on its way");
}

}  // namespace
}  // namespace gradus::trainer
