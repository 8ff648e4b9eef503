// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// How responses are sampled: the `rollout` section of a run's YAML. The sampling keys mean what
// they mean in data::SamplingParams.
namespace gradus::rollout {

// A tool that responses can call (docs/tools.md).
struct ToolConfig {
  std::string name;     // in the tool registry
  std::string tag;      // <tag>...</tag> is a call; empty: the name
  std::string index;    // search: folder of gradus index build
  std::string model;    // search: directory of the index's encoder; empty: where it was
  std::string url;      // search: of a retrieval server, instead of an index
  int64_t top = 3;      // search: passages of an answer
  int64_t retries = 3;  // search: of a request to the server

  void visit(FieldVisitor& v);
};

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
  std::vector<ToolConfig> tools;  // empty: responses call nothing
  int64_t max_tool_calls = 4;
  int64_t max_observation_tokens = 512;
  double tool_seconds = 30;
  int64_t tool_threads = 2;
  std::string observation_tag = "information";

  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const RolloutConfig& config);

}  // namespace gradus::rollout
