// SPDX-License-Identifier: Apache-2.0
#include "trainer/federated_rl_trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/rng.h"
#include "common/strings.h"
#include "federated/client_data.h"
#include "federated/round.h"
#include "records/state_file.h"
#include "rollout/cpu_engine.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/cpu_learner.h"

namespace gradus::trainer {
namespace {

constexpr char kStateFile[] = "/federated.bin";

double lower_quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

// Those of the groups with signal that are flagged by score; low: below the quantile.
std::vector<bool> below(std::span<const double> scores, const std::vector<bool>& is_flat,
                        std::span<const double> window, double q, double sign) {
  std::vector<double> signed_window;
  for (const double score : window) signed_window.push_back(sign * score);
  std::vector<bool> flags(scores.size(), false);
  if (signed_window.empty()) return flags;
  const double limit = lower_quantile(std::move(signed_window), q);
  for (size_t g = 0; g < scores.size(); ++g) flags[g] = !is_flat[g] && sign * scores[g] < limit;
  return flags;
}

// Takes the adapter off a model for as long as it lives, if `is_on`: where W moves a checkpoint is
// a whole model, not an adapter on one that no file holds.
class AdapterAside {
 public:
  AdapterAside(model::Transformer& transformer, bool is_on) : transformer_(transformer) {
    if (is_on) adapter_ = transformer.take_adapter();
  }
  ~AdapterAside() {
    if (adapter_ != nullptr) transformer_.set_adapter(std::move(adapter_));
  }
  AdapterAside(const AdapterAside&) = delete;
  AdapterAside& operator=(const AdapterAside&) = delete;

