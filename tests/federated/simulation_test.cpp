// SPDX-License-Identifier: Apache-2.0
#include "federated/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "common/parallel.h"
#include "common/rng.h"
#include "federated/client_data.h"
#include "federated/internal/mlp_pass.h"
#include "federated/mlp.h"
#include "kernels/logprob.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/tolerances.h"

namespace gradus::federated {
namespace {

using ::testing::HasSubstr;

// A run of seconds: 12 clients of MNIST-1D rows.
FederatedConfig small_config(const std::string& strategy = "fedavg",
                             const std::string& base = "fedavg") {
  FederatedConfig config;
  config.num_rounds = 6;
  config.strategy = strategy_preset(strategy, base);
  config.clients.num_clients = 12;
  config.clients.per_round = 7;
  config.local = {.num_epochs = 2, .batch_size = 16, .lr = 0.05};
  config.task.data.kind = DataKind::kMnist1d;
  config.task.data.num_samples = 400;
  config.task.hidden = {12};
  return config;
}

std::unique_ptr<LocalTask> task_of(const FederatedConfig& config) {
  Result<std::unique_ptr<LocalTask>> task = make_local_task(config, 5);
  EXPECT_TRUE(task.ok()) << task.status().message();
  return std::move(*task);
}

std::vector<float> model_after(const FederatedConfig& config, int64_t rounds,
                               comm::Communicator& ranks, const LocalTask& task,
                               const std::string& states = "") {
  Result<std::unique_ptr<Simulation>> made = Simulation::make(config, 5, task, ranks, states);
  GRADUS_CHECK(made.ok(), made.status().message());
  for (int64_t i = 0; i < rounds; ++i) {
    Metrics metrics;
    const Status status = (*made)->run_round(metrics);
    GRADUS_CHECK(status.ok(), status.message());
  }
  return {(*made)->model().begin(), (*made)->model().end()};
}

std::vector<float> model_after(const FederatedConfig& config, int64_t rounds) {
  const std::unique_ptr<LocalTask> task = task_of(config);
  std::vector<float> model;
  testing::run_ranks(
      1, [&](comm::Communicator& ranks) { model = model_after(config, rounds, ranks, *task); });
  return model;
}

// ---- Data.

TEST(Mnist1d, MakesTheRowsOfTheOriginalFromItsDraws) {
  const nlohmann::json golden = nlohmann::json::parse(test::read_file("tests/golden/mnist1d.json"));
  for (const auto& row : golden["rows"]) {
    const std::vector<double> made =
        mnist1d_row(row["label"], {.padding = row["padding"],
                                   .scale = row["scale"],
                                   .shift = row["shift"],
                                   .correlated_noise_72 = row["correlated_noise"],
                                   .iid_noise_72 = row["iid_noise"],
                                   .shear = row["shear"]});
    const std::vector<double> want = row["row"];
    ASSERT_EQ(made.size(), want.size());
    for (size_t j = 0; j < want.size(); ++j) {
      EXPECT_NEAR(made[j], want[j], 1e-12) << "label " << row["label"] << ", column " << j;
    }
  }
}

TEST(Mnist1d, IsStandardisedAndBalanced) {
  const LabelledRows rows = make_mnist1d(500, 3);
  double mean = 0, square = 0;
  for (const float x : rows.features_MF) mean += static_cast<double>(x) / (500 * 40);
  for (const float x : rows.features_MF) square += std::pow(static_cast<double>(x), 2) / (500 * 40);
  EXPECT_NEAR(mean, 0, 1e-6);
  EXPECT_NEAR(square, 1, 1e-5);
  EXPECT_EQ(std::count(rows.labels_M.begin(), rows.labels_M.end(), 7), 50);
}

std::vector<int32_t> cyclic_labels(int32_t count) {
  std::vector<int32_t> labels;
  for (int32_t i = 0; i < count; ++i) labels.push_back(i % 10);
  return labels;
}

TEST(Partition, OfEveryKindGivesEachRowToOneClient) {
  const std::vector<int32_t> labels = cyclic_labels(1003);
  for (const PartitionKind kind :
       {PartitionKind::kIid, PartitionKind::kDirichlet, PartitionKind::kShards,
        PartitionKind::kQuantity, PartitionKind::kFeatureShift}) {
    PartitionConfig config{.kind = kind, .beta = 0.5, .min_samples = 3};
    const auto parts = partition_rows(config, labels, 10, 20, 1);
    ASSERT_TRUE(parts.ok()) << parts.status().message();
    std::multiset<int32_t> seen;
    for (const auto& part : *parts) seen.insert(part.begin(), part.end());
    EXPECT_EQ(seen.size(), 1003u) << static_cast<int>(kind);
    EXPECT_EQ(std::set<int32_t>(seen.begin(), seen.end()).size(), 1003u) << static_cast<int>(kind);
    EXPECT_EQ(*parts, *partition_rows(config, labels, 10, 20, 1)) << "a seed has one partition";
    EXPECT_NE(*parts, *partition_rows(config, labels, 10, 20, 2));
  }
}

// Mean over clients of the total variation of their label mix from the even one.
double unevenness(const std::vector<std::vector<int32_t>>& parts,
                  const std::vector<int32_t>& labels) {
  double total = 0;
  for (const auto& part : parts) {
    std::vector<double> mix(10, 0.0);
    for (const int32_t row : part) {
      mix[static_cast<size_t>(labels[static_cast<size_t>(row)])] +=
          1 / static_cast<double>(part.size());
    }
    double variation = 0;
    for (const double share : mix) variation += std::fabs(share - 0.1) / 2;
    total += variation / static_cast<double>(parts.size());
  }
  return total;
}

TEST(Partition, IsAsUnevenAsBetaSays) {
  const std::vector<int32_t> labels = cyclic_labels(20000);
  double last = 1;
  for (const double beta : {0.1, 0.3, 1.0, 10.0}) {
    const auto parts = partition_rows({.beta = beta}, labels, 10, 20, 3);
    const double now = unevenness(*parts, labels);
    EXPECT_LT(now, last) << beta;
    last = now;
  }
  const auto even = partition_rows({.beta = 1e6}, labels, 10, 20, 3);
  EXPECT_LT(unevenness(*even, labels), 0.05) << "the limit of equal mixes";
  // Two shards a client: two or three labels each.
  const auto shards = partition_rows({.kind = PartitionKind::kShards}, labels, 10, 20, 3);
  for (const auto& part : *shards) {
    std::set<int32_t> seen;
    for (const int32_t row : part) seen.insert(labels[static_cast<size_t>(row)]);
    EXPECT_LE(seen.size(), 3u);
  }
}

TEST(Partition, BeyondTheRowsIsRefusedByName) {
  const std::vector<int32_t> labels = cyclic_labels(30);
  EXPECT_EQ(partition_rows({}, labels, 10, 31, 0).status().message(),
            "federated.clients.num_clients is 31, but there are 30 training rows");
  EXPECT_THAT(partition_rows({.min_samples = 20}, labels, 10, 3, 0).status().message(),
              HasSubstr("10000 draws with beta 0.3 left a client below min_samples (20) of 30 rows "
                        "for 3 clients; take a larger beta"));
}

TEST(CsvRows, AreReadWithOwnersAndRefusedByLine) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/rows.csv";
  test::write_file(path, "7,1,2,0\n9,3,4,1\n7,5,6,1\n");
  const Result<LabelledRows> rows = read_csv(path, 2, true);
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(rows->owners_M, (std::vector<int64_t>{7, 9, 7}));
  EXPECT_EQ(rows->features_MF, (std::vector<float>{0.5f, 1, 1.5f, 2, 2.5f, 3}));
  EXPECT_EQ(rows->num_classes, 2);
  const std::pair<const char*, const char*> cases[] = {
      {"1,2,0\n1,x,0\n", "rows.csv:2: 'x,0' is no number"},
      {"1,2,0\n1,0\n", "rows.csv:2: 1 features; the first row has 2"},
      {"1,2,0\n1,2,0.5\n", "rows.csv:2: the label is 0.5; it must be an integer of at least 0"},
      {"1\n", "rows.csv:1: 1 columns; there must be features and a label"},
      {"", "rows.csv: no rows"}};
  for (const auto& [text, message] : cases) {
    test::write_file(path, text);
    EXPECT_THAT(read_csv(path, 1, false).status().message(), HasSubstr(message));
  }
  EXPECT_THAT(read_csv(folder.path() + "/none.csv", 1, false).status().message(),
              HasSubstr("none.csv: cannot open: No such file"));
}

TEST(NaturalPartition, FollowsTheOwnersOfTheRows) {
  const test::TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 60; ++i) text += fmt::format("{},{},{}\n", 100 + i % 3, i, i % 2);
  test::write_file(folder.path() + "/rows.csv", text);
  const FederatedDataConfig data = {.kind = DataKind::kCsv, .path = folder.path() + "/rows.csv"};
  const PartitionConfig natural = {.kind = PartitionKind::kNatural};
  const auto made = make_client_data(data, natural, 3, 0);
  ASSERT_TRUE(made.ok()) << made.status().message();
  ClientRows rows;
  (*made)->load(1, rows);
  for (const float x : rows.features_NF) EXPECT_EQ(static_cast<int>(x) % 3, 1);
  EXPECT_THAT(make_client_data(data, natural, 4, 0).status().message(),
              HasSubstr("num_clients is 4, but the training rows have 3 clients"));
}

