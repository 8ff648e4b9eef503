// SPDX-License-Identifier: Apache-2.0
#include "trainer/harr_trainer.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/atomic_file.h"
#include "common/rng.h"
#include "records/state_shards.h"
#include "rewards/answer_match.h"
#include "trainer/algorithm.h"
#include "trainer/internal/query_training.h"

namespace gradus::trainer {
namespace {

constexpr char kStem[] = "optimizer";

retriever::QueryTrainerOptions trainer_options(const HarrSetup& setup) {
  retriever::QueryTrainerOptions options =
      query_trainer_options(setup.harr.optimizer, setup.harr.clip_eps);
  options.lora_rank = setup.lora.rank;
  options.lora_scale = setup.lora.rank > 0 ? setup.lora.scale() : 1;
  options.lora_seed = static_cast<uint64_t>(setup.lora.seed.value_or(setup.run.seed));
  return options;
}

std::unique_ptr<AdvantageEstimator> make_advantages(HarrAdvantage advantage) {
  AdvantageRegistry registry("advantage");
  register_builtin_advantages(registry);
  AlgorithmConfig config;
  config.advantage = advantage == HarrAdvantage::kGrpo ? "grpo" : "rloo";
  return std::move(registry.create(config.advantage, config)).value();
}

// How many of the searches that count found their passage.
struct HitCount {
  double hits = 0, searches = 0;
  void add(bool is_hit) {
    hits += is_hit ? 1 : 0;
    searches += 1;
  }
  void add(const HitCount& other) {
    hits += other.hits;
    searches += other.searches;
  }
};

}  // namespace

// Sent between ranks as it is.
struct HarrTrainer::Outcome {
  double em = 0, f1 = 0, documents = 0;
  HitCount all, elliptical;
  double reward(HarrReward kind) const { return kind == HarrReward::kEm ? em : f1; }
};

struct HarrTrainer::Evaluated {
  double em = 0, f1 = 0;
  int64_t num_searches = 0;
  uint64_t hits = 0, elliptical = 0;  // a bit for each search
};

HarrTrainer::HarrTrainer(HarrSetup setup, retriever::Embedder& embedder,
                         const retriever::IndexFolder& index,
                         const retriever::ScriptedReader& reader, comm::Communicator& communicator,
                         RunRecords records, records::CheckpointStore* store,
                         records::RunDisplay& display)
    : setup_(std::move(setup)),
      embedder_(embedder),
      index_(index),
      reader_(reader),
      communicator_(communicator),
      records_(records),
      store_(store),
      display_(display),
      trainer_(embedder, trainer_options(setup_)),
      advantages_(make_advantages(setup_.harr.advantage)),
      order_(static_cast<int64_t>(setup_.train_questions.size()), setup_.data_seed,
             setup_.shuffle) {}

Status HarrTrainer::resume(const std::string& checkpoint_folder) {
  const auto read = [&]() -> Status {
    auto saved = retriever::Embedder::load(checkpoint_folder);
    if (!saved.ok()) return saved.status();
    if (!have_one_shape((*saved)->encoder().config(), embedder_.encoder().config())) {
      return invalid_argument(
          "{}: its encoder is of another shape than harr.encoder; resume with the configuration "
          "that the run was started with",
          checkpoint_folder);
    }
    const Result<records::StateShards> state = records::StateShards::open(checkpoint_folder, kStem);
    if (!state.ok()) return state.status();
    const bool has_adapter = setup_.lora.rank > 0;
    if (state->has("lora/0") != has_adapter) {
      return invalid_argument(
          "{}: the checkpoint holds {}, this run trains {} (lora.rank); resume with the "
          "configuration that the run was started with",
          checkpoint_folder, has_adapter ? "all weights" : "an adapter",
          has_adapter ? "an adapter" : "all weights");
    }
    // Under an adapter stand the weights that the run began with.
    if (!has_adapter) std::swap((*saved)->encoder().weights(), embedder_.encoder().weights());
    GRADUS_RETURN_IF_ERROR(read_query_state(*state, trainer_));
    int64_t num_updates = 0;
    for (const auto& [name, counter] :
         {std::pair("run/step", &position_.step), std::pair("run/num_updates", &num_updates),
          std::pair("run/nonfinite_in_a_row", &position_.nonfinite_in_a_row)}) {
      const Result<int64_t> value = state->read_i64(name);
      if (!value.ok()) return value.status();
      *counter = *value;
    }
    trainer_.state_was_set(num_updates);
    if (has_adapter && embedder_.encoder().weights_hash() != (*saved)->encoder().weights_hash()) {
      return data_loss(
          "{}: its adapter on harr.encoder does not give its weights; was the run started from "
          "another encoder?",
          checkpoint_folder);
    }
    const Result<uint64_t> data_position = state->read_u64("run/data_position");
    if (!data_position.ok()) return data_position.status();
    position_.data_position = *data_position;
    position_.policy_version = static_cast<uint64_t>(num_updates);
    return {};
  };
  return comm::agree(communicator_, read());
}

Status HarrTrainer::run() {
  if (position_.step >= setup_.harr.num_steps && setup_.harr.num_steps > 0) {
    display_.print(
        fmt::format("the run has made all of its {} steps; raise harr.num_steps to train on",
                    setup_.harr.num_steps));
  }
  if (setup_.eval.before_training && position_.step == 0 && !setup_.eval_questions.empty()) {
    Metrics metrics;
    GRADUS_RETURN_IF_ERROR(evaluate(metrics));
    for (const auto& [name, seconds] : clock_.lap()) metrics.set(name, seconds);
    Status status;
    if (records_.metrics != nullptr) status = records_.metrics->write(0, metrics.values());
    GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  }
  return run_steps(
      setup_.harr.num_steps, setup_.run.checkpoint_every, position_, communicator_, display_,
      [this] { return step(); }, [this] { return save(); }, nullptr, clock_);
}

HarrTrainer::Outcome HarrTrainer::outcome_of(
    const retriever::SearchQuestion& question,
    const retriever::RetrievalTrajectory& trajectory) const {
  Outcome outcome;
  const rewards::AnswerScores scores =
      rewards::score_answer(trajectory.answer, rewards::normalised_golds(question.ground_truth));
  outcome.em = scores.em;
  outcome.f1 = scores.f1;
  for (size_t h = 0; h < trajectory.turns.size(); ++h) {
    const bool is_hit = std::ranges::find(trajectory.turns[h].documents, question.passages[h]) !=
                        trajectory.turns[h].documents.end();
    outcome.all.add(is_hit);
    if (question.searches[h].is_elliptical) outcome.elliptical.add(is_hit);
  }
  return outcome;
}

Result<std::vector<retriever::RetrievalStep>> HarrTrainer::sample(Metrics& metrics) {
  const HarrConfig& harr = setup_.harr;
  const int64_t num_questions = harr.questions_per_step, group = harr.group_size;
  const int64_t blocks_per_rank = retriever::kReductionBlocks / communicator_.size();
  const int64_t first_block = communicator_.rank() * blocks_per_rank;
  const auto begin_of = [&](int64_t block) {
    return block * num_questions / retriever::kReductionBlocks;
  };
  std::vector<const retriever::SearchQuestion*> questions;
  std::vector<int64_t> block_of;
  std::vector<uint64_t> seeds;
  for (int64_t block = first_block; block < first_block + blocks_per_rank; ++block) {
    for (int64_t q = begin_of(block); q < begin_of(block + 1); ++q) {
      const int64_t row = order_.row_at(position_.data_position + static_cast<uint64_t>(q));
      questions.push_back(&setup_.train_questions[static_cast<size_t>(row)]);
      block_of.push_back(block);
      for (int64_t g = 0; g < group; ++g) {
        seeds.push_back(
            hash64({static_cast<uint64_t>(setup_.run.seed), static_cast<uint64_t>(position_.step),
                    static_cast<uint64_t>(q), static_cast<uint64_t>(g)}));
      }
    }
  }
  const double temperature = temperature_at(harr, position_.step);
  Result<std::vector<retriever::RetrievalTrajectory>> trajectories = [&] {
    const Phase phase(clock_, "timing_s/gen");
    return retriever::sample_retrievals(embedder_, index_, reader_, questions, group, seeds,
                                        {.with_history = harr.history,
                                         .pool_size = harr.pool_size,
                                         .list_length = harr.list_length,
                                         .temperature = temperature});
  }();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, trajectories.status()));

  std::vector<Outcome> outcomes;
  std::vector<ScoredSequence> scored;
  for (size_t i = 0; i < trajectories->size(); ++i) {
    const size_t question = i / static_cast<size_t>(group);
    outcomes.push_back(outcome_of(*questions[question], (*trajectories)[i]));
    scored.push_back({.group = static_cast<int64_t>(question),
                      .reward = outcomes.back().reward(harr.reward),
                      .num_tokens = 1});
  }
  const Advantages advantages = advantages_->estimate(scored);
  std::vector<retriever::RetrievalStep> steps;
  for (size_t i = 0; i < trajectories->size(); ++i) {
    // What earned as much as its siblings says nothing.
    if (advantages.tokens[i] == 0) continue;
    retriever::RetrievalTrajectory& trajectory = (*trajectories)[i];
    for (retriever::RetrievalStep& step : trajectory.steps) {
      step.advantage = advantages.tokens[i];
      step.weight = 1.0 / (static_cast<double>(num_questions * group) *
                           static_cast<double>(trajectory.steps.size()));
      step.block = block_of[i / static_cast<size_t>(group)];
      steps.push_back(std::move(step));
    }
  }

  outcomes = comm::all_gather_values(communicator_, outcomes);
  Outcome sum;
  double reward = 0, num_mixed = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    sum.em += outcomes[i].em;
    sum.f1 += outcomes[i].f1;
    sum.all.add(outcomes[i].all);
    sum.elliptical.add(outcomes[i].elliptical);
    reward += outcomes[i].reward(harr.reward);
    const size_t first = i - i % static_cast<size_t>(group);
    if (i + 1 == first + static_cast<size_t>(group)) {
      bool is_mixed = false;
      for (size_t j = first; j < i; ++j) {
        is_mixed |= outcomes[j].reward(harr.reward) != outcomes[i].reward(harr.reward);
      }
      num_mixed += is_mixed ? 1 : 0;
    }
  }
  const double count = static_cast<double>(outcomes.size());
  metrics.set("harr/reward", reward / count);
  metrics.set("harr/em", sum.em / count);
  metrics.set("harr/f1", sum.f1 / count);
  metrics.set("harr/searches", sum.all.searches / count);
  metrics.set("harr/recall", sum.all.hits / sum.all.searches);
  if (sum.elliptical.searches > 0) {
    metrics.set("harr/recall_elliptical", sum.elliptical.hits / sum.elliptical.searches);
  }
  metrics.set("harr/mixed_groups", num_mixed / static_cast<double>(num_questions));
  metrics.set("harr/temperature", temperature);
  return steps;
}

