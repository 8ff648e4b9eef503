// SPDX-License-Identifier: Apache-2.0
#include <re2/re2.h>

#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `regex`: the response matches the regular expression that is the prompt's ground truth (`format`
// has one for all prompts). RE2: time linear in the response whatever the pattern.
namespace gradus::rewards {
namespace {

class RegexReward : public Reward {
 public:
  std::string marker;
  bool is_partial = false;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    const re2::RE2 pattern(prompt.answer, settings());
    return check(pattern, prompt);
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    for (const Group& group : groups) {
      const re2::RE2 pattern(group.prompt->answer, settings());
      const Status status = check(pattern, *group.prompt);
      for (const data::Trajectory& trajectory : group.trajectories) {
        RewardPart& part = parts.emplace_back();
        if (!status.ok()) {
          part = {.status = RewardStatus::kInvalidGold, .detail = status.message()};
          continue;
        }
        const auto visible = visible_part(trajectory.text);
        const auto text = visible ? answer_part(*visible, marker, /*skips_lines=*/true) : visible;
        if (!text) {
          part.detail = visible ? fmt::format("no '{}' in the response", marker)
                                : std::string("<think> does not end");
          continue;
        }
        const re2::StringPiece piece(text->data(), text->size());
        const bool matches = is_partial ? re2::RE2::PartialMatch(piece, pattern)
                                        : re2::RE2::FullMatch(piece, pattern);
        part.score = matches ? 1 : 0;
        if (!matches) part.detail = fmt::format("does not match {}", excerpt(group.prompt->answer));
      }
    }
    return parts;
  }

 private:
  static re2::RE2::Options settings() {
    re2::RE2::Options options;
    options.set_log_errors(false);
    options.set_dot_nl(true);
    return options;
  }

  static Status check(const re2::RE2& pattern, const data::Prompt& prompt) {
    if (prompt.answer.empty()) {
      return invalid_argument("the ground truth is empty; expected a regular expression (RE2)");
    }
    if (pattern.ok()) return {};
    return invalid_argument("the ground truth '{}' is no regular expression of RE2: {}",
                            excerpt(prompt.answer), pattern.error());
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_regex_reward(const RewardOptions& options) {
  auto reward = std::make_unique<RegexReward>();
  int match = 0;
  OptionReader reader("regex", options);
  reader.text("marker", reward->marker);
  reader.choice("match", {"full", "partial"}, match);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->is_partial = match == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
