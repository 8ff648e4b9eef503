// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

using Sequences = std::span<const ScoredSequence>;

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Equal rewards carry no signal; their mean may be off by a rounding, which must not become one.
bool is_flat(std::span<const double> rewards) {
  return std::all_of(rewards.begin(), rewards.end(),
                     [&](double reward) { return reward == rewards[0]; });
}

// sqrt of the mean square distance, divided by n - 1 or n; 0 for one value.
double deviation_of(std::span<const double> values, Deviation kind) {
  if (values.size() < 2) return 0;
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const size_t divisor = values.size() - (kind == Deviation::kSample ? 1 : 0);
  return std::sqrt(squares / static_cast<double>(divisor));
}

// Indices of the responses of each group, groups in the order of their first response.
std::vector<std::vector<size_t>> groups_of(Sequences sequences) {
  std::map<int64_t, size_t> place;
  std::vector<std::vector<size_t>> groups;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto [found, is_new] = place.emplace(sequences[s].group, groups.size());
    if (is_new) groups.emplace_back();
    groups[found->second].push_back(s);
  }
  return groups;
}

// Rewards less the penalties of all of a response's tokens.
std::vector<double> net_rewards(Sequences sequences) {
  std::vector<double> rewards;
  for (const ScoredSequence& sequence : sequences) {
    double reward = sequence.reward;
    for (const double penalty : sequence.penalties) reward -= penalty;
    rewards.push_back(reward);
  }
  return rewards;
}

// Each response's advantage at all of its tokens.
Advantages at_all_tokens(Sequences sequences, std::span<const double> of_sequences) {
  Advantages advantages;
  advantages.sequence_begin = begins_of(sequences);
  for (size_t s = 0; s < sequences.size(); ++s) {
    advantages.tokens.insert(advantages.tokens.end(), static_cast<size_t>(sequences[s].num_tokens),
                             of_sequences[s]);
  }
  return advantages;
}

// An advantage of whole responses, found in each group by itself.
class GroupAdvantage : public AdvantageEstimator {
 public:
  // Fills advantages from the rewards of a group of at least two that are not all equal.
  // lengths[i] is the number of loss tokens of response i.
  using OfGroup = std::vector<double> (*)(const AlgorithmConfig& config,
                                          std::span<const double> rewards,
                                          std::span<const double> lengths);

  // `of_one`: what becomes of the reward of a response alone in its group.
  enum class OfOne { kReward, kZero };
  GroupAdvantage(const AlgorithmConfig& config, OfGroup of_group, OfOne of_one)
      : config_(config),
        scaling_(config.scaling.value_or(default_scaling(config.advantage))),
        of_group_(of_group),
        of_one_(of_one) {}

  Advantages estimate(Sequences sequences) const override {
    return at_all_tokens(sequences, of_sequences(sequences, net_rewards(sequences)));
  }

 protected:
  std::vector<double> of_sequences(Sequences sequences, const std::vector<double>& rewards) const {
    std::vector<double> advantages(sequences.size(), 0.0);
    for (const std::vector<size_t>& members : groups_of(sequences)) {
      std::vector<double> of_members, lengths;
      std::vector<size_t> scored;
      for (const size_t s : members) {
        if (std::isnan(rewards[s])) continue;  // a part of the reward that does not apply
        scored.push_back(s);
        of_members.push_back(rewards[s]);
        lengths.push_back(static_cast<double>(sequences[s].num_tokens));
      }
      if (scored.size() == 1) {
        if (of_one_ == OfOne::kReward) advantages[scored[0]] = of_members[0];
      } else if (!is_flat(of_members)) {
        const std::vector<double> of_group = of_group_(config_, of_members, lengths);
        for (size_t i = 0; i < scored.size(); ++i) advantages[scored[i]] = of_group[i];
      }
    }
    return advantages;
  }

  const AlgorithmConfig config_;
  const Scaling scaling_;

 private:
  OfGroup of_group_;
  OfOne of_one_;
};

