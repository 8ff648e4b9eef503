// SPDX-License-Identifier: Apache-2.0
#include "cli/run_command.h"

#include <CLI/CLI.hpp>

#include "common/parallel.h"
#include "common/strings.h"

namespace gradus::cli {

std::shared_ptr<RunArguments> add_run_command(CLI::App& app, Action& action,
                                              const std::string& name, const std::string& help,
                                              Status (*run)(const RunArguments&)) {
  CLI::App* command = app.add_subcommand(name, help);
  auto arguments = std::make_shared<RunArguments>();
  arguments->config = add_config_arguments(*command);
  command->add_flag("--resume", arguments->resume, "Continue the run from its newest checkpoint");
  command->add_flag("--dry-run", arguments->dry_run,
                    "Check configuration and data, print the plan, train nothing");
  command->callback([&action, arguments, run] { action = [=] { return run(*arguments); }; });
  return arguments;
}

std::string mebibytes(int64_t bytes) {
  return fmt::format("{:.0f} MiB", static_cast<double>(bytes) / 1048576.0);
}

int64_t total_bytes(const std::vector<MemoryPart>& parts) {
  int64_t total = 0;
  for (const MemoryPart& part : parts) total += part.bytes;
  return total;
}

void print_memory(const std::vector<MemoryPart>& parts) {
  for (const MemoryPart& part : parts) {
    fmt::print("  {:<34}{:>10}\n", part.name, mebibytes(part.bytes));
  }
  fmt::print("  {:<34}{:>10} at the peak, per rank\n", "all", mebibytes(total_bytes(parts)));
}

std::string peak_text(int64_t planned) {
  return fmt::format("peak memory {} (planned {})", mebibytes(trainer::memory_use().peak),
                     mebibytes(planned));
}

void print_model(const RunConfig& config, const model::ModelConfig& model) {
  fmt::print("model      {}: {} of {:.2f}M weights, {} layers of width {}, vocabulary {}\n",
             config.model.init ? "new" : config.model.path, model::family_name(model.family),
             static_cast<double>(model::num_parameters(model)) / 1e6, model.num_layers,
             model.hidden_size, model.vocab_size);
}

void print_adapter(const model::LoraConfig& adapter, const model::ModelConfig& model) {
  if (adapter.rank == 0) return;
  int64_t num_trained = 0;
  const model::LoraLayout layout = model::lora_layout(model, adapter).value();
  for (const model::ParameterPlace& place : layout.places) {
    num_trained += place.rows * place.columns;
  }
  fmt::print("adapter    rank {}, alpha {}{}, {:.2f}M weights on {}\n", adapter.rank, adapter.alpha,
             adapter.rslora ? " (rsLoRA)" : "", static_cast<double>(num_trained) / 1e6,
             join(adapter.targets, ", "));
}

model::LoraConfig adapter_of(const trainer::Policy& policy) {
  const model::LoraAdapter* adapter = policy.transformer->adapter();
  return adapter == nullptr ? model::LoraConfig() : adapter->config();
}

std::string ranks_text(const comm::Communicator& ranks) {
  return fmt::format("{} rank{} of {} thread{}", ranks.size(), ranks.size() == 1 ? "" : "s",
                     num_threads(), num_threads() == 1 ? "" : "s");
}

Result<trainer::Policy> policy_without_weights(const RunConfig& config) {
  trainer::Policy policy;
  if (config.model.init && config.model.init->tokenizer == "char") {
    Result<std::unique_ptr<data::Tokenizer>> tokenizer =
        data::Tokenizer::from_json(data::byte_tokenizer_json(), "the byte tokenizer");
    if (!tokenizer.ok()) return tokenizer.status();
    policy.tokenizer = std::move(*tokenizer);
    return policy;
  }
  const std::string dir = config.model.init ? config.model.init->tokenizer : config.model.path;
  Result<std::unique_ptr<data::Tokenizer>> tokenizer = data::Tokenizer::load(dir);
  if (!tokenizer.ok()) return tokenizer.status();
  policy.tokenizer = std::move(*tokenizer);
  Result<data::ChatTemplate> chat_template = data::load_chat_template(dir);
  if (chat_template.ok()) {
    policy.chat_template = std::move(*chat_template);
  } else if (chat_template.status().code() != StatusCode::kNotFound) {
    return chat_template.status();
  }
  return policy;
}

}  // namespace gradus::cli
