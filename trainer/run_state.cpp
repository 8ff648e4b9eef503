// SPDX-License-Identifier: Apache-2.0
#include "trainer/run_state.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/atomic_file.h"
#include "common/log.h"
#include "common/strings.h"
#include "data/wire/flow_messages.h"
#include "model/peft_adapter.h"
#include "records/signals.h"
#include "records/state_shards.h"
#include "rewards/score_pool.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/critic.h"
#include "trainer/step_clock.h"

namespace gradus::trainer {
namespace {

// So many updates in a row without a finite gradient end the run: one can be a freak of its batch.
constexpr int64_t kMaxNonFiniteInARow = 3;

// Folder of the running average inside a checkpoint.
constexpr const char* kAverageFolder = "/ema";

// Id of "<|endoftext|>" in byte_tokenizer_json().
constexpr int32_t kByteTokenizerEnd = 256;

Result<std::unique_ptr<data::Tokenizer>> new_tokenizer(const model::NewModelConfig& config,
                                                       std::string& json) {
  if (config.tokenizer == "char") {
    json = data::byte_tokenizer_json();
    return data::Tokenizer::from_json(json, "the byte tokenizer");
  }
  return data::Tokenizer::load(config.tokenizer);
}

Result<model::ModelConfig> new_config(const model::NewModelConfig& config,
                                      const data::Tokenizer& tokenizer) {
  model::ModelConfig result =
      model::to_model_config(config.architecture, int64_t{tokenizer.max_id()} + 1);
  if (config.tokenizer == "char") {
    result.eos_ids = {kByteTokenizerEnd};
    result.pad_id = kByteTokenizerEnd;
  } else {
    const Result<model::ModelConfig> source = model::load_model_config(config.tokenizer);
    if (!source.ok()) return source.status();
    result.eos_ids = source->eos_ids;
    result.pad_id = source->pad_id;
    result.bos_id = source->bos_id;
  }
  GRADUS_RETURN_IF_ERROR(model::validate(result));
  return result;
}

Result<std::unique_ptr<model::LoraAdapter>> open_adapter_of(const model::ModelSourceConfig& config,
                                                            const Policy& policy) {
  return model::open_adapter(config.adapter, config.path, policy.transformer->config(),
                             policy.transformer->parameters());
}

// The checkpoint's adapter into that of the policy.
Status load_adapter_checkpoint(const std::string& folder, Policy& policy) {
  model::LoraAdapter& adapter = *policy.transformer->adapter();
  const Result<model::LoraConfig> config = model::load_lora_config(folder);
  if (!config.ok()) return config.status();
  const model::LoraConfig& mine = adapter.config();
  if (config->rank != mine.rank || config->alpha != mine.alpha || config->rslora != mine.rslora ||
      config->targets != mine.targets) {
    return invalid_argument(
        "{}: the checkpoint's adapter (rank {}, alpha {}, targets {}) differs from that of this "
        "run (rank {}, alpha {}, targets {}); resume with the configuration that the run was "
        "started with",
        folder, config->rank, config->alpha, join(config->targets, ", "), mine.rank, mine.alpha,
        join(mine.targets, ", "));
  }
  GRADUS_RETURN_IF_ERROR(model::load_adapter(folder, policy.path, adapter, adapter.values()));
  policy.transformer->trainable_changed();
  return {};
}

// The checkpoint's weights into the policy.
Status load_weights_checkpoint(const std::string& folder, Policy& policy) {
  const Result<model::CheckpointReader> weights = model::CheckpointReader::open(folder);
  if (!weights.ok()) return weights.status();
  if (!(weights->config() == policy.transformer->config())) {
    return invalid_argument(
        "{}: the checkpoint's config.json differs from the model of this run; resume with the "
        "configuration that the run was started with",
        folder);
  }
  return model::load_parameters(*weights, policy.transformer->layout(),
                                policy.transformer->parameters());
}

}  // namespace

Result<model::ModelConfig> policy_config(const model::ModelSourceConfig& config, model::Head head) {
  const auto as_it_is = [&]() -> Result<model::ModelConfig> {
    if (!config.init) {
      GRADUS_RETURN_IF_ERROR(model::check_holds_model(config.path));
      return model::load_model_config(config.path);
    }
    std::string json;
    Result<std::unique_ptr<data::Tokenizer>> tokenizer = new_tokenizer(*config.init, json);
    if (!tokenizer.ok()) return tokenizer.status();
    return new_config(*config.init, **tokenizer);
  };
  Result<model::ModelConfig> result = as_it_is();
  if (!result.ok()) return result;
  if (head == model::Head::kScore) return model::with_score_head(std::move(*result));
  GRADUS_RETURN_IF_ERROR(model::require_head(*result, head, config.path));
  return result;
}

Result<Policy> load_policy(const model::ModelSourceConfig& config, uint64_t seed,
                           model::Head head) {
  Policy policy;
  if (config.init) {
    Result<std::unique_ptr<data::Tokenizer>> tokenizer =
        new_tokenizer(*config.init, policy.tokenizer_json);
    if (!tokenizer.ok()) return tokenizer.status();
    policy.tokenizer = std::move(*tokenizer);
    if (policy.tokenizer_json.empty()) policy.tokenizer_dir = config.init->tokenizer;
    const Result<model::ModelConfig> shape = new_config(*config.init, *policy.tokenizer);
    if (!shape.ok()) return shape.status();
    policy.transformer = std::make_unique<model::Transformer>(*shape);
    model::init_parameters(*shape, policy.transformer->layout(), seed,
                           config.init->initializer_range, policy.transformer->parameters());
  } else {
    GRADUS_RETURN_IF_ERROR(model::check_holds_model(config.path));
    Result<std::unique_ptr<model::Transformer>> transformer = model::Transformer::load(config.path);
    if (!transformer.ok()) return transformer.status();
    policy.transformer = std::move(*transformer);
    if (head == model::Head::kLanguage) {
      GRADUS_RETURN_IF_ERROR(model::require_head(policy.transformer->config(), head, config.path));
    }
    policy.path = config.path;
    if (!config.adapter.empty()) {
      const Result<std::unique_ptr<model::LoraAdapter>> adapter = open_adapter_of(config, policy);
      if (!adapter.ok()) return adapter.status();
      (*adapter)->merge(policy.transformer->parameters());
    }
    Result<std::unique_ptr<data::Tokenizer>> tokenizer = data::Tokenizer::load(config.path);
    if (!tokenizer.ok()) return tokenizer.status();
    policy.tokenizer = std::move(*tokenizer);
    policy.tokenizer_dir = config.path;
  }
  if (head != policy.transformer->config().head) {
    policy.transformer = model::Transformer::with_score_head(*policy.transformer, seed);
  }
  if (!policy.tokenizer_dir.empty()) {
    Result<data::ChatTemplate> chat_template = data::load_chat_template(policy.tokenizer_dir);
    if (chat_template.ok()) {
      policy.chat_template = std::move(*chat_template);
    } else if (chat_template.status().code() != StatusCode::kNotFound) {
      return chat_template.status();
    }
  }
  if (policy.tokenizer->max_id() >= policy.transformer->config().vocab_size) {
    return invalid_argument(
        "{}: the tokenizer has ids up to {}, the model an embedding of {} rows; they do not belong "
        "together",
        policy.tokenizer_dir, policy.tokenizer->max_id(), policy.transformer->config().vocab_size);
  }
  return policy;
}

Result<model::LoraConfig> trained_adapter(const model::ModelSourceConfig& config,
                                          const model::LoraConfig& lora,
                                          const model::ModelConfig& model) {
  Result<model::LoraConfig> trained = lora;
  if (!config.adapter.empty()) trained = model::load_lora_config(config.adapter);
  if (!trained.ok() || trained->rank == 0) return trained;
  const Result<model::LoraLayout> layout = model::lora_layout(model, *trained);
  if (!layout.ok()) {
    return config.adapter.empty() ? layout.status() : layout.status().with_prefix(config.adapter);
  }
  if (!config.adapter.empty()) {
    GRADUS_RETURN_IF_ERROR(
        model::check_adapter_shapes(config.adapter, config.path, *layout, trained->rank));
  }
  trained->targets = model::resolved_targets(trained->targets);
  return trained;
}

Result<Policy> load_policy_to_train(const model::ModelSourceConfig& config,
                                    const model::LoraConfig& lora, uint64_t seed,
                                    model::Head head) {
  model::ModelSourceConfig base = config;
  base.adapter.clear();
  Result<Policy> policy = load_policy(base, seed, head);
  if (!policy.ok() || (lora.rank == 0 && config.adapter.empty())) return policy;
  model::Transformer& transformer = *policy->transformer;
  Result<std::unique_ptr<model::LoraAdapter>> adapter =
      config.adapter.empty()
          ? model::LoraAdapter::create(transformer.config(), lora, transformer.parameters(),
                                       lora.seed ? static_cast<uint64_t>(*lora.seed) : seed)
          : open_adapter_of(config, *policy);
  if (!adapter.ok()) return adapter.status();
  transformer.set_adapter(std::move(*adapter));
  return policy;
}

Status write_policy_files(const model::ModelConfig& config, const std::string& tokenizer_json,
                          const std::string& dir, const model::WriteCheckpointOptions& options,
                          const model::WeightSource& read_weight) {
  GRADUS_RETURN_IF_ERROR(model::write_checkpoint(dir, config, read_weight, options));
  if (tokenizer_json.empty() || options.writer != 0) return {};
  GRADUS_RETURN_IF_ERROR(write_file_atomically(dir + "/tokenizer.json", tokenizer_json));
  const nlohmann::ordered_json tokenizer_config = {
      {"tokenizer_class", "PreTrainedTokenizerFast"},
      {"eos_token", "<|endoftext|>"},
      {"pad_token", "<|endoftext|>"},
      {"clean_up_tokenization_spaces", false},
      {"model_max_length", config.max_position_embeddings}};
  return write_file_atomically(dir + "/tokenizer_config.json", tokenizer_config.dump(1));
}

namespace {

// The average that a checkpoint holds, if the run keeps one.
Status load_average(const std::string& folder, const Policy& policy, Learner& learner) {
  const bool is_there = std::filesystem::exists(folder + kAverageFolder);
  if (learner.average() == nullptr && !is_there) return {};
  if (learner.average() == nullptr || !is_there) {
    return invalid_argument(
        "{}: the checkpoint has {} running average of the weights, but ema_decay is {}; resume "
        "with "
        "the ema_decay that the run was started with",
        folder, is_there ? "a" : "no", is_there ? "0" : "set");
  }
  if (const model::LoraAdapter* adapter = policy.transformer->adapter(); adapter != nullptr) {
    return model::load_adapter(folder + kAverageFolder, policy.path, *adapter, learner.average());
  }
  const Result<model::CheckpointReader> average =
      model::CheckpointReader::open(folder + kAverageFolder);
  if (!average.ok()) return average.status();
  GRADUS_RETURN_IF_ERROR(
      model::load_parameters(*average, policy.transformer->layout(), learner.average()));
  learner.average_was_loaded();
  return {};
}

// A model with its optimizer, policy or critic.
Status load_model(const std::string& folder, Policy& policy, Learner& learner) {
  const bool has_adapter = policy.transformer->adapter() != nullptr;
  if (has_adapter != model::is_adapter_dir(folder)) {
    return invalid_argument(
        "{}: the checkpoint holds {}, this run trains {} (lora.rank, model.adapter); resume with "
        "the configuration that the run was started with",
        folder, has_adapter ? "all weights" : "an adapter",
        has_adapter ? "an adapter" : "all weights");
  }
  GRADUS_RETURN_IF_ERROR(has_adapter ? load_adapter_checkpoint(folder, policy)
                                     : load_weights_checkpoint(folder, policy));
  const Result<records::StateShards> state = records::StateShards::open(folder, "optimizer");
  if (!state.ok()) return state.status();
  GRADUS_RETURN_IF_ERROR(learner.load(*state).with_prefix(folder));
  return load_average(folder, policy, learner);
}

}  // namespace

Status load_checkpoint(const std::string& folder, Policy& policy, Learner& learner,
                       RunPosition& position, Critic* critic) {
  const std::string critic_folder = folder + "/" + kCriticFolder;
  const bool has_critic = std::filesystem::exists(critic_folder);
  if (has_critic != (critic != nullptr)) {
    return invalid_argument(
        "{}: the checkpoint holds {} critic, this run trains {} (trainer.algorithm.advantage); "
        "resume with the configuration that the run was started with",
        folder, has_critic ? "a" : "no", has_critic ? "none" : "one");
  }
  GRADUS_RETURN_IF_ERROR(load_model(folder, policy, learner));
  if (critic != nullptr) {
    GRADUS_RETURN_IF_ERROR(load_model(critic_folder, critic->model(), critic->learner()));
  }
  const Result<records::StateShards> state = records::StateShards::open(folder, "optimizer");
  if (!state.ok()) return state.status();
  std::vector<std::pair<const char*, int64_t*>> counters = {
      {"run/step", &position.step},
      {"run/nonfinite_in_a_row", &position.nonfinite_in_a_row},
      {"run/mini_batches_done", &position.mini_batches_done}};
  if (critic != nullptr) {
    counters.emplace_back("run/critic_nonfinite_in_a_row", &position.critic_nonfinite_in_a_row);
  }
  for (const auto& [name, counter] : counters) {
    const Result<int64_t> value = state->read_i64(name);
    if (!value.ok()) return value.status();
    *counter = *value;
  }
  const std::pair<const char*, uint64_t*> places[] = {
      {"run/data_position", &position.data_position},
      {"run/policy_version", &position.policy_version}};
  for (const auto& [name, place] : places) {
    const Result<uint64_t> value = state->read_u64(name);
    if (!value.ok()) return value.status();
    *place = *value;
  }
  Result<std::string> ahead = state->read_text("run/ahead");
  if (!ahead.ok()) return ahead.status();
  position.ahead = std::move(*ahead);
  if (state->has("run/rubric")) {
    Result<std::string> rubric = state->read_text("run/rubric");
    if (!rubric.ok()) return rubric.status();
    position.rubric = std::move(*rubric);
  }
  const Result<double> kl_coef = state->read_f64("run/kl_coef");
  if (!kl_coef.ok()) return kl_coef.status();
  position.kl_coef = *kl_coef;
  const Result<std::string> hashes = state->read_text("run/version_hashes");
  if (!hashes.ok()) return hashes.status();
  position.version_hashes.clear();
  std::istringstream stream(*hashes);
  for (uint64_t version, hash; stream >> std::dec >> version >> std::hex >> hash;) {
    position.version_hashes[version] = hash;
  }
  return {};
}

Status skip_update(const Status& reason, int64_t& nonfinite_in_a_row, Metrics& metrics) {
  ++nonfinite_in_a_row;
  metrics.add("training/skipped_updates", 1);
  metrics.add("training/nonfinite_updates", 1);
  log_warn("trainer", "update skipped: " + reason.message(), {{"in_a_row", nonfinite_in_a_row}});
  if (nonfinite_in_a_row < kMaxNonFiniteInARow) return {};
  return {reason.code(), fmt::format("{}; this was the update number {} in a row", reason.message(),
                                     nonfinite_in_a_row)};
}

Status finish_update(const Learner& learner, const Result<UpdateStats>& stats,
                     RunPosition& position, Metrics& metrics) {
  const Status status = stats.status().with_prefix(fmt::format("step {}", position.step + 1));
  if (learner.non_finite()) return skip_update(status, position.nonfinite_in_a_row, metrics);
  GRADUS_RETURN_IF_ERROR(status);
  position.nonfinite_in_a_row = 0;
  ++position.policy_version;
  metrics.set("train/grad_norm", stats->grad_norm);
  return {};
}

std::optional<double> best_metric(const RunSettings& run,
                                  const std::map<std::string, double>& last_row) {
  const auto found = last_row.find(run.save_best_metric);
  return found == last_row.end() ? std::nullopt : std::optional(found->second);
}

Status run_steps(int64_t num_steps, int64_t checkpoint_every, const RunPosition& position,
                 comm::Communicator& communicator, records::RunDisplay& display,
                 const std::function<Status()>& step, const std::function<Status()>& save,
                 CheckpointSaver* saver, StepClock& clock) {
  int64_t saved_step = 0;
  while (position.step < num_steps) {
    const int64_t number = position.step + 1;  // what fails after the update has counted it already
    communicator.watch().set_step(number);
    const Status stepped = step();
    if (!stepped.ok()) {
      // The checkpoint in the making is worth more than its own error.
      const bool is_saved = saver != nullptr && saver->finish().ok() && saved_step > 0;
      if (is_saved) {
        display.print(fmt::format(
            "step {} failed; the checkpoint of step {} is there: continue from it with --resume",
            number, saved_step));
      }
      return stepped;
    }
    const bool is_last = position.step >= num_steps;
    const double wants_stop = records::stop_requested() ? 1.0 : 0.0;
    bool is_stopping = false;
    {
      const Phase phase(clock, "timing_s/exchange");
      if (saver != nullptr) GRADUS_RETURN_IF_ERROR(saver->check());
      is_stopping = comm::all_reduce_sum(communicator, {&wants_stop, 1})[0] > 0;
    }
    const bool is_due = checkpoint_every > 0 && position.step % checkpoint_every == 0;
    if (is_last || is_stopping || is_due) {
      GRADUS_RETURN_IF_ERROR(save());
      saved_step = position.step;
    }
    if (is_stopping && !is_last) {
      if (saver != nullptr) GRADUS_RETURN_IF_ERROR(saver->finish());
      display.print(fmt::format(
          "stopped after step {} of {}; a checkpoint was written: continue with --resume",
          position.step, num_steps));
      return {};
    }
  }
  return saver == nullptr ? Status() : saver->finish();
}

EvaluationSettings evaluation_settings(const EvalConfig& eval,
                                       const rollout::RolloutConfig& rollout,
                                       const model::ModelConfig& model, int64_t run_seed) {
  EvaluationSettings settings;
  settings.num_samples = eval.num_samples;
  settings.sampling = sampling_params(rollout, model);
  settings.sampling.greedy = eval.temperature == 0;
  if (!settings.sampling.greedy) settings.sampling.temperature = eval.temperature;
  settings.seed = static_cast<uint64_t>(run_seed) + 1;
  return settings;
}

rollout::EngineOptions engine_options(const rollout::RolloutConfig& config) {
  return {config.max_batch, config.kv_cache_mib << 20, config.prefill_chunk_tokens};
}

data::SamplingParams sampling_params(const rollout::RolloutConfig& config,
                                     const model::ModelConfig& model) {
  data::SamplingParams sampling;
  sampling.temperature = config.temperature;
  sampling.top_k = config.top_k;
  sampling.top_p = config.top_p;
  sampling.min_p = config.min_p;
  sampling.max_new_tokens = config.max_new_tokens;
  sampling.stop_ids = model.eos_ids;
  sampling.stop_texts = config.stop_texts;
  return sampling;
}

namespace {

// What the rewards made of the responses to a prompt, as JSON: task, right, failed, votes, tokens,
// truncated.
nlohmann::json outcome_of(const std::string& task, std::span<const data::Trajectory> samples,
                          std::span<const data::RewardBreakdown> scores) {
  int64_t num_correct = 0, num_failed = 0, tokens = 0, truncated = 0;
  std::map<std::string, data::AnswerVotes> votes;
  for (size_t i = 0; i < samples.size(); ++i) {
    tokens += static_cast<int64_t>(samples[i].behavior_logprobs.size());
    truncated += samples[i].finish_reason == data::FinishReason::kLength ? 1 : 0;
    // The first part that applies decides what is right.
    const std::vector<data::WeightedPart>& parts = scores[i].parts;
    const auto part =
        std::find_if(parts.begin(), parts.end(), [](const data::WeightedPart& candidate) {
          return candidate.status != data::RewardStatus::kNotApplicable;
        });
    if (part == parts.end() || data::is_failure(part->status)) {
      ++num_failed;
      continue;
    }
    const bool is_correct = part->raw >= 1.0;
    num_correct += is_correct ? 1 : 0;
    if (!part->answer.empty()) {
      ++votes[part->answer].num_votes;
      votes[part->answer].is_correct = is_correct;
    }
  }
  nlohmann::json answers = nlohmann::json::array();
  for (const auto& [answer, vote] : votes) answers.push_back({vote.num_votes, vote.is_correct});
  return {task, num_correct, num_failed, answers, tokens, truncated};
}

// Hands each response to the pool as it ends.
class ScoringSink : public rollout::TrajectorySink {
 public:
  ScoringSink(rewards::ScorePool& pool, std::span<data::Trajectory> trajectories, size_t group_size)
      : pool_(pool), trajectories_(trajectories), group_size_(group_size) {}
  void finished(size_t request_index, data::Trajectory trajectory) override {
    trajectories_[request_index] = std::move(trajectory);
    pool_.finished(request_index / group_size_, request_index % group_size_);
  }

