// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/json_schema.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `json_schema`: the response, or the code block that it is, is JSON that fits a schema: the option
// `schema`, or else the prompt's ground truth.
namespace gradus::rewards {
namespace {

// Without the fences of a code block around the whole.
std::string_view without_fences(std::string_view text) {
  text = trim(text);
  if (!text.starts_with("```") || !text.ends_with("```") || text.size() < 6) return text;
  const size_t begin = text.find('\n');
  if (begin == std::string_view::npos || begin + 3 > text.size()) return text;
  return trim(text.substr(begin, text.size() - 3 - begin));
}

class JsonSchemaReward : public Reward {
 public:
  std::optional<JsonSchema> schema;
  std::string marker;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    if (schema) return {};
    const Status status = JsonSchema::parse(prompt.answer).status();
    return status.with_prefix("the ground truth is no JSON schema");
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    for (const Group& group : groups) {
      std::optional<JsonSchema> own;
      Status status;
      if (!schema) {
        Result<JsonSchema> parsed = JsonSchema::parse(group.prompt->answer);
        status = parsed.status();
        if (parsed.ok()) own = std::move(*parsed);
      }
      for (const data::Trajectory& trajectory : group.trajectories) {
        RewardPart& part = parts.emplace_back();
        if (!status.ok()) {
          part.status = RewardStatus::kInvalidGold;
          part.detail = "the ground truth is no JSON schema: " + status.message();
          continue;
        }
        part.detail = problem_with(trajectory.text, schema ? *schema : *own);
        part.score = part.detail.empty() ? 1 : 0;
      }
    }
    return parts;
  }

 private:
  std::string problem_with(std::string_view response, const JsonSchema& own) const {
    const auto visible = visible_part(response);
    if (!visible) return "<think> does not end";
    const auto text = answer_part(*visible, marker, /*skips_lines=*/true);
    if (!text) return fmt::format("no '{}' in the response", marker);
    const Result<nlohmann::json> value = read_json_text(without_fences(*text));
    if (!value.ok()) return "the answer " + value.status().message();
    return own.problem_with(*value);
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_json_schema_reward(const RewardOptions& options) {
  auto reward = std::make_unique<JsonSchemaReward>();
  std::string schema;
  OptionReader reader("json_schema", options);
  reader.text("schema", schema);
  reader.text("marker", reward->marker);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  if (!schema.empty()) {
    Result<JsonSchema> parsed = JsonSchema::parse(schema);
    if (!parsed.ok()) return parsed.status().with_prefix("reward json_schema: schema");
    reward->schema = std::move(*parsed);
  }
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
