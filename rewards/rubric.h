// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"
#include "rewards/reward.h"

// Rubrics and the curriculum over them of RuCL (arXiv:2602.21628): criteria form an easy and a hard
// stratum, and weight moves from easy to hard once the policy meets the easy ones.
namespace gradus::rewards {

// kSigmoid and kLinear: RuCL with a ramp of that shape. kUniform: every criterion the same weight,
// no strata. kNone: the answer alone; criteria are only measured.
enum class RubricSchedule { kSigmoid, kLinear, kUniform, kNone };
enum class Stratum { kEasy, kHard };
// What a criterion that does not apply counts: nothing, 1 or 0.
enum class NotApplicable { kExclude, kPass, kFail };

struct RubricCheck {
  std::string check;  // in the reward registry
  RewardOptions options;
  void visit(FieldVisitor& v);
};

struct RubricCriterion {
  std::string name;
  RubricCheck check;
  Stratum stratum = Stratum::kEasy;
  std::optional<double> weight;  // within its stratum
  int64_t retries = 2;
  void visit(FieldVisitor& v);
};

struct RubricConfig {
  std::string name;
  double alpha = 0.7;  // weight of the answer
  RubricSchedule schedule = RubricSchedule::kSigmoid;
  int64_t window = 20;     // w: steps in a row that the easy mean must hold
  double tau = 0.9;        // at this or above
  double lambda_base = 0;  // where the ramp begins
  double lambda_max = 1;
  int64_t ramp_steps = 0;  // T_ramp; 0: a quarter of the run, at least the window
  double steepness = 10;   // k of the sigmoid
  NotApplicable not_applicable = NotApplicable::kExclude;
  RubricCheck answer;
  std::vector<RubricCriterion> criteria;
  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line.
Status validate(const RubricConfig& config);

// Reads a file. All problems at once, each with its line: values, rules, checks that `registry`
// does not have or that refuse their options.
Result<RubricConfig> load_rubric(const std::string& path, const RewardRegistry& registry);

// The same of candidates for a rubric, whose strata and weights are not known yet: what the file
// says of them does not matter.
Result<RubricConfig> load_rubric_candidates(const std::string& path,
                                            const RewardRegistry& registry);

// What a criterion said of a response: its score, or nothing where it does not apply. A criterion
// that failed makes its whole group fall back to the answer.
struct CriterionScore {
  std::optional<double> score;
  bool has_failed = false;
};

struct RubricScore {
  double total = 0;  // r
  // Means of the strata; nothing where none of the criteria applies.
  std::optional<double> easy, hard;
  // What each brought: total = answer_weight answer + sum of weights[i] values[i].
  double answer_weight = 1;
  std::vector<double> weights{}, values{};
};

// r = alpha answer + (1 - alpha) ((1 - lambda) easy + lambda hard), Eq. 5 and 6; a stratum without
// a value leaves its weight to the other, and without both r is the answer. `criteria` in the order
// of the config.
RubricScore rubric_score(const RubricConfig& config, double lambda, double answer,
                         std::span<const CriterionScore> criteria);

// phi of the ramp, [0, 1] -> [0, 1].
double ramp_shape(RubricSchedule schedule, double steepness, double u);

// lambda over the steps of a run. Of step t = 1, 2, ... it is 0 until the batch mean of the easy
// stratum has been at least tau in each of the last w steps; if that is so first at step T, then
// lambda_base + (lambda_max - lambda_base) phi((t - T) / T_ramp), at T + 1 and after. A function of
// the means alone, so every rank that is told the same has the same. Not thread-safe.
class Curriculum {
 public:
  Curriculum(RubricConfig config, int64_t num_steps);

  const RubricConfig& config() const { return config_; }
  double lambda() const { return lambda_; }           // of the present step
  int64_t start_step() const { return start_step_; }  // T; -1: not yet
  bool is_first_step() const { return step_ == 0; }

  // Scores the responses of a group, `criteria` by response; notes the easy means.
  std::vector<RubricScore> score(std::span<const double> answers,
                                 std::span<const std::vector<CriterionScore>> criteria);
  // Mean over the responses of the step up to now; nothing if none has one.
  std::optional<double> easy_mean() const { return easy_.mean(); }
  std::optional<double> hard_mean() const { return hard_.mean(); }
  int64_t num_fallbacks() const { return num_fallbacks_; }  // groups of the step

  // Ends the step: lambda() is that of the next one.
  void finish_step();
  // The same for a mean that is given.
  void finish_step(std::optional<double> easy_mean);

  // All that finish_step() changes, as text; exact.
  std::string state() const;
  // DataLoss for other text, InvalidArgument for the state of another rubric.
  Status restore(std::string_view state);

 private:
  struct Mean {
    double sum = 0;
    int64_t count = 0;
    std::optional<double> mean() const {
      return count == 0 ? std::nullopt : std::optional(sum / static_cast<double>(count));
    }
  };

  std::string identity() const;

  RubricConfig config_;
  int64_t ramp_steps_;
  int64_t step_ = 0;  // steps ended
  std::deque<double> window_;
  int64_t start_step_ = -1;
  double lambda_ = 0;
  Mean easy_, hard_;
  int64_t num_fallbacks_ = 0;
};

}  // namespace gradus::rewards
