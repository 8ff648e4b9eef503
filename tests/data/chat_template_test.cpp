// SPDX-License-Identifier: Apache-2.0
#include "data/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

namespace gradus::data {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::StartsWith;

const std::string kGolden = "tests/golden/chat_templates/";

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

// The `now` of the golden files: Tuesday 24 November 2026, 09:05:07.
RenderOptions golden_options() {
  std::tm now{};
  now.tm_year = 2026 - 1900;
  now.tm_mon = 10;
  now.tm_mday = 24;
  now.tm_hour = 9;
  now.tm_min = 5;
  now.tm_sec = 7;
  now.tm_wday = 2;
  now.tm_yday = 327;
  RenderOptions options;
  options.now = now;
  return options;
}

std::string render(const std::string& source,
                   const ordered_json& variables = ordered_json::object(),
                   const RenderOptions& options = {}) {
  const auto parsed = ChatTemplate::parse(source, "t");
  if (!parsed.ok()) return parsed.status().message();
  const auto text = parsed->render(variables, options);
  return text.ok() ? *text : text.status().message();
}

ChatTemplate golden_template(const std::string& file) {
  auto parsed = ChatTemplate::parse(read_text(kGolden + file), file);
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return *parsed;
}

TEST(ChatTemplateGolden, EveryFeatureRendersAsJinja2Does) {
  const ordered_json golden = ordered_json::parse(read_text(kGolden + "features.json"));
  ASSERT_GT(golden["features"].size(), 800u);
  for (const auto& row : golden["features"]) {
    const auto source = row["template"].get<std::string>();
    const auto parsed = ChatTemplate::parse(source, "features");
    Status status = parsed.status();
    std::string text;
    if (status.ok()) {
      const auto rendered = parsed->render(golden["variables"], golden_options());
      status = rendered.status();
      if (rendered.ok()) text = *rendered;
    }
    if (row.contains("error")) {
      EXPECT_FALSE(status.ok()) << source << "\nrendered: " << text;
      EXPECT_THAT(status.message(), MatchesRegex("template features:[0-9]+: .+")) << source;
    } else {
      EXPECT_EQ(status.message(), "") << source;
      EXPECT_EQ(text, row["text"].get<std::string>()) << source;
    }
  }
}

TEST(ChatTemplateGolden, EveryFamilyRendersAsJinja2Does) {
  const ordered_json golden = ordered_json::parse(read_text(kGolden + "renders.json"));
  ASSERT_GE(golden["renders"].size(), 12u * 12u);
  for (const auto& row : golden["renders"]) {
    ordered_json variables = golden["defaults"];
    const auto index = row["conversation"].get<size_t>();
    variables.update(golden["conversations"][index]);
    const auto file = row["file"].get<std::string>();
    const auto text = golden_template(file).render(variables, golden_options());
    EXPECT_EQ(text.ok(), row.contains("text")) << file << " " << index << text.status().message();
    if (text.ok()) {
      EXPECT_EQ(*text, row.value("text", "")) << file << " " << index;
    }
  }
}

TEST(ChatTemplate, PassesTheVariablesOfTransformers) {
  auto parsed = ChatTemplate::parse(
      "{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ x }}"
      "{% for m in messages %}{{ m.role }}:{{ m['content'] }};{% endfor %}",
      "t");
  ASSERT_TRUE(parsed.ok());
  parsed->set_special_token("bos_token", "<s>");
  const ordered_json messages = {{{"role", "user"}, {"content", "hi"}}};
  const auto plain = parsed->render_chat(messages, true);
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  EXPECT_EQ(*plain, "<s>TrueTrueTrueuser:hi;");
  const ordered_json tools = ordered_json::array({1});
  const ordered_json extra = {{"x", 2.5}, {"bos_token", "B"}};
  const auto full = parsed->render_chat(messages, false, &tools, nullptr, &extra);
  ASSERT_TRUE(full.ok()) << full.status().message();
  EXPECT_EQ(*full, "BFalseTrueFalse2.5user:hi;");
}

TEST(ChatTemplate, NamesTheLineOfAParseError) {
  EXPECT_EQ(render("a\n{% if x %}\n{{ 1 + }}"),
            "template t:3: unexpected 'end of print statement'");
  EXPECT_EQ(render("a\n\n{% include 'b' %}"),
            "template t:3: the tag 'include' is not supported; a chat template is one "
            "self-contained file");
  EXPECT_EQ(render("{% for x in y %}\n"),
            "template t:1: unexpected end of template; 'for' must be closed with 'endfor'");
  EXPECT_EQ(render("\n{{ x | urlize }}"), "template t:2: unknown or unsupported filter 'urlize'");
  EXPECT_EQ(render("\n{{ x is nice }}"), "template t:2: unknown or unsupported test 'nice'");
  EXPECT_EQ(
      render("{% if x %}{% endfor %}"),
      "template t:1: unknown tag 'endfor'; 'if' must be closed with 'elif' or 'else' or 'endif'");
  EXPECT_EQ(render("ok\xFF"), "template t:1: invalid UTF-8 at byte 2");
}

TEST(ChatTemplate, NamesTheLineOfAFailureAndItsMessage) {
  EXPECT_EQ(render("a\n{{ raise_exception('roles must alternate') }}"),
            "template t:2: raise_exception: roles must alternate");
  EXPECT_EQ(render("{{ 1 }}\n{{ x.y }}"), "template t:2: 'x' is undefined");
  EXPECT_EQ(render("\n\n{{ d.y.z }}", {{"d", ordered_json::object()}}),
            "template t:3: 'dict object' has no attribute 'y'");
  EXPECT_EQ(render("{{ 'a' +\n 1 }}"),
            "template t:1: can only concatenate str (not \"int\") to str");
  EXPECT_EQ(render("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}"),
            "template t:2: division by zero");
  EXPECT_EQ(render("{{ [1, 2] | map('upper') }}"),
            "template t:1: a stream of values has no text of its own; put `| list` or `| join` "
            "behind it");
}

TEST(ChatTemplate, StopsAHostileTemplate) {
  const char* endless =
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
  EXPECT_THAT(render(endless), HasSubstr("needs more steps than allowed"));
  EXPECT_THAT(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
              HasSubstr("needs more nesting than allowed"));
  EXPECT_THAT(render("{{ 'x' * 10000000000 }}"), HasSubstr("needs more memory than allowed"));
  EXPECT_THAT(render("{% set ns = namespace(s='x') %}{% for i in range(60) %}"
                     "{% set ns.s = ns.s ~ ns.s %}{% endfor %}"),
              HasSubstr("needs more memory than allowed"));
  EXPECT_THAT(render("{% for i in range(99999) %}{{ '%10000d' % 1 }}{% endfor %}"),
              HasSubstr("than allowed"));
  // Shared lists: 2^60 texts when printed, compared or written as JSON.
  const std::string shared =
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% "
      "endfor %}";
  EXPECT_THAT(render(shared + "{{ ns.x }}"), HasSubstr("than allowed"));
  EXPECT_THAT(render(shared + "{{ ns.x | tojson }}"), HasSubstr("than allowed"));
  EXPECT_THAT(render("{% set ns = namespace(x=[]) %}{% for i in range(9999) %}"
                     "{% set ns.x = [ns.x] %}{% endfor %}"),
              HasSubstr("nested too deep"));
  EXPECT_THAT(render("{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}"
                     "{% set ns.x = ns.x | map('string') %}{% endfor %}{{ ns.x | list }}"),
              HasSubstr("nested too deep"));
  EXPECT_THAT(render("{{ " + std::string(100'000, '(')), HasSubstr("nested too deep"));
  EXPECT_THAT(render("{{ " + std::string(100'000, '(') + "1" + std::string(100'000, ')') + " }}"),
              HasSubstr("nested too deep"));
  std::string sum = "{{ 1";
  for (int i = 0; i < 100'000; ++i) sum += " + 1";
  EXPECT_THAT(render(sum + " }}"), HasSubstr("nested too deep"));
  // A frame and what was defined in it are freed (the address sanitizer's build sees it).
  EXPECT_THAT(
      render("{% macro m() %}{% macro n() %}{% endmacro %}{{ x.y }}{% endmacro %}{{ m() }}"),
      HasSubstr("'x' is undefined"));
  // A chain of namespaces and a circle are freed without recursion.
  EXPECT_EQ(render("{% set first = namespace() %}{% set at = namespace(n=first) %}"
                   "{% for i in range(50000) %}{% set last = at.n %}{% set next = namespace() %}"
                   "{% set last.n = next %}{% set at.n = next %}{% endfor %}{% set first.first = "
                   "first %}ok"),
            "ok");
}

TEST(ChatTemplate, SandboxRefusesWhatJinjasSandboxRefuses) {
  EXPECT_EQ(render("{{ x.append(1) }}", {{"x", ordered_json::array()}}),
            "template t:1: access to attribute 'append' of 'list' object is unsafe");
  EXPECT_EQ(render("[{{ ''.__class__ }}]"), "[]");
  EXPECT_EQ(render("{{ ''.__class__.__mro__ }}"),
            "template t:1: access to attribute '__class__' of 'str' object is unsafe");
  EXPECT_EQ(render("{{ range(100001) }}"),
            "template t:1: range too big; the sandbox blocks ranges larger than 100000");
}

TEST(ChatTemplate, GivesTheRangesOfGenerationBlocks) {
  const auto parsed = ChatTemplate::parse(
      "{% for m in messages %}<{{ m }}>{% generation %}{{ m }}!{% endgeneration %}{% endfor %}",
      "t");
  ASSERT_TRUE(parsed.ok());
  const auto rendered = parsed->render_with_spans({{"messages", {"ab", "\xC3\xA9"}}});
  ASSERT_TRUE(rendered.ok());
  EXPECT_EQ(rendered->text, "<ab>ab!<\xC3\xA9>\xC3\xA9!");
  ASSERT_EQ(rendered->generation_spans.size(), 2u);
  EXPECT_EQ(rendered->generation_spans[0].begin, 4);  // behind "<ab>"
  EXPECT_EQ(rendered->generation_spans[0].end, 7);
  EXPECT_EQ(rendered->generation_spans[1].begin, 11);  // bytes: 7, "<", two of the letter, ">"
  EXPECT_EQ(rendered->generation_spans[1].end, 14);
}

TEST(ChatTemplate, ThreadsShareOneTemplate) {
  const ChatTemplate shared = golden_template("qwen3_thinking.jinja");
  const ordered_json messages = {{{"role", "user"}, {"content", "hi"}}};
  const std::string expected = *shared.render_chat(messages, true);
  std::vector<std::thread> threads;
  std::array<int, 4> num_equal{};
  for (int& count : num_equal) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) count += *shared.render_chat(messages, true) == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_equal, testing::Each(50));
}

TEST(PrefixPreservation, TellsTemplatesThatOnlyAppendFromOthers) {
  for (const char* file : {"chatml.jinja", "qwen2.jinja", "llama3.jinja", "smollm2.jinja"}) {
    ChatTemplate chat_template = golden_template(file);
    chat_template.set_special_token("bos_token", "<s>");
    const auto preserves = is_prefix_preserving(chat_template);
    ASSERT_TRUE(preserves.ok()) << preserves.status().message();
    EXPECT_TRUE(*preserves) << file;
  }
  const auto thinking = is_prefix_preserving(golden_template("qwen3_thinking.jinja"));
  ASSERT_TRUE(thinking.ok()) << thinking.status().message();
  EXPECT_FALSE(*thinking);
  const auto refusing = ChatTemplate::parse("{{ raise_exception('no') }}", "t");
  EXPECT_EQ(is_prefix_preserving(*refusing).status().message(),
            "template t:1: raise_exception: no");
}

class ModelFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  std::string path(const std::string& name = "") const { return (folder_ / name).string(); }
  Result<ChatTemplate> load() const { return load_chat_template(folder_.string()); }

  std::filesystem::path folder_;
};

TEST_F(ModelFolder, ReadsTemplateAndSpecialTokensOfTheConfiguration) {
  write(
      "tokenizer_config.json",
      R"({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null,
            "chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}"})");
  write("special_tokens_map.json", R"({"bos_token": "other", "unk_token": "?"})");
  const auto loaded = load();
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(*loaded->render_chat(ordered_json::array(), false), "<s></s>?False");
}

TEST_F(ModelFolder, TakesTheDefaultOfNamedTemplatesAndTheFileOverThem) {
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(load()->source(), "d");
  write("chat_template.jinja", "from the file\n");
  EXPECT_EQ(*load()->render_chat(ordered_json::array(), false), "from the file");
}

TEST_F(ModelFolder, SaysWhatIsWrongWithItsFiles) {
  EXPECT_THAT(load().status().message(),
              StartsWith(folder_.string() + ": no chat template; expected"));
  EXPECT_EQ(load().status().code(), StatusCode::kNotFound);
  write("tokenizer_config.json", "{");
  EXPECT_EQ(load().status().message(), path("tokenizer_config.json") + ": not valid JSON");
  write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_EQ(load().status().message(),
            path("tokenizer_config.json") +
                ": chat_template must be a text or a list of named templates, got number");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "r"}]})");
  EXPECT_EQ(
      load().status().message(),
      path("tokenizer_config.json") + ": chat_template has no entry named 'default', only: rag");
  write("tokenizer_config.json", R"({"chat_template": "a\n{% if %}"})");
  EXPECT_EQ(load().status().message(),
            "template " + path("tokenizer_config.json") +
                ":2: expected an expression, got 'end of statement block'");
}

}  // namespace
}  // namespace gradus::data
