// SPDX-License-Identifier: Apache-2.0
#include "federated/simulation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <unordered_set>

#include "common/log.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "federated/internal/client_update.h"
#include "federated/internal/round_metrics.h"
#include "privacy/gaussian.h"
#include "records/state_file.h"

namespace gradus::federated {
namespace {

constexpr double kSecondsPerSample = 1e-3;  // of the simulated clock, for a client of speed 1
// What a draw is for, so that none is used twice.
constexpr uint64_t kSample = internal::kDrawSample, kDrop = 2, kDuration = 3, kSpeed = 4,
                   kStraggler = 5, kBad = 6, kTrain = internal::kDrawTraining, kNoise = 8;

double uniform_of(std::initializer_list<uint64_t> words) {
  return RngSequence(hash64(words), RngStream::kSampling).uniform();
}

}  // namespace

struct Simulation::Outcome {
  std::vector<Flight> flights;  // whose updates arrive
  std::vector<int64_t> chosen;  // sync: all that were asked
  int64_t num_dropped = 0, num_late = 0;
};

Simulation::Simulation(const FederatedConfig& config, uint64_t seed, const LocalTask& task,
                       comm::Communicator& ranks)
    : config_(config),
      seed_(seed),
      task_(task),
      ranks_(ranks),
      p_(task.num_parameters()),
      model_(task.num_parameters()) {}

Result<std::unique_ptr<Simulation>> Simulation::make(const FederatedConfig& config, uint64_t seed,
                                                     const LocalTask& task,
                                                     comm::Communicator& ranks,
                                                     const std::string& state_path,
                                                     bool is_resumed) {
  std::unique_ptr<Simulation> made(new Simulation(config, seed, task, ranks));
  Result<std::unique_ptr<Aggregator>> aggregator = internal::aggregator_of(config, task);
  if (!aggregator.ok()) return aggregator.status();
  made->aggregator_ = std::move(*aggregator);
  const int64_t state_size = made->state_size();
  // Rank 0 makes the file, then the others map it.
  Status status;
  for (const bool is_first : {true, false}) {
    if ((ranks.rank() == 0) == is_first) {
      Result<internal::ClientStates> states = internal::ClientStates::open(
          state_path, task.num_clients(), state_size, is_first && !is_resumed);
      status = states.status();
      if (states.ok()) made->states_ = std::move(*states);
    }
    GRADUS_RETURN_IF_ERROR(comm::agree(ranks, status));
  }
  task.initialize(internal::initial_seed(seed),
                  {made->model_.data(), static_cast<size_t>(task.num_parameters())});
  made->cumulated_samples_ = internal::cumulated_samples(config.clients, task);
  if (config.privacy.is_on()) {
    const auto cap = static_cast<double>(config.privacy.sample_cap);
    for (int64_t k = 0; k < task.num_clients(); ++k) {
      made->expected_weight_ += std::min(static_cast<double>(task.num_samples(k)) / cap, 1.0);
    }
    made->expected_weight_ *= static_cast<double>(config.clients.per_round) /
                              static_cast<double>(config.clients.num_clients);
  }
  made->start_interval();
  return made;
}

bool Simulation::has_trait(int64_t client, uint64_t trait, double fraction) const {
  return fraction > 0 && uniform_of({seed_, trait, static_cast<uint64_t>(client)}) < fraction;
}

double Simulation::duration_s(int64_t client, int64_t job) const {
  const ClientsConfig& clients = config_.clients;
  double seconds = kSecondsPerSample * static_cast<double>(task_.num_samples(client)) *
                   static_cast<double>(config_.local.num_epochs);
  if (clients.speed_spread > 0) {
    RngSequence own(hash64({seed_, kSpeed, static_cast<uint64_t>(client)}), RngStream::kSampling);
    seconds *= std::exp(clients.speed_spread * own.normal());
  }
  if (has_trait(client, kStraggler, clients.straggler_fraction)) {
    seconds *= clients.straggler_slowdown;
  }
  // A tenth more or less from time to time, so that no two finish at once.
  return seconds * (0.9 + 0.2 * uniform_of({seed_, kDuration, static_cast<uint64_t>(job),
                                            static_cast<uint64_t>(client)}));
}

Simulation::Outcome Simulation::pick_sync() {
  const ClientsConfig& clients = config_.clients;
  const auto round = static_cast<uint64_t>(round_);
  std::vector<int64_t> chosen =
      internal::choose_clients(clients, task_.num_clients(), cumulated_samples_, seed_, round_);
  Outcome outcome;
  double slowest = 0;
  for (const int64_t client : chosen) {
    if (clients.dropout > 0 &&
        uniform_of({seed_, kDrop, round, static_cast<uint64_t>(client)}) < clients.dropout) {
      ++outcome.num_dropped;
      if (clients.deadline_s > 0) slowest = clients.deadline_s;  // waited for in vain
      continue;
    }
    const double seconds = duration_s(client, round_);
    if (clients.deadline_s > 0 && seconds > clients.deadline_s) {
      ++outcome.num_late;
      slowest = clients.deadline_s;
      continue;
    }
    slowest = std::max(slowest, seconds);
    outcome.flights.push_back({client, round_, round_, clock_s_ + seconds});
  }
  clock_s_ += slowest;
  outcome.chosen = std::move(chosen);
  return outcome;
}

Simulation::Outcome Simulation::pick_async() {
  const ClientsConfig& clients = config_.clients;
  Outcome outcome;
  std::unordered_set<int64_t> busy;
  for (const Flight& flight : under_way_) busy.insert(flight.client_id);
  const auto start_one = [&] {
    RngSequence random(hash64({seed_, kSample, static_cast<uint64_t>(num_jobs_)}),
                       RngStream::kSampling);
    int64_t client = 0;
    do {
      client = static_cast<int64_t>(random.below(static_cast<uint64_t>(task_.num_clients())));
    } while (busy.contains(client));
    busy.insert(client);
    under_way_.push_back({client, num_jobs_, round_, clock_s_ + duration_s(client, num_jobs_)});
    ++num_jobs_;
  };
  while (static_cast<int64_t>(outcome.flights.size()) < clients.per_round) {
    while (static_cast<int64_t>(under_way_.size()) < config_.concurrency) start_one();
    const auto next = std::min_element(
        under_way_.begin(), under_way_.end(), [](const Flight& a, const Flight& b) {
          return std::pair(a.finish_s, a.client_id) < std::pair(b.finish_s, b.client_id);
        });
    const Flight flight = *next;
    under_way_.erase(next);
    clock_s_ = flight.finish_s;
    if (clients.dropout > 0 &&
        uniform_of({seed_, kDrop, static_cast<uint64_t>(flight.job),
                    static_cast<uint64_t>(flight.client_id)}) < clients.dropout) {
      ++outcome.num_dropped;
      busy.erase(flight.client_id);
      continue;
    }
    outcome.flights.push_back(flight);  // busy until the server's step: one update each
  }
  return outcome;
}

// The longest first, each to the rank with least to do, so that all end at about the same time.
std::vector<Flight> Simulation::share_of_rank(const std::vector<Flight>& flights) const {
  std::vector<std::pair<int64_t, size_t>> by_cost;
  for (size_t i = 0; i < flights.size(); ++i) {
    by_cost.emplace_back(-task_.num_samples(flights[i].client_id), i);
  }
  std::sort(by_cost.begin(), by_cost.end());
  std::vector<int64_t> load(static_cast<size_t>(ranks_.size()), 0);
  std::vector<Flight> mine;
  for (const auto& [cost, i] : by_cost) {
    const auto least = std::min_element(load.begin(), load.end());
    *least -= cost;
    if (least - load.begin() == ranks_.rank()) mine.push_back(flights[i]);
  }
  return mine;
}

void Simulation::attack(const Flight& flight, std::span<float> update) const {
  const ClientsConfig& clients = config_.clients;
  if (clients.attack == AttackKind::kNone ||
      !has_trait(flight.client_id, kBad, clients.attack_fraction)) {
    return;
  }
  RngSequence random(hash64({seed_, kNoise, static_cast<uint64_t>(flight.job),
                             static_cast<uint64_t>(flight.client_id)}),
                     RngStream::kSampling);
  const auto scale = static_cast<float>(clients.attack_scale);
  for (float& value : update) {
    switch (clients.attack) {
      case AttackKind::kNone:
      case AttackKind::kReplay:  // train() sends it twice
        break;
      case AttackKind::kNan:
        value = std::nanf("");
        break;
      case AttackKind::kSignFlip:
        value = -scale * value;
        break;
      case AttackKind::kGaussian:
        value = static_cast<float>(clients.attack_scale * random.normal());
        break;
    }
  }
}

RoundOptions Simulation::round_options(const Outcome& outcome) const {
  RoundOptions options{.max_norm = config_.clients.max_norm};
  if (config_.privacy.is_on()) {
    const double max_weight = 1 / expected_weight_;
    options.private_sum = {.sample_cap = config_.privacy.sample_cap,
                           .expected_weight = expected_weight_,
                           .stddev = privacy::noise_stddev(config_.privacy.noise_multiplier,
                                                           config_.privacy.clip_norm, max_weight),
                           .noise = privacy::GaussianNoise::from_seed(seed_)};
  }
  if (config_.secure_aggregation.is_on) {
    options.secure_sum = {.client_ids = outcome.chosen,
                          .num_neighbours = config_.secure_aggregation.num_neighbours,
                          .seed = seed_};
  }
  return options;
}

bool Simulation::is_budget_spent() const {
  if (!config_.privacy.is_on() || config_.privacy.max_epsilon == 0) return false;
  const Result<double> next = epsilon_after(config_, round_ + 1);
  return !next.ok() || *next > config_.privacy.max_epsilon;
}

Status Simulation::train(const std::vector<Flight>& mine, const ClientTerms& terms, Round& round,
                         Refusals& refusals) {
  const int64_t length = p_ * aggregator_->num_vectors();
  const int64_t stride = (length + 15) / 16 * 16;  // rows at cache lines
  updates_.reserve(static_cast<int64_t>(mine.size()) * stride);
  std::vector<ModelDelta> deltas(mine.size());
  const auto count = static_cast<int64_t>(mine.size());
  // One at a time while clients are costly; in runs when they are many.
  const int64_t grain = std::max<int64_t>(1, count / (64 * num_threads()));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<LocalWorker> worker;
    {
      std::lock_guard lock(workers_mutex_);
      if (!idle_workers_.empty()) {
        worker = std::move(idle_workers_.back());
        idle_workers_.pop_back();
      }
    }
    if (!worker) worker = task_.make_worker();
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      const Flight& flight = mine[at];
      std::span<const float> from = model();
      if (flight.version != round_) from = older_models_.at(flight.version);
      const std::span<float> update(updates_.data() + i * stride, static_cast<size_t>(length));
      const std::span<float> state = states_.row(flight.client_id);
      const std::span<float> task_state =
          state.empty() ? state : state.first(static_cast<size_t>(task_state_size()));
      deltas[at].report =
          worker->train({.client_id = flight.client_id,
                         .seed = internal::training_seed(seed_, flight.job, flight.client_id),
                         .model_P = from,
                         .broadcast_P = aggregator_->broadcast(),
                         .terms = &terms,
                         .lr = internal::client_lr(config_.local, flight.version)},
                        update, task_state);
      deltas[at].report.base_version = flight.version;
      attack(flight, update);
      internal::compress_and_clip(config_, update, state.subspan(task_state.size()));
      deltas[at].values = update;
      measure(deltas[at]);
    }
    std::lock_guard lock(workers_mutex_);
    idle_workers_.push_back(std::move(worker));
  });
  guard_.start_round(round_);
  const bool is_replayed = config_.clients.attack == AttackKind::kReplay;
  for (const ModelDelta& delta : deltas) {
    const int64_t client = delta.report.client_id;
    const bool is_twice = is_replayed && has_trait(client, kBad, config_.clients.attack_fraction);
    for (int time = 0; time < (is_twice ? 2 : 1); ++time) {
      Status added = guard_.admit(round_, client, hash64({seed_, kTrain, 0}));
      if (!added.ok()) refusals.add(Refusal::kReplay);
      if (added.ok()) added = round.add(delta, true);
      if (added.ok()) continue;
      log_debug("federated", added.message());
    }
  }
  for (size_t i = 0; i < kNumRefusals; ++i) refusals.counts[i] += round.refusals().counts[i];
  return {};
}

