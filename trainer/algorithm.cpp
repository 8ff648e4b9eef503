// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm.h"

#include <cmath>
#include <map>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// What the estimator needs beside rewards.
Status check_parts(const AlgorithmConfig& config, const ScoredSequence& first,
                   const ScoredSequence& sequence, size_t index) {
  if (!std::isfinite(sequence.reward)) {
    return invalid_argument(
        "sequence {}: the reward is {}; rewards must be finite numbers; repair the reward, or "
        "leave "
        "the response out",
        index, sequence.reward);
  }
  if (config.advantage == "gae" &&
      sequence.values.size() != static_cast<size_t>(sequence.num_tokens)) {
    return invalid_argument(
        "sequence {}: {} values for {} loss tokens; the advantage gae needs the critic's value at "
        "each; give values, or choose an advantage without critic",
        index, sequence.values.size(), sequence.num_tokens);
  }
  if (config.advantage == "remax" && !sequence.greedy_reward) {
    return invalid_argument(
        "sequence {}: no greedy_reward; the advantage remax compares with the reward of the greedy "
        "response to the same prompt",
        index);
  }
  if (config.advantage == "remax" && !std::isfinite(*sequence.greedy_reward)) {
    return invalid_argument("sequence {}: greedy_reward is {}; it must be a finite number", index,
                            *sequence.greedy_reward);
  }
  if (config.advantage == "gdpo" && sequence.reward_parts.empty()) {
    return invalid_argument(
        "sequence {}: no reward_parts; the advantage gdpo compares each part of the reward by "
        "itself and needs at least one",
        index);
  }
  if (config.advantage == "gdpo" && sequence.reward_parts.size() != first.reward_parts.size()) {
    return invalid_argument(
        "sequence {}: {} reward_parts, the first sequence has {}; the advantage gdpo compares each "
        "part by itself and needs the same ones everywhere",
        index, sequence.reward_parts.size(), first.reward_parts.size());
  }
  return {};
}

}  // namespace

void register_builtin_losses(LossRegistry& registry) {
  registry.add("cispo", make_cispo_loss);
  registry.add("clip_cov", make_clip_cov_loss);
  registry.add("decoupled_ppo", make_ppo_loss);  // the weights make the difference
  registry.add("dppo_tv", make_dppo_tv_loss);
  registry.add("gmpo", make_gmpo_loss);
  registry.add("gpg", make_gpg_loss);
  registry.add("gspo", make_gspo_loss);
  registry.add("kl_cov", make_kl_cov_loss);
  registry.add("luspo", make_luspo_loss);
  registry.add("m2po", make_ppo_loss);  // the weights make the difference
  registry.add("ppo", make_ppo_loss);
  registry.add("reinforce", make_reinforce_loss);
  registry.add("sapo", make_sapo_loss);
  registry.add("vespo", make_vespo_loss);
}

void register_builtin_advantages(AdvantageRegistry& registry) {
  registry.add("dr_grpo", make_dr_grpo_advantage);
  registry.add("gae", make_gae_advantage);
  registry.add("gdpo", make_gdpo_advantage);
  registry.add("grpo", make_grpo_advantage);
  registry.add("maxrl", make_maxrl_advantage);
  registry.add("opo", make_opo_advantage);
  registry.add("pass_at_k", make_pass_at_k_advantage);
  registry.add("reinforce_pp", make_reinforce_pp_advantage);
  registry.add("reinforce_pp_baseline", make_reinforce_pp_baseline_advantage);
  registry.add("remax", make_remax_advantage);
  registry.add("rloo", make_rloo_advantage);
}

Status check_advantage_input(const AlgorithmConfig& config,
                             std::span<const ScoredSequence> sequences) {
  std::map<int64_t, size_t> sizes;
  for (size_t s = 0; s < sequences.size(); ++s) {
    GRADUS_RETURN_IF_ERROR(check_parts(config, sequences[0], sequences[s], s));
    ++sizes[sequences[s].group];
  }
  if (!compares_groups(config.advantage)) return {};
  for (const auto& [group, size] : sizes) {
    if (size == 1) {
      return invalid_argument(
          "group {} has one sequence, but the advantage {} compares the responses of a group; give "
          "at least 2, or choose an advantage without groups",
          group, config.advantage);
    }
    if (size != sizes.begin()->second) {
      return invalid_argument(
          "groups are of unequal size: group {} has {} sequences, group {} has {}; the advantage "
          "{} "
          "needs the same number everywhere",
          sizes.begin()->first, sizes.begin()->second, group, size, config.advantage);
    }
  }
  return {};
}

Result<Algorithm> make_algorithm(const AlgorithmConfig& config, int64_t max_new_tokens) {
  LossRegistry losses("loss");
  register_builtin_losses(losses);
  AdvantageRegistry advantages("advantage");
  register_builtin_advantages(advantages);
  Algorithm algorithm{.config = config, .advantage = nullptr, .loss = nullptr};
  resolve(algorithm.config, max_new_tokens);
  MadeAdvantage advantage = advantages.create(config.advantage, algorithm.config);
  if (!advantage.ok()) return advantage.status().with_prefix("trainer.algorithm.advantage");
  MadeLoss loss = losses.create(config.loss, algorithm.config);
  if (!loss.ok()) return loss.status().with_prefix("trainer.algorithm.loss");
  algorithm.advantage = std::move(*advantage);
  algorithm.loss = std::move(*loss);
  return Result<Algorithm>(std::move(algorithm));
}

}  // namespace gradus::trainer
