// SPDX-License-Identifier: Apache-2.0
#include "data/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "common/check.h"
#include "common/rng.h"

namespace gradus::data {
namespace {

// The z with P(|standard normal| <= z) = confidence, by bisection: called once a table.
double two_sided_quantile(double confidence) {
  GRADUS_CHECK(confidence > 0 && confidence < 1,
               fmt::format("confidence {} is not in (0, 1)", confidence));
  double low = 0, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (std::erf(middle / std::numbers::sqrt2) < confidence ? low : high) = middle;
  }
  return (low + high) / 2;
}

// C(n, k) as a double; exact up to 2^53 and within a few ulp beyond, infinite only above n = 1029.
double binomial(int64_t n, int64_t k) {
  if (k < 0 || k > n) return 0;
  double value = 1;
  for (int64_t i = 1; i <= std::min(k, n - k); ++i) {
    value = value * static_cast<double>(n - i + 1) / static_cast<double>(i);
  }
  return value;
}

double log_binomial(int64_t n, int64_t k) {
  return std::lgamma(static_cast<double>(n) + 1) - std::lgamma(static_cast<double>(k) + 1) -
         std::lgamma(static_cast<double>(n - k) + 1);
}

}  // namespace

double pass_at_k(int64_t num_samples, int64_t num_correct, int64_t k) {
  GRADUS_CHECK(0 <= num_correct && num_correct <= num_samples && 1 <= k && k <= num_samples,
               fmt::format("pass@k of n {}, c {}, k {}", num_samples, num_correct, k));
  if (num_samples - num_correct < k) return 1;
  // C(n-c, k) / C(n, k) as a product of k fractions, none of which overflows.
  double all_wrong = 1;
  for (int64_t i = 0; i < k; ++i) {
    all_wrong *=
        static_cast<double>(num_samples - num_correct - i) / static_cast<double>(num_samples - i);
  }
  return 1 - all_wrong;
}

double majority_at_k(std::span<const AnswerVotes> answers, int64_t num_abstaining, int64_t k) {
  int64_t num_samples = num_abstaining;
  for (const AnswerVotes& answer : answers) num_samples += answer.num_votes;
  GRADUS_CHECK(
      num_abstaining >= 0 && 1 <= k && k <= num_samples && num_samples <= kMaxVotingSamples,
      fmt::format("maj@k of n {}, k {}", num_samples, k));
  // For each number of votes j that wins: ways[t][s] counts the choices of s samples so far in
  // which no answer has more than j votes and t answers have exactly j, r of them right: an even
  // draw between the t is right with chance r / t, so ways are kept for right winners (weighted by
  // r) and for all. Everything is divided by C(n, k) at once through logarithms, which keeps large
  // n finite.
  const size_t num_drawn = static_cast<size_t>(k);
  const double log_all = log_binomial(num_samples, k);
  double chance = 0;
  for (int64_t j = 1; j <= k; ++j) {
    const size_t max_ties = static_cast<size_t>(k / j);
    using Table = std::vector<std::vector<double>>;  // [ties][samples]
    const Table zero(max_ties + 1, std::vector<double>(num_drawn + 1, 0.0));
    Table ways = zero, right_ways = zero;
    ways[0][0] = 1;
    for (const AnswerVotes& answer : answers) {
      Table next = zero, right_next = zero;
      for (int64_t votes = 0; votes <= std::min(j, answer.num_votes); ++votes) {
        const double choices = binomial(answer.num_votes, votes);
        const size_t tie = votes == j ? 1 : 0;
        const double is_right = tie == 1 && answer.is_correct ? 1 : 0;
        for (size_t ties = 0; ties + tie <= max_ties; ++ties) {
          for (size_t drawn = 0; drawn + static_cast<size_t>(votes) <= num_drawn; ++drawn) {
            const size_t to = drawn + static_cast<size_t>(votes);
            next[ties + tie][to] += choices * ways[ties][drawn];
            right_next[ties + tie][to] +=
                choices * (right_ways[ties][drawn] + is_right * ways[ties][drawn]);
          }
        }
      }
      ways = std::move(next);
      right_ways = std::move(right_next);
    }
    for (size_t ties = 1; ties <= max_ties; ++ties) {
      for (size_t drawn = 0; drawn <= num_drawn; ++drawn) {
        const double right = right_ways[ties][drawn] / static_cast<double>(ties);
        const int64_t num_silent = k - static_cast<int64_t>(drawn);
        if (right == 0 || num_silent > num_abstaining) continue;
        chance += std::exp(std::log(right) + log_binomial(num_abstaining, num_silent) - log_all);
      }
    }
  }
  return std::min(chance, 1.0);
}

Interval wilson_interval(int64_t num_successes, int64_t num_trials, double confidence) {
  GRADUS_CHECK(0 <= num_successes && num_successes <= num_trials,
               fmt::format("{} successes of {}", num_successes, num_trials));
  if (num_trials == 0) return {0, 1};
  const double z = two_sided_quantile(confidence);
  const double n = static_cast<double>(num_trials);
  const double p = static_cast<double>(num_successes) / n;
  const double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n);
  // At the ends the exact bounds are 0 and 1; the subtraction leaves a rounding error.
  return {num_successes == 0 ? 0 : centre - half, num_successes == num_trials ? 1 : centre + half};
}