Status HarrTrainer::step() {
  Metrics metrics;
  const Result<std::vector<retriever::RetrievalStep>> steps = sample(metrics);
  GRADUS_RETURN_IF_ERROR(steps.status());
  position_.data_position += static_cast<uint64_t>(setup_.harr.questions_per_step);
  const double learning_rate =
      learning_rate_at(setup_.harr.optimizer, trainer_.num_updates(), setup_.harr.num_steps);
  trainer_.set_learning_rate(learning_rate);
  const std::string before = clock_.enter("timing_s/update_actor");
  const Result<retriever::QueryUpdate> update =
      trainer_.update(*steps, index_.vectors(), &communicator_);
  clock_.enter(before);
  const std::string place = fmt::format("step {}", position_.step + 1);
  GRADUS_RETURN_IF_ERROR(update.status().with_prefix(place));
  ++position_.step;
  metrics.set("actor/lr", learning_rate);
  metrics.set("harr/steps", static_cast<double>(update->num_steps));
  if (update->skipped) {
    GRADUS_RETURN_IF_ERROR(
        skip_update(invalid_argument("{}: the norm of the gradient is not finite", place),
                    position_.nonfinite_in_a_row, metrics));
  } else if (update->num_steps == 0) {
    metrics.add("training/skipped_updates", 1);
  } else {
    position_.nonfinite_in_a_row = 0;
    ++position_.policy_version;
    metrics.set("harr/objective", update->objective);
    metrics.set("harr/max_abs_log_ratio", update->max_abs_log_ratio);
    metrics.set("harr/clip_fraction", update->clip_fraction);
    metrics.set("harr/effective_documents", update->effective_documents);
    metrics.set("actor/grad_norm", update->grad_norm);
  }
  const int64_t every = setup_.eval.every_steps;
  const bool is_last = position_.step == setup_.harr.num_steps;
  if (!setup_.eval_questions.empty() && every > 0 && (is_last || position_.step % every == 0)) {
    GRADUS_RETURN_IF_ERROR(evaluate(metrics));
  }
  add_lap(clock_, metrics);
  return write_row(metrics);
}

