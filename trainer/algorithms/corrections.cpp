// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithms/corrections.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace gradus::trainer {
namespace {

// The effective correction, its bounds filled in: decoupled PPO (Hilton et al. 2022,
// arXiv:2110.00641; the mask is that of AReaL, Fu et al. 2025, arXiv:2505.24298) is a loss with an
// IcePop of its own.
CorrectionConfig effective(const AlgorithmConfig& config) {
  if (config.loss == "decoupled_ppo") {
    CorrectionConfig decoupled;
    decoupled.kind = CorrectionKind::kIcepop;
    decoupled.low = 0.0;
    decoupled.high = config.behavior_bound;
    return decoupled;
  }
  CorrectionConfig correction = config.correction;
  const auto [low, high] = default_bounds(correction.kind);
  if (!correction.low) correction.low = low;
  if (!correction.high) correction.high = high;
  return correction;
}

// Weights of one response; rho and its log by token.
void weigh_sequence(const CorrectionConfig& correction, std::span<const double> log_rho,
                    std::span<double> weights) {
  const double low = *correction.low, high = *correction.high;
  const auto is_inside = [&](double ratio) { return ratio >= low && ratio <= high; };
  const double sum = std::accumulate(log_rho.begin(), log_rho.end(), 0.0);
  const double of_sequence = exp_held(sum);
  const double of_mean = exp_held(sum / static_cast<double>(log_rho.size()));
  const bool is_by_token = correction.level == CorrectionLevel::kToken;
  for (size_t t = 0; t < log_rho.size(); ++t) {
    const double rho = exp_held(log_rho[t]);
    const double looked_at = is_by_token ? rho : of_sequence;
    switch (correction.kind) {
      case CorrectionKind::kNone:
      case CorrectionKind::kBypass:
        weights[t] = 1;
        break;
      case CorrectionKind::kTisToken:
        weights[t] = std::clamp(rho, low, high);
        break;
      case CorrectionKind::kTisSequence:
        weights[t] = std::clamp(of_sequence, low, high);
        break;
      case CorrectionKind::kIcepop:
        weights[t] = is_inside(looked_at) ? looked_at : 0;
        break;
      case CorrectionKind::kGeometric:
        weights[t] = is_inside(of_mean) ? (correction.weighs_kept ? rho : 1) : 0;
        break;
      case CorrectionKind::kReject:
        weights[t] = is_inside(looked_at) ? (correction.weighs_kept ? rho : 1) : 0;
        break;
    }
  }
  if (correction.veto > 0 && std::any_of(log_rho.begin(), log_rho.end(), [&](double log) {
        return exp_held(log) < correction.veto;
      })) {
    std::fill(weights.begin(), weights.end(), 0.0);
  }
}

// Mean over tokens, or over responses where all tokens of one have the same weight (as verl does).
double mean_weight(const CorrectionConfig& correction, const MiniBatch& batch,
                   std::span<const double> weights) {
  const bool is_by_sequence = correction.kind == CorrectionKind::kTisSequence ||
                              (correction.kind == CorrectionKind::kIcepop &&
                               correction.level == CorrectionLevel::kSequence);
  double sum = 0, count = 0;
  for (size_t s = 0; s + 1 < batch.sequence_begin.size(); ++s) {
    const size_t begin = static_cast<size_t>(batch.sequence_begin[s]);
    const size_t end = static_cast<size_t>(batch.sequence_begin[s + 1]);
    if (begin == end) continue;
    if (is_by_sequence) {
      sum += weights[begin];
      count += 1;
    } else {
      for (size_t i = begin; i < end; ++i) sum += weights[i];
      count += static_cast<double>(end - begin);
    }
  }
  return count > 0 ? sum / count : 0;
}

// M2PO (Zheng et al. 2025, arXiv:2510.01161): tokens of the largest (lb - lo)^2 go until the mean
// of those that stay is below the threshold; equal ones go the last first.
void drop_largest_second_moments(double threshold, const MiniBatch& batch,
                                 std::vector<double>& weights) {
  std::vector<double> moments;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double log_rho = batch.behavior_logprobs[i] - batch.old_logprobs[i];
    moments.push_back(log_rho * log_rho);
  }
  std::vector<size_t> order(moments.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return moments[a] < moments[b]; });
  // The mean of an ascending prefix ascends, so the longest one that passes is the answer.
  double sum = 0;
  size_t kept = 0;
  for (; kept < order.size(); ++kept) {
    sum += moments[order[kept]];
    if (sum / static_cast<double>(kept + 1) >= threshold) break;
  }
  for (size_t i = kept; i < order.size(); ++i) weights[order[i]] = 0;
}

}  // namespace

double exp_held(double log_ratio) {
  return std::exp(std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio));
}

std::vector<double> correction_weights(const AlgorithmConfig& config, const MiniBatch& batch) {
  const CorrectionConfig correction = effective(config);
  std::vector<double> weights(batch.old_logprobs.size(), 1.0);
  std::vector<double> log_rho;
  for (size_t i = 0; i < weights.size(); ++i) {
    log_rho.push_back(batch.old_logprobs[i] - batch.behavior_logprobs[i]);
  }
  for (size_t s = 0; s + 1 < batch.sequence_begin.size(); ++s) {
    const size_t begin = static_cast<size_t>(batch.sequence_begin[s]);
    const size_t count = static_cast<size_t>(batch.sequence_begin[s + 1]) - begin;
    if (count == 0) continue;
    weigh_sequence(correction, std::span(log_rho).subspan(begin, count),
                   std::span(weights).subspan(begin, count));
  }
  if (correction.is_normalized && correction.kind != CorrectionKind::kBypass) {
    const double mean = mean_weight(correction, batch, weights);
    if (mean > 1e-8) {
      for (double& weight : weights) weight /= mean;
    }
  }
  if (config.loss == "m2po") drop_largest_second_moments(config.m2_threshold, batch, weights);
  return weights;
}

bool weighs_at_loss(const AlgorithmConfig& config) {
  return config.loss == "reinforce" && config.correction.kind == CorrectionKind::kBypass;
}

double bypass_weight(const AlgorithmConfig& config, double logprob, double behavior_logprob) {
  const auto [low, high] = default_bounds(CorrectionKind::kBypass);
  return std::clamp(exp_held(logprob - behavior_logprob), config.correction.low.value_or(low),
                    config.correction.high.value_or(high));
}

}  // namespace gradus::trainer
