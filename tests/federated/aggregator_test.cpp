// SPDX-License-Identifier: Apache-2.0
#include "federated/aggregator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "common/parallel.h"
#include "common/rng.h"
#include "federated/internal/fixed_point.h"
#include "federated/internal/robust.h"
#include "federated/round.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/tolerances.h"

namespace gradus::federated {
namespace {

using ::testing::HasSubstr;

// One client's update in a test.
struct Client {
  std::vector<float> values;
  int64_t num_samples = 1;
  std::optional<double> score{}, loss{};
  std::optional<int64_t> num_steps{};
  std::vector<int64_t> label_counts{};
  int64_t base_version = 0;
  int64_t id = -1;  // -1: its place
};

std::vector<std::string> all_names() {
  AggregatorRegistry registry("strategy");
  register_builtin_aggregators(registry);
  return registry.names();
}

AggregatorContext context_of(const std::vector<Client>& clients, int64_t num_clients = 0) {
  return {.num_parameters = static_cast<int64_t>(clients.empty() ? 1 : clients[0].values.size()),
          .num_clients = num_clients > 0 ? num_clients : static_cast<int64_t>(clients.size())};
}

std::unique_ptr<Aggregator> make(const AggregatorConfig& config, const AggregatorContext& context) {
  Result<std::unique_ptr<Aggregator>> made = make_aggregator(config, context);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return std::move(*made);
}

ModelDelta delta_of(const Client& client, size_t place, std::vector<float>& storage,
                    int64_t num_vectors) {
  storage = client.values;
  storage.resize(client.values.size() * static_cast<size_t>(num_vectors));
  return {{.client_id = client.id >= 0 ? client.id : static_cast<int64_t>(place),
           .base_version = client.base_version,
           .num_samples = client.num_samples,
           .num_steps = client.num_steps,
           .loss = client.loss,
           .score = client.score,
           .label_counts = client.label_counts},
          storage};
}

// One round of all clients that are let in, in the order of `order` (empty: as they come).
Result<RoundResult> run_round(Aggregator& aggregator, const std::vector<Client>& clients,
                              std::vector<size_t> order = {}, int64_t version = 0) {
  if (order.empty()) {
    order.resize(clients.size());
    std::iota(order.begin(), order.end(), size_t{0});
  }
  std::vector<std::vector<float>> storage(clients.size());
  Round round(aggregator, version);
  for (const size_t k : order) {
    const Status ignored = round.add(delta_of(clients[k], k, storage[k], aggregator.num_vectors()));
  }
  return round.finish();
}

RoundResult result_of(const AggregatorConfig& config, const std::vector<Client>& clients,
                      AggregatorContext context = {}) {
  if (context.num_parameters == 0) context = context_of(clients);
  const std::unique_ptr<Aggregator> aggregator = make(config, context);
  Result<RoundResult> result = run_round(*aggregator, clients);
  EXPECT_TRUE(result.ok()) << config.name << ": " << result.status().message();
  return result.ok() ? *result : RoundResult{};
}

// Alike clients with everything that any strategy asks for.
std::vector<Client> random_clients(size_t count, size_t size, uint64_t seed) {
  RngSequence random(seed, RngStream::kInit);
  std::vector<Client> clients(count);
  for (Client& client : clients) {
    for (size_t j = 0; j < size; ++j) {
      client.values.push_back(static_cast<float>(1 + 0.1 * random.normal()));
    }
    client.num_samples = random.between(10, 200);
    client.score = 5 + random.uniform();
    client.loss = 0.5 + random.uniform();
    client.num_steps = random.between(1, 9);
    client.label_counts = {random.between(1, 5), random.between(1, 5), random.between(0, 5)};
  }
  return clients;
}

AggregatorConfig with(const std::string& name, const std::function<void(AggregatorConfig&)>& set,
                      const std::string& base = "fedavg") {
  AggregatorConfig config = strategy_preset(name, base);
  set(config);
  return config;
}

// ---- Every strategy, by contract.

class EveryStrategy : public ::testing::TestWithParam<std::string> {
 protected:
  AggregatorConfig config() const {
    AggregatorConfig preset = strategy_preset(GetParam());
    preset.personal.clear();
    return preset;
  }
};

TEST_P(EveryStrategy, HasOneResultForAnyOrderOfClients) {
  const std::vector<Client> clients = random_clients(9, 37, 1);
  const auto first = make(config(), context_of(clients)),
             second = make(config(), context_of(clients));
  for (int round = 0; round < 3; ++round) {  // states take part
    const Result<RoundResult> a = run_round(*first, clients);
    const Result<RoundResult> b = run_round(*second, clients, {4, 8, 0, 3, 7, 1, 2, 6, 5});
    ASSERT_TRUE(a.ok() && b.ok()) << a.status().message() << b.status().message();
    EXPECT_EQ(a->delta_P, b->delta_P) << "round " << round;
    EXPECT_EQ(a->weights_K, b->weights_K) << "round " << round;
  }
}

TEST_P(EveryStrategy, HasOneResultForAnyNumberOfRanksAndThreads) {
  const std::vector<Client> clients = random_clients(9, 5000, 2);
  const auto alone = make(config(), context_of(clients));
  set_num_threads(1);
  const Result<RoundResult> want = run_round(*alone, clients);
  ASSERT_TRUE(want.ok()) << want.status().message();
  for (const int size : {1, 2, 4}) {
    set_num_threads(size);
    testing::run_ranks(size, [&](comm::Communicator& ranks) {
      const auto aggregator = make(config(), context_of(clients));
      std::vector<std::vector<float>> storage(clients.size());
      Round round(*aggregator, 0);
      for (size_t k = 0; k < clients.size(); ++k) {
        // Not shared out evenly: of four ranks the last has none.
        if (static_cast<int>(k * k) % (size > 3 ? 3 : size) != ranks.rank()) continue;
        const Status added =
            round.add(delta_of(clients[k], k, storage[k], aggregator->num_vectors()));
        GRADUS_CHECK(added.ok(), added.message());
      }
      const Result<RoundResult> got = round.finish(&ranks);
      GRADUS_CHECK(got.ok(), got.status().message());
      GRADUS_CHECK(got->delta_P == want->delta_P, "rank differs");
      GRADUS_CHECK(got->weights_K == want->weights_K, "weights differ");
    });
  }
  set_num_threads(2);
}

TEST_P(EveryStrategy, TakesALoneUpdateAsItIsIfItSaysSo) {
  AggregatorConfig alone = config();
  alone.num_byzantine = 0;
  const std::vector<Client> clients = random_clients(1, 11, 3);
  const auto aggregator = make(alone, context_of(clients));
  const Result<RoundResult> result = run_round(*aggregator, clients);
  ASSERT_TRUE(result.ok()) << result.status().message();
  double largest = 0;
  for (size_t j = 0; j < 11; ++j) {
    largest = std::max(largest,
                       std::fabs(result->delta_P[j] - static_cast<double>(clients[0].values[j])));
  }
  // FedExP and friends go through a product; fixed point has steps of 2^-40.
  if (aggregator->keeps_lone_update()) {
    EXPECT_LT(largest, 1e-11);
  } else {
    EXPECT_GT(largest, 1e-3);
  }
}

TEST_P(EveryStrategy, GoesOnWithoutABadClient) {
  std::vector<Client> clients = random_clients(9, 21, 4);
  const auto without = make(config(), context_of(clients, 10));
  const Result<RoundResult> want = run_round(*without, clients);
  ASSERT_TRUE(want.ok()) << want.status().message();
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<Client> more = clients;
    more.push_back(clients[0]);
    more.back().values[20] = bad;
    const auto aggregator = make(config(), context_of(more));
    std::vector<float> storage;
    Round round(*aggregator, 0);
    EXPECT_EQ(round.add(delta_of(more.back(), 9, storage, aggregator->num_vectors())).message(),
              "client 9: its update has values that are not finite");
    const Result<RoundResult> got = run_round(*aggregator, more);
    ASSERT_TRUE(got.ok()) << got.status().message();
    EXPECT_EQ(got->delta_P, want->delta_P);
  }
}

TEST_P(EveryStrategy, RefusesUpdatesOfAnotherVersionUnlessItWeighsThemDown) {
  const std::vector<Client> clients = random_clients(9, 5, 5);
  for (const double exponent : {0.0, 0.5}) {
    AggregatorConfig set = config();
    set.staleness_exponent = exponent;
    const auto aggregator = make(set, context_of(clients));
    Client old = clients[3], newer = clients[3];
    old.base_version = 6;
    newer.base_version = 8;
    std::vector<float> storage;
    Round round(*aggregator, 7);
    const int64_t vectors = aggregator->num_vectors();
    EXPECT_EQ(round.add(delta_of(old, 3, storage, vectors)).ok(), exponent > 0);
    EXPECT_THAT(round.add(delta_of(newer, 3, storage, vectors)).message(),
                HasSubstr("client 3: its update is of model version 8, this round's is 7"));
  }
}

TEST_P(EveryStrategy, StaysAsItIsWithoutUpdates) {
  const auto aggregator = make(config(), {.num_parameters = 3, .num_clients = 9});
  Round round(*aggregator, 0);
  const Result<RoundResult> result = round.finish();
  EXPECT_EQ(result.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(result.status().message(),
              HasSubstr("0 updates; strategy " + GetParam() + " needs at least"));
}

TEST_P(EveryStrategy, CarriesItsStateInNamedVectors) {
  // A second aggregator with the state of the first goes on as the first does.
  const std::vector<Client> clients = random_clients(9, 13, 6);
  const auto first = make(config(), context_of(clients)),
             second = make(config(), context_of(clients));
  ASSERT_TRUE(run_round(*first, clients).ok());
  std::map<std::string, std::vector<float>> state;
  first->visit_state([&](const std::string& name, std::vector<float>& v) { state[name] = v; });
  second->visit_state([&](const std::string& name, std::vector<float>& v) { v = state.at(name); });
  const std::vector<Client> next = random_clients(9, 13, 7);
  EXPECT_EQ(run_round(*first, next)->delta_P, run_round(*second, next)->delta_P);
}

INSTANTIATE_TEST_SUITE_P(Registered, EveryStrategy, ::testing::ValuesIn(all_names()),
                         [](const auto& test) { return test.param; });

TEST(Strategies, AreAtLeastTwenty) { EXPECT_GE(all_names().size(), 20u); }

TEST(Strategies, WithAnUnknownNameListTheKnownOnes) {
  const Result<std::unique_ptr<Aggregator>> made = make_aggregator(strategy_preset("fedadm"), {});
  EXPECT_THAT(made.status().message(),
              HasSubstr("unknown strategy 'fedadm'; did you mean 'fedadam'?; known: afl, "));
  AggregatorConfig flood = strategy_preset("flood");
  flood.base = "flood";
  EXPECT_EQ(make_aggregator(flood, {}).status().message(),
            "base is flood; flood must stand on another strategy, e.g. fedavg");
}

TEST(Strategies, NameTheReportThatLacksWhatTheyNeed) {
  const std::vector<Client> bare = {{.values = {1.0f}}, {.values = {2.0f}}};
  const std::pair<std::string, std::string> cases[] = {
      {"fednova", "client 0: no num_steps of at least 1, which fednova needs"},
      {"qfedavg", "client 0: no loss of at least 0, which qfedavg needs"},
      {"afl", "client 0: no loss, which afl needs"},
      {"feddisco", "client 0: no label_counts, which feddisco needs"},
      {"flood", "client 0: no score, which flood needs; set alpha to 0 to do without"}};
  for (const auto& [name, message] : cases) {
    const auto aggregator = make(strategy_preset(name), context_of(bare));
    EXPECT_EQ(run_round(*aggregator, bare).status().message(), message);
  }
}

// ---- Each strategy, by a hand-computed case.

TEST(FedAvg, WeighsBySamplesOrEqually) {
  const std::vector<Client> clients = {{.values = {1, 4}, .num_samples = 30},
                                       {.values = {2, 0}, .num_samples = 10}};
  EXPECT_EQ(result_of(strategy_preset("fedavg"), clients).delta_P,
            (std::vector<double>{1.25, 3}));  // (30 + 20) / 40, 120 / 40
  const auto equal = with("fedavg", [](auto& c) { c.weighting = Weighting::kUniform; });
  EXPECT_EQ(result_of(equal, clients).delta_P, (std::vector<double>{1.5, 2}));
  const auto half = with("fedavg", [](auto& c) { c.server_lr = 0.5; });
  EXPECT_EQ(result_of(half, clients).delta_P, (std::vector<double>{0.625, 1.5}));
}

TEST(FedAvgM, AddsTheMomentumOfThePublishedFormula) {
  const std::vector<Client> clients = {{.values = {1.0f}}};
  const auto aggregator = make(strategy_preset("fedavgm"), context_of(clients));
  // m = 1; then 0.9 * 1 + 1 = 1.9; then 0.9 * 1.9 + 1 = 2.71.
  for (const double want : {1.0, 1.9, 2.71}) {
    EXPECT_NEAR(run_round(*aggregator, clients)->delta_P[0], want, 1e-6);
  }
}

TEST(DiLoCo, TakesNesterovsStep) {
  const std::vector<Client> clients = {{.values = {1.0f}}};
  const auto aggregator = make(strategy_preset("diloco"), context_of(clients));
  // m = 1: 0.7 (1 + 0.9 * 1) = 1.33; m = 1.9: 0.7 (1 + 0.9 * 1.9) = 1.897.
  for (const double want : {1.33, 1.897}) {
    EXPECT_NEAR(run_round(*aggregator, clients)->delta_P[0], want, 1e-6);
  }
}

TEST(AdaptiveServers, TakeThePublishedFirstStep) {
  // d = (1, -0.5), lr 0.1, beta1 0.9, beta2 0.99, tau 1e-3: for FedAdam with v = 0 at the start m =
  // 0.1 d, v = 0.01 d^2, so the step is 0.1 * 0.1 / (0.1 + 0.001) = 0.0990099.
  const std::vector<Client> clients = {{.values = {1.0f, -0.5f}}};
  struct Case {
    AggregatorConfig config;
    double first, second;
  };
  const Case cases[] = {{with("fedadam", [](auto& c) { c.initial_v = 0; }), 0.0990099, -0.0980392},
                        {strategy_preset("fedadam"), 0.0990050, -0.0980202},
                        {strategy_preset("fedyogi"), 0.0990050, -0.0980200},
                        {strategy_preset("fedadagrad"), 0.0999000, -0.0998002}};
  for (const Case& c : cases) {
    const std::vector<double> delta = result_of(c.config, clients).delta_P;
    EXPECT_NEAR(delta[0], c.first, 6e-8) << c.config.name;
    EXPECT_NEAR(delta[1], c.second, 6e-8) << c.config.name;
  }
}

TEST(FedExp, StretchesTheStepByTheSpreadOfUpdates) {
  // Squares 3, |mean|^2 = 1/9: 3 / (2 * 3 * (1/9 + 1e-3)) = 4.45986, times the mean (0, 1/3).
  const std::vector<Client> clients = {{.values = {1, 0}}, {.values = {0, 1}}, {.values = {-1, 0}}};
  const std::vector<double> delta = result_of(strategy_preset("fedexp"), clients).delta_P;
  EXPECT_NEAR(delta[0], 0, 1e-12);
  EXPECT_NEAR(delta[1], 4.45986 / 3, 2e-6);
}

TEST(QFedAvg, GivesTheWorseOffMore) {
  // L = 10: weights L F / sum (L^2 |D|^2 + L F) = 20 / 225 and 5 / 225, times D = (1, -1).
  const std::vector<Client> clients = {{.values = {1.0f}, .loss = 2},
                                       {.values = {-1.0f}, .loss = 0.5}};
  const AggregatorContext context = {.num_parameters = 1, .num_clients = 2, .client_lr = 0.1};
  EXPECT_NEAR(result_of(strategy_preset("qfedavg"), clients, context).delta_P[0], 1.0 / 15, 1e-12);
  const auto plain = with("qfedavg", [](auto& c) { c.q = 0; });
  EXPECT_EQ(result_of(plain, clients, context).weights_K, (std::vector<double>{0.5, 0.5}));
}

TEST(Afl, AscendsAlongTheLossesOnTheSimplex) {
  // (0.5, 0.5) + 0.1 (2, 0.5) = (0.7, 0.55), less 0.125 each.
  const std::vector<Client> clients = {{.values = {1.0f}, .loss = 2},
                                       {.values = {0.0f}, .loss = 0.5}};
  const auto aggregator = make(strategy_preset("afl"), context_of(clients, 4));
  const Result<RoundResult> first = run_round(*aggregator, clients);
  EXPECT_NEAR(first->weights_K[0], 0.575, 1e-12);
  EXPECT_NEAR(first->weights_K[1], 0.425, 1e-12);
  // The next round begins there: + (0.2, 0.05) - 0.125 each.
  EXPECT_NEAR(run_round(*aggregator, clients)->weights_K[0], 0.65, 1e-6);
  // The two keep half of the mixture of four clients.
  aggregator->visit_state([](const std::string&, std::vector<float>& mixture) {
    EXPECT_NEAR(mixture[0] + mixture[1], 0.5, 1e-6);
    EXPECT_EQ(mixture[3], 0.25f);
  });
}

TEST(FedDisco, TakesFromUnevenLabelMixes) {
  // Shares 1/2 each; an even mix has d = 0, a single label of two d = sqrt(1/2): 0.5 - 0.5 *
  // 0.70711
  // + 0.1 = 0.24645 against 0.6.
  const std::vector<Client> clients = {{.values = {1.0f}, .label_counts = {5, 5}},
                                       {.values = {0.0f}, .label_counts = {10, 0}}};
  EXPECT_NEAR(result_of(strategy_preset("feddisco"), clients).weights_K[1], 0.2464466 / 0.8464466,
              1e-7);
}

TEST(FedBuff, WeighsOldUpdatesDown) {
  // 1 : 1 / sqrt(1 + 3) = 2 : 1.
  std::vector<Client> clients = {{.values = {3.0f}, .num_samples = 5, .base_version = 3},
                                 {.values = {0.0f}, .num_samples = 500, .base_version = 0}};
  const auto aggregator = make(strategy_preset("fedbuff"), context_of(clients));
  const Result<RoundResult> result = run_round(*aggregator, clients, {}, 3);
  EXPECT_NEAR(result->delta_P[0], 2, 1e-11);
  EXPECT_EQ(result->reports_K[1].staleness, 3);
}

TEST(NormClipping, ShortensLongUpdatesAlone) {
  const std::vector<Client> clients = {{.values = {30, 40}}, {.values = {3, 4}}};
  const std::vector<double> delta = result_of(strategy_preset("norm_clipping"), clients).delta_P;
  EXPECT_NEAR(delta[0], (6.0 + 3.0) / 2, 1e-11);
  EXPECT_NEAR(delta[1], (8.0 + 4.0) / 2, 1e-11);
}

TEST(FedBn, LeavesNormalisationWithTheClients) {
  const std::vector<Client> clients = {{.values = {1, 2, 3}}, {.values = {3, 4, 5}}};
  AggregatorContext context = context_of(clients);
  context.tensors = {{"layer0.weight", 0, 1}, {"norm0.weight", 1, 1}, {"layer1.weight", 2, 1}};
  const auto aggregator = make(strategy_preset("fedbn"), context);
  EXPECT_EQ(run_round(*aggregator, clients)->delta_P, (std::vector<double>{2, 0, 4}));
  ASSERT_EQ(aggregator->client_terms(0).personal.size(), 1u);
  EXPECT_EQ(aggregator->client_terms(0).personal[0].begin, 1);
}

TEST(ClientStrategies, TellClientsTheirTerms) {
  EXPECT_EQ(make(strategy_preset("fedprox"), context_of({}))->client_terms(0).prox_mu, 0.01);
  EXPECT_EQ(make(strategy_preset("moon"), context_of({}))->client_terms(0).moon_mu, 1);
  EXPECT_EQ(make(strategy_preset("fedavg"), context_of({}))->client_terms(0).needs_state(), false);
}

std::vector<Client> five_numbers() {
  return {{.values = {0.0f}},
          {.values = {1.0f}},
          {.values = {1.1f}},
          {.values = {0.9f}},
          {.values = {10.0f}}};
}

TEST(Krum, PicksTheUpdateWithTheNearestNeighbours) {
  const std::vector<Client> clients = five_numbers();
  Updates updates{.num_parameters = 1};
  for (const Client& client : clients) updates.values_K.push_back(client.values.data());
  const std::vector<size_t> members = {0, 1, 2, 3, 4};
  const std::vector<double> scores =
      internal::krum_scores(internal::squared_distances(updates), 5, members, 1);
  const double want[] = {1.81, 0.02, 0.05, 0.05, 160.21};
  for (size_t k = 0; k < 5; ++k) EXPECT_NEAR(scores[k], want[k], 1e-5) << k;
  const RoundResult result = result_of(strategy_preset("krum"), clients);
  EXPECT_EQ(result.delta_P[0], 1);
  EXPECT_EQ(result.weights_K, (std::vector<double>{0, 1, 0, 0, 0}));
  // The three best: 1, and 1.1 and 0.9.
  const auto three = with("multi_krum", [](auto& c) { c.num_selected = 3; });
  EXPECT_NEAR(result_of(three, clients).delta_P[0], 1, 1e-7);
}

TEST(Krum, IsNotMisledByTwins) {
  // Every update has itself at distance 0; a twin must not be dropped for it.
  const std::vector<Client> clients = {{.values = {5.0f}},
                                       {.values = {1.0f}},
                                       {.values = {1.0f}},
                                       {.values = {1.5f}},
                                       {.values = {9.0f}}};
  EXPECT_EQ(result_of(strategy_preset("krum"), clients).weights_K,
            (std::vector<double>{0, 1, 0, 0, 0}));
}

TEST(RobustRules, EqualTheHandComputedValues) {
  const std::vector<Client> clients = five_numbers();
  const RoundResult median = result_of(strategy_preset("median"), clients);
  EXPECT_EQ(median.delta_P[0], 1);
  EXPECT_EQ(median.weights_K, (std::vector<double>{0, 1, 0, 0, 0}));
  const RoundResult trimmed = result_of(strategy_preset("trimmed_mean"), clients);
  EXPECT_NEAR(trimmed.delta_P[0], 1, 1e-7);  // (0.9 + 1 + 1.1) / 3
  EXPECT_NEAR(trimmed.weights_K[2], 1.0 / 3, 1e-12);
  EXPECT_EQ(trimmed.weights_K[4], 0);
  const std::vector<Client> four(clients.begin(), clients.begin() + 4);
  EXPECT_NEAR(result_of(strategy_preset("median"), four).delta_P[0], 0.95, 1e-7);
}

TEST(Bulyan, AveragesTheValuesNearestToTheMedianOfTheSelected) {
  // K = 7, f = 1: five of least score by repeated Krum leave out 100 and one end, then the three
  // nearest to the median of {1, 2, 3, 4, 5} are averaged.
  std::vector<Client> clients;
  for (const float v : {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 100.0f, 3.5f})
    clients.push_back({.values = {v}});
  const RoundResult result = result_of(strategy_preset("bulyan"), clients);
  EXPECT_GT(result.delta_P[0], 2);
  EXPECT_LT(result.delta_P[0], 4.2);
  EXPECT_EQ(result.weights_K[5], 0);
  const std::vector<Client> six(clients.begin(), clients.begin() + 6);
  const auto aggregator = make(strategy_preset("bulyan"), context_of(six));
  EXPECT_EQ(run_round(*aggregator, six).status().message(),
            "6 updates; strategy bulyan needs at least 7");
}

TEST(GeometricMedian, IsTheFermatPoint) {
  // Of (0, 0), (1, 0), (0, 1): x = y = (3 - sqrt 3) / 6.
  const std::vector<Client> clients = {{.values = {0, 0}}, {.values = {1, 0}}, {.values = {0, 1}}};
  const std::vector<double> delta = result_of(strategy_preset("geometric_median"), clients).delta_P;
  EXPECT_NEAR(delta[0], (3 - std::sqrt(3.0)) / 6, 1e-5);
  EXPECT_NEAR(delta[1], (3 - std::sqrt(3.0)) / 6, 1e-5);
}

TEST(CenteredClipping, StepsFromTheLastCenterByClippedDifferences) {
  // From 0 with norm 10: 4 stays, 100 becomes 10: mean 7. Then 4 - 7 = -3 and 93 -> 10: 7 + 3.5.
  const std::vector<Client> clients = {{.values = {4.0f}}, {.values = {100.0f}}};
  const auto once = with("centered_clipping", [](auto& c) { c.num_iterations = 1; });
  EXPECT_NEAR(result_of(once, clients).delta_P[0], 7, 1e-12);
  const auto twice = with("centered_clipping", [](auto& c) { c.num_iterations = 2; });
  EXPECT_NEAR(result_of(twice, clients).delta_P[0], 10.5, 1e-12);
}

TEST(RobustRules, HoldAgainstAsManyBadClientsAsTheySay) {
  // f = floor((n - 3) / 4) at 1e6 move the result by less than the diameter of the honest ones.
  for (const size_t n : {7u, 15u, 23u}) {
    const auto f = static_cast<int64_t>((n - 3) / 4);
    std::vector<Client> clients = random_clients(n, 40, n);
    double diameter = 0;
    std::vector<double> mean(40, 0.0);
    const size_t honest = n - static_cast<size_t>(f);
    for (size_t a = 0; a < honest; ++a) {
      for (size_t j = 0; j < 40; ++j) {
        mean[j] += static_cast<double>(clients[a].values[j]) / static_cast<double>(honest);
      }
      for (size_t b = 0; b < a; ++b) {
        double square = 0;
        for (size_t j = 0; j < 40; ++j) {
          square += std::pow(static_cast<double>(clients[a].values[j] - clients[b].values[j]), 2);
        }
        diameter = std::max(diameter, std::sqrt(square));
      }
    }
    for (size_t k = honest; k < n; ++k) {
      for (float& value : clients[k].values) value = 1e6f;
    }
    const auto distance = [&](const AggregatorConfig& config) {
      const std::vector<double> delta = result_of(config, clients).delta_P;
      double square = 0;
      for (size_t j = 0; j < 40; ++j) square += std::pow(delta[j] - mean[j], 2);
      return std::sqrt(square);
    };
    for (const char* name :
         {"median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"}) {
      const auto config = with(name, [&](auto& c) {
        c.num_byzantine = f;
        c.trim_fraction = 0.25;
      });
      EXPECT_LT(distance(config), diameter) << name << " of " << n;
    }
    EXPECT_GT(distance(strategy_preset("fedavg")), diameter) << "the attack does carry a mean away";
  }
}

TEST(SortedColumns, EqualAPlainSortForAnyNumberOfUpdates) {
  for (size_t n = 1; n <= 40; ++n) {
    const std::vector<Client> clients = random_clients(n, 19, 100 + n);
    Updates updates{.num_parameters = 19};
    std::vector<size_t> members;
    for (size_t k = 0; k < n; ++k) {
      updates.values_K.push_back(clients[k].values.data());
      members.push_back(k);
    }
    internal::for_sorted_columns(updates, members, [&](int64_t first, const float* sorted) {
      for (size_t lane = 0; lane < internal::kColumns; ++lane) {
        const size_t j = static_cast<size_t>(first) + lane;
        if (j >= 19) continue;
        std::vector<float> want;
        for (const Client& client : clients) want.push_back(client.values[j]);
        std::sort(want.begin(), want.end());
        for (size_t i = 0; i < n; ++i) {
          ASSERT_EQ(sorted[i * internal::kColumns + lane], want[i])
              << n << " updates, column " << j;
        }
      }
    });
  }
}

// ---- Two clients with f1 = x^2 / 2 and f2 = 2 (x - 1)^2, exact gradient steps of 0.1: the optimum
// of the mean is 0.8, and what each strategy converges to is known (Karimireddy et al. 2020,
// Section 1).

struct QuadraticRun {
  explicit QuadraticRun(const AggregatorConfig& config) {
    aggregator = make(config, {.num_parameters = 1, .num_clients = 2, .client_lr = 0.1});
  }

  static double gradient(size_t k, double y) { return k == 0 ? y : 4 * (y - 1); }

  void round(int64_t first_steps, int64_t second_steps, std::vector<size_t> present = {0, 1}) {
    const ClientTerms terms = aggregator->client_terms(0);
    double c = 0;
    aggregator->visit_state([&](const std::string& name, std::vector<float>& v) {
      if (name == "control" && !v.empty()) c = static_cast<double>(v[0]);
    });
    std::vector<std::vector<float>> storage(2);
    Round updates(*aggregator, 0);
    for (const size_t k : present) {
      const int64_t steps = k == 0 ? first_steps : second_steps;
      double y = x;
      for (int64_t i = 0; i < steps; ++i) {
        double g = gradient(k, y) + terms.prox_mu * (y - x);
        if (terms.use_control) g += c - state[k];
        if (terms.dyn_alpha > 0) g += terms.dyn_alpha * (y - x) - state[k];
        y -= 0.1 * g;
      }
      storage[k] = {static_cast<float>(y - x)};
      if (terms.use_control) {
        const double next = state[k] - c + (x - y) / (static_cast<double>(steps) * 0.1);
        storage[k].push_back(static_cast<float>(next - state[k]));
        state[k] = next;
      }
      if (terms.dyn_alpha > 0) state[k] -= terms.dyn_alpha * (y - x);
      const Status added =
          updates.add({{.client_id = static_cast<int64_t>(k), .num_samples = 1, .num_steps = steps},
                       storage[k]});
      EXPECT_TRUE(added.ok()) << added.message();
    }
    x += updates.finish()->delta_P[0];
  }

  double after(int rounds, int64_t first_steps = 10, int64_t second_steps = 10) {
    for (int i = 0; i < rounds; ++i) round(first_steps, second_steps);
    return x;
  }

  std::unique_ptr<Aggregator> aggregator;
  double x = 0;
  double state[2] = {};
};

TEST(Drift, OfFedAvgAndFedProxEndsAtTheKnownPoints) {
  EXPECT_NEAR(QuadraticRun(strategy_preset("fedavg")).after(200), 0.6041260077, 1e-7);
  const auto prox = with("fedprox", [](auto& c) { c.prox_mu = 1; });
  EXPECT_NEAR(QuadraticRun(prox).after(200), 0.6416687560, 1e-7);
}

TEST(Drift, OfUnequalWorkIsWhatFedNovaRemoves) {
  EXPECT_NEAR(QuadraticRun(strategy_preset("fedavg")).after(300, 2, 10), 0.8395207085, 1e-7);
  EXPECT_NEAR(QuadraticRun(strategy_preset("fednova")).after(300, 2, 10), 0.5113051534, 1e-7);
}

TEST(FedNova, CountsTheStepsThatMomentumMakesLonger) {
  // rho = 0.5: |a| = (t - 0.5 (1 - 0.5^t) / 0.5) / 0.5: 1 for one step, 2.5 for two.
  const std::vector<Client> clients = {{.values = {1.0f}, .num_steps = 1},
                                       {.values = {1.0f}, .num_steps = 2}};
  const RoundResult result =
      result_of(strategy_preset("fednova"), clients,
                {.num_parameters = 1, .num_clients = 2, .client_momentum = 0.5});
  EXPECT_NEAR(result.weights_K[0], 0.5 * 1.75 / 1, 1e-12);
  EXPECT_NEAR(result.weights_K[1], 0.5 * 1.75 / 2.5, 1e-12);
}

TEST(Scaffold, ReachesTheOptimumAlongTheKnownRounds) {
  QuadraticRun run(strategy_preset("scaffold"));
  const std::pair<int, double> want[] = {{1, 0.4969766912},
                                         {2, 0.6852210929},
                                         {3, 0.7565241447},
                                         {10, 0.7999513648},
                                         {20, 0.7999999970}};
  int done = 0;
  for (const auto& [rounds, x] : want) {
    for (; done < rounds; ++done) run.round(10, 10);
    EXPECT_NEAR(run.x, x, 3e-7) << "after round " << rounds;
  }
}

TEST(Scaffold, KeepsTheServersControlAtTheMeanOfTheClients) {
  // With one client a round as well: the server has |P| / N of the change, not the clients' mean.
  QuadraticRun run(strategy_preset("scaffold"));
  for (int i = 0; i < 12; ++i) {
    run.round(10, 10,
              i % 3 == 0   ? std::vector<size_t>{0}
              : i % 3 == 1 ? std::vector<size_t>{1}
                           : std::vector<size_t>{0, 1});
    double c = 0;
    run.aggregator->visit_state(
        [&](const std::string&, std::vector<float>& v) { c = static_cast<double>(v[0]); });
    EXPECT_NEAR(c, (run.state[0] + run.state[1]) / 2, 1e-6 * (1 + std::fabs(c))) << "round " << i;
  }
}

TEST(FedDyn, EndsAtTheOptimum) {
  EXPECT_NEAR(QuadraticRun(strategy_preset("feddyn")).after(400), 0.8, 1e-5);
}

// ---- FLood.

std::vector<ClientReport> reports_of(const std::vector<double>& scores,
                                     const std::vector<int64_t>& samples) {
  std::vector<ClientReport> reports;
  for (size_t k = 0; k < scores.size(); ++k) {
    reports.push_back(
        {.client_id = static_cast<int64_t>(k), .num_samples = samples[k], .score = scores[k]});
  }
  return reports;
}

TEST(FloodShares, AreTheGoldenOnes) {
  std::vector<Client> clients;
  const double scores[] = {8, 9, 10, 12};
  const int64_t samples[] = {100, 50, 200, 150};
  for (size_t k = 0; k < 4; ++k) {
    clients.push_back({.values = {0.0f}, .num_samples = samples[k], .score = scores[k]});
  }
  const RoundResult result = result_of(strategy_preset("flood"), clients);
  const double want[] = {0.201709, 0.143590, 0.352137, 0.302564};
  for (size_t k = 0; k < 4; ++k) EXPECT_NEAR(result.weights_K[k], want[k], 5e-7) << k;
}

TEST(FloodShares, AreAProbabilityBetweenSamplesAndScores) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    RngSequence random(seed, RngStream::kInit);
    std::vector<double> scores;
    std::vector<int64_t> samples;
    for (int k = 0; k < 12; ++k) {
      scores.push_back(20 * random.uniform());
      samples.push_back(random.between(1, 500));
    }
    const std::vector<ClientReport> reports = reports_of(scores, samples);
    double total = 0, total_score = 0;
    for (size_t k = 0; k < 12; ++k) {
      total += static_cast<double>(samples[k]);
      total_score += scores[k];
    }
    std::vector<double> by_samples;
    for (const int64_t n : samples) by_samples.push_back(static_cast<double>(n) / total);
    for (const FloodMode mode : {FloodMode::kPaper, FloodMode::kNormalized}) {
      FloodConfig config;
      config.mode = mode;
      const std::vector<double> shares = flood_shares(config, reports, by_samples);
      double sum = 0;
      for (const double share : shares) {
        EXPECT_GE(share, 0);
        sum += share;
      }
      EXPECT_NEAR(sum, 1, 1e-12) << "seed " << seed;
      config.alpha = 0;
      EXPECT_EQ(flood_shares(config, reports, by_samples), by_samples);
    }
    FloodConfig config;
    config.alpha = 1e12;
    const std::vector<double> all_score = flood_shares(config, reports, by_samples);
    for (size_t k = 0; k < 12; ++k) EXPECT_NEAR(all_score[k], scores[k] / total_score, 1e-10);
  }
}

