// SPDX-License-Identifier: Apache-2.0
#include "trainer/loss_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "common/rng.h"
#include "trainer/algorithms/corrections.h"
#include "trainer/algorithms/kl.h"

namespace gradus::trainer {
namespace {

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// The value below which a share `q` of the values lies, between neighbours by linear interpolation.
double quantile_of(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double place = q * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

// Weights of a response become the geometric mean of those that are not 0, as verl has it for GMPO.
void take_geometric_mean(std::span<double> weights) {
  double logs = 0, kept = 0;
  for (const double weight : weights) {
    if (weight > 0) logs += std::log(weight), kept += 1;
  }
  for (double& weight : weights) {
    if (weight > 0) weight = std::exp(logs / kept);
  }
}

// A draw for one token by the ids of its response alone.
uint64_t token_draw(uint64_t sequence_key, size_t token) {
  RngSequence rng(hash64({sequence_key, token}), RngStream::kTokenChoice);
  return rng.next_u64();
}

}  // namespace

double loss_divisor(const AlgorithmConfig& config, const BatchCounts& counts, int64_t num_tokens) {
  switch (config.aggregation) {
    case Aggregation::kTokenMean:
      return counts.num_tokens;
    case Aggregation::kTokenSum:
      return 1;
    case Aggregation::kSeqMeanTokenSum:
      return counts.num_sequences;
    case Aggregation::kSeqMeanTokenSumNorm:
      return counts.num_sequences * static_cast<double>(config.aggregation_length.value());
    case Aggregation::kSeqMeanTokenMean:
      return counts.num_sequences * static_cast<double>(num_tokens);
  }
  GRADUS_CHECK(false, "aggregation out of range");
}

bool needs_preview_of_logprobs(const AlgorithmConfig& config) {
  return config.loss == "clip_cov" || config.loss == "kl_cov" ||
         (weighs_at_loss(config) && config.correction.is_normalized);
}

bool needs_preview_of_entropies(const AlgorithmConfig& config) {
  return config.top_entropy_quantile < 1;
}

bool needs_old_logprobs(const AlgorithmConfig& config) {
  return (config.correction.kind != CorrectionKind::kNone &&
          config.correction.kind != CorrectionKind::kBypass) ||
         config.loss == "decoupled_ppo" || config.loss == "m2po";
}

LossPlan::LossPlan(const AlgorithmConfig& config, const PolicyLoss& loss, double entropy_coef,
                   MiniBatch batch)
    : config_(config), loss_(loss), entropy_coef_(entropy_coef), batch_(std::move(batch)) {
  if (config_.correction.kind == CorrectionKind::kBypass) {
    batch_.old_logprobs = batch_.behavior_logprobs;
  }
  if (batch_.logprobs.empty()) batch_.logprobs = batch_.old_logprobs;
  const size_t num_sequences = batch_.sequence_begin.size() - 1;
  GRADUS_CHECK(static_cast<size_t>(batch_.sequence_begin.back()) == num_tokens() &&
                   batch_.advantages.size() == num_tokens() &&
                   batch_.behavior_logprobs.size() == num_tokens() &&
                   batch_.logprobs.size() == num_tokens() &&
                   batch_.sequence_keys.size() == num_sequences,
               "mini-batch: arrays do not cover the tokens");
  counts_.num_tokens = static_cast<double>(num_tokens());
  for (size_t s = 0; s < num_sequences; ++s) {
    const auto begin = batch_.advantages.begin() + batch_.sequence_begin[s];
    const auto end = batch_.advantages.begin() + batch_.sequence_begin[s + 1];
    if (begin == end) continue;
    counts_.num_sequences += 1;
    const bool has_signal = std::any_of(begin, end, [](double a) { return a != 0; });
    counts_.num_signal_sequences += has_signal ? 1 : 0;
  }
  weigh_tokens();
  if (needs_preview_of_entropies(config_)) keep_top_entropies();
  marks_.assign(num_tokens(), 0);
  if (config_.loss == "clip_cov" || config_.loss == "kl_cov") mark_covariances();
}

void LossPlan::weigh_tokens() {
  weights_ = correction_weights(config_, batch_);
  if (weighs_at_loss(config_) && config_.correction.is_normalized && num_tokens() > 0) {
    double sum = 0;
    for (size_t i = 0; i < num_tokens(); ++i) {
      sum += bypass_weight(config_, batch_.logprobs[i], batch_.behavior_logprobs[i]);
    }
    bypass_scale_ = counts_.num_tokens / sum;
  }
}

// Wang et al. 2025 (arXiv:2506.01939): only tokens at which the policy hesitates are trained.
void LossPlan::keep_top_entropies() {
  GRADUS_CHECK(batch_.entropies.size() == num_tokens(), "mini-batch: no preview of entropies");
  if (num_tokens() == 0) return;
  const double threshold = quantile_of(batch_.entropies, 1 - config_.top_entropy_quantile);
  for (size_t i = 0; i < num_tokens(); ++i) {
    if (batch_.entropies[i] < threshold) weights_[i] = 0;
  }
}

// Clip-Cov and KL-Cov (Cui et al. 2025, arXiv:2505.22617): cov = (A - mean A) (lp - mean lp) over
// the mini-batch. Clip-Cov takes at random some of those between two bounds that no clip holds;
// KL-Cov the largest, if positive.
void LossPlan::mark_covariances() {
  if (num_tokens() == 0) return;
  const double mean_advantage = mean_of(batch_.advantages);
  const double mean_logprob = mean_of(batch_.logprobs);
  const bool is_clip = config_.loss == "clip_cov";
  struct Candidate {
    double covariance;
    uint64_t draw;
    size_t token;
  };
  std::vector<Candidate> candidates;
  for (size_t s = 0; s + 1 < batch_.sequence_begin.size(); ++s) {
    const size_t begin = static_cast<size_t>(batch_.sequence_begin[s]);
    for (size_t i = begin; i < static_cast<size_t>(batch_.sequence_begin[s + 1]); ++i) {
      const double advantage = batch_.advantages[i];
      const double covariance = (advantage - mean_advantage) * (batch_.logprobs[i] - mean_logprob);
      const double ratio = exp_held(batch_.logprobs[i] - batch_.old_logprobs[i]);
      const bool is_held = (advantage > 0 && ratio > 1 + config_.clip_high) ||
                           (advantage < 0 && ratio < 1 - config_.clip_low);
      const bool is_inside =
          covariance > config_.covariance.low && covariance < config_.covariance.high;
      if (is_clip ? is_inside && !is_held : covariance > 0) {
        candidates.push_back({covariance, token_draw(batch_.sequence_keys[s], i - begin), i});
      }
    }
  }
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    if (!is_clip && a.covariance != b.covariance) return a.covariance > b.covariance;
    return std::tie(a.draw, a.token) < std::tie(b.draw, b.token);
  });
  const double wanted = std::max(1.0, std::floor(config_.covariance.fraction * counts_.num_tokens));
  for (size_t i = 0; i < candidates.size() && static_cast<double>(i) < wanted; ++i) {
    marks_[candidates[i].token] = 1;
  }
}

