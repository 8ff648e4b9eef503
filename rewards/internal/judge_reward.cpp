// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/judge/http_judge.h"

// `judge`: a model says how well the response meets one criterion (docs/rewards.md).
namespace gradus::rewards {
namespace {

class JudgeReward : public Reward {
 public:
  JudgeReward(std::unique_ptr<Judge> judge, std::string criterion, bool shows_reference)
      : judge_(std::move(judge)),
        criterion_(std::move(criterion)),
        shows_reference_(shows_reference) {}

  bool is_deterministic() const override { return false; }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<JudgeItem> items;
    for (const Group& group : groups) {
      for (const data::Trajectory& trajectory : group.trajectories) {
        items.push_back({group.prompt->text, trajectory.text,
                         shows_reference_ ? group.prompt->answer : "", criterion_});
      }
    }
    std::vector<RewardPart> parts;
    for (JudgeVerdict& verdict : judge_->judge(items)) {
      RewardPart& part = parts.emplace_back();
      part.score = verdict.score;
      part.status = verdict.status;
      part.detail = std::move(verdict.detail);
    }
    return parts;
  }

 private:
  std::unique_ptr<Judge> judge_;
  std::string criterion_;
  bool shows_reference_;
};

void read_judge_options(OptionReader& reader, judge::HttpJudgeOptions& judge) {
  const auto whole = [&](const char* name, double low, double high, auto& value) {
    auto number = static_cast<double>(value);
    reader.number(name, low, high, number);
    value = static_cast<std::remove_reference_t<decltype(value)>>(number);
  };
  reader.text("endpoint", judge.endpoint);
  reader.text("model", judge.model);
  reader.text("api_key_file", judge.api_key_file);
  reader.text("cache", judge.cache);
  reader.number("temperature", 0, 2, judge.temperature);
  reader.number("timeout_s", 0.01, 3600, judge.timeout_s);
  reader.number("backoff_s", 0, 60, judge.backoff_s);
  whole("max_tokens", 1, 1 << 20, judge.max_tokens);
  whole("concurrency", 1, 4096, judge.concurrency);
  whole("retries", 0, 100, judge.retries);
  whole("max_requests", 0, 1e15, judge.max_requests);
  whole("max_total_tokens", 0, 1e15, judge.max_total_tokens);
}

}  // namespace

Result<std::unique_ptr<Reward>> make_judge_reward(const RewardOptions& options) {
  judge::HttpJudgeOptions judge;
  std::string criterion;
  bool shows_reference = false;
  OptionReader reader("judge", options);
  reader.text("criterion", criterion);
  reader.flag("reference", shows_reference);
  read_judge_options(reader, judge);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  if (criterion.empty()) {
    return invalid_argument(
        "reward judge: criterion is missing; expected a sentence that holds of a good response");
  }
  auto made = judge::HttpJudge::create(judge);
  if (!made.ok()) return made.status().with_prefix("reward judge");
  return std::unique_ptr<Reward>(
      std::make_unique<JudgeReward>(std::move(*made), std::move(criterion), shows_reference));
}

}  // namespace gradus::rewards
