// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <map>

#include "trainer/algorithm_config.h"

namespace gradus::trainer {
namespace {

using Preset = std::function<void(AlgorithmConfig&)>;

// Both clips of the same width, as most papers before DAPO have it.
void clip_both(AlgorithmConfig& config, double width) {
  config.clip_low = config.clip_high = width;
}

// A loss with the advantages of GRPO and a mean over the responses' means.
void mean_of_responses(AlgorithmConfig& config, const std::string& loss) {
  config.loss = loss;
  config.aggregation = Aggregation::kSeqMeanTokenMean;
}

// The PPO loss with another advantage.
Preset with_advantage(const std::string& advantage) {
  return [advantage](AlgorithmConfig& config) {
    config.advantage = advantage;
    clip_both(config, 0.2);
  };
}

const std::map<std::string, Preset>& presets() {
  static const std::map<std::string, Preset> all = {
      {"cispo",
       [](AlgorithmConfig& config) {
         config.loss = "cispo";
         clip_both(config, 0.2);
       }},
      {"dapo", [](AlgorithmConfig&) {}},  // beyond grpo: sampling and reward, see apply_preset
      {"dppo_tv",
       [](AlgorithmConfig& config) {
         config.loss = "dppo_tv";
         clip_both(config, 0.2);
       }},
      {"dr_grpo",
       [](AlgorithmConfig& config) {
         with_advantage("dr_grpo")(config);
         config.aggregation = Aggregation::kSeqMeanTokenSumNorm;
       }},
      {"gmpo",
       [](AlgorithmConfig& config) {
         mean_of_responses(config, "gmpo");
         clip_both(config, 0.4);  // of the log-ratio
         config.clip_dual = 0;
       }},
      {"gpg",
       [](AlgorithmConfig& config) {
         config.loss = "gpg";
         config.advantage = "dr_grpo";
       }},
      {"grpo", [](AlgorithmConfig&) {}},
      {"gspo",
       [](AlgorithmConfig& config) {
         mean_of_responses(config, "gspo");
         config.clip_low = 3e-4;
         config.clip_high = 4e-4;
         config.clip_dual = 0;
       }},
      {"luspo",
       [](AlgorithmConfig& config) {
         mean_of_responses(config, "luspo");
         config.clip_low = 3e-4;
         config.clip_high = 4e-4;
         config.clip_dual = 0;
       }},
      {"m2po", [](AlgorithmConfig& config) { config.loss = "m2po"; }},
      {"maxrl", with_advantage("maxrl")},
      {"opo", with_advantage("opo")},
      {"ppo", with_advantage("gae")},
      {"reinforce",
       [](AlgorithmConfig& config) {
         config.loss = "reinforce";
         config.advantage = "dr_grpo";
       }},
      {"reinforce_pp",
       [](AlgorithmConfig& config) {
         with_advantage("reinforce_pp")(config);
         config.kl.kind = KlKind::kK1;
         config.kl.place = KlPlace::kReward;
       }},
      {"reinforce_pp_baseline",
       [](AlgorithmConfig& config) {
         with_advantage("reinforce_pp_baseline")(config);
         config.kl.kind = KlKind::kK2;
       }},
      {"remax", with_advantage("remax")},
      {"rloo",
       [](AlgorithmConfig& config) {
         with_advantage("rloo")(config);
         config.kl.kind = KlKind::kK1;
         config.kl.place = KlPlace::kReward;
       }},
      {"sapo", [](AlgorithmConfig& config) { mean_of_responses(config, "sapo"); }},
      {"vespo", [](AlgorithmConfig& config) { config.loss = "vespo"; }},
  };
  return all;
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, apply] : presets()) names.push_back(name);
  return names;
}

AlgorithmConfig preset(const std::string& name) {
  const auto found = presets().find(name);
  GRADUS_CHECK(found != presets().end(), "unknown preset '" + name + "'");
  AlgorithmConfig config;
  config.name = name;
  found->second(config);
  return config;
}

}  // namespace gradus::trainer
