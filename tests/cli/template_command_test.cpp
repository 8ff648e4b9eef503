// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace gradus::cli {
namespace {

struct Outcome {
  int exit_code;
  std::string output;
};

// Gives `rows` to the built binary; `arguments` go through the shell.
Outcome run_template(const std::string& rows, const std::string& arguments) {
  const std::string command =
      "printf '%s' '" + rows + "' | " + std::string(GRADUS_BINARY) + " template " + arguments;
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    output.append(buffer.data(), size);
  }
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

const std::string kMistral =
    "--template tests/golden/chat_templates/mistral.jinja --bos B --eos E ";

TEST(TemplateCommand, PrintsOneTextPerRow) {
  const Outcome outcome = run_template(
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " yo "}]})"
      "\n\n"
      R"({"messages": [{"role": "user", "content": "é"}], "add_generation_prompt": true})",
      kMistral);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output,
            "{\"text\":\"B[INST] hi[/INST] yoE\"}\n{\"text\":\"B[INST] é[/INST]\"}\n");
}

TEST(TemplateCommand, PassesFurtherMembersAsVariables) {
  const Outcome outcome = run_template(
      R"({"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": true, "enable_thinking": false})",
      "--template tests/golden/chat_templates/qwen3_thinking.jinja");
  EXPECT_EQ(outcome.output,
            "{\"text\":\"<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n"
            "</think>\\n\\n\"}\n");
}

TEST(TemplateCommand, EndsWithTwoAndTheLineOfABadRow) {
  const std::string good = R"({"messages": [{"role": "user", "content": "hi"}]})";
  const auto message = [&](const std::string& row) {
    const Outcome outcome = run_template(good + "\n" + row, kMistral + "2>&1 >/dev/null");
    EXPECT_EQ(outcome.exit_code, 2) << row;
    return outcome.output;
  };
  EXPECT_EQ(message(R"({"text": "hi"})"),
            "gradus: error: standard input:2: no 'messages'; expected {\"messages\": [{\"role\": "
            "\"...\", "
            "\"content\": \"...\"}], ...}\n");
  EXPECT_EQ(
      message(R"({"messages": ["hi"]})"),
      "gradus: error: standard input:2: a message must be an object with 'role' and 'content', "
      "got string\n");
  EXPECT_EQ(
      message(R"({"messages": [{"role": "robot", "content": ""}]})"),
      "gradus: error: standard input:2: template tests/golden/chat_templates/mistral.jinja:39: "
      "raise_exception: unknown role: robot\n");
}

TEST(TemplateCommand, NeedsOneTemplate) {
  EXPECT_EQ(run_template("", "2>&1").output,
            "gradus: error: gradus template: give either --model DIR or --template FILE\n");
  const Outcome missing = run_template("", "--template nowhere.jinja 2>&1");
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_EQ(missing.output,
            "gradus: error: nowhere.jinja: cannot open: No such file or directory\n");
}

}  // namespace
}  // namespace gradus::cli
