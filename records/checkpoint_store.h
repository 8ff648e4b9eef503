// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

// Checkpoints as folders step_N that are whole or absent. A checkpoint is written into .tmp_step_N;
// its files are flushed, a manifest.json with their sizes and the 64-bit hashes of their tensors is
// written last, and the folder is renamed. A crash or a full disk at any moment leaves the earlier
// ones as they were.
//
//   CheckpointStore store("runs/a/checkpoints", {.keep_last = 3, .best_metric = "val/pass@1"});
//   Result<CheckpointDraft> draft = store.begin(step, num_bytes);
//   ... write files into draft->folder() ...
//   GRADUS_RETURN_IF_ERROR(store.commit(std::move(*draft), pass_at_1));
//
// One process (rank 0) has the store; other ranks may write files into its draft and say so with
// finish_share(). Not thread-safe.
namespace gradus::records {

struct CheckpointPolicy {
  int64_t keep_last = 3;    // how many of the newest stay; 0 keeps all
  std::string best_metric;  // name of the metric that commit() is given; empty: no best is kept
  bool higher_is_better = true;
};

struct Checkpoint {
  int64_t step = 0;
  std::string folder;
  std::optional<double> metric;  // value of the best metric when it was written
};

// A checkpoint being written; removes its folder unless it is committed.
class CheckpointDraft {
 public:
  CheckpointDraft(CheckpointDraft&& other) noexcept;
  CheckpointDraft& operator=(CheckpointDraft&&) = delete;
  ~CheckpointDraft();

  int64_t step() const { return step_; }
  const std::string& folder() const { return folder_; }

 private:
  friend class CheckpointStore;
  CheckpointDraft(int64_t step, std::string folder) : step_(step), folder_(std::move(folder)) {}

  int64_t step_ = 0;
  std::string folder_;  // empty once committed
};

class CheckpointStore {
 public:
  // What happens to a warning, e.g. a broken checkpoint that is passed over.
  using Warn = std::function<void(const std::string& message)>;

  CheckpointStore(std::string folder, CheckpointPolicy policy, Warn warn);

  // A fresh folder to write the files of `step` into; leftovers of interrupted writes are removed.
  // Unavailable when fewer than `num_bytes` (the expected size; 0 skips the question) are free.
  Result<CheckpointDraft> begin(int64_t step, int64_t num_bytes = 0);

  // Flushes, writes the manifest, renames to step_N (replacing one of the same step), then deletes
  // what the policy no longer keeps: never the newest, never the best. `metric` decides which one
  // is best; NaN never is. Also points the symbolic links `latest` and `best` at their folders, for
  // people. On an error the draft is gone and nothing else has changed.
  Status commit(CheckpointDraft draft, std::optional<double> metric);

  // Waits until shares 1 .. num_shares - 1 of a draft are finished; unless `gives_up` is set
  // meanwhile: Unavailable. commit() takes their hashes from the notes that finish_share() left.
  static Status await_shares(const CheckpointDraft& draft, int num_shares,
                             const std::atomic<bool>& gives_up);
  // On another rank: flushes and hashes the files (names in `draft_folder`) that it has written
  // there, and leaves a note with their hashes. `share` is in [1, num_shares).
  static Status finish_share(const std::string& draft_folder, int share,
                             std::span<const std::string> files);

  // Whole checkpoints by ascending step: those whose manifest can be read and whose files have the
  // right sizes. Others are named by a warning.
  std::vector<Checkpoint> list() const;

  // The newest whose hashes are right too; a damaged one is named by a warning, with the file and
  // the tensor, and the previous one is used. Nothing if there is none.
  std::optional<Checkpoint> latest() const;

  // The checkpoint of one step. NotFound names the steps that exist; DataLoss if it is broken.
  Result<Checkpoint> at(int64_t step) const;

  // The best by the metric, or nothing.
  std::optional<Checkpoint> best() const;

 private:
  Status publish(const CheckpointDraft& draft) const;
  Status prune(int64_t newest_step) const;

  std::string folder_;
  CheckpointPolicy policy_;
  Warn warn_;
};

}  // namespace gradus::records
