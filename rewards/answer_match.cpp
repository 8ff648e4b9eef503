// SPDX-License-Identifier: Apache-2.0
#include "rewards/answer_match.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "rewards/internal/text.h"

namespace gradus::rewards {
namespace {

double f1(std::string_view answer, std::string_view gold) {
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

bool is_verdict(std::string_view text) {
  return text == "yes" || text == "no" || text == "noanswer";
}

}  // namespace

std::vector<std::string> normalised_golds(const std::string& ground_truth) {
  std::vector<std::string> golds;
  const nlohmann::json list =
      nlohmann::json::parse(ground_truth, nullptr, /*allow_exceptions=*/false);
  if (list.is_array()) {
    for (const nlohmann::json& entry : list) {
      golds.push_back(
          normalised_answer(entry.is_string() ? entry.get<std::string>() : entry.dump()));
    }
  } else {
    golds.push_back(normalised_answer(ground_truth));
  }
  std::erase(golds, "");
  return golds;
}

bool exact_match(std::string_view answer, const std::vector<std::string>& golds) {
  return std::find(golds.begin(), golds.end(), answer) != golds.end();
}

double answer_f1(std::string_view answer, const std::vector<std::string>& golds) {
  double best = 0;
  for (const std::string& gold : golds) best = std::max(best, f1(answer, gold));
  return best;
}

double hotpot_f1(std::string_view answer, const std::vector<std::string>& golds) {
  double best = 0;
  for (const std::string& gold : golds) {
    const bool must_equal = is_verdict(answer) || is_verdict(gold);
    if (!must_equal || answer == gold) best = std::max(best, f1(answer, gold));
  }
  return best;
}

AnswerScores score_answer(std::string_view answer, const std::vector<std::string>& golds) {
  const std::string normalised = normalised_answer(answer);
  return {exact_match(normalised, golds) ? 1.0 : 0.0, hotpot_f1(normalised, golds)};
}

}  // namespace gradus::rewards