TEST(FloodShares, AreEqualForEqualClientsAndNeverNegative) {
  for (const FloodMode mode : {FloodMode::kPaper, FloodMode::kNormalized}) {
    FloodConfig config;
    config.mode = mode;
    const std::vector<double> quarter(4, 0.25);
    EXPECT_EQ(flood_shares(config, reports_of({3, 3, 3, 3}, {9, 9, 9, 9}), quarter), quarter);
    // Scores at or below 0 (the released code's shares would leave [0, 1]).
    for (const std::vector<double>& bad : {std::vector<double>{-8, 4, 4, 4},
                                           {-1, 2, 0.5, 3},
                                           {0, 0, 0, 0},
                                           {-4, -4, -4, -4},
                                           {-5, -1, -2, -9}}) {
      double sum = 0;
      for (const double share : flood_shares(config, reports_of(bad, {9, 9, 9, 9}), quarter)) {
        EXPECT_GE(share, 0);
        EXPECT_LE(share, 1);
        sum += share;
      }
      EXPECT_NEAR(sum, 1, 1e-12);
    }
  }
}

TEST(FloodShares, OfNormalizedModeIgnoreAShiftAndHoldTheCap) {
  FloodConfig config;
  config.mode = FloodMode::kNormalized;
  const std::vector<double> even(10, 0.1);
  std::vector<double> scores(10, 1.0), shifted(10, 101.0);
  scores[0] = 1.5;
  shifted[0] = 101.5;
  const std::vector<int64_t> samples(10, 7);
  const std::vector<double> shares = flood_shares(config, reports_of(scores, samples), even);
  const std::vector<double> same = flood_shares(config, reports_of(shifted, samples), even);
  for (size_t k = 0; k < 10; ++k) EXPECT_NEAR(shares[k], same[k], 1e-9);
  EXPECT_GT(shares[0], 0.1);
  std::vector<double> uneven(10, 0.02);
  uneven[3] = 0.82;
  const std::vector<double> capped = flood_shares(config, reports_of(scores, samples), uneven);
  EXPECT_NEAR(capped[3], 0.3, 1e-12);  // 3 times the mean of 0.1
  EXPECT_NEAR(std::accumulate(capped.begin(), capped.end(), 0.0), 1, 1e-12);
}