TEST(ClientData, ShiftsFeaturesByClientAndNotTheirLabels) {
  const FederatedDataConfig data = {.kind = DataKind::kMnist1d, .num_samples = 200};
  ClientRows even, shifted;
  (*make_client_data(data, {.kind = PartitionKind::kIid}, 4, 1))->load(2, even);
  (*make_client_data(data, {.kind = PartitionKind::kFeatureShift}, 4, 1))->load(2, shifted);
  EXPECT_EQ(even.labels_N, shifted.labels_N);
  EXPECT_NE(even.features_NF, shifted.features_NF);
}

// ---- The classifier.

// Loss of a batch at some weights, in double from the pass's logits.
double loss_at(internal::MlpPass& pass, const float* model, const ClientRows& rows,
               std::span<const double> weights, int64_t width, int64_t classes) {
  const auto batch = static_cast<int64_t>(rows.labels_N.size());
  std::copy(rows.features_NF.begin(), rows.features_NF.begin() + batch * width, pass.input());
  pass.forward(model, batch);
  double loss = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const float* z = pass.logits() + i * pass.logits_stride();
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(static_cast<double>(z[c]));
    const auto row = static_cast<size_t>(i);
    loss += weights[row] * (std::log(sum) - static_cast<double>(z[rows.labels_N[row]])) /
            static_cast<double>(batch);
  }
  return loss;
}

