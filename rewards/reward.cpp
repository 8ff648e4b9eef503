// SPDX-License-Identifier: Apache-2.0
#include "rewards/reward.h"

#include <algorithm>

#include "common/strings.h"
#include "rewards/internal/builtin.h"

namespace gradus::rewards {

void register_builtin_rewards(RewardRegistry& registry) {
  registry.add("exact", make_exact_reward);
  registry.add("number", make_number_reward);
  registry.add("format", make_format_reward);
  registry.add("countdown", make_countdown_reward);
  registry.add("math", make_math_reward);
  registry.add("plugin", make_plugin_reward);
  registry.add("process", make_process_reward);
  registry.add("choice", make_choice_reward);
  registry.add("match", make_match_reward);
  registry.add("quantity", make_quantity_reward);
  registry.add("regex", make_regex_reward);
  registry.add("json_schema", make_json_schema_reward);
  registry.add("ifeval", make_ifeval_reward);
  registry.add("tags", make_tags_reward);
  registry.add("length", make_length_reward);
  registry.add("repetition", make_repetition_reward);
  registry.add("code", make_code_reward);
  registry.add("judge", judge_reward_factory());
  registry.add("reward_model", make_model_reward);
}

std::vector<std::vector<RewardPart>> Reward::score_pack(std::span<const Reward* const> pack,
                                                        std::span<const Group> groups) const {
  std::vector<std::vector<RewardPart>> parts;
  for (const Reward* reward : pack) parts.push_back(reward->score_batch(groups));
  return parts;
}

double overlong_penalty(int64_t length_tokens, int64_t max_length_tokens, int64_t buffer_tokens,
                        double factor, bool is_capped) {
  GRADUS_CHECK(buffer_tokens >= 1, fmt::format("buffer_tokens is {}", buffer_tokens));
  const int64_t excess = length_tokens - (max_length_tokens - buffer_tokens);
  const int64_t counted = is_capped ? std::min(excess, buffer_tokens) : excess;
  if (counted <= 0) return 0;
  return -static_cast<double>(counted) / static_cast<double>(buffer_tokens) * factor;
}

std::optional<std::string_view> answer_part(std::string_view response, std::string_view marker,
                                            bool skips_lines) {
  if (marker.empty()) return trim(response);
  const size_t at = response.rfind(marker);
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view rest = response.substr(at + marker.size());
  if (marker.back() == '{') {
    int64_t depth = 1;
    for (size_t i = 0; i < rest.size(); ++i) {
      depth += rest[i] == '{' ? 1 : rest[i] == '}' ? -1 : 0;
      if (depth == 0) return trim(rest.substr(0, i));
    }
    return std::nullopt;
  }
  if (marker.front() == '<' && marker.back() == '>') {
    const size_t end = rest.find("</" + std::string(marker.substr(1)));
    if (end == std::string_view::npos) return std::nullopt;
    return trim(rest.substr(0, end));
  }
  if (skips_lines) rest = trim(rest);
  return trim(rest.substr(0, rest.find('\n')));
}

std::string_view excerpt(std::string_view text) {
  size_t end = std::min<size_t>(text.size(), 60);
  while (end > 0 && end < text.size() && (text[end] & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace gradus::rewards
