// SPDX-License-Identifier: Apache-2.0
#include "cli/run_setup.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <thread>

#include "common/log.h"
#include "common/parallel.h"
#include "data/preferences.h"
#include "data/row_source.h"
#include "kernels/gemm.h"
#include "records/signals.h"

namespace gradus::cli {
namespace {

// What the process takes beside the arrays of the plan: program, tokenizer, data rows, MPI.
constexpr int64_t kProcessBytes = 48ll << 20;

// A rank that finds the run stuck ends with this code, and before it does leaves the others the
// time to find it too.
constexpr int kExitStuck = 70;
constexpr auto kTimeToSpeak = std::chrono::milliseconds(1500);

Result<data::PromptBuilder> make_builder(const data::DataConfig& config,
                                         const trainer::Policy& policy) {
  if (config.prompt_format == data::PromptFormat::kChat && !policy.chat_template) {
    return invalid_argument(
        "data.prompt_format is chat, but the model has no chat template; set it to text");
  }
  return data::PromptBuilder(config, *policy.tokenizer, policy.chat_template);
}

data::OverlongPolicy overlong_policy(const data::DataConfig& config) {
  return config.overlong_prompts == data::OverlongPrompts::kFilter ? data::OverlongPolicy::kFilter
                                                                   : data::OverlongPolicy::kError;
}

// Prompts of the rows that fit, by row index.
Result<std::vector<std::pair<int64_t, data::Prompt>>> build_prompts(std::span<const data::Row> rows,
                                                                    const data::DataConfig& config,
                                                                    const trainer::Policy& policy,
                                                                    int64_t* num_dropped) {
  Result<data::PromptBuilder> builder = make_builder(config, policy);
  if (!builder.ok()) return builder.status();
  std::vector<data::Prompt> prompts(rows.size());
  std::vector<Status> statuses(rows.size());
  parallel_for(static_cast<int64_t>(rows.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const size_t index = static_cast<size_t>(i);
      Result<data::Prompt> prompt = builder->build(rows[index], static_cast<uint64_t>(i));
      if (prompt.ok()) {
        prompts[index] = std::move(*prompt);
      } else {
        statuses[index] = prompt.status();
      }
    }
  });
  for (const Status& status : statuses) GRADUS_RETURN_IF_ERROR(status);
  size_t next = 0;  // split_overlong asks in order of rows
  const Result<data::OverlongSplit> split = data::split_overlong(
      rows,
      [&](const data::Row&) -> Result<int64_t> {
        return static_cast<int64_t>(prompts[next++].token_ids.size());
      },
      config.max_prompt_tokens, overlong_policy(config));
  if (!split.ok()) return split.status();
  if (num_dropped != nullptr) *num_dropped = split->num_dropped;
  std::vector<std::pair<int64_t, data::Prompt>> kept;
  for (const int64_t row : split->kept) {
    kept.emplace_back(row, std::move(prompts[static_cast<size_t>(row)]));
  }
  return kept;
}

// A response to learn, with the end token behind it.
Result<std::vector<int32_t>> response_ids(const data::Row& row, const std::string& text,
                                          size_t prompt_length, const trainer::Policy& policy,
                                          const model::ModelConfig& model) {
  Result<std::vector<int32_t>> response = policy.tokenizer->encode(text);
  if (!response.ok()) return response.status().with_prefix(data::place_of(row));
  if (!model.eos_ids.empty()) response->push_back(model.eos_ids[0]);
  const int64_t length = static_cast<int64_t>(prompt_length + response->size());
  if (length > model.max_position_embeddings) {
    return invalid_argument(
        "{}: prompt and response have {} tokens, the model's context {}; shorten the row",
        data::place_of(row), length, model.max_position_embeddings);
  }
  return response;
}

}  // namespace

