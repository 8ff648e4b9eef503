// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/number.h"
#include "rewards/internal/options.h"

// `number`: the last number of the response, or the one after the marker, equals the ground truth.
namespace gradus::rewards {
namespace {

// The only number of `text`, which holds nothing else but white space and one closing full stop.
std::optional<FoundNumber> whole_number(std::string_view text) {
  text = trim(text);
  if (text.ends_with('.')) text = trim(text.substr(0, text.size() - 1));
  auto found = find_number(text, 0);
  if (!found.has_value() || found->begin != 0 || found->end != text.size()) return std::nullopt;
  return found;
}

class NumberReward : public Reward {
 public:
  std::string marker;
  bool is_strict = false;
  bool percent_is_fraction = false;
  Decimal tolerance;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    const auto gold = read_gold(prompt.answer);
    return gold.ok() ? Status() : gold.status();
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      const auto gold = read_gold(prompt.answer);
      if (!gold.ok()) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = gold.status().message();
        return part;
      }
      const auto found = find_answer(response, part.detail);
      if (!found.has_value()) return part;
      if (!found->problem.empty()) {
        part.detail = fmt::format("the answer is no number: {}", found->problem);
        return part;
      }
      const Number value = value_of(*found);
      part.answer = canonical_text(value);
      const bool is_right = tolerance.digits.empty() ? part.answer == canonical_text(*gold)
                                                     : is_within(value, *gold, tolerance);
      part.score = is_right ? 1 : 0;
      if (!is_right) {
        part.detail = fmt::format("is not {}", excerpt(canonical_text(*gold)));
      }
      return part;
    });
  }

 private:
  Number value_of(const FoundNumber& found) const {
    Number value = found.value;
    if (found.has_percent && percent_is_fraction && !value.numerator.digits.empty()) {
      value.numerator.exponent -= 2;
    }
    return value;
  }

  Result<Number> read_gold(std::string_view text) const {
    const auto found = whole_number(text);
    if (!found.has_value() || !found->problem.empty()) {
      return invalid_argument("the ground truth is '{}'; expected a number{}", excerpt(text),
                              found.has_value() ? ", not " + found->problem : "");
    }
    return value_of(*found);
  }

  // The answer's number, or nothing and why.
  std::optional<FoundNumber> find_answer(std::string_view response, std::string& detail) const {
    std::string_view text = response;
    if (!marker.empty()) {
      const auto part = answer_part(response, marker, /*skips_lines=*/!is_strict);
      if (!part.has_value()) {
        detail = fmt::format("no '{}' in the response", marker);
        return std::nullopt;
      }
      text = *part;
    }
    std::optional<FoundNumber> found;
    if (is_strict) {
      found = whole_number(text);
    } else {
      found = marker.empty() ? last_number(text) : find_number(text, 0);
    }
    if (!found.has_value()) {
      const std::string where =
          marker.empty() ? "in the response" : fmt::format("after '{}'", marker);
      detail = fmt::format("{} {}", is_strict ? "not exactly one number" : "no number", where);
    }
    return found;
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_number_reward(const RewardOptions& options) {
  auto reward = std::make_unique<NumberReward>();
  std::string tolerance = "0";
  int percent = 0;
  OptionReader reader("number", options);
  reader.text("marker", reward->marker);
  reader.flag("strict", reward->is_strict);
  reader.text("tolerance", tolerance);
  reader.choice("percent", {"ignore", "fraction"}, percent);
  const auto read = whole_number(tolerance);
  const bool is_decimal = read.has_value() && read->problem.empty() && !read->has_percent &&
                          read->value.denominator == 1 && !read->value.numerator.is_negative;
  if (!is_decimal) reader.reject("tolerance", "a decimal number of at least 0");
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->tolerance = read->value.numerator;
  reward->percent_is_fraction = percent == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
