// SPDX-License-Identifier: Apache-2.0
#include "trainer/rubric_rewards.h"

#include <cmath>
#include <limits>

#include "common/log.h"

namespace gradus::trainer {

void apply_curriculum(rewards::Curriculum& curriculum, const RolloutSetup& setup,
                      std::span<records::RolloutRecord> group) {
  const rewards::RubricConfig& config = curriculum.config();
  std::vector<records::RolloutRecord*> scored;
  std::vector<double> answers;
  std::vector<std::vector<rewards::CriterionScore>> criteria;
  for (records::RolloutRecord& record : group) {
    if (std::isnan(record.reward)) continue;
    GRADUS_CHECK(record.parts.size() == config.criteria.size() + 1, "an answer and the criteria");
    if (record.parts[0].status == "not_applicable") {
      record.reward = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    scored.push_back(&record);
    answers.push_back(record.parts[0].weighted);  // with reward.on_error: score, what stands in
    std::vector<rewards::CriterionScore>& scores = criteria.emplace_back();
    for (size_t i = 0; i < config.criteria.size(); ++i) {
      const records::RewardPartRecord& part = record.parts[i + 1];
      GRADUS_CHECK(part.name == config.criteria[i].name, "criteria in order");
      rewards::CriterionScore& score = scores.emplace_back();
      if (part.status == "ok") {
        score.score = part.raw;
      } else {
        score.has_failed = part.status != "not_applicable";
      }
    }
  }
  const std::vector<rewards::RubricScore> scores = curriculum.score(answers, criteria);
  for (size_t i = 0; i < scored.size(); ++i) {
    records::RolloutRecord& record = *scored[i];
    record.reward = scores[i].total + overlong_of(setup, record.trajectory);
    record.parts[0].weight = scores[i].answer_weight;
    record.parts[0].weighted = scores[i].answer_weight * answers[i];
    for (size_t j = 0; j < config.criteria.size(); ++j) {
      record.parts[j + 1].weight = scores[i].weights[j];
      record.parts[j + 1].weighted = scores[i].weights[j] * scores[i].values[j];
    }
  }
}

void finish_curriculum_step(rewards::Curriculum& curriculum, Metrics& metrics) {
  const auto easy = curriculum.easy_mean(), hard = curriculum.hard_mean();
  if (easy) metrics.set("rubric/easy_mean", *easy);
  if (hard) metrics.set("rubric/hard_mean", *hard);
  metrics.set("rubric/lambda", curriculum.lambda());
  metrics.set("rubric/fallback_groups", static_cast<double>(curriculum.num_fallbacks()));
  if (curriculum.is_first_step() && easy && *easy >= curriculum.config().tau) {
    warn_once(
        "trainer", "rubric",
        "the easy stratum is met before any training: its curriculum only waits; raise tau, or "
        "choose criteria that are harder",
        {{"easy_mean", *easy}, {"tau", curriculum.config().tau}});
  }
  curriculum.finish_step();
  metrics.set("rubric/start_step", static_cast<double>(curriculum.start_step()));
}

}  // namespace gradus::trainer