Status Simulation::run_round(Metrics& metrics) {
  const auto started = std::chrono::steady_clock::now();
  const bool is_async = config_.mode == FederatedMode::kAsync;
  const Outcome outcome = is_async ? pick_async() : pick_sync();
  const ClientTerms terms = aggregator_->client_terms(round_);
  const std::vector<Flight> mine = share_of_rank(outcome.flights);
  if (state_size() > 0) {
    std::vector<int64_t> all, own;
    for (const Flight& flight : outcome.flights) all.push_back(flight.client_id);
    for (const Flight& flight : mine) own.push_back(flight.client_id);
    GRADUS_RETURN_IF_ERROR(comm::agree(ranks_, states_.before_change(all, own)));
  }
  Round round(*aggregator_, round_, round_options(outcome));
  Refusals refused;
  GRADUS_RETURN_IF_ERROR(train(mine, terms, round, refused));
  const Result<RoundResult> result = round.finish(&ranks_);
  refused.add_ranks(ranks_);
  const bool has_quorum = result.ok();
  if (!has_quorum && result.status().code() != StatusCode::kUnavailable) return result.status();
  if (!has_quorum) {
    log_warn("federated", "the model stays as it is: " + result.status().message(),
             {{"round", round_ + 1}});
  }
  if (is_async) {
    older_models_[round_] = std::vector<float>(model().begin(), model().end());
  }
  if (has_quorum) {
    float* x = model_.data();
    for (int64_t j = 0; j < p_; ++j) {
      x[j] =
          static_cast<float>(static_cast<double>(x[j]) + result->delta_P[static_cast<size_t>(j)]);
    }
    internal::add_result_metrics(*result, result->delta_P, metrics);
  }
  ++round_;
  if (is_async) {
    std::set<int64_t> wanted;
    for (const Flight& flight : under_way_) wanted.insert(flight.version);
    std::erase_if(older_models_, [&](const auto& entry) { return !wanted.contains(entry.first); });
  }
  if (config_.privacy.is_on()) {
    const Result<double> epsilon = epsilon_after(config_, round_);
    if (!epsilon.ok()) return epsilon.status();
    metrics.set("federated/epsilon", *epsilon);
  }
  metrics.set("training/global_step", static_cast<double>(round_));
  metrics.set("federated/updates",
              has_quorum ? static_cast<double>(result->reports_K.size()) : 0.0);
  refused.set_metrics(metrics);
  metrics.set("federated/dropped", static_cast<double>(outcome.num_dropped));
  metrics.set("federated/late", static_cast<double>(outcome.num_late));
  metrics.set("federated/skipped_rounds", has_quorum ? 0 : 1);
  metrics.set("federated/clock_s", clock_s_);
  metrics.set("federated/client_lr", internal::client_lr(config_.local, round_ - 1));
  if (terms.flood.is_on) metrics.set("federated/flood_weight", terms.flood.weight);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  metrics.set("timing_s/step", seconds);
  metrics.set("federated/client_rounds_per_s",
              static_cast<double>(outcome.flights.size()) / seconds);
  return {};
}