TEST(MlpTask, HasTheGradientOfItsWeightedLoss) {
  // One full-batch step of plain SGD from x: the update is -lr times the gradient, with FLood's
  // weights held fixed; against central differences of the loss in double.
  FederatedConfig config = small_config("flood");
  config.local = {.num_epochs = 1, .batch_size = 1000, .lr = 1, .momentum = 0, .weight_decay = 0};
  config.task.hidden = {9, 7};
  Result<std::unique_ptr<ClientData>> data =
      make_client_data(config.task.data, config.task.partition, 12, 5);
  MlpTask task(config.task.hidden, config.local, std::move(*data));
  const auto p = static_cast<size_t>(task.num_parameters());
  AlignedBuffer model(task.num_parameters());
  task.initialize(3, {model.data(), p});
  ClientTerms terms;
  terms.flood = {.is_on = true, .weight = 4};
  std::vector<float> update(p);
  const ClientReport report = task.make_worker()->train(
      {.client_id = 2, .seed = 9, .model_P = {model.data(), p}, .terms = &terms, .lr = 1}, update,
      {});
  ASSERT_EQ(report.num_steps, 1);
  ClientRows rows;
  task.data().load(2, rows);
  const auto batch = static_cast<int64_t>(rows.labels_N.size());
  internal::MlpPass pass(task.layers(), batch);
  std::vector<double> scores;
  std::copy(rows.features_NF.begin(), rows.features_NF.end(), pass.input());
  pass.forward(model.data(), batch);
  for (int64_t i = 0; i < batch; ++i) {
    scores.push_back(
        ood_score(FloodScore::kEnergy, 1, {pass.logits() + i * pass.logits_stride(), 10}));
  }
  const std::vector<double> weights = flood_sample_weights(terms.flood, scores, 0);
  double error = 0, size = 0;
  for (const TensorSlice& slice : task.tensors()) {
    for (int64_t j = 0; j < slice.size; j += 13) {
      float& w = model.data()[slice.begin + j];
      const float kept = w, step = 1e-2f;
      w = kept + step;
      const double above = loss_at(pass, model.data(), rows, weights, 40, 10);
      w = kept - step;
      const double below = loss_at(pass, model.data(), rows, weights, 40, 10);
      w = kept;
      const double slope = (above - below) / (2 * static_cast<double>(step));
      const double got = -static_cast<double>(update[static_cast<size_t>(slice.begin + j)]);
      error += std::pow(got - slope, 2);
      size += slope * slope;
    }
  }
  EXPECT_GT(size, 0);
  EXPECT_LT(std::sqrt(error / size), testing::kFiniteDifference);
}

// Mean of MOON's term over the rows, in double from the representations at three models.
double contrast_at(internal::MlpPass& pass, const float* model, const float* global,
                   const float* previous, const ClientRows& rows, double temperature) {
  const auto batch = static_cast<int64_t>(rows.labels_N.size());
  const auto represent = [&](const float* at) {
    std::copy(rows.features_NF.begin(), rows.features_NF.end(), pass.input());
    pass.forward(at, batch);
    std::vector<std::vector<double>> all;
    for (int64_t i = 0; i < batch; ++i) {
      const float* row = pass.representation() + i * pass.representation_stride();
      all.emplace_back(row, row + pass.representation_width());
    }
    return all;
  };
  const auto z = represent(model), g = represent(global), p = represent(previous);
  const auto cosine = [](const std::vector<double>& a, const std::vector<double>& b) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t j = 0; j < a.size(); ++j) {
      ab += a[j] * b[j];
      aa += a[j] * a[j];
      bb += b[j] * b[j];
    }
    return ab / std::sqrt(aa * bb);
  };
  double loss = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    const double near = std::exp(cosine(z[i], g[i]) / temperature);
    const double old = std::exp(cosine(z[i], p[i]) / temperature);
    loss -= std::log(near / (near + old)) / static_cast<double>(batch);
  }
  return loss;
}

