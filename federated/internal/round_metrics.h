// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/metrics.h"
#include "federated/round.h"

namespace gradus::federated::internal {

// What the round's reports, weights and step (delta_P) say: docs/metrics.md, federated/.
void add_result_metrics(const RoundResult& result, Metrics& metrics);

}  // namespace gradus::federated::internal