TEST(Flood, WithoutScoresIsItsBaseToTheBit) {
  for (const char* base : {"fedavg", "fedadam", "fednova", "multi_krum", "scaffold"}) {
    const std::vector<Client> clients = random_clients(9, 23, 8);
    const auto flood = make(with(
                                "flood", [](auto& c) { c.flood.alpha = 0; }, base),
                            context_of(clients));
    const auto plain = make(strategy_preset(base), context_of(clients));
    for (int round = 0; round < 3; ++round) {
      EXPECT_EQ(run_round(*flood, clients)->delta_P, run_round(*plain, clients)->delta_P) << base;
    }
  }
}

TEST(Flood, JoinsTheTermsOfItsBase) {
  const auto moon = make(strategy_preset("flood", "moon"), context_of({}));
  EXPECT_EQ(moon->client_terms(0).moon_mu, 1);
  EXPECT_TRUE(moon->client_terms(0).flood.is_on);
  EXPECT_EQ(make(strategy_preset("flood", "scaffold"), context_of({}))->num_vectors(), 2);
}

TEST(Flood, ScoresOverEveryStrategyChangeWhatSharesCan) {
  // Of those that ask for shares: the scores arrive there.
  for (const char* base : {"fedavg", "fedprox", "moon", "fednova", "feddisco", "fedadam", "fedexp",
                           "fedavgm", "scaffold", "feddyn", "qfedavg", "norm_clipping", "fedbuff",
                           "diloco", "multi_krum", "geometric_median", "centered_clipping"}) {
    const std::vector<Client> clients = random_clients(9, 23, 9);
    const auto flood = make(strategy_preset("flood", base), context_of(clients));
    const auto plain = make(strategy_preset(base), context_of(clients));
    EXPECT_NE(run_round(*flood, clients)->delta_P, run_round(*plain, clients)->delta_P) << base;
  }
}

