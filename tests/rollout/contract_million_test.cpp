// SPDX-License-Identifier: Apache-2.0
#include "tests/rollout/contract.h"

namespace gradus::rollout {
namespace {

TEST(RolloutContract, AMillionLogprobsHaveTheBitsOfTheTrainer) { expect_equal_logprobs(1000000); }

}  // namespace
}  // namespace gradus::rollout
