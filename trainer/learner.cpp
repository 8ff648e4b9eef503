// SPDX-License-Identifier: Apache-2.0
#include "trainer/learner.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gradus::trainer {

double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t num_steps) {
  if (step < config.warmup_steps) {
    return config.learning_rate * static_cast<double>(step + 1) /
           static_cast<double>(config.warmup_steps);
  }
  const double length = static_cast<double>(std::max<int64_t>(1, num_steps - config.warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(step - config.warmup_steps) / length);
  double fraction = 1.0;
  switch (config.lr_schedule) {
    case LrSchedule::kConstant:
      return config.learning_rate;
    case LrSchedule::kLinear:
      fraction = 1.0 - progress;
      break;
    case LrSchedule::kCosine:
      fraction = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
      break;
  }
  return config.learning_rate * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * fraction);
}

std::vector<BlockRange> block_ranges(int64_t num_groups, int64_t num_blocks) {
  std::vector<BlockRange> blocks;
  for (int64_t b = 0; b < num_blocks; ++b) {
    blocks.push_back({b * num_groups / num_blocks, (b + 1) * num_groups / num_blocks});
  }
  return blocks;
}

BlockRange blocks_of_rank(int64_t num_blocks, int rank, int num_ranks) {
  return {num_blocks * rank / num_ranks, num_blocks * (rank + 1) / num_ranks};
}

}  // namespace gradus::trainer
