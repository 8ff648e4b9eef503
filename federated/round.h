// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "federated/aggregator.h"
#include "federated/refusals.h"
#include "privacy/gaussian.h"

namespace gradus::federated {

// What became of a round.
struct RoundResult {
  std::vector<ClientReport> reports_K;  // accepted, of all ranks, by client id
  std::vector<double> shares_K, weights_K;
  std::vector<double> delta_P;  // the server's step: x += delta
};

// What makes a round's sum private (docs/privacy.md): weights min(n_k / sample_cap, 1) /
// expected_weight in place of the strategy's, and noise of `stddev` on the sum, before the server's
// step. Updates are clipped by who adds them. A round of no updates is one of noise alone.
struct PrivateSum {
  int64_t sample_cap = 1;
  double expected_weight = 1;
  double stddev = 0;
  privacy::GaussianNoise noise;
};

// Who takes part in a round's secure aggregation, with those that leave after their shares of the
// masks were sent. The sum has the bits of a plain one.
struct SecureSum {
  std::vector<int64_t> client_ids;  // increasing
  int64_t num_neighbours = 0;       // 0: all, at most 64
  uint64_t seed = 0;                // of the clients' identities, in a simulation
};

struct RoundOptions {
  double max_norm = 0;  // 0: updates of any size
  std::optional<PrivateSum> private_sum{};
  std::optional<SecureSum> secure_sum{};
};

// One round's updates on their way to one step of the server. Sums are made in fixed point, so the
// result has the same bits for any order of updates, number of threads and ranks. Not thread-safe.
//
//   Round round(aggregator, version);
//   for (...) round.add(update);       // a refused one is a status, and the round goes on
//   Result<RoundResult> result = round.finish(communicator);
class Round {
 public:
  // `version` of the global model that the step is for.
  Round(Aggregator& aggregator, int64_t version, RoundOptions options = {})
      : aggregator_(aggregator), version_(version), options_(std::move(options)) {}

  // Takes an update whose values stay where they are until finish(). measure() is called here
  // unless `is_measured`. InvalidArgument, and the update is left out: wrong length, unknown
  // client, values that are not finite, norm beyond the limit, a value of 16 or more under secure
  // aggregation, no samples, another base version
  // (older ones pass if the strategy weighs them down), or a client that is in already.
  Status add(ModelDelta delta, bool is_measured = false);

  // Of add(), by cause, on this rank.
  const Refusals& refusals() const { return refusals_; }

  // Combines the updates of all ranks and takes the server's step; every rank gets the same result.
  // Unavailable if there are fewer than the strategy needs, InvalidArgument if a report lacks what
  // it needs or a client is on two ranks; its state is then unchanged.
  Result<RoundResult> finish(comm::Communicator* ranks = nullptr);

 private:
  Aggregator& aggregator_;
  int64_t version_;
  RoundOptions options_;
  std::vector<ModelDelta> deltas_;
  Refusals refusals_;
};

}  // namespace gradus::federated
