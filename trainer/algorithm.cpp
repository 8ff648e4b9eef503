// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm.h"

#include <cmath>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {

void register_builtin_losses(LossRegistry& registry) {
  registry.add("ppo", make_ppo_loss);
  registry.add("reinforce", make_reinforce_loss);
}

void register_builtin_advantages(AdvantageRegistry& registry) {
  registry.add("dr_grpo", make_dr_grpo_advantage);
  registry.add("grpo", make_grpo_advantage);
}

Result<Algorithm> make_algorithm(const AlgorithmConfig& config) {
  LossRegistry losses("loss");
  register_builtin_losses(losses);
  AdvantageRegistry advantages("advantage");
  register_builtin_advantages(advantages);
  Result<std::unique_ptr<AdvantageEstimator>> advantage =
      advantages.create(config.advantage, config);
  if (!advantage.ok()) return advantage.status().with_prefix("trainer.algorithm.advantage");
  Result<std::unique_ptr<PolicyLoss>> loss = losses.create(config.loss, config);
  if (!loss.ok()) return loss.status().with_prefix("trainer.algorithm.loss");
  return Algorithm{std::move(*advantage), std::move(*loss)};
}

LossTerms loss_terms(const PolicyLoss& loss, const TrainerConfig& config, const LossBatch& batch) {
  const size_t num_tokens = batch.logprobs.size();
  GRADUS_CHECK(batch.sequence_begin.size() == batch.advantages.size() + 1 &&
                   static_cast<size_t>(batch.sequence_begin.back()) == num_tokens,
               "loss batch: sequences do not cover the tokens");
  LossTerms terms;
  terms.dlogprobs.assign(num_tokens, 0);
  terms.dentropies.assign(num_tokens, 0);
  loss.add_policy_loss(batch, terms);
  const KlConfig& kl = config.algorithm.kl;
  for (size_t i = 0; i < num_tokens; ++i) {
    terms.policy_kl += double{batch.old_logprobs[i]} - double{batch.logprobs[i]};
    terms.entropy += batch.entropies[i] / batch.num_tokens;
    if (config.entropy_coef != 0) terms.dentropies[i] -= config.entropy_coef / batch.num_tokens;
    if (kl.coef == 0) continue;
    // Schulman's estimators of KL(policy || initial) with d = lf - lp: k1 = -d, k2 = d^2 / 2,
    // k3 = e^d - d - 1.
    const double d = double{batch.reference_logprobs[i]} - double{batch.logprobs[i]};
    double value = 0, slope = 0;  // slope by lp
    switch (kl.kind) {
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
    terms.dlogprobs[i] += kl.coef * slope / batch.num_tokens;
  }
  return terms;
}

}  // namespace gradus::trainer
