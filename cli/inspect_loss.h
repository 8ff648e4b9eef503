// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "common/status.h"
#include "trainer/trainer_config.h"

// `gradus inspect loss`: what an algorithm makes of a batch given as JSON, in double precision, by
// the code that trains.
namespace gradus::cli {

// The trainer section of preset `algorithm` with `--set` texts, whose keys are those of
// trainer.algorithm, or full paths. InvalidArgument has every problem.
Result<trainer::TrainerConfig> inspected_config(const std::string& algorithm,
                                                std::span<const std::string> overrides);

// `batch`: {"sequences": [{"group", "reward", "logprobs", "old_logprobs", "behavior_logprobs"?,
// "reference_logprobs"?, "mask", "entropy"?, "values"?, "reward_parts"?, "greedy_reward"?,
// "truncated"?}]}, arrays over the tokens of a response. Returns {"advantages", "token_loss",
// "loss", "grad", "metrics"} as JSON: arrays by sequence and token, 0 where masked; "token_loss" is
// what the aggregation makes "loss" of; "grad" is the derivative of "loss" by "logprobs". `where`
// names the batch in messages.
Result<std::string> inspect_loss(const trainer::TrainerConfig& config, const std::string& batch,
                                 const std::string& where);

}  // namespace gradus::cli