Status Simulation::save(const std::string& path) const {
  Result<records::StateWriter> writer = records::StateWriter::create(path);
  if (!writer.ok()) return writer.status();
  GRADUS_RETURN_IF_ERROR(writer->add("round", round_));
  GRADUS_RETURN_IF_ERROR(writer->add("clock_s", clock_s_));
  GRADUS_RETURN_IF_ERROR(writer->add("num_jobs", num_jobs_));
  GRADUS_RETURN_IF_ERROR(writer->add_text("strategy", config_.strategy.name));
  GRADUS_RETURN_IF_ERROR(writer->add("model", model()));
  Status status;
  aggregator_->visit_state([&](const std::string& name, std::vector<float>& values) {
    if (status.ok()) status = writer->add("strategy/" + name, std::span<const float>(values));
  });
  GRADUS_RETURN_IF_ERROR(status);
  std::vector<int64_t> numbers;
  std::vector<double> times;
  for (const Flight& flight : under_way_) {
    numbers.insert(numbers.end(), {flight.client_id, flight.job, flight.version});
    times.push_back(flight.finish_s);
  }
  std::vector<int64_t> versions;
  for (const auto& [version, values] : older_models_) versions.push_back(version);
  GRADUS_RETURN_IF_ERROR(writer->add("flights", std::span<const int64_t>(numbers)));
  GRADUS_RETURN_IF_ERROR(writer->add("flight_times", std::span<const double>(times)));
  GRADUS_RETURN_IF_ERROR(writer->add("versions", std::span<const int64_t>(versions)));
  for (const auto& [version, values] : older_models_) {
    GRADUS_RETURN_IF_ERROR(
        writer->add(fmt::format("models/{}", version), std::span<const float>(values)));
  }
  return writer->finish();
}