Interval cluster_bootstrap_interval(std::span<const double> cluster_means, double confidence,
                                    int64_t num_resamples, uint64_t seed) {
  GRADUS_CHECK(num_resamples >= 1 && confidence > 0 && confidence < 1,
               fmt::format("{} resamples, confidence {}", num_resamples, confidence));
  if (cluster_means.empty()) return {0, 1};
  const int64_t count = static_cast<int64_t>(cluster_means.size());
  const auto [least, most] = std::minmax_element(cluster_means.begin(), cluster_means.end());
  if (*least == *most) {
    return wilson_interval(std::llround(*least * static_cast<double>(count)), count, confidence);
  }
  RngSequence random(seed, RngStream::kBootstrap);
  std::vector<double> means(static_cast<size_t>(num_resamples));
  for (double& mean : means) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      sum += cluster_means[random.below(static_cast<uint64_t>(count))];
    }
    mean = sum / static_cast<double>(count);
  }
  std::sort(means.begin(), means.end());
  // Quantiles with linear interpolation between order statistics.
  const auto quantile = [&](double level) {
    const double position = level * static_cast<double>(num_resamples - 1);
    const size_t below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, means.size() - 1);
    return means[below] + (position - static_cast<double>(below)) * (means[above] - means[below]);
  };
  return {quantile((1 - confidence) / 2), quantile((1 + confidence) / 2)};
}

namespace {

AtK value_at(std::span<const ProblemOutcome* const> problems, int64_t k) {
  AtK at{.k = k};
  for (const ProblemOutcome* problem : problems) {
    const int64_t num_judged = problem->num_samples - problem->num_failed;
    if (num_judged < k) continue;
    int64_t num_votes = 0;
    for (const AnswerVotes& answer : problem->answers) num_votes += answer.num_votes;
    GRADUS_CHECK(num_votes <= num_judged, fmt::format("{} votes of {}", num_votes, num_judged));
    ++at.num_problems;
    at.pass += pass_at_k(num_judged, problem->num_correct, k);
    at.majority += majority_at_k(problem->answers, num_judged - num_votes, k);
  }
  if (at.num_problems > 0) {
    at.pass /= static_cast<double>(at.num_problems);
    at.majority /= static_cast<double>(at.num_problems);
  }
  return at;
}

TaskSummary summarize_task(const std::string& task, std::span<const ProblemOutcome* const> problems,
                           const EvalOptions& options) {
  TaskSummary summary;
  summary.task = task;
  summary.num_problems = static_cast<int64_t>(problems.size());
  std::vector<double> fractions;
  bool is_one_sample_each = true;
  int64_t num_correct = 0;
  for (const ProblemOutcome* problem : problems) {
    const int64_t num_judged = problem->num_samples - problem->num_failed;
    GRADUS_CHECK(0 <= problem->num_correct && problem->num_correct <= num_judged,
                 fmt::format("{} correct of {} judged", problem->num_correct, num_judged));
    summary.num_samples += problem->num_samples;
    summary.num_failed += problem->num_failed;
    if (num_judged == 0) {
      ++summary.num_unjudged;
      continue;
    }
    is_one_sample_each = is_one_sample_each && num_judged == 1;
    num_correct += problem->num_correct;
    fractions.push_back(static_cast<double>(problem->num_correct) /
                        static_cast<double>(num_judged));
  }
  const int64_t num_judged = static_cast<int64_t>(fractions.size());
  if (num_judged > 0) {
    summary.accuracy =
        std::accumulate(fractions.begin(), fractions.end(), 0.0) / static_cast<double>(num_judged);
  }
  summary.accuracy_interval = is_one_sample_each
                                  ? wilson_interval(num_correct, num_judged, options.confidence)
                                  : cluster_bootstrap_interval(fractions, options.confidence,
                                                               options.num_resamples, options.seed);
  for (const int64_t k : options.ks) summary.at.push_back(value_at(problems, k));
  return summary;
}

}  // namespace

std::vector<TaskSummary> summarize(std::span<const ProblemOutcome> problems,
                                   const EvalOptions& options) {
  std::vector<std::string> tasks;
  for (const ProblemOutcome& problem : problems) {
    if (std::find(tasks.begin(), tasks.end(), problem.task) == tasks.end()) {
      tasks.push_back(problem.task);
    }
  }
  std::vector<TaskSummary> summaries;
  std::vector<const ProblemOutcome*> all;
  for (const ProblemOutcome& problem : problems) all.push_back(&problem);
  for (const std::string& task : tasks) {
    std::vector<const ProblemOutcome*> of_task;
    std::copy_if(all.begin(), all.end(), std::back_inserter(of_task),
                 [&](const ProblemOutcome* problem) { return problem->task == task; });
    summaries.push_back(summarize_task(task, of_task, options));
  }
  if (tasks.size() != 1) summaries.push_back(summarize_task("all", all, options));
  return summaries;
}

}  // namespace gradus::data