TEST(FloodFlags, CountTheLowestOfABatch) {
  const auto flagged = [](int64_t batch, FloodFlag flag) {
    RngSequence random(3, RngStream::kInit);
    std::vector<double> scores;
    for (int64_t i = 0; i < batch; ++i) scores.push_back(random.uniform());
    FloodConfig config;
    config.flag = flag;
    const std::vector<bool> flags = flood_flags(config, scores, 5);
    return std::count(flags.begin(), flags.end(), true);
  };
  for (const FloodFlag flag : {FloodFlag::kLow, FloodFlag::kHigh, FloodFlag::kRandom}) {
    EXPECT_EQ(flagged(50, flag), 34);
    EXPECT_EQ(flagged(10, flag), 6);
    EXPECT_EQ(flagged(1, flag), 0);
    EXPECT_EQ(flagged(0, flag), 0);
  }
  EXPECT_EQ(flagged(50, FloodFlag::kNone), 0);
  const std::vector<double> equal(50, 2.0);
  const std::vector<bool> flags = flood_flags({}, equal, 5);
  EXPECT_EQ(std::count(flags.begin(), flags.end(), true), 0);
  const std::vector<double> scores = {3, 1, 2, 5, 4};  // floor(0.7 * 4) = 2: below 3
  EXPECT_EQ(flood_flags({}, scores, 0), (std::vector<bool>{false, true, true, false, false}));
}

