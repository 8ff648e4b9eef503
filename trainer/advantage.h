// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/registry.h"
#include "trainer/algorithm_config.h"

// From rewards to the advantages of tokens. All of a step's responses over all ranks come together,
// so that what is normalised over the batch depends on neither ranks nor mini-batches. In double.
namespace gradus::trainer {

// A scored response. Spans are over its loss tokens (those that the policy sampled and that count),
// [num_tokens]; a response without any stays in the mean of its group.
struct ScoredSequence {
  int64_t group = 0;  // equal for the responses of one prompt
  double reward = 0;
  int64_t num_tokens = 0;
  std::span<const double> penalties;    // taken from the reward at each token (KL); may be empty
  std::span<const double> values;       // of the critic before each token; for gae
  std::vector<double> reward_parts;     // unweighted, NaN where one does not apply; for gdpo
  std::vector<double> part_weights;     // of reward_parts; empty: all 1
  std::optional<double> greedy_reward;  // of the greedy response to the prompt; for remax
};

// Values of all responses' loss tokens, one response after the other.
struct Advantages {
  std::vector<int64_t> sequence_begin = {0};  // [S + 1]
  std::vector<double> tokens;
  std::vector<double> returns;  // what a critic learns, A + V before whitening; of gae alone
};

class AdvantageEstimator {
 public:
  virtual ~AdvantageEstimator() = default;

  // Equal rewards in a group give exact zeros where the estimator compares groups; a response
  // alone in its group keeps its reward. Input is as check_advantage_input wants it, apart from
  // the sizes of groups. Thread-safe.
  virtual Advantages estimate(std::span<const ScoredSequence> sequences) const = 0;
};

using AdvantageRegistry = Registry<AdvantageEstimator, const AlgorithmConfig&>;
void register_builtin_advantages(AdvantageRegistry& registry);

// InvalidArgument names the first response whose reward is not finite or that lacks what the
// estimator needs, a group of one or of another size than the first where groups are compared.
Status check_advantage_input(const AlgorithmConfig& config,
                             std::span<const ScoredSequence> sequences);

}  // namespace gradus::trainer
