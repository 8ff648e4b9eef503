// SPDX-License-Identifier: Apache-2.0
#include <mutex>

#include "common/metrics.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/judge/http_judge.h"

// `judge`: a model says how well the response meets one criterion (docs/rewards.md).
namespace gradus::rewards {
namespace {

// Room for a verdict and its reason of 30 words.
constexpr int64_t kMinTokensPerVerdict = 64;

class JudgeReward : public Reward {
 public:
  JudgeReward(std::shared_ptr<judge::HttpJudge> judge, std::string criterion, bool shows_reference,
              PackRule pack_rule)
      : judge_(std::move(judge)),
        criterion_(std::move(criterion)),
        shows_reference_(shows_reference),
        pack_rule_(std::move(pack_rule)) {}

  bool is_deterministic() const override { return false; }
  void add_usage(Metrics& metrics) const override {
    const judge::JudgeStatistics used = judge_->take_statistics();
    metrics.add("perf/judge_requests", static_cast<double>(used.num_requests));
    metrics.add("perf/judge_retries", static_cast<double>(used.num_retries));
    metrics.add("perf/judge_cache_hits", static_cast<double>(used.num_cache_hits));
    metrics.add("perf/judge_tokens", static_cast<double>(used.num_tokens));
  }
  PackRule pack_rule() const override { return pack_rule_; }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    const Reward* self = this;
    return std::move(score_pack(std::span(&self, 1), groups).front());
  }

  // The criteria of a response stand side by side: the judge makes one request of them.
  std::vector<std::vector<RewardPart>> score_pack(std::span<const Reward* const> pack,
                                                  std::span<const Group> groups) const override {
    std::vector<JudgeItem> items;
    for (const Group& group : groups) {
      for (const data::Trajectory& trajectory : group.trajectories) {
        for (const Reward* reward : pack) {
          items.push_back({group.prompt->text, trajectory.text,
                           shows_reference_ ? group.prompt->answer : "",
                           static_cast<const JudgeReward*>(reward)->criterion_});
        }
      }
    }
    std::vector<std::vector<RewardPart>> parts(pack.size());
    std::vector<JudgeVerdict> verdicts = judge_->judge(items);
    for (size_t i = 0; i < verdicts.size(); ++i) {
      RewardPart& part = parts[i % pack.size()].emplace_back();
      part.score = verdicts[i].score;
      part.status = verdicts[i].status;
      part.detail = std::move(verdicts[i].detail);
    }
    return parts;
  }

 private:
  std::shared_ptr<judge::HttpJudge> judge_;
  std::string criterion_;
  bool shows_reference_;
  PackRule pack_rule_;
};

// All but the criterion must be the same, so that the first one's judge can ask for all.
std::string pack_key(const RewardOptions& options) {
  std::string key = "judge";
  for (const auto& [name, value] : options) {
    if (name != "criterion") key += fmt::format(" {}={}:{}", name, value.size(), value);
  }
  return key;
}

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
  reader.number("rpm", 0, 1e6, judge.rpm);
  whole("max_tokens", 1, 1 << 20, judge.max_tokens);
  whole("concurrency", 1, 4096, judge.concurrency);
  whole("retries", 0, 100, judge.retries);
  whole("votes", 1, 99, judge.votes);
  whole("max_requests", 0, 1e15, judge.max_requests);
  whole("max_total_tokens", 0, 1e15, judge.max_total_tokens);
}

// The judges that are in use, so that criteria with equal settings share connections, concurrency,
// budget and cache. Thread-safe.
class SharedJudges {
 public:
  Result<std::shared_ptr<judge::HttpJudge>> get(const judge::HttpJudgeOptions& options) {
    const std::lock_guard lock(mutex_);
    std::erase_if(judges_, [](const Entry& entry) { return entry.judge.expired(); });
    for (const Entry& entry : judges_) {
      if (!(entry.options == options)) continue;
      if (auto judge = entry.judge.lock()) return judge;
    }
    auto made = judge::HttpJudge::create(options);
    GRADUS_RETURN_IF_ERROR(made.status());
    std::shared_ptr<judge::HttpJudge> judge = std::move(*made);
    judges_.push_back({options, judge});
    return judge;
  }

 private:
  struct Entry {
    judge::HttpJudgeOptions options;
    std::weak_ptr<judge::HttpJudge> judge;
  };
  std::mutex mutex_;
  std::vector<Entry> judges_;
};

Result<std::unique_ptr<Reward>> make_judge_reward(SharedJudges& judges,
                                                  const RewardOptions& options) {
  judge::HttpJudgeOptions judge;
  std::string criterion;
  bool shows_reference = false;
  double pack = 1;
  OptionReader reader("judge", options);
  reader.text("criterion", criterion);
  reader.flag("reference", shows_reference);
  reader.number("pack", 1, 64, pack);
  read_judge_options(reader, judge);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  if (criterion.empty()) {
    return invalid_argument(
        "reward judge: criterion is missing; expected a sentence that holds of a good response");
  }
  const auto most = static_cast<int64_t>(pack);
  if (most > 1 && judge.max_tokens < kMinTokensPerVerdict * most) {
    return invalid_argument(
        "reward judge: max_tokens is {}, pack {}; expected at least {} tokens for each criterion "
        "of a request: set max_tokens to {}, or pack fewer",
        judge.max_tokens, most, kMinTokensPerVerdict, kMinTokensPerVerdict * most);
  }
  judge.max_criteria = most;
  PackRule rule;
  if (most > 1) rule = {pack_key(options), static_cast<size_t>(most)};
  auto shared = judges.get(judge);
  if (!shared.ok()) return shared.status().with_prefix("reward judge");
  return std::unique_ptr<Reward>(std::make_unique<JudgeReward>(
      std::move(*shared), std::move(criterion), shows_reference, std::move(rule)));
}

}  // namespace

RewardRegistry::Factory judge_reward_factory() {
  return [judges = std::make_shared<SharedJudges>()](const RewardOptions& options) {
    return make_judge_reward(*judges, options);
  };
}

}  // namespace gradus::rewards
