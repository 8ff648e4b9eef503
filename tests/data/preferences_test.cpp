// SPDX-License-Identifier: Apache-2.0
#include "data/preferences.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/files.h"

namespace gradus::data {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

Result<std::vector<PreferenceRow>> load(const std::string& text) {
  const test::TemporaryFolder folder;
  const std::string file = folder.path() + "/pairs.jsonl";
  test::write_file(file, text);
  const std::vector<std::string> files = {file};
  return load_preferences(files, 0);
}

PreferenceRow one(const std::string& text) {
  const auto rows = load(text);
  EXPECT_TRUE(rows.ok()) << rows.status().message();
  return rows.ok() && !rows->empty() ? (*rows)[0] : PreferenceRow();
}

TEST(Preferences, AreReadFromStringsAndFromMessages) {
  PreferenceRow row = one(R"({"prompt":"2+2=","chosen":"4","rejected":"5","margin":1.5,"id":7})");
  EXPECT_EQ(row.prompt.text, "2+2=");
  EXPECT_EQ(row.chosen, "4");
  EXPECT_EQ(row.rejected, "5");
  EXPECT_EQ(row.margin, 1.5);
  EXPECT_EQ(row.prompt.line, 1);
  const PreferenceRow chat =
      one(R"({"prompt":[{"role":"user","content":"2+2?"}],)"
          R"("chosen":[{"role":"assistant","content":"4"}],"rejected":"5"})");
  EXPECT_EQ(chat.prompt.messages, (std::vector<Message>{{"user", "2+2?"}}));
  EXPECT_EQ(chat.chosen, "4");
  // The prompt's messages may stand again in front of the response.
  const PreferenceRow whole =
      one(R"({"prompt":[{"role":"user","content":"2+2?"}],)"
          R"("chosen":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}],)"
          R"("rejected":[{"role":"assistant","content":"5"}]})");
  EXPECT_EQ(whole.prompt.messages, chat.prompt.messages);
  EXPECT_EQ(whole.chosen, "4");
  EXPECT_EQ(whole.rejected, "5");
  // And alone say what the prompt is.
  const PreferenceRow implicit =
      one(R"({"chosen":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}],)"
          R"("rejected":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"5"}]})");
  EXPECT_EQ(implicit.prompt.messages, chat.prompt.messages);
  EXPECT_EQ(implicit.rejected, "5");
}

TEST(Preferences, SayWhatIsWrongWithARow) {
  const auto message = [](const std::string& text) { return load(text).status().message(); };
  EXPECT_THAT(message(R"({"prompt":"a","rejected":"b"})"),
              EndsWith("pairs.jsonl:1: chosen: is missing; a preference row needs chosen and "
                       "rejected, each a string or messages that end with an assistant turn"));
  EXPECT_THAT(message(R"({"prompt":"a","chosen":"b"})"), HasSubstr(":1: rejected: is missing; "));
  EXPECT_THAT(message(R"({"prompt":"a","chosen":"b","rejected":"b"})"),
              EndsWith(":1: chosen and rejected are the same response; a pair must differ: drop "
                       "the row"));
  EXPECT_THAT(message(R"({"chosen":"b","rejected":"c"})"),
              EndsWith(":1: prompt: is missing; expected a string or messages, or whole chats as "
                       "chosen and rejected"));
  EXPECT_THAT(message(R"({"prompt":[{"role":"user","content":"a"}],"rejected":"c","chosen":)"
                      R"([{"role":"user","content":"x"},{"role":"assistant","content":"b"}]})"),
              EndsWith(":1: chosen: the prompt is no prefix of its 2 messages; give the assistant "
                       "turn alone, or the whole chat that begins with the prompt's messages"));
  EXPECT_THAT(
      message(R"({"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],)"
              R"("rejected":[{"role":"user","content":"x"},{"role":"assistant","content":"c"}]})"),
      HasSubstr("rejected: the prompt is no prefix of its 2 messages"));
  EXPECT_THAT(message(R"({"prompt":"a","chosen":[{"role":"user","content":"b"}],"rejected":"c"})"),
              EndsWith("chosen: 1 turn by 'user' after the prompt; expected one assistant turn "
                       "that is not empty"));
  EXPECT_THAT(message(R"({"prompt":"a","chosen":"","rejected":"c"})"),
              EndsWith("chosen: is empty; expected at least one character"));
  EXPECT_THAT(message(R"({"prompt":"a","chosen":3,"rejected":"c"})"),
              EndsWith("chosen: is number; expected a string or messages"));
  EXPECT_THAT(message(R"({"prompt":"a","chosen":"b","rejected":"c","margin":"x"})"),
              EndsWith("margin: is \"x\"; expected a number"));
  EXPECT_THAT(message("{\"prompt\":\"a\"}\n[]\n"),
              HasSubstr("pairs.jsonl:2: is array; expected one JSON object a line\n"
                        "data: 2 of 2 rows are bad"));
}

TEST(Preferences, OfATaskSetItsResponseAgainstAnother) {
  SourceConfig source;
  source.task = "chain_sum";
  source.task_options = {{"style", "compact"}};
  source.num_rows = 50;
  const auto rows = load_preference_source(source);
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  ASSERT_EQ(rows->size(), 50u);
  const auto plain = make_row("chain_sum", source.task_options, 0, 0);
  EXPECT_EQ((*rows)[0].prompt.text, plain->text);
  EXPECT_EQ((*rows)[0].chosen, plain->response);
  std::string lines;
  for (const PreferenceRow& row : *rows) {
    EXPECT_NE(row.chosen, row.rejected);
    lines += preference_to_json(row).dump() + "\n";
  }
  // Written and read back they are the same but for their place.
  auto read = load(lines);
  ASSERT_TRUE(read.ok()) << read.status().message();
  for (size_t i = 0; i < rows->size(); ++i) {
    (*read)[i].prompt.source_file.clear();
    EXPECT_EQ((*read)[i].prompt.line, static_cast<int64_t>(i) + 1);
    EXPECT_EQ((*read)[i], (*rows)[i]);
  }
}

}  // namespace
}  // namespace gradus::data
