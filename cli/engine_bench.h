// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/status.h"
#include "kernels/cuda.h"
#include "model/model_config.h"

namespace gradus::cli {

struct EngineBenchOptions {
  std::vector<std::string> shapes;  // names of bench_shape()
  std::vector<int64_t> batches;
  int64_t prompt_tokens = 128, new_tokens = 256;
  int64_t top_k = 50;
  int64_t repeats = 2;
};

// A known model's config by name: qwen3-0.6b, qwen2.5-0.5b, smollm2-135m. InvalidArgument names
// them.
Result<model::ModelConfig> bench_shape(const std::string& name);

// Bytes of weights, keys and values that a decoded batch must read at least: the roof of an engine.
double bytes_of_decoding(const model::ModelConfig& config, int64_t batch, int64_t prompt_tokens,
                         int64_t new_tokens);

// Times the engine on the device with random weights, whole calls of run() from prompts to the last
// token, beside what reading the weights, keys and values alone would take at the read rate
// measured in the same call. One JSON row a case.
Status bench_engine(const kernels::Cuda& cuda, const EngineBenchOptions& options,
                    const std::function<Status(const nlohmann::ordered_json&)>& write);

}  // namespace gradus::cli
