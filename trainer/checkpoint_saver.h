// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "records/checkpoint_store.h"
#include "records/state_shards.h"
#include "trainer/learner.h"
#include "trainer/run_state.h"

// Checkpoints of a run, written beside its training and shared out over its ranks
// (docs/checkpoints.md has the layout). save() copies this rank's share of weights and optimizer,
// 1 / ranks of them, and returns; a thread writes the copy while the next steps run.
namespace gradus::trainer {

// Writes this process's share of a checkpoint into `folder`: every rank calls it, share 0 also
// writes config and tokenizer. What is in the folder afterwards is read by load_checkpoint().
class CheckpointShare {
 public:
  // Copies; of the arguments the layouts of adapters alone are used afterwards. `critic` may be
  // null. Collective, over the learner's ranks.
  CheckpointShare(const Policy& policy, Learner& learner, const RunPosition& position, int share,
                  int num_shares, Critic* critic = nullptr);
  // Unavailable when the disk is full; or what went wrong when weights were copied.
  Status write(const std::string& folder) const;
  // Names of the files that write() makes, for shares other than 0.
  std::vector<std::string> files() const;

 private:
  // A model and its optimizer alone.
  CheckpointShare(const Policy& policy, Learner& learner, int share, int num_shares);

  int share_, num_shares_;
  Status status_;  // of the copy
  model::ModelConfig config_;
  std::string tokenizer_dir_, tokenizer_json_;
  // Of a run that trains an adapter, which is small: share 0 has all of it. It outlives this.
  const model::LoraAdapter* adapter_ = nullptr;
  std::string base_path_;
  std::vector<float> adapter_values_, adapter_average_;
  // Else the weights of this share, each in the layout of the parameters.
  using Weights = std::map<std::string, std::pair<model::ParameterPlace, std::vector<float>>>;
  // Adds those that begin in floats [begin, end) of `parameters`.
  void copy(const model::ParameterLayout& layout, const float* parameters, int64_t begin,
            int64_t end, Weights& weights) const;
  Status write_model(const Weights& weights, const std::string& folder) const;
  Weights weights_, average_;  // the running average, if there is one
  records::StateSnapshot state_;
  std::unique_ptr<CheckpointShare> critic_;  // in a folder of its own
};

// Every rank has one; calls are collective and return the same status on all ranks. Not
// thread-safe.
class CheckpointSaver {
 public:
  // `store` on rank 0, null on the others; both outlive the saver.
  CheckpointSaver(records::CheckpointStore* store, comm::Communicator& communicator);
  // Waits for a write that is going on; its error is lost unless finish() was called before.
  ~CheckpointSaver();

  // Waits for the last write, copies the state and starts to write it. `also`, on rank 0, writes
  // further files into the folder before this returns: what is too small to be worth a copy.
  // Errors of the last write, of `also`, or of starting this one (no space).
  Status save(const Policy& policy, Learner& learner, const RunPosition& position,
              std::optional<double> metric, Critic* critic = nullptr,
              const std::function<Status(const std::string& folder)>& also = {});
  // What has gone wrong since, without waiting.
  Status check();
  // Waits until the checkpoint is written, or is known to be impossible.
  Status finish();

 private:
  Result<std::string> begin(int64_t step, int64_t num_bytes);
  void write(const CheckpointShare& share, const std::string& folder, std::optional<double> metric);
  void join();

  records::CheckpointStore* store_;
  comm::Communicator& communicator_;
  std::optional<records::CheckpointDraft> draft_;  // rank 0, while it is written
  std::thread writer_;
  std::atomic<bool> is_done_{true};    // the thread has left status_ behind
  std::atomic<bool> gives_up_{false};  // rank 0 stops waiting for the other shares
  Status status_;
};

}  // namespace gradus::trainer