 private:
  model::Transformer& transformer_;
  std::unique_ptr<model::LoraAdapter> adapter_;
};

// Metrics of a client's steps that become metrics of the round.
constexpr const char* kStepMetrics[] = {
    "critic/rewards/mean",  "critic/score/mean",
    "response_length/mean", "rollout/zero_variance_group_fraction",
    "actor/pg_loss",        "actor/entropy",
    "actor/grad_norm",      "mismatch/max_abs_logprob"};

}  // namespace

Result<std::vector<std::vector<int32_t>>> partition_prompts(const FederatedRlConfig& config,
                                                            int64_t prompts_per_step,
                                                            std::span<const data::Prompt> prompts,
                                                            uint64_t seed) {
  if (static_cast<int64_t>(prompts.size()) < config.num_clients) {
    return invalid_argument(
        "trainer.federated.num_clients is {}, but data.train has {} prompts; take fewer clients or "
        "more rows",
        config.num_clients, prompts.size());
  }
  std::vector<std::string> values;
  for (const data::Prompt& prompt : prompts) {
    if (config.by.empty() || config.by == "answer") {
      values.push_back(config.by.empty() ? prompt.task : prompt.answer);
      continue;
    }
    const auto found = prompt.metadata.find(config.by);
    if (found == prompt.metadata.end()) {
      std::vector<std::string> known;
      for (const auto& [name, value] : prompt.metadata) known.push_back(name);
      return invalid_argument(
          "trainer.federated.by: row {} of data.train has no '{}' in its extra_info{}; name a key "
          "that all rows have, answer, or nothing for data_source",
          prompt.prompt_id, config.by, did_you_mean(config.by, known));
    }
    values.push_back(found->second);
  }
  std::vector<std::string> names = values;
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  std::vector<int32_t> labels;
  for (const std::string& value : values) {
    labels.push_back(
        static_cast<int32_t>(std::lower_bound(names.begin(), names.end(), value) - names.begin()));
  }
  federated::PartitionConfig partition = config.partition;
  partition.min_samples = std::max(partition.min_samples, prompts_per_step);
  Result<std::vector<std::vector<int32_t>>> parts =
      federated::partition_rows(partition, labels, static_cast<int64_t>(names.size()),
                                config.num_clients, hash64({seed, 0xFED}));
  size_t least = 0;
  if (parts.ok()) {
    least = prompts.size();
    for (std::vector<int32_t>& rows : *parts) {
      std::sort(rows.begin(), rows.end());
      least = std::min(least, rows.size());
    }
  }
  if (parts.ok() && least >= static_cast<size_t>(prompts_per_step)) return parts;
  return invalid_argument(
      "trainer.federated: a client would get fewer than the {} prompts of a step "
      "(trainer.prompts_per_step) of the {} of data.train in {} labels; take a larger "
      "trainer.federated.partition.beta, fewer clients, fewer prompts a step or more rows",
      partition.min_samples, prompts.size(), names.size());
}

double group_score(const ResponseGroup& group) {
  double sum = 0, count = 0;
  for (const records::RolloutRecord& record : group.records) {
    const std::vector<float>& logprobs = record.trajectory.behavior_logprobs;
    if (logprobs.empty()) continue;
    sum += std::accumulate(logprobs.begin(), logprobs.end(), 0.0) /
           static_cast<double>(logprobs.size());
    count += 1;
  }
  return sum / count;
}

GroupWeights group_weights(const federated::FloodTerms& terms, std::span<const double> scores_G,
                           const std::vector<bool>& is_flat_G, std::span<const double> window,
                           uint64_t seed) {
  using federated::FloodFlag;
  const federated::FloodConfig& config = terms.config;
  GroupWeights result;
  result.weights_G.assign(scores_G.size(), 1.0);
  result.num_groups = std::count(is_flat_G.begin(), is_flat_G.end(), false);
  if (!terms.is_on || result.num_groups == 0 || config.flag == FloodFlag::kNone) return result;
  const double sign = config.flag == FloodFlag::kHigh ? -1 : 1;
  std::vector<bool> flags = below(scores_G, is_flat_G, window, config.quantile, sign);
  result.num_flagged = std::count(flags.begin(), flags.end(), true);
  const double num_groups = static_cast<double>(result.num_groups);
  const double mean = 1 + (terms.weight - 1) * static_cast<double>(result.num_flagged) / num_groups;
  if (config.flag == FloodFlag::kRandom) {
    // As many as the score would flag: the first of a shuffle.
    std::vector<size_t> order;
    for (size_t g = 0; g < flags.size(); ++g) {
      if (!is_flat_G[g]) order.push_back(g);
    }
    RngSequence random(seed, RngStream::kShuffle);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    std::fill(flags.begin(), flags.end(), false);
    for (size_t i = 0; i < static_cast<size_t>(result.num_flagged); ++i) flags[order[i]] = true;
  }
  const bool is_normalized = config.mode == federated::FloodMode::kNormalized;
  for (size_t g = 0; g < flags.size(); ++g) {
    if (is_flat_G[g]) continue;
    const double weight = config.flag == FloodFlag::kEvery ? mean : flags[g] ? terms.weight : 1.0;
    result.weights_G[g] = is_normalized ? weight / mean : weight;
  }
  return result;
}

// Of one client in one round. The numbers go to all ranks as doubles, in this order.
struct FederatedRlTrainer::Visit {
  int64_t client = 0;
  int64_t num_groups = 0;  // with signal
  int64_t num_flagged = 0;
  int64_t num_updates = 0;  // of the policy
  int64_t num_responses = 0;
  double score = 0;  // of the first step's groups, which the global model sampled
  double ess = 0;    // mean over steps
  double steps_with_signal = 0;
  double metrics[std::size(kStepMetrics)] = {};  // sums over the steps that have them
  double counts[std::size(kStepMetrics)] = {};
  std::vector<double> scores{};  // of all groups, in order
  std::vector<float> delta{};    // stays on the rank