Status HarrTrainer::evaluate(Metrics& metrics) {
  const Phase phase(clock_, "timing_s/testing");
  size_t count = setup_.eval_questions.size();
  if (setup_.eval.max_rows) count = std::min(count, static_cast<size_t>(*setup_.eval.max_rows));
  const size_t rank = static_cast<size_t>(communicator_.rank());
  const size_t num_ranks = static_cast<size_t>(communicator_.size());
  std::vector<const retriever::SearchQuestion*> mine;
  for (size_t i = count * rank / num_ranks; i < count * (rank + 1) / num_ranks; ++i) {
    mine.push_back(&setup_.eval_questions[i]);
  }
  const std::vector<uint64_t> seeds(mine.size(), 0);  // a greedy search draws nothing
  display_.begin_phase("evaluation", 0, "searches");
  const Result<std::vector<retriever::RetrievalTrajectory>> trajectories =
      retriever::sample_retrievals(embedder_, index_, reader_, mine, 1, seeds,
                                   {.with_history = setup_.harr.history,
                                    .pool_size = setup_.harr.pool_size,
                                    .list_length = setup_.harr.list_length,
                                    .temperature = setup_.harr.temperature,
                                    .greedy = true},
                                   [this](int64_t done) { display_.advance_phase(done); });
  display_.end_phase();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, trajectories.status()));
  std::vector<Evaluated> all;
  for (size_t i = 0; i < mine.size(); ++i) {
    const retriever::RetrievalTrajectory& trajectory = (*trajectories)[i];
    const rewards::AnswerScores scores =
        rewards::score_answer(trajectory.answer, rewards::normalised_golds(mine[i]->ground_truth));
    Evaluated one = {scores.em, scores.f1, static_cast<int64_t>(trajectory.turns.size())};
    for (size_t h = 0; h < trajectory.turns.size(); ++h) {
      const std::vector<int64_t>& documents = trajectory.turns[h].documents;
      const bool is_hit = std::ranges::find(documents, mine[i]->passages[h]) != documents.end();
      one.hits |= uint64_t{is_hit} << h;
      one.elliptical |= uint64_t{mine[i]->searches[h].is_elliptical} << h;
    }
    all.push_back(one);
  }
  all = comm::all_gather_values(communicator_, all);
  double em = 0, f1 = 0, chains = 0;
  HitCount hits, elliptical;
  for (const Evaluated& one : all) {
    em += one.em;
    f1 += one.f1;
    bool is_chain = true;
    for (int64_t h = 0; h < one.num_searches; ++h) {
      const bool is_hit = (one.hits >> h & 1) != 0;
      hits.add(is_hit);
      if ((one.elliptical >> h & 1) != 0) elliptical.add(is_hit);
      is_chain = is_chain && is_hit;
    }
    chains += is_chain ? 1 : 0;
  }
  const double total = static_cast<double>(all.size());
  metrics.set("val/harr/em", em / total);
  metrics.set("val/harr/f1", f1 / total);
  metrics.set("val/harr/recall", hits.hits / hits.searches);
  metrics.set("val/harr/chain_recall", chains / total);
  if (elliptical.searches > 0) {
    metrics.set("val/harr/recall_elliptical", elliptical.hits / elliptical.searches);
  }
  return comm::agree(communicator_, write_evaluation(all));
}

