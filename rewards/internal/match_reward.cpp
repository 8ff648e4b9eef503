// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <nlohmann/json.hpp>

#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `match`: the answer in words equals one of the ground truths after normalisation, or shares words
// with it (F1), as SQuAD scores them (Rajpurkar et al. 2016, arXiv:1606.05250).
namespace gradus::rewards {
namespace {

// The ground truths: a JSON list of texts, else the text itself; normalised. Empty ones make none.
std::vector<std::string> golds_of(const std::string& text) {
  std::vector<std::string> golds;
  const nlohmann::json list = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (list.is_array()) {
    for (const nlohmann::json& entry : list) {
      golds.push_back(
          normalised_answer(entry.is_string() ? entry.get<std::string>() : entry.dump()));
    }
  } else {
    golds.push_back(normalised_answer(text));
  }
  std::erase(golds, "");
  return golds;
}

double f1(const std::string& answer, const std::string& gold) {
  std::map<std::string_view, int64_t> left;
  const auto gold_words = fields_of(gold), answer_words = fields_of(answer);
  for (const std::string_view word : gold_words) ++left[word];
  double num_common = 0;
  for (const std::string_view word : answer_words) {
    const auto found = left.find(word);
    if (found != left.end() && found->second-- > 0) ++num_common;
  }
  if (num_common == 0) return 0;
  return 2 * num_common / static_cast<double>(gold_words.size() + answer_words.size());
}

class MatchReward : public Reward {
 public:
  std::string marker;
  bool is_f1 = false;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    if (!golds_of(prompt.answer).empty()) return {};
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
      const std::vector<std::string> golds = golds_of(prompt.answer);
      for (const std::string& gold : golds) {
        part.score = std::max(part.score, is_f1 ? f1(answer, gold) : answer == gold ? 1.0 : 0.0);
      }
      if (part.score < 1) part.detail = fmt::format("is not '{}'", excerpt(golds[0]));
      return part;
    });
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_match_reward(const RewardOptions& options) {
  auto reward = std::make_unique<MatchReward>();
  int metric = 0;
  OptionReader reader("match", options);
  reader.text("marker", reward->marker);
  reader.choice("metric", {"exact", "f1"}, metric);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->is_f1 = metric == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
