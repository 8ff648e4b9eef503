// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// REINFORCE (Williams 1992) with the group's mean reward as baseline: A = R - mean, loss -A lp. No
// ratio, so it is meant for one update per rollout batch.
class Reinforce : public Algorithm {
 public:
  std::vector<double> advantages(std::span<const double> rewards) const override {
    const bool is_flat = std::all_of(rewards.begin(), rewards.end(),
                                     [&](double reward) { return reward == rewards[0]; });
    const double baseline = rewards.size() == 1 ? 0.0 : mean_of(rewards);
    std::vector<double> advantages;
    for (const double reward : rewards) {
      advantages.push_back(is_flat && rewards.size() > 1 ? 0.0 : reward - baseline);
    }
    return advantages;
  }

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

Result<std::unique_ptr<Algorithm>> make_reinforce(const TrainerConfig&) {
  return std::unique_ptr<Algorithm>(new Reinforce());
}

}  // namespace gradus::trainer
