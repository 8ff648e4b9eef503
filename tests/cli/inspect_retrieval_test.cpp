// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_retrieval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/run_gradus.h"

namespace gradus::cli {
namespace {

using nlohmann::json;

// exp(s / a) = 2, 1, 3.
json three_documents() {
  return {{"scores", {0.5 * std::log(2.0), 0.0, 0.5 * std::log(3.0)}},
          {"k", 2},
          {"temperature", 0.5},
          {"selected", {2, 0}}};
}

TEST(InspectRetrieval, AnswersWithLogprobAndGradient) {
  const json got = json::parse(*inspect_retrieval(three_documents().dump(), "case.json"));
  EXPECT_EQ(got.size(), 2u);
  EXPECT_NEAR(got["logprob"].get<double>(), std::log(1.0 / 3), 1e-15);
  EXPECT_NEAR(got["grad"][1].get<double>(), -1, 1e-15);
}

TEST(InspectRetrieval, CountsDrawsBySeed) {
  json input = three_documents();
  input.erase("selected");
  input["num_draws"] = 30000;
  input["seed"] = 4;
  const json counts = json::parse(*inspect_retrieval(input.dump(), "case.json"))["counts"];
  int64_t total = 0;
  for (const auto& [list, count] : counts.items()) total += count.get<int64_t>();
  EXPECT_EQ(counts.size(), 6u);
  EXPECT_EQ(total, 30000);
  EXPECT_NEAR(counts["2,0"].get<double>(), 10000, 4 * std::sqrt(30000 * 2.0 / 9));
  EXPECT_EQ(json::parse(*inspect_retrieval(input.dump(), "case.json"))["counts"], counts);
  input["seed"] = 5;
  EXPECT_NE(json::parse(*inspect_retrieval(input.dump(), "case.json"))["counts"], counts);
}

struct BadCase {
  std::string name;
  json patch;
  std::string message;
};
std::ostream& operator<<(std::ostream& out, const BadCase& bad) { return out << bad.name; }
class InspectRetrievalInput : public ::testing::TestWithParam<BadCase> {};

TEST_P(InspectRetrievalInput, IsRefusedWithOneClearMessage) {
  json input = three_documents();
  input.merge_patch(GetParam().patch);
  EXPECT_EQ(inspect_retrieval(input.dump(), "case.json").status().message(),
            "case.json: " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    All, InspectRetrievalInput,
    ::testing::Values(
        BadCase{"UnknownKey", {{"score", 1}}, "unknown key 'score'; did you mean 'scores'?"},
        BadCase{"MissingKey", {{"temperature", nullptr}}, "missing 'temperature'"},
        BadCase{"NoScores",
                {{"scores", json::array()}},
                "scores is []; it must be a list of at least one number"},
        BadCase{"TextScore",
                {{"scores", {1, "x", 2}}},
                "scores[1] is \"x\"; it must be a finite number"},
        BadCase{"TooManyWanted", {{"k", 4}}, "k is 4; it must be an integer in [1, 3]"},
        BadCase{"Temperature",
                {{"temperature", 0}},
                "retrieval policy: temperature must be a positive number, got 0"},
        BadCase{"ListLength",
                {{"selected", {1}}},
                "selected is [1]; it must be a list of k = 2 places"},
        BadCase{"OutsideThePool",
                {{"selected", {1, 3}}},
                "retrieval policy: entry 1 of the list is place 3, but the pool has 3 documents; "
                "expected a place in [0, 3)"},
        BadCase{"NothingAsked",
                {{"selected", nullptr}},
                "neither 'selected' nor 'num_draws' is given; give an ordered list to weigh, or a "
                "number of lists to draw"},
        BadCase{"Seed",
                {{"seed", -1}},
                "seed is -1; it must be an integer in [0, 9223372036854775807]"}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(InspectRetrieval, NamesWhatIsNotJson) {
  EXPECT_EQ(inspect_retrieval("3", "case.json").status().message(),
            "case.json: must be an object with \"scores\", \"k\" and \"temperature\"");
  EXPECT_TRUE(
      inspect_retrieval("{", "case.json").status().message().starts_with("case.json: not JSON: "));
}

TEST(InspectRetrievalCommand, ReadsAFile) {
  const test::TemporaryFolder folder;
  test::write_file(folder.path() + "/case.json", three_documents().dump());
  const test::Outcome outcome =
      test::run_gradus("inspect retrieval --input " + folder.path() + "/case.json");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_NEAR(json::parse(outcome.output)["logprob"].get<double>(), std::log(1.0 / 3), 1e-15);
}

}  // namespace
}  // namespace gradus::cli
