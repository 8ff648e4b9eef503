// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/config/field_visitor.h"
#include "common/status.h"

namespace gradus::trainer {

// kColocated: every rank samples and trains. kSplit: the last ranks sample for the others, which
// train when they have the batch. kAsync: the same, the next batch being sampled meanwhile.
enum class ClusterMode { kColocated, kSplit, kAsync };

// What the ranks of a run do and how they watch each other: the `cluster` section
// (docs/cluster.md).
struct ClusterConfig {
  ClusterMode mode = ClusterMode::kColocated;
  int64_t rollout_ranks = 1;   // of split and async
  int64_t staleness = 1;       // of async: steps
  int64_t partial_tokens = 0;  // of async with a staleness above 1; 0: max_new_tokens / staleness
  int64_t weight_bucket_mib = 16;
  bool send_only_changed = false;
  double stuck_after_s = 8.0;

  void visit(FieldVisitor& v);
};

// Ranks [0, num_trainers) of a run of `gradus train` train; in colocated mode all do.
int64_t num_trainers(const ClusterConfig& config, int64_t world_size);

// InvalidArgument names the keys of a shape that these ranks cannot take.
Status validate(const ClusterConfig& config, int64_t world_size, bool uses_dynamic_sampling);

}  // namespace gradus::trainer
