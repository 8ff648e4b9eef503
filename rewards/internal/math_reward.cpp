// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/math/extract.h"
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

  std::string explain(const data::Prompt& prompt,
                      const data::Trajectory& trajectory) const override {
    const std::string_view response = trajectory.text;
    const bool is_strict = settings.mode == math::MathMode::kStrict;
    const math::Extracted found = is_strict ? math::extract_strict(response)
                                            : math::extract_compat(response, math::Targets::kBoth);
    if (!found.is_found) return found.note.empty() ? std::string(math::kNoAnswer) : found.note;
    const size_t at = response.rfind(found.text);
    const std::string place =
        at == std::string_view::npos
            ? "put together from the response"
            : fmt::format("bytes {} to {} of {}", at, at + found.text.size(), response.size());
    const math::MathVerdict verdict = math::check_math(prompt.answer, response, settings);
    return fmt::format("'{}' ({}); read as {}; ground truth read as {}; rule: {}",
                       excerpt(found.text), place, excerpt(verdict.answer_parsed),
                       excerpt(verdict.gold_parsed), verdict.rule);
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
