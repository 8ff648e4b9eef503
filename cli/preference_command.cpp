// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cli/command.h"
#include "cli/run_command.h"
#include "cli/run_setup.h"
#include "trainer/preference_trainer.h"

namespace gradus::cli {
namespace {

model::Head head_of(RunKind kind) {
  return kind == RunKind::kDpo ? model::Head::kLanguage : model::Head::kScore;
}

const trainer::PreferenceConfig& loop_of(const RunConfig& config, RunKind kind) {
  return kind == RunKind::kDpo ? config.dpo.loop : config.reward_model.loop;
}

std::vector<MemoryPart> plan_preferences(const RunConfig& config, RunKind kind,
                                         const model::ModelConfig& model,
                                         const model::LoraConfig& adapter,
                                         const std::vector<trainer::PreferencePair>& pairs,
                                         int num_ranks) {
  size_t longest = 0;
  for (const trainer::PreferencePair& pair : pairs) {
    longest = std::max(longest, pair.prompt.size() + pair.chosen.size() + pair.rejected.size());
  }
  const trainer::PreferenceConfig& loop = loop_of(config, kind);
  const PlannedWork work = {
      .num_ranks = num_ranks,
      .groups_per_update = loop.batch_pairs,
      .rows_per_group = static_cast<int64_t>(longest),
      .adapter = adapter,
      // While its log-probs are computed, the policy's weights stand aside.
      .has_reference = kind == RunKind::kDpo && !config.dpo.reference_path.empty()};
  return plan_memory(model, work, loop.optimizer, loop.backward, nullptr);
}

// The pairs of data.train and, if they are asked for, of data.eval.
Status load_all(const RunConfig& config, const trainer::Policy& policy,
                const model::ModelConfig& model, int64_t max_rows, trainer::PreferenceSetup& setup,
                int64_t& num_dropped) {
  Result<std::vector<trainer::PreferencePair>> train =
      load_pairs(config.data, config.data.train, policy, model, max_rows, &num_dropped);
  if (!train.ok()) return train.status();
  setup.train_pairs = std::move(*train);
  if (!config.data.eval.is_given() || !config.eval.is_asked_for()) return {};
  Result<std::vector<trainer::PreferencePair>> eval =
      load_pairs(config.data, config.data.eval, policy, model, max_rows, nullptr);
  if (!eval.ok()) return eval.status();
  setup.eval_pairs = std::move(*eval);
  return {};
}

// Checks config, the first rows and shapes, and prints what a run would do.
Status dry_run(const RunConfig& config, RunKind kind, int num_ranks) {
  const Result<model::ModelConfig> model = trainer::policy_config(config.model, head_of(kind));
  if (!model.ok()) return model.status();
  const Result<model::LoraConfig> adapter =
      trainer::trained_adapter(config.model, config.lora, *model);
  if (!adapter.ok()) return adapter.status();
  const Result<trainer::Policy> policy = policy_without_weights(config);
  if (!policy.ok()) return policy.status();
  trainer::PreferenceSetup setup;
  int64_t num_dropped = 0;
  GRADUS_RETURN_IF_ERROR(load_all(config, *policy, *model, kDryRunRows, setup, num_dropped));
  print_model(config, *model);
  print_adapter(*adapter, *model);
  fmt::print("data       {} pairs looked at, {} with a prompt too long\n",
             static_cast<int64_t>(setup.train_pairs.size()) + num_dropped, num_dropped);
  const trainer::PreferenceConfig& loop = loop_of(config, kind);
  fmt::print("run        {} steps of {} pairs into {}\nmemory\n", loop.num_steps, loop.batch_pairs,
             run_folder_of(config));
  print_memory(plan_preferences(config, kind, *model, *adapter, setup.train_pairs, num_ranks));
  fmt::print("the configuration is sound; nothing was trained (--dry-run)\n");
  return {};
}

Status run_on_pairs(const RunArguments& arguments, RunKind kind) {
  Result<std::unique_ptr<comm::Communicator>> communicator = start_ranks();
  if (!communicator.ok()) return communicator.status();
  comm::Communicator& ranks = **communicator;
  Result<LoadedConfig<RunConfig>> loaded =
      load_run_config(arguments.config->path, arguments.config->overrides, kind, ranks.size());
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  const auto watchdog = watch_ranks(ranks, config.cluster, ranks.size());
  if (!watchdog.ok()) return watchdog.status();
  if (arguments.dry_run) return ranks.rank() == 0 ? dry_run(config, kind, ranks.size()) : Status();

  Result<trainer::Policy> policy = trainer::load_policy_to_train(
      config.model, config.lora, static_cast<uint64_t>(config.run.seed), head_of(kind));
  if (!policy.ok()) return policy.status();
  const model::ModelConfig& model = policy->transformer->config();
  trainer::PreferenceSetup setup;
  if (kind == RunKind::kDpo) {
    setup.objective = config.dpo;
  } else {
    setup.objective = config.reward_model;
  }
  setup.eval = config.eval;
  setup.run = config.run;
  setup.shuffle = config.data.shuffle;
  setup.data_seed = static_cast<uint64_t>(config.data.seed);
  int64_t num_dropped = 0;
  GRADUS_RETURN_IF_ERROR(load_all(config, *policy, model, 0, setup, num_dropped));
  Result<OpenedRun> run = open_run(*loaded, arguments.resume, ranks);
  if (!run.ok()) return run.status();
  records::RunDisplay display({.num_steps = loop_of(config, kind).num_steps,
                               .first_step = run->resume_step + 1,
                               .columns = records::preference_columns(),
                               .is_quiet = ranks.rank() != 0});
  const int64_t planned = total_bytes(
      plan_preferences(config, kind, model, adapter_of(*policy), setup.train_pairs, ranks.size()));
  display.print(fmt::format(
      "{}: {:.2f}M weights, {} pairs ({} with too long a prompt were left out), {}, planned peak "
      "memory {} per rank",
      config.run.name, static_cast<double>(model::num_parameters(model)) / 1e6,
      setup.train_pairs.size(), num_dropped, ranks_text(ranks), mebibytes(planned)));
  trainer::PreferenceTrainer trainer(std::move(setup), *policy, ranks, run->records(), display);
  GRADUS_RETURN_IF_ERROR(trainer.prepare());
  if (!run->resume_from.empty()) {
    GRADUS_RETURN_IF_ERROR(trainer.resume(run->resume_from));
    display.print(
        fmt::format("resumed from {} after step {}", run->resume_from, trainer.position().step));
  }
  GRADUS_RETURN_IF_ERROR(trainer.run());
  display.print(peak_text(planned));
  display.print(fmt::format("{0}{1}, its {2} in {1}/checkpoints/latest", kEndMessage,
                            run_folder_of(config),
                            adapter_of(*policy).rank > 0 ? "adapter"
                            : kind == RunKind::kDpo      ? "model"
                                                         : "reward model"));
  return {};
}

}  // namespace

void add_preference_commands(CLI::App& app, Action& action) {
  add_run_command(
      app, action, "dpo",
      "Direct preference optimisation on rows {\"prompt\", \"chosen\", \"rejected\"}",
      [](const RunArguments& arguments) { return run_on_pairs(arguments, RunKind::kDpo); });
  add_run_command(
      app, action, "reward-model",
      "Train a Bradley-Terry reward model on rows {\"prompt\", \"chosen\", \"rejected\"}",
      [](const RunArguments& arguments) { return run_on_pairs(arguments, RunKind::kRewardModel); });
}

}  // namespace gradus::cli
