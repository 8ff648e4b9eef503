// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>

#include "tests/support/files.h"

namespace gradus::cli {
namespace {

struct Outcome {
  int exit_code;
  std::string output;  // standard output and standard error
};

class TokenizeCommand : public testing::Test {
 protected:
  void SetUp() override {
    test::write_file(folder_.path() + "/tokenizer.json", R"({"decoder": {"type": "Fuse"},
      "added_tokens": [{"id": 3, "content": "<e>", "special": true}],
      "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
  }
  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  Outcome run(const std::string& input, const std::string& options = "") {
    test::write_file(path("in.jsonl"), input);
    const std::string command = std::string(GRADUS_BINARY) + " tokenize --model " + folder_.path() +
                                " " + options + " < " + path("in.jsonl") + " 2>&1";
    std::FILE* pipe = popen(command.c_str(), "r");
    std::string output;
    std::array<char, 4096> buffer;
    while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe))
      output.append(buffer.data(), size);
    const int status = pclose(pipe);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
  }
  test::TemporaryFolder folder_;
};

TEST_F(TokenizeCommand, EncodesAndDecodesBack) {
  const Outcome encoded = run("{\"text\": \"abb<e>a\"}\n\n{\"text\": \"\"}\n");
  EXPECT_EQ(encoded.output, "{\"ids\":[2,1,3,0]}\n{\"ids\":[]}\n");
  EXPECT_EQ(encoded.exit_code, 0);
  // Special tokens are kept.
  const Outcome decoded = run(encoded.output, "--decode");
  EXPECT_EQ(decoded.output, "{\"text\":\"abb<e>a\"}\n{\"text\":\"\"}\n");
  EXPECT_EQ(decoded.exit_code, 0);
}

TEST_F(TokenizeCommand, ReadsAndWritesFiles) {
  test::write_file(path("rows.jsonl"), "{\"text\": \"ba\"}\n");
  const Outcome outcome = run("", "--input " + path("rows.jsonl") + " --out " + path("ids.jsonl"));
  EXPECT_EQ(outcome.output, "");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(test::read_file(path("ids.jsonl")), "{\"ids\":[1,0]}\n");
}

TEST_F(TokenizeCommand, EndsAtABadRowWithItsLineAndKeepsTheRowsBefore) {
  const std::string good = "{\"text\": \"a\"}\n";
  const Outcome invalid = run(good + "{\"text\": \"\xFF\"}\n");
  EXPECT_EQ(invalid.output,
            "{\"ids\":[0]}\ngradus: error: standard input:2: invalid UTF-8 at byte 10; rows are "
            "JSON in UTF-8\n");
  EXPECT_EQ(invalid.exit_code, 2);
  const Outcome surrogate = run(good + "{\"text\": \"\\ud800\"}\n");
  EXPECT_EQ(surrogate.output.find("{\"ids\":[0]}\ngradus: error: standard input:2: "), 0u)
      << surrogate.output;
  EXPECT_NE(surrogate.output.find("surrogate"), std::string::npos) << surrogate.output;
  EXPECT_EQ(surrogate.exit_code, 2);
  const Outcome missing = run(good + "{\"txt\": \"a\"}\n");
  EXPECT_EQ(
      missing.output,
      "{\"ids\":[0]}\ngradus: error: standard input:2: no 'text'; expected {\"text\": \"...\"}\n");
  EXPECT_EQ(missing.exit_code, 2);
}

TEST_F(TokenizeCommand, NamesABadIdWithItsLine) {
  const Outcome unknown = run("{\"ids\": [0]}\n{\"ids\": [1, 4]}\n", "--decode");
  EXPECT_EQ(unknown.output,
            "{\"text\":\"a\"}\ngradus: error: standard input:2: ids[1]: token id 4 is not in the "
            "vocabulary; expected "
            "an id of one of its 4 tokens, at most 3\n");
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_EQ(run("{\"ids\": [1.5]}\n", "--decode").output,
            "gradus: error: standard input:1: ids[0]: 1.5 is not a token id; expected a whole "
            "number >= 0\n");
  EXPECT_EQ(run("{\"ids\": [-1]}\n", "--decode").exit_code, 2);
  EXPECT_EQ(run("{\"ids\": 3}\n", "--decode").output,
            "gradus: error: standard input:1: no 'ids'; expected {\"ids\": [...]}\n");
}

}  // namespace
}  // namespace gradus::cli