Result<std::unique_ptr<comm::Communicator>> start_ranks() {
  Result<std::unique_ptr<comm::Communicator>> communicator = comm::make_communicator();
  if (!communicator.ok()) return communicator;
  cpu_set_t set;
  const int allowed = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const int on_host = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const int share = std::max(1, on_host / (*communicator)->local_size());
  set_num_threads(std::clamp(share, 1, std::max(1, allowed)));
  return communicator;
}

Result<std::unique_ptr<comm::Watchdog>> watch_ranks(comm::Communicator& ranks,
                                                    const trainer::ClusterConfig& config,
                                                    int64_t num_needed) {
  if (ranks.size() == 1) return std::unique_ptr<comm::Watchdog>();
  const int rank = ranks.rank();
  const auto end_the_process = [rank](const std::string& report) {
    std::istringstream lines(kStuckMessage + report);
    for (std::string line; std::getline(lines, line);) {
      fmt::print(stderr, "gradus: error (rank {}): {}\n", rank, line);
    }
    // Which ends the job: the others are about to say the same.
    std::this_thread::sleep_for(kTimeToSpeak);
    std::_Exit(kExitStuck);
  };
  return comm::Watchdog::start(ranks,
                               {.stuck_after_s = config.stuck_after_s,
                                .may_lose = [num_needed](int lost) { return lost >= num_needed; },
                                .on_stuck = end_the_process});
}

void leave_the_dead(const comm::Communicator& ranks) {
  if (ranks.watch().num_lost() == 0) return;
  std::fflush(stdout);
  flush_logs();
  std::_Exit(0);
}

Result<rewards::RewardSum> make_rewards(const RunConfig& config) {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  return rewards::RewardSum::create(config.reward, registry);
}

Result<std::vector<data::Prompt>> load_prompts(const data::DataConfig& config,
                                               const data::SourceConfig& source,
                                               const trainer::Policy& policy,
                                               const rewards::RewardSum& rewards, int64_t max_rows,
                                               int64_t* num_dropped) {
  const Result<std::vector<data::Row>> rows = data::load_source(source, {}, max_rows);
  if (!rows.ok()) return rows.status();
  Result<std::vector<std::pair<int64_t, data::Prompt>>> built =
      build_prompts(*rows, config, policy, num_dropped);
  if (!built.ok()) return built.status();
  std::vector<data::Prompt> prompts;
  std::vector<std::string> bad;  // every row whose ground truth no reward can use
  for (auto& [row, prompt] : *built) {
    const Status status =
        rewards.check_prompt(prompt).with_prefix(data::place_of((*rows)[static_cast<size_t>(row)]));
    if (!status.ok()) bad.push_back(status.message());
    prompts.push_back(std::move(prompt));
  }
  if (bad.empty()) return prompts;
  constexpr size_t kMaxShown = 50;
  const size_t num_bad = bad.size();
  if (num_bad > kMaxShown) {
    bad.resize(kMaxShown);
    bad.push_back(fmt::format("and {} more rows", num_bad - kMaxShown));
  }
  return Status(StatusCode::kInvalidArgument, join(bad, "\n"));
}

Result<std::vector<trainer::SftExample>> load_examples(const data::DataConfig& config,
                                                       const data::SourceConfig& source,
                                                       const trainer::Policy& policy,
                                                       const model::ModelConfig& model,
                                                       int64_t max_rows) {
  data::DatasetOptions options;
  options.require_ground_truth = false;
  options.require_response = true;
  const Result<std::vector<data::Row>> rows = data::load_source(source, options, max_rows);
  if (!rows.ok()) return rows.status();
  Result<std::vector<std::pair<int64_t, data::Prompt>>> built =
      build_prompts(*rows, config, policy, nullptr);
  if (!built.ok()) return built.status();
  std::vector<trainer::SftExample> examples;
  for (auto& [row_index, prompt] : *built) {
    const data::Row& row = (*rows)[static_cast<size_t>(row_index)];
    Result<std::vector<int32_t>> response =
        response_ids(row, row.response, prompt.token_ids.size(), policy, model);
    if (!response.ok()) return response.status();
    examples.push_back({std::move(prompt.token_ids), std::move(*response)});
  }
  return examples;
}