TEST(MlpTask, HasTheGradientOfMoonsTerm) {
  // At x itself the term pulls towards nothing new but away from the previous model; its gradient
  // is what an update with it has beyond one without.
  FederatedConfig config = small_config();
  config.local = {.num_epochs = 1, .batch_size = 1000, .lr = 1, .momentum = 0, .weight_decay = 0};
  config.task.hidden = {14};
  Result<std::unique_ptr<ClientData>> data =
      make_client_data(config.task.data, config.task.partition, 12, 5);
  MlpTask task(config.task.hidden, config.local, std::move(*data));
  const auto p = static_cast<size_t>(task.num_parameters());
  AlignedBuffer model(task.num_parameters());
  task.initialize(3, {model.data(), p});
  std::vector<float> previous(p + 1);
  task.initialize(4, std::span(previous).subspan(0, p));
  previous[p] = 1;
  const std::vector<float> global(model.data(), model.data() + p);
  std::vector<float> with(p), without(p);
  ClientTerms terms;
  const auto update = [&](std::vector<float>& into) {
    std::vector<float> state = previous;
    task.make_worker()->train(
        {.client_id = 2, .seed = 9, .model_P = global, .terms = &terms, .lr = 1}, into, state);
  };
  update(without);
  terms.moon_mu = 2;
  terms.moon_temperature = 0.5;
  update(with);
  ClientRows rows;
  task.data().load(2, rows);
  internal::MlpPass pass(task.layers(), static_cast<int64_t>(rows.labels_N.size()));
  double error = 0, size = 0;
  for (size_t j = 0; j < p; j += 7) {
    float& w = model.data()[j];
    const float kept = w, step = 5e-3f;
    const auto loss = [&] {
      return 2 * contrast_at(pass, model.data(), global.data(), previous.data(), rows, 0.5);
    };
    w = kept + step;
    const double above = loss();
    w = kept - step;
    const double below = loss();
    w = kept;
    const double slope = (above - below) / (2 * static_cast<double>(step));
    error += std::pow(-static_cast<double>(with[j] - without[j]) - slope, 2);
    size += slope * slope;
  }
  EXPECT_GT(size, 1e-4);
  EXPECT_LT(std::sqrt(error / size), 5 * testing::kFiniteDifference);
}

TEST(MlpTask, FeelsFloodsWeightsUnderEveryBase) {
  // The released code computes the weighted loss under MOON and then leaves it out of the total.
  for (const char* base : {"fedavg", "fedprox", "moon", "scaffold", "feddyn", "fednova"}) {
    FederatedConfig weighted = small_config("flood", base);
    weighted.strategy.flood.alpha = 0;
    weighted.strategy.flood.schedule = FloodSchedule::kConstant;
    weighted.strategy.flood.amplitude = 1.5;  // W = 3
    FederatedConfig plain = weighted;
    plain.strategy.flood.flag = FloodFlag::kNone;
    EXPECT_NE(model_after(weighted, 2), model_after(plain, 2)) << base;
  }
}

TEST(MlpTask, WithWeightOneIsFedAvgToTheBitForFiftyRounds) {
  FederatedConfig flood = small_config("flood");
  flood.strategy.flood.alpha = 0;
  flood.strategy.flood.schedule = FloodSchedule::kConstant;
  flood.strategy.flood.amplitude = 0.5;  // W = 1
  flood.task.hidden = {4};
  FederatedConfig plain = small_config();
  plain.task.hidden = {4};
  EXPECT_EQ(model_after(flood, 50), model_after(plain, 50));
}

TEST(MlpTask, MovesByTheTermsOfItsStrategy) {
  const std::vector<float> plain = model_after(small_config(), 2);
  for (const char* name : {"fedprox", "moon", "scaffold", "feddyn"}) {
    EXPECT_NE(model_after(small_config(name), 2), plain) << name;
  }
  // Layers named personal are not the server's to move.
  FederatedConfig personal = small_config("fedbn");
  personal.strategy.personal = {"layer1"};
  const std::unique_ptr<LocalTask> task = task_of(personal);
  std::vector<float> initial(static_cast<size_t>(task->num_parameters()));
  task->initialize(hash64({5, 0x101}), initial);
  const std::vector<float> after = model_after(personal, 3);
  for (const TensorSlice& slice : task->tensors()) {
    const bool is_personal = slice.name.find("layer1") != std::string::npos;
    const bool is_same =
        std::equal(after.begin() + slice.begin, after.begin() + slice.begin + slice.size,
                   initial.begin() + slice.begin);
    EXPECT_EQ(is_same, is_personal) << slice.name;
  }
}

TEST(MlpTask, LearnsTheTaskOverTheClients) {
  FederatedConfig config = small_config();
  config.num_rounds = 60;
  config.task.data.num_samples = 4000;
  config.task.hidden = {40};
  const std::unique_ptr<LocalTask> task = task_of(config);
  testing::run_ranks(1, [&](comm::Communicator& ranks) {
    const auto simulation = Simulation::make(config, 5, *task, ranks, "");
    Evaluation before, after;
    ASSERT_TRUE((*simulation)->evaluate(before));
    for (int i = 0; i < 60; ++i) {
      Metrics metrics;
      ASSERT_TRUE((*simulation)->run_round(metrics).ok());
    }
    (*simulation)->evaluate(after);
    EXPECT_LT(before.accuracy, 0.25);
    EXPECT_GT(after.accuracy, 0.40);
  });
}

// ---- The engine.