TEST(FloodWeights, KeepTheMeanInNormalizedModeAndNotInPaperMode) {
  std::vector<double> scores;
  for (int i = 0; i < 50; ++i) scores.push_back(i);
  FloodTerms terms = {.is_on = true, .weight = 100};
  const auto mean = [&](const std::vector<double>& w) {
    return std::accumulate(w.begin(), w.end(), 0.0) / 50;
  };
  EXPECT_NEAR(mean(flood_sample_weights(terms, scores, 0)), 68.32, 1e-9);  // (16 + 34 * 100) / 50
  terms.weight = 0;
  EXPECT_NEAR(mean(flood_sample_weights(terms, scores, 0)), 0.32, 1e-12);
  // The control of equal gradient size has the same mean, spread evenly.
  terms.config.flag = FloodFlag::kEvery;
  const std::vector<double> even = flood_sample_weights(terms, scores, 0);
  EXPECT_EQ(even, std::vector<double>(50, 0.32));
  terms = {.is_on = true, .config = {.mode = FloodMode::kNormalized}, .weight = 3};
  const std::vector<double> weights = flood_sample_weights(terms, scores, 0);
  EXPECT_NEAR(mean(weights), 1, 1e-12);
  EXPECT_NEAR(weights[0] / weights[49], 3, 1e-12);
  // All alike: nothing is flagged, and all weigh 1.
  EXPECT_EQ(flood_sample_weights(terms, std::vector<double>(50, 1.0), 0),
            std::vector<double>(50, 1.0));
}