Result<std::vector<trainer::PreferencePair>> load_pairs(const data::DataConfig& config,
                                                        const data::SourceConfig& source,
                                                        const trainer::Policy& policy,
                                                        const model::ModelConfig& model,
                                                        int64_t max_rows, int64_t* num_dropped) {
  const Result<std::vector<data::PreferenceRow>> rows =
      data::load_preference_source(source, max_rows);
  if (!rows.ok()) return rows.status();
  std::vector<data::Row> prompt_rows;
  for (const data::PreferenceRow& row : *rows) prompt_rows.push_back(row.prompt);
  Result<std::vector<std::pair<int64_t, data::Prompt>>> built =
      build_prompts(prompt_rows, config, policy, num_dropped);
  if (!built.ok()) return built.status();
  std::vector<trainer::PreferencePair> pairs;
  for (auto& [row_index, prompt] : *built) {
    const data::PreferenceRow& row = (*rows)[static_cast<size_t>(row_index)];
    const size_t length = prompt.token_ids.size();
    Result<std::vector<int32_t>> chosen =
        response_ids(row.prompt, row.chosen, length, policy, model);
    if (!chosen.ok()) return chosen.status();
    Result<std::vector<int32_t>> rejected =
        response_ids(row.prompt, row.rejected, length, policy, model);
    if (!rejected.ok()) return rejected.status();
    pairs.push_back(
        {std::move(prompt.token_ids), std::move(*chosen), std::move(*rejected), row.margin});
  }
  return pairs;
}

std::string run_folder_of(const RunConfig& config) {
  return config.run.dir + "/" + config.run.name;
}

Result<OpenedRun> open_run(const LoadedConfig<RunConfig>& loaded, bool resume,
                           comm::Communicator& communicator) {
  const RunConfig& config = loaded.value;
  const records::RunPaths paths(run_folder_of(config));
  OpenedRun run;
  const auto open_on_rank_0 = [&]() -> Status {
    Result<records::RunFolder> folder = records::RunFolder::open(
        paths.folder(), resume ? records::RunStart::kResume : records::RunStart::kFresh);
    if (!folder.ok()) return folder.status();
    run.folder = std::make_unique<records::RunFolder>(std::move(*folder));
    GRADUS_RETURN_IF_ERROR(run.folder->write_config(resolved_yaml(loaded)));
    run.checkpoints = std::make_unique<records::CheckpointStore>(
        paths.checkpoints(),
        records::CheckpointPolicy{.keep_last = config.run.keep_checkpoints,
                                  .best_metric = config.run.save_best_metric},
        [](const std::string& message) { log_warn("records", message); });
    std::optional<int64_t> last_step;
    if (resume) {
      const std::optional<records::Checkpoint> latest = run.checkpoints->latest();
      if (latest) run.resume_from = latest->folder;
      run.resume_step = latest ? latest->step : 0;
      GRADUS_RETURN_IF_ERROR(run.folder->cut_after(run.resume_step));
      last_step = latest ? latest->step : -1;  // without one, step 0 is evaluated again as well
    }
    Result<records::MetricsLog> metrics = records::MetricsLog::open(paths, last_step);
    if (!metrics.ok()) return metrics.status();
    run.metrics = std::make_unique<records::MetricsLog>(std::move(*metrics));
    return {};
  };
  const Status status = communicator.rank() == 0 ? open_on_rank_0() : Status();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator, status));
  run.saver = std::make_unique<trainer::CheckpointSaver>(run.checkpoints.get(), communicator);
  run.resume_from = communicator.all_gather(run.resume_from)[0];
  run.resume_step = std::stoll(communicator.all_gather(std::to_string(run.resume_step))[0]);
  GRADUS_RETURN_IF_ERROR(
      comm::agree(communicator,
                  configure_logging({communicator.rank(), config.run.log_level, paths.folder()})));
  records::install_stop_signals();
  return run;
}

