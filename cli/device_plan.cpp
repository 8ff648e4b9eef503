// SPDX-License-Identifier: Apache-2.0
#include "cli/device_plan.h"

#include <algorithm>

#include "cli/run_command.h"
#include "common/strings.h"
#include "kernels/cuda.h"
#include "model/device_training.h"
#include "trainer/device_parts.h"

namespace gradus::cli {
namespace {

// CUDA's context with the kernels of libgradus_cuda.so and cuBLAS, and recorded graphs.
constexpr int64_t kContextBytes = 640ll << 20;
// Of the sampler and the scorer of the head, at most (docs/kernels/lm_head.md).
constexpr int64_t kHeadWorkspaceBytes = 64ll << 20;

// The process on the host, with CUDA's driver and libraries in it: 1,564 MiB on an H100.
constexpr int64_t kHostBytes = 1536ll << 20;

// Packed tokens of the largest pass of an update on this rank.
int64_t pack_rows_of(const PlannedWork& work, int64_t micro_batch_tokens) {
  const int64_t groups = (work.groups_per_update + work.num_ranks - 1) / work.num_ranks;
  return std::min(groups * work.rows_per_group, std::max(micro_batch_tokens, work.rows_per_group));
}

int64_t pass_bytes(const model::ModelConfig& model, int64_t rows, bool gradient_checkpointing) {
  return model::DeviceTrainingPass::planned_bytes(model, rows, gradient_checkpointing, true);
}

// The largest number of packed tokens whose pass fits, in steps of 256; 0: none.
int64_t rows_that_fit(const model::ModelConfig& model, int64_t bytes, bool gradient_checkpointing) {
  constexpr int64_t kStep = 256, kMost = 1 << 20;
  int64_t low = 0, high = kMost / kStep;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (pass_bytes(model, middle * kStep, gradient_checkpointing) <= bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * kStep;
}

}  // namespace

int64_t DevicePlan::peak() const {
  return total_bytes(always) + std::max(total_bytes(sampling), total_bytes(updating));
}

DevicePlan plan_device_memory(const model::ModelConfig& model, const PlannedWork& work,
                              const trainer::BackwardConfig& backward,
                              const rollout::RolloutConfig* rollout) {
  const model::DeviceStateBytes state =
      model::DeviceTrainingState::bytes(model, backward.zero_stage, work.num_ranks);
  DevicePlan plan;
  plan.always = {{"CUDA and kernels", kContextBytes},
                 {"weights, gradients and moments, fp32", state.state}};
  if (state.weights_whole == state.weights_training) {
    plan.always.push_back({"weights, bf16", state.weights_whole});
  } else {
    plan.sampling.push_back({"weights, bf16", rollout != nullptr ? state.weights_whole : 0});
    plan.updating.push_back({"weights, bf16", state.weights_training});
  }
  const int64_t rows = pack_rows_of(work, backward.micro_batch_tokens);
  if (work.has_reference) {
    plan.always.push_back(
        {"initial model", model::DeviceTrainingState::bytes(model, 0, 1).weights_whole});
    plan.always.push_back(
        {"its activations", model::DeviceTrainingPass::planned_bytes(model, rows, false, false)});
  }
  if (rollout != nullptr) {
    const int64_t engine_rows = std::max(rollout->max_batch, rollout->prefill_chunk_tokens);
    plan.always.push_back(
        {fmt::format("engine, {} tokens at a time", engine_rows),
         model::DeviceTransformer::activation_bytes(model, engine_rows) + kHeadWorkspaceBytes});
    const int64_t page = model::DeviceKvCache::bytes_per_page(model);
    plan.sampling.push_back(
        {"key-value cache", std::max(page, (rollout->kv_cache_mib << 20) / page * page)});
  }
  plan.updating.push_back({fmt::format("activations of {} tokens", rows),
                           pass_bytes(model, rows, backward.gradient_checkpointing)});
  return plan;
}

Status check_device_memory(const DevicePlan& plan, int64_t device_bytes,
                           const std::string& device_name, const model::ModelConfig& model,
                           const PlannedWork& work, const trainer::BackwardConfig& backward,
                           const std::string& section) {
  if (plan.peak() <= device_bytes) return {};
  const std::string needs =
      fmt::format("run.device is cuda, whose plan needs {} where {} has {}; what would fit: ",
                  mebibytes(plan.peak()), device_name, mebibytes(device_bytes));
  const int64_t left = device_bytes - total_bytes(plan.always);
  if (left <= 0) {
    return unavailable("{}a smaller model: what is there all the time takes {}", needs,
                       mebibytes(total_bytes(plan.always)));
  }
  std::vector<std::string> remedies;
  if (total_bytes(plan.sampling) > left) {
    remedies.push_back(fmt::format("rollout.kv_cache_mib up to {}", left >> 20));
  }
  if (total_bytes(plan.updating) > left) {
    const int64_t whole = rows_that_fit(model, left, false);
    const int64_t checkpointed = rows_that_fit(model, left, true);
    std::string fits;
    if (whole >= work.rows_per_group) {
      fits = fmt::format("{}.micro_batch_tokens up to {}", section, whole);
    }
    if (checkpointed >= work.rows_per_group && !backward.gradient_checkpointing) {
      fits += fmt::format("{}{}.gradient_checkpointing with micro_batch_tokens up to {}",
                          fits.empty() ? "" : ", or ", section, checkpointed);
    }
    if (fits.empty()) {
      fits = fmt::format("groups of up to {} packed tokens (now {})", std::max(whole, checkpointed),
                         work.rows_per_group);
    }
    remedies.push_back(fits);
  }
  return unavailable("{}{}", needs, join(remedies, "; "));
}

void print_device_memory(const DevicePlan& plan) {
  fmt::print("GPU memory\n");
  for (const auto& [parts, when] : {std::pair{&plan.always, ""},
                                    {&plan.sampling, ", sampling"},
                                    {&plan.updating, ", updating"}}) {
    for (const MemoryPart& part : *parts) {
      fmt::print("  {:<44}{:>10}\n", part.name + when, mebibytes(part.bytes));
    }
  }
  fmt::print("  {:<44}{:>10} at the peak\n", "all", mebibytes(plan.peak()));
}

std::vector<MemoryPart> plan_host_memory(const model::ModelConfig& model, const PlannedWork& work) {
  const int64_t weights = model::parameter_layout(model).size * int64_t{sizeof(float)};
  // Both moments as they come from the device, in the checkpoint's layout, and the weights.
  std::vector<MemoryPart> parts = {{"program, CUDA and data", kHostBytes},
                                   {"weights", weights},
                                   {"checkpoint being written", 5 * weights}};
  if (work.reward_bytes > 0) parts.push_back({"reward models", work.reward_bytes});
  return parts;
}

Status check_device_model(const RunConfig& config, const model::ModelConfig& model) {
  if (config.run.device == trainer::RunDevice::kCpu) return {};
  return model::DeviceTransformer::check_supported(model);
}

Status dry_run_device(const RunConfig& config, const model::ModelConfig& model,
                      const PlannedWork& work, const trainer::BackwardConfig& backward,
                      const rollout::RolloutConfig* rollout, const std::string& section) {
  if (config.run.device == trainer::RunDevice::kCpu) return {};
  const DevicePlan plan = plan_device_memory(model, work, backward, rollout);
  print_device_memory(plan);
  const Result<kernels::Cuda> cuda = kernels::Cuda::open();
  if (!cuda.ok()) {
    fmt::print("  not compared with a GPU: {}\n", cuda.status().message());
    return {};
  }
  const Result<kernels::CudaMemory> memory = kernels::device_memory(*cuda);
  if (!memory.ok()) return memory.status();
  return check_device_memory(plan, memory->total, "this GPU", model, work, backward, section);
}

std::string DeviceRun::peak_text() const {
  return fmt::format("peak GPU memory {} (planned {})", mebibytes(peak_bytes()),
                     mebibytes(planned_bytes));
}

Result<DeviceRun> start_device(const RunConfig& config, trainer::Policy& policy,
                               const PlannedWork& work, const trainer::OptimizerConfig& optimizer,
                               const trainer::BackwardConfig& backward,
                               const rollout::RolloutConfig* rollout, const std::string& section,
                               comm::Communicator& communicator) {
  const model::ModelConfig& model = policy.transformer->config();
  GRADUS_RETURN_IF_ERROR(check_device_model(config, model));
  const DevicePlan plan = plan_device_memory(model, work, backward, rollout);
  const Result<kernels::Cuda> cuda = kernels::Cuda::open("", trainer::device_of_rank(communicator));
  const auto check = [&]() -> Status {
    if (!cuda.ok()) return cuda.status().with_prefix("run.device is cuda");
    const Result<kernels::CudaMemory> memory = kernels::device_memory(*cuda);
    if (!memory.ok()) return memory.status();
    return check_device_memory(plan, memory->total, "this GPU", model, work, backward, section);
  };
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator, check()));
  Result<trainer::ComputeParts> parts =
      trainer::make_device_parts(*cuda, policy,
                                 {.optimizer = optimizer,
                                  .backward = backward,
                                  .has_reference = work.has_reference,
                                  .rollout = rollout},
                                 communicator);
  if (!parts.ok()) return parts.status();
  DeviceRun run;
  run.peak_bytes = parts->peak_device_bytes;
  run.parts = std::move(*parts);
  run.planned_bytes = plan.peak();
  run.text =
      fmt::format("on {}; planned peak GPU memory {}", cuda->description(), mebibytes(plan.peak()));
  return run;
}

}  // namespace gradus::cli