TEST(FloodSchedule, HasThePublishedValuesAtItsEndsAndMiddle) {
  const auto w = [](FloodSchedule schedule, int64_t s) {
    return 2 * 50 * schedule_share(schedule, s, 1000);
  };
  const std::tuple<FloodSchedule, double, double> cases[] = {
      {FloodSchedule::kCosine, 50, 100},
      {FloodSchedule::kLinear, 50, 100},
      {FloodSchedule::kQuadratic, 25, 100},
      {FloodSchedule::kSigmoid, 50, 100},
      {FloodSchedule::kSaturating, 100 * (1 - std::exp(-2.5)) / (1 - std::exp(-5.0)), 100}};
  for (const auto& [schedule, middle, end] : cases) {
    EXPECT_NEAR(w(schedule, 0), 0, 1e-9);
    EXPECT_NEAR(w(schedule, 500), middle, 1e-9);
    EXPECT_NEAR(w(schedule, 1000), end, 1e-9);
    EXPECT_NEAR(w(schedule, 5000), end, 1e-9);
  }
  EXPECT_LT(w(FloodSchedule::kSigmoid, 499), 0.01);  // the hard step of the released loop
  EXPECT_GT(w(FloodSchedule::kSigmoid, 501), 99.9);
}

TEST(FloodSchedule, BeginsARoundLateInPaperModeAndAtOneInNormalizedMode) {
  FloodConfig config = {.schedule = FloodSchedule::kLinear, .ramp_rounds = 100};
  EXPECT_EQ(flood_weight(config, 0, 400), 1);
  EXPECT_EQ(flood_weight(config, 1, 400), 0);
  EXPECT_NEAR(flood_weight(config, 51, 400), 50, 1e-12);
  config.ramp_rounds = 0;  // half of the run
  EXPECT_NEAR(flood_weight(config, 101, 400), 50, 1e-12);
  config.mode = FloodMode::kNormalized;
  EXPECT_EQ(flood_weight(config, 0, 400), 1);
  EXPECT_NEAR(flood_weight(config, 200, 400), 2, 1e-12);
}

