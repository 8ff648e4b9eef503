// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/run_setup.h"

// Memory of the GPU that a run takes (run.device: cuda), from the configuration alone.
namespace gradus::cli {

// What is there all the time, what an engine has while it samples and what an update has, which
// give way to each other.
struct DevicePlan {
  std::vector<MemoryPart> always, sampling, updating;
  int64_t peak() const;
};

// `rollout` null: no sampling.
DevicePlan plan_device_memory(const model::ModelConfig& model, const PlannedWork& work,
                              const trainer::BackwardConfig& backward,
                              const rollout::RolloutConfig* rollout);

// Unavailable if the plan needs more than `device_bytes`, saying which values of the keys would
// fit: rollout.kv_cache_mib, and micro_batch_tokens with and without gradient_checkpointing of
// `section`.
Status check_device_memory(const DevicePlan& plan, int64_t device_bytes,
                           const std::string& device_name, const model::ModelConfig& model,
                           const PlannedWork& work, const trainer::BackwardConfig& backward,
                           const std::string& section);

void print_device_memory(const DevicePlan& plan);

// Memory of the host that a run on the GPU takes: its weights are there for checkpoints and hashes.
std::vector<MemoryPart> plan_host_memory(const model::ModelConfig& model, const PlannedWork& work);

// With run.device: cuda, whether the kernels run the model; InvalidArgument names the field.
Status check_device_model(const RunConfig& config, const model::ModelConfig& model);

// With run.device: cuda, prints the plan of the GPU's memory and compares it with the GPU of this
// machine, if there is one.
Status dry_run_device(const RunConfig& config, const model::ModelConfig& model,
                      const PlannedWork& work, const trainer::BackwardConfig& backward,
                      const rollout::RolloutConfig* rollout, const std::string& section);

// A run that has begun on the GPU.
struct DeviceRun {
  trainer::ComputeParts parts;
  std::string text;                     // the device and the plan, for people
  std::function<int64_t()> peak_bytes;  // empty: the run is on the CPU
  int64_t planned_bytes = 0;
  std::string peak_text() const;  // "peak GPU memory ... (planned ...)"
};
// Opens the device, compares the plan with it and puts the policy there.
Result<DeviceRun> start_device(const RunConfig& config, trainer::Policy& policy,
                               const PlannedWork& work, const trainer::OptimizerConfig& optimizer,
                               const trainer::BackwardConfig& backward,
                               const rollout::RolloutConfig* rollout, const std::string& section,
                               comm::Communicator& communicator);

}  // namespace gradus::cli
