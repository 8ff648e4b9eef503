// SPDX-License-Identifier: Apache-2.0
#include "rewards/reward_sum.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "common/log.h"
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

// By reward of the pack one part per trajectory of `groups`, all finite or failed.
std::vector<std::vector<RewardPart>> call(const std::vector<const WeightedReward*>& pack,
                                          std::span<const Group> groups) {
  std::vector<std::vector<RewardPart>> all;
  if (pack.size() == 1) {
    all.push_back(pack.front()->reward->score_batch(groups));
  } else {
    std::vector<const Reward*> rewards;
    for (const WeightedReward* weighted : pack) rewards.push_back(weighted->reward.get());
    all = rewards.front()->score_pack(rewards, groups);
  }
  GRADUS_CHECK(all.size() == pack.size(), "parts of each reward of the pack");
  size_t num_responses = 0;
  for (const Group& group : groups) num_responses += group.trajectories.size();
  for (size_t j = 0; j < pack.size(); ++j) {
    GRADUS_CHECK(all[j].size() == num_responses,
                 fmt::format("reward '{}' gave {} parts for {} responses", pack[j]->name,
                             all[j].size(), num_responses));
    for (RewardPart& part : all[j]) {
      if (part.status != RewardStatus::kOk || std::isfinite(part.score)) continue;
      part.detail = fmt::format("the score is {}", part.score);
      part.status = RewardStatus::kError;
    }
  }
  return all;
}

// A reward joins the first pack that has room and would be called for the same responses.
std::vector<std::vector<size_t>> make_packs(const std::vector<WeightedReward>& rewards) {
  std::vector<std::vector<size_t>> packs;
  for (size_t j = 0; j < rewards.size(); ++j) {
    const PackRule rule = rewards[j].reward->pack_rule();
    const auto has_room = [&](const std::vector<size_t>& pack) {
      const WeightedReward& first = rewards[pack.front()];
      return !rule.key.empty() && !rewards[j].reward->compares_siblings() &&
             pack.size() < rule.most && first.reward->pack_rule().key == rule.key &&
             first.tasks == rewards[j].tasks && first.retries == rewards[j].retries;
    };
    const auto found = std::find_if(packs.begin(), packs.end(), has_room);
    if (found == packs.end()) {
      packs.push_back({j});
    } else {
      found->push_back(j);
    }
  }
  return packs;
}

std::vector<RewardPartConfig> rubric_parts(const RubricConfig& rubric) {
  std::vector<RewardPartConfig> parts = {
      {.name = rubric.answer.check, .label = "answer", .options = rubric.answer.options}};
  for (const RubricCriterion& one : rubric.criteria) {
    parts.push_back({.name = one.check.check,
                     .label = one.name,
                     .weight = 0,
                     .retries = one.retries,
                     .options = one.check.options});
  }
  return parts;
}

// A further call may end otherwise; of the other failures it would say the same again.
bool is_retried(RewardStatus status) {
  return status == RewardStatus::kTimeout || status == RewardStatus::kError;
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

RewardSum::RewardSum(std::vector<WeightedReward> rewards, OnRewardError on_error,
                     double error_score)
    : rewards_(std::move(rewards)),
      packs_(make_packs(rewards_)),
      on_error_(on_error),
      error_score_(error_score) {}

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
    const bool has_gate = std::any_of(rewards.begin(), rewards.end(), [&](const auto& other) {
      return other.name == weighted.gate && &other != &weighted;
    });
    if (!weighted.gate.empty() && !has_gate) {
      return invalid_argument("reward.parts: '{}' has the gate '{}'; expected another part",
                              weighted.name, weighted.gate);
    }
    if (!std::isfinite(weighted.error_score.value_or(0))) {
      return invalid_argument("reward.parts: '{}' has error_score {}; expected a finite number",
                              weighted.name, *weighted.error_score);
    }
  }
  return RewardSum(std::move(rewards), on_error, error_score);
}

