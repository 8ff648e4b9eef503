// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_privacy.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/run_gradus.h"

namespace gradus::cli {
namespace {

using nlohmann::json;

const std::string kRun = "inspect privacy --sampling-rate 0.04 --rounds 2250 --delta 1e-5 ";

TEST(InspectPrivacyCommand, SaysWhatARunCosts) {
  const test::Outcome outcome = test::run_gradus(kRun + "--noise-multiplier 1.5");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const json got = json::parse(outcome.output);
  EXPECT_NEAR(got["rdp"]["epsilon"].get<double>(), 7.32911117143, 1e-6);
  EXPECT_EQ(got["rdp"]["order"], 3.9);
  EXPECT_NEAR(got["prv"]["upper"].get<double>(), 6.779, 2e-3);  // one round more than Opacus' 2249
  EXPECT_LT(got["prv"]["lower"], got["prv"]["estimate"]);
  const test::Outcome fixed = test::run_gradus(kRun + "--noise-multiplier 1.5 --sampling fixed");
  EXPECT_GT(json::parse(fixed.output)["rdp"]["epsilon"].get<double>(), 2 * 7.329);
}

TEST(InspectPrivacyCommand, WantsNoiseOrEpsilonAndNotBoth) {
  test::Outcome outcome = test::run_gradus(kRun + "2>&1");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_NE(outcome.output.find("--noise-multiplier or --epsilon is required"), std::string::npos)
      << outcome.output;
  outcome = test::run_gradus(kRun + "--noise-multiplier 1 --epsilon 3 2>&1");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_NE(outcome.output.find("--noise-multiplier excludes --epsilon"), std::string::npos)
      << outcome.output;
  outcome = test::run_gradus(kRun + "--noise-multiplier 1 --sampling few 2>&1");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_NE(outcome.output.find("few not in {poisson,fixed}"), std::string::npos) << outcome.output;
}

TEST(InspectPrivacy, FindsTheNoise) {
  PrivacyQuestion question{
      .run = {.sampling_rate = 1, .num_rounds = 1}, .delta = 1e-5, .epsilon = 4.728507};
  const json got = json::parse(*inspect_privacy(question))["noise_multiplier"];
  EXPECT_NEAR(got["rdp"].get<double>(), 1.0, 3e-3);  // epsilon is within 0.01
  EXPECT_LT(got["prv"].get<double>(), 0.97);
}

TEST(InspectPrivacy, SaysWhyAnAccountantIsSilent) {
  PrivacyQuestion question{.run = {.sampling_rate = 0.1,
                                   .noise_multiplier = 4,
                                   .num_rounds = 10,
                                   .sampling = privacy::Sampling::kFixedSize},
                           .delta = 1e-5};
  const json got = json::parse(*inspect_privacy(question));
  EXPECT_GT(got["rdp"]["epsilon"], 0);
  EXPECT_EQ(got["prv"]["error"],
            "privacy: the PRV accountant knows Poisson sampling only; take the RDP accountant for "
            "samples of fixed size");
  question.delta = 1;
  EXPECT_EQ(inspect_privacy(question).status().message(),
            "privacy: delta is 1; it must be between 0 and 1, e.g. 1e-5, and smaller than one over "
            "the number of clients");
}

}  // namespace
}  // namespace gradus::cli