namespace {

// Floats of the largest part that is summed and gathered at a time (trainer::WeightShards::Unit).
int64_t largest_unit(const model::ParameterLayout& layout) {
  std::vector<int64_t> begins = {0};
  for (const model::LayerPlaces& layer : layout.layers) begins.push_back(layer.attention_norm);
  begins.push_back(layout.final_norm);
  begins.push_back(layout.size);
  int64_t largest = 0;
  for (size_t i = 0; i + 1 < begins.size(); ++i) {
    largest = std::max(largest, begins[i + 1] - begins[i]);
  }
  return largest;
}

// How much of a model's training memory each rank has.
struct Sharing {
  int64_t num_sums = 1;   // gradients of blocks that are held at a time
  int64_t pack_rows = 0;  // packed tokens of a pass
  int64_t rank_rows = 0;  // of all passes of an update on a rank
  // Weights are read as a whole, not layer by layer: sampled by, or sent.
  bool reads_weights = false;
};

// Of a model that is trained, policy or critic; `whose` stands before the names.
void add_trained_model(const std::string& whose, const model::ModelConfig& model,
                       const PlannedWork& work, const trainer::OptimizerConfig& optimizer,
                       const trainer::BackwardConfig& backward, const Sharing& sharing,
                       std::vector<MemoryPart>& parts) {
  constexpr int64_t kFloat = sizeof(float);
  const auto add = [&](const std::string& name, int64_t bytes) {
    parts.push_back({whose + name, bytes});
  };
  const model::ParameterLayout all = model::parameter_layout(model);
  const int64_t weights = all.size * kFloat;
  model::WeightLayout trained = all;
  if (work.adapter.rank > 0) trained = model::lora_layout(model, work.adapter).value();
  // With several ranks what zero_stage says is shared out; of the rest a layer is there at a time.
  const int64_t stage = work.num_ranks > 1 ? backward.zero_stage : 0;
  const int64_t num_owners = stage > 0 ? work.num_ranks : 1;
  const int64_t moments = trainer::Optimizer::planned_bytes(trained, optimizer) / num_owners;
  const int64_t average =
      trainer::Optimizer::planned_average_bytes(trained, optimizer) / num_owners;
  const int64_t unit = largest_unit(all) * kFloat;
  const int64_t gradients = stage >= 2
                                ? trained.size * kFloat / num_owners + sharing.num_sums * unit
                                : sharing.num_sums * trained.size * kFloat;
  if (stage == 3) {
    // This layer, the next one, and the messages that it comes in and goes out by; where weights
    // are read as a whole (loading, sampling, sending) there is no gradient.
    const int64_t updating = weights / num_owners + 4 * unit + gradients;
    const int64_t reading = sharing.reads_weights ? weights : weights - moments;
    add("weights and gradients", std::max(updating, reading));
  } else {
    add("weights", weights);
  }
  if (work.adapter.rank > 0) {
    const model::LoraLayout layout = model::lora_layout(model, work.adapter).value();
    add("adapter", layout.size * kFloat);
    add("matrices under the adapter", layout.base_size * kFloat);
  }
  add(optimizer.optimizer == trainer::OptimizerKind::kMuon ? "Muon and AdamW moments"
                                                           : "AdamW moments",
      moments);
  if (stage < 3) add("gradients", gradients);
  add(fmt::format("activations of {} tokens", sharing.pack_rows),
      model::TrainingPass::planned_bytes(model, sharing.pack_rows, backward.gradient_checkpointing,
                                         true));
  if (stage >= 2 && sharing.rank_rows > sharing.pack_rows) {
    const int64_t kept = sharing.rank_rows - sharing.pack_rows;
    add(fmt::format("what is kept of {} tokens", kept),
        model::TrainingPass::kept_bytes(model, kept, backward.gradient_checkpointing));
  }
  if (average > 0) add("average of the weights", average);
  const int64_t state = trained.size * kFloat + (moments + average) * num_owners;
  add("checkpoint being written", state / work.num_ranks);
}

// Cache and logits of the engine, and the models that score what it samples.
void add_sampling(const model::ModelConfig& model, const PlannedWork& work,
                  const rollout::RolloutConfig& rollout, std::vector<MemoryPart>& parts) {
  constexpr int64_t kFloat = sizeof(float);
  if (work.reward_bytes > 0) parts.push_back({"reward models", work.reward_bytes});
  const auto pages = [](int64_t tokens) {
    return (tokens + kernels::kPageTokens - 1) / kernels::kPageTokens;
  };
  // Each sequence has its own last pages; prompts are shared by a group in training, not in
  // evaluation.
  const int64_t own_pages = pages(rollout.max_new_tokens) + 1;
  const int64_t prompt_pages = pages(work.longest_prompt);
  const int64_t group_size = work.has_evaluation ? 1 : rollout.num_samples;
  const int64_t num_prompts = (rollout.max_batch + group_size - 1) / group_size;
  const int64_t wanted = rollout.max_batch * own_pages + num_prompts * prompt_pages;
  const int64_t held = rollout::num_cache_pages(model, rollout.kv_cache_mib << 20);
  parts.push_back(
      {"key-value cache in use", std::min(wanted, held) * model::KvCache::bytes_per_page(model)});
  parts.push_back({"logits of a decoding step",
                   rollout.max_batch * kernels::padded(model.vocab_size) * kFloat});
}

}  // namespace

