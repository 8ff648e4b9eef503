// SPDX-License-Identifier: Apache-2.0
#include "federated/aggregator.h"

#include <cmath>

#include "federated/internal/strategies.h"

namespace gradus::federated {

Result<std::vector<double>> Aggregator::shares(std::span<const ClientReport> reports_K) {
  std::vector<double> raw;
  for (const ClientReport& report : reports_K) {
    raw.push_back(config_.weighting == Weighting::kSamples ? static_cast<double>(report.num_samples)
                                                           : 1.0);
  }
  return normalized(reports_K, std::move(raw));
}

std::vector<double> Aggregator::normalized(std::span<const ClientReport> reports_K,
                                           std::vector<double> raw_K) const {
  double sum = 0;
  for (size_t k = 0; k < raw_K.size(); ++k) {
    if (reports_K[k].staleness > 0) {
      raw_K[k] *=
          std::pow(1 + static_cast<double>(reports_K[k].staleness), -config_.staleness_exponent);
    }
    sum += raw_K[k];
  }
  for (double& share : raw_K) share /= sum;
  return raw_K;
}

void Aggregator::combine(const Updates&, std::span<double>, std::span<double>) {
  GRADUS_CHECK(false, "strategy " + config_.name + " has no rule of its own");
}

void Aggregator::step(std::span<const ClientReport>, std::span<const double>,
                      std::span<double> delta) {
  for (double& d : delta) d *= config_.server_lr;
}

void register_builtin_aggregators(AggregatorRegistry& registry) {
  internal::register_averages(registry);
  internal::register_controls(registry);
  internal::register_robust_rules(registry);
  internal::register_server_optimizers(registry);
}

Result<std::unique_ptr<Aggregator>> make_aggregator(const AggregatorConfig& config,
                                                    const AggregatorContext& context) {
  AggregatorRegistry registry("strategy");
  register_builtin_aggregators(registry);
  return registry.create(config.name, config, context);
}

}  // namespace gradus::federated
