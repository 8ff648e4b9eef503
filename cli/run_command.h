// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/run_setup.h"

// What the commands that make a run share (train, sft, dpo, reward-model): their arguments, and
// what they print of the model and the memory before it starts.
namespace gradus::cli {

// Rows that a dry run looks at.
constexpr int64_t kDryRunRows = 1000;

struct RunArguments {
  std::shared_ptr<ConfigArguments> config;
  bool resume = false;
  bool dry_run = false;
  std::string load_rollouts, dump_rollouts;  // of `train` alone
};
// Adds the command; further options may be bound to the arguments that it returns.
std::shared_ptr<RunArguments> add_run_command(CLI::App& app, Action& action,
                                              const std::string& name, const std::string& help,
                                              Status (*run)(const RunArguments&));

std::string mebibytes(int64_t bytes);
int64_t total_bytes(const std::vector<MemoryPart>& parts);
void print_memory(const std::vector<MemoryPart>& parts);
void print_model(const RunConfig& config, const model::ModelConfig& model);
// What is trained of it, if that is an adapter (rank 0: not).
void print_adapter(const model::LoraConfig& adapter, const model::ModelConfig& model);
// The adapter that a policy is trained with; rank 0: none.
model::LoraConfig adapter_of(const trainer::Policy& policy);
int64_t longest_of(const std::vector<data::Prompt>& prompts);  // tokens
// Of a run of reinforcement learning (train_command.cpp).
Result<PlannedWork> work_of_training(const RunConfig& config, const model::ModelConfig& model,
                                     const model::LoraConfig& adapter,
                                     const rewards::RewardSum& rewards, int64_t longest_prompt,
                                     int64_t num_ranks);
Result<std::vector<MemoryPart>> plan_training(const RunConfig& config,
                                              const model::ModelConfig& model,
                                              const model::LoraConfig& adapter,
                                              const rewards::RewardSum& rewards,
                                              int64_t longest_prompt, int64_t num_ranks);
// Of a rank that only samples (cluster.mode split or async).
std::vector<MemoryPart> plan_sampling(const RunConfig& config, const model::ModelConfig& model,
                                      int64_t longest_prompt);
// What `gradus train` does where the configuration has a section `harr` (harr_command.cpp).
Status train_retriever(const RunArguments& arguments, const LoadedConfig<RunConfig>& loaded,
                       comm::Communicator& ranks);
// The last line of a run: its peak beside the plan.
std::string peak_text(int64_t planned);
// "2 ranks of 1 thread".
std::string ranks_text(const comm::Communicator& ranks);

// The tokenizer and template of a policy without its weights.
Result<trainer::Policy> policy_without_weights(const RunConfig& config);

}  // namespace gradus::cli
