// SPDX-License-Identifier: Apache-2.0
#include "rewards/reward_sum.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "common/strings.h"

namespace gradus::rewards {
namespace {

bool applies_to(const WeightedReward& weighted, const std::string& task) {
  const auto& tasks = weighted.tasks;
  return tasks.empty() || std::find(tasks.begin(), tasks.end(), task) != tasks.end();
}

std::string name_of(const data::RequestId& id) {
  return fmt::format("prompt {}, sample {}", id.prompt_id, id.sample_index);
}

// The parts of one reward for all trajectories, those of other tasks not applicable.
std::vector<RewardPart> parts_of(const WeightedReward& weighted, std::span<const Group> groups) {
  std::vector<Group> own;
  for (const Group& group : groups) {
    if (applies_to(weighted, group.prompt->task)) own.push_back(group);
  }
  std::vector<RewardPart> scored = weighted.reward->score_batch(own);
  std::vector<RewardPart> parts;
  size_t next = 0;
  for (const Group& group : groups) {
    for (size_t i = 0; i < group.trajectories.size(); ++i) {
      if (!applies_to(weighted, group.prompt->task)) {
        parts.push_back({.status = RewardStatus::kNotApplicable});
        continue;
      }
      GRADUS_CHECK(next < scored.size(),
                   fmt::format("reward '{}' gave {} parts, too few", weighted.name, scored.size()));
      RewardPart part = std::move(scored[next++]);
      if (part.status == RewardStatus::kOk && !std::isfinite(part.score)) {
        part.detail = fmt::format("the score is {}", part.score);
        part.status = RewardStatus::kError;
      }
      parts.push_back(std::move(part));
    }
  }
  GRADUS_CHECK(next == scored.size(), fmt::format("reward '{}' gave {} parts for {} responses",
                                                  weighted.name, scored.size(), next));
  return parts;
}

}  // namespace

double PartStatistics::mean() const {
  return num_scored == 0 ? 0 : sum / static_cast<double>(num_scored);
}

double PartStatistics::std_dev() const {
  if (num_scored == 0) return 0;
  const double variance = sum_squares / static_cast<double>(num_scored) - mean() * mean();
  return std::sqrt(std::max(variance, 0.0));
}

double PartStatistics::failed_fraction() const {
  const int64_t num_applicable = num_scored + num_failed;
  return num_applicable == 0
             ? 0
             : static_cast<double>(num_failed) / static_cast<double>(num_applicable);
}

Result<RewardSum> RewardSum::create(std::vector<WeightedReward> rewards, OnRewardError on_error,
                                    double error_score) {
  if (rewards.empty()) return invalid_argument("reward.parts: is empty; name at least one reward");
  if (!std::isfinite(error_score)) {
    return invalid_argument("reward.error_score: is {}; expected a finite number", error_score);
  }
  std::set<std::string> names;
  for (const WeightedReward& weighted : rewards) {
    GRADUS_CHECK(weighted.reward != nullptr, "a weighted reward without its reward");
    if (!names.insert(weighted.name).second) {
      return invalid_argument("reward.parts: two are called '{}'; give one of them another label",
                              weighted.name);
    }
    if (!std::isfinite(weighted.weight)) {
      return invalid_argument("reward.parts: '{}' has weight {}; expected a finite number",
                              weighted.name, weighted.weight);
    }
  }
  return RewardSum(std::move(rewards), on_error, error_score);
}

Result<RewardSum> RewardSum::create(const RewardConfig& config, const RewardRegistry& registry) {
  std::vector<WeightedReward> rewards;
  for (const RewardPartConfig& part : config.parts) {
    auto reward = registry.create(part.name, part.options);
    if (!reward.ok()) return reward.status().with_prefix("reward.parts");
    rewards.push_back(
        {part.label.empty() ? part.name : part.label, std::move(*reward), part.weight, part.tasks});
  }
  return create(std::move(rewards), config.on_error, config.error_score);
}

Result<bool> RewardSum::add_part(const WeightedReward& weighted, RewardPart part,
                                 data::RewardBreakdown& breakdown) const {
  data::WeightedPart& added = breakdown.parts.emplace_back();
  added.name = weighted.name;
  added.weight = weighted.weight;
  added.status = part.status;
  added.detail = std::move(part.detail);
  added.answer = std::move(part.answer);
  if (part.status == RewardStatus::kOk) {
    added.raw = part.score;
    added.weighted = weighted.weight * part.score;
    breakdown.total += added.weighted;
  }
  if (!data::is_failure(part.status) || weighted.weight == 0) return false;
  const std::string failure =
      fmt::format("reward '{}': {}{}{}", weighted.name, data::reward_status_name(part.status),
                  added.detail.empty() ? "" : ": ", added.detail);
  switch (on_error_) {
    case OnRewardError::kScore:
      added.weighted = weighted.weight * error_score_;
      breakdown.total += added.weighted;
      return false;
    case OnRewardError::kAbort:
      return invalid_argument(
          "{}: {}; mend the data or the verifier, or set reward.on_error to skip_sample, "
          "skip_group "
          "or score",
          name_of(breakdown.id), failure);
    case OnRewardError::kSkipSample:
    case OnRewardError::kSkipGroup:
      if (breakdown.reason.empty()) breakdown.reason = failure;
      return on_error_ == OnRewardError::kSkipGroup;
  }
  GRADUS_CHECK(false, "reward.on_error out of range");
}

Result<std::vector<data::RewardBreakdown>> RewardSum::score(std::span<const Group> groups) const {
  std::vector<data::RewardBreakdown> breakdowns;
  for (const Group& group : groups) {
    for (const data::Trajectory& trajectory : group.trajectories) {
      breakdowns.push_back({.id = trajectory.id});
    }
  }
  std::vector<std::vector<RewardPart>> parts;
  for (const WeightedReward& weighted : rewards_) parts.push_back(parts_of(weighted, groups));
  size_t begin = 0;
  for (const Group& group : groups) {
    const size_t end = begin + group.trajectories.size();
    const data::RewardBreakdown* culprit = nullptr;
    for (size_t i = begin; i < end; ++i) {
      for (size_t j = 0; j < rewards_.size(); ++j) {
        const auto drops_group = add_part(rewards_[j], std::move(parts[j][i]), breakdowns[i]);
        if (!drops_group.ok()) return drops_group.status();
        if (*drops_group && culprit == nullptr) culprit = &breakdowns[i];
      }
      const auto& own = breakdowns[i].parts;
      const bool none_applies = std::all_of(own.begin(), own.end(), [](const auto& part) {
        return part.status == RewardStatus::kNotApplicable;
      });
      if (none_applies) {
        breakdowns[i].reason = fmt::format("no reward applies to task '{}'", group.prompt->task);
      }
      breakdowns[i].is_scored = breakdowns[i].reason.empty();
    }
    for (size_t i = begin; culprit != nullptr && i < end; ++i) {
      if (!breakdowns[i].is_scored) continue;
      breakdowns[i].is_scored = false;
      breakdowns[i].reason =
          fmt::format("group skipped for {}: {}", name_of(culprit->id), culprit->reason);
    }
    begin = end;
  }
  return breakdowns;
}

Status RewardSum::check_prompt(const data::Prompt& prompt) const {
  bool is_covered = false;
  std::set<std::string> tasks;
  for (const WeightedReward& weighted : rewards_) {
    tasks.insert(weighted.tasks.begin(), weighted.tasks.end());
    if (!applies_to(weighted, prompt.task)) continue;
    is_covered = true;
    GRADUS_RETURN_IF_ERROR(
        weighted.reward->check_ground_truth(prompt).with_prefix("reward '" + weighted.name + "'"));
  }
  if (is_covered) return {};
  const std::vector<std::string> known(tasks.begin(), tasks.end());
  return invalid_argument("data_source: no reward applies to '{}'{}; rewards are for: {}",
                          prompt.task, did_you_mean(prompt.task, known), join(known, ", "));
}

std::vector<std::string> RewardSum::names() const {
  std::vector<std::string> names;
  for (const WeightedReward& weighted : rewards_) names.push_back(weighted.name);
  return names;
}

std::vector<PartStatistics> part_statistics(std::span<const data::RewardBreakdown> breakdowns) {
  std::vector<PartStatistics> statistics;
  for (const data::RewardBreakdown& breakdown : breakdowns) {
    if (statistics.empty()) {
      for (const auto& part : breakdown.parts) statistics.push_back({.name = part.name});
    }
    GRADUS_CHECK(breakdown.parts.size() == statistics.size(), "breakdowns of different rewards");
    for (size_t i = 0; i < statistics.size(); ++i) {
      const data::WeightedPart& part = breakdown.parts[i];
      if (part.status == RewardStatus::kNotApplicable) {
        ++statistics[i].num_not_applicable;
      } else if (data::is_failure(part.status)) {
        ++statistics[i].num_failed;
      } else {
        ++statistics[i].num_scored;
        statistics[i].sum += part.raw;
        statistics[i].sum_squares += part.raw * part.raw;
      }
    }
  }
  return statistics;
}

}  // namespace gradus::rewards
