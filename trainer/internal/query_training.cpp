// SPDX-License-Identifier: Apache-2.0
#include "trainer/internal/query_training.h"

#include <limits>
#include <span>

#include "trainer/learner.h"

namespace gradus::trainer {

retriever::QueryTrainerOptions query_trainer_options(const OptimizerConfig& optimizer,
                                                     double clip_eps) {
  return {.learning_rate = optimizer.learning_rate,
          .clip_eps = clip_eps,
          .max_grad_norm = optimizer.max_grad_norm > 0 ? optimizer.max_grad_norm
                                                       : std::numeric_limits<double>::infinity(),
          .weight_decay = optimizer.weight_decay,
          .adam_beta1 = optimizer.adam_beta1,
          .adam_beta2 = optimizer.adam_beta2,
          .adam_eps = optimizer.adam_eps};
}

void add_query_optimizer_rules(ConfigRules& rules, const OptimizerConfig& optimizer,
                               int64_t num_steps, const std::string& section,
                               const std::string& steps_key) {
  rules.add(validate(optimizer, num_steps, section, steps_key));
  rules.require(optimizer.optimizer == OptimizerKind::kAdamW,
                "{}.optimizer is muon; an encoder is trained with adamw", section);
  rules.require(optimizer.ema_decay == 0,
                "{}.ema_decay is {}; an encoder has no running average: set it to 0", section,
                optimizer.ema_decay);
}

void add_query_ranks_rule(ConfigRules& rules, const std::string& section, int64_t world_size) {
  rules.require(world_size >= 1 && retriever::kReductionBlocks % world_size == 0,
                "a run with {} takes 1, 2, 4 or 8 ranks, not {}, so that its weights do not depend "
                "on their number",
                section, world_size);
}

bool have_one_shape(const model::BertConfig& a, const model::BertConfig& b) {
  return a.vocab_size == b.vocab_size && a.width == b.width && a.num_layers == b.num_layers &&
         a.inner_width == b.inner_width;
}

void add_query_state(retriever::QueryTrainer& trainer, records::StateSnapshot& state) {
  trainer.for_each_state([&](const std::string& name, std::span<float> values) {
    state.add(name, std::span<const float>(values));
  });
}

Status read_query_state(const records::StateShards& state, retriever::QueryTrainer& trainer) {
  Status status;
  trainer.for_each_state([&](const std::string& name, std::span<float> values) {
    if (status.ok()) status = state.read(name, values);
  });
  return status;
}

}  // namespace gradus::trainer
