// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/run_gradus.h"

// `gradus data` and `gradus reward` as a user runs them.
namespace gradus::cli {
namespace {

using test::Outcome;
using test::run_gradus;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(DataCommand, MakesRowsThatItFindsGood) {
  const test::TemporaryFolder folder;
  const std::string file = folder.path() + "/rows.jsonl";
  const Outcome made = run_gradus(
      "data make chain_sum --num 20 --seed 3 --option terms=2 --option style=compact --out " +
      file + " 2>&1");
  EXPECT_EQ(made.exit_code, 0) << made.output;
  EXPECT_EQ(made.output, "");
  const Outcome checked = run_gradus("data check " + file + " 2>&1");
  EXPECT_EQ(checked.exit_code, 0) << checked.output;
  EXPECT_THAT(
      checked.output,
      StartsWith(R"({"data_source":"chain_sum","num_rows":20,"num_chats":0,"num_responses":20,)"));
}

TEST(DataCommand, PrintsTheSameRowsForTheSameSeedAndOthersFurtherOn) {
  const std::string arguments = "data make addition --seed 5 --option digits=9 --num ";
  const std::string ten = run_gradus(arguments + "10").output;
  EXPECT_EQ(std::count(ten.begin(), ten.end(), '\n'), 10);
  EXPECT_EQ(run_gradus(arguments + "10").output, ten);
  const std::string four = run_gradus(arguments + "4").output;
  EXPECT_EQ(four + run_gradus(arguments + "6 --first-index 4").output, ten);
  EXPECT_EQ(run_gradus(arguments + "0").output, "");
}

TEST(DataCommand, ListsEveryTaskWithItsOptions) {
  const Outcome listed = run_gradus("data list");
  EXPECT_EQ(listed.exit_code, 0);
  const auto first = nlohmann::json::parse(listed.output.substr(0, listed.output.find('\n')));
  EXPECT_EQ(first["task"], "addition");
  EXPECT_EQ(first["reward"], "number");
  EXPECT_EQ(first["options"][0]["name"], "digits");
  EXPECT_EQ(first["options"][0]["values"], "1..15");
}

TEST(DataCommand, EndsWithTwoAndOneMessageForAMistake) {
  const auto message = [](const std::string& arguments) {
    const Outcome outcome = run_gradus(arguments + " 2>&1 >/dev/null");
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    return outcome.output;
  };
  EXPECT_THAT(
      message("data make countdwn --num 1 --seed 0"),
      StartsWith("gradus: error: unknown task 'countdwn'; did you mean 'countdown'?; known: "));
  EXPECT_EQ(message("data make gcd --num 1 --seed 0 --option max_gcd=1"),
            "gradus: error: task gcd: max_gcd: is '1'; expected a whole number in [2, 1000]\n");
  EXPECT_EQ(message("data make gcd --num 1 --seed 0 --option max_gcd"),
            "gradus: error: --option max_gcd: expected name=value\n");
  EXPECT_EQ(message("data make gcd --num 1 --seed 0 --option max_gcd=3 --option max_gcd=4"),
            "gradus: error: --option max_gcd=4: the name came before; give each once\n");
  EXPECT_EQ(message("data make gcd --num 5 --seed 0 --out /dev/full"),
            "gradus: error: /dev/full: cannot write: No space left on device; free some space or "
            "choose another place\n");
  EXPECT_THAT(message("data make gcd --num -1 --seed 0"), HasSubstr("--num"));
  EXPECT_EQ(message("data check missing.jsonl"),
            "gradus: error: missing.jsonl: cannot open: No such file or directory\n");
  message("data");
}

TEST(DataCommand, MultihopWritesAFolderOfCorpusSplitsAndCeilings) {
  const test::TemporaryFolder folder;
  const std::string facts = folder.path() + "/facts.jsonl", out = folder.path() + "/hops";
  std::ofstream file(facts);
  for (int i = 0; i < 20; ++i) {
    const std::string n = std::to_string(i);
    file << R"({"kind":"country","code":"C)" << n << R"(","name":"Land )" << n
         << R"(","capital":"Town","currency":"Coin )" << n
         << R"(","currency_code":"K","language":"L","language_code":"l","part":"P","population":)"
         << 1000000 * (i + 1) << "}\n";
    for (int d = 0; d < 40; ++d) {
      file << R"({"kind":"division","country":"C)" << n << R"(","type":"state","name":"S)" << n
           << "." << d << R"(","capital":"B)" << n << "." << d << "\"}\n";
    }
  }
  file.close();
  const std::string command =
      "data make multihop --num 64 --seed 1 --facts " + facts + " --out " + out;
  const Outcome made = run_gradus(command + " --option alias=1 2>&1");
  ASSERT_EQ(made.exit_code, 0) << made.output;
  const auto summary = nlohmann::json::parse(std::ifstream(out + "/summary.json"));
  EXPECT_EQ(summary["num_passages"], 20 * 5 + 20 * 40 * 2);
  EXPECT_EQ(summary["splits"]["unseen"]["num_questions"], 8);
  EXPECT_GT(summary["splits"]["train"]["elliptical_fraction"], 0.4);
  const Outcome checked = run_gradus("data check " + out + "/train.jsonl 2>&1");
  EXPECT_THAT(checked.output, StartsWith(R"({"data_source":"multihop","num_rows":64)"));

  const auto message = [](const std::string& arguments) {
    const Outcome outcome = run_gradus(arguments + " 2>&1 >/dev/null");
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    return outcome.output;
  };
  EXPECT_THAT(message(command), HasSubstr(out));
  EXPECT_EQ(message("data make multihop --num 1 --seed 1 --facts " + facts),
            "gradus: error: task multihop: writes several files; name a folder with --out\n");
  EXPECT_EQ(message(command + "2 --option alias=1.5"),
            "gradus: error: task multihop: alias: is '1.5'; expected a number in [0, 1]\n");
  EXPECT_EQ(message(command + "2 --option rho=1"),
            "gradus: error: task multihop: unknown option 'rho'; known: alias\n");
  EXPECT_EQ(message("data make multihop --num 1 --seed 1 --facts none.jsonl --out " + out + "2"),
            "gradus: error: none.jsonl: cannot open: No such file or directory; tools/fetch_facts "
            "makes the facts, or name a file with --facts\n");
}

