// SPDX-License-Identifier: Apache-2.0
#include "rewards/rubric_build.h"

#include <algorithm>

#include "common/check.h"

namespace gradus::rewards {

double CriterionStatistics::applicability() const {
  return num_judged == 0 ? 0
                         : static_cast<double>(num_applicable) / static_cast<double>(num_judged);
}

double CriterionStatistics::pass_rate() const {
  return num_applicable == 0 ? 0 : sum / static_cast<double>(num_applicable);
}

Result<RubricConfig> build_rubric(const RubricConfig& candidates,
                                  const std::vector<CriterionStatistics>& statistics,
                                  const RubricBuildOptions& options) {
  GRADUS_CHECK(statistics.size() == candidates.criteria.size(), "statistics of each candidate");
  std::vector<size_t> kept;
  for (size_t i = 0; i < statistics.size(); ++i) {
    if (statistics[i].applicability() >= options.min_applicability) kept.push_back(i);
  }
  if (kept.size() < 2) {
    return invalid_argument(
        "{} of {} candidates apply to at least {} of the responses; a rubric with two strata needs "
        "2: "
        "add candidates, or lower --min-applicability",
        kept.size(), statistics.size(), options.min_applicability);
  }
  std::stable_sort(kept.begin(), kept.end(), [&](size_t a, size_t b) {
    return statistics[a].pass_rate() > statistics[b].pass_rate();
  });
  size_t num_easy = 0;
  if (options.threshold) {
    while (num_easy < kept.size() && statistics[kept[num_easy]].pass_rate() >= *options.threshold) {
      ++num_easy;
    }
  } else {
    double largest = -1;
    for (size_t i = 1; i < kept.size(); ++i) {
      const double gap = statistics[kept[i - 1]].pass_rate() - statistics[kept[i]].pass_rate();
      if (gap <= largest) continue;
      largest = gap;
      num_easy = i;
    }
  }
  if (num_easy == 0 || num_easy == kept.size()) {
    return invalid_argument(
        "all {} candidates that apply are {} at a threshold of {} (pass rates {:.4g} to {:.4g}); "
        "choose one between them, or leave --threshold out",
        kept.size(), num_easy == 0 ? "hard" : "easy", *options.threshold,
        statistics[kept.back()].pass_rate(), statistics[kept.front()].pass_rate());
  }
  RubricConfig rubric = candidates;
  rubric.criteria.clear();
  for (size_t i = 0; i < kept.size(); ++i) {
    RubricCriterion& one = rubric.criteria.emplace_back(candidates.criteria[kept[i]]);
    one.stratum = i < num_easy ? Stratum::kEasy : Stratum::kHard;
    one.weight.reset();
  }
  return rubric;
}

}  // namespace gradus::rewards
