// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <numeric>

#include "common/rng.h"
#include "privacy/accounting.h"
#include "privacy/gaussian.h"
#include "privacy/internal/fft.h"

namespace gradus::privacy {
namespace {

SampledGaussian run(double sampling_rate, double noise_multiplier, int64_t num_rounds) {
  return {.sampling_rate = sampling_rate,
          .noise_multiplier = noise_multiplier,
          .num_rounds = num_rounds};
}

struct RdpGolden {
  SampledGaussian run;
  double epsilon, order, tolerance;
};
std::ostream& operator<<(std::ostream& out, const RdpGolden& golden) {
  return out << golden.run.sampling_rate << " " << golden.run.noise_multiplier << " "
             << golden.run.num_rounds;
}
class Rdp : public ::testing::TestWithParam<RdpGolden> {};

TEST_P(Rdp, CostsWhatOpacusAndAnIndependentProgramSay) {
  const RdpCost cost = *rdp_cost({&GetParam().run, 1}, 1e-5);
  EXPECT_NEAR(cost.epsilon, GetParam().epsilon, GetParam().tolerance);
  EXPECT_DOUBLE_EQ(cost.order, GetParam().order);
}
// The first is the value of Opacus' own test; the others have six digits.
INSTANTIATE_TEST_SUITE_P(
    Golden, Rdp,
    ::testing::Values(RdpGolden{run(.04, 1.5, 2250), 7.32911117143, 3.9, 1e-10},
                      RdpGolden{run(.01, 1.1, 10000), 5.631992, 4.7, 6e-7},
                      RdpGolden{run(.01, 1.0, 1000), 2.101365, 7.8, 6e-7},
                      RdpGolden{run(.1, 1.0, 100), 7.899255, 3.2, 6e-7},
                      RdpGolden{run(.1, 1.0, 200), 11.015671, 2.8, 6e-7},
                      RdpGolden{run(.1, 2.0, 200), 3.679746, 6.0, 6e-7},
                      RdpGolden{run(.02, 1.3, 1500), 3.321303, 6.6, 6e-7},
                      RdpGolden{run(256. / 60000, 1.1, 14063), 2.596656, 8.1, 6e-7},
                      RdpGolden{run(1, 1.0, 1), 4.728507, 5.4, 6e-7},
                      RdpGolden{run(1, 4.0, 100), 14.132226, 2.8, 6e-7}));

TEST(RdpAccountant, AddsUpRunsOfDifferentNoise) {
  const std::vector<SampledGaussian> two = {run(1e-5, 1, 10), run(1e-4, 3, 4)};
  EXPECT_NEAR(rdp_cost(two, 1e-5)->epsilon, 0.336344, 6e-7);
  EXPECT_EQ(rdp_cost(two, 1e-5)->order, 23);
  EXPECT_EQ(rdp_cost({}, 1e-5)->epsilon, 0);
}

TEST(RdpAccountant, HasTheKnownDivergencesAtWholeAndBrokenOrders) {
  const SampledGaussian one = run(.04, 1.5, 1);
  const std::vector<std::pair<double, double>> known = {
      {2, 8.9499696687e-4}, {2.5, 1.1328034664e-3}, {4, 1.8853400644e-3}, {8, 4.2715845267e-3}};
  for (const auto& [order, value] : known) {
    EXPECT_NEAR(renyi_divergence(one, order), value, 1e-10 * value) << "order " << order;
  }
  // Both formulas meet at whole orders; all clients in every round give a / (2 s^2).
  EXPECT_NEAR(renyi_divergence(one, 4 + 1e-9), renyi_divergence(one, 4), 1e-11);
  EXPECT_DOUBLE_EQ(renyi_divergence(run(1, 2, 1), 3), 3. / 8);
}

TEST(RdpAccountant, TakesAnotherBoundForSamplesOfFixedSize) {
  SampledGaussian fixed{
      .sampling_rate = 0.1, .noise_multiplier = 4, .sampling = Sampling::kFixedSize};
  // Order 2 by hand: whole(2) = 2 * 2 / 16 = 1/4, and 4 (e^1/4 - 1) < 2 e^1/4.
  EXPECT_NEAR(renyi_divergence(fixed, 2), std::log1p(0.01 * 4 * std::expm1(0.25)), 1e-15);
  // Order 3: 3 q^2 (as above) + q^3 2 e^(2 whole(3)), whole(3) = 6 / 16.
  EXPECT_NEAR(renyi_divergence(fixed, 3),
              std::log1p(0.03 * 4 * std::expm1(0.25) + 0.001 * 2 * std::exp(0.75)) / 2, 1e-15);
  fixed.num_rounds = 100;
  SampledGaussian poisson = fixed;
  poisson.sampling = Sampling::kPoisson;
  EXPECT_GT(rdp_cost({&fixed, 1}, 1e-5)->epsilon, 2 * rdp_cost({&poisson, 1}, 1e-5)->epsilon);
  // Everyone each round: the plain Gaussian of sensitivity 2 C.
  fixed = {.sampling_rate = 1, .noise_multiplier = 4, .sampling = Sampling::kFixedSize};
  EXPECT_DOUBLE_EQ(renyi_divergence(fixed, 3), 6. / 16);
}

// delta(epsilon) of n rounds of the Gaussian mechanism on everyone, in closed form (Balle and Wang
// 2018, Theorem 8): mu = sqrt(n) / sigma.
double gaussian_delta(double epsilon, double mu) {
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  return cdf(mu / 2 - epsilon / mu) - std::exp(epsilon) * cdf(-mu / 2 - epsilon / mu);
}

TEST(PrvAccountant, CostsWhatOpacusSays) {
  const SampledGaussian one = run(.04, 1.5, 2249);
  const PrvCost cost = *prv_cost({&one, 1}, 1e-5);
  EXPECT_NEAR(cost.upper, 6.777395712150674, 1e-3);
  EXPECT_NEAR(cost.upper - cost.lower, 0.0207, 1e-3);
  EXPECT_LT(cost.upper, rdp_cost({&one, 1}, 1e-5)->epsilon);
  // By the central limit (Gaussian differential privacy) it is a little less.
  EXPECT_GT(cost.estimate, 6.60);
}

TEST(PrvAccountant, BoundsTheClosedFormWithoutSampling) {
  // The last has mu^2 = 2 / 4 + 8 / 16 = 1.
  const std::vector<std::pair<std::vector<SampledGaussian>, double>> cases = {
      {{run(1, 1, 1)}, 1},
      {{run(1, 4, 20)}, std::sqrt(20.) / 4},
      {{run(1, 2, 2), run(1, 4, 8)}, 1}};
  for (const auto& [runs, mu] : cases) {
    const PrvCost cost = *prv_cost(runs, 1e-5);
    EXPECT_NEAR(gaussian_delta(cost.estimate, mu), 1e-5, 1e-8) << "mu " << mu;  // delta's own error
    EXPECT_GT(gaussian_delta(cost.lower, mu), 1e-5) << "mu " << mu;
    EXPECT_LT(gaussian_delta(cost.upper, mu), 1e-5) << "mu " << mu;
  }
  EXPECT_EQ(prv_cost({}, 1e-5)->upper, 0);
}

TEST(NoiseMultiplier, IsTheOneThatOpacusFinds) {
  EXPECT_NEAR(*noise_multiplier_for(8, 1e-5, run(.04, 1, 2250), Accountant::kRdp), 1.416, 1e-4);
  EXPECT_NEAR(*noise_multiplier_for(8, 1e-5, run(.04, 1, 2000), Accountant::kRdp), 1.3562, 5e-5);
  EXPECT_NEAR(*noise_multiplier_for(8, 1e-5, run(.04, 1, 2000), Accountant::kPrv), 1.2915, 5e-5);
}

TEST(Accounting, NamesWhatIsOutOfRange) {
  const auto message = [](SampledGaussian one, double delta) {
    return rdp_cost({&one, 1}, delta).status().message();
  };
  EXPECT_EQ(message(run(.1, 1, 1), 0),
            "privacy: delta is 0; it must be between 0 and 1, e.g. 1e-5, and smaller than one over "
            "the number of clients");
  EXPECT_EQ(message(run(1.5, 1, 1), 1e-5),
            "privacy: the sampling rate is 1.5; it must be above 0 and at most 1");
  EXPECT_EQ(
      message(run(.1, 0, 1), 1e-5),
      "privacy: the noise multiplier is 0; it must be above 0, as without noise no epsilon is "
      "finite");
  EXPECT_EQ(message(run(.1, 1, -1), 1e-5),
            "privacy: the number of rounds is -1; it must be at least 0");
  EXPECT_EQ(message(run(NAN, 1, 1), 1e-5),
            "privacy: the sampling rate is nan; it must be above 0 and at most 1");
  SampledGaussian one = run(.1, 1, 1);
  EXPECT_EQ(
      prv_cost({&one, 1}, 1e-11).status().message(),
      "privacy: delta is 1e-11; the PRV accountant takes 1e-10 and more, as smaller ones drown "
      "in rounding; take the RDP accountant");
  EXPECT_EQ(prv_cost({&one, 1}, 1e-5, 0).status().message(),
            "privacy: the epsilon error is 0; it must be above 0 and at most 1");
  one.num_rounds = 1'000'000'000;
  EXPECT_EQ(
      prv_cost({&one, 1}, 1e-5).status().message(),
      "privacy: the PRV accountant would need 1.66e+14 grid points, its limit is 8388608; allow a "
      "larger epsilon error than 0.01, or take the RDP accountant");
  one.sampling = Sampling::kFixedSize;
  EXPECT_EQ(prv_cost({&one, 1}, 1e-5).status().message(),
            "privacy: the PRV accountant knows Poisson sampling only; take the RDP accountant for "
            "samples of fixed size");
  EXPECT_EQ(
      noise_multiplier_for(1e-9, 1e-5, run(1, 1, 1000), Accountant::kRdp).status().message(),
      "privacy: no noise multiplier up to 1000000 gives epsilon 1e-09; raise epsilon or delta, "
      "or take fewer rounds");
  EXPECT_EQ(noise_multiplier_for(0, 1e-5, run(1, 1, 1), Accountant::kRdp).status().message(),
            "privacy: the target epsilon is 0, to within 0.01; both must be above 0");
}

TEST(Fft, IsTheTransformByItsSum) {
  RngSequence rng(1, RngStream::kTask);
  std::vector<std::complex<double>> values(32);
  for (auto& value : values) value = {rng.normal(), rng.normal()};
  std::vector<std::complex<double>> got = values;
  internal::fft(got, false);
  for (size_t k = 0; k < values.size(); ++k) {
    std::complex<double> want = 0;
    for (size_t j = 0; j < values.size(); ++j) {
      want += values[j] * std::polar(1.0, -2 * M_PI * static_cast<double>(j * k) / 32);
    }
    EXPECT_LT(std::abs(got[k] - want), 1e-13) << k;
  }
  internal::fft(got, true);
  for (size_t k = 0; k < values.size(); ++k) EXPECT_LT(std::abs(got[k] - values[k]), 1e-15) << k;
}

double norm_of(std::span<const float> values) {
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  return std::sqrt(squares);
}

TEST(ClipUpdate, ScalesLongUpdatesAndLeavesShortOnes) {
  std::vector<float> update = {3, 4};
  EXPECT_EQ(*clip_update(update, 5), 5);
  EXPECT_EQ(update, (std::vector<float>{3, 4}));
  EXPECT_EQ(*clip_update(update, 1), 5);
  EXPECT_NEAR(update[0], 0.6, 1e-6);
  EXPECT_NEAR(update[1], 0.8, 1e-6);
  RngSequence rng(2, RngStream::kTask);
  for (int trial = 0; trial < 200; ++trial) {  // rounding never lifts the norm above the limit
    std::vector<float> long_one(17);
    for (float& value : long_one) value = static_cast<float>(rng.normal());
    ASSERT_TRUE(clip_update(long_one, 0.7).ok());
    ASSERT_LE(norm_of(long_one), 0.7);
    ASSERT_GT(norm_of(long_one), 0.7 * (1 - 2e-6));
  }
  std::vector<float> broken = {1, NAN};
  EXPECT_EQ(clip_update(broken, 1).status().message(),
            "update: value 1 is nan; all must be finite");
}

TEST(PrivateWeights, LeaveTheOthersAloneWhenAClientComesOrGoes) {
  const std::vector<int64_t> num_samples = {50, 200, 100, 0};
  const PrivateWeights all = *private_weights(num_samples, 100, 4);
  EXPECT_EQ(all.weights_K, (std::vector<double>{0.125, 0.25, 0.25, 0}));
  EXPECT_EQ(all.max_weight, 0.25);
  const PrivateWeights fewer = *private_weights(std::span(num_samples).subspan(0, 2), 100, 4);
  EXPECT_EQ(fewer.weights_K, (std::vector<double>{0.125, 0.25}));
  EXPECT_EQ(private_weights(num_samples, 0, 4).status().message(),
            "privacy: sample cap 0 and expected weight 4; both must be above 0");
  const std::vector<int64_t> negative = {-1};
  EXPECT_EQ(private_weights(negative, 1, 4).status().message(),
            "privacy: a client with -1 samples; it must be at least 0");
}

TEST(GaussianNoise, HasTheStandardDeviationOfTheLargestWeightTimesTheClip) {
  // Weights .7, .2, .1 of three clients: z C / n = .2 would be far less than z C p_max = .42.
  const double stddev = noise_stddev(1.2, 0.5, 0.7);
  EXPECT_DOUBLE_EQ(stddev, 0.42);
  std::vector<double> values(1'000'000, 5.0);
  GaussianNoise::from_seed(7).add(stddev, 3, 0, values);
  const double n = static_cast<double>(values.size());
  double mean = 0, variance = 0, cubes = 0, fourth = 0, neighbours = 0;
  for (const double value : values) mean += (value - 5) / n;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = (values[i] - 5) / stddev;
    variance += x * x / n;
    cubes += x * x * x / n;
    fourth += x * x * x * x / n;
    if (i > 0) neighbours += x * (values[i - 1] - 5) / stddev / n;
  }
  // Four standard errors each.
  EXPECT_NEAR(mean / stddev, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(variance, 1, 4 * std::sqrt(2 / n));
  EXPECT_NEAR(cubes, 0, 4 * std::sqrt(15 / n));
  EXPECT_NEAR(fourth, 3, 4 * std::sqrt(96 / n));
  EXPECT_NEAR(neighbours, 0, 4 / std::sqrt(n));
}

TEST(GaussianNoise, IsAFunctionOfKeyRoundAndPurpose) {
  const auto noise = [](const GaussianNoise& source, int64_t round, int64_t purpose, size_t count) {
    std::vector<double> values(count);
    source.add(1, round, purpose, values);
    return values;
  };
  const GaussianNoise source = GaussianNoise::from_seed(1);
  const std::vector<double> all = noise(source, 0, 0, 3000);
  const std::vector<double> first = noise(source, 0, 0, 1025);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), all.begin()));
  EXPECT_NE(first, noise(source, 1, 0, 1025));
  EXPECT_NE(first, noise(source, 0, 1, 1025));
  EXPECT_NE(first, noise(GaussianNoise::from_seed(2), 0, 0, 1025));
  EXPECT_NE(noise(GaussianNoise::fresh(), 0, 0, 9), noise(GaussianNoise::fresh(), 0, 0, 9));
}

