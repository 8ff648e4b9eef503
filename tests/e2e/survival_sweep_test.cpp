// SPDX-License-Identifier: Apache-2.0
// The long form of SurvivalTest: twenty kills of one run.
#include <gtest/gtest.h>

#include "tests/support/killed_run.h"

namespace gradus {
namespace {

class SurvivalSweep : public test::KilledRun {};

TEST_F(SurvivalSweep, TwentyKillsChangeNoBit) {
  expect_survival("whole", "killed",
                  "--set trainer.dynamic_sampling=true --set trainer.num_steps=120 "
                  "--set eval.every_steps=0 --set run.checkpoint_every=2 ",
                  20, 20);
}

TEST_F(SurvivalSweep, TwentyKillsWithoutDynamicSamplingChangeNoBit) {
  expect_survival("whole", "killed",
                  "--set trainer.algorithm.kl.coef=0.05 --set trainer.num_steps=120 "
                  "--set eval.every_steps=7 --set run.checkpoint_every=1 ",
                  20, 40);
}

}  // namespace
}  // namespace gradus
