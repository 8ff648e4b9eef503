// SPDX-License-Identifier: Apache-2.0
#include <utf8proc.h>

#include <cstdlib>

#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"

// `exact`: the response, or what follows the marker, is the ground truth.
namespace gradus::rewards {
namespace {

constexpr const char* kEmptyGold = "the ground truth is empty; expected the text to match";

// Canonical composition and, if asked for, case folding; text that is not UTF-8 stays as it is.
std::string normalise_unicode(const std::string& text, bool folds_case) {
  auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  if (folds_case) options = static_cast<utf8proc_option_t>(options | UTF8PROC_CASEFOLD);
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  if (length < 0) return text;
  std::string result(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
  std::free(mapped);  // utf8proc allocates with malloc
  return result;
}

std::string collapse_spaces(std::string_view text) {
  std::string result;
  for (const char c : trim(text)) {
    const bool is_space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!is_space) {
      result += c;
    } else if (!result.ends_with(' ')) {
      result += ' ';
    }
  }
  return result;
}

class ExactReward : public Reward {
 public:
  std::string marker;
  bool ignores_case = false;
  bool strips = true;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    if (normalise(prompt.answer).empty()) return invalid_argument("{}", kEmptyGold);
    return {};
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      std::string_view text = response;
      if (!marker.empty()) {
        const auto found = answer_part(response, marker, /*skips_lines=*/true);
        if (!found.has_value()) {
          part.detail = fmt::format("no '{}' in the response", marker);
          return part;
        }
        text = *found;
      }
      const std::string gold = normalise(prompt.answer);
      if (gold.empty()) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = kEmptyGold;
        return part;
      }
      // Composition and case folding change lengths, but never tenfold.
      if (trim(text).size() > 10 * (prompt.answer.size() + 100)) {
        part.detail = "the answer is far longer than the ground truth";
        return part;
      }
      part.answer = normalise(text);
      part.score = part.answer == gold ? 1 : 0;
      if (part.score == 0) part.detail = fmt::format("is not '{}'", excerpt(gold));
      return part;
    });
  }

 private:
  std::string normalise(std::string_view text) const {
    return normalise_unicode(strips ? collapse_spaces(text) : std::string(text), ignores_case);
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_exact_reward(const RewardOptions& options) {
  auto reward = std::make_unique<ExactReward>();
  OptionReader reader("exact", options);
  reader.text("marker", reward->marker);
  reader.flag("ignore_case", reward->ignores_case);
  reader.flag("strip", reward->strips);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
