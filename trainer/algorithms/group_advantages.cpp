// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// Added to the group's standard deviation, as verl does.
constexpr double kStdEpsilon = 1e-6;

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Equal rewards carry no signal; their mean may be off by a rounding, which must not become one.
bool is_flat(std::span<const double> rewards) {
  return std::all_of(rewards.begin(), rewards.end(),
                     [&](double reward) { return reward == rewards[0]; });
}

// Rewards above the group's mean, divided by its unbiased deviation (Shao et al. 2024,
// DeepSeekMath, arXiv:2402.03300, 4.1.2) or not (Liu et al. 2025, Dr. GRPO, arXiv:2503.20783).
// One response alone keeps its reward.
class GroupAdvantage : public AdvantageEstimator {
 public:
  explicit GroupAdvantage(bool divides) : divides_(divides) {}

  std::vector<double> advantages(std::span<const double> rewards) const override {
    if (rewards.size() == 1) return {rewards[0]};
    if (is_flat(rewards)) return std::vector<double>(rewards.size(), 0.0);
    const double mean = mean_of(rewards);
    double squares = 0;
    for (const double reward : rewards) squares += (reward - mean) * (reward - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(rewards.size() - 1));
    std::vector<double> advantages;
    for (const double reward : rewards) {
      advantages.push_back(divides_ ? (reward - mean) / (deviation + kStdEpsilon) : reward - mean);
    }
    return advantages;
  }

 private:
  bool divides_;
};

}  // namespace

Result<std::unique_ptr<AdvantageEstimator>> make_grpo_advantage(const AlgorithmConfig&) {
  return std::unique_ptr<AdvantageEstimator>(new GroupAdvantage(true));
}

Result<std::unique_ptr<AdvantageEstimator>> make_dr_grpo_advantage(const AlgorithmConfig&) {
  return std::unique_ptr<AdvantageEstimator>(new GroupAdvantage(false));
}

}  // namespace gradus::trainer
