// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rewards/reward.h"
#include "rewards/reward_config.h"
#include "rewards/rubric.h"

// The weighted sum of several rewards: what a trajectory is trained on.
namespace gradus::rewards {

struct WeightedReward {
  std::string name;  // of the part, unique: "answer"
  std::unique_ptr<Reward> reward;
  double weight = 1;                        // 0 only measures: its failures touch nobody
  std::vector<std::string> tasks;           // data sources it applies to; empty: all
  int64_t retries = 0;                      // of responses on which it timed out or broke
  std::optional<OnRewardError> on_error{};  // unset: the sum's
  std::optional<double> error_score{};
  std::string gate{};  // name of another part, which must have full marks for this one to count
};

// What a reward said of a trajectory in the end.
struct JudgedPart {
  RewardPart part;
  int64_t num_retries = 0;
};

// Sums of one part over many trajectories; add those of all ranks, then read.
struct PartStatistics {
  std::string name;
  int64_t num_scored = 0;
  int64_t num_failed = 0;
  int64_t num_not_applicable = 0;
  double sum = 0;  // of raw scores
  double sum_squares = 0;

  double mean() const;             // 0 when none is scored
  double std_dev() const;          // of the population
  double failed_fraction() const;  // of those it applies to
};

class RewardSum {
 public:
  // InvalidArgument for no rewards, a name twice, a gate that is no other part, or a weight or
  // score that is not finite. `on_error` says what becomes of a trajectory with a failed part
  // (data::is_failure).
  static Result<RewardSum> create(std::vector<WeightedReward> rewards, OnRewardError on_error,
                                  double error_score = 0);

  // Makes the rewards that the `reward` section of a run names. Those of a rubric are its answer,
  // with weight 1, and its criteria, with weight 0: what they make together is the Curriculum's.
  static Result<RewardSum> create(const RewardConfig& config, const RewardRegistry& registry);

  // Has every reward read what it needs, before the first score.
  Status load();
  int64_t planned_bytes() const;  // of all rewards: Reward::planned_bytes

  // One breakdown per trajectory, group by group; the ids are the trajectories'. A trajectory to
  // which no reward applies is not scored. InvalidArgument when a part failed and on_error is
  // kAbort.
  // Thread-safe.
  Result<std::vector<data::RewardBreakdown>> score(std::span<const Group> groups) const;

  // The two halves of score(), for who calls the rewards by themselves (ScorePool): what the
  // rewards of pack `index` say, by reward and trajectory, and what all of them make of a group,
  // given in the same form. Thread-safe.
  std::vector<std::vector<JudgedPart>> judge(size_t index, std::span<const Group> groups) const;
  Result<std::vector<data::RewardBreakdown>> combine(
      const Group& group, std::vector<std::vector<JudgedPart>> parts) const;

  // InvalidArgument when no reward applies to the prompt's task, or one cannot read its ground
  // truth.
  Status check_prompt(const data::Prompt& prompt) const;

  std::vector<std::string> names() const;
  const std::vector<WeightedReward>& rewards() const { return rewards_; }
  // Indices of the rewards that are called together; most stand alone.
  const std::vector<std::vector<size_t>>& packs() const { return packs_; }
  int64_t num_threads() const { return num_threads_; }  // reward.threads
  const std::optional<RubricConfig>& rubric() const { return rubric_; }

 private:
  RewardSum(std::vector<WeightedReward> rewards, OnRewardError on_error, double error_score);
  // Adds one part to a trajectory's breakdown; true when its whole group must be dropped. `gate` is
  // what its gate said; null: it has none.
  Result<bool> add_part(const WeightedReward& weighted, JudgedPart judged, const RewardPart* gate,
                        data::RewardBreakdown& breakdown) const;

  std::vector<WeightedReward> rewards_;
  std::vector<std::vector<size_t>> packs_;
  OnRewardError on_error_;
  double error_score_;
  int64_t num_threads_ = 0;
  std::optional<RubricConfig> rubric_;
};

// Per part, in the order of the parts of `breakdowns` (all of one RewardSum).
std::vector<PartStatistics> part_statistics(std::span<const data::RewardBreakdown> breakdowns);

}  // namespace gradus::rewards