Result<RewardSum> RewardSum::create(const RewardConfig& config, const RewardRegistry& registry) {
  std::vector<WeightedReward> rewards;
  std::optional<RubricConfig> rubric;
  std::vector<RewardPartConfig> parts = config.parts;
  if (!config.rubric.empty()) {
    Result<RubricConfig> loaded = load_rubric(config.rubric, registry);
    if (!loaded.ok()) return loaded.status();
    rubric = std::move(*loaded);
    parts = rubric_parts(*rubric);
  }
  for (const RewardPartConfig& part : parts) {
    auto reward = registry.create(part.name, part.options);
    if (!reward.ok()) return reward.status().with_prefix("reward.parts");
    rewards.push_back({part.label.empty() ? part.name : part.label, std::move(*reward), part.weight,
                       part.tasks, part.retries, part.on_error, part.error_score, part.gate});
  }
  for (const WeightedReward& weighted : rewards) {
    if (weighted.reward->is_deterministic()) continue;
    warn_once("rewards", weighted.name,
              "the reward says that it is not deterministic: a rerun need not repeat this run",
              {{"reward", weighted.name}});
  }
  Result<RewardSum> sum = create(std::move(rewards), config.on_error, config.error_score);
  if (sum.ok()) {
    sum->num_threads_ = config.threads;
    sum->rubric_ = std::move(rubric);
  }
  return sum;
}

Status RewardSum::load() {
  for (const WeightedReward& weighted : rewards_) {
    GRADUS_RETURN_IF_ERROR(weighted.reward->load().with_prefix("reward '" + weighted.name + "'"));
  }
  return {};
}

int64_t RewardSum::planned_bytes() const {
  int64_t bytes = 0;
  for (const WeightedReward& weighted : rewards_) bytes += weighted.reward->planned_bytes();
  return bytes;
}

std::vector<std::vector<JudgedPart>> RewardSum::judge(size_t index,
                                                      std::span<const Group> groups) const {
  std::vector<const WeightedReward*> pack;
  for (const size_t j : packs_.at(index)) pack.push_back(&rewards_[j]);
  const WeightedReward& first_of_pack = *pack.front();
  const bool compares_siblings = first_of_pack.reward->compares_siblings();
  std::vector<JudgedPart> unjudged;
  std::vector<Group> own;      // to call the pack for
  std::vector<size_t> places;  // in each list of `judged`, of their trajectories
  for (const Group& group : groups) {
    const bool applies = applies_to(first_of_pack, group.prompt->task);
    if (applies) own.push_back(group);
    for (size_t i = 0; i < group.trajectories.size(); ++i) {
      if (applies) places.push_back(unjudged.size());
      unjudged.push_back({{.status = RewardStatus::kNotApplicable}});
    }
  }
  std::vector<std::vector<JudgedPart>> judged(pack.size(), unjudged);
  if (own.empty()) return judged;
  for (int64_t attempt = 0;; ++attempt) {
    std::vector<std::vector<RewardPart>> parts = call(pack, own);
    for (size_t j = 0; j < pack.size(); ++j) {
      for (size_t i = 0; i < places.size(); ++i) {
        JudgedPart& one = judged[j][places[i]];
        // What one of the pack has said stays, if the response is asked about for another's sake.
        const bool is_settled = attempt > 0 && !compares_siblings && !is_retried(one.part.status);
        if (!is_settled) one = {std::move(parts[j][i]), attempt};
      }
    }
    if (attempt == first_of_pack.retries) return judged;
    // Those that failed alone, or with their siblings if it compares them.
    std::vector<Group> again;
    std::vector<size_t> their_places;
    size_t first = 0;
    for (const Group& group : own) {
      const size_t size = group.trajectories.size();
      const auto is_failed = [&](size_t i) {
        return std::any_of(judged.begin(), judged.end(), [&](const auto& list) {
          return is_retried(list[places[first + i]].part.status);
        });
      };
      bool is_any_failed = false;
      for (size_t i = 0; i < size; ++i) is_any_failed |= is_failed(i);
      if (is_any_failed && compares_siblings) {
        again.push_back(group);
        for (size_t i = 0; i < size; ++i) their_places.push_back(places[first + i]);
      } else {
        for (size_t i = 0; is_any_failed && i < size; ++i) {
          if (!is_failed(i)) continue;
          again.push_back({group.prompt, group.trajectories.subspan(i, 1)});
          their_places.push_back(places[first + i]);
        }
      }
      first += size;
    }
    if (again.empty()) return judged;
    own = std::move(again);
    places = std::move(their_places);
  }
}

