// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "rewards/rubric.h"

// Phase I of RuCL (arXiv:2602.21628, section 3.2): a rubric from candidates and what they said of
// sampled responses.
namespace gradus::rewards {

// Of one candidate over the responses on which its check did not fail.
struct CriterionStatistics {
  int64_t num_judged = 0;      // that it applied to, or not
  int64_t num_applicable = 0;  // a
  int64_t num_failed = 0;      // checks that failed; in neither
  double sum = 0;              // of scores

  double applicability() const;  // eta = a / N; 0 if none was judged
  double pass_rate() const;      // p; 0 if it never applied
};

struct RubricBuildOptions {
  double min_applicability = 0.99;  // tau_app
  // Easy are those with p at or above it; unset: those above the largest gap between neighbours.
  std::optional<double> threshold;
};

// Keeps the candidates that apply often enough and gives each its stratum, easiest first; their
// weights are dropped. InvalidArgument when fewer than two are left, or all are of one stratum.
Result<RubricConfig> build_rubric(const RubricConfig& candidates,
                                  const std::vector<CriterionStatistics>& statistics,
                                  const RubricBuildOptions& options);

}  // namespace gradus::rewards
