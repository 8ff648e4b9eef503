// SPDX-License-Identifier: Apache-2.0
#include "records/rollout_dump.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "common/rng.h"
#include "common/strings.h"
#include "tests/support/files.h"

namespace gradus::records {
namespace {

using test::TemporaryFolder;
using test::write_file;

RolloutRecord example() {
  RolloutRecord record;
  record.step = 3;
  record.trajectory = {
      {7, 1}, {15, 20, 11, 42, 2}, 3,  {-0.7f, -0.1f}, {-0.7f, -0.1f}, data::FinishReason::kStop,
      9,      0xABCDEF0123456789u, "5"};
  record.prompt = "2+3=";
  record.task = "arithmetic";
  record.answer = "5";
  record.reward = 1.0;
  record.advantage = 0.5;
  record.parts = {{"exact", 1.0, 1.0, 1.0, "ok", ""}};
  return record;
}

TEST(RolloutDump, WritesTheDocumentedLine) {
  EXPECT_EQ(rollout_line(example()),
            "{\"step\": 3, \"data_position\": 0, \"prompt_id\": 7, \"sample_index\": 1, \"task\": "
            "\"arithmetic\", "
            "\"prompt\": \"2+3=\", \"response\": \"5\", \"answer\": \"5\", \"reward\": 1, "
            "\"advantage\": 0.5, \"parts\": [{\"name\": \"exact\", \"raw\": 1, \"weight\": 1, "
            "\"weighted\": 1, \"status\": \"ok\", \"detail\": \"\"}], \"finish_reason\": \"stop\", "
            "\"policy_version\": 9, \"weights_hash\": \"abcdef0123456789\", "
            "\"prompt_ids\": [15, 20, 11], \"ids\": [42, 2], \"logprobs\": [-0.7, -0.1]}");
}

TEST(RolloutDump, SaysWhichTokensToolsWrote) {
  RolloutRecord record = example();
  const std::vector<int32_t> said = {5, 6, 7};
  data::append_observation(
      record.trajectory, said,
      {.tool = "search", .status = data::ToolStatus::kTimeout, .is_cut = true, .text = "said"});
  data::append_token(record.trajectory, 9, -0.5f, -0.5f);
  record.trajectory.finish_reason = data::FinishReason::kToolLimit;
  const std::string line = rollout_line(record);
  EXPECT_THAT(line, ::testing::EndsWith("\"ids\": [42, 2, 5, 6, 7, 9], \"logprobs\": [-0.7, -0.1, "
                                        "-0.5], \"observations\": [[2, 5, \"search\", "
                                        "\"timeout\", true, \"said\"]]}"));
  const Result<RolloutRecord> back = parse_rollout_line(line);
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(rollout_line(*back), line);
  EXPECT_EQ(back->trajectory.observations, record.trajectory.observations);
  std::string wrong = line;
  wrong.replace(wrong.find("timeout"), 7, "tired");
  EXPECT_EQ(parse_rollout_line(wrong).status().message(),
            "not a rollout: the status of an observation is 'tired'; expected ok, invalid, error "
            "or timeout");
}

TEST(RolloutDump, ReadsBackEveryFieldAndEveryBit) {
  const TemporaryFolder temp;
  std::vector<RolloutRecord> records = {example(), example()};
  RolloutRecord& hard = records[1];
  hard.prompt = "line\nquote \" slash \\ tab \t euro \xE2\x82\xAC </script> \x7F";
  hard.reward = std::nan("");
  hard.advantage = -INFINITY;
  hard.parts.push_back({"number", NAN, 0.5, NAN, "not_applicable", "no number"});
  hard.trajectory.id.prompt_id = ~uint64_t{0};
  hard.trajectory.finish_reason = data::FinishReason::kLength;
  RngSequence rng(5, RngStream::kTask);
  for (int i = 0; i < 2000; ++i) {
    const float logprob = -std::bit_cast<float>(rng.next_u32() % 0x7F800000u);  // any finite float
    data::append_token(hard.trajectory, i, logprob, i % 2 == 0 ? logprob : 0.0f);
  }
  for (size_t i = 0; i < hard.trajectory.behavior_logprobs.size(); ++i) {
    hard.values.push_back(std::bit_cast<float>(rng.next_u32() % 0x7F800000u));
  }
  hard.trajectory.segments = {{0, 2, 8, 0xFEDCBA9876543210u}, {2, 2002, 9, 1}};
  ASSERT_TRUE(write_rollouts(temp.path() + "/step_3.jsonl", records).ok());
  const auto back = read_rollouts(temp.path() + "/step_3.jsonl");
  ASSERT_TRUE(back.ok()) << back.status().message();
  ASSERT_EQ(back->size(), 2u);
  const RolloutRecord& got = (*back)[1];
  EXPECT_EQ(got.step, 3);
  EXPECT_EQ(got.prompt, hard.prompt);
  EXPECT_EQ(got.task, hard.task);
  EXPECT_EQ(got.answer, hard.answer);
  EXPECT_TRUE(std::isnan(got.reward));
  EXPECT_EQ(got.advantage, -INFINITY);
  ASSERT_EQ(got.parts.size(), 2u);
  EXPECT_EQ(got.parts[1].name, "number");
  EXPECT_TRUE(std::isnan(got.parts[1].raw));
  EXPECT_EQ(got.parts[1].weight, 0.5);
  EXPECT_EQ(got.parts[1].status, "not_applicable");
  EXPECT_EQ(got.parts[1].detail, "no number");
  EXPECT_EQ(got.trajectory.segments, hard.trajectory.segments);
  EXPECT_EQ(got.values, hard.values);
  EXPECT_TRUE((*back)[0].values.empty());
  EXPECT_EQ(got.trajectory.id, hard.trajectory.id);
  EXPECT_EQ(got.trajectory.token_ids, hard.trajectory.token_ids);
  EXPECT_EQ(got.trajectory.prompt_length, 3);
  EXPECT_EQ(got.trajectory.behavior_logprobs, hard.trajectory.behavior_logprobs);
  EXPECT_EQ(got.trajectory.sampling_logprobs, hard.trajectory.sampling_logprobs);
  EXPECT_EQ(got.trajectory.finish_reason, data::FinishReason::kLength);
  EXPECT_EQ(got.trajectory.policy_version, 9u);
  EXPECT_EQ(got.trajectory.weights_hash, 0xABCDEF0123456789u);
  EXPECT_EQ(got.trajectory.text, "5");
}

TEST(RolloutDump, ReplacesBytesThatAreNotUtf8) {
  RolloutRecord record = example();
  record.trajectory.text = "half \xE2\x82 and \xFF.";
  const std::string line = rollout_line(record);
  EXPECT_EQ(first_invalid_utf8(line), std::nullopt);
  EXPECT_EQ(parse_rollout_line(line)->trajectory.text, "half \xEF\xBF\xBD and \xEF\xBF\xBD.");
}

TEST(RolloutDump, NamesTheBadLine) {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/r.jsonl";
  const std::string good = rollout_line(example()) + "\n";
  write_file(path, good + "{\"step\": 3}\n");
  const Status status = read_rollouts(path).status();
  EXPECT_TRUE(status.message().starts_with(path + ":2: not a rollout: ")) << status.message();
  EXPECT_NE(status.message().find("key 'prompt' not found"), std::string::npos) << status.message();
  write_file(path, good + good.substr(0, 40));
  EXPECT_TRUE(read_rollouts(path).status().message().starts_with(path + ":2: not a rollout: "));
  std::string reason = good;
  reason.replace(reason.find("\"stop\""), 6, "\"tired\"");
  write_file(path, reason);
  EXPECT_EQ(read_rollouts(path).status().message(),
            path +
                ":1: not a rollout: finish_reason is 'tired'; expected stop, length, cancelled, "
                "interrupted or tool_limit");
}

TEST(RolloutDump, RefusesATrajectoryThatContradictsItself) {
  std::string line = rollout_line(example());
  line.replace(line.find("[-0.7, -0.1]"), 12, "[-0.7]");
  EXPECT_FALSE(parse_rollout_line(line).ok());
}

TEST(RolloutDump, ListsItsStepsInOrder) {
  const TemporaryFolder temp;
  for (const char* name : {"step_10.jsonl", "step_9.jsonl", "step_x.jsonl", "step_1.jsonl.tmp"}) {
    write_file(temp.path() + "/" + name, "");
  }
  EXPECT_THAT(rollout_steps(temp.path()), ::testing::ElementsAre(9, 10));
  EXPECT_THAT(rollout_steps(temp.path() + "/none"), ::testing::IsEmpty());
}

}  // namespace
}  // namespace gradus::records