Status HarrTrainer::write_evaluation(const std::vector<Evaluated>& all) const {
  if (records_.folder == nullptr) return {};
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    nlohmann::ordered_json row = {{"question", i}, {"em", all[i].em}, {"f1", all[i].f1}};
    for (int64_t h = 0; h < all[i].num_searches; ++h) {
      row["found"].push_back((all[i].hits >> h & 1) != 0);
    }
    text += row.dump() + "\n";
  }
  const std::string folder = records_.folder->paths().folder() + "/evaluations";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return unavailable("{}: cannot be made: {}", folder, error.message());
  return write_file_atomically(fmt::format("{}/step_{}.jsonl", folder, position_.step), text);
}

Status HarrTrainer::write_row(Metrics& metrics) {
  metrics.set("perf/cpu_memory_peak_gb", static_cast<double>(memory_use().peak) / 1073741824.0);
  metrics.set("training/global_step", static_cast<double>(position_.step));
  metrics.set("training/epoch", static_cast<double>(position_.data_position) /
                                    static_cast<double>(order_.num_rows()));
  last_metrics_ = metrics.values();
  const Phase phase(clock_, "timing_s/write_metrics");
  Status status;
  if (records_.metrics != nullptr) {
    status = records_.metrics->write(position_.step, metrics.values());
    display_.finish_step(position_.step, metrics.values());
  }
  return comm::agree(communicator_, status);
}