Result<bool> RewardSum::add_part(const WeightedReward& weighted, JudgedPart judged,
                                 const RewardPart* gate, data::RewardBreakdown& breakdown) const {
  RewardPart& part = judged.part;
  data::WeightedPart& added = breakdown.parts.emplace_back();
  added.name = weighted.name;
  added.weight = weighted.weight;
  added.status = part.status;
  added.detail = std::move(part.detail);
  added.answer = std::move(part.answer);
  added.num_retries = judged.num_retries;
  // Whether the part counts is not known where its gate failed, which is a failure of its own.
  const bool is_gate_failed = gate != nullptr && data::is_failure(gate->status);
  if (part.status == RewardStatus::kOk) {
    added.raw = part.score;
    if (gate == nullptr || gate->status == RewardStatus::kNotApplicable || gate->score == 1) {
      added.weighted = weighted.weight * part.score;
      breakdown.total += added.weighted;
    }
  }
  const bool has_failed =
      data::is_failure(part.status) || (is_gate_failed && part.status == RewardStatus::kOk);
  if (!has_failed || weighted.weight == 0) return false;
  const std::string failure =
      data::is_failure(part.status)
          ? fmt::format("reward '{}': {}{}{}", weighted.name, data::reward_status_name(part.status),
                        added.detail.empty() ? "" : ": ", added.detail)
          : fmt::format("reward '{}': its gate '{}' failed: {}", weighted.name, weighted.gate,
                        data::reward_status_name(gate->status));
  const OnRewardError on_error = weighted.on_error.value_or(on_error_);
  switch (on_error) {
    case OnRewardError::kScore:
      added.weighted = weighted.weight * weighted.error_score.value_or(error_score_);
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
      return on_error == OnRewardError::kSkipGroup;
  }
  GRADUS_CHECK(false, "reward.on_error out of range");
}

Result<std::vector<data::RewardBreakdown>> RewardSum::combine(
    const Group& group, std::vector<std::vector<JudgedPart>> parts) const {
  std::vector<data::RewardBreakdown> breakdowns;
  std::optional<std::string> culprit;
  for (size_t i = 0; i < group.trajectories.size(); ++i) {
    data::RewardBreakdown& breakdown = breakdowns.emplace_back();
    breakdown.id = group.trajectories[i].id;
    std::vector<RewardPart> gates;  // status and full marks, since the parts are moved on
    for (size_t j = 0; j < rewards_.size(); ++j) {
      const RewardPart& part = parts[j][i].part;
      const bool is_full = part.score >= rewards_[j].reward->upper_bound();
      gates.push_back({is_full ? 1.0 : 0.0, part.status});
    }
    for (size_t j = 0; j < rewards_.size(); ++j) {
      const RewardPart* gate = nullptr;
      for (size_t k = 0; !rewards_[j].gate.empty() && k < rewards_.size(); ++k) {
        if (rewards_[k].name == rewards_[j].gate) gate = &gates[k];
      }
      const auto drops_group = add_part(rewards_[j], std::move(parts[j][i]), gate, breakdown);
      if (!drops_group.ok()) return drops_group.status();
      if (*drops_group && !culprit) {
        culprit = fmt::format("group skipped for {}: {}", name_of(breakdown.id), breakdown.reason);
      }
    }
    const bool none_applies =
        std::all_of(breakdown.parts.begin(), breakdown.parts.end(),
                    [](const auto& part) { return part.status == RewardStatus::kNotApplicable; });
    if (none_applies) {
      breakdown.reason = fmt::format("no reward applies to task '{}'", group.prompt->task);
    }
    breakdown.is_scored = breakdown.reason.empty();
  }
  for (data::RewardBreakdown& breakdown : breakdowns) {
    if (!culprit || !breakdown.is_scored) continue;
    breakdown.is_scored = false;
    breakdown.reason = *culprit;
  }
  return breakdowns;
}

Result<std::vector<data::RewardBreakdown>> RewardSum::score(std::span<const Group> groups) const {
  std::vector<std::vector<JudgedPart>> parts(rewards_.size());
  for (size_t p = 0; p < packs_.size(); ++p) {
    std::vector<std::vector<JudgedPart>> judged = judge(p, groups);
    for (size_t k = 0; k < judged.size(); ++k) parts[packs_[p][k]] = std::move(judged[k]);
  }
  std::vector<data::RewardBreakdown> all;
  size_t begin = 0;
  for (const Group& group : groups) {
    const size_t end = begin + group.trajectories.size();
    std::vector<std::vector<JudgedPart>> own(rewards_.size());
    for (size_t j = 0; j < rewards_.size(); ++j) {
      for (size_t i = begin; i < end; ++i) own[j].push_back(std::move(parts[j][i]));
    }
    auto breakdowns = combine(group, std::move(own));
    if (!breakdowns.ok()) return breakdowns.status();
    std::move(breakdowns->begin(), breakdowns->end(), std::back_inserter(all));
    begin = end;
  }
  return all;
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
