// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/round_plan.h"

#include <algorithm>
#include <cmath>

#include "federated/internal/fixed_point.h"
#include "federated/internal/secure_sum.h"

namespace gradus::federated::internal {

Status check_report(const Aggregator& aggregator, int64_t version, const RoundOptions& options,
                    const ClientReport& report, Refusal& cause) {
  cause = Refusal::kReport;
  if (report.client_id < 0 || report.client_id >= aggregator.context().num_clients) {
    return invalid_argument("client {}: unknown; the run's clients are 0 to {}", report.client_id,
                            aggregator.context().num_clients - 1);
  }
  cause = Refusal::kVersion;
  if (report.base_version > version ||
      (report.base_version < version && aggregator.config().staleness_exponent == 0)) {
    return invalid_argument(
        "client {}: its update is of model version {}, this round's is {}; train on the current "
        "model, or set staleness_exponent above 0 to take older ones",
        report.client_id, report.base_version, version);
  }
  cause = Refusal::kReport;
  if (report.num_samples < 1) {
    return invalid_argument("client {}: num_samples is {}; it must be at least 1", report.client_id,
                            report.num_samples);
  }
  cause = Refusal::kNotFinite;
  if ((report.score && !std::isfinite(*report.score)) ||
      (report.loss && !std::isfinite(*report.loss))) {
    return invalid_argument("client {}: its loss or score is not finite", report.client_id);
  }
  if (!report.is_finite) {
    return invalid_argument("client {}: its update has values that are not finite",
                            report.client_id);
  }
  cause = Refusal::kNorm;
  const double max_norm = options.max_norm;
  if (options.secure_sum && report.max_abs >= kSecureMaxValue) {
    return invalid_argument(
        "client {}: its update has a value of {:.4g}; secure aggregation carries values below {}",
        report.client_id, report.max_abs, kSecureMaxValue);
  }
  if (max_norm > 0 && report.squared_norm > max_norm * max_norm) {
    return invalid_argument("client {}: its update has norm {:.4g}; the limit is {:.4g}",
                            report.client_id, std::sqrt(report.squared_norm), max_norm);
  }
  return {};
}

Status weigh(Aggregator& aggregator, int64_t version, const RoundOptions& options,
             RoundResult& result) {
  std::vector<ClientReport>& reports = result.reports_K;
  std::sort(reports.begin(), reports.end(),
            [](const ClientReport& a, const ClientReport& b) { return a.client_id < b.client_id; });
  for (size_t k = 0; k + 1 < reports.size(); ++k) {
    if (reports[k].client_id == reports[k + 1].client_id) {
      return invalid_argument("client {}: two updates in one round; a client has one",
                              reports[k].client_id);
    }
  }
  const int64_t needed = options.private_sum ? 0 : std::max<int64_t>(aggregator.min_updates(), 1);
  if (static_cast<int64_t>(reports.size()) < needed) {
    return unavailable("{} updates; strategy {} needs at least {}", reports.size(),
                       aggregator.config().name, needed);
  }
  for (ClientReport& report : reports) report.staleness = version - report.base_version;
  if (options.private_sum) {
    std::vector<int64_t> samples;
    for (const ClientReport& report : reports) samples.push_back(report.num_samples);
    Result<privacy::PrivateWeights> weights = privacy::private_weights(
        samples, options.private_sum->sample_cap, options.private_sum->expected_weight);
    if (!weights.ok()) return weights.status();
    result.shares_K = result.weights_K = std::move(weights->weights_K);
    return {};
  }
  Result<std::vector<double>> shares = aggregator.shares(reports);
  if (!shares.ok()) return shares.status();
  result.shares_K = *shares;
  Result<std::vector<double>> weights = aggregator.weights(reports, std::move(*shares));
  if (!weights.ok()) return weights.status();
  result.weights_K = std::move(*weights);
  return {};
}

double weight_in(const RoundResult& result, size_t k, int64_t v) {
  return v > 0 ? 1 / static_cast<double>(result.reports_K.size()) : result.weights_K[k];
}

int exponent_of(const RoundResult& result, int64_t v) {
  double largest = 0;
  for (size_t k = 0; k < result.reports_K.size(); ++k) {
    largest = std::max(largest, std::fabs(weight_in(result, k, v)) * result.reports_K[k].max_abs);
  }
  return fixed_point_exponent(largest, static_cast<int64_t>(result.reports_K.size()));
}

}  // namespace gradus::federated::internal
