// SPDX-License-Identifier: Apache-2.0
#include "cli/replay.h"

#include <algorithm>
#include <filesystem>

#include "records/rollout_dump.h"

namespace fs = std::filesystem;

namespace gradus::cli {

Result<Replay> find_replay(const std::string& path) {
  Replay replay;
  std::error_code error;
  const bool is_file = fs::is_regular_file(path, error);
  replay.folder = is_file ? ("." / fs::path(path).parent_path()).string() : path;
  std::vector<int64_t> steps = records::rollout_steps(replay.folder);
  if (is_file) {
    std::erase_if(steps, [&](int64_t step) {
      return fs::path(path).filename() != fmt::format("step_{}.jsonl", step);
    });
  }
  if (steps.empty()) {
    return not_found(
        "--load-rollouts {}: no step_N.jsonl; name a folder of rollouts or a file in one", path);
  }
  replay.first_step = replay.last_step = steps.front();
  for (const int64_t step : steps) {
    if (step == replay.last_step + 1) replay.last_step = step;
  }
  const std::string own = replay.folder + "/checkpoint";
  const std::string of_run =
      fmt::format("{}/../checkpoints/step_{}", replay.folder, replay.first_step - 1);
  if (fs::is_directory(own, error)) {
    replay.checkpoint = own;
  } else if (replay.first_step > 1) {
    if (!fs::is_directory(of_run, error)) {
      return not_found(
          "--load-rollouts {}: begins with step {}, so the replay begins from the checkpoint of "
          "step {}, but there is neither {} nor {}; keep that checkpoint or replay from step 1",
          path, replay.first_step, replay.first_step - 1, own, of_run);
    }
    replay.checkpoint = of_run;
  }
  return replay;
}

}  // namespace gradus::cli
