// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include "comm/in_process.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "federated/round.h"
#include "federated/simulation.h"

// Client-rounds a second of the engine alone and with a classifier of digits, and rules that need
// all updates. Items are client-rounds.
namespace gradus::federated {
namespace {

FederatedConfig config_of(const std::string& strategy, int64_t num_clients, int64_t per_round) {
  FederatedConfig config;
  config.strategy = strategy_preset(strategy);
  config.clients.num_clients = num_clients;
  config.clients.per_round = per_round;
  return config;
}

void run_rounds(benchmark::State& state, const FederatedConfig& config) {
  const Result<std::unique_ptr<LocalTask>> task = make_local_task(config, 1);
  if (!task.ok()) {
    state.SkipWithError(task.status().message().c_str());
    return;
  }
  comm::run_ranks(1, [&](comm::Communicator& ranks) {
    const auto simulation = Simulation::make(config, 1, **task, ranks, "");
    for (auto _ : state) {
      Metrics metrics;
      const Status status = (*simulation)->run_round(metrics);
      GRADUS_CHECK(status.ok(), status.message());
    }
  });
  state.SetItemsProcessed(state.iterations() * config.clients.per_round);
}

// Clients that do nothing, 1,000 parameters, of a pool of a million.
void NoOp(benchmark::State& state) {
  FederatedConfig config = config_of("fedavg", 1000000, state.range(0));
  config.task.kind = TaskKind::kNone;
  run_rounds(state, config);
}
BENCHMARK(NoOp)->Arg(10)->Arg(100)->Arg(1000)->UseRealTime();

// 64-64-10 on digits (tools/fetch_digits), 76 rows, 5 epochs in batches of 50.
void Digits(benchmark::State& state) {
  FederatedConfig config = config_of(state.range(0) == 0 ? "fedavg" : "flood", 1000, 100);
  config.task.partition = {.kind = PartitionKind::kResampled, .samples_per_client = 76};
  run_rounds(state, config);
}
BENCHMARK(Digits)->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);

// 40-100-100-10 on MNIST-1D, 100 rows, 5 epochs.
void Mnist1d(benchmark::State& state) {
  FederatedConfig config = config_of("fedavg", 1000, 100);
  config.task.data.kind = DataKind::kMnist1d;
  config.task.partition = {.kind = PartitionKind::kResampled, .samples_per_client = 100};
  config.task.hidden = {100, 100};
  run_rounds(state, config);
}
BENCHMARK(Mnist1d)->UseRealTime()->Unit(benchmark::kMillisecond);

// One round of a strategy on K updates of P values.
void Rule(benchmark::State& state, const std::string& name, int64_t updates, int64_t size,
          int64_t num_byzantine) {
  AggregatorConfig config = strategy_preset(name);
  config.num_byzantine = num_byzantine;
  const auto aggregator = make_aggregator(config, {.num_parameters = size, .num_clients = updates});
  std::vector<std::vector<float>> values(static_cast<size_t>(updates));
  for (size_t k = 0; k < values.size(); ++k) {
    values[k].resize(static_cast<size_t>(size));
    uint64_t word = k + 1;
    for (float& value : values[k]) {
      word = hash64({word});
      value = static_cast<float>(word >> 40) * 0x1p-24f;
    }
  }
  for (auto _ : state) {
    Round round(**aggregator, 0);
    for (int64_t k = 0; k < updates; ++k) {
      const Status added =
          round.add({{.client_id = k, .num_samples = 1}, values[static_cast<size_t>(k)]});
      GRADUS_CHECK(added.ok(), added.message());
    }
    benchmark::DoNotOptimize(round.finish());
  }
}
BENCHMARK_CAPTURE(Rule, fedavg, "fedavg", 100, 1000000, 0)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Rule, krum, "krum", 100, 1000000, 20)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Rule, median, "median", 100, 1000000, 0)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Rule, trimmed_mean, "trimmed_mean", 100, 1000000, 0)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Rule, bulyan, "bulyan", 43, 1000000, 10)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gradus::federated

BENCHMARK_MAIN();
