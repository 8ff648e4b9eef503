// SPDX-License-Identifier: Apache-2.0
#include "tests/rollout/contract.h"

namespace gradus::rollout {
namespace {

TEST(RolloutContract, TwentyThousandLogprobsHaveTheBitsOfTheTrainer) {
  expect_equal_logprobs(20000);
}

TEST(RolloutContract, AScorerOfAnotherTemperatureIsFound) {
  auto loaded = model::Transformer::load(testing::tiny_model_dir("qwen2"));
  ASSERT_TRUE(loaded.ok());
  int64_t num_different = 0;
  const ContractRound round = random_round((*loaded)->config(), 1);
  const float ulp = std::nextafter(round.temperature, 2.0f) - round.temperature;
  (void)count_equal_logprobs(**loaded, round, ulp, num_different);
  EXPECT_GT(num_different, 0);
}

}  // namespace
}  // namespace gradus::rollout
