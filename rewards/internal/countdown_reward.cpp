// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/expression.h"
#include "rewards/internal/options.h"

// `countdown`: an expression that uses each of the given numbers exactly once and comes to the
// target. The ground truth is {"target": 24, "numbers": [2, 3, 4]} as JSON text.
namespace gradus::rewards {
namespace {

struct Puzzle {
  int64_t target = 0;
  std::vector<int64_t> numbers;  // ascending
};

Result<Puzzle> read_puzzle(const std::string& text) {
  const auto object = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto is_whole = [](const nlohmann::json& value) { return value.is_number_integer(); };
  bool is_good = object.is_object() && object.contains("target") && object.contains("numbers") &&
                 is_whole(object["target"]) && object["numbers"].is_array();
  is_good = is_good && !object["numbers"].empty() &&
            std::all_of(object["numbers"].begin(), object["numbers"].end(), is_whole);
  if (!is_good) {
    return invalid_argument(
        "the ground truth is '{}'; expected {{\"target\": whole number, \"numbers\": [whole "
        "numbers]}}",
        excerpt(text));
  }
  Puzzle puzzle{object["target"].get<int64_t>(), object["numbers"].get<std::vector<int64_t>>()};
  std::sort(puzzle.numbers.begin(), puzzle.numbers.end());
  return puzzle;
}

class CountdownReward : public Reward {
 public:
  std::string marker = "Answer:";
  double format_score = 0;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    return read_puzzle(prompt.answer).status();
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      const auto puzzle = read_puzzle(prompt.answer);
      if (!puzzle.ok()) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = puzzle.status().message();
        return part;
      }
      const auto text = answer_part(response, marker, /*skips_lines=*/true);
      if (!text.has_value()) {
        part.detail = fmt::format("no '{}' in the response", marker);
        return part;
      }
      judge(*text, *puzzle, part);
      return part;
    });
  }

 private:
  void judge(std::string_view text, const Puzzle& puzzle, RewardPart& part) const {
    if (text.ends_with('.')) text.remove_suffix(1);
    // "(2 + 4) * 3 = 18": what is claimed to the right must be the target.
    const size_t equals = text.find('=');
    bool is_claim_right = true;
    if (equals != std::string_view::npos) {
      const auto claim = evaluate(text.substr(equals + 1));
      is_claim_right = claim.ok() && claim->value == Fraction{puzzle.target, 1};
      text = text.substr(0, equals);
    }
    auto expression = evaluate(text);
    if (!expression.ok()) {
      part.detail = "not an expression: " + expression.status().message();
      return;
    }
    part.answer = std::string(text);
    std::erase(part.answer, ' ');
    part.score = format_score;
    std::sort(expression->numbers.begin(), expression->numbers.end());
    const Fraction& value = expression->value;
    if (expression->numbers != puzzle.numbers) {
      part.detail = fmt::format("uses the numbers {}, not {}", fmt::join(expression->numbers, " "),
                                fmt::join(puzzle.numbers, " "));
    } else if (value != Fraction{puzzle.target, 1}) {
      part.detail = value.denominator == 1
                        ? fmt::format("comes to {}, not {}", value.numerator, puzzle.target)
                        : fmt::format("comes to {}/{}, not {}", value.numerator, value.denominator,
                                      puzzle.target);
    } else if (!is_claim_right) {
      part.detail = fmt::format("claims another value than {}", puzzle.target);
    } else {
      part.score = 1;
    }
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_countdown_reward(const RewardOptions& options) {
  auto reward = std::make_unique<CountdownReward>();
  OptionReader reader("countdown", options);
  reader.text("marker", reward->marker);
  reader.number("format_score", 0, 1, reward->format_score);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