// Names a way of sending updates; anything else is a strategy.
FederatedConfig named_config(const std::string& name) {
  if (name == "int8" || name == "top_k") {
    FederatedConfig config = small_config(name == "int8" ? "fedavg" : "scaffold");
    config.compression.kind = name == "int8" ? CompressionKind::kInt8 : CompressionKind::kTopK;
    config.compression.fraction = 0.1;
    return config;
  }
  if (name == "private" || name == "secure") {
    FederatedConfig config = small_config();
    if (name == "private") {
      config.clients.sampler = SamplerKind::kPoisson;
      config.privacy.noise_multiplier = 0.5;
    }
    config.secure_aggregation.is_on = name == "secure";
    return config;
  }
  return small_config(name);
}

TEST(Simulation, HasOneResultForAnyNumberOfThreadsAndRanks) {
  const test::TemporaryFolder folder;
  for (const char* name : {"fedavg", "scaffold", "flood", "multi_krum", "fedbuff", "int8", "top_k",
                           "private", "secure"}) {
    FederatedConfig config = named_config(name);
    if (name == std::string("fedbuff")) {
      config.mode = FederatedMode::kAsync;
      config.concurrency = 4;
      config.clients.straggler_fraction = 0.3;
    }
    config.clients.dropout = 0.1;
    const std::unique_ptr<LocalTask> task = task_of(config);
    set_num_threads(1);
    const std::vector<float> want = model_after(config, 6);
    for (const int size : {1, 2, 4}) {
      set_num_threads(size);
      testing::run_ranks(size, [&](comm::Communicator& ranks) {
        // A client's state is one file to all ranks.
        const std::string states = folder.path() + "/" + name + std::to_string(size);
        GRADUS_CHECK(model_after(config, 6, ranks, *task, states) == want, "rank differs");
      });
    }
  }
  set_num_threads(2);
}

TEST(Simulation, GoesOnFromACheckpointAsIfNothingHadHappened) {
  const test::TemporaryFolder folder;
  for (const char* name :
       {"fedadam", "scaffold", "feddyn", "moon", "fedbuff", "int8", "top_k", "private"}) {
    FederatedConfig config = named_config(name);
    if (name == std::string("fedbuff")) {
      config.mode = FederatedMode::kAsync;
      config.concurrency = 5;
    }
    const std::unique_ptr<LocalTask> task = task_of(config);
    const std::vector<float> want = model_after(config, 6);
    const std::string states = folder.path() + "/states_" + name;
    const std::string saved = folder.path() + "/saved_" + name;
    testing::run_ranks(1, [&](comm::Communicator& ranks) {
      Metrics metrics;
      {
        const auto first = Simulation::make(config, 5, *task, ranks, states);
        for (int i = 0; i < 3; ++i) ASSERT_TRUE((*first)->run_round(metrics).ok());
        ASSERT_TRUE((*first)->save(saved).ok());
        (*first)->start_interval();
        // Two further rounds, which a kill undoes.
        for (int i = 0; i < 2; ++i) ASSERT_TRUE((*first)->run_round(metrics).ok());
      }
      const auto second = Simulation::make(config, 5, *task, ranks, states, true);
      const Status loaded = (*second)->load(saved, states);
      ASSERT_TRUE(loaded.ok()) << loaded.message();
      (*second)->start_interval();
      for (int i = 0; i < 3; ++i) ASSERT_TRUE((*second)->run_round(metrics).ok());
      EXPECT_EQ(std::vector<float>((*second)->model().begin(), (*second)->model().end()), want)
          << name;
    });
  }
}

TEST(Simulation, SumsSecurelyToTheBitsOfThePlainRun) {
  for (const char* name : {"fedavg", "scaffold", "fednova", "flood", "fedadam"}) {
    FederatedConfig config = small_config(name);
    // Without momentum SCAFFOLD's controls stay below the 16 that the protocol carries.
    config.local.momentum = 0;
    config.strategy.flood.mode = FloodMode::kNormalized;
    config.clients.per_round = 12;
    for (const double dropout : {0.0, 0.1}) {  // masks of who is gone have to be opened
      config.secure_aggregation = {};
      config.clients.dropout = dropout;
      const std::vector<float> plain = model_after(config, 6);
      config.secure_aggregation.is_on = true;
      if (dropout == 0) config.secure_aggregation.num_neighbours = 4;
      ASSERT_TRUE(validate(config).ok()) << validate(config).message();
      EXPECT_EQ(model_after(config, 6), plain) << name << ", dropout " << dropout;
    }
  }
}

TEST(Simulation, KeepsTheModelWhenTooManyLeaveASecureSum) {
  FederatedConfig config = small_config();
  config.secure_aggregation.is_on = true;
  config.clients.dropout = 0.9;
  EXPECT_EQ(model_after(config, 3), model_after(config, 0));
}