TEST(OodScore, IsTheFreeEnergyAndItsKin) {
  const std::vector<float> logits = {1, 2, 3};
  EXPECT_NEAR(ood_score(FloodScore::kEnergy, 1, logits), 3.40760596444438, 1e-13);
  const std::vector<float> shifted = {8, 9, 10};
  EXPECT_NEAR(ood_score(FloodScore::kEnergy, 1, shifted), 10.40760596444438, 1e-13);
  for (const float huge : {1e4f, -1e4f}) {
    EXPECT_NEAR(ood_score(FloodScore::kEnergy, 1, std::vector<float>{huge, huge}),
                static_cast<double>(huge) + std::log(2.0), 1e-9);
  }
  // T log sum exp(z / T) at T = 2: 2 log(e^0.5 + e^1 + e^1.5).
  EXPECT_NEAR(ood_score(FloodScore::kEnergy, 2, logits),
              2 * std::log(std::exp(0.5) + std::exp(1.0) + std::exp(1.5)), 1e-12);
  EXPECT_EQ(ood_score(FloodScore::kMaxLogit, 1, logits), 3);
  EXPECT_NEAR(ood_score(FloodScore::kMsp, 1, logits), 0.66524096, 1e-8);
  // Two equal classes: -2 (1/2)^0.1 (1/2)^0.1.
  EXPECT_NEAR(ood_score(FloodScore::kGen, 1, std::vector<float>{4, 4}), -2 * std::pow(0.5, 0.2),
              1e-12);
}