// The weights of one response, with what depends on lp.
std::vector<double> LossPlan::weights_of(int64_t sequence, std::span<const double> stopped) const {
  const size_t begin = static_cast<size_t>(batch_.sequence_begin[static_cast<size_t>(sequence)]);
  const double length = static_cast<double>(stopped.size());
  std::vector<double> weights(weights_.begin() + static_cast<int64_t>(begin),
                              weights_.begin() + static_cast<int64_t>(begin + stopped.size()));
  double drift = 0, advantage = 0;
  for (size_t t = 0; t < weights.size(); ++t) {
    const double behavior = batch_.behavior_logprobs[begin + t];
    if (weighs_at_loss(config_)) {
      weights[t] *= bypass_scale_ * bypass_weight(config_, stopped[t], behavior);
    }
    drift += (behavior - stopped[t]) / length;
    advantage += batch_.advantages[begin + t];
  }
  // OPSM (DeepSeek-V3.2, arXiv:2512.02556): a bad response that the policy has left teaches
  // nothing.
  if (config_.opsm_threshold && advantage < 0 && drift > *config_.opsm_threshold) {
    std::fill(weights.begin(), weights.end(), 0.0);
  }
  if (config_.loss == "gmpo") take_geometric_mean(weights);
  return weights;
}

LossTerms LossPlan::terms(const MicroBatch& micro_batch) const {
  const std::span<const double> logprobs = micro_batch.logprobs;
  const std::span<const double> all_stopped =
      micro_batch.stopped.empty() ? logprobs : micro_batch.stopped;
  const size_t count = logprobs.size();
  LossTerms terms;
  terms.token_loss.assign(count, 0);
  terms.dlogprobs.assign(count, 0);
  terms.dentropies.assign(count, 0);
  std::vector<double> loss, slope;
  size_t at = 0;
  for (int64_t s = micro_batch.first_sequence;
       s < micro_batch.first_sequence + micro_batch.num_sequences; ++s) {
    const size_t begin = static_cast<size_t>(batch_.sequence_begin[static_cast<size_t>(s)]);
    const size_t length =
        static_cast<size_t>(batch_.sequence_begin[static_cast<size_t>(s) + 1]) - begin;
    if (length == 0) continue;
    const std::span<const double> stopped = all_stopped.subspan(at, length);
    const std::vector<double> weights = weights_of(s, stopped);
    const LossSequence sequence = {logprobs.subspan(at, length),
                                   stopped,
                                   std::span(batch_.old_logprobs).subspan(begin, length),
                                   std::span(batch_.advantages).subspan(begin, length),
                                   weights,
                                   std::span(marks_).subspan(begin, length),
                                   &counts_};
    loss.assign(length, 0);
    slope.assign(length, 0);
    loss_.evaluate(sequence, loss, slope, terms.counts);
    const double divisor = loss_divisor(config_, counts_, static_cast<int64_t>(length));
    for (size_t t = 0; t < length; ++t) {
      terms.token_loss[at + t] = loss[t];
      terms.policy_loss += loss[t] / divisor;
      terms.dlogprobs[at + t] += slope[t] / divisor;
    }
    add_kl(micro_batch, sequence, at, divisor, terms);
    at += length;
  }
  GRADUS_CHECK(at == count, "micro-batch: responses do not cover the tokens");
  for (size_t i = 0; i < count; ++i) {
    terms.entropy += micro_batch.entropies[i] / counts_.num_tokens;
    if (entropy_coef_ != 0) terms.dentropies[i] -= entropy_coef_ / counts_.num_tokens;
  }
  return terms;
}

