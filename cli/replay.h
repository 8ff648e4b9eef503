// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"

// What `gradus train --load-rollouts PATH` trains on.
namespace gradus::cli {

// Consecutive steps whose rollouts are on disk, and the state that the first of them begins from.
struct Replay {
  std::string folder;  // of the files step_N.jsonl
  int64_t first_step = 1, last_step = 0;
  std::string checkpoint;  // empty: the model of the configuration, before step 1
};

// `path` is a folder of rollouts (that of a run, of --dump-rollouts or of a failed step) or one of
// its files. NotFound without rollouts, or when they begin after step 1 and the checkpoint before
// them is neither in the folder (checkpoint/) nor in the run that the folder belongs to
// (../checkpoints/step_N).
Result<Replay> find_replay(const std::string& path);

}  // namespace gradus::cli
