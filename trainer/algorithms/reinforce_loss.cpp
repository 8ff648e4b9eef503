// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// REINFORCE (Williams 1992): -A lp. No ratio, so it is meant for one update per rollout batch.
class ReinforceLoss : public PolicyLoss {
 public:
  void add_policy_loss(const LossBatch& batch, LossTerms& terms) const override {
    for (size_t s = 0; s < batch.advantages.size(); ++s) {
      for (int64_t t = batch.sequence_begin[s]; t < batch.sequence_begin[s + 1]; ++t) {
        const size_t i = static_cast<size_t>(t);
        const double scale = -batch.advantages[s] / batch.num_tokens;
        terms.policy_loss += scale * double{batch.logprobs[i]};
        terms.dlogprobs[i] += scale;
      }
    }
  }
};

}  // namespace

Result<std::unique_ptr<PolicyLoss>> make_reinforce_loss(const AlgorithmConfig&) {
  return std::unique_ptr<PolicyLoss>(new ReinforceLoss());
}

}  // namespace gradus::trainer
