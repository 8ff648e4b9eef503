// SPDX-License-Identifier: Apache-2.0
#include "data/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "data/row_source.h"

namespace gradus::data {
namespace {

class Dataset : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) / (std::string("dataset_") + test->name());
    std::filesystem::create_directories(folder_);
    // Messages then name "rows.jsonl" and not a path that differs between hosts.
    before_ = std::filesystem::current_path();
    std::filesystem::current_path(folder_);
  }
  void TearDown() override {
    std::filesystem::current_path(before_);
    std::filesystem::remove_all(folder_);
  }

  static void write(const std::string& name, const std::string& text) {
    std::ofstream(name, std::ios::binary) << text;
  }
  static Result<std::vector<Row>> load(const std::string& text,
                                       const DatasetOptions& options = {}) {
    write("rows.jsonl", text);
    const std::vector<std::string> files = {"rows.jsonl"};
    return load_rows(files, options);
  }
  static std::string error_of(const std::string& text, const DatasetOptions& options = {}) {
    return load(text, options).status().message();
  }

  std::filesystem::path folder_, before_;
};

constexpr const char* kGood = R"({"data_source":"a","prompt":"p","ground_truth":"1"})";

TEST_F(Dataset, ReadsVerlsFields) {
  const auto rows =
      load(R"({"data_source": "gsm8k", "prompt": [{"role": "system", "content": "s"}, )"
           R"({"role": "user", "content": "2+3?"}], "ability": "math", )"
           R"("reward_model": {"style": "rule", "ground_truth": "5"}, )"
           R"("extra_info": {"split": "train", "index": 7}, "level": 3})"
           "\r\n\n"
           R"({"data_source": "b", "prompt": "4+5=", "answer": 9})");
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  ASSERT_EQ(rows->size(), 2u);
  const Row& first = (*rows)[0];
  EXPECT_EQ(first.data_source, "gsm8k");
  EXPECT_EQ(first.messages, (std::vector<Message>{{"system", "s"}, {"user", "2+3?"}}));
  EXPECT_EQ(first.text, "");
  EXPECT_EQ(first.ability, "math");
  EXPECT_EQ(first.reward_style, "rule");
  EXPECT_EQ(first.ground_truth, "5");
  EXPECT_EQ(first.extra_info, R"({"split":"train","index":7})");
  EXPECT_EQ(first.other_keys, R"({"level":3})");
  EXPECT_EQ(metadata_of(first), (std::map<std::string, std::string>{
                                    {"split", "train"}, {"index", "7"}, {"level", "3"}}));
  EXPECT_EQ(place_of(first), "rows.jsonl:1");
  EXPECT_EQ((*rows)[1].text, "4+5=");
  EXPECT_EQ((*rows)[1].ground_truth, "9");
  EXPECT_EQ(place_of((*rows)[1]), "rows.jsonl:3");
}

TEST_F(Dataset, TakesStructuredGroundTruthAsJsonText) {
  const auto rows = load(
      R"({"data_source":"c","prompt":"p","reward_model":{"ground_truth":{"target":9,"numbers":[4,5]}}})");
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ((*rows)[0].ground_truth, R"({"target":9,"numbers":[4,5]})");
}

TEST_F(Dataset, TakesTheLastAssistantTurnOfMessagesAsResponse) {
  const std::string line = R"({"data_source":"a","messages":[{"role":"user","content":"q"},)"
                           R"({"role":"assistant","content":"r"}]})";
  const auto rows = load(line, {.require_ground_truth = false, .require_response = true});
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ((*rows)[0].response, "r");
  EXPECT_EQ((*rows)[0].messages.size(), 1u);
}

TEST_F(Dataset, WritesRowsThatReadBackEqual) {
  const std::string text =
      R"({"data_source":"a","prompt":[{"role":"user","content":"\u00e9\n\"x\""}],"ability":"m",)"
      R"("reward_model":{"style":"rule","ground_truth":"5","rubric":["r"]},"response":"r",)"
      R"("extra_info":{"z":1,"a":null},"k":[1.5]})"
      "\n" +
      std::string(kGood);
  auto rows = load(text);
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  std::string written;
  for (const Row& row : *rows) written += row_to_json(row).dump() + "\n";
  const auto again = load(written);
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(*rows, *again);
  EXPECT_NE(written.find(R"("rubric":["r"])"), std::string::npos);
}

