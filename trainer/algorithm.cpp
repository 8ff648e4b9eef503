// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm.h"

#include <cmath>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {

void register_builtin_algorithms(AlgorithmRegistry& registry) {
  registry.add("grpo", make_grpo);
  registry.add("reinforce", make_reinforce);
}

LossTerms loss_terms(const Algorithm& algorithm, const TrainerConfig& config,
                     const LossBatch& batch) {
  const size_t num_tokens = batch.logprobs.size();
  GRADUS_CHECK(batch.sequence_begin.size() == batch.advantages.size() + 1 &&
                   static_cast<size_t>(batch.sequence_begin.back()) == num_tokens,
               "loss batch: sequences do not cover the tokens");
  LossTerms terms;
  terms.dlogprobs.assign(num_tokens, 0);
  terms.dentropies.assign(num_tokens, 0);
  algorithm.add_policy_loss(batch, terms);
  for (size_t i = 0; i < num_tokens; ++i) {
    terms.policy_kl += double{batch.old_logprobs[i]} - double{batch.logprobs[i]};
    terms.entropy += batch.entropies[i] / batch.num_tokens;
    if (config.entropy_coef != 0) terms.dentropies[i] -= config.entropy_coef / batch.num_tokens;
    if (config.kl_coef == 0) continue;
    // Schulman's estimators of KL(policy || initial) with d = lf - lp: k1 = -d, k2 = d^2 / 2,
    // k3 = e^d - d - 1.
    const double d = double{batch.reference_logprobs[i]} - double{batch.logprobs[i]};
    double value = 0, slope = 0;  // slope by lp
    switch (config.kl_kind) {
      case KlKind::kK1:
        value = -d, slope = 1;
        break;
      case KlKind::kK2:
        value = d * d / 2, slope = -d;
        break;
      case KlKind::kK3:
        value = std::exp(d) - d - 1, slope = 1 - std::exp(d);
        break;
    }
    terms.kl_loss += value / batch.num_tokens;
    terms.dlogprobs[i] += config.kl_coef * slope / batch.num_tokens;
  }
  return terms;
}

}  // namespace gradus::trainer
