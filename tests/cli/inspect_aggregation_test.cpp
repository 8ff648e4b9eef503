// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_aggregation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/run_gradus.h"

namespace gradus::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string inspect(const std::string& strategy, const std::vector<std::string>& overrides,
                    const std::string& clients) {
  const Result<InspectedAggregation> config = inspected_aggregation(strategy, overrides);
  if (!config.ok()) return config.status().message();
  const Result<std::string> answer = inspect_aggregation(*config, clients, "clients.json");
  return answer.ok() ? *answer : answer.status().message();
}

TEST(InspectAggregation, PrintsWeightsAndDelta) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/clients.json";
  test::write_file(path, R"({"clients": [
    {"num_samples": 100, "score": 8, "delta": [1, 0]}, {"num_samples": 50, "score": 9, "delta": [1, 0]},
    {"num_samples": 200, "score": 10, "delta": [1, 0]}, {"num_samples": 150, "score": 12, "delta": [0, 1]}]})");
  const test::Outcome outcome =
      test::run_gradus("inspect aggregation --strategy flood --set alpha=0.5 --input " + path);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const json answer = json::parse(outcome.output);
  EXPECT_NEAR(answer["weights"][3].get<double>(), 0.302564, 5e-7);
  EXPECT_NEAR(answer["delta"][1].get<double>(), 0.302564, 5e-7);
  EXPECT_NEAR(answer["delta"][0].get<double>(), 1 - 0.302564, 5e-7);
  EXPECT_EQ(answer.size(), 2u);
}

TEST(InspectAggregation, GoesOnFromTheStateOfTheServer) {
  const json first =
      json::parse(inspect("fedavgm", {}, R"({"clients": [{"num_samples": 1, "delta": [1, -2]}]})"));
  EXPECT_EQ(first["server_state"]["momentum"], json::parse("[1, -2]"));
  json next = json::parse(R"({"clients": [{"num_samples": 1, "delta": [1, -2]}]})");
  next["server_state"] = first["server_state"];
  EXPECT_NEAR(json::parse(inspect("fedavgm", {}, next.dump()))["delta"][0].get<double>(), 1.9,
              1e-6);
}

TEST(InspectAggregation, TakesWhatARunWouldTell) {
  const std::string clients = R"({"clients": [{"num_samples": 1, "loss": 2, "delta": [1]},
                                              {"num_samples": 1, "loss": 0.5, "delta": [-1]}]})";
  EXPECT_NEAR(json::parse(inspect("qfedavg", {"client_lr=0.1"}, clients))["delta"][0].get<double>(),
              1.0 / 15, 1e-12);
  // SCAFFOLD with 2 of 4 clients: the control moves by half of the mean change.
  const std::string controls =
      R"({"clients": [{"num_samples": 1, "delta": [1], "control_delta": [4]},
                      {"num_samples": 1, "delta": [3], "control_delta": [2]}]})";
  const json scaffold = json::parse(inspect("scaffold", {"num_clients=4"}, controls));
  EXPECT_EQ(scaffold["delta"][0], 2.0);
  EXPECT_EQ(scaffold["server_state"]["control"][0], 1.5);
  // The base of flood brings its own defaults: fedadam's rate of 0.1.
  const json flood = json::parse(inspect("flood", {"base=fedadam", "alpha=0", "initial_v=0"},
                                         R"({"clients": [{"num_samples": 1, "delta": [1]}]})"));
  EXPECT_NEAR(flood["delta"][0].get<double>(), 0.0990099, 6e-8);
  // Weights alone need no updates.
  EXPECT_EQ(
      json::parse(inspect("fedavg", {},
                          R"({"clients": [{"num_samples": 3}, {"num_samples": 1}]})"))["weights"],
      json::parse("[0.75, 0.25]"));
}

TEST(InspectAggregation, NamesWhatIsWrongWithTheInput) {
  const std::string one = R"({"clients": [{"num_samples": 1, "delta": [1, 2]}, )";
  const std::tuple<std::string, std::string, std::string> cases[] = {
      {"fedavg", "{", "clients.json: not JSON: "},
      {"fedavg", "[]",
       "clients.json: must be an object with \"clients\", a list of at least one client"},
      {"fedavg", one + R"({"num_sample": 1}]})",
       "clients.json: clients[1]: unknown key 'num_sample'; did you mean 'num_samples'?"},
      {"fedavg", one + "{}]}", "clients.json: clients[1]: missing 'num_samples'"},
      {"fedavg", one + R"({"num_samples": -1}]})",
       "clients.json: clients[1].num_samples is -1; it must be an integer of at least 0"},
      {"fedavg", one + R"({"num_samples": 0, "delta": [1, 2]}]})",
       "clients.json: clients[1]: client 1: num_samples is 0; it must be at least 1"},
      {"fedavg", one + R"({"num_samples": 1, "delta": [1, NaN]}]})",
       "clients.json: clients[1].delta[1] is NaN; it must be a finite number"},
      {"fedavg", one + R"({"num_samples": 1, "delta": [1]}]})",
       "clients.json: clients[1].delta has 1 values, the first delta has 2; they must be of equal "
       "length"},
      {"fedavg", one + R"({"num_samples": 1}]})",
       "clients.json: 1 of 2 clients have a delta; all or none must"},
      {"fedavg", one + R"({"num_samples": 1, "delta": 4}]})",
       "clients.json: clients[1].delta is 4; it must be a list of numbers"},
      {"fedavg", one + R"({"num_samples": 1, "delta": [1, 2], "staleness": 2}]})",
       "clients.json: clients[1].staleness is 2, but strategy fedavg takes updates of the current "
       "model alone; set staleness_exponent above 0, or take fedbuff"},
      {"flood", one + R"({"num_samples": 1, "delta": [1, 2]}]})",
       "clients.json: client 0: no score, which flood needs; set alpha to 0 to do without"},
      {"krum", one + R"({"num_samples": 1, "delta": [1, 2]}]})",
       "clients.json: 2 updates; strategy krum needs at least 5"},
      {"fedadam", R"({"clients": [{"num_samples": 1, "delta": [1]}], "server_state": {"mm": [1]}})",
       "clients.json: server_state.mm: strategy fedadam keeps m and v; did you mean 'm'?"},
      {"fedadam",
       R"({"clients": [{"num_samples": 1, "delta": [1]}], "server_state": {"m": [1, 2]}})",
       "clients.json: server_state.m has 2 values; it must have 1"},
      {"fedavg", R"({"clients": [{"num_samples": 1, "delta": [1], "control_delta": [1]}]})",
       "clients.json: clients[0].control_delta: strategy fedavg has no control; leave it out"},
      {"fedbn",
       R"({"clients": [{"num_samples": 1, "delta": [1]}], "tensors": [{"name": "a", "size": 2}]})",
       "clients.json: tensors have 2 values together; the deltas have 1"},
      {"fedavgg", R"({"clients": [{"num_samples": 1}]})",
       "--strategy: unknown strategy 'fedavgg'; did you mean 'fedavg'?; known: "}};
  for (const auto& [strategy, clients, message] : cases) {
    EXPECT_THAT(inspect(strategy, {}, clients), HasSubstr(message)) << clients;
  }
  EXPECT_THAT(inspect("fedavg", {"server_lr=0"}, "{}"),
              HasSubstr("--set server_lr=0: must be greater than 0"));
  EXPECT_THAT(inspect("fedavg", {"num_clients=1"},
                      R"({"clients": [{"num_samples": 1}, {"num_samples": 1}]})"),
              HasSubstr("num_clients is 1, but clients.json has 2 clients"));
}

}  // namespace
}  // namespace gradus::cli
