// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"

// `tags`: the response is <think>...</think> and then <answer>...</answer>, or other tags: each
// once opened and once closed, in order, none within another.
namespace gradus::rewards {
namespace {

enum class Outside { kNone, kAfter, kAny };

class TagsReward : public Reward {
 public:
  std::vector<std::string> tags = {"think", "answer"};
  Outside outside = Outside::kNone;
  bool counts_each = false;

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt&, std::string_view response) {
      RewardPart part;
      double num_right = 0;
      size_t end = 0;  // of what is read so far
      const auto complain = [&](const std::string& detail) {
        if (part.detail.empty()) part.detail = detail;
      };
      bool is_clean = true;
      for (const std::string& tag : tags) {
        const std::string open = "<" + tag + ">", close = "</" + tag + ">";
        const size_t begin = response.find(open), stop = response.find(close);
        if (begin == std::string_view::npos || stop == std::string_view::npos) {
          complain(fmt::format("no {}...{}", open, close));
        } else if (response.find(open, begin + 1) != std::string_view::npos ||
                   response.find(close, stop + 1) != std::string_view::npos) {
          complain(fmt::format("more than one {} or {}", open, close));
        } else if (begin < end || stop < begin) {
          complain(fmt::format("{}...{} is not in its place", open, close));
        } else {
          ++num_right;
          is_clean &= outside == Outside::kAny || trim(response.substr(end, begin - end)).empty();
          end = stop + close.size();
        }
      }
      is_clean &= outside != Outside::kNone || trim(response.substr(end)).empty();
      const double num_tags = static_cast<double>(tags.size());
      if (counts_each) {
        part.score = num_right / num_tags;
      } else {
        part.score = num_right == num_tags && is_clean ? 1 : 0;
        if (!is_clean) complain("text outside of the tags");
      }
      return part;
    });
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_tags_reward(const RewardOptions& options) {
  auto reward = std::make_unique<TagsReward>();
  std::string tags = "think,answer";
  int outside = 0, score = 0;
  OptionReader reader("tags", options);
  reader.text("tags", tags);
  reader.choice("outside", {"none", "after", "any"}, outside);
  reader.choice("score", {"all", "each"}, score);
  reward->tags.clear();
  for (size_t begin = 0; begin <= tags.size();) {
    const size_t end = std::min(tags.find(',', begin), tags.size());
    const std::string_view tag = trim(std::string_view(tags).substr(begin, end - begin));
    if (tag.empty() || tag.find_first_of("<>/ ") != std::string_view::npos) {
      reader.reject("tags", "names between commas, e.g. think,answer");
      break;
    }
    reward->tags.emplace_back(tag);
    begin = end + 1;
  }
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->outside = static_cast<Outside>(outside);
  reward->counts_each = score == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
