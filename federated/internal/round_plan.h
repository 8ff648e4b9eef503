// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "federated/round.h"

// The steps of a round that need reports alone, shared by Round, which has all updates at hand, and
// by a deployment's server, which never has a whole one.
namespace gradus::federated::internal {

// Whether an update with this report may be in the round of `version`: known client, version that
// is taken, samples, finite and within the limits. InvalidArgument as Round::add, with its `cause`.
Status check_report(const Aggregator& aggregator, int64_t version, const RoundOptions& options,
                    const ClientReport& report, Refusal& cause);

// Sorts result.reports_K by client, sets their staleness, and fills shares_K and weights_K. Errors
// as Round::finish.
Status weigh(Aggregator& aggregator, int64_t version, const RoundOptions& options,
             RoundResult& result);

// The weight of report k in vector v of the updates; vectors behind the first are averaged equally.
double weight_in(const RoundResult& result, size_t k, int64_t v);

// The exponent of the sums of vector v in fixed point (fixed_point.h).
int exponent_of(const RoundResult& result, int64_t v);

}  // namespace gradus::federated::internal