std::vector<double> above_mean(const AlgorithmConfig&, std::span<const double> rewards,
                               std::span<const double>) {
  const double mean = mean_of(rewards);
  std::vector<double> advantages;
  for (const double reward : rewards) advantages.push_back(reward - mean);
  return advantages;
}

std::vector<double> above_mean_by_deviation(const AlgorithmConfig& config,
                                            std::span<const double> rewards,
                                            std::span<const double>) {
  const double mean = mean_of(rewards);
  const double divisor = deviation_of(rewards, config.deviation) + config.std_epsilon;
  std::vector<double> advantages;
  for (const double reward : rewards) advantages.push_back((reward - mean) / divisor);
  return advantages;
}

// Rewards above the group's mean, by the deviation of the group (Shao et al. 2024, DeepSeekMath,
// arXiv:2402.03300, 4.1.2), by that of the batch (Lite PPO, Liu et al. 2025, arXiv:2508.08221), or
// as they are (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783).
class GrpoAdvantage : public GroupAdvantage {
 public:
  GrpoAdvantage(const AlgorithmConfig& config, Scaling scaling)
      : GroupAdvantage(config, scaling == Scaling::kGroup ? above_mean_by_deviation : above_mean,
                       OfOne::kReward),
        is_by_batch_(scaling == Scaling::kBatch) {}

  Advantages estimate(Sequences sequences) const override {
    const std::vector<double> rewards = net_rewards(sequences);
    std::vector<double> advantages = of_sequences(sequences, rewards);
    if (is_by_batch_) {
      const double divisor = deviation_of(rewards, config_.deviation) + config_.std_epsilon;
      for (double& advantage : advantages) advantage /= divisor;
    }
    return at_all_tokens(sequences, advantages);
  }

 private:
  bool is_by_batch_;
};

// MaxRL (Tajwar et al. 2026, arXiv:2602.02710), as prime-rl has it: (R - mean) / mean, which weighs
// prompts that are rarely solved more; 0 unless the mean is positive.
std::vector<double> above_mean_by_mean(const AlgorithmConfig&, std::span<const double> rewards,
                                       std::span<const double>) {
  const double mean = mean_of(rewards);
  std::vector<double> advantages;
  for (const double reward : rewards) {
    advantages.push_back(mean > 0 ? (reward - mean) / mean : 0.0);
  }
  return advantages;
}

// RLOO (Ahmadian et al. 2024, arXiv:2402.14740, Eq. 6): the mean of the others as baseline.
std::vector<double> above_others(const AlgorithmConfig&, std::span<const double> rewards,
                                 std::span<const double>) {
  const double count = static_cast<double>(rewards.size());
  const double sum = std::accumulate(rewards.begin(), rewards.end(), 0.0);
  std::vector<double> advantages;
  for (const double reward : rewards) {
    advantages.push_back((count * reward - sum) / (count - 1));
  }
  return advantages;
}

// OPO (Hao et al. 2025, arXiv:2505.23585, Eq. 9): the mean weighed by length as baseline.
std::vector<double> above_length_weighted_mean(const AlgorithmConfig&,
                                               std::span<const double> rewards,
                                               std::span<const double> lengths) {
  const double total = std::accumulate(lengths.begin(), lengths.end(), 0.0);
  double baseline = 0;
  for (size_t i = 0; i < rewards.size(); ++i) baseline += lengths[i] * rewards[i];
  if (total > 0) baseline /= total;
  std::vector<double> advantages;
  for (const double reward : rewards) advantages.push_back(reward - baseline);
  return advantages;
}