int64_t HarrTrainer::weights_bytes() {
  int64_t count = 0;
  embedder_.encoder().weights().for_each([&](float*, int64_t size, bool) { count += size; });
  return count * static_cast<int64_t>(sizeof(float));
}

// All ranks hold the same, so rank 0 writes it.
Status HarrTrainer::save() {
  const Phase phase(clock_, "timing_s/save_checkpoint");
  const auto write = [&]() -> Status {
    if (store_ == nullptr) return {};
    GRADUS_RETURN_IF_ERROR(records_.metrics->sync());
    records::StateSnapshot state;
    add_query_state(trainer_, state);
    state.add("run/step", position_.step);
    state.add("run/num_updates", trainer_.num_updates());
    state.add("run/nonfinite_in_a_row", position_.nonfinite_in_a_row);
    state.add("run/data_position", position_.data_position);
    Result<records::CheckpointDraft> draft =
        store_->begin(position_.step, state.num_bytes() + weights_bytes());
    if (!draft.ok()) return draft.status();
    GRADUS_RETURN_IF_ERROR(embedder_.save(draft->folder()));
    GRADUS_RETURN_IF_ERROR(state.write(records::state_shard_path(draft->folder(), kStem, 0, 1)));
    return store_->commit(std::move(*draft), best_metric(setup_.run, last_metrics_));
  };
  return comm::agree(communicator_, write());
}

}  // namespace gradus::trainer
