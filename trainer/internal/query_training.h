// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/config/rules.h"
#include "records/state_shards.h"
#include "retriever/query_trainer.h"
#include "trainer/trainer_config.h"

// What the trainers of a query encoder do alike: alone (harr) and beside a language model (joint).
namespace gradus::trainer {

// Without an adapter.
retriever::QueryTrainerOptions query_trainer_options(const OptimizerConfig& optimizer,
                                                     double clip_eps);

// The rules of `section`'s optimizer; `num_steps` is that of the key `steps_key`.
void add_query_optimizer_rules(ConfigRules& rules, const OptimizerConfig& optimizer,
                               int64_t num_steps, const std::string& section,
                               const std::string& steps_key);
// The number of ranks divides that of the parts of a sum.
void add_query_ranks_rule(ConfigRules& rules, const std::string& section, int64_t world_size);

bool have_one_shape(const model::BertConfig& a, const model::BertConfig& b);

// Adapter and moments, by name; not the number of updates.
void add_query_state(retriever::QueryTrainer& trainer, records::StateSnapshot& state);
Status read_query_state(const records::StateShards& state, retriever::QueryTrainer& trainer);

}  // namespace gradus::trainer