  void append_to(std::vector<double>& out) const {
    for (const int64_t value : {client, num_groups, num_flagged, num_updates, num_responses}) {
      out.push_back(static_cast<double>(value));
    }
    out.insert(out.end(), {score, ess, steps_with_signal});
    out.insert(out.end(), std::begin(metrics), std::end(metrics));
    out.insert(out.end(), std::begin(counts), std::end(counts));
    out.push_back(static_cast<double>(scores.size()));
    out.insert(out.end(), scores.begin(), scores.end());
  }
  static Visit read(std::span<const double> in, size_t& at) {
    Visit visit;
    for (int64_t* value : {&visit.client, &visit.num_groups, &visit.num_flagged, &visit.num_updates,
                           &visit.num_responses}) {
      *value = static_cast<int64_t>(in[at++]);
    }
    for (double* value : {&visit.score, &visit.ess, &visit.steps_with_signal}) *value = in[at++];
    for (double& value : visit.metrics) value = in[at++];
    for (double& value : visit.counts) value = in[at++];
    const auto count = static_cast<size_t>(in[at++]);
    for (size_t i = 0; i < count; ++i) visit.scores.push_back(in[at++]);
    return visit;
  }
};

FederatedRlTrainer::FederatedRlTrainer(RlSetup setup, Policy& policy,
                                       const rewards::RewardSum& rewards,
                                       const Algorithm& algorithm, comm::Communicator& communicator,
                                       RunRecords records, records::RunDisplay& display,
                                       FederatedPayloadKind payload)
    : setup_(std::move(setup)),
      config_(*setup_.trainer.federated),
      policy_(policy),
      rewards_(rewards),
      algorithm_(algorithm),
      communicator_(communicator),
      records_(records),
      display_(display),
      alone_(communicator.subset(communicator.rank(), 1)),
      payload_(payload, *policy.transformer, static_cast<uint64_t>(setup_.run.seed)) {}

Result<std::unique_ptr<FederatedRlTrainer>> FederatedRlTrainer::make(
    RlSetup setup, Policy& policy, const rewards::RewardSum& rewards, const Algorithm& algorithm,
    comm::Communicator& communicator, RunRecords records, records::RunDisplay& display) {
  GRADUS_CHECK(setup.trainer.federated.has_value(), "a federated run");
  const Result<FederatedPayloadKind> payload =
      resolved_payload(setup.trainer.federated->payload, policy.transformer->adapter() != nullptr);
  if (!payload.ok()) return payload.status();
  std::unique_ptr<FederatedRlTrainer> trainer(new FederatedRlTrainer(
      std::move(setup), policy, rewards, algorithm, communicator, records, display, *payload));
  const FederatedRlConfig& config = trainer->config_;
  Result<std::vector<std::vector<int32_t>>> rows =
      partition_prompts(config, trainer->setup_.trainer.prompts_per_step,
                        trainer->setup_.train_prompts, trainer->setup_.data_seed);
  if (!rows.ok()) return rows.status();
  trainer->rows_ = std::move(*rows);
  trainer->windows_.resize(trainer->rows_.size());
  Result<std::unique_ptr<federated::Aggregator>> aggregator = federated::make_aggregator(
      config.strategy, {.num_parameters = trainer->payload_.size(),
                        .num_clients = config.num_clients,
                        .num_rounds = trainer->setup_.trainer.num_steps,
                        .client_lr = trainer->setup_.trainer.optimizer.learning_rate});
  if (!aggregator.ok()) return aggregator.status();
  trainer->aggregator_ = std::move(*aggregator);
  return trainer;
}

// Those of the round: all, or some drawn by seed and round.
std::vector<int64_t> FederatedRlTrainer::clients_of_round() const {
  std::vector<int64_t> clients(static_cast<size_t>(config_.num_clients));
  std::iota(clients.begin(), clients.end(), 0);
  if (config_.per_round == 0 || config_.per_round == config_.num_clients) return clients;
  RngSequence random(hash64({static_cast<uint64_t>(setup_.run.seed), 0xC11E,
                             static_cast<uint64_t>(position_.step)}),
                     RngStream::kShuffle);
  for (size_t i = clients.size(); i > 1; --i) std::swap(clients[i - 1], clients[random.below(i)]);
  clients.resize(static_cast<size_t>(config_.per_round));
  std::sort(clients.begin(), clients.end());
  return clients;
}

// Of the schedule, at the round's last update.
double FederatedRlTrainer::learning_rate_factor() const {
  const int64_t per_round = config_.local_steps * setup_.trainer.mini_batches;
  const OptimizerConfig& optimizer = setup_.trainer.optimizer;
  return learning_rate_at(optimizer, (position_.step + 1) * per_round - 1,
                          num_policy_updates(setup_.trainer)) /
         optimizer.learning_rate;
}

Status FederatedRlTrainer::train_client(int64_t client, const federated::FloodTerms& flood,
                                        Visit& visit) {
  visit.client = client;
  payload_.restore();
  const auto k = static_cast<size_t>(client);
  RlSetup setup;
  setup.trainer = setup_.trainer;
  setup.trainer.federated.reset();
  setup.trainer.num_steps = config_.local_steps;
  const double factor = learning_rate_factor();
  OptimizerConfig& optimizer = setup.trainer.optimizer;
  optimizer.learning_rate *= factor;
  optimizer.muon_learning_rate *= factor;
  optimizer.lr_schedule = LrSchedule::kConstant;
  optimizer.warmup_steps = 0;
  setup.rollout = setup_.rollout;
  setup.tools = setup_.tools;
  setup.run = setup_.run;
  setup.run.dump_rollouts = false;
  setup.cluster = setup_.cluster;
  setup.shuffle = setup_.shuffle;
  setup.data_seed = hash64({setup_.data_seed, static_cast<uint64_t>(client)});
  for (const int32_t row : rows_[k]) {
    setup.train_prompts.push_back(setup_.train_prompts[static_cast<size_t>(row)]);
  }
  // As many rounds as it may have been in: a place is never visited twice.
  setup.start.data_position =
      static_cast<uint64_t>(position_.step * config_.local_steps * setup_.trainer.prompts_per_step);
  setup.start.policy_version =
      static_cast<uint64_t>(position_.step * config_.local_steps * setup_.trainer.mini_batches);
  std::deque<double>& window = windows_[k];
  setup.weigh_groups = [&](std::span<const ResponseGroup> groups, std::span<double> weights) {
    std::vector<double> scores;
    std::vector<bool> is_flat_G;
    for (const ResponseGroup& group : groups) {
      scores.push_back(group_score(group));
      // Without a score, as without signal: nothing to weigh.
      is_flat_G.push_back(is_flat(group) || std::isnan(scores.back()));
      if (std::isnan(scores.back())) continue;
      visit.scores.push_back(scores.back());
      window.push_back(scores.back());
    }
    while (static_cast<int64_t>(window.size()) > config_.score_window) window.pop_front();
    const GroupWeights result = group_weights(
        flood, scores, is_flat_G, std::vector<double>(window.begin(), window.end()),
        hash64({static_cast<uint64_t>(setup_.run.seed), 0xF1A6, static_cast<uint64_t>(client),
                static_cast<uint64_t>(position_.step), visit.scores.size()}));
    std::copy(result.weights_G.begin(), result.weights_G.end(), weights.begin());
    if (visit.steps_with_signal == 0 && visit.score == 0 && !visit.scores.empty()) {
      visit.score = std::accumulate(visit.scores.begin(), visit.scores.end(), 0.0) /
                    static_cast<double>(visit.scores.size());
    }
    visit.num_groups += result.num_groups;
    visit.num_flagged += result.num_flagged;
    double sum = 0, squares = 0;
    for (size_t g = 0; g < weights.size(); ++g) {
      if (is_flat_G[g]) continue;
      sum += weights[g];
      squares += weights[g] * weights[g];
    }
    if (result.num_groups == 0) return;
    visit.ess += sum * sum / squares / static_cast<double>(result.num_groups);
    visit.steps_with_signal += 1;
  };
  setup.on_step = [&](const Metrics& metrics) {
    if (metrics.contains("training/num_updates")) {
      visit.num_updates += static_cast<int64_t>(metrics.value("training/num_updates"));
    }
    visit.num_responses += static_cast<int64_t>(metrics.value("rollout/num_responses"));
    for (size_t i = 0; i < std::size(kStepMetrics); ++i) {
      if (!metrics.contains(kStepMetrics[i])) continue;
      visit.metrics[i] += metrics.value(kStepMetrics[i]);
      visit.counts[i] += 1;
    }
  };
  records::RunDisplay quiet({.num_steps = config_.local_steps, .is_quiet = true});
  RlTrainer trainer(std::move(setup), policy_, rewards_, algorithm_, *alone_, {}, quiet);
  GRADUS_RETURN_IF_ERROR(trainer.run_through().with_prefix(
      fmt::format("round {}, client {}", position_.step + 1, client)));
  if (visit.num_updates == 0) return {};
  visit.delta = payload_.difference();
  return {};
}

Status FederatedRlTrainer::round() {
  Metrics metrics;
  const federated::FloodTerms flood = aggregator_->client_terms(position_.step).flood;
  const std::vector<int64_t> clients = clients_of_round();
  std::vector<Visit> mine;
  Status status;
  display_.begin_phase("clients", static_cast<int64_t>(clients.size()), "clients");
  {
    const Phase phase(clock_, "timing_s/clients");
    for (size_t i = 0; i < clients.size() && status.ok(); ++i) {
      if (clients[i] % communicator_.size() != communicator_.rank()) continue;
      mine.emplace_back();
      status = train_client(clients[i], flood, mine.back());
      display_.advance_phase(static_cast<int64_t>(i + 1));
    }
  }
  display_.end_phase();
  const Phase phase(clock_, "timing_s/exchange");
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  payload_.restore();

  std::vector<double> numbers;
  for (const Visit& visit : mine) visit.append_to(numbers);
  numbers = comm::all_gather_values(communicator_, numbers);
  std::vector<Visit> visits;
  for (size_t at = 0; at < numbers.size();) visits.push_back(Visit::read(numbers, at));
  std::sort(visits.begin(), visits.end(),
            [](const Visit& a, const Visit& b) { return a.client < b.client; });
  int64_t num_silent = 0;
  for (const Visit& visit : visits) {
    num_silent += visit.num_updates == 0 ? 1 : 0;
    if (visit.client % communicator_.size() != communicator_.rank()) {
      std::deque<double>& window = windows_[static_cast<size_t>(visit.client)];
      window.insert(window.end(), visit.scores.begin(), visit.scores.end());
      while (static_cast<int64_t>(window.size()) > config_.score_window) window.pop_front();
    }
    const std::string name = fmt::format("federated/client/{}/", visit.client);
    metrics.set(name + "score", visit.score);
    for (size_t i = 0; i < std::size(kStepMetrics); ++i) {
      if (visit.counts[i] == 0) continue;
      metrics.add(kStepMetrics[i], visit.metrics[i] / visit.counts[i]);
      if (i == 0) metrics.set(name + "reward", visit.metrics[i] / visit.counts[i]);
    }
    metrics.add("rollout/num_responses", static_cast<double>(visit.num_responses));
    if (visit.num_groups == 0) continue;
    metrics.add("federated/flagged_fraction",
                static_cast<double>(visit.num_flagged) / static_cast<double>(visit.num_groups));
    metrics.add("federated/group_weight_ess", visit.ess / visit.steps_with_signal);
  }

  federated::Round round(*aggregator_, position_.step);
  for (const Visit& visit : mine) {
    if (visit.delta.empty()) continue;
    federated::ClientReport report = {.client_id = visit.client,
                                      .base_version = position_.step,
                                      .num_samples = std::max<int64_t>(visit.num_groups, 1),
                                      .num_steps = visit.num_updates,
                                      .score = visit.score};
    (void)round.add({std::move(report), visit.delta});  // a refusal is counted
  }
  federated::Refusals refused = round.refusals();
  refused.add_ranks(communicator_);
  refused.set_metrics(metrics);
  metrics.set("federated/without_signal", static_cast<double>(num_silent));
  const Result<federated::RoundResult> result = round.finish(&communicator_);
  const bool has_quorum = result.ok() || result.status().code() != StatusCode::kUnavailable;
  if (has_quorum && !result.ok()) return result.status();
  metrics.set("federated/skipped_rounds", has_quorum ? 0 : 1);
  metrics.set("federated/updates",
              has_quorum ? static_cast<double>(result->reports_K.size()) : 0.0);
  if (has_quorum) {
    double step = 0, norm = 0, sum = 0, squares = 0;
    for (const double d : result->delta_P) step += d * d;
    payload_.apply(result->delta_P, position_.step);
    std::vector<double> scores;
    for (size_t k = 0; k < result->reports_K.size(); ++k) {
      const federated::ClientReport& report = result->reports_K[k];
      const double weight = result->weights_K[k];
      metrics.set(fmt::format("federated/client/{}/weight", report.client_id), weight);
      sum += weight;
      squares += weight * weight;
      norm += std::sqrt(report.squared_norm);
      scores.push_back(report.score.value_or(0));
    }
    const auto [low, high] =
        std::minmax_element(result->weights_K.begin(), result->weights_K.end());
    metrics.set("federated/weights/min", *low);
    metrics.set("federated/weights/max", *high);
    metrics.set("federated/weights/effective_clients", squares > 0 ? sum * sum / squares : 0);
    metrics.set("federated/step_norm", std::sqrt(step));
    metrics.set("federated/update_norm", norm / static_cast<double>(scores.size()));
    std::sort(scores.begin(), scores.end());
    metrics.set("federated/score/min", scores.front());
    metrics.set("federated/score/median", lower_quantile(scores, 0.5));
    metrics.set("federated/score/max", scores.back());
  }
  metrics.set("federated/upload_bytes", has_quorum
                                            ? static_cast<double>(payload_.num_upload_bytes()) *
                                                  static_cast<double>(result->reports_K.size())
                                            : 0.0);
  metrics.set("federated/client_lr",
              learning_rate_factor() * setup_.trainer.optimizer.learning_rate);
  if (flood.is_on) metrics.set("federated/flood_weight", flood.weight);
  ++position_.step;
  ++position_.policy_version;
  const int64_t every = setup_.eval.every_steps;
  const bool is_last = position_.step == setup_.trainer.num_steps;
  if (!setup_.eval_prompts.empty() && every > 0 && (is_last || position_.step % every == 0)) {
    GRADUS_RETURN_IF_ERROR(evaluate_now(metrics));
  }
  metrics.set("training/global_step", static_cast<double>(position_.step));
  double seconds = 0;
  for (const auto& [name, value] : clock_.lap()) {
    metrics.set(name, value);
    seconds += value;
  }
  metrics.set("timing_s/step", seconds);
  last_metrics_ = metrics.values();
  if (records_.metrics != nullptr) {
    status = records_.metrics->write(position_.step, last_metrics_);
    display_.finish_step(position_.step, last_metrics_);
  }
  return comm::agree(communicator_, status);
}

// By an engine of this moment alone: its cache is not there while clients train.
Status FederatedRlTrainer::evaluate_now(Metrics& metrics) {
  const Phase phase(clock_, "timing_s/testing");
  const EvaluationSettings settings = evaluation_settings(
      setup_.eval, setup_.rollout, policy_.transformer->config(), setup_.run.seed);
  std::span<const data::Prompt> prompts = setup_.eval_prompts;
  if (setup_.eval.max_rows) {
    prompts = prompts.first(std::min(prompts.size(), static_cast<size_t>(*setup_.eval.max_rows)));
  }
  rollout::CpuEngine engine(*policy_.transformer, policy_.tokenizer.get(),
                            engine_options(setup_.rollout), setup_.tools);
  Result<Evaluation> evaluation = evaluate(engine, rewards_, prompts, settings, communicator_);
  if (!evaluation.ok()) return evaluation.status();
  add_evaluation_metrics(*evaluation, settings.num_samples, metrics);
  evaluations_.push_back(std::move(*evaluation));
  return {};
}

Status FederatedRlTrainer::run() {
  if (setup_.eval.before_training && position_.step == 0 && !setup_.eval_prompts.empty()) {
    Metrics metrics;
    GRADUS_RETURN_IF_ERROR(evaluate_now(metrics));
    for (const auto& [name, seconds] : clock_.lap()) metrics.set(name, seconds);
    if (records_.metrics != nullptr) {
      GRADUS_RETURN_IF_ERROR(records_.metrics->write(0, metrics.values()));
    }
  }
  return run_steps(
      setup_.trainer.num_steps, setup_.run.checkpoint_every, position_, communicator_, display_,
      [this] { return round(); }, [this] { return save(); }, records_.saver, clock_);
}

// What must be the same in a run that goes on.
std::string FederatedRlTrainer::strategy_text() const {
  return config_.strategy.name +
         (config_.strategy.name == "flood" ? " over " + config_.strategy.base : "");
}

// The global weights as a checkpoint of any run, with an optimizer that has done nothing, and what
// the server keeps beside it.
Status FederatedRlTrainer::save() {
  const Phase phase(clock_, "timing_s/save_checkpoint");
  if (records_.saver == nullptr) return {};
  Status status;
  if (records_.metrics != nullptr) status = records_.metrics->sync();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  const auto write = [&](const std::string& folder) -> Status {
    Result<records::StateWriter> writer = records::StateWriter::create(folder + kStateFile);
    if (!writer.ok()) return writer.status();
    GRADUS_RETURN_IF_ERROR(writer->add_text("strategy", strategy_text()));
    GRADUS_RETURN_IF_ERROR(writer->add_text("payload", std::string(name_of(payload_.kind()))));
    GRADUS_RETURN_IF_ERROR(writer->add("num_clients", config_.num_clients));
    GRADUS_RETURN_IF_ERROR(payload_.save(*writer));
    Status added;
    aggregator_->visit_state([&](const std::string& name, std::vector<float>& values) {
      if (added.ok()) added = writer->add("strategy/" + name, std::span<const float>(values));
    });
    GRADUS_RETURN_IF_ERROR(added);
    for (size_t k = 0; k < windows_.size(); ++k) {
      const std::vector<double> window(windows_[k].begin(), windows_[k].end());
      GRADUS_RETURN_IF_ERROR(
          writer->add(fmt::format("scores/{}", k), std::span<const double>(window)));
    }
    return writer->finish();
  };
  const AdapterAside aside(*policy_.transformer, payload_.moves_base());
  CpuLearner learner(*policy_.transformer, setup_.trainer.optimizer, setup_.trainer.backward,
                     communicator_);
  return records_.saver->save(policy_, learner, position_, best_metric(setup_.run, last_metrics_),
                              nullptr, write);
}

Status FederatedRlTrainer::resume(const std::string& checkpoint_folder) {
  const auto load_model = [&]() -> Status {
    const AdapterAside aside(*policy_.transformer, payload_.moves_base());
    CpuLearner learner(*policy_.transformer, setup_.trainer.optimizer, setup_.trainer.backward,
                       *alone_);
    return load_checkpoint(checkpoint_folder, policy_, learner, position_);
  };
  const auto load = [&]() -> Status {
    GRADUS_RETURN_IF_ERROR(load_model());
    const std::string path = checkpoint_folder + kStateFile;
    const Result<records::StateReader> reader = records::StateReader::open(path);
    if (!reader.ok()) return reader.status();
    const Result<std::string> strategy = reader->read_text("strategy");
    const Result<int64_t> num_clients = reader->read_i64("num_clients");
    if (!strategy.ok()) return strategy.status();
    if (!num_clients.ok()) return num_clients.status();
    const Result<std::string> payload = reader->read_text("payload");
    if (!payload.ok()) return payload.status();
    if (*payload != name_of(payload_.kind())) {
      return invalid_argument(
          "{}: written by trainer.federated.payload {}; this run has {}; resume with the "
          "configuration that the run was started with",
          path, *payload, name_of(payload_.kind()));
    }
    if (*strategy != strategy_text() || *num_clients != config_.num_clients) {
      return invalid_argument(
          "{}: written by strategy {} with {} clients; this run has {} with {}; resume with the "
          "configuration that the run was started with",
          path, *strategy, *num_clients, strategy_text(), config_.num_clients);
    }
    const auto size_of = [&](const std::string& name) {
      for (const records::StateEntry& entry : reader->entries()) {
        if (entry.name == name) return static_cast<size_t>(entry.count);
      }
      return size_t{0};
    };
    Status status;
    aggregator_->visit_state([&](const std::string& name, std::vector<float>& values) {
      values.resize(size_of("strategy/" + name));
      if (status.ok()) status = reader->read("strategy/" + name, std::span(values));
    });
    GRADUS_RETURN_IF_ERROR(status);
    for (size_t k = 0; k < windows_.size(); ++k) {
      const std::string name = fmt::format("scores/{}", k);
      std::vector<double> window(size_of(name));
      GRADUS_RETURN_IF_ERROR(reader->read(name, std::span(window)));
      windows_[k].assign(window.begin(), window.end());
    }
    payload_.take_global();
    return payload_.load(*reader);
  };
  return comm::agree(communicator_, load());
}

}  // namespace gradus::trainer