TEST(Simulation, SendsLaterWhatCompressionLeavesOut) {
  // One client, lr so small that the updates are as of one model: with feedback the model moves by
  // nearly the sum of the updates, without it a tenth of the places alone.
  FederatedConfig config = small_config();
  config.clients.num_clients = config.clients.per_round = 1;
  config.local.lr = 1e-4;
  config.num_rounds = 30;
  const auto distance = [&](const FederatedConfig& other) {
    const std::vector<float> a = model_after(config, 30), b = model_after(other, 30);
    const std::vector<float> start = model_after(config, 0);
    double apart = 0, moved = 0;
    for (size_t j = 0; j < a.size(); ++j) {
      apart += std::pow(static_cast<double>(a[j]) - static_cast<double>(b[j]), 2);
      moved += std::pow(static_cast<double>(a[j]) - static_cast<double>(start[j]), 2);
    }
    return std::sqrt(apart / moved);
  };
  FederatedConfig sparse = config;
  sparse.compression = {.kind = CompressionKind::kTopK, .fraction = 0.1};
  const double with = distance(sparse);
  sparse.compression.has_error_feedback = false;
  const double without = distance(sparse);
  EXPECT_GT(with, 0);
  EXPECT_LT(with, 0.5 * without);
  FederatedConfig bytes = config;
  bytes.compression.kind = CompressionKind::kInt8;
  const double small = distance(bytes);
  EXPECT_GT(small, 0);
  EXPECT_LT(small, 0.01);
}

TEST(Simulation, ClipsAndAddsTheNoiseOfUnequalWeights) {
  // Updates of zeros: what the model has after a round is the noise, of z C p_max.
  FederatedConfig config;
  config.task.kind = TaskKind::kNone;
  config.task.num_parameters = 100000;
  config.clients = {.num_clients = 40, .per_round = 8, .sampler = SamplerKind::kPoisson};
  config.privacy = {.noise_multiplier = 2, .clip_norm = 3, .sample_cap = 4};
  ASSERT_TRUE(validate(config).ok()) << validate(config).message();
  double square = 0;
  for (const float x : model_after(config, 1)) {
    square += static_cast<double>(x) * static_cast<double>(x) / 100000;
  }
  // Each client has one row of a cap of 4: a round weighs 8 / 4 on average, p_max is 1 / 2.
  EXPECT_NEAR(std::sqrt(square), 2 * 3 * 0.5, 4 * 3 / std::sqrt(2 * 100000.0));

  // Nearly no noise: the step is no longer than weights times the clipping norm allow.
  FederatedConfig clipped = small_config();
  clipped.clients.sampler = SamplerKind::kPoisson;
  clipped.clients.per_round = 12;
  clipped.privacy = {.noise_multiplier = 1e-6, .clip_norm = 0.01, .sample_cap = 1};
  const std::vector<float> before = model_after(clipped, 0), after = model_after(clipped, 1);
  double moved = 0;
  for (size_t j = 0; j < before.size(); ++j) {
    moved += std::pow(static_cast<double>(after[j]) - static_cast<double>(before[j]), 2);
  }
  EXPECT_GT(std::sqrt(moved), 0.001);
  EXPECT_LT(std::sqrt(moved), 0.01001);
}

TEST(Simulation, TellsEpsilonAndStopsAtItsBudget) {
  FederatedConfig config = small_config();
  config.num_rounds = 2250;
  config.clients = {.num_clients = 25, .per_round = 1, .sampler = SamplerKind::kPoisson};
  config.privacy.noise_multiplier = 1.5;
  EXPECT_NEAR(*epsilon_after(config, 2250), 7.32911117143, 1e-6);  // Opacus' test
  config.privacy.accountant = privacy::Accountant::kPrv;
  EXPECT_NEAR(*epsilon_after(config, 2249), 6.777395712, 0.02);  // Opacus
  config.privacy.accountant = privacy::Accountant::kRdp;
  config.privacy.max_epsilon = *epsilon_after(config, 4) + 1e-9;
  const std::unique_ptr<LocalTask> task = task_of(config);
  testing::run_ranks(1, [&](comm::Communicator& ranks) {
    const auto simulation = Simulation::make(config, 5, *task, ranks, "");
    int64_t rounds = 0;
    for (; !(*simulation)->is_budget_spent(); ++rounds) {
      Metrics metrics;
      ASSERT_TRUE((*simulation)->run_round(metrics).ok());
      EXPECT_EQ(metrics.values().at("federated/epsilon"), *epsilon_after(config, rounds + 1));
    }
    EXPECT_EQ(rounds, 4);
  });
}

TEST(Simulation, CountsWhoDoesNotArrive) {
  FederatedConfig config = small_config();
  config.clients.num_clients = 30;
  config.clients.per_round = 30;
  config.clients.dropout = 0.3;
  config.clients.attack = AttackKind::kNan;
  config.clients.attack_fraction = 0.2;
  config.clients.straggler_fraction = 0.2;
  config.clients.deadline_s = 0.1;
  config.task.partition = {.kind = PartitionKind::kIid};
  const std::unique_ptr<LocalTask> task = task_of(config);
  testing::run_ranks(1, [&](comm::Communicator& ranks) {
    const auto simulation = Simulation::make(config, 5, *task, ranks, "");
    double refused = 0, not_finite = 0, dropped = 0, late = 0;
    for (int i = 0; i < 5; ++i) {
      Metrics metrics;
      ASSERT_TRUE((*simulation)->run_round(metrics).ok());
      refused += metrics.value("federated/refused");
      if (metrics.contains("federated/refused/not_finite")) {
        not_finite += metrics.value("federated/refused/not_finite");
      }
      dropped += metrics.value("federated/dropped");
      late += metrics.value("federated/late");
      EXPECT_EQ(metrics.value("federated/updates") + metrics.value("federated/refused") +
                    metrics.value("federated/dropped") + metrics.value("federated/late"),
                30);
      for (const float x : (*simulation)->model()) ASSERT_TRUE(std::isfinite(x));
    }
    EXPECT_GT(refused, 0);
    EXPECT_EQ(not_finite, refused);
    EXPECT_GT(dropped, 20);
    EXPECT_LT(dropped, 70);
    EXPECT_GT(late, 0);
    EXPECT_LE((*simulation)->clock_s(), 0.5 + 1e-9);
  });
}