// The KL in the loss, and how far the policy has moved.
void LossPlan::add_kl(const MicroBatch& micro_batch, const LossSequence& sequence, size_t at,
                      double divisor, LossTerms& terms) const {
  const KlConfig& kl = config_.kl;
  const bool is_in_loss = kl.coef != 0 && kl.place == KlPlace::kLoss;
  for (size_t t = 0; t < sequence.logprobs.size(); ++t) {
    const double logprob = sequence.logprobs[t], old_logprob = sequence.old_logprobs[t];
    terms.policy_kl += old_logprob - logprob;
    const double ratio = std::exp(logprob - old_logprob);
    terms.min_ratio = std::min(terms.min_ratio, ratio);
    terms.max_ratio = std::max(terms.max_ratio, ratio);
    if (!is_in_loss) continue;
    KlTerm term = kl_term(kl.kind, logprob, sequence.stopped[t], old_logprob,
                          micro_batch.reference_logprobs[at + t]);
    if (kl.is_weighted) {
      term.value *= sequence.weights[t];
      term.slope *= sequence.weights[t];
    }
    terms.token_loss[at + t] += kl.coef * term.value;
    terms.kl_loss += term.value / divisor;
    terms.dlogprobs[at + t] += kl.coef * term.slope / divisor;
  }
}

bool LossPlan::has_foreign_tokens() const {
  return batch_.old_logprobs != batch_.behavior_logprobs;
}

void LossPlan::add_correction_metrics(Metrics& metrics) const {
  double kl = 0, k3 = 0, squares = 0, weight_sum = 0, weight_squares = 0, rejected = 0;
  double training_ppl = 0, rollout_ppl = 0, log_ppl_diff = 0, sequence_squares = 0;
  for (size_t s = 0; s + 1 < batch_.sequence_begin.size(); ++s) {
    const size_t begin = static_cast<size_t>(batch_.sequence_begin[s]);
    const size_t end = static_cast<size_t>(batch_.sequence_begin[s + 1]);
    if (begin == end) continue;
    double old_sum = 0, behavior_sum = 0;
    for (size_t i = begin; i < end; ++i) {
      const double log_rho = batch_.old_logprobs[i] - batch_.behavior_logprobs[i];
      old_sum += batch_.old_logprobs[i];
      behavior_sum += batch_.behavior_logprobs[i];
      kl -= log_rho;
      k3 += exp_held(log_rho) - log_rho - 1;
      squares += exp_held(2 * log_rho);
      weight_sum += weights_[i];
      weight_squares += weights_[i] * weights_[i];
      rejected += weights_[i] == 0 ? 1 : 0;
    }
    const double length = static_cast<double>(end - begin);
    training_ppl += std::exp(-old_sum / length);
    rollout_ppl += std::exp(-behavior_sum / length);
    log_ppl_diff += (behavior_sum - old_sum) / length;
    sequence_squares += exp_held(2 * (old_sum - behavior_sum));
  }
  const double n = counts_.num_tokens, b = counts_.num_sequences;
  metrics.add("rollout_corr/kl", kl / n);
  metrics.add("rollout_corr/k3_kl", k3 / n);
  metrics.add("rollout_corr/training_ppl", training_ppl / b);
  metrics.add("rollout_corr/rollout_ppl", rollout_ppl / b);
  metrics.add("rollout_corr/log_ppl_diff", log_ppl_diff / b);
  metrics.add("rollout_corr/chi2_token", squares / n - 1);
  metrics.add("rollout_corr/chi2_seq", sequence_squares / b - 1);
  metrics.add("rollout_corr/rollout_is_mean", weight_sum / n);
  if (weight_squares > 0) {
    metrics.add("rollout_corr/rollout_is_eff_sample_size",
                weight_sum * weight_sum / (n * weight_squares));
  }
  metrics.add("rollout_corr/rollout_rs_masked_fraction", rejected / n);
}

}  // namespace gradus::trainer
