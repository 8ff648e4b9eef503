// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"

// Everything that a run leaves behind, in one folder:
//
//   config.resolved.yaml            every value and where it came from
//   metrics.jsonl                   one object per step (metrics_log.h)
//   events.out.tfevents.*           the same metrics for TensorBoard
//   rollouts/step_N.jsonl           trajectories with rewards (rollout_dump.h)
//   checkpoints/step_N/             weights, optimizer, positions (checkpoint_store.h)
//   failed_step_N/                  rollouts and state of a step whose gradients were not finite
//   logs/                           rank_N.log
//   report.html                     `gradus report`
namespace gradus::records {

// The paths of a run folder. Value type; touches no file. Every rank may have one.
class RunPaths {
 public:
  explicit RunPaths(std::string folder) : folder_(std::move(folder)) {}

  const std::string& folder() const { return folder_; }
  std::string config() const { return folder_ + "/config.resolved.yaml"; }
  std::string metrics() const { return folder_ + "/metrics.jsonl"; }
  std::string checkpoints() const { return folder_ + "/checkpoints"; }
  std::string logs() const { return folder_ + "/logs"; }
  std::string report() const { return folder_ + "/report.html"; }
  std::string rollouts() const { return folder_ + "/rollouts"; }
  std::string rollouts(int64_t step) const;
  std::string failed_step(int64_t step) const;

 private:
  std::string folder_;
};

enum class RunStart {
  kFresh,         // a run that is already there is refused
  kResume,        // a run must be there
  kResumeOrFresh  // continue what is there, or begin: for jobs that a scheduler restarts
};

// The one writer of a run folder (rank 0). Holds a lock on it for its lifetime, so that two
// processes cannot mix their steps; the kernel drops the lock when the process dies. Not
// thread-safe.
class RunFolder {
 public:
  // Makes the folder and its subfolders.
  //
  // InvalidArgument when kFresh meets a folder with recorded steps, rollouts or checkpoints, or one
  // full of other things (what a run left that ended before its first step is used again); NotFound
  // when kResume meets no run; Unavailable when another process writes there or the disk refuses.
  static Result<RunFolder> open(const std::string& folder, RunStart start);

  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const RunPaths& paths() const { return paths_; }
  // Whether a run was here before.
  bool is_resumed() const { return is_resumed_; }

  Status write_config(const std::string& yaml);

  // Removes the rollouts of the steps after `step`: a resumed run makes them again. Metrics are cut
  // by MetricsLog::open.
  Status cut_after(int64_t step);

 private:
  RunFolder(RunPaths paths, int lock, bool is_resumed)
      : paths_(std::move(paths)), lock_(lock), is_resumed_(is_resumed) {}

  RunPaths paths_;
  int lock_ = -1;  // descriptor
  bool is_resumed_ = false;
};

}  // namespace gradus::records
