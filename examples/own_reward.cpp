// SPDX-License-Identifier: Apache-2.0
// A reward of one's own beside a built-in one: registers "brief", which likes short responses, adds
// a tenth of it to "number", and judges three responses to one prompt.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "rewards/reward.h"
#include "rewards/reward_sum.h"

namespace {

using namespace gradus;

// 1 for an empty response, falling to 0 at `limit` bytes.
class BriefReward : public rewards::Reward {
 public:
  explicit BriefReward(double limit) : limit_(limit) {}

  std::vector<rewards::RewardPart> score_batch(
      std::span<const rewards::Group> groups) const override {
    std::vector<rewards::RewardPart> parts;
    for (const rewards::Group& group : groups) {
      for (const data::Trajectory& trajectory : group.trajectories) {
        const double length = static_cast<double>(trajectory.text.size());
        parts.push_back({.score = std::max(0.0, 1.0 - length / limit_)});
      }
    }
    return parts;
  }

 private:
  double limit_;
};

Result<std::unique_ptr<rewards::Reward>> make_brief(const rewards::RewardOptions& options) {
  double limit = 200;
  for (const auto& [name, text] : options) {
    const char* end = text.data() + text.size();
    if (name != "limit" || std::from_chars(text.data(), end, limit).ptr != end || limit <= 0) {
      return invalid_argument("brief: cannot use {}={}; its one option is limit, above 0", name,
                              text);
    }
  }
  return std::unique_ptr<rewards::Reward>(new BriefReward(limit));
}

Status judge() {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  registry.add("brief", make_brief);

  // What a run's YAML says in its `reward` section.
  rewards::RewardConfig config;
  config.parts = {{.name = "number", .options = {{"marker", "Answer:"}}},
                  {.name = "brief", .weight = 0.1, .options = {{"limit", "100"}}}};
  const Result<rewards::RewardSum> sum = rewards::RewardSum::create(config, registry);
  if (!sum.ok()) return sum.status();

  data::Prompt prompt;
  prompt.text = "What is 3 + 4?";
  prompt.answer = "7";
  std::vector<data::Trajectory> trajectories(3);
  const char* texts[] = {"Answer: 7", "Three and four make seven. Answer: 7", "Answer: 8"};
  for (size_t i = 0; i < trajectories.size(); ++i) {
    trajectories[i].id.sample_index = static_cast<int32_t>(i);
    trajectories[i].text = texts[i];
  }

  const rewards::Group group{&prompt, trajectories};
  const auto breakdowns = sum->score({&group, 1});
  if (!breakdowns.ok()) return breakdowns.status();
  for (size_t i = 0; i < trajectories.size(); ++i) {
    const data::RewardBreakdown& breakdown = (*breakdowns)[i];
    fmt::print("{:.3f}  '{}'", breakdown.total, trajectories[i].text);
    for (const data::WeightedPart& part : breakdown.parts) {
      fmt::print("  {} {:.2f}", part.name, part.raw);
    }
    fmt::print("\n");
  }
  const bool is_ordered = (*breakdowns)[0].total > (*breakdowns)[1].total &&
                          (*breakdowns)[1].total > (*breakdowns)[2].total;
  if (!is_ordered) {
    return {StatusCode::kInternal, "own_reward: the brief right answer should come first"};
  }
  return {};
}

}  // namespace

int main() {
  const Status status = judge();
  if (!status.ok()) fmt::print(stderr, "{}\n", status.message());
  return status.ok() ? 0 : 1;
}
