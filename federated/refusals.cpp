// SPDX-License-Identifier: Apache-2.0
#include "federated/refusals.h"

#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace gradus::federated {

int64_t Refusals::total() const {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

void Refusals::add_ranks(comm::Communicator& ranks) {
  if (ranks.size() == 1) return;
  const std::vector<double> mine(counts.begin(), counts.end());
  const auto sums = comm::all_reduce_sum(ranks, std::span(mine));
  for (size_t i = 0; i < kNumRefusals; ++i) counts[i] = static_cast<int64_t>(sums[i]);
}

void Refusals::set_metrics(Metrics& metrics) const {
  constexpr std::array<const char*, kNumRefusals> kNames = {
      "shape", "norm", "not_finite", "replay", "version", "report", "mismatch"};
  metrics.set("federated/refused", static_cast<double>(total()));
  for (size_t i = 0; i < kNumRefusals; ++i) {
    if (counts[i] == 0) continue;
    metrics.set(std::string("federated/refused/") + kNames[i], static_cast<double>(counts[i]));
  }
}

}  // namespace gradus::federated
