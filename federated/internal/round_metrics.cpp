// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/round_metrics.h"

#include <algorithm>
#include <cmath>

namespace gradus::federated::internal {
namespace {

double quantile(std::vector<double> sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

void add_result_metrics(const RoundResult& result, std::span<const double> delta_P,
                        Metrics& metrics) {
  double sum = 0, squares = 0, loss = 0, norm = 0, staleness = 0;
  std::vector<double> scores;
  for (size_t k = 0; k < result.weights_K.size(); ++k) {
    const ClientReport& report = result.reports_K[k];
    sum += result.weights_K[k];
    squares += result.weights_K[k] * result.weights_K[k];
    loss += report.train_loss.value_or(0);
    norm += std::sqrt(report.squared_norm);
    staleness += static_cast<double>(report.staleness);
    if (report.score) scores.push_back(*report.score);
  }
  double step = 0;
  for (const double d : delta_P) step += d * d;
  metrics.set("federated/step_norm", std::sqrt(step));
  if (result.weights_K.empty()) return;  // of noise alone
  const auto count = static_cast<double>(result.weights_K.size());
  const auto [low, high] = std::minmax_element(result.weights_K.begin(), result.weights_K.end());
  metrics.set("federated/weights/min", *low);
  metrics.set("federated/weights/max", *high);
  metrics.set("federated/weights/effective_clients", squares > 0 ? sum * sum / squares : 0);
  metrics.set("federated/train_loss", loss / count);
  metrics.set("federated/update_norm", norm / count);
  metrics.set("federated/staleness", staleness / count);
  if (scores.empty()) return;
  std::sort(scores.begin(), scores.end());
  metrics.set("federated/score/min", scores.front());
  metrics.set("federated/score/p25", quantile(scores, 0.25));
  metrics.set("federated/score/median", quantile(scores, 0.5));
  metrics.set("federated/score/p75", quantile(scores, 0.75));
  metrics.set("federated/score/max", scores.back());
}

}  // namespace gradus::federated::internal
