// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/device_plan.h"
#include "cli/run_command.h"
#include "cli/step_time.h"

namespace gradus::cli {
namespace {

struct PlanArguments {
  std::shared_ptr<ConfigArguments> config;
  int64_t world = 1;
  std::string device;                          // empty: what run.device says
  double bandwidth = 50, local_bandwidth = 0;  // GB/s
  int64_t ranks_per_host = 8;
  double response_tokens = 0;  // 0: rollout.max_new_tokens
};

double mean_prompt(const std::vector<data::Prompt>& prompts) {
  double sum = 0;
  for (const data::Prompt& prompt : prompts) sum += static_cast<double>(prompt.token_ids.size());
  return sum / static_cast<double>(prompts.size());
}

void print_step_time(const StepTime& time, const StepWork& work) {
  const auto row = [&](const char* name, double seconds) {
    fmt::print("  {:<34}{:>10.3g} s{:>6.0f} %\n", name, seconds, 100 * seconds / time.total());
  };
  fmt::print("step time\n");
  row("prompts", time.prefill);
  row("decoding", time.decode);
  row("forward and backward", time.forward_backward);
  row("optimizer", time.optimizer);
  row("sum of gradients over ranks", time.reduce_gradients);
  if (time.gather_weights > 0) row("slices of weights", time.gather_weights);
  if (time.send_weights > 0) row("weights to ranks that sample", time.send_weights);
  row("trajectories between ranks", time.exchange);
  const double tokens = static_cast<double>(work.num_prompts * work.num_samples) *
                        (work.prompt_tokens + work.response_tokens);
  fmt::print("  {:<34}{:>10.3g} s, {:.3g} tokens/s a rank{}\n", "all", time.total(),
             tokens / time.total() / static_cast<double>(work.num_ranks + work.rollout_ranks),
             time.is_overlapped ? "; sampling and training at the same time" : "");
}

Status plan(const PlanArguments& arguments) {
  Result<LoadedConfig<RunConfig>> loaded = load_run_config(
      arguments.config->path, arguments.config->overrides, RunKind::kTrain, arguments.world);
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  const Result<model::ModelConfig> model = trainer::policy_config(config.model);
  if (!model.ok()) return model.status();
  GRADUS_RETURN_IF_ERROR(check_device_model(config, *model));
  const bool is_on_gpu = config.run.device == trainer::RunDevice::kCuda;
  const std::string name =
      !arguments.device.empty() ? arguments.device : (is_on_gpu ? "h100" : "cpu");
  if (is_on_gpu && name == "cpu") {
    return invalid_argument(
        "--device is cpu but run.device is cuda; name a GPU, or --set run.device=cpu");
  }
  Result<Device> device = name == "cpu" ? Result<Device>(measure_cpu(*model)) : find_device(name);
  if (!device.ok()) return device.status();
  Result<trainer::Policy> policy = policy_without_weights(config);
  if (!policy.ok()) return policy.status();
  const Result<rewards::RewardSum> rewards = make_rewards(config);
  if (!rewards.ok()) return rewards.status();
  const Result<std::vector<data::Prompt>> prompts =
      load_prompts(config.data, config.data.train, *policy, *rewards, kDryRunRows, nullptr);
  if (!prompts.ok()) return prompts.status();

  const Result<model::LoraConfig> adapter =
      trainer::trained_adapter(config.model, config.lora, *model);
  if (!adapter.ok()) return adapter.status();
  const Result<std::vector<MemoryPart>> memory =
      plan_training(config, *model, *adapter, *rewards, longest_of(*prompts), arguments.world);
  if (!memory.ok()) return memory.status();
  const Result<PlannedWork> planned =
      work_of_training(config, *model, *adapter, *rewards, longest_of(*prompts), arguments.world);
  if (!planned.ok()) return planned.status();
  StepWork work = step_work(config, arguments.world);
  work.prompt_tokens = mean_prompt(*prompts);
  if (arguments.response_tokens > 0) work.response_tokens = arguments.response_tokens;
  const Links links = {
      .bytes_per_s = arguments.bandwidth * 1e9,
      .local_bytes_per_s =
          (arguments.local_bandwidth > 0 ? arguments.local_bandwidth : arguments.bandwidth) * 1e9,
      .ranks_per_host = arguments.ranks_per_host};
  print_model(config, *model);
  fmt::print(
      "world      {} x {}: {:.3g} TFLOP/s, {:.3g} GB/s of memory each; links {:.3g} GB/s, within "
      "a host of {} {:.3g}\n",
      arguments.world, device->name, device->flops / 1e12, device->bytes_per_s / 1e9,
      links.bytes_per_s / 1e9, links.ranks_per_host, links.local_bytes_per_s / 1e9);
  fmt::print("step       {} prompts of {:.0f} tokens x {} responses of {:.0f}\nmemory{}\n",
             work.num_prompts, work.prompt_tokens, work.num_samples, work.response_tokens,
             is_on_gpu ? " of the host" : "");
  print_memory(*memory);
  if (work.rollout_ranks > 0) {
    fmt::print("memory of each of the {} ranks that only sample\n", work.rollout_ranks);
    print_memory(plan_sampling(config, *model, longest_of(*prompts)));
  }
  int64_t needed_bytes = total_bytes(*memory);
  if (is_on_gpu) {
    const DevicePlan plan =
        plan_device_memory(*model, *planned, config.trainer.backward, &config.rollout);
    print_device_memory(plan);
    needed_bytes = plan.peak();
  }
  if (device->memory_bytes > 0) {
    const double needed = static_cast<double>(needed_bytes);
    fmt::print("  {} the {:.0f} GiB of a {}\n",
               needed <= device->memory_bytes ? "fits" : "does not fit",
               device->memory_bytes / 1073741824.0, device->name);
  }
  print_step_time(predict_step(*model, work, *device, links), work);
  return {};
}

}  // namespace

void add_plan_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "plan", "Memory per rank and predicted step time of a run on other machines");
  auto arguments = std::make_shared<PlanArguments>();
  arguments->config = add_config_arguments(*command);
  command->add_option("--world", arguments->world, "Ranks, one per device")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}));
  command->add_option(
      "--device", arguments->device,
      "a100, h100, h200, or cpu: this machine, measured for a moment; unset: h100 where "
      "run.device is cuda, else cpu");
  command->add_option("--bandwidth", arguments->bandwidth, "GB/s of a rank to other hosts")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--local-bandwidth", arguments->local_bandwidth,
                   "GB/s between ranks of a host; unset: as --bandwidth")
      ->check(CLI::PositiveNumber);
  command->add_option("--ranks-per-host", arguments->ranks_per_host, "Ranks that share a host")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--response-tokens", arguments->response_tokens,
                   "Mean length of a response; unset: rollout.max_new_tokens")
      ->check(CLI::PositiveNumber);
  command->callback([&action, arguments] { action = [=] { return plan(*arguments); }; });
}

}  // namespace gradus::cli