// Regression: the last of two equal keys won without a word.
TEST_F(Dataset, AKeyThatStandsTwiceIsAnErrorAtAnyDepth) {
  const std::string good = std::string(kGood) + "\n";
  EXPECT_EQ(error_of(good + R"({"data_source":"a","prompt":"p","ground_truth":"1","prompt":"q"})"),
            "rows.jsonl:2: key 'prompt' stands twice in one object; keep one of them");
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":"p","reward_model":{"ground_truth":"1",)"
                     R"("ground_truth":"2"}})"),
            "rows.jsonl:1: key 'ground_truth' stands twice in one object; keep one of them");
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":"p","ground_truth":"1","":1,"":2})"),
            "rows.jsonl:1: key '' stands twice in one object; keep one of them");
  // The same key in different objects is no repetition.
  EXPECT_TRUE(
      load(R"({"data_source":"a","prompt":[{"role":"user","content":"x"},)"
           R"({"role":"user","content":"y"}],"ground_truth":"1","extra_info":{"prompt":1}})")
          .ok());
}

TEST_F(Dataset, ProceduralRowsAreNamedByTheirNumber) {
  const auto rows = load_source({.task = "chain_sum", .num_rows = 3}, {}, 0);
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(place_of((*rows)[0]), "chain_sum row 1");
  EXPECT_EQ(place_of((*rows)[2]), "chain_sum row 3");
}

TEST_F(Dataset, NamesABadRowByFileAndLine) {
  const std::string good = std::string(kGood) + "\n";
  EXPECT_EQ(error_of(good + "\n" + R"({"data_source":"a","prompt":)"),
            "rows.jsonl:3: not valid JSON at byte 29, after 'ta_source\":\"a\",\"prompt\":'; "
            "expected one "
            "whole object a line");
  EXPECT_EQ(error_of(R"([{"data_source":"a"},)"),
            "rows.jsonl:1: not valid JSON at byte 22, after '[{\"data_source\":\"a\"},'; write one "
            "object a "
            "line instead of one array");
  EXPECT_EQ(error_of("\"text\""), "rows.jsonl:1: is string; expected one JSON object a line");
  EXPECT_EQ(error_of(good + "{\"a\": \"\xff\"}"),
            "rows.jsonl:2: invalid UTF-8 at byte 7; rows are JSON in UTF-8");
  EXPECT_TRUE(
      error_of(R"({"data_source":"\ud800"})").starts_with("rows.jsonl:1: not valid JSON at byte"));
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":"p","extra_info":{"n":-1e999}})"),
            "rows.jsonl:1: holds the number '-1e999', which no double can hold; write it as text");
  EXPECT_EQ(error_of(R"({"prompt":"p","ground_truth":"1"})"),
            "rows.jsonl:1: data_source: is missing; expected a string that names the task");
  EXPECT_EQ(error_of(R"({"data_source":3,"prompt":"p"})"),
            "rows.jsonl:1: data_source: is number; expected a string");
  const std::string forms =
      "a string or a list of {\"role\", \"content\"} objects with string values";
  EXPECT_EQ(error_of(R"({"data_source":"a","ground_truth":"1"})"),
            "rows.jsonl:1: prompt: is missing; expected " + forms);
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":7})"),
            "rows.jsonl:1: prompt: is number; expected " + forms);
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":[]})"),
            "rows.jsonl:1: prompt: is empty; expected " + forms);
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":["q"]})"),
            "rows.jsonl:1: prompt[0]: is string; expected {\"role\", \"content\"}");
  EXPECT_EQ(
      error_of(R"({"data_source":"a","prompt":[{"role":"user","content":"q"},{"role":"user"}]})"),
      "rows.jsonl:1: prompt[1].content: is missing; expected a string");
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":[{"role":"user","content":"q","name":"x"}]})"),
            "rows.jsonl:1: prompt[0]: unknown key 'name'; a message has only role and content");
  EXPECT_EQ(
      error_of(R"({"data_source":"a","prompt":"p","messages":[]})"),
      "rows.jsonl:1: prompt: stands beside 'messages', which is another name for it; keep one");
  EXPECT_EQ(
      error_of(R"({"data_source":"a","prompt":"p"})"),
      "rows.jsonl:1: reward_model.ground_truth: is missing; expected it, or a flat ground_truth, "
      "answer or label");
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":"p","reward_model":"rule"})"),
            "rows.jsonl:1: reward_model: is string; expected an object with 'ground_truth'");
  EXPECT_EQ(error_of(R"({"data_source":"a","prompt":"p","answer":"1","extra_info":"{}"})"),
            "rows.jsonl:1: extra_info: is string; expected an object");
  EXPECT_EQ(error_of(kGood, {.require_response = true}),
            "rows.jsonl:1: response: is missing; supervised training expects a string, or messages "
            "that end "
            "with an assistant turn");
}

