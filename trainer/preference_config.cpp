// SPDX-License-Identifier: Apache-2.0
#include "trainer/preference_config.h"

#include "common/config/rules.h"

namespace gradus::trainer {

void PreferenceConfig::visit(FieldVisitor& v) {
  v.field("num_steps", num_steps, "Updates that the command makes.", at_least(0));
  v.field("batch_pairs", batch_pairs, "Pairs in an update, over all ranks.", at_least(1));
  optimizer.visit(v);
  backward.visit(v);
}

void DpoConfig::visit(FieldVisitor& v) {
  loop.visit(v);
  v.field("loss_type", loss_type, "Loss of a pair's margin: DPO's, SLiC's or IPO's.",
          one_of({"sigmoid", "hinge", "ipo"}));
  v.field("beta", beta,
          "Strength of the tie to the reference: scale of the log-ratios, for ipo the inverse of "
          "twice the margin aimed at.",
          greater_than(0));
  v.field("label_smoothing", label_smoothing,
          "Share of the pairs that are taken to be labelled the wrong way round (sigmoid).",
          in_half_open(0, 0.5));
  v.field(
      "sft_coef", sft_coef,
      "Weight of the mean negative log-prob of the chosen response's tokens, which keeps it from "
      "falling with that of the rejected one; 0 is off.",
      at_least(0));
  v.field("reference_path", reference_path,
          "Hugging Face directory of the reference model; unset: the initial model.");
}

void RewardModelConfig::visit(FieldVisitor& v) {
  loop.visit(v);
  v.field(
      "center_coef", center_coef,
      "Weight of the squared sum of a pair's scores, which holds the scores around 0; 0 is off.",
      at_least(0));
}

namespace {

void check_loop(const PreferenceConfig& loop, int64_t world_size, const std::string& section,
                ConfigRules& rules) {
  rules.add(validate(loop.optimizer, loop.num_steps, section, section + ".num_steps"));
  rules.add(validate(loop.backward, world_size, section));
  rules.require(loop.num_steps > 0, "{}.num_steps is 0; say how many updates to make", section);
  rules.require(loop.batch_pairs % world_size == 0,
                "{}.batch_pairs ({}) must be a multiple of the number of ranks ({})", section,
                loop.batch_pairs, world_size);
}

}  // namespace

Status validate(const DpoConfig& config, int64_t world_size) {
  ConfigRules rules;
  check_loop(config.loop, world_size, "dpo", rules);
  rules.require(config.label_smoothing == 0 || config.loss_type == DpoLoss::kSigmoid,
                "dpo.label_smoothing is {} but dpo.loss_type is {}, which has none; use sigmoid or "
                "set it to 0",
                config.label_smoothing, config.loss_type == DpoLoss::kHinge ? "hinge" : "ipo");
  return rules.status();
}

Status validate(const RewardModelConfig& config, int64_t world_size) {
  ConfigRules rules;
  check_loop(config.loop, world_size, "reward_model", rules);
  return rules.status();
}

}  // namespace gradus::trainer
