// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "common/status.h"
#include "federated/aggregator.h"

namespace gradus::cli {

// What `gradus inspect aggregation` computes with: a strategy, and what a run would tell it.
struct InspectedAggregation {
  federated::AggregatorConfig strategy;
  double client_lr = 0.1;
  double client_momentum = 0;
  int64_t num_clients = 0;  // 0: those of the input

  void visit(FieldVisitor& v);
};

// `overrides` are the texts after --set. InvalidArgument with all problems.
Result<InspectedAggregation> inspected_aggregation(const std::string& strategy,
                                                   std::span<const std::string> overrides);

// One round of the strategy over `clients`, a JSON object (docs/federated.md), as one JSON object:
// "weights" by client, "delta", and "server_state" if the strategy keeps any. Messages begin with
// `where`.
Result<std::string> inspect_aggregation(const InspectedAggregation& config,
                                        const std::string& clients, const std::string& where);

}  // namespace gradus::cli
