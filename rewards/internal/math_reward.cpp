// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/math/math_check.h"

// `math`: the answer of the response equals the ground truth as mathematics.
namespace gradus::rewards {
namespace {

class MathReward : public Reward {
 public:
  math::MathOptions settings;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    return math::check_math_gold(prompt.answer, settings);
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      math::MathVerdict verdict = math::check_math(prompt.answer, response, settings);
      RewardPart part;
      part.status = verdict.status;
      part.score = verdict.score;
      part.detail = std::move(verdict.rule);
      part.answer = std::move(verdict.answer_parsed);
      return part;
    });
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_math_reward(const RewardOptions& options) {
  auto reward = std::make_unique<MathReward>();
  int mode = 0;
  OptionReader reader("math", options);
  reader.choice("mode", {"strict", "compat"}, mode);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->settings.mode = mode == 0 ? math::MathMode::kStrict : math::MathMode::kCompat;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
