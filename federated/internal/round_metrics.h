// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "common/metrics.h"
#include "federated/round.h"

namespace gradus::federated::internal {

// What the round's reports, weights and step say: docs/metrics.md, federated/.
void add_result_metrics(const RoundResult& result, std::span<const double> delta_P,
                        Metrics& metrics);

}  // namespace gradus::federated::internal
