// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/command.h"
#include "cli/device_plan.h"
#include "cli/replay.h"
#include "cli/run_command.h"
#include "cli/run_setup.h"
#include "cli/step_time.h"
#include "common/log.h"
#include "data/row_source.h"
#include "records/signals.h"
#include "rollout/cpu_engine.h"
#include "rollout/tool_box.h"
#include "trainer/critic.h"
#include "trainer/federated_rl_trainer.h"

namespace gradus::cli {

int64_t longest_of(const std::vector<data::Prompt>& prompts) {
  size_t longest = 0;
  for (const data::Prompt& prompt : prompts) longest = std::max(longest, prompt.token_ids.size());
  return static_cast<int64_t>(longest);
}

Result<PlannedWork> work_of_training(const RunConfig& config, const model::ModelConfig& model,
                                     const model::LoraConfig& adapter,
                                     const rewards::RewardSum& rewards, int64_t longest_prompt,
                                     int64_t num_ranks) {
  const bool is_colocated = config.cluster.mode == trainer::ClusterMode::kColocated;
  PlannedWork work = {
      .num_ranks = config.trainer.federated ? 1 : trainer::num_trainers(config.cluster, num_ranks),
      .longest_prompt = longest_prompt,
      .groups_per_update = config.trainer.prompts_per_step / config.trainer.mini_batches,
      .rows_per_group =
          longest_prompt + config.rollout.num_samples * (config.rollout.max_new_tokens - 1),
      .adapter = adapter,
      .has_reference = config.trainer.algorithm.kl.coef != 0,
      .has_evaluation = config.eval.is_asked_for(),
      .sends_weights = !is_colocated,
      .reward_bytes = rewards.planned_bytes()};
  if (config.trainer.critic) {
    Result<model::ModelConfig> critic =
        trainer::critic_model_config(*config.trainer.critic, config.model, model);
    if (!critic.ok()) return critic.status();
    work.critic = std::move(*critic);
    work.critic_optimizer = config.trainer.critic->optimizer;
  }
  return work;
}

Result<std::vector<MemoryPart>> plan_training(const RunConfig& config,
                                              const model::ModelConfig& model,
                                              const model::LoraConfig& adapter,
                                              const rewards::RewardSum& rewards,
                                              int64_t longest_prompt, int64_t num_ranks) {
  const Result<PlannedWork> planned =
      work_of_training(config, model, adapter, rewards, longest_prompt, num_ranks);
  if (!planned.ok()) return planned.status();
  const PlannedWork& work = *planned;
  if (config.run.device == trainer::RunDevice::kCuda) return plan_host_memory(model, work);
  const bool is_colocated = config.cluster.mode == trainer::ClusterMode::kColocated;
  std::vector<MemoryPart> parts =
      plan_memory(model, work, config.trainer.optimizer, config.trainer.backward,
                  is_colocated || work.has_evaluation ? &config.rollout : nullptr);
  if (const auto& federated = config.trainer.federated) {
    const int64_t clients =
        federated->per_round > 0 ? federated->per_round : federated->num_clients;
    const Result<trainer::FederatedPayloadKind> payload =
        trainer::resolved_payload(federated->payload, adapter.rank > 0);
    if (!payload.ok()) return payload.status();
    int64_t trained = model::num_parameters(model);
    if (adapter.rank > 0) {
      Result<model::LoraLayout> layout = model::lora_layout(model, adapter);
      if (!layout.ok()) return layout.status();
      trained = *payload == trainer::FederatedPayloadKind::kStacking ? layout->base_size
                : *payload == trainer::FederatedPayloadKind::kFedEx
                    ? layout->base_size + layout->size
                    : layout->size;
    }
    const int64_t vector = trained * int64_t{sizeof(float)};
    parts.push_back({"updates of clients", (clients + num_ranks - 1) / num_ranks * vector});
    parts.push_back({"global weights and the server's step", 3 * vector});
  }
  return parts;
}

std::vector<MemoryPart> plan_sampling(const RunConfig& config, const model::ModelConfig& model,
                                      int64_t longest_prompt) {
  return plan_sampling_memory(model, {.longest_prompt = longest_prompt}, config.rollout);
}

namespace {

// Whether prompts and their responses fit the model's context and, each alone, the cache.
Status check_lengths(const std::vector<data::Prompt>& prompts,
                     const rollout::RolloutConfig& rollout, const model::ModelConfig& model) {
  const int64_t longest = longest_of(prompts);
  if (longest + rollout.max_new_tokens > model.max_position_embeddings) {
    return invalid_argument(
        "the longest prompt has {} tokens; with rollout.max_new_tokens ({}) that is beyond the "
        "model's context of {}; lower data.max_prompt_tokens or rollout.max_new_tokens",
        longest, rollout.max_new_tokens, model.max_position_embeddings);
  }
  const int64_t held = rollout::num_cache_pages(model, rollout.kv_cache_mib << 20);
  for (const data::Prompt& prompt : prompts) {
    const int64_t length = static_cast<int64_t>(prompt.token_ids.size());
    const int64_t needed = rollout::num_request_pages(model, length, rollout.max_new_tokens);
    if (needed <= held) continue;
    return invalid_argument(
        "a prompt of {} tokens with rollout.max_new_tokens ({}) needs {} pages of the key-value "
        "cache, which has {}; raise rollout.kv_cache_mib ({}) to at least {}",
        length, rollout.max_new_tokens, needed, held, rollout.kv_cache_mib,
        rollout::cache_mib_for(model, needed));
  }
  return {};
}

PlannedWork work_of_fine_tuning(const RunConfig& config, const model::LoraConfig& adapter,
                                const std::vector<trainer::SftExample>& examples,
                                const std::vector<trainer::SftExample>& held_out, int num_ranks) {
  size_t longest = 0;
  for (const std::vector<trainer::SftExample>* part : {&examples, &held_out}) {
    for (const trainer::SftExample& example : *part) {
      longest = std::max(longest, example.prompt.size() + example.response.size() - 1);
    }
  }
  return {.num_ranks = num_ranks,
          .groups_per_update = config.sft.batch_rows,
          .rows_per_group = static_cast<int64_t>(longest),
          .adapter = adapter};
}

std::vector<MemoryPart> plan_fine_tuning(const RunConfig& config, const model::ModelConfig& model,
                                         const PlannedWork& work) {
  if (config.run.device == trainer::RunDevice::kCuda) return plan_host_memory(model, work);
  return plan_memory(model, work, config.sft.optimizer, config.sft.backward, nullptr);
}

// Checks config, the first rows, shapes and divisibility, and prints what a run would do.
Status dry_run(const LoadedConfig<RunConfig>& loaded, int num_ranks) {
  const RunConfig& config = loaded.value;
  const Result<model::ModelConfig> model = trainer::policy_config(config.model);
  if (!model.ok()) return model.status();
  GRADUS_RETURN_IF_ERROR(check_device_model(config, *model));
  const Result<model::LoraConfig> adapter =
      trainer::trained_adapter(config.model, config.lora, *model);
  if (!adapter.ok()) return adapter.status();
  Result<trainer::Policy> policy = policy_without_weights(config);
  if (!policy.ok()) return policy.status();
  const Result<rewards::RewardSum> rewards = make_rewards(config);
  if (!rewards.ok()) return rewards.status();
  int64_t num_dropped = 0;
  const Result<std::vector<data::Prompt>> prompts =
      load_prompts(config.data, config.data.train, *policy, *rewards, kDryRunRows, &num_dropped);
  if (!prompts.ok()) return prompts.status();
  if (config.data.eval.is_given()) {
    const Result<std::vector<data::Prompt>> eval =
        load_prompts(config.data, config.data.eval, *policy, *rewards, kDryRunRows, nullptr);
    if (!eval.ok()) return eval.status();
    GRADUS_RETURN_IF_ERROR(check_lengths(*eval, config.rollout, *model).with_prefix("data.eval"));
  }
  GRADUS_RETURN_IF_ERROR(check_lengths(*prompts, config.rollout, *model));
  const int64_t longest = longest_of(*prompts);
  const Result<std::vector<MemoryPart>> memory =
      plan_training(config, *model, *adapter, *rewards, longest, num_ranks);
  if (!memory.ok()) return memory.status();
  print_model(config, *model);
  print_adapter(*adapter, *model);
  fmt::print("data       {} rows looked at, {} too long, longest prompt {} tokens\n",
             static_cast<int64_t>(prompts->size()) + num_dropped, num_dropped, longest);
  fmt::print("step       {} prompts x {} responses of up to {} tokens on {} rank{}, {} update{}\n",
             config.trainer.prompts_per_step, config.rollout.num_samples,
             config.rollout.max_new_tokens, num_ranks, num_ranks == 1 ? "" : "s",
             config.trainer.mini_batches, config.trainer.mini_batches == 1 ? "" : "s");
  fmt::print("run        {} steps of {} into {}\nmemory\n", config.trainer.num_steps,
             config.trainer.algorithm.name, run_folder_of(config));
  print_memory(*memory);
  const Result<PlannedWork> work =
      work_of_training(config, *model, *adapter, *rewards, longest, num_ranks);
  if (!work.ok()) return work.status();
  GRADUS_RETURN_IF_ERROR(
      dry_run_device(config, *model, *work, config.trainer.backward, &config.rollout, "trainer"));
  fmt::print("the configuration is sound; nothing was trained (--dry-run)\n");
  return {};
}

// The examples of data.eval, whose loss supervised training follows; none without data.eval.
Result<std::vector<trainer::SftExample>> load_held_out(const RunConfig& config,
                                                       const trainer::Policy& policy,
                                                       const model::ModelConfig& model,
                                                       int64_t max_rows) {
  if (!config.data.eval.is_given()) return std::vector<trainer::SftExample>();
  Result<std::vector<trainer::SftExample>> examples =
      load_examples(config.data, config.data.eval, policy, model, max_rows);
  if (!examples.ok()) return examples.status().with_prefix("data.eval");
  return examples;
}

// The same for `gradus sft`.
Status sft_dry_run(const RunConfig& config, int num_ranks) {
  const Result<model::ModelConfig> model = trainer::policy_config(config.model);
  if (!model.ok()) return model.status();
  GRADUS_RETURN_IF_ERROR(check_device_model(config, *model));
  const Result<model::LoraConfig> adapter =
      trainer::trained_adapter(config.model, config.lora, *model);
  if (!adapter.ok()) return adapter.status();
  Result<trainer::Policy> policy = policy_without_weights(config);
  if (!policy.ok()) return policy.status();
  const Result<std::vector<trainer::SftExample>> examples =
      load_examples(config.data, config.data.train, *policy, *model, kDryRunRows);
  if (!examples.ok()) return examples.status();
  const Result<std::vector<trainer::SftExample>> held_out =
      load_held_out(config, *policy, *model, kDryRunRows);
  if (!held_out.ok()) return held_out.status();
  print_model(config, *model);
  print_adapter(*adapter, *model);
  fmt::print("data       {} examples looked at, {} held out\n", examples->size(), held_out->size());
  fmt::print("run        {} steps of {} rows into {}\nmemory\n", config.sft.num_steps,
             config.sft.batch_rows, run_folder_of(config));
  const PlannedWork work = work_of_fine_tuning(config, *adapter, *examples, *held_out, num_ranks);
  print_memory(plan_fine_tuning(config, *model, work));
  GRADUS_RETURN_IF_ERROR(dry_run_device(config, *model, work, config.sft.backward, nullptr, "sft"));
  fmt::print("the configuration is sound; nothing was trained (--dry-run)\n");
  return {};
}

void print_evaluations(const std::vector<trainer::Evaluation>& evaluations,
                       records::RunDisplay& display) {
  const auto describe = [&](const char* when, const trainer::Evaluation& evaluation) {
    for (const data::TaskSummary& summary : data::summarize(evaluation.outcomes, {})) {
      display.print(
          fmt::format("{} training: {} pass@1 {:.3f} (95 % interval {:.3f} to {:.3f}, {} problems)",
                      when, summary.task, summary.accuracy, summary.accuracy_interval.low,
                      summary.accuracy_interval.high, summary.num_problems));
    }
  };
  if (evaluations.size() >= 2) describe("before", evaluations.front());
  if (!evaluations.empty()) describe("after", evaluations.back());
}

// What a rank does that only samples.
Status sample_for_trainers(const RunConfig& config, trainer::Policy& policy,
                           const rewards::RewardSum& rewards, const trainer::RlSetup& setup,
                           comm::Communicator& ranks) {
  GRADUS_RETURN_IF_ERROR(configure_logging({ranks.rank(), config.run.log_level, ""}));
  records::install_stop_signals();  // the trainers finish the step and then say so
  rollout::CpuEngine engine(*policy.transformer, policy.tokenizer.get(),
                            trainer::engine_options(config.rollout), setup.tools);
  trainer::RolloutWorker worker(trainer::rollout_setup(config.trainer, config.rollout), engine,
                                rewards, setup.train_prompts);
  const int64_t num_trainers = trainer::num_trainers(config.cluster, ranks.size());
  GRADUS_RETURN_IF_ERROR(
      trainer::serve_rollouts(ranks, static_cast<int>(num_trainers), policy, worker));
  leave_the_dead(ranks);
  return {};
}

// The trainers' way to ranks that sample for them; null if they sample themselves.
std::unique_ptr<trainer::RolloutClient> rollout_client(const trainer::ClusterConfig& config,
                                                       const model::ParameterLayout& layout,
                                                       comm::Communicator& ranks,
                                                       comm::Communicator& trainers) {
  if (config.mode == trainer::ClusterMode::kColocated) return nullptr;
  std::vector<comm::TensorRange> tensors;
  for (const model::ParameterPlace& place : layout.places) {
    tensors.push_back({place.offset, place.size});
  }
  return std::make_unique<trainer::RolloutClient>(
      ranks, trainers, std::move(tensors),
      comm::WeightChannelOptions{config.weight_bucket_mib << 20, config.send_only_changed});
}

// trainer.federated.
Status train_clients(trainer::RlSetup setup, trainer::Policy& policy,
                     const rewards::RewardSum& rewards, const trainer::Algorithm& algorithm,
                     comm::Communicator& ranks, OpenedRun& run, records::RunDisplay& display,
                     const std::string& folder) {
  const trainer::FederatedRlConfig config = *setup.trainer.federated;
  Result<std::unique_ptr<trainer::FederatedRlTrainer>> trainer = trainer::FederatedRlTrainer::make(
      std::move(setup), policy, rewards, algorithm, ranks, run.records(), display);
  if (!trainer.ok()) return trainer.status();
  display.print(fmt::format("{}: {} clients, {} a round, {} local steps, payload {}",
                            config.strategy.name, config.num_clients,
                            config.per_round > 0 ? config.per_round : config.num_clients,
                            config.local_steps, trainer::name_of((*trainer)->payload())));
  if (!run.resume_from.empty()) {
    GRADUS_RETURN_IF_ERROR((*trainer)->resume(run.resume_from));
    display.print(fmt::format("resumed from {} after round {}", run.resume_from,
                              (*trainer)->position().step));
  }
  GRADUS_RETURN_IF_ERROR((*trainer)->run());
  print_evaluations((*trainer)->evaluations(), display);
  display.print(fmt::format("{0}{1}; gradus report {1} makes a page of it", kEndMessage, folder));
  return {};
}

Status train(const RunArguments& arguments) {
  Result<std::unique_ptr<comm::Communicator>> communicator = start_ranks();
  if (!communicator.ok()) return communicator.status();
  comm::Communicator& ranks = **communicator;
  Result<LoadedConfig<RunConfig>> loaded = load_run_config(
      arguments.config->path, arguments.config->overrides, RunKind::kTrain, ranks.size());
  if (!loaded.ok()) return loaded.status();
  if (loaded->value.harr) return train_retriever(arguments, *loaded, ranks);
  const RunConfig& config = loaded->value;
  const int64_t num_trainers = trainer::num_trainers(config.cluster, ranks.size());
  const auto watchdog = watch_ranks(ranks, config.cluster, num_trainers);
  if (!watchdog.ok()) return watchdog.status();
  if (config.trainer.federated &&
      !(arguments.dump_rollouts.empty() && arguments.load_rollouts.empty())) {
    return invalid_argument(
        "{} with trainer.federated: a round's clients sample and train in turns; leave one of the "
        "two out",
        arguments.dump_rollouts.empty() ? "--load-rollouts" : "--dump-rollouts");
  }
  if (arguments.dry_run) return ranks.rank() == 0 ? dry_run(*loaded, ranks.size()) : Status();

  Result<rewards::RewardSum> rewards = make_rewards(config);
  if (!rewards.ok()) return rewards.status();
  GRADUS_RETURN_IF_ERROR(rewards->load());
  const Result<trainer::Algorithm> algorithm =
      trainer::make_algorithm(config.trainer.algorithm, config.rollout.max_new_tokens);
  if (!algorithm.ok()) return algorithm.status();
  Result<trainer::Policy> policy = trainer::load_policy_to_train(
      config.model, config.lora, static_cast<uint64_t>(config.run.seed));
  if (!policy.ok()) return policy.status();
  trainer::RlSetup setup;
  setup.trainer = config.trainer;
  setup.rollout = config.rollout;
  setup.eval = config.eval;
  setup.run = config.run;
  setup.cluster = config.cluster;
  setup.shuffle = config.data.shuffle;
  setup.data_seed = static_cast<uint64_t>(config.data.seed);
  setup.dump_rollouts = arguments.dump_rollouts;
  Replay replay;
  if (!arguments.load_rollouts.empty()) {
    Result<Replay> found = find_replay(arguments.load_rollouts);
    GRADUS_RETURN_IF_ERROR(comm::agree(ranks, found.status()));
    replay = std::move(*found);
    setup.load_rollouts = replay.folder;
    setup.last_loaded_step = replay.last_step;
  }
  std::unique_ptr<trainer::JointRetriever> retriever;
  if (config.joint) {
    if (!(arguments.dump_rollouts.empty() && arguments.load_rollouts.empty())) {
      return invalid_argument(
          "--load-rollouts, --dump-rollouts: the configuration has a section joint, whose "
          "retriever "
          "is trained on fresh searches alone; drop the option");
    }
    for (const rollout::ToolConfig& tool : config.rollout.tools) {
      if (tool.name != "search") continue;
      Result<std::unique_ptr<trainer::JointRetriever>> made =
          trainer::JointRetriever::create(*config.joint, tool);
      GRADUS_RETURN_IF_ERROR(comm::agree(ranks, made.status()));
      retriever = std::move(*made);
    }
    setup.retriever = retriever.get();
  }
  const auto tools = rollout::ToolBox::create(
      config.rollout, *policy->tokenizer,
      [&](const rollout::ToolConfig& tool) -> std::unique_ptr<const rollout::Tool> {
        return retriever != nullptr && tool.name == "search" ? retriever->tool() : nullptr;
      });
  GRADUS_RETURN_IF_ERROR(comm::agree(ranks, tools.status()));
  setup.tools = tools->get();
  int64_t num_dropped = 0;
  Result<std::vector<data::Prompt>> prompts =
      load_prompts(config.data, config.data.train, *policy, *rewards, 0, &num_dropped);
  if (!prompts.ok()) return prompts.status();
  GRADUS_RETURN_IF_ERROR(check_lengths(*prompts, config.rollout, policy->transformer->config()));
  setup.train_prompts = std::move(*prompts);
  if (config.data.eval.is_given() && config.eval.is_asked_for()) {
    Result<std::vector<data::Prompt>> eval =
        load_prompts(config.data, config.data.eval, *policy, *rewards, 0, nullptr);
    if (!eval.ok()) return eval.status();
    GRADUS_RETURN_IF_ERROR(check_lengths(*eval, config.rollout, policy->transformer->config())
                               .with_prefix("data.eval"));
    setup.eval_prompts = std::move(*eval);
  }
  const std::unique_ptr<comm::Communicator> trainers =
      ranks.subset(0, static_cast<int>(num_trainers));
  if (trainers == nullptr) return sample_for_trainers(config, *policy, *rewards, setup, ranks);
  if (config.trainer.critic) {
    Result<trainer::Policy> critic =
        trainer::load_critic(*config.trainer.critic, config.model, config.lora,
                             static_cast<uint64_t>(config.run.seed), policy->transformer->config());
    if (!critic.ok()) return critic.status();
    setup.critic = std::move(*critic);
  }
  const model::ModelConfig& model = policy->transformer->config();
  const int64_t longest = longest_of(setup.train_prompts);
  Result<DeviceRun> device = DeviceRun();
  if (config.run.device == trainer::RunDevice::kCuda) {
    const Result<PlannedWork> work =
        work_of_training(config, model, {}, *rewards, longest, ranks.size());
    if (!work.ok()) return work.status();
    device = start_device(config, *policy, *work, config.trainer.optimizer, config.trainer.backward,
                          &config.rollout, "trainer", *trainers);
    if (!device.ok()) return device.status();
    setup.parts = std::move(device->parts);
  }
  Result<OpenedRun> run = open_run(*loaded, arguments.resume, *trainers);
  if (!run.ok()) return run.status();
  if (run->resume_from.empty() && !replay.checkpoint.empty()) {
    run->resume_from = replay.checkpoint;
    run->resume_step = replay.first_step - 1;
  }
  records::RunDisplay display({.num_steps = config.trainer.num_steps,
                               .first_step = run->resume_step + 1,
                               .is_quiet = ranks.rank() != 0});
  const Result<std::vector<MemoryPart>> memory =
      plan_training(config, model, adapter_of(*policy), *rewards, longest, ranks.size());
  if (!memory.ok()) return memory.status();
  const int64_t planned = total_bytes(*memory);
  display.print(fmt::format(
      "{}: {:.2f}M weights, {} prompts ({} too long were left out), {}, planned peak memory {} per "
      "rank",
      config.run.name, static_cast<double>(model::num_parameters(model)) / 1e6,
      setup.train_prompts.size(), num_dropped, ranks_text(ranks), mebibytes(planned)));
  if (config.trainer.federated) {
    return train_clients(std::move(setup), *policy, *rewards, *algorithm, *trainers, *run, display,
                         run_folder_of(config));
  }
  if (!device->text.empty()) display.print(device->text);
  const std::unique_ptr<trainer::RolloutClient> client =
      rollout_client(config.cluster, policy->transformer->layout(), ranks, *trainers);
  trainer::RlTrainer trainer(std::move(setup), *policy, *rewards, *algorithm, *trainers,
                             run->records(), display, client.get());
  if (!run->resume_from.empty()) {
    GRADUS_RETURN_IF_ERROR(trainer.resume(run->resume_from));
    display.print(
        fmt::format("resumed from {} after step {}", run->resume_from, trainer.position().step));
  }
  GRADUS_RETURN_IF_ERROR(trainer.run());
  if (client != nullptr) client->end();
  print_evaluations(trainer.evaluations(), display);
  const bool is_on_cpu = config.run.device == trainer::RunDevice::kCpu;
  if (ranks.rank() == 0 && is_on_cpu && config.cluster.mode == trainer::ClusterMode::kColocated) {
    // All ranks are taken to be of this host: between hosts --bandwidth of `gradus plan` counts.
    const Device cpu = measure_cpu(model);
    const std::string compared = compare_with_measured(
        model, step_work(config, ranks.size()), cpu,
        {cpu.bytes_per_s / 2, cpu.bytes_per_s / 2, num_trainers}, trainer.totals());
    if (!compared.empty()) display.print(compared);
  }
  display.print(peak_text(planned));
  if (device->peak_bytes) display.print(device->peak_text());
  display.print(fmt::format("{0}{1}; gradus report {1} makes a page of it", kEndMessage,
                            run_folder_of(config)));
  leave_the_dead(ranks);
  return {};
}

Status fine_tune(const RunArguments& arguments) {
  Result<std::unique_ptr<comm::Communicator>> communicator = start_ranks();
  if (!communicator.ok()) return communicator.status();
  comm::Communicator& ranks = **communicator;
  Result<LoadedConfig<RunConfig>> loaded = load_run_config(
      arguments.config->path, arguments.config->overrides, RunKind::kSft, ranks.size());
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  const auto watchdog = watch_ranks(ranks, config.cluster, ranks.size());
  if (!watchdog.ok()) return watchdog.status();
  if (arguments.dry_run) return ranks.rank() == 0 ? sft_dry_run(config, ranks.size()) : Status();

  Result<trainer::Policy> policy = trainer::load_policy_to_train(
      config.model, config.lora, static_cast<uint64_t>(config.run.seed));
  if (!policy.ok()) return policy.status();
  Result<std::vector<trainer::SftExample>> examples =
      load_examples(config.data, config.data.train, *policy, policy->transformer->config(), 0);
  if (!examples.ok()) return examples.status();
  Result<std::vector<trainer::SftExample>> held_out =
      load_held_out(config, *policy, policy->transformer->config(), 0);
  if (!held_out.ok()) return held_out.status();
  const model::ModelConfig& model = policy->transformer->config();
  const PlannedWork work =
      work_of_fine_tuning(config, adapter_of(*policy), *examples, *held_out, ranks.size());
  Result<DeviceRun> device = DeviceRun();
  if (config.run.device == trainer::RunDevice::kCuda) {
    device = start_device(config, *policy, work, config.sft.optimizer, config.sft.backward, nullptr,
                          "sft", ranks);
    if (!device.ok()) return device.status();
  }
  Result<OpenedRun> run = open_run(*loaded, arguments.resume, ranks);
  if (!run.ok()) return run.status();
  records::RunDisplay display({.num_steps = config.sft.num_steps,
                               .first_step = run->resume_step + 1,
                               .columns = records::sft_columns(),
                               .is_quiet = ranks.rank() != 0});
  const int64_t planned = total_bytes(plan_fine_tuning(config, model, work));
  display.print(fmt::format("{}: {:.2f}M weights, {} examples, {}, planned peak memory {} per rank",
                            config.run.name,
                            static_cast<double>(model::num_parameters(model)) / 1e6,
                            examples->size(), ranks_text(ranks), mebibytes(planned)));
  if (!device->text.empty()) display.print(device->text);
  trainer::SftTrainer trainer(
      {config.sft, config.run, config.data.shuffle, static_cast<uint64_t>(config.data.seed),
       std::move(*examples), config.eval, std::move(*held_out), std::move(device->parts)},
      *policy, ranks, run->records(), display);
  if (!run->resume_from.empty()) {
    GRADUS_RETURN_IF_ERROR(trainer.resume(run->resume_from));
    display.print(
        fmt::format("resumed from {} after step {}", run->resume_from, trainer.position().step));
  }
  GRADUS_RETURN_IF_ERROR(trainer.run());
  display.print(peak_text(planned));
  if (device->peak_bytes) display.print(device->peak_text());
  display.print(fmt::format("{0}{1}, its {2} in {1}/checkpoints/latest", kEndMessage,
                            run_folder_of(config),
                            adapter_of(*policy).rank > 0 ? "adapter" : "model"));
  return {};
}

}  // namespace

void add_train_command(CLI::App& app, Action& action) {
  const std::shared_ptr<RunArguments> arguments = add_run_command(
      app, action, "train",
      "Train by reinforcement learning with verifiable rewards (under mpirun or alone)", train);
  CLI::App* command = app.get_subcommand("train");
  CLI::Option* dump = command->add_option(
      "--dump-rollouts", arguments->dump_rollouts,
      "Sample and score alone: write the rollouts to this folder, train nothing");
  command
      ->add_option("--load-rollouts", arguments->load_rollouts,
                   "Train alone: on the rollouts of this folder or file instead of sampling")
      ->excludes(dump);
}

void add_sft_command(CLI::App& app, Action& action) {
  add_run_command(app, action, "sft", "Supervised fine-tuning on the rows' reference responses",
                  fine_tune);
}

}  // namespace gradus::cli
