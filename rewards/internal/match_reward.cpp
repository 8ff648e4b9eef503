// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"
#include "rewards/answer_match.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `match`: the answer in words equals one of the ground truths after normalisation, or shares words
// with it (F1): rewards/answer_match.h.
namespace gradus::rewards {
namespace {

enum class Metric { kExact, kF1, kHotpotF1 };

class MatchReward : public Reward {
 public:
  std::string marker;
  Metric metric = Metric::kExact;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    if (!normalised_golds(prompt.answer).empty()) return {};
    return invalid_argument("the ground truth is '{}'; expected words, or a JSON list of them",
                            excerpt(prompt.answer));
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      const Status gold_status = check_ground_truth(prompt);
      if (!gold_status.ok()) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = gold_status.message();
        return part;
      }
      const auto visible = visible_part(response);
      const auto text = visible ? answer_part(tail(*visible), marker, /*skips_lines=*/true)
                                : std::optional<std::string_view>();
      if (!text) {
        part.detail = visible ? fmt::format("no '{}' in the response", marker)
                              : std::string("<think> does not end");
        return part;
      }
      const std::string answer = normalised_answer(*text);
      if (answer.size() <= 1000) part.answer = answer;
      const std::vector<std::string> golds = normalised_golds(prompt.answer);
      part.score = score_of(answer, golds);
      if (part.score < 1) part.detail = fmt::format("is not '{}'", excerpt(golds[0]));
      return part;
    });
  }

 private:
  double score_of(const std::string& answer, const std::vector<std::string>& golds) const {
    switch (metric) {
      case Metric::kExact:
        return exact_match(answer, golds) ? 1.0 : 0.0;
      case Metric::kF1:
        return answer_f1(answer, golds);
      case Metric::kHotpotF1:
        return hotpot_f1(answer, golds);
    }
    return 0;
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_match_reward(const RewardOptions& options) {
  auto reward = std::make_unique<MatchReward>();
  int metric = 0;
  OptionReader reader("match", options);
  reader.text("marker", reward->marker);
  reader.choice("metric", {"exact", "f1", "hotpot_f1"}, metric);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->metric = static_cast<Metric>(metric);
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