 private:
  rewards::ScorePool& pool_;
  std::span<data::Trajectory> trajectories_;
  size_t group_size_;
};

}  // namespace

Result<Evaluation> evaluate(rollout::Engine& engine, const rewards::RewardSum& rewards,
                            std::span<const data::Prompt> prompts,
                            const EvaluationSettings& settings, comm::Communicator& communicator,
                            const std::function<void(int64_t)>& progress) {
  const size_t rank = static_cast<size_t>(communicator.rank());
  const size_t num_ranks = static_cast<size_t>(communicator.size());
  const std::span<const data::Prompt> mine =
      prompts.subspan(prompts.size() * rank / num_ranks,
                      prompts.size() * (rank + 1) / num_ranks - prompts.size() * rank / num_ranks);
  std::vector<data::RolloutRequest> requests;
  for (const data::Prompt& prompt : mine) {
    for (int32_t i = 0; i < settings.num_samples; ++i) {
      requests.push_back({{prompt.prompt_id, i},
                          prompt.token_ids,
                          settings.sampling,
                          rollout::request_seed(settings.seed, 0, prompt.prompt_id, i)});
    }
  }
  const size_t group_size = static_cast<size_t>(settings.num_samples);
  Metrics scoring;
  const auto outcomes_of = [&]() -> Result<std::string> {
    std::vector<data::Trajectory> trajectories(requests.size());
    std::vector<rewards::Group> groups;
    for (size_t p = 0; p < mine.size(); ++p) {
      groups.push_back({&mine[p], std::span(trajectories).subspan(p * group_size, group_size)});
    }
    rewards::ScorePool pool(rewards, rewards.num_threads());  // its threads look at the above
    pool.begin(groups);
    ScoringSink sink(pool, trajectories, group_size);
    GRADUS_RETURN_IF_ERROR(
        engine.run(requests, 0, 0, sink, nullptr, [&](int64_t finished, int64_t) {
          if (progress) progress(finished);
        }));
    const Result<std::vector<data::RewardBreakdown>> scores = pool.finish();
    if (!scores.ok()) return scores.status();
    pool.add_metrics("perf/eval_reward_", scoring);
    nlohmann::json all = nlohmann::json::array();
    for (size_t p = 0; p < mine.size(); ++p) {
      all.push_back(outcome_of(mine[p].task, groups[p].trajectories,
                               std::span(*scores).subspan(p * group_size, group_size)));
    }
    return all.dump();
  };
  Result<std::string> text = outcomes_of();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator, text.status()));
  Evaluation evaluation;
  for (const std::string& part : communicator.all_gather(data::encode(scoring))) {
    const Result<Metrics> theirs = data::decode_metrics(part);
    if (!theirs.ok()) return theirs.status();
    evaluation.scoring.merge(*theirs);
  }
  int64_t num_tokens = 0, num_truncated = 0, num_samples = 0;
  for (const std::string& part : communicator.all_gather(*text)) {
    for (const nlohmann::json& entry : nlohmann::json::parse(part)) {
      data::ProblemOutcome outcome;
      outcome.task = entry[0].get<std::string>();
      outcome.num_samples = settings.num_samples;
      outcome.num_correct = entry[1].get<int64_t>();
      outcome.num_failed = entry[2].get<int64_t>();
      for (const nlohmann::json& vote : entry[3]) {
        outcome.answers.push_back({vote[0].get<int64_t>(), vote[1].get<bool>()});
      }
      num_tokens += entry[4].get<int64_t>();
      num_truncated += entry[5].get<int64_t>();
      num_samples += settings.num_samples;
      evaluation.outcomes.push_back(std::move(outcome));
    }
  }
  if (num_samples > 0) {
    evaluation.mean_response_tokens =
        static_cast<double>(num_tokens) / static_cast<double>(num_samples);
    evaluation.truncated_fraction =
        static_cast<double>(num_truncated) / static_cast<double>(num_samples);
  }
  return evaluation;
}

