// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "common/status.h"

namespace gradus::federated::internal {

// What clients keep from round to round, in one sparse file that all ranks of a host map: a client
// that never took part costs nothing. Before a client is changed for the first time since a
// checkpoint, its old state goes into a log, `PATH.undo_STEP.RANK`; with the logs since then a run
// that was killed gets the states of its checkpoint back. Rows of different clients may be used
// from different threads; everything else is for one.
class ClientStates {
 public:
  ClientStates() = default;  // keeps none
  // `size` floats for each client, 0: none is kept and nothing is opened. An empty path: in memory
  // alone. `is_fresh`: all zeros, else what is there. Unavailable if the disk refuses.
  static Result<ClientStates> open(const std::string& path, int64_t num_clients, int64_t size,
                                   bool is_fresh);
  ClientStates(ClientStates&& other) noexcept;
  ClientStates& operator=(ClientStates&& other) noexcept;
  ~ClientStates();

  // Empty if none is kept.
  std::span<float> row(int64_t client);

  // The interval after the checkpoint of `step` begins; logs of the interval before the last are
  // removed. Called by every rank.
  void start_interval(int64_t step, int rank);
  // Says that these clients are about to change, those of `mine` by this rank. Every rank names
  // the same `all`.
  Status before_change(std::span<const int64_t> all, std::span<const int64_t> mine);

  // Undoes what was done after the checkpoint of `step` to the file at `path`; rank 0 calls it
  // before any rank opens the file.
  static Status roll_back(const std::string& path, int64_t size, int64_t step);

 private:
  std::string path_;
  float* data_ = nullptr;
  int64_t num_clients_ = 0, size_ = 0;
  std::unordered_set<int64_t> logged_;
  int64_t step_ = 0;
  int rank_ = 0;
};

}  // namespace gradus::federated::internal