TEST(Simulation, CountsAnUpdateOnceThatIsSentTwice) {
  FederatedConfig config = small_config();
  const std::vector<float> honest = model_after(config, 3);
  config.clients.attack = AttackKind::kReplay;
  config.clients.attack_fraction = 1;
  const std::unique_ptr<LocalTask> task = task_of(config);
  for (const int size : {1, 3}) {
    testing::run_ranks(size, [&](comm::Communicator& ranks) {
      const auto simulation = Simulation::make(config, 5, *task, ranks, "");
      for (int i = 0; i < 3; ++i) {
        Metrics metrics;
        GRADUS_CHECK((*simulation)->run_round(metrics).ok(), "the round goes on");
        EXPECT_EQ(metrics.value("federated/updates"), 7);
        EXPECT_EQ(metrics.value("federated/refused"), 7) << size << " ranks";
        EXPECT_EQ(metrics.value("federated/refused/replay"), 7) << size << " ranks";
        EXPECT_FALSE(metrics.contains("federated/refused/norm"));
      }
      const std::span<const float> model = (*simulation)->model();
      EXPECT_EQ(std::vector<float>(model.begin(), model.end()), honest);
    });
  }
}

TEST(Simulation, KeepsTheModelWhenTooFewUpdatesArrive) {
  FederatedConfig config = small_config("krum");
  config.clients.per_round = 5;
  config.clients.attack = AttackKind::kNan;
  config.clients.attack_fraction = 1;
  const std::unique_ptr<LocalTask> task = task_of(config);
  testing::run_ranks(1, [&](comm::Communicator& ranks) {
    const auto simulation = Simulation::make(config, 5, *task, ranks, "");
    const std::vector<float> before((*simulation)->model().begin(), (*simulation)->model().end());
    Metrics metrics;
    ASSERT_TRUE((*simulation)->run_round(metrics).ok());
    EXPECT_EQ(metrics.value("federated/skipped_rounds"), 1);
    EXPECT_EQ(std::vector<float>((*simulation)->model().begin(), (*simulation)->model().end()),
              before);
  });
}

TEST(Simulation, StepsInTimeOfTheFastWhenItIsAsynchronous) {
  // With clients ten times slower, waiting for a round's slowest costs most of the time.
  FederatedConfig sync = small_config("fedbuff");
  sync.clients = {.num_clients = 40, .per_round = 6, .straggler_fraction = 0.25};
  sync.task.partition = {.kind = PartitionKind::kIid};
  FederatedConfig async = sync;
  async.mode = FederatedMode::kAsync;
  async.concurrency = 6;
  const std::unique_ptr<LocalTask> task = task_of(sync);
  double seconds[2] = {};
  testing::run_ranks(1, [&](comm::Communicator& ranks) {
    for (const bool is_async : {false, true}) {
      const auto simulation = Simulation::make(is_async ? async : sync, 5, *task, ranks, "");
      double staleness = 0;
      for (int i = 0; i < 30; ++i) {
        Metrics metrics;
        ASSERT_TRUE((*simulation)->run_round(metrics).ok());
        staleness += metrics.value("federated/staleness");
      }
      EXPECT_EQ(staleness > 0, is_async);
      seconds[is_async ? 1 : 0] = (*simulation)->clock_s();
    }
  });
  EXPECT_GT(seconds[0], 2 * seconds[1]);
}

TEST(Simulation, PicksClientsAsTheSamplerSays) {
  FederatedConfig config = small_config();
  config.task.kind = TaskKind::kNone;
  config.task.num_parameters = 3;
  config.clients.num_clients = 50;
  config.clients.per_round = 10;
  const std::unique_ptr<LocalTask> task = task_of(config);
  for (const SamplerKind sampler : {SamplerKind::kUniform, SamplerKind::kWeighted,
                                    SamplerKind::kPoisson, SamplerKind::kCyclic}) {
    config.clients.sampler = sampler;
    testing::run_ranks(1, [&](comm::Communicator& ranks) {
      const auto simulation = Simulation::make(config, 5, *task, ranks, "");
      double total = 0;
      std::set<double> counts;
      for (int i = 0; i < 200; ++i) {
        Metrics metrics;
        ASSERT_TRUE((*simulation)->run_round(metrics).ok());
        counts.insert(metrics.value("federated/updates"));
        total += metrics.value("federated/updates");
      }
      if (sampler == SamplerKind::kPoisson) {
        EXPECT_GT(counts.size(), 5u) << "the number itself is random";
        EXPECT_NEAR(total / 200, 10, 4 * std::sqrt(10 * 0.8 / 200));
      } else {
        EXPECT_EQ(counts, std::set<double>{10});
      }
    });
  }
}

