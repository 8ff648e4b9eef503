// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/weight_channel.h"
#include "trainer/rollout_work.h"

namespace gradus::trainer {

// How trainers have responses sampled by ranks that only sample (docs/cluster.md). Every trainer
// has one and makes the same calls; rank 0 gives out the work, in shares of whole groups, and
// passes the answers on; weights go out from all trainers, each to its own receivers. A rollout
// rank that dies loses its shares to the others. Not thread-safe.
class RolloutClient {
 public:
  // `trainers` are the first ranks of `world`, the rest sample.
  RolloutClient(comm::Communicator& world, comm::Communicator& trainers,
                std::vector<comm::TensorRange> tensors, comm::WeightChannelOptions options);

  // Starts to send weights, unless the last ones had this stamp.
  void publish(std::span<const float> weights, comm::WeightStamp stamp);
  // Starts to have `requests` sampled by the published weights: groups of `group_size` neighbours.
  void ask(int64_t step, std::vector<data::RolloutRequest> requests, int64_t group_size);
  bool has_asked() const { return !asked_.empty(); }
  // The records of the oldest work asked for, by request, on all trainers. Errors of a rollout rank
  // name it; Unavailable if all have died.
  Result<std::vector<records::RolloutRecord>> collect(
      Metrics& metrics, const std::function<void(int64_t)>& progress = {});
  // Lets messages move while this rank computes.
  void progress() { world_.progress(); }
  // There is no more work.
  void end();

  int num_lost() const;

 private:
  struct Share {
    int rank = 0;               // that has it
    size_t first = 0, end = 0;  // requests
    bool is_done = false;
  };
  struct Asked {
    RolloutWork work;
    std::vector<Share> shares;
    std::vector<records::RolloutRecord> records;
    Metrics metrics;
    int64_t num_done = 0;  // responses
  };

  std::vector<int> living() const;
  void send_share(const Asked& asked, size_t share);
  Status give_lost_shares_away(Asked& asked);
  Status take(const comm::Message& message);
  Status wait_for(Asked& asked, const std::function<void(int64_t)>& progress);

  comm::Communicator& world_;
  comm::Communicator& trainers_;
  comm::WeightSender sender_;
  comm::WeightStamp stamp_;
  bool has_published_ = false;
  std::vector<int> awaits_weights_;  // rollout ranks that have not been told of `stamp_`
  uint64_t num_works_ = 0;
  std::deque<Asked> asked_;
};

}  // namespace gradus::trainer
