// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/run_gradus.h"

namespace gradus::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(CommandLine, NamesTheCommandNearestToAMistypedOne) {
  const Outcome outcome = run_gradus("trian configs/demo.yaml 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(
      outcome.output,
      StartsWith("gradus: error: unknown command 'trian'; did you mean 'train'?; known: train, "));
}

TEST(CommandLine, SaysItsVersionAndItsCommands) {
  EXPECT_THAT(run_gradus("--version").output, StartsWith("gradus 0."));
  EXPECT_THAT(run_gradus("--help").output, HasSubstr("generate"));
}

}  // namespace
}  // namespace gradus::test
