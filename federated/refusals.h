// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "comm/communicator.h"
#include "common/metrics.h"

// Why updates were left out of a round, counted. A plain struct; not thread-safe.
namespace gradus::federated {

enum class Refusal {
  kShape,      // another number of values than the model
  kNorm,       // beyond federated.clients.max_norm, or beyond what a secure sum carries
  kNotFinite,  // NaN or Inf among its values, loss or score
  kReplay,     // a second message of one client, or one of a round that is over
  kVersion,    // of a version of the model that the strategy does not take
  kReport,     // no samples, or an unknown client
  kMismatch,   // a deployment: values that are not those of its report
};
inline constexpr size_t kNumRefusals = 7;

struct Refusals {
  std::array<int64_t, kNumRefusals> counts{};  // by Refusal

  void add(Refusal cause) { ++counts[static_cast<size_t>(cause)]; }
  int64_t total() const;
  // Becomes the sum over the ranks. Collective.
  void add_ranks(comm::Communicator& ranks);
  // federated/refused, and federated/refused/<cause> of those that occurred.
  void set_metrics(Metrics& metrics) const;
};

}  // namespace gradus::federated
