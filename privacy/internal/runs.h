// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "privacy/accounting.h"

// What both accountants ask of their input.
namespace gradus::privacy::internal {

Status check_runs(std::span<const SampledGaussian> runs, double delta);
int64_t num_rounds(std::span<const SampledGaussian> runs);

}  // namespace gradus::privacy::internal