TEST_F(Dataset, ListsTenBadRowsAndCountsTheRest) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += i % 2 == 0 ? "{}\n" : std::string(kGood) + "\n";
  const std::string message = error_of(text);
  EXPECT_TRUE(message.starts_with("rows.jsonl:1: data_source: is missing")) << message;
  EXPECT_NE(message.find("\nrows.jsonl:19: "), std::string::npos);
  EXPECT_EQ(message.find("\nrows.jsonl:21: "), std::string::npos);
  EXPECT_TRUE(message.ends_with("\ndata: 1500 of 3000 rows are bad, the first 10 are listed"))
      << message;
}

TEST_F(Dataset, RefusesFilesThatHoldNoRows) {
  EXPECT_EQ(error_of(""), "rows.jsonl: no rows; a data set needs at least one");
  EXPECT_EQ(error_of("\n  \n"), "rows.jsonl: no rows; a data set needs at least one");
  EXPECT_TRUE(
      error_of("PAR1....").starts_with("rows.jsonl: is a Parquet file; expected JSON lines"));
  const std::vector<std::string> missing = {"missing.jsonl"}, here = {"."};
  EXPECT_EQ(load_rows(missing, {}).status().message(),
            "missing.jsonl: cannot open: No such file or directory");
  EXPECT_EQ(load_rows(missing, {}).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(load_rows(here, {}).ok());
  EXPECT_EQ(load_rows({}, {}).status().message(), "data: no files; name at least one");
}

TEST_F(Dataset, StopsAtTheWantedNumberOfRowsAcrossFiles) {
  write("one.jsonl", std::string(kGood) + "\n" + kGood);
  write("two.jsonl", std::string(kGood) + "\nnot json");
  const std::vector<std::string> files = {"one.jsonl", "two.jsonl"};
  const auto rows = load_rows(files, {.max_rows = 3});
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(rows->size(), 3u);
  EXPECT_EQ(place_of(rows->back()), "two.jsonl:1");
}

TEST_F(Dataset, ChecksAThousandRowsInATenthOfASecond) {
  std::string line = kGood;
  line.insert(line.find("\"p\"") + 2, std::string(2000, 'x'));
  std::string text;
  for (int i = 0; i < 1000; ++i) text += line + "\n";
  write("rows.jsonl", text);
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::string> files = {"rows.jsonl"};
  EXPECT_TRUE(load_rows(files, {.max_rows = 1000}).ok());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 1.0);  // takes about 10 ms; a loaded machine is allowed for
}