// pass@k training as verl has it (after Chen et al. 2025, arXiv:2508.10751): the best response gets
// its lead over the second, the others nothing.
std::vector<double> lead_of_the_best(const AlgorithmConfig& config, std::span<const double> rewards,
                                     std::span<const double>) {
  std::vector<double> advantages(rewards.size(), 0.0);
  const auto best = std::max_element(rewards.begin(), rewards.end());
  double second = -std::numeric_limits<double>::infinity();
  for (auto it = rewards.begin(); it != rewards.end(); ++it) {
    if (it != best) second = std::max(second, *it);
  }
  double lead = *best - second;
  if (config.scaling.value_or(Scaling::kGroup) == Scaling::kGroup) {
    lead /= deviation_of(rewards, config.deviation) + config.std_epsilon;
  }
  advantages[static_cast<size_t>(best - rewards.begin())] = lead;
  return advantages;
}

// A group's advantage, whitened over the tokens of the batch.
class WhitenedGroupAdvantage : public GroupAdvantage {
 public:
  using GroupAdvantage::GroupAdvantage;

  Advantages estimate(Sequences sequences) const override {
    Advantages advantages = GroupAdvantage::estimate(sequences);
    if (scaling_ == Scaling::kBatch) whiten(advantages.tokens);
    return advantages;
  }
};

// GDPO (Liu et al. 2026, arXiv:2601.05242): GRPO's advantage for each part of the reward by itself,
// added up with the parts' weights, then whitened over the tokens of the batch.
class GdpoAdvantage : public GroupAdvantage {
 public:
  explicit GdpoAdvantage(const AlgorithmConfig& config)
      : GroupAdvantage(config, above_mean_by_deviation, OfOne::kReward) {}

  Advantages estimate(Sequences sequences) const override {
    std::vector<double> sums(sequences.size(), 0.0);
    const size_t num_parts = sequences.empty() ? 0 : sequences[0].reward_parts.size();
    for (size_t k = 0; k < num_parts; ++k) {
      std::vector<double> part;
      for (const ScoredSequence& sequence : sequences) part.push_back(sequence.reward_parts[k]);
      const std::vector<double> of_part = of_sequences(sequences, part);
      for (size_t s = 0; s < sums.size(); ++s) {
        const std::vector<double>& weights = sequences[s].part_weights;
        sums[s] += (weights.empty() ? 1.0 : weights[k]) * of_part[s];
      }
    }
    Advantages advantages = at_all_tokens(sequences, sums);
    if (scaling_ == Scaling::kBatch) whiten(advantages.tokens);
    return advantages;
  }
};

MadeAdvantage made(AdvantageEstimator* estimator) {
  return std::unique_ptr<AdvantageEstimator>(estimator);
}

using OfOne = GroupAdvantage::OfOne;

}  // namespace

MadeAdvantage make_grpo_advantage(const AlgorithmConfig& config) {
  return made(new GrpoAdvantage(config, config.scaling.value_or(Scaling::kGroup)));
}
MadeAdvantage make_dr_grpo_advantage(const AlgorithmConfig& config) {
  return made(new GrpoAdvantage(config, Scaling::kNone));
}
MadeAdvantage make_maxrl_advantage(const AlgorithmConfig& config) {
  return made(new GroupAdvantage(config, above_mean_by_mean, OfOne::kZero));
}
MadeAdvantage make_rloo_advantage(const AlgorithmConfig& config) {
  return made(new WhitenedGroupAdvantage(config, above_others, OfOne::kReward));
}
MadeAdvantage make_opo_advantage(const AlgorithmConfig& config) {
  return made(new GroupAdvantage(config, above_length_weighted_mean, OfOne::kReward));
}
MadeAdvantage make_pass_at_k_advantage(const AlgorithmConfig& config) {
  return made(new GroupAdvantage(config, lead_of_the_best, OfOne::kZero));
}
// REINFORCE++ with the group's mean as baseline (Hu et al. 2025, arXiv:2501.03262, 3.2).
MadeAdvantage make_reinforce_pp_baseline_advantage(const AlgorithmConfig& config) {
  return made(new WhitenedGroupAdvantage(config, above_mean, OfOne::kReward));
}
MadeAdvantage make_gdpo_advantage(const AlgorithmConfig& config) {
  return made(new GdpoAdvantage(config));
}

}  // namespace gradus::trainer