// ---- The round.

TEST(Round, RefusesUpdatesByName) {
  const auto aggregator = make(strategy_preset("fedavg"), {.num_parameters = 2, .num_clients = 3});
  Round round(*aggregator, 0, {.max_norm = 5.0});
  const std::vector<float> values = {3, 4}, longer = {3, 4, 5}, big = {30, 40};
  const auto message = [&](ClientReport report, std::span<const float> v) {
    return round.add({std::move(report), v}).message();
  };
  EXPECT_EQ(message({.client_id = 1, .num_samples = 1}, longer),
            "client 1: its update has 3 values; the model has 2");
  EXPECT_EQ(message({.client_id = 3, .num_samples = 1}, values),
            "client 3: unknown; the run's clients are 0 to 2");
  EXPECT_EQ(message({.client_id = 1}, values), "client 1: num_samples is 0; it must be at least 1");
  EXPECT_EQ(message({.client_id = 1, .num_samples = 1}, big),
            "client 1: its update has norm 50; the limit is 5");
  EXPECT_EQ(message({.client_id = 1, .num_samples = 1, .score = std::nan("")}, values),
            "client 1: its loss or score is not finite");
  EXPECT_EQ(message({.client_id = 1, .num_samples = 1}, values), "");
  EXPECT_EQ(message({.client_id = 1, .num_samples = 1}, values), "");
  EXPECT_EQ(round.finish().status().message(),
            "client 1: two updates in one round; a client has one");
}

TEST(FixedPoint, LosesNothingToOrderAndLittleToRounding) {
  // Ten thousand terms of very different size: the same sum forwards and backwards, near the
  // double.
  RngSequence random(11, RngStream::kInit);
  std::vector<float> terms;
  double largest = 0, want = 0;
  for (int i = 0; i < 10000; ++i) {
    terms.push_back(static_cast<float>(random.normal() * std::exp(4 * random.normal())));
    largest = std::max(largest, std::fabs(static_cast<double>(terms.back())));
    want += static_cast<double>(terms.back()) / 3;
  }
  const int exponent = internal::fixed_point_exponent(largest / 3, 10000);
  int64_t forwards = 0, backwards = 0;
  for (size_t i = 0; i < terms.size(); ++i) {
    internal::add_fixed_point(1.0 / 3, {&terms[i], 1}, exponent, {&forwards, 1});
    internal::add_fixed_point(1.0 / 3, {&terms[terms.size() - 1 - i], 1}, exponent,
                              {&backwards, 1});
  }
  EXPECT_EQ(forwards, backwards);
  // Each term is off by half a step at most.
  double sum = 0;
  internal::from_fixed_point({&forwards, 1}, exponent, {&sum, 1});
  EXPECT_NEAR(sum, want, 10000 * std::ldexp(0.5, -exponent));
}

TEST(FixedPoint, HoldsTheLargestSumsWithoutOverflow) {
  for (const double largest : {1e-30, 1.0, 1e6, 1e30}) {
    for (const int64_t count : {1, 1000, 1000000}) {
      const int exponent = internal::fixed_point_exponent(largest, count);
      EXPECT_LE(exponent, 40);
      EXPECT_LT(std::ldexp(largest, exponent), std::ldexp(1.0, 51));
      EXPECT_LT(std::ldexp(largest, exponent) * static_cast<double>(count), std::ldexp(1.0, 63));
    }
  }
  EXPECT_EQ(internal::fixed_point_exponent(1.0, 1000), 40) << "the usual case has steps of 2^-40";
}

}  // namespace
}  // namespace gradus::federated
