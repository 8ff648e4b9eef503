// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"
#include "rewards/math/extract.h"

// `choice`: the one letter, A to J, that the response settles on is the ground truth's.
namespace gradus::rewards {
namespace {

constexpr const char* kBadGold = "the ground truth is '{}'; expected a letter from A to J";

class ChoiceReward : public Reward {
 public:
  Status check_ground_truth(const data::Prompt& prompt) const override {
    if (math::chosen_letter(prompt.answer) != 0) return {};
    return invalid_argument(kBadGold, excerpt(prompt.answer));
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      const char gold = math::chosen_letter(prompt.answer);
      if (gold == 0) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = fmt::format(kBadGold, excerpt(prompt.answer));
        return part;
      }
      const auto visible = visible_part(response);
      const char chosen = visible ? math::chosen_letter(*visible) : 0;
      if (chosen == 0) {
        part.detail = visible ? "no single choice" : "<think> does not end";
        return part;
      }
      part.answer = std::string(1, chosen);
      part.score = chosen == gold ? 1 : 0;
      if (chosen != gold) part.detail = fmt::format("is not {}", gold);
      return part;
    });
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_choice_reward(const RewardOptions& options) {
  GRADUS_RETURN_IF_ERROR(OptionReader("choice", options).finish());
  return std::unique_ptr<Reward>(new ChoiceReward);
}

}  // namespace gradus::rewards
