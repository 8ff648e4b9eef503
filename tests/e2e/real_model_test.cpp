// SPDX-License-Identifier: Apache-2.0
// SmolLM2-135M-Instruct (tools/fetch_model) through the commands, against transformers' numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/files.h"
#include "tests/support/json_rows.h"
#include "tests/support/run_gradus.h"
#include "tests/support/tolerances.h"

namespace gradus {
namespace {

using nlohmann::json;

constexpr const char* kModel = ".deps/models/smollm2-135m-instruct";
constexpr int kEndToken = 2;  // <|im_end|>

class RealModel : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::ifstream(std::string(kModel) + "/config.json").good())
        << kModel << " is missing; run tools/fetch_model";
    golden_ = json::parse(test::read_file("tests/golden/smollm2_logits.json"))["cases"];
  }
  std::string rows_file(const std::vector<json>& rows) const {
    test::write_file(folder_.path() + "/rows.jsonl", test::json_lines(rows));
    return folder_.path() + "/rows.jsonl";
  }
  test::TemporaryFolder folder_;
  json golden_;
};

TEST_F(RealModel, ContinuesGreedilyAndScoresAsTransformersDoes) {
  std::vector<json> prompts, sequences;
  size_t longest = 0;
  for (const json& c : golden_) {
    prompts.push_back({{"text", c["text"]}});
    sequences.push_back({{"ids", c["ids"]}});
    longest = std::max(longest, c["greedy"].size());
  }
  const test::Outcome generated = test::run_gradus(
      std::string("generate --greedy --kv-cache-mib 256 --model ") + kModel + " --max-new-tokens " +
      std::to_string(longest) + " --prompts " + rows_file(prompts));
  ASSERT_EQ(generated.exit_code, 0);
  const std::vector<json> rows = test::json_rows(generated.output);
  ASSERT_EQ(rows.size(), golden_.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["prompt_ids"], golden_[i]["ids"]) << i;
    // The golden continuation goes on behind the end token.
    std::vector<int> expected = golden_[i]["greedy"];
    const auto end = std::find(expected.begin(), expected.end(), kEndToken);
    if (end != expected.end()) expected.erase(end + 1, expected.end());
    EXPECT_EQ(rows[i]["ids"].get<std::vector<int>>(), expected) << i;
    EXPECT_EQ(rows[i]["finish_reason"], expected.back() == kEndToken ? "stop" : "length");
    // The scorer gives the bits of the generator.
    std::vector<int> all = rows[i]["prompt_ids"];
    all.insert(all.end(), rows[i]["ids"].begin(), rows[i]["ids"].end());
    sequences.push_back({{"ids", all}});
  }
  const test::Outcome scored = test::run_gradus(std::string("logprobs --model ") + kModel +
                                                " --input " + rows_file(sequences));
  ASSERT_EQ(scored.exit_code, 0);
  const std::vector<json> scores = test::json_rows(scored.output);
  ASSERT_EQ(scores.size(), 2 * rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const json& expected = golden_[i]["logprobs"];
    ASSERT_EQ(scores[i]["logprobs"].size(), expected.size());
    for (size_t t = 0; t < expected.size(); ++t) {
      ASSERT_NEAR(scores[i]["logprobs"][t].get<double>(), expected[t].get<double>(),
                  testing::kLogits)
          << "case " << i << ", token " << t;
    }
    const json& whole = scores[rows.size() + i]["logprobs"];
    const auto response = whole.end() - static_cast<long>(rows[i]["ids"].size());
    EXPECT_EQ(json(std::vector<json>(response, whole.end())).dump(), rows[i]["logprobs"].dump())
        << i;
  }
}

}  // namespace
}  // namespace gradus