TEST(AdaptiveClip, SettlesAtTheMedianFromBothSides) {
  RngSequence rng(5, RngStream::kTask);
  for (const double start : {.1, .9, 1.1, 5.}) {
    AdaptiveClip clip(start, 0.5, 0.2);
    double late = 0;
    for (int round = 0; round < 400; ++round) {
      int num_unclipped = 0;
      for (int client = 0; client < 1000; ++client) {
        num_unclipped += std::exp(rng.normal()) <= clip.clip_norm() ? 1 : 0;
      }
      clip.update(num_unclipped / 1000.0);
      if (round >= 350) late += clip.clip_norm() / 50;
    }
    EXPECT_GT(late, 0.95) << "from " << start;
    EXPECT_LT(late, 1.05) << "from " << start;
  }
}

TEST(AdaptiveClip, SharesTheNoiseBetweenUpdatesAndCount) {
  const double updates = *update_noise_multiplier(1, 5);
  EXPECT_NEAR(1 / (updates * updates) + 1 / (10. * 10), 1, 1e-15);
  EXPECT_EQ(update_noise_multiplier(1, 0.5).status().message(),
            "privacy: noise of 0.5 on the count of unclipped updates is too little for noise "
            "multiplier 1; it must be above half of it");
}

}  // namespace
}  // namespace gradus::privacy
