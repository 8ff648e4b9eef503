// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "federated/aggregator.h"

namespace gradus::federated {

// What became of a round.
struct RoundResult {
  std::vector<ClientReport> reports_K;  // accepted, of all ranks, by client id
  std::vector<double> shares_K, weights_K;
  std::vector<double> delta_P;  // the server's step: x += delta
};

// One round's updates on their way to one step of the server. Sums are made in fixed point, so the
// result has the same bits for any order of updates, number of threads and ranks. Not thread-safe.
//
//   Round round(aggregator, version);
//   for (...) round.add(update);       // a refused one is a status, and the round goes on
//   Result<RoundResult> result = round.finish(communicator);
class Round {
 public:
  // `version` of the global model that the step is for. `max_norm` 0: updates of any size.
  Round(Aggregator& aggregator, int64_t version, double max_norm = 0)
      : aggregator_(aggregator), version_(version), max_norm_(max_norm) {}

  // Takes an update whose values stay where they are until finish(). measure() is called here
  // unless `is_measured`. InvalidArgument, and the update is left out: wrong length, unknown
  // client, values that are not finite, norm beyond the limit, no samples, another base version
  // (older ones pass if the strategy weighs them down), or a client that is in already.
  Status add(ModelDelta delta, bool is_measured = false);

  // Combines the updates of all ranks and takes the server's step; every rank gets the same result.
  // Unavailable if there are fewer than the strategy needs, InvalidArgument if a report lacks what
  // it needs or a client is on two ranks; its state is then unchanged.
  Result<RoundResult> finish(comm::Communicator* ranks = nullptr);

 private:
  Aggregator& aggregator_;
  int64_t version_;
  double max_norm_;
  std::vector<ModelDelta> deltas_;
};

}  // namespace gradus::federated