std::vector<MemoryPart> plan_sampling_memory(const model::ModelConfig& model,
                                             const PlannedWork& work,
                                             const rollout::RolloutConfig& rollout) {
  std::vector<MemoryPart> parts = {
      {"program and data", kProcessBytes},
      {"weights", model::parameter_layout(model).size * static_cast<int64_t>(sizeof(float))}};
  add_sampling(model, work, rollout, parts);
  return parts;
}

std::vector<MemoryPart> plan_memory(const model::ModelConfig& model, const PlannedWork& work,
                                    const trainer::OptimizerConfig& optimizer,
                                    const trainer::BackwardConfig& backward,
                                    const rollout::RolloutConfig* rollout) {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t own_blocks = std::max<int64_t>(1, backward.reduction_blocks / work.num_ranks);
  // Sums of 1, 2, 4, ... blocks that wait for their neighbours, and the one in the making.
  int64_t num_sums = 1;
  while ((int64_t{1} << num_sums) <= own_blocks) ++num_sums;
  int64_t num_blocks = backward.reduction_blocks;
  if (!backward.layout_invariant) {
    num_sums = 1;
    num_blocks = work.num_ranks;
  }
  if (work.num_ranks > 1) num_sums = std::max<int64_t>(num_sums, 2);
  const int64_t block_groups = (work.groups_per_update + num_blocks - 1) / num_blocks;
  const int64_t pack_rows = std::min(block_groups * work.rows_per_group,
                                     std::max(backward.micro_batch_tokens, work.rows_per_group));
  Sharing sharing = {.num_sums = num_sums,
                     .pack_rows = pack_rows,
                     .rank_rows = block_groups * work.rows_per_group *
                                  std::max<int64_t>(1, num_blocks / work.num_ranks),
                     .reads_weights = rollout != nullptr || work.sends_weights};
  std::vector<MemoryPart> parts = {{"program and data", kProcessBytes}};
  add_trained_model("", model, work, optimizer, backward, sharing, parts);
  if (work.critic) {
    sharing.reads_weights = false;
    add_trained_model("critic: ", *work.critic, work, work.critic_optimizer, backward, sharing,
                      parts);
  }
  if (work.has_reference) {
    parts.push_back({"initial model", model::parameter_layout(model).size * kFloat});
    parts.push_back(
        {"its activations", model::TrainingPass::planned_bytes(model, pack_rows, false, false)});
  }
  if (rollout != nullptr) add_sampling(model, work, *rollout, parts);
  return parts;
}

}  // namespace gradus::cli
