// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "common/status.h"
#include "kernels/cuda.h"
#include "model/model_config.h"

namespace gradus::cli {

struct TrainingBenchOptions {
  std::string shape = "qwen2.5-0.5b";  // a name of bench_shape()
  int64_t sequences = 8, length = 1024;
  bool gradient_checkpointing = false;
  std::vector<int64_t> zero_stages = {0, 1};  // of several ranks
  int64_t repeats = 10;
};

// Floating-point operations of one step by the model's definition: 6 a weight of the layers and the
// head and token, and attention's products over the keys that a row sees; nothing that is computed
// again counts.
double flops_of_training(const model::ModelConfig& config, int64_t sequences, int64_t length);

// Times a training step on the device, random weights and tokens: forward, backward and update of
// packed sequences, beside the rate of one large bf16 product in the same call. One JSON row. On
// several ranks, a device each, then a row for each of zero_stages, with the same sequences on
// every one and gradients summed over them: the first one is that of rank 0 alone. Collective;
// `write` gets the rows on every rank.
Status bench_training(const kernels::Cuda& cuda, comm::Communicator& ranks,
                      const TrainingBenchOptions& options,
                      const std::function<Status(const nlohmann::ordered_json&)>& write);

}  // namespace gradus::cli
