// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/cuda.h"
#include "model/device_transformer.h"
#include "trainer/rl_trainer.h"

// The parts of a run that compute, on a GPU (docs/gpu.md, Training): weights are there once, bf16
// for engine and passes and as fp32 masters for the optimizer.
namespace gradus::trainer {

// The weights of a transformer of the host on the device. InvalidArgument for a model that the
// kernels cannot run; Unavailable when the device lacks the memory. So many ranks can hold slices.
Result<std::unique_ptr<model::DeviceTransformer>> to_device(const kernels::Cuda& cuda,
                                                            const model::Transformer& host,
                                                            int64_t num_slices = 1);

// What a run on the device asks for.
struct DeviceSetup {
  OptimizerConfig optimizer;
  BackwardConfig backward;
  bool has_reference = false;                       // a KL term
  const rollout::RolloutConfig* rollout = nullptr;  // null: nothing is sampled
};

// The device of this rank: those of its host are given out in order. Collective.
int32_t device_of_rank(comm::Communicator& communicator);

// The parts of a rank, with an engine if it samples; ranks sum their gradients by NCCL. The policy
// outlives them. The engine reads the learner's weights, which every update changes in place.
// Collective.
Result<ComputeParts> make_device_parts(const kernels::Cuda& cuda, Policy& policy,
                                       const DeviceSetup& setup, comm::Communicator& communicator);

}  // namespace gradus::trainer