TEST(DataCommand, NamesEachBadRowOfAFile) {
  const test::TemporaryFolder folder;
  const std::string file = folder.path() + "/rows.jsonl";
  test::write_file(file, "{\"data_source\":\"a\",\"prompt\":\"p\",\"answer\":1}\n{}\nx\n");
  const Outcome outcome = run_gradus("data check " + file + " 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output,
            "gradus: error: " + file +
                ":2: data_source: is missing; expected a string that names the task\n"
                "gradus: error: " +
                file +
                ":3: not valid JSON at byte 1, after 'x'; expected one whole object a line\n"
                "gradus: error: data: 2 of 3 rows are bad\n");
  EXPECT_THAT(run_gradus("data check --sft " + file + " 2>&1").output,
              HasSubstr(":1: response: is missing"));
}

TEST(RewardCommand, ScoresRowsInOrder) {
  const test::TemporaryFolder folder;
  const std::string file = folder.path() + "/responses.jsonl";
  test::write_file(file,
                   "{\"response\": \"Answer: 1,000\", \"ground_truth\": 1000}\n"
                   "{\"response\": \"Answer: 2\", \"ground_truth\": \"3\"}\n"
                   "\n"
                   "{\"response\": \"Answer: 2\", \"ground_truth\": \"three\"}\n");
  const std::string arguments = "reward score --reward number --option marker=Answer: ";
  const Outcome outcome = run_gradus(arguments + "--input " + file + " 2>&1");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output,
            "{\"score\":1.0,\"status\":\"ok\",\"detail\":\"\"}\n"
            "{\"score\":0.0,\"status\":\"ok\",\"detail\":\"is not 3\"}\n"
            "{\"score\":null,\"status\":\"invalid_gold\",\"detail\":\"the ground truth is 'three'; "
            "expected a number\"}\n");
  EXPECT_EQ(run_gradus(arguments + "< " + file).output, outcome.output);
}

TEST(RewardCommand, KeepsTheRowsBeforeABadOne) {
  const Outcome outcome = run_gradus(
      "reward score --reward exact 2>&1 << 'END'\n"
      "{\"response\": \"a\", \"ground_truth\": \"a\"}\n"
      "{\"answer\": \"a\"}\n"
      "END");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output,
            "{\"score\":1.0,\"status\":\"ok\",\"detail\":\"\"}\n"
            "gradus: error: standard input:2: response: is missing; expected {\"response\", "
            "\"ground_truth\"}\n");
}

TEST(RewardCommand, CutsLongTextsBetweenCharacters) {
  // 40 letters of two bytes after one of one: a cut at 60 bytes would leave half a letter, which is
  // no JSON.
  std::string gold = "x";
  for (int i = 0; i < 40; ++i) gold += "\xc3\xa9";
  const Outcome outcome = run_gradus(
      "reward score --reward exact 2>&1 << 'END'\n{\"response\": \"a\", \"ground_truth\": \"" +
      gold + "\"}\nEND");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(nlohmann::json::parse(outcome.output)["detail"].get<std::string>().size(),
            std::string("is not ''").size() + 59);
}

TEST(RewardCommand, ListsTheRewards) {
  const std::string names = run_gradus("reward list").output;
  for (const char* name :
       {"code", "countdown", "exact", "ifeval", "judge", "math", "plugin", "process"}) {
    EXPECT_NE(names.find("{\"reward\":\"" + std::string(name) + "\"}"), std::string::npos) << name;
  }
}

TEST(RewardCommand, RefusesUnknownRewards) {
  const Outcome outcome = run_gradus("reward score --reward numbr 2>&1 < /dev/null");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_TRUE(outcome.output.starts_with(
      "gradus: error: unknown reward 'numbr'; did you mean 'number'?; known: "))
      << outcome.output;
}

}  // namespace
}  // namespace gradus::cli
