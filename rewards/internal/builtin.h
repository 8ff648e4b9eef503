// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "rewards/reward.h"

namespace gradus::rewards {

Result<std::unique_ptr<Reward>> make_exact_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_number_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_format_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_countdown_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_math_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_plugin_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_process_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_choice_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_match_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_quantity_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_regex_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_json_schema_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_ifeval_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_tags_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_length_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_repetition_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_code_reward(const RewardOptions& options);
Result<std::unique_ptr<Reward>> make_model_reward(const RewardOptions& options);
// Judges with equal settings that one factory makes are one client.
RewardRegistry::Factory judge_reward_factory();

// The part of a response that holds the answer: what follows the last `marker`, trimmed, to the end
// of the line; the first line with text when `skips_lines`. Two markers carry their own end: after
// "<answer>" it is
// "</answer>", after "\boxed{" the matching brace. An empty marker gives the whole response,
// trimmed. Nothing when the marker does not occur.
std::optional<std::string_view> answer_part(std::string_view response, std::string_view marker,
                                            bool skips_lines);

// The first 60 bytes of a text, no character cut in two, for messages.
std::string_view excerpt(std::string_view text);

// Calls `score(prompt, response)` for every trajectory and collects the parts.
template <class Score>
std::vector<RewardPart> score_each(std::span<const Group> groups, const Score& score) {
  std::vector<RewardPart> parts;
  for (const Group& group : groups) {
    for (const data::Trajectory& trajectory : group.trajectories) {
      parts.push_back(score(*group.prompt, trajectory.text));
    }
  }
  return parts;
}

}  // namespace gradus::rewards
