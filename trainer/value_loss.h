// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "trainer/loss_plan.h"

// What a critic minimises, in double: a function of each loss token's value v now, its value at the
// start of the step v_old and its return R. The sum over tokens is aggregated as the policy loss
// is, with denominators of the mini-batch over all ranks.
namespace gradus::trainer {

struct TokenValueLoss {
  double loss = 0;
  double slope = 0;  // by v
  bool is_clipped = false;
};

// The clipped value loss of PPO, as OpenAI's baselines and verl have it:
//   1/2 max((v - R)^2, (clip(v, v_old - clip, v_old + clip) - R)^2)
// A value that has left the band on the far side of R is held: slope 0. `clip` 0 is no clip, 1/2 (v
// - R)^2.
TokenValueLoss value_loss(double value, double old_value, double target, double clip);

// The share of a whole mini-batch's value loss that its responses from `first_sequence` on have:
// adds up over shares. Spans over their loss tokens.
struct ValueLossTerms {
  double loss = 0;
  double num_clipped = 0;  // tokens
};
ValueLossTerms value_loss_terms(const AlgorithmConfig& config, const BatchCounts& counts,
                                std::span<const int64_t> sequence_begin,
                                std::span<const double> values, std::span<const double> old_values,
                                std::span<const double> returns, double clip,
                                std::span<double> slopes);

// 1 - var(R - v) / var(R), sample variances over the tokens, as verl reports it: 1 for values that
// are the returns, 0 for a constant. 0 for fewer than two tokens.
double explained_variance(std::span<const double> values, std::span<const double> returns);

}  // namespace gradus::trainer