TEST(FederatedConfig, NamesTheKeysThatDoNotFit) {
  const auto problem = [](const std::function<void(FederatedConfig&)>& change) {
    FederatedConfig config = small_config();
    change(config);
    return validate(config).message();
  };
  EXPECT_EQ(problem([](auto&) {}), "");
  EXPECT_EQ(problem([](auto& c) { c.clients.per_round = 13; }),
            "federated.clients.per_round (13) exceeds federated.clients.num_clients (12)");
  EXPECT_THAT(problem([](auto& c) { c.strategy.name = "fedavgg"; }),
              HasSubstr("federated.strategy.name: unknown strategy 'fedavgg'; did you mean"));
  EXPECT_EQ(problem([](auto& c) {
              c.strategy = strategy_preset("bulyan");
              c.strategy.num_byzantine = 2;
            }),
            "federated.clients.per_round is 7, but strategy bulyan needs at least 11 updates");
  EXPECT_THAT(problem([](auto& c) { c.mode = FederatedMode::kAsync; }),
              HasSubstr("federated.mode is async, but strategy fedavg refuses updates of older"));
  EXPECT_THAT(problem([](auto& c) { c.task.data.kind = DataKind::kSynthetic; }),
              HasSubstr("has clients of its own; set federated.task.partition.kind to natural"));
  EXPECT_THAT(problem([](auto& c) { c.task.partition.kind = PartitionKind::kNatural; }),
              HasSubstr("natural wants data with clients of its own"));
  const auto secure = [&](const std::function<void(FederatedConfig&)>& change) {
    return problem([&](auto& c) {
      c.secure_aggregation.is_on = true;
      change(c);
    });
  };
  EXPECT_EQ(secure([](auto&) {}), "");
  EXPECT_EQ(secure([](auto& c) { c.strategy = strategy_preset("krum"); }),
            "federated.secure_aggregation.is_on hides single updates, which "
            "federated.strategy.name krum needs; switch one of them off");
  EXPECT_THAT(secure([](auto& c) { c.strategy = strategy_preset("qfedavg"); }),
              HasSubstr("which federated.strategy.name qfedavg needs"));
  EXPECT_THAT(secure([](auto& c) { c.compression.kind = CompressionKind::kInt8; }),
              HasSubstr("federated.compression.kind cannot be had with "
                        "federated.secure_aggregation.is_on"));
  EXPECT_THAT(secure([](auto& c) { c.clients.max_norm = 1; }),
              HasSubstr("federated.clients.max_norm cannot be checked under "
                        "federated.secure_aggregation.is_on"));
  EXPECT_THAT(secure([](auto& c) { c.clients.per_round = 2; }),
              HasSubstr("federated.clients.per_round from 3 to 1000, not 2"));
  EXPECT_THAT(secure([](auto& c) { c.secure_aggregation.num_neighbours = 3; }),
              HasSubstr("federated.secure_aggregation.num_neighbours is 3; it must be even"));
  const auto with_noise = [&](const std::function<void(FederatedConfig&)>& change) {
    return problem([&](auto& c) {
      c.privacy.noise_multiplier = 2;
      c.clients.sampler = SamplerKind::kPoisson;
      change(c);
    });
  };
  EXPECT_EQ(with_noise([](auto&) {}), "");
  EXPECT_THAT(with_noise([](auto& c) { c.strategy = strategy_preset("median"); }),
              HasSubstr("federated.privacy.noise_multiplier is set, but federated.strategy.name "
                        "median has weights of its own"));
  EXPECT_THAT(with_noise([](auto& c) { c.clients.sampler = SamplerKind::kUniform; }),
              HasSubstr("wants federated.clients.sampler poisson"));
  EXPECT_THAT(with_noise([](auto& c) { c.privacy.max_epsilon = 0.1; }),
              HasSubstr("federated.privacy.max_epsilon is 0.1, but one round with "
                        "federated.privacy.noise_multiplier 2 costs "));
  EXPECT_THAT(problem([](auto& c) { c.privacy.max_epsilon = 1; }),
              HasSubstr("without noise no epsilon is finite"));
  EXPECT_THAT(problem([](auto& c) { c.task.data.kind = DataKind::kCsv; }),
              HasSubstr("federated.task.data.path is not set"));
}

TEST(ClientStates, CostNothingForClientsThatNeverTookPart) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/states";
  Result<internal::ClientStates> states =
      internal::ClientStates::open(path, 100000, 15000, true);  // 6 GB if it were full
  ASSERT_TRUE(states.ok()) << states.status().message();
  const int64_t client[] = {99999};
  ASSERT_TRUE(states->before_change(client, client).ok());
  states->row(99999)[14999] = 3;
  EXPECT_EQ(states->row(4)[0], 0);
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
}

}  // namespace
}  // namespace gradus::federated
