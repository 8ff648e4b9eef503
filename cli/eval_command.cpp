// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/device_plan.h"
#include "cli/json_lines.h"
#include "cli/run_setup.h"
#include "records/terminal.h"
#include "rollout/cpu_engine.h"
#include "rollout/device_engine.h"
#include "rollout/tool_box.h"
#include "trainer/device_parts.h"

namespace gradus::cli {
namespace {

struct EvalArguments {
  std::shared_ptr<ConfigArguments> config;
  std::string model, adapter;
  std::vector<int64_t> ks = {1};
  std::string out;
};

void print_table(const std::vector<data::TaskSummary>& summaries) {
  fmt::print("{:<20} {:>8} {:>9}  {:<18}", "task", "problems", "pass@1", "95 % interval");
  for (const data::AtK& at : summaries.front().at) {
    if (at.k > 1)
      fmt::print(" {:>9} {:>9}", fmt::format("pass@{}", at.k), fmt::format("maj@{}", at.k));
  }
  fmt::print(" {:>8}\n", "failed");
  for (const data::TaskSummary& summary : summaries) {
    fmt::print("{:<20} {:>8} {:>9.4f}  {:<18}", summary.task, summary.num_problems,
               summary.accuracy,
               fmt::format("{:.4f} to {:.4f}", summary.accuracy_interval.low,
                           summary.accuracy_interval.high));
    for (const data::AtK& at : summary.at) {
      if (at.k > 1) fmt::print(" {:>9.4f} {:>9.4f}", at.pass, at.majority);
    }
    fmt::print(" {:>8}\n", summary.num_failed);
  }
}

nlohmann::ordered_json summary_json(const data::TaskSummary& summary) {
  nlohmann::ordered_json row = {{"task", summary.task},
                                {"num_problems", summary.num_problems},
                                {"num_unjudged", summary.num_unjudged},
                                {"num_samples", summary.num_samples},
                                {"num_failed", summary.num_failed},
                                {"accuracy", summary.accuracy},
                                {"low", summary.accuracy_interval.low},
                                {"high", summary.accuracy_interval.high}};
  for (const data::AtK& at : summary.at) {
    row[fmt::format("pass@{}", at.k)] = at.pass;
    row[fmt::format("maj@{}", at.k)] = at.majority;
  }
  return row;
}

// On the CPU, or on the rank's GPU, whose weights are then in `on_device`.
Result<std::unique_ptr<rollout::Engine>> make_engine(
    const RunConfig& config, const trainer::Policy& policy, rollout::ToolBox* tools,
    comm::Communicator& ranks, std::unique_ptr<model::DeviceTransformer>& on_device) {
  const rollout::EngineOptions options = trainer::engine_options(config.rollout);
  if (config.run.device == trainer::RunDevice::kCpu) {
    return std::unique_ptr<rollout::Engine>(
        new rollout::CpuEngine(*policy.transformer, policy.tokenizer.get(), options, tools));
  }
  const int32_t device = trainer::device_of_rank(ranks);
  GRADUS_RETURN_IF_ERROR(check_device_model(config, policy.transformer->config()));
  const Result<kernels::Cuda> cuda = kernels::Cuda::open("", device);
  if (!cuda.ok()) return cuda.status().with_prefix("run.device is cuda");
  Result<std::unique_ptr<model::DeviceTransformer>> transformer =
      trainer::to_device(*cuda, *policy.transformer);
  if (!transformer.ok()) return transformer.status();
  on_device = std::move(*transformer);
  Result<std::unique_ptr<rollout::DeviceEngine>> engine =
      rollout::DeviceEngine::create(*on_device, policy.tokenizer.get(), options);
  if (!engine.ok()) return engine.status();
  return std::unique_ptr<rollout::Engine>(std::move(*engine));
}

Status eval(const EvalArguments& arguments) {
  Result<std::unique_ptr<comm::Communicator>> communicator = start_ranks();
  if (!communicator.ok()) return communicator.status();
  comm::Communicator& ranks = **communicator;
  std::vector<std::string> overrides = arguments.config->overrides;
  if (!arguments.model.empty()) {
    // A YAML string: quotes keep any path one value.
    overrides.push_back("model.init=null");
    overrides.push_back("model.path=" + nlohmann::json(arguments.model).dump());
  }
  if (!arguments.model.empty() || !arguments.adapter.empty()) {
    // Another model does not take the configuration's adapter along.
    overrides.push_back("model.adapter=" + nlohmann::json(arguments.adapter).dump());
  }
  Result<LoadedConfig<RunConfig>> loaded =
      load_run_config(arguments.config->path, overrides, RunKind::kEval, ranks.size());
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  const auto watchdog = watch_ranks(ranks, config.cluster, ranks.size());
  if (!watchdog.ok()) return watchdog.status();
  for (const int64_t k : arguments.ks) {
    if (k < 1 || k > config.eval.num_samples) {
      return invalid_argument(
          "--k {}: must be in [1, {}], the responses per problem (eval.num_samples)", k,
          config.eval.num_samples);
    }
  }
  Result<rewards::RewardSum> rewards = make_rewards(config);
  if (!rewards.ok()) return rewards.status();
  GRADUS_RETURN_IF_ERROR(rewards->load());
  Result<trainer::Policy> policy =
      trainer::load_policy(config.model, static_cast<uint64_t>(config.run.seed));
  if (!policy.ok()) return policy.status();
  Result<std::vector<data::Prompt>> prompts = load_prompts(
      config.data, config.data.eval, *policy, *rewards, config.eval.max_rows.value_or(0), nullptr);
  if (!prompts.ok()) return prompts.status();
  const auto tools = rollout::ToolBox::create(config.rollout, *policy->tokenizer);
  if (!tools.ok()) return tools.status();
  std::unique_ptr<model::DeviceTransformer> on_device;  // outlives the engine
  const Result<std::unique_ptr<rollout::Engine>> engine =
      make_engine(config, *policy, tools->get(), ranks, on_device);
  GRADUS_RETURN_IF_ERROR(comm::agree(ranks, engine.status()));
  const trainer::EvaluationSettings settings = trainer::evaluation_settings(
      config.eval, config.rollout, policy->transformer->config(), config.run.seed);
  records::RunDisplay display({.is_quiet = ranks.rank() != 0});
  display.begin_phase("evaluate", static_cast<int64_t>(prompts->size()) * settings.num_samples,
                      "responses");
  Result<trainer::Evaluation> evaluation =
      trainer::evaluate(**engine, *rewards, *prompts, settings, ranks,
                        [&](int64_t finished) { display.advance_phase(finished * ranks.size()); });
  display.end_phase();
  if (!evaluation.ok()) return evaluation.status();
  if (ranks.rank() != 0) return {};
  const std::vector<data::TaskSummary> summaries =
      data::summarize(evaluation->outcomes, {.ks = arguments.ks});
  if (arguments.out.empty()) {
    print_table(summaries);
    return {};
  }
  Result<std::unique_ptr<JsonLinesWriter>> writer = JsonLinesWriter::open(arguments.out);
  if (!writer.ok()) return writer.status();
  for (const data::TaskSummary& summary : summaries) {
    GRADUS_RETURN_IF_ERROR((*writer)->write(summary_json(summary)));
  }
  return (*writer)->finish();
}

}  // namespace

void add_eval_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "eval", "Measure a model on the eval rows of a configuration: pass@k, maj@k, by task");
  auto arguments = std::make_shared<EvalArguments>();
  arguments->config = add_config_arguments(*command);
  command->add_option("--model", arguments->model,
                      "Model directory instead of the configuration's");
  command->add_option("--adapter", arguments->adapter, "LoRA adapter of it (PEFT's format)");
  command->add_option("--k", arguments->ks, "The k of pass@k and maj@k; repeatable")
      ->allow_extra_args(false);
  command->add_option("--out", arguments->out,
                      "Write JSON lines, one per task, there instead of a table");
  command->callback([&action, arguments] { action = [arguments] { return eval(*arguments); }; });
}

}  // namespace gradus::cli
