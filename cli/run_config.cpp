// SPDX-License-Identifier: Apache-2.0
#include "cli/run_config.h"

#include "common/config/rules.h"

namespace gradus::cli {

void RunConfig::visit(FieldVisitor& v) {
  v.field("run", run, "The run and its folder.");
  v.field("model", model, "The model that the run starts from.");
  v.field("data", data, "Problems and how they become prompts.");
  v.field("rollout", rollout, "Sampling of responses.");
  v.field("reward", reward, "What a response earns.");
  v.field("trainer", trainer, "Reinforcement learning.");
  v.field("sft", sft, "Supervised fine-tuning.");
  v.field("eval", eval, "Evaluation on data.eval.");
}

Status validate(const RunConfig& config, int64_t world_size) {
  ConfigRules rules;
  rules.add(validate(config.run));
  rules.add(model::validate(config.model));
  rules.add(data::validate(config.data));
  rules.add(rewards::validate(config.reward));
  rules.add(trainer::validate(config.trainer, world_size));
  rules.add(trainer::validate(config.sft, world_size));
  rules.require(
      config.data.train.is_given(),
      "neither data.train.files nor data.train.task is set; name the problems to train on");
  rules.require(!config.reward.parts.empty(),
                "reward.parts is empty; name at least one reward, e.g. {{name: exact}}");
  rules.require(config.trainer.algorithm != "grpo" || config.rollout.num_samples >= 2,
                "rollout.num_samples is {} but trainer.algorithm is grpo, which compares the "
                "responses of a group; use at least 2",
                config.rollout.num_samples);
  rules.require(
      !config.trainer.dynamic_sampling || config.rollout.num_samples >= 2,
      "rollout.num_samples is {} but trainer.dynamic_sampling is on: a group of one never "
      "varies; use at least 2",
      config.rollout.num_samples);
  rules.require(config.trainer.overlong_buffer_tokens < config.rollout.max_new_tokens,
                "trainer.overlong_buffer_tokens ({}) must be less than rollout.max_new_tokens ({})",
                config.trainer.overlong_buffer_tokens, config.rollout.max_new_tokens);
  rules.require(
      config.data.eval.is_given() || (config.eval.every_steps == 0 && !config.eval.before_training),
      "eval.every_steps or eval.before_training asks for evaluation but neither "
      "data.eval.files nor data.eval.task is set");
  if (config.model.init) {
    const int64_t longest = config.model.init->architecture.max_position_embeddings;
    rules.require(config.data.max_prompt_tokens + config.rollout.max_new_tokens <= longest,
                  "data.max_prompt_tokens ({}) + rollout.max_new_tokens ({}) exceed "
                  "model.init.architecture.max_position_embeddings ({})",
                  config.data.max_prompt_tokens, config.rollout.max_new_tokens, longest);
  }
  return rules.status();
}

}  // namespace gradus::cli
