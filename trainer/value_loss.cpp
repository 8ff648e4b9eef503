// SPDX-License-Identifier: Apache-2.0
#include "trainer/value_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace gradus::trainer {
namespace {

double sample_variance(std::span<const double> values) {
  const double count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return squares / (count - 1);
}

}  // namespace

TokenValueLoss value_loss(double value, double old_value, double target, double clip) {
  const double error = value - target;
  const TokenValueLoss free = {.loss = error * error / 2, .slope = error};
  if (clip == 0) return free;
  const double held = std::clamp(value, old_value - clip, old_value + clip);
  const double held_error = held - target;
  const double held_loss = held_error * held_error / 2;
  if (held_loss > free.loss) return {.loss = held_loss, .slope = 0, .is_clipped = true};
  return free;
}

ValueLossTerms value_loss_terms(const AlgorithmConfig& config, const BatchCounts& counts,
                                std::span<const int64_t> sequence_begin,
                                std::span<const double> values, std::span<const double> old_values,
                                std::span<const double> returns, double clip,
                                std::span<double> slopes) {
  ValueLossTerms terms;
  const int64_t origin = sequence_begin.front();
  for (size_t s = 0; s + 1 < sequence_begin.size(); ++s) {
    const int64_t num_tokens = sequence_begin[s + 1] - sequence_begin[s];
    const double divisor = loss_divisor(config, counts, num_tokens);
    for (int64_t t = 0; t < num_tokens; ++t) {
      const size_t i = static_cast<size_t>(sequence_begin[s] - origin + t);
      const TokenValueLoss token = value_loss(values[i], old_values[i], returns[i], clip);
      terms.loss += token.loss / divisor;
      terms.num_clipped += token.is_clipped ? 1 : 0;
      slopes[i] = token.slope / divisor;
    }
  }
  return terms;
}

double explained_variance(std::span<const double> values, std::span<const double> returns) {
  if (values.size() < 2) return 0;
  std::vector<double> errors(values.size());
  for (size_t i = 0; i < values.size(); ++i) errors[i] = returns[i] - values[i];
  return 1 - sample_variance(errors) / (sample_variance(returns) + 1e-5);
}

}  // namespace gradus::trainer
