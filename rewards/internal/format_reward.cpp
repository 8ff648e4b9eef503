// SPDX-License-Identifier: Apache-2.0
#include <re2/re2.h>

#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"

// `format`: the response matches a regular expression. RE2 takes time linear in the response
// whatever the pattern, which patterns and texts from outside need.
namespace gradus::rewards {
namespace {

class FormatReward : public Reward {
 public:
  std::unique_ptr<const re2::RE2> pattern;
  bool is_partial = false;

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt&, std::string_view response) {
      const re2::StringPiece text(response.data(), response.size());
      const bool matches =
          is_partial ? re2::RE2::PartialMatch(text, *pattern) : re2::RE2::FullMatch(text, *pattern);
      RewardPart part;
      part.score = matches ? 1 : 0;
      if (!matches) part.detail = fmt::format("does not match {}", pattern->pattern());
      return part;
    });
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_format_reward(const RewardOptions& options) {
  auto reward = std::make_unique<FormatReward>();
  std::string pattern;
  int match = 0;
  bool dot_matches_newline = true;
  OptionReader reader("format", options);
  reader.text("pattern", pattern);
  reader.choice("match", {"full", "partial"}, match);
  reader.flag("dot_matches_newline", dot_matches_newline);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  if (pattern.empty()) {
    return invalid_argument(
        "reward format: pattern: is missing; expected a regular expression (RE2)");
  }
  re2::RE2::Options settings;
  settings.set_log_errors(false);
  settings.set_dot_nl(dot_matches_newline);
  reward->pattern = std::make_unique<const re2::RE2>(pattern, settings);
  if (!reward->pattern->ok()) {
    return invalid_argument("reward format: pattern: '{}' is no regular expression of RE2: {}",
                            pattern, reward->pattern->error());
  }
  reward->is_partial = match == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
