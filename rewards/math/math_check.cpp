// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/math_check.h"

#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/math/compare.h"
#include "rewards/math/extract.h"

namespace gradus::rewards::math {
namespace {

using data::RewardStatus;

Targets targets_of(MathTargets targets) {
  switch (targets) {
    case MathTargets::kBoth:
      return Targets::kBoth;
    case MathTargets::kLatex:
      return Targets::kLatex;
    case MathTargets::kExpression:
      return Targets::kExpression;
  }
  GRADUS_CHECK(false, "math targets out of range");
}

Extracted read_gold(std::string_view gold, const MathOptions& options) {
  return options.mode == MathMode::kCompat ? extract_compat(gold, targets_of(options.targets))
                                           : extract_gold(gold);
}

bool is_judgeable(const Extracted& gold) {
  return gold.value != nullptr || !trim(gold.text).empty();
}

// Two texts that no parser reads are compared as they stand.
std::string squeezed(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == ' ' || c == '\n' || c == '\t') continue;
    result += c;
  }
  return result;
}

// What stands after the thinking; extract_strict has seen that it ends.
std::string_view answer_part_of(std::string_view text) {
  const size_t close = text.rfind("</think>");
  return close == std::string_view::npos ? text : text.substr(close + 8);
}

// The letter of a ground truth that is one choice, "B" or \text{(B)}, in capitals; 0 for others.
char choice_of(const Extracted& gold) {
  const bool is_letter = gold.value != nullptr && gold.value->text.size() == 1 &&
                         (gold.value->kind == Kind::kName || gold.value->kind == Kind::kText ||
                          gold.value->kind == Kind::kConstant);
  if (!is_letter || gold.value->text[0] < 'a' || gold.value->text[0] > 'j') return 0;
  const char capital = static_cast<char>(gold.value->text[0] - 32);
  return gold.text.find(capital) == std::string::npos ? 0 : capital;
}

Decision decide(const Extracted& gold, const Extracted& answer, const MathOptions& options) {
  const bool is_compat = options.mode == MathMode::kCompat;
  Decision decision{Equality::kDifferent, "not read as an expression"};
  if (gold.value != nullptr && answer.value != nullptr) {
    decision = is_compat ? compare_compat(gold.value, answer.value,
                                          {options.decimals, options.names_matter,
                                           options.compares_relations_with_sets})
                         : compare_strict(gold.value, answer.value, {});
  }
  if (decision.equality == Equality::kEqual) return decision;
  const bool compares_texts = is_compat || (gold.value == nullptr && answer.value == nullptr);
  const std::string a = is_compat ? gold.text : squeezed(gold.text);
  const std::string b = is_compat ? answer.text : squeezed(answer.text);
  if (compares_texts && !a.empty() && a == b) return {Equality::kEqual, "same text"};
  return decision;
}

}  // namespace

MathVerdict check_math(std::string_view gold, std::string_view answer, const MathOptions& options) {
  MathVerdict verdict;
  const Extracted read = read_gold(gold, options);
  if (read.value != nullptr) verdict.gold_parsed = to_text(read.value);
  if (!is_judgeable(read)) {
    verdict.status = RewardStatus::kInvalidGold;
    verdict.rule = check_math_gold(gold, options).message();
    return verdict;
  }
  const Extracted given = options.mode == MathMode::kCompat
                              ? extract_compat(answer, targets_of(options.targets))
                              : extract_strict(answer);
  if (options.mode == MathMode::kStrict && (given.note.empty() || given.note == kNoAnswer)) {
    const char choice = choice_of(read);
    if (choice != 0 && chosen_letter(answer_part_of(answer)) == choice) {
      verdict.answer_parsed = std::string(1, choice);
      verdict.rule = "choice";
      verdict.score = 1;
      return verdict;
    }
  }
  if (!given.is_found) {
    verdict.rule = given.note.empty() ? std::string(kNoAnswer) : given.note;
    return verdict;
  }
  if (given.value != nullptr) verdict.answer_parsed = to_text(given.value);
  const Decision decision = decide(read, given, options);
  verdict.rule = decision.rule;
  if (decision.equality == Equality::kUndecided && options.mode == MathMode::kStrict) {
    verdict.status = RewardStatus::kUndecided;
    return verdict;
  }
  verdict.score = decision.equality == Equality::kEqual ? 1 : 0;
  return verdict;
}

Status check_math_gold(std::string_view gold, const MathOptions& options) {
  if (is_judgeable(read_gold(gold, options))) return {};
  return invalid_argument(
      "the ground truth is '{}'; expected an answer that can be read, {}", excerpt(gold),
      options.mode == MathMode::kCompat ? "LaTeX between $ signs, in \\boxed{}, or a plain number"
                                        : "a number or a LaTeX expression, alone or in \\boxed{}");
}

}  // namespace gradus::rewards::math
