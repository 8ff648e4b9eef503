// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"

// How responses are sampled: the `rollout` section of a run's YAML. The sampling keys mean what
// they mean in data::SamplingParams.
namespace gradus::rollout {

struct RolloutConfig {
  int64_t num_samples = 8;  // G, responses per prompt
  int64_t max_new_tokens = 256;
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  std::vector<std::string> stop_texts;
  int64_t max_batch = 64;  // sequences decoded together
  int64_t kv_cache_mib = 1024;
  int64_t prefill_chunk_tokens = 512;

  void visit(FieldVisitor& v);
};

}  // namespace gradus::rollout
