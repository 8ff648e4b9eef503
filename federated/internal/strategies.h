// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "federated/aggregator.h"

// The built-in strategies by family; each function is in the file of strategies/ of its name.
namespace gradus::federated::internal {

void register_averages(AggregatorRegistry& registry);
void register_controls(AggregatorRegistry& registry);
void register_robust_rules(AggregatorRegistry& registry);
void register_server_optimizers(AggregatorRegistry& registry);

template <class Strategy>
AggregatorRegistry::Factory factory() {
  return [](const AggregatorConfig& config,
            const AggregatorContext& context) -> Result<std::unique_ptr<Aggregator>> {
    return std::unique_ptr<Aggregator>(std::make_unique<Strategy>(config, context));
  };
}

}  // namespace gradus::federated::internal
