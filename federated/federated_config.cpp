// SPDX-License-Identifier: Apache-2.0
#include "federated/federated_config.h"

#include <algorithm>
#include <array>

#include "common/config/rules.h"
#include "federated/aggregator.h"

namespace gradus::federated {

void PartitionConfig::visit(FieldVisitor& v) {
  v.field(
      "kind", kind,
      "How samples are shared out: evenly at random; each class by a Dirichlet draw; a few "
      "shards of the rows sorted by label; unequal amounts; evenly with features shifted by "
      "client; by the data's own clients; drawn again for every client (any number of clients).",
      one_of({"iid", "dirichlet", "shards", "quantity", "feature_shift", "natural", "resampled"}));
  v.field("beta", beta, "dirichlet, quantity: concentration; small is uneven.", greater_than(0));
  v.field("is_balanced", is_balanced,
          "dirichlet: a client that has its even share gets no more of later classes.");
  v.field("min_samples", min_samples, "dirichlet, quantity: drawn again until all have as many.",
          at_least(1));
  v.field("shards_per_client", shards_per_client, "shards: of sorted rows.", at_least(1));
  v.field("shift", shift, "feature_shift: deviation of a client's gain and offset.", at_least(0));
  v.field("samples_per_client", samples_per_client, "resampled: rows of a client.", at_least(1));
}

void FederatedDataConfig::visit(FieldVisitor& v) {
  v.field("kind", kind,
          "digits: 8 x 8 images (tools/fetch_digits); mnist1d: generated; synthetic: FedProx's "
          "generator, which has clients of its own; csv: rows of numbers with the label last.",
          one_of({"digits", "mnist1d", "synthetic", "csv"}));
  v.field("path", path, "csv: the file; digits: unset is .deps/data/digits.csv.");
  v.field("test_fraction", test_fraction, "Rows held out for evaluation.", in_open(0, 1));
  v.field("num_samples", num_samples, "mnist1d: rows to make, held-out ones included.",
          at_least(10));
  v.field("alpha", alpha, "synthetic: spread of the clients' models.", at_least(0));
  v.field("beta", beta, "synthetic: spread of the clients' inputs.", at_least(0));
}

void FederatedTaskConfig::visit(FieldVisitor& v) {
  v.field("kind", kind, "mlp: a classifier of rows; none: updates of zeros, to time the engine.",
          one_of({"mlp", "none"}));
  v.field("data", data, "Rows.");
  v.field("partition", partition, "Whose they are.");
  v.field("hidden", hidden, "mlp: widths of the hidden layers.", at_least(1));
  v.field("num_parameters", num_parameters, "none: of the model.", at_least(1));
}

void ClientsConfig::visit(FieldVisitor& v) {
  v.field("num_clients", num_clients, "Clients that there are (N).", at_least(1));
  v.field("per_round", per_round, "Clients of a round; async: updates of one step of the server.",
          at_least(1));
  v.field("sampler", sampler,
          "uniform, or weighted by samples, without replacement; poisson: each with probability "
          "per_round / N; cyclic: in turn.",
          one_of({"uniform", "weighted", "poisson", "cyclic"}));
  v.field("dropout", dropout, "Probability that a client of the round sends nothing.",
          in_half_open(0, 1));
  v.field("straggler_fraction", straggler_fraction, "Clients that are slow for good.",
          in_closed(0, 1));
  v.field("straggler_slowdown", straggler_slowdown, "How many times slower they are.", at_least(1));
  v.field("speed_spread", speed_spread, "Deviation of the log of the clients' speeds.",
          at_least(0));
  v.field("deadline_s", deadline_s,
          "Simulated seconds after which a round does not wait; 0: it does. A sample takes 1 ms.",
          at_least(0));
  v.field("max_norm", max_norm, "Updates of a larger norm are refused; 0: none is.", at_least(0));
  v.field("attack", attack,
          "What bad clients send: NaN, their update times -attack_scale, noise of that deviation, "
          "their update twice.",
          one_of({"none", "nan", "sign_flip", "gaussian", "replay"}));
  v.field("attack_fraction", attack_fraction, "Clients that are bad for good.", in_closed(0, 1));
  v.field("attack_scale", attack_scale, "Of the attack.", greater_than(0));
}

void LocalTrainingConfig::visit(FieldVisitor& v) {
  v.field("num_epochs", num_epochs, "Passes over a client's rows in a round.", at_least(1));
  v.field("batch_size", batch_size, "Rows of a step.", at_least(1));
  v.field("lr", lr, "Learning rate.", greater_than(0));
  v.field("lr_decay", lr_decay, "Factor of the learning rate from round to round.",
          in_left_open(0, 1));
  v.field("momentum", momentum, "Of SGD; starts anew in each round.", in_half_open(0, 1));
  v.field("weight_decay", weight_decay, "Added to the gradient, times the weights.", at_least(0));
}

void UpdateCompression::visit(FieldVisitor& v) {
  v.field("kind", kind,
          "int8: 64 values share a power of two as scale; top_k: the largest values and their "
          "places.",
          one_of({"none", "int8", "top_k"}));
  v.field("fraction", fraction, "top_k: of values that are sent.", in_left_open(0, 1));
  v.field("has_error_feedback", has_error_feedback,
          "A client adds what it could not send to its next update.");
}

void UpdatePrivacy::visit(FieldVisitor& v) {
  v.field("noise_multiplier", noise_multiplier,
          "Deviation of the sum's noise, in units of what one client can move it by; 0: no noise "
          "and no clipping. `gradus inspect privacy` finds it for an epsilon.",
          at_least(0));
  v.field("clip_norm", clip_norm, "Updates are scaled down to this norm.", greater_than(0));
  v.field("sample_cap", sample_cap, "Rows beyond which a client weighs no more.", at_least(1));
  v.field("delta", delta, "At which epsilon is told.", in_open(0, 1));
  v.field("accountant", accountant, "prv is tighter and slower.", one_of({"rdp", "prv"}));
  v.field("max_epsilon", max_epsilon,
          "The run ends before the round that would exceed it; 0: it goes on.", at_least(0));
}

void SecureAggregationConfig::visit(FieldVisitor& v) {
  v.field("is_on", is_on,
          "The server gets the sum of a round's updates, to the bit of a plain run's, and none of "
          "them.");
  v.field("num_neighbours", num_neighbours,
          "Clients with which each shares masks, an even number; 0: all, at most 64.", at_least(0));
}

namespace {

// Whether the sum of the strategy's updates has weights that one client cannot move.
bool takes_private_weights(const std::string& strategy) {
  constexpr std::array kNames = {"fedavg",     "fedprox", "fedavgm", "diloco",
                                 "fedadagrad", "fedadam", "fedyogi"};
  return std::find(kNames.begin(), kNames.end(), strategy) != kNames.end();
}

bool reads_norms(const std::string& strategy) {
  constexpr std::array kNames = {"norm_clipping", "qfedavg", "fedexp"};
  return std::find(kNames.begin(), kNames.end(), strategy) != kNames.end();
}

void add_privacy_rules(const FederatedConfig& config, ConfigRules& rules) {
  rules.require(takes_private_weights(config.strategy.name),
                "federated.privacy.noise_multiplier is set, but federated.strategy.name {} has "
                "weights of its own, which no bound covers; take fedavg, fedprox, fedavgm, diloco, "
                "fedadagrad, fedadam or fedyogi",
                config.strategy.name);
  rules.require(config.clients.sampler == SamplerKind::kPoisson,
                "federated.privacy.noise_multiplier wants federated.clients.sampler poisson, which "
                "its accountants assume");
  rules.require(config.mode == FederatedMode::kSync,
                "federated.privacy.noise_multiplier wants federated.mode sync; no accountant here "
                "follows an asynchronous run");
  const Result<double> epsilon = epsilon_after(config, config.num_rounds);
  if (!epsilon.ok()) rules.add(epsilon.status().with_prefix("federated.privacy"));
  const Result<double> first = epsilon_after(config, 1);
  rules.require(
      config.privacy.max_epsilon == 0 || !first.ok() || *first <= config.privacy.max_epsilon,
      "federated.privacy.max_epsilon is {}, but one round with "
      "federated.privacy.noise_multiplier {} costs {:.4g}; set more noise",
      config.privacy.max_epsilon, config.privacy.noise_multiplier, first.ok() ? *first : 0.0);
}

void add_secure_rules(const FederatedConfig& config, bool needs_all, ConfigRules& rules) {
  constexpr int64_t kMaxSecureClients = 1000;  // whose sums of 52 bits fit 63
  rules.require(!needs_all && !reads_norms(config.strategy.name),
                "federated.secure_aggregation.is_on hides single updates, which "
                "federated.strategy.name {} needs; switch one of them off",
                config.strategy.name);
  rules.require(!config.compression.is_on(),
                "federated.compression.kind cannot be had with federated.secure_aggregation.is_on: "
                "masked numbers do not get shorter; switch one of them off");
  rules.require(
      config.clients.max_norm == 0,
      "federated.clients.max_norm cannot be checked under "
      "federated.secure_aggregation.is_on, where norms are unseen; switch one of them off");
  rules.require(
      config.mode == FederatedMode::kSync,
      "federated.secure_aggregation.is_on wants federated.mode sync: the clients of a sum "
      "must be there together");
  rules.require(
      config.clients.per_round >= 3 && config.clients.per_round <= kMaxSecureClients,
      "federated.secure_aggregation.is_on wants federated.clients.per_round from 3 to {}, "
      "not {}",
      kMaxSecureClients, config.clients.per_round);
  const int64_t k = config.secure_aggregation.num_neighbours;
  rules.require(
      k % 2 == 0 && k <= 254 && k < config.clients.per_round,
      "federated.secure_aggregation.num_neighbours is {}; it must be even, at most 254 and "
      "less than federated.clients.per_round ({})",
      k, config.clients.per_round);
}

}  // namespace

void DeployConfig::visit(FieldVisitor& v) {
  v.field(
      "round_timeout_s", round_timeout_s,
      "Seconds that a round waits for its clients to train, and again for their updates; then it "
      "goes on without those that are missing.",
      greater_than(0));
  v.field("io_timeout_s", io_timeout_s,
          "Seconds without a byte after which a connection counts as gone.", greater_than(0));
  v.field("max_transfers", max_transfers,
          "Models and updates that the server sends and takes at once; others wait.", at_least(1));
  v.field("retry_s", retry_s, "Seconds that a client tries to reach a server that is gone.",
          at_least(0));
  v.field("linger_s", linger_s,
          "Seconds that the server waits after the last round to tell clients that are away.",
          at_least(0));
}

Result<double> epsilon_after(const FederatedConfig& config, int64_t num_rounds) {
  const privacy::SampledGaussian run = {
      .sampling_rate = static_cast<double>(config.clients.per_round) /
                       static_cast<double>(config.clients.num_clients),
      .noise_multiplier = config.privacy.noise_multiplier,
      .num_rounds = num_rounds};
  if (config.privacy.accountant == privacy::Accountant::kRdp) {
    const Result<privacy::RdpCost> cost = privacy::rdp_cost({&run, 1}, config.privacy.delta);
    if (!cost.ok()) return cost.status();
    return cost->epsilon;
  }
  const Result<privacy::PrvCost> cost = privacy::prv_cost({&run, 1}, config.privacy.delta);
  if (!cost.ok()) return cost.status();
  return cost->upper;
}

void FederatedConfig::visit(FieldVisitor& v) {
  v.field("num_rounds", num_rounds, "Steps of the server.", at_least(1));
  v.field("mode", mode,
          "sync: a round waits for its clients; async: clients train all the time, and the server "
          "steps when per_round updates are in (FedBuff).",
          one_of({"sync", "async"}));
  v.field("concurrency", concurrency, "async: clients that train at the same time.", at_least(1));
  v.field("eval_every", eval_every, "Rounds between evaluations on the held-out rows.",
          at_least(1));
  v.field("strategy", strategy, "What updates become (docs/federated.md).", shorthand_for("name"));
  v.field("clients", clients, "Who takes part, and what goes wrong.");
  v.field("local", local, "Training of a client.");
  v.field("task", task, "What is learned.");
  v.field("compression", compression, "Updates in fewer bytes.", shorthand_for("kind"));
  v.field("privacy", privacy, "Differential privacy of clients (docs/privacy.md).");
  v.field("secure_aggregation", secure_aggregation, "Sums that hide their terms (docs/privacy.md).",
          shorthand_for("is_on"));
  v.field("deploy", deploy, "Clients in processes of their own (gradus federate serve and join).");
}

Status validate(const FederatedConfig& config) {
  ConfigRules rules;
  const ClientsConfig& clients = config.clients;
  rules.require(clients.per_round <= clients.num_clients,
                "federated.clients.per_round ({}) exceeds federated.clients.num_clients ({})",
                clients.per_round, clients.num_clients);
  const AggregatorContext context = {.num_parameters = 1, .num_clients = clients.num_clients};
  const Result<std::unique_ptr<Aggregator>> strategy = make_aggregator(config.strategy, context);
  if (!strategy.ok()) {
    rules.add(strategy.status().with_prefix("federated.strategy.name"));
  } else {
    rules.require((*strategy)->min_updates() <= clients.per_round,
                  "federated.clients.per_round is {}, but strategy {} needs at least {} updates",
                  clients.per_round, config.strategy.name, (*strategy)->min_updates());
  }
  const bool is_async = config.mode == FederatedMode::kAsync;
  rules.require(!is_async || config.strategy.staleness_exponent > 0,
                "federated.mode is async, but strategy {} refuses updates of older models; set "
                "federated.strategy.staleness_exponent above 0, e.g. 0.5, or take fedbuff",
                config.strategy.name);
  rules.require(!is_async || config.concurrency + clients.per_round <= clients.num_clients,
                "federated.concurrency ({}) + federated.clients.per_round ({}) exceed "
                "federated.clients.num_clients ({}); an idle client must be there to start",
                config.concurrency, clients.per_round, clients.num_clients);
  rules.require(!is_async || clients.sampler == SamplerKind::kUniform,
                "federated.clients.sampler must be uniform in async mode");
  rules.require(!is_async || clients.deadline_s == 0,
                "federated.clients.deadline_s must be 0 in async mode, where nobody is waited for");
  if (config.privacy.is_on()) {
    add_privacy_rules(config, rules);
  } else {
    rules.require(config.privacy.max_epsilon == 0,
                  "federated.privacy.max_epsilon is set, but federated.privacy.noise_multiplier is "
                  "0: without noise no epsilon is finite");
  }
  if (config.secure_aggregation.is_on) {
    add_secure_rules(config, strategy.ok() && (*strategy)->needs_all_updates(), rules);
  }
  const FederatedTaskConfig& task = config.task;
  const bool has_own = task.data.kind == DataKind::kSynthetic;
  rules.require(
      task.kind == TaskKind::kNone || !has_own || task.partition.kind == PartitionKind::kNatural,
      "federated.task.data.kind synthetic has clients of its own; set "
      "federated.task.partition.kind to natural");
  rules.require(
      has_own || task.partition.kind != PartitionKind::kNatural || task.data.kind == DataKind::kCsv,
      "federated.task.partition.kind natural wants data with clients of its own: "
      "federated.task.data.kind synthetic, or csv, whose first column then is the client");
  rules.require(task.data.kind != DataKind::kCsv || !task.data.path.empty(),
                "federated.task.data.path is not set; name the csv file");
  return rules.status();
}

}  // namespace gradus::federated
