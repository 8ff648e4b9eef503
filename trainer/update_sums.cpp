// SPDX-License-Identifier: Apache-2.0
#include "trainer/update_sums.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace gradus::trainer {
namespace {

bool has_kl_loss(const AlgorithmConfig& config) {
  return config.kl.coef != 0 && config.kl.place == KlPlace::kLoss;
}

}  // namespace

void UpdateSums::add_entropies(bool is_correct, std::span<const float> entropies) {
  const int which = is_correct ? 1 : 0;
  for (const float value : entropies) open_entropy_of[which] += double{value};
  open_tokens_of[which] += static_cast<double>(entropies.size());
}

void UpdateSums::add(const LossTerms& terms, double num_tokens) {
  const LossCounts& counts = terms.counts;
  const double values[] = {terms.policy_loss,
                           terms.kl_loss,
                           terms.entropy,
                           terms.policy_kl / num_tokens,
                           (counts.clipped_low + counts.clipped_high) / num_tokens,
                           counts.clipped_low / num_tokens,
                           counts.clipped_high / num_tokens,
                           counts.dual_clipped / num_tokens,
                           open_entropy_of[0],
                           open_entropy_of[1],
                           open_tokens_of[0],
                           open_tokens_of[1]};
  micro_batches.insert(micro_batches.end(), std::begin(values), std::end(values));
  for (const int which : {0, 1}) open_entropy_of[which] = open_tokens_of[which] = 0;
  min_ratio = std::min(min_ratio, terms.min_ratio);
  max_ratio = std::max(max_ratio, terms.max_ratio);
}

void UpdateSums::reduce() {
  double* const members[] = {&policy_loss, &kl_loss,       &entropy,      &policy_kl,
                             &clipped,     &clipped_low,   &clipped_high, &dual_clipped,
                             entropy_of,   entropy_of + 1, tokens_of,     tokens_of + 1};
  const size_t width = std::size(members);
  for (size_t i = 0; i < micro_batches.size(); ++i) *members[i % width] += micro_batches[i];
  micro_batches.clear();
}

void UpdateSums::reduce(comm::Communicator& communicator) {
  micro_batches = comm::all_gather_values<double>(communicator, micro_batches);
  reduce();
  const std::vector<double> mine = {min_ratio, max_ratio, max_mismatch};
  const std::vector<double> all = comm::all_gather_values<double>(communicator, mine);
  for (size_t i = 0; i < all.size(); i += mine.size()) {
    min_ratio = std::min(min_ratio, all[i]);
    max_ratio = std::max(max_ratio, all[i + 1]);
    max_mismatch = std::max(max_mismatch, all[i + 2]);
  }
}

double UpdateSums::loss(const AlgorithmConfig& config, double entropy_coef) const {
  return policy_loss + (has_kl_loss(config) ? config.kl.coef : 0.0) * kl_loss -
         entropy_coef * entropy;
}

void UpdateSums::write(const AlgorithmConfig& config, double entropy_coef, Metrics& metrics) const {
  metrics.add("actor/loss", loss(config, entropy_coef));
  metrics.add("actor/pg_loss", policy_loss);
  metrics.add("actor/entropy", entropy);
  metrics.add("actor/pg_clipfrac", clipped);
  metrics.add("actor/pg_clipfrac_lower", dual_clipped);
  metrics.add("clip_ratio/low_mean", clipped_low);
  metrics.add("clip_ratio/high_mean", clipped_high);
  metrics.add("actor/ppo_kl", policy_kl);
  metrics.add("actor/ratio_min", min_ratio);
  metrics.add("actor/ratio_max", max_ratio);
  if (has_kl_loss(config)) {
    metrics.add("actor/kl_loss", kl_loss);
    metrics.set("actor/kl_coef", config.kl.coef);
  }
  const char* const names[] = {"actor/entropy_incorrect", "actor/entropy_correct"};
  for (int i = 0; i < 2; ++i) {
    if (tokens_of[i] > 0) metrics.add(names[i], entropy_of[i] / tokens_of[i], tokens_of[i]);
  }
}

}  // namespace gradus::trainer
