// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "trainer/algorithm.h"

// Makers of the built-in algorithms, one file each.
namespace gradus::trainer {

Result<std::unique_ptr<Algorithm>> make_grpo(const TrainerConfig& config);
Result<std::unique_ptr<Algorithm>> make_reinforce(const TrainerConfig& config);

// Mean of values; 0 for none.
double mean_of(std::span<const double> values);

}  // namespace gradus::trainer