Status Simulation::load(const std::string& path, const std::string& state_path) {
  const Result<records::StateReader> reader = records::StateReader::open(path);
  if (!reader.ok()) return reader.status();
  const Result<std::string> strategy = reader->read_text("strategy");
  if (!strategy.ok()) return strategy.status();
  if (*strategy != config_.strategy.name) {
    return invalid_argument("{}: written by strategy {}; this run has {}", path, *strategy,
                            config_.strategy.name);
  }
  const Result<int64_t> round = reader->read_i64("round");
  const Result<double> clock = reader->read_f64("clock_s");
  const Result<int64_t> jobs = reader->read_i64("num_jobs");
  for (const Status& status : {round.status(), clock.status(), jobs.status()}) {
    GRADUS_RETURN_IF_ERROR(status);
  }
  round_ = *round;
  clock_s_ = *clock;
  num_jobs_ = *jobs;
  GRADUS_RETURN_IF_ERROR(reader->read("model", std::span(model_.data(), static_cast<size_t>(p_))));
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
  std::vector<double> times(size_of("flight_times"));
  std::vector<int64_t> numbers(3 * times.size()), versions(size_of("versions"));
  GRADUS_RETURN_IF_ERROR(reader->read("flights", std::span(numbers)));
  GRADUS_RETURN_IF_ERROR(reader->read("flight_times", std::span(times)));
  GRADUS_RETURN_IF_ERROR(reader->read("versions", std::span(versions)));
  under_way_.clear();
  for (size_t i = 0; i < times.size(); ++i) {
    under_way_.push_back({numbers[3 * i], numbers[3 * i + 1], numbers[3 * i + 2], times[i]});
  }
  older_models_.clear();
  for (const int64_t version : versions) {
    std::vector<float>& values = older_models_[version];
    values.resize(static_cast<size_t>(p_));
    GRADUS_RETURN_IF_ERROR(reader->read(fmt::format("models/{}", version), std::span(values)));
  }
  // The states of the clients go back to those of this round.
  const int64_t state_size = this->state_size();
  GRADUS_RETURN_IF_ERROR(
      comm::agree(ranks_, ranks_.rank() == 0 && !state_path.empty()
                              ? internal::ClientStates::roll_back(state_path, state_size, round_)
                              : Status()));
  return {};
}

}  // namespace gradus::federated
