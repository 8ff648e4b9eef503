// SPDX-License-Identifier: Apache-2.0
#include "trainer/preference_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/tolerances.h"
#include "trainer/preference_trainer.h"

namespace gradus::trainer {
namespace {

DpoConfig dpo(DpoLoss loss_type, double beta, double smoothing = 0) {
  DpoConfig config;
  config.loss_type = loss_type;
  config.beta = beta;
  config.label_smoothing = smoothing;
  return config;
}

// h = (-4 + 5) - (-6 + 5.5) = 1.5, beta h = 0.15: -log sigmoid(0.15) = log(1 + e^-0.15) = 0.620957;
// the slope by h is -0.1 sigmoid(-0.15) = -0.1 x 0.462570.
TEST(DpoLossOfAPair, IsTheHandComputedNumber) {
  const PairLoss pair = dpo_loss(dpo(DpoLoss::kSigmoid, 0.1), {-4, -6}, {-5, -5.5}, {2, 4});
  EXPECT_NEAR(pair.loss, 0.620957, 1e-6);
  EXPECT_NEAR(pair.slopes.chosen, -0.0462570, 1e-7);
  EXPECT_NEAR(pair.slopes.rejected, 0.0462570, 1e-7);
  EXPECT_DOUBLE_EQ(pair.rewards.chosen, 0.1);
  EXPECT_DOUBLE_EQ(pair.rewards.rejected, -0.05);
  // Hinge: 1 - 0.15. IPO with beta 0.25: 1 / 2 + 0.5 / 4 - 2 = -1.375; slopes 2 x -1.375 / 2 and 4.
  EXPECT_DOUBLE_EQ(dpo_loss(dpo(DpoLoss::kHinge, 0.1), {-4, -6}, {-5, -5.5}, {2, 4}).loss, 0.85);
  const PairLoss ipo = dpo_loss(dpo(DpoLoss::kIpo, 0.25), {-4, -6}, {-5, -5.5}, {2, 4});
  EXPECT_DOUBLE_EQ(ipo.loss, 1.890625);
  EXPECT_DOUBLE_EQ(ipo.slopes.chosen, -1.375);
  EXPECT_DOUBLE_EQ(ipo.slopes.rejected, 0.6875);
  // Two tokens of -2 nats: 0.5 x 2 is added, with slope -0.5 / 2.
  DpoConfig with_sft = dpo(DpoLoss::kHinge, 0.1);
  with_sft.sft_coef = 0.5;
  const PairLoss both = dpo_loss(with_sft, {-4, -6}, {-5, -5.5}, {2, 4});
  EXPECT_DOUBLE_EQ(both.loss, 0.85 + 1.0);
  EXPECT_DOUBLE_EQ(both.slopes.chosen, -0.1 - 0.25);
  EXPECT_DOUBLE_EQ(both.slopes.rejected, 0.1);
}

// s_c - s_r - m = 2 - 1 - 0.5: log(1 + e^-0.5) = 0.474077; (2 + 1)^2 x 0.01 = 0.09.
TEST(BradleyTerryLoss, IsTheHandComputedNumber) {
  const PairLoss pair = bradley_terry_loss({2, 1}, 0.5, 0.01);
  EXPECT_NEAR(pair.loss, 0.474077 + 0.09, 1e-6);
  // -sigmoid(-0.5) = -0.377541, and 2 x 0.01 x 3 on both.
  EXPECT_NEAR(pair.slopes.chosen, -0.377541 + 0.06, 1e-6);
  EXPECT_NEAR(pair.slopes.rejected, 0.377541 + 0.06, 1e-6);
  EXPECT_EQ(pair.rewards.chosen, 2);
  EXPECT_NEAR(bradley_terry_loss({0, 0}, 0, 0).loss, std::log(2.0), 1e-15);
}

TEST(PairLosses, EqualTheDoublePrecisionReference) {
  const auto golden = nlohmann::json::parse(std::ifstream("tests/golden/preferences.json"));
  ASSERT_GE(golden["losses"].size(), 30u);
  for (const auto& row : golden["losses"]) {
    const auto pair_of = [&](const char* key) -> PairValues {
      return {row[key][0].get<double>(), row[key][1].get<double>()};
    };
    const std::string kind = row["kind"];
    PairLoss pair;
    if (kind == "bradley_terry") {
      pair = bradley_terry_loss(pair_of("policy"), row["margin"], row["center"]);
    } else {
      const DpoLoss type = kind == "sigmoid" ? DpoLoss::kSigmoid
                           : kind == "hinge" ? DpoLoss::kHinge
                                             : DpoLoss::kIpo;
      pair = dpo_loss(dpo(type, row["beta"], row["smoothing"]), pair_of("policy"),
                      pair_of("reference"), pair_of("tokens"));
    }
    const auto expect = [&](double got, double want, const char* what) {
      EXPECT_NEAR(got, want, testing::kLossOfPair * (1 + std::fabs(want))) << what << " of " << row;
    };
    expect(pair.loss, row["loss"], "loss");
    expect(pair.slopes.chosen, row["slopes"][0], "slope by chosen");
    expect(pair.slopes.rejected, row["slopes"][1], "slope by rejected");
  }
}

TEST(PairLosses, SlopesAreThoseOfTheLoss) {
  constexpr double kStep = 1.0 / 1024;
  for (const DpoLoss type : {DpoLoss::kSigmoid, DpoLoss::kHinge, DpoLoss::kIpo}) {
    DpoConfig config = dpo(type, 0.3, type == DpoLoss::kSigmoid ? 0.1 : 0);
    config.sft_coef = 0.7;
    const auto loss = [&](double chosen, double rejected) {
      return dpo_loss(config, {chosen, rejected}, {-5, -5.5}, {2, 4}).loss;
    };
    const PairValues slopes = dpo_loss(config, {-4, -6}, {-5, -5.5}, {2, 4}).slopes;
    EXPECT_NEAR(slopes.chosen, (loss(-4 + kStep, -6) - loss(-4 - kStep, -6)) / (2 * kStep),
                testing::kLossDifference);
    EXPECT_NEAR(slopes.rejected, (loss(-4, -6 + kStep) - loss(-4, -6 - kStep)) / (2 * kStep),
                testing::kLossDifference);
  }
  const auto loss = [](double chosen, double rejected) {
    return bradley_terry_loss({chosen, rejected}, 0.25, 0.02).loss;
  };
  const PairValues slopes = bradley_terry_loss({0.5, -1.5}, 0.25, 0.02).slopes;
  EXPECT_NEAR(slopes.chosen, (loss(0.5 + kStep, -1.5) - loss(0.5 - kStep, -1.5)) / (2 * kStep),
              testing::kLossDifference);
  EXPECT_NEAR(slopes.rejected, (loss(0.5, -1.5 + kStep) - loss(0.5, -1.5 - kStep)) / (2 * kStep),
              testing::kLossDifference);
}

TEST(PreferenceConfigs, NameTheKeysThatContradictEachOther) {
  EXPECT_EQ(validate(dpo(DpoLoss::kIpo, 0.1, 0.2), 1).message(),
            "dpo.num_steps is 0; say how many updates to make\n"
            "dpo.label_smoothing is 0.2 but dpo.loss_type is ipo, which has none; use sigmoid or "
            "set it to 0");
  RewardModelConfig reward_model;
  reward_model.loop.num_steps = 5;
  reward_model.loop.batch_pairs = 6;
  EXPECT_EQ(validate(reward_model, 1).message(), "");
  EXPECT_EQ(validate(reward_model, 4).message(),
            "reward_model.batch_pairs (6) must be a multiple of the number of ranks (4)");
}

}  // namespace
}  // namespace gradus::trainer