TEST_F(Dataset, LeavesOverlongPromptsOutOrStops) {
  std::vector<Row> rows(4);
  const int64_t lengths[] = {3, 9, 5, 6};
  for (int64_t i = 0; i < 4; ++i) {
    rows[i].source_file = "rows.jsonl";
    rows[i].line = i + 1;
    rows[i].text = std::string(static_cast<size_t>(lengths[i]), 'x');
  }
  const auto count = [](const Row& row) -> Result<int64_t> {
    return static_cast<int64_t>(row.text.size());
  };
  const auto split = split_overlong(rows, count, 5, OverlongPolicy::kFilter);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(split->kept, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(split->num_dropped, 2);
  EXPECT_EQ(split->longest_tokens, 9);
  EXPECT_EQ(split_overlong(rows, count, 5, OverlongPolicy::kError).status().message(),
            "rows.jsonl:2: the prompt has 9 tokens, at most 5 are allowed; shorten it, allow "
            "longer prompts, "
            "or have over-long prompts filtered");
  EXPECT_EQ(split_overlong(rows, count, 2, OverlongPolicy::kFilter).status().message(),
            "data: all 4 prompts have more than 2 tokens (the longest 9); allow longer prompts");
  const auto failing = [](const Row&) -> Result<int64_t> {
    return invalid_argument("no template");
  };
  EXPECT_EQ(split_overlong(rows, failing, 2, OverlongPolicy::kFilter).status().message(),
            "rows.jsonl:1: no template");
}

TEST_F(Dataset, LoadsTheRowsOfATaskOrOfFiles) {
  SourceConfig source;
  source.task = "chain_sum";
  source.task_options = {{"terms", "4"}};
  source.num_rows = 300;
  source.seed = 5;
  const auto rows = load_source(source, {});
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(rows->size(), 300u);
  const auto few = load_source(source, {}, 10);
  ASSERT_TRUE(few.ok());
  EXPECT_TRUE(std::equal(few->begin(), few->end(), rows->begin(), rows->begin() + 10));
  source.task_options = {{"trems", "4"}};
  EXPECT_TRUE(load_source(source, {})
                  .status()
                  .message()
                  .starts_with("task chain_sum: unknown option 'trems'; did you mean 'terms'?"));
  write("rows.jsonl", std::string(kGood) + "\n" + kGood + "\n");
  SourceConfig files;
  files.files = {"rows.jsonl"};
  EXPECT_EQ(load_source(files, {})->size(), 2u);
  EXPECT_EQ(load_source(files, {}, 1)->size(), 1u);
}

TEST(DataOrder, VisitsEachRowOnceAnEpochInAnOrderOfItsOwn) {
  for (const int64_t num_rows : {1, 2, 3, 7, 64, 1001}) {
    DataOrder order(num_rows, 42, true);
    std::vector<std::vector<int64_t>> epochs(3);
    for (uint64_t position = 0; position < static_cast<uint64_t>(3 * num_rows); ++position) {
      epochs[order.epoch_of(position)].push_back(order.row_at(position));
    }
    for (const auto& epoch : epochs) {
      std::set<int64_t> rows(epoch.begin(), epoch.end());
      EXPECT_EQ(static_cast<int64_t>(rows.size()), num_rows);
      EXPECT_EQ(*rows.rbegin(), num_rows - 1);
    }
    if (num_rows > 7) {
      EXPECT_NE(epochs[0], epochs[1]);
    }
  }
}

TEST(DataOrder, DependsOnThePositionAloneSoThatRunsResume) {
  DataOrder straight(100, 7, true), resumed(100, 7, true), other_seed(100, 8, true);
  std::vector<int64_t> all, others;
  for (uint64_t position = 0; position < 250; ++position) {
    all.push_back(straight.row_at(position));
    others.push_back(other_seed.row_at(position));
  }
  for (uint64_t position = 250; position-- > 130;) {
    EXPECT_EQ(resumed.row_at(position), all[position]) << "position " << position;
  }
  EXPECT_NE(all, others);
}

TEST(DataOrder, IsTheSameOnEveryHost) {
  DataOrder order(8, 1, true);
  std::vector<int64_t> rows;
  for (uint64_t position = 0; position < 8; ++position) rows.push_back(order.row_at(position));
  EXPECT_EQ(rows, (std::vector<int64_t>{2, 7, 5, 1, 0, 4, 3, 6}));
}

TEST(DataOrder, KeepsTheOrderOfTheFileWithoutShuffling) {
  DataOrder order(3, 1, false);
  for (uint64_t position = 0; position < 9; ++position) {
    EXPECT_EQ(order.row_at(position), static_cast<int64_t>(position % 3));
  }
}

TEST(DataOrder, PutsEachRowAnywhereEquallyOften) {
  // 6,000 seeds, 6 rows: each (row, place) is hit 1,000 times, with standard deviation 29.
  std::vector<int> hits(36, 0);
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    DataOrder order(6, seed, true);
    for (uint64_t place = 0; place < 6; ++place) {
      ++hits[static_cast<size_t>(order.row_at(place)) * 6 + place];
    }
  }
  for (const int count : hits) EXPECT_NEAR(count, 1000, 150);
}

}  // namespace
}  // namespace gradus::data
