// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "common/metrics.h"
#include "records/rollout_dump.h"
#include "rewards/rubric.h"
#include "trainer/rollout_worker.h"

// Rewards of a rubric: rollout scores its answer and its criteria, every trainer makes one number
// of them by the lambda of the step. All trainers have the records of all ranks, in one order, so
// all have the same curriculum, whatever their number.
namespace gradus::trainer {

// Sets rewards, weights and weighted parts of a group's records, whose parts are the answer and the
// criteria in order. Responses without a score stay so.
void apply_curriculum(rewards::Curriculum& curriculum, const RolloutSetup& setup,
                      std::span<records::RolloutRecord> group);

// Adds the rubric's metrics of the step and ends it.
void finish_curriculum_step(rewards::Curriculum& curriculum, Metrics& metrics);

}  // namespace gradus::trainer