void add_evaluation_metrics(const Evaluation& evaluation, int64_t num_samples, Metrics& metrics) {
  for (const data::TaskSummary& summary :
       data::summarize(evaluation.outcomes, {.ks = {num_samples}})) {
    const std::string core = fmt::format("val-core/{}/acc/", summary.task);
    const std::string mean = fmt::format("{}mean@{}", core, num_samples);
    metrics.set(mean, summary.accuracy);
    metrics.set(mean + "/low", summary.accuracy_interval.low);
    metrics.set(mean + "/high", summary.accuracy_interval.high);
    if (num_samples > 1 && !summary.at.empty()) {
      metrics.set(fmt::format("{}best@{}", core, num_samples), summary.at[0].pass);
      metrics.set(fmt::format("{}maj@{}", core, num_samples), summary.at[0].majority);
    }
    metrics.set(fmt::format("val-aux/{}/num_problems", summary.task),
                static_cast<double>(summary.num_problems));
  }
  metrics.merge(evaluation.scoring);
  metrics.set("val-aux/all/response_length/mean", evaluation.mean_response_tokens);
  metrics.set("val-aux/all/truncated_fraction", evaluation.truncated_fraction);
}

MemoryUse memory_use() {
  MemoryUse use;
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("VmRSS:")) use.resident = std::stoll(line.substr(6)) * 1024;
    if (line.starts_with("VmHWM:")) use.peak = std::stoll(line.substr(6)) * 1024;
  }
  return use;
}

}  // namespace gradus::trainer
