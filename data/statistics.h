// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

// What an evaluation says and how sure it is. All results are functions of their arguments; the
// bootstrap draws from Philox by its seed.
namespace gradus::data {

// Chance that at least one of k samples drawn without replacement from n, c of them right, is
// right: 1 - C(n-c, k) / C(n, k), the unbiased estimator of pass@k (Chen et al. 2021,
// arXiv:2107.03374, Eq. 1). 0 <= c <= n, 1 <= k <= n.
double pass_at_k(int64_t num_samples, int64_t num_correct, int64_t k);

// Samples of one problem beyond which the binomials of majority_at_k leave the range of double.
inline constexpr int64_t kMaxVotingSamples = 1000;

// One answer that was given, by how many samples.
struct AnswerVotes {
  int64_t num_votes = 0;
  bool is_correct = false;
};

// Chance that the answer most frequent among k samples drawn without replacement is right, ties
// broken evenly: exact, not simulated. `num_abstaining` samples gave no answer and do not vote; a
// draw without any vote is wrong. 1 <= k <= all samples <= kMaxVotingSamples. Time grows with
// answers
// * k^3: below 1 ms at 64 samples.
double majority_at_k(std::span<const AnswerVotes> answers, int64_t num_abstaining, int64_t k);

struct Interval {
  double low = 0;
  double high = 0;
};

// Wilson's score interval of a proportion of independent trials (Wilson 1927). num_trials 0 gives
// [0, 1]. `confidence` in (0, 1), e.g. 0.95.
Interval wilson_interval(int64_t num_successes, int64_t num_trials, double confidence);

// Percentile bootstrap of the mean over clusters: `cluster_means` are redrawn with replacement,
// since the samples of one problem are no independent trials. When all clusters are equal the data
// show no spread, and the answer is Wilson's with one trial a cluster. No clusters give [0, 1]; the
// means lie in [0, 1].
Interval cluster_bootstrap_interval(std::span<const double> cluster_means, double confidence,
                                    int64_t num_resamples, uint64_t seed);

// One problem with what its samples came to.
struct ProblemOutcome {
  std::string task;
  int64_t num_samples = 0;  // all that were asked for
  int64_t num_correct = 0;
  int64_t num_failed = 0;  // samples whose reward could not be had: neither right nor wrong
  std::vector<AnswerVotes> answers;  // of the samples that gave one; needed by maj@k only
};

struct EvalOptions {
  std::vector<int64_t> ks = {1};  // of pass@k and maj@k
  double confidence = 0.95;
  int64_t num_resamples = 2000;
  uint64_t seed = 0;
};

// Value at one k, over the problems that have at least k judged samples.
struct AtK {
  int64_t k = 0;
  int64_t num_problems = 0;
  double pass = 0;
  double majority = 0;
};

// A line of the table of `gradus eval`. Failed samples leave all fractions; problems with no judged
// sample are counted in num_unjudged and leave them too.
struct TaskSummary {
  std::string task;  // "all" for the last line
  int64_t num_problems = 0;
  int64_t num_unjudged = 0;
  int64_t num_samples = 0;
  int64_t num_failed = 0;
  double accuracy = 0;         // pass@1: mean over problems of the fraction right
  Interval accuracy_interval;  // Wilson's with one sample a problem, else the bootstrap's
  std::vector<AtK> at;         // for each of ks
};

// One summary for each task in order of first appearance, and one for all when there are several
// tasks.
std::vector<TaskSummary> summarize(std::span<const ProblemOutcome> problems,
                                   const EvalOptions& options);

}  // namespace gradus::data
