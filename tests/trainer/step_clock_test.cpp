// SPDX-License-Identifier: Apache-2.0
#include "trainer/step_clock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gradus::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::Key;

void spin(double seconds) {
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds)
    continue;
}

TEST(StepClock, PhasesAddUpToTheWholeAndInnerOnesTakeFromTheOuter) {
  const auto start = std::chrono::steady_clock::now();
  StepClock clock;
  spin(0.002);
  {
    const Phase outer(clock, "timing_s/update_actor");
    spin(0.002);
    {
      const Phase inner(clock, "timing_s/ref");
      spin(0.004);
    }
    spin(0.002);
    EXPECT_GE(clock.seconds("timing_s/update_actor"), 0.004) << "also while it goes on";
  }
  const auto phases = clock.lap();
  const double whole =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_THAT(phases, ElementsAre(Key("timing_s/other"), Key("timing_s/ref"),
                                  Key("timing_s/update_actor")));
  EXPECT_GE(phases.at("timing_s/other"), 0.002);
  EXPECT_GE(phases.at("timing_s/ref"), 0.004);
  EXPECT_GE(phases.at("timing_s/update_actor"), 0.004);
  double sum = 0;
  for (const auto& [name, seconds] : phases) sum += seconds;
  EXPECT_LE(sum, whole);
  EXPECT_GT(sum, whole - 0.001);
}

TEST(StepClock, ALapBeginsAnewAndLeavesTheRunningPhase) {
  StepClock clock;
  EXPECT_EQ(clock.enter("timing_s/gen"), "timing_s/other");
  spin(0.001);
  EXPECT_GE(clock.lap().at("timing_s/gen"), 0.001);
  spin(0.001);
  EXPECT_EQ(clock.enter("timing_s/reward"), "timing_s/gen");
  EXPECT_GE(clock.lap().at("timing_s/gen"), 0.001);
  EXPECT_EQ(clock.seconds("timing_s/gen"), 0);
}

}  // namespace
}  // namespace gradus::trainer
