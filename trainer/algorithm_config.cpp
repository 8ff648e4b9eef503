// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm_config.h"

#include <algorithm>
#include <map>

#include "common/config/rules.h"
#include "trainer/algorithm.h"

namespace gradus::trainer {
namespace {

std::vector<std::string> loss_names() {
  LossRegistry registry("loss");
  register_builtin_losses(registry);
  return registry.names();
}

std::vector<std::string> advantage_names() {
  AdvantageRegistry registry("advantage");
  register_builtin_advantages(registry);
  return registry.names();
}

const std::vector<std::string> kScalingNames = {"group", "batch", "none"};
const std::vector<std::string> kCorrectionNames = {
    "none", "tis_token", "tis_sequence", "icepop", "geometric", "reject", "bypass"};

// The scalings that an advantage knows, its default first.
const std::map<std::string, std::vector<Scaling>>& scalings() {
  static const std::map<std::string, std::vector<Scaling>> all = {
      {"dr_grpo", {Scaling::kNone}},
      {"gae", {Scaling::kBatch, Scaling::kNone}},
      {"gdpo", {Scaling::kBatch, Scaling::kNone}},
      {"grpo", {Scaling::kGroup, Scaling::kBatch, Scaling::kNone}},
      {"maxrl", {Scaling::kNone}},
      {"opo", {Scaling::kNone}},
      {"pass_at_k", {Scaling::kGroup, Scaling::kNone}},
      {"reinforce_pp", {Scaling::kBatch, Scaling::kNone}},
      {"reinforce_pp_baseline", {Scaling::kBatch, Scaling::kNone}},
      {"remax", {Scaling::kNone}},
      {"rloo", {Scaling::kNone, Scaling::kBatch}},
  };
  return all;
}

std::string join_scalings(const std::vector<Scaling>& values) {
  std::vector<std::string> names;
  for (const Scaling value : values) names.push_back(kScalingNames[static_cast<size_t>(value)]);
  return join(names, ", ");
}

void check_correction(const AlgorithmConfig& config, ConfigRules& rules) {
  const CorrectionConfig& correction = config.correction;
  const std::string& kind = kCorrectionNames[static_cast<size_t>(correction.kind)];
  const bool is_on = correction.kind != CorrectionKind::kNone;
  const std::pair<const char*, bool> options[] = {
      {"low", correction.low.has_value()},    {"high", correction.high.has_value()},
      {"veto", correction.veto > 0},          {"normalize", correction.is_normalized},
      {"weigh_kept", correction.weighs_kept},
  };
  for (const auto& [name, is_set] : options) {
    rules.require(is_on || !is_set,
                  "trainer.algorithm.correction.{} is set but trainer.algorithm.correction.kind is "
                  "none, which ignores it; choose a kind",
                  name);
  }
  rules.require(!correction.low || !correction.high || *correction.low <= *correction.high,
                "trainer.algorithm.correction.low ({}) must not be above "
                "trainer.algorithm.correction.high ({})",
                correction.low.value_or(0), correction.high.value_or(0));
  const bool is_mask =
      correction.kind == CorrectionKind::kGeometric || correction.kind == CorrectionKind::kReject;
  rules.require(
      !is_on || is_mask || !correction.weighs_kept,
      "trainer.algorithm.correction.weigh_kept is for the kinds geometric and reject, but "
      "trainer.algorithm.correction.kind is {}; leave it out",
      kind);
  const bool has_level =
      correction.kind == CorrectionKind::kIcepop || correction.kind == CorrectionKind::kReject;
  rules.require(has_level || correction.level == CorrectionLevel::kToken,
                "trainer.algorithm.correction.level is for the kinds icepop and reject, but "
                "trainer.algorithm.correction.kind is {}; leave it out",
                kind);
  rules.require(config.loss != "decoupled_ppo" || !is_on,
                "trainer.algorithm.loss is decoupled_ppo, which weighs by rho itself, but "
                "trainer.algorithm.correction.kind is {}; set one of them back",
                kind);
}

void check_kl(const KlConfig& kl, ConfigRules& rules) {
  const bool is_adaptive = kl.controller == KlController::kAdaptive;
  rules.require(
      !is_adaptive || kl.place == KlPlace::kReward,
      "trainer.algorithm.kl.controller is adaptive but trainer.algorithm.kl.place is loss; "
      "the controller is for the KL in the reward: set place to reward, or controller to "
      "fixed");
  rules.require(!is_adaptive || kl.coef > 0,
                "trainer.algorithm.kl.controller is adaptive but trainer.algorithm.kl.coef is 0, "
                "which no factor changes; start from a small coef");
  rules.require(
      kl.place == KlPlace::kLoss || kl.kind != KlKind::kK3Corrected,
      "trainer.algorithm.kl.kind is k3_corrected, which weighs by the ratio of the update, "
      "but trainer.algorithm.kl.place is reward; use k3");
  rules.require(kl.place == KlPlace::kLoss || !kl.is_weighted,
                "trainer.algorithm.kl.weighted is for the KL in the loss, but "
                "trainer.algorithm.kl.place is reward; leave it out");
}

}  // namespace

void KlConfig::visit(FieldVisitor& v) {
  v.field(
      "kind", kind,
      "Estimator (Schulman 2020); k3_corrected weighs k3 by the ratio of the update, k1+ and k3+ "
      "have the gradient of k2.",
      one_of({"k1", "abs", "k2", "k3", "k3_corrected", "k1+", "k3+"}));
  v.field("coef", coef, "Weight of the KL to the initial model; 0 is off.", at_least(0));
  v.field("place", place,
          "Whether it is a term of the loss, or taken from the reward at each token.",
          one_of({"loss", "reward"}));
  v.field("weighted", is_weighted,
          "Whether the weights of the correction multiply the KL in the loss as well.");
  v.field("controller", controller, "Whether coef follows the measured KL (Ziegler et al. 2019).",
          one_of({"fixed", "adaptive"}));
  v.field("target", target, "KL that the adaptive controller steers to.", greater_than(0));
  v.field("horizon", horizon, "Responses over which the adaptive controller reacts.",
          greater_than(0));
}

void CorrectionConfig::visit(FieldVisitor& v) {
  v.field("kind", kind, "How tokens of other weights are corrected for.", one_of(kCorrectionNames));
  v.field("level", level, "What icepop and reject look at: each token, or the whole response.",
          one_of({"token", "sequence"}));
  v.field("low", low, "Lower bound of rho; unset: that of the kind.", at_least(0));
  v.field("high", high, "Upper bound of rho; unset: that of the kind.", greater_than(0));
  v.field("veto", veto, "A response with a token whose rho is below it is left out; 0 is off.",
          at_least(0));
  v.field("normalize", is_normalized, "Whether weights are divided by their mean over the batch.");
  v.field("weigh_kept", weighs_kept,
          "Whether tokens that geometric and reject keep are weighed by rho instead of by 1.");
}

void SapoConfig::visit(FieldVisitor& v) {
  v.field("tau_positive", tau_positive, "Steepness with a positive advantage.", greater_than(0));
  v.field("tau_negative", tau_negative, "Steepness otherwise.", greater_than(0));
}

void VespoConfig::visit(FieldVisitor& v) {
  v.field("k_positive", k_positive, "Power of the ratio, advantage not negative.", at_least(0));
  v.field("lambda_positive", lambda_positive, "Its exponential decay.", at_least(0));
  v.field("k_negative", k_negative, "Power of the ratio, advantage negative.", at_least(0));
  v.field("lambda_negative", lambda_negative, "Its exponential decay.", at_least(0));
}

void CovarianceConfig::visit(FieldVisitor& v) {
  v.field("fraction", fraction, "Share of the mini-batch's tokens that is treated, at least one.",
          in_closed(0, 1));
  v.field("low", low, "clip_cov takes tokens of a covariance above this.");
  v.field("high", high, "clip_cov takes tokens of a covariance below this.");
  v.field("kl_coef", kl_coef, "kl_cov: weight of |lp - lo| of the tokens taken.", at_least(0));
}

void AlgorithmConfig::visit(FieldVisitor& v) {
  v.field("name", name, "Preset: the values of the other keys unless they are written.",
          one_of(preset_names()));
  v.field("loss", loss, "Loss of a token.", one_of(loss_names()));
  v.field("advantage", advantage, "How rewards become advantages.", one_of(advantage_names()));
  v.field("aggregation", aggregation, "How the losses of tokens become one number.",
          one_of({"token_mean", "token_sum", "seq_mean_token_sum", "seq_mean_token_sum_norm",
                  "seq_mean_token_mean"}));
  v.field("aggregation_length", aggregation_length,
          "Constant length of seq_mean_token_sum_norm; unset: rollout.max_new_tokens.",
          at_least(1));
  v.field("kl", kl, "The pull towards the initial model.");
  v.field("correction", correction, "For responses that other weights sampled.");
  v.field("clip_low", clip_low, "The ratio is clipped below at 1 - clip_low (PPO, DAPO).",
          greater_than(0));
  v.field("clip_high", clip_high, "The ratio is clipped above at 1 + clip_high (DAPO).",
          greater_than(0));
  v.field("clip_dual", clip_dual,
          "With a negative advantage the loss is at most this many times its size (dual-clip PPO); "
          "0 is off.",
          at_least(0));
  v.field("delta", delta, "Upper bound of the ratio before clipping (two-sided clip); 0 is off.",
          at_least(0));
  v.field("opsm_threshold", opsm_threshold,
          "A response of negative advantage is left out when the mean of lb - lp is above this "
          "(OPSM); unset: off.");
  v.field("top_entropy_quantile", top_entropy_quantile,
          "Share of the mini-batch's tokens, those of the highest entropy, that count; 1 is all.",
          in_left_open(0, 1));
  v.field("mask_truncated", mask_truncated,
          "Whether responses cut off by length leave the loss (their rewards stay in the group).");
  v.field("scaling", scaling,
          "What advantages are divided by: the deviation of the group, of the batch, nothing; "
          "unset: as is usual for the advantage.",
          one_of(kScalingNames));
  v.field("deviation", deviation, "Deviation with n - 1 (sample) or n (population).",
          one_of({"sample", "population"}));
  v.field("std_epsilon", std_epsilon, "Added to the deviation of a group.", at_least(0));
  v.field("gamma", gamma, "Discount of later rewards in reinforce_pp and gae.", in_closed(0, 1));
  v.field("gae_lambda", gae_lambda, "Decay of later errors in gae.", in_closed(0, 1));
  v.field("sapo", sapo, "Of the loss sapo.");
  v.field("vespo", vespo, "Of the loss vespo.");
  v.field("covariance", covariance, "Of the losses clip_cov and kl_cov.");
  v.field("m2_threshold", m2_threshold,
          "m2po drops the tokens of the largest (lb - lo)^2 until its mean is below this.",
          greater_than(0));
  v.field("behavior_bound", behavior_bound,
          "decoupled_ppo leaves out tokens whose rho is above this.", greater_than(0));
}

void resolve(AlgorithmConfig& config, int64_t max_new_tokens) {
  if (!config.scaling) config.scaling = default_scaling(config.advantage);
  if (config.correction.kind != CorrectionKind::kNone) {
    const RhoBounds bounds = default_bounds(config.correction.kind);
    if (!config.correction.low) config.correction.low = bounds.low;
    if (!config.correction.high) config.correction.high = bounds.high;
  }
  if (config.aggregation == Aggregation::kSeqMeanTokenSumNorm && !config.aggregation_length) {
    config.aggregation_length = max_new_tokens;
  }
}

Status validate(const AlgorithmConfig& config) {
  ConfigRules rules;
  rules.require(config.clip_dual == 0 || config.clip_dual > 1 + config.clip_high,
                "trainer.algorithm.clip_dual ({}) must be greater than 1 + "
                "trainer.algorithm.clip_high ({}); use 0 to disable",
                config.clip_dual, 1 + config.clip_high);
  rules.require(config.delta == 0 || config.delta > 1 + config.clip_high,
                "trainer.algorithm.delta ({}) must be greater than 1 + trainer.algorithm.clip_high "
                "({}); use 0 to disable",
                config.delta, 1 + config.clip_high);
  rules.require(config.covariance.low < config.covariance.high,
                "trainer.algorithm.covariance.low ({}) must be below "
                "trainer.algorithm.covariance.high ({})",
                config.covariance.low, config.covariance.high);
  rules.require(
      config.aggregation == Aggregation::kSeqMeanTokenSumNorm || !config.aggregation_length,
      "trainer.algorithm.aggregation_length is set but trainer.algorithm.aggregation is not "
      "seq_mean_token_sum_norm, which alone has it; leave one out");
  const std::vector<Scaling>& known = scalings().at(config.advantage);
  const Scaling scaling = config.scaling.value_or(known[0]);
  rules.require(
      std::find(known.begin(), known.end(), scaling) != known.end(),
      "trainer.algorithm.scaling is {} but trainer.algorithm.advantage is {}, which knows "
      "{}; leave scaling out, or choose another advantage",
      kScalingNames[static_cast<size_t>(scaling)], config.advantage, join_scalings(known));
  rules.require(
      config.advantage != "gdpo" || config.kl.coef == 0 || config.kl.place == KlPlace::kLoss,
      "trainer.algorithm.advantage is gdpo, which scales each part of the reward, but "
      "trainer.algorithm.kl.place is reward; set it to loss");
  check_kl(config.kl, rules);
  check_correction(config, rules);
  return rules.status();
}

bool compares_groups(const std::string& advantage) {
  // Dr.GRPO without a group is a reward without baseline, as in verl.
  const std::string alone[] = {"dr_grpo", "gae", "reinforce_pp", "remax"};
  return std::find(std::begin(alone), std::end(alone), advantage) == std::end(alone);
}

Scaling default_scaling(const std::string& advantage) { return scalings().at(advantage)[0]; }

RhoBounds default_bounds(CorrectionKind kind) {
  switch (kind) {
    case CorrectionKind::kNone:
      return {};
    case CorrectionKind::kTisToken:
    case CorrectionKind::kTisSequence:
    case CorrectionKind::kBypass:
      return {0.0, 2.0};  // verl's
    case CorrectionKind::kIcepop:
      return {0.5, 5.0};  // OpenRLHF's
    case CorrectionKind::kGeometric:
      return {0.999, 1.001};  // verl's example
    case CorrectionKind::kReject:
      return {0.5, 2.0};  // verl's example
  }
  GRADUS_CHECK(false, "correction out of range");
}

}  // namespace gradus::trainer
