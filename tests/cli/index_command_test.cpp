// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/json_rows.h"
#include "tests/support/run_gradus.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr const char* kModel = "tests/golden/retrieval/tiny_bert";

class IndexCommand : public ::testing::Test {
 protected:
  std::string write_corpus(const std::string& name, const std::vector<json>& rows) const {
    test::write_file(folder_.path() + "/" + name, test::json_lines(rows));
    return folder_.path() + "/" + name;
  }
  std::string build(const std::string& corpus, const std::string& more = "") const {
    return "index build --model " + std::string(kModel) + " --corpus " + corpus + " --out " +
           folder_.path() + "/index " + more;
  }
  test::TemporaryFolder folder_;
};

TEST_F(IndexCommand, BuildsAndSearches) {
  const std::string corpus = write_corpus(
      "corpus.jsonl", {{{"id", "a"}, {"title", "Cats"}, {"text", "cats sleep all day"}},
                       {{"text", "12345 apples cost 3.50 euros"}},
                       {{"id", 7}, {"contents", "\"Dogs\"\ndogs bark"}}});
  const test::Outcome built = test::run_gradus(build(corpus) + "2>&1");
  ASSERT_EQ(built.exit_code, 0) << built.output;
  const std::string search = "index search --k 2 --index " + folder_.path() + "/index ";
  const test::Outcome found = test::run_gradus(
      search + "--query '12345 apples cost 3.50 euros' --query 'Dogs\ndogs bark' 2>&1");
  ASSERT_EQ(found.exit_code, 0) << found.output;
  const std::vector<json> rows = test::json_rows(found.output);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["query"], "12345 apples cost 3.50 euros");
  ASSERT_EQ(rows[0]["passages"].size(), 2u);
  EXPECT_EQ(rows[0]["passages"][0]["document"], 1);
  EXPECT_EQ(rows[0]["passages"][0]["id"], "1");
  EXPECT_NEAR(rows[0]["passages"][0]["score"].get<double>(), 1, 1e-6);
  EXPECT_EQ(rows[1]["passages"][0]["id"], "7");
  EXPECT_EQ(rows[1]["passages"][0]["title"], "Dogs");
  EXPECT_EQ(rows[1]["passages"][0]["text"], "dogs bark");
  // The ranks of an MPI run search parts of the documents together.
  const test::Outcome of_two =
      test::run_command("mpirun -np 2 " + std::string(GRADUS_BINARY) + " " + search +
                        "--query '12345 apples cost 3.50 euros' --query 'Dogs\ndogs bark'");
  EXPECT_EQ(of_two.exit_code, 0);
  EXPECT_EQ(of_two.output, found.output);
  EXPECT_THAT(
      test::run_command("mpirun -np 2 " + std::string(GRADUS_BINARY) + " " + build(corpus) + "2>&1")
          .output,
      HasSubstr("gradus index build: 2 ranks; it runs in one process, start it without "
                "mpirun"));
  // The same command again finds all done.
  EXPECT_EQ(test::run_gradus(build(corpus) + "2>&1").exit_code, 0);
  const std::string queries = write_corpus("queries.jsonl", {{{"query", "Dogs\ndogs bark"}}});
  EXPECT_EQ(test::json_rows(test::run_gradus(search + "--queries " + queries).output)[0], rows[1]);
}

TEST_F(IndexCommand, EmbedsTexts) {
  const std::string texts = write_corpus("texts.jsonl", {{{"text", "a"}}, {{"text", ""}}});
  const std::vector<json> rows = test::json_rows(
      test::run_gradus("index embed --model " + std::string(kModel) + " --input " + texts).output);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1]["vector"].size(), 32u);
}

TEST_F(IndexCommand, NamesWhatIsWrong) {
  const auto error = [](const std::string& command) {
    const test::Outcome outcome = test::run_gradus(command + " 2>&1");
    EXPECT_EQ(outcome.exit_code, 2);
    return outcome.output;
  };
  const std::string bad = write_corpus("bad.jsonl", {{{"text", "x"}}, {{"body", "y"}}});
  EXPECT_THAT(
      error(build(bad)),
      HasSubstr("bad.jsonl:2: neither 'text' nor 'contents'; expected {\"text\": \"...\"}"));
  const std::string number = write_corpus("number.jsonl", {{{"text", 5}}});
  EXPECT_THAT(error(build(number)),
              HasSubstr("number.jsonl:1: 'text' is number; it must be a text"));
  EXPECT_THAT(error("index search --index nowhere --query x"),
              HasSubstr("nowhere: no index.json, so no index, or one whose build was stopped"));
  EXPECT_THAT(error("index search --index nowhere"),
              HasSubstr("gradus index search: no query; give --query TEXT or --queries FILE"));
  const std::string good = write_corpus("good.jsonl", {{{"text", "x"}}});
  ASSERT_EQ(test::run_gradus(build(good) + "2>&1").exit_code, 0);
  const std::string path = folder_.path() + "/index/index.json";
  json info = json::parse(test::read_file(path));
  info["encoder_hash"] = "00000000000000aa";
  test::write_file(path, info.dump());
  EXPECT_THAT(error("index search --query x --index " + folder_.path() + "/index"),
              HasSubstr("built by another encoder than tests/golden/retrieval/tiny_bert (hash "
                        "00000000000000aa, this one "));
}

}  // namespace
}  // namespace gradus
