// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/internal/sampling_ref.h"
#include "kernels/isa.h"
#include "kernels/logprob.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(int64_t v, uint64_t seed, double scale = 3) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<float> logits(static_cast<size_t>(v));
  for (float& logit : logits) logit = static_cast<float>(scale * rng.normal());
  return logits;
}

SamplingParams params_for(const std::vector<float>& logits, uint64_t seed = 1,
                          uint32_t position = 0) {
  return {.logits_V = logits.data(),
          .v = static_cast<int64_t>(logits.size()),
          .seed = seed,
          .position = position};
}

// Filters to try, alone and together.
struct Filters {
  int64_t top_k;
  double top_p, min_p;
};
const Filters kFilters[] = {{0, 1, 0},      {1, 1, 0},       {5, 1, 0},     {40, 1, 0},
                            {300, 1, 0},    {0, 0.3, 0},     {0, 0.9, 0},   {0, 0.999, 0},
                            {0, 1e-9, 0},   {0, 1, 0.05},    {0, 1, 1},     {50, 0.9, 0},
                            {20, 0.5, 0.1}, {0, 0.95, 0.02}, {100000, 1, 0}};

SamplingParams with(SamplingParams params, const Filters& filters) {
  params.top_k = filters.top_k;
  params.top_p = filters.top_p;
  params.min_p = filters.min_p;
  return params;
}

std::string describe(const SamplingParams& params) {
  return fmt::format("V {}, T {}, top_k {}, top_p {}, min_p {}, seed {}", params.v,
                     params.temperature, params.top_k, params.top_p, params.min_p, params.seed);
}

TEST(Sampling, TopKComesBeforeTopP) {
  // p = (.30, .25, .24, .11, .10). After top-k 3 the first has .30 / .79 = .38 >= .35, so it is
  // alone; on the original probabilities .30 < .35 and the second would stay too.
  std::vector<float> logits;
  for (const double p : {0.30, 0.25, 0.24, 0.11, 0.10}) {
    logits.push_back(static_cast<float>(std::log(p)));
  }
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Result<SampledToken> drawn = sample_token(with(params_for(logits, seed), {3, 0.35, 0}));
    ASSERT_TRUE(drawn.ok());
    EXPECT_EQ(drawn->token, 0);
    EXPECT_EQ(drawn->sampling_logprob, 0);
    EXPECT_NEAR(drawn->logprob, std::log(0.30), testing::kLogprob);
  }
}

TEST(Sampling, TheCrossingTokenStaysAndMinPRefersToTheLargest) {
  std::vector<float> logits;
  for (const double p : {0.1, 0.5, 0.15, 0.25}) {
    logits.push_back(static_cast<float>(std::log(p)));
  }
  // top-p 0.6: 0.5 < 0.6 <= 0.75, so tokens 1 and 3; min-p 0.28: at least 0.14, so 1, 3 and 2.
  std::vector<int> top_p_counts(4), min_p_counts(4);
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const auto top_p = sample_token(with(params_for(logits, seed), {0, 0.6, 0}));
    ++top_p_counts[top_p->token];
    EXPECT_NEAR(top_p->sampling_logprob, std::log((top_p->token == 1 ? 0.5 : 0.25) / 0.75),
                testing::kLogprob);
    ++min_p_counts[sample_token(with(params_for(logits, seed), {0, 1, 0.28}))->token];
  }
  EXPECT_EQ(top_p_counts[0] + top_p_counts[2], 0);
  EXPECT_GT(std::min(top_p_counts[1], top_p_counts[3]), 0);
  EXPECT_EQ(min_p_counts[0], 0);
  EXPECT_GT(min_p_counts[2], 0);
}

TEST(Sampling, TiesKeepTheLowestIds) {
  const std::vector<float> logits(1000, 2.5f);
  for (uint64_t seed = 0; seed < 100; ++seed) {
    EXPECT_LT(sample_token(with(params_for(logits, seed), {7, 1, 0}))->token, 7);
    // 300 of 1,000 equal tokens reach 0.2995.
    EXPECT_LT(sample_token(with(params_for(logits, seed), {0, 0.2995, 0}))->token, 300);
  }
}

TEST(Sampling, GreedyTakesTheLowestOfTheLargestAtTemperatureOne) {
  std::vector<float> logits = random_logits(3000, 4);
  logits[77] = logits[2100] = 50.0f;
  SamplingParams params = params_for(logits);
  params.greedy = true;
  params.temperature = 0.3f;
  const Result<SampledToken> drawn = sample_token(params);
  EXPECT_EQ(drawn->token, 77);
  EXPECT_EQ(drawn->sampling_logprob, 0);
  EXPECT_EQ(drawn->logprob, token_logprob(logit_stats(logits.data(), 3000, 1.0f), 50.0f, 1.0f));
}

TEST(Sampling, LogprobIsTheScorersBitForBit) {
  for (const float temperature : {1.0f, 0.6f}) {
    const std::vector<float> logits = random_logits(5000, 8);
    const LogitStats stats = logit_stats(logits.data(), 5000, temperature);
    for (const Filters& filters : kFilters) {
      SamplingParams params = with(params_for(logits, 3), filters);
      params.temperature = temperature;
      const Result<SampledToken> drawn = sample_token(params);
      EXPECT_EQ(drawn->logprob, token_logprob(stats, logits[drawn->token], temperature));
    }
  }
}

// The same noise and the same filters in double: decisions agree but where they hang by a rounding.
TEST(Sampling, AgreesWithTheDoubleReferenceTokenByToken) {
  int64_t total = 0, close = 0;
  for (const int64_t v : {1, 2, 15, 17, 127, 128, 129, 300, 1000, 5000, 20000}) {
    for (const Filters& filters : kFilters) {
      for (uint64_t seed = 0; seed < (v > 1000 ? 6 : 30); ++seed) {
        const double scale = seed % 3 == 0 ? 0.5 : seed % 3 == 1 ? 3 : 9;
        std::vector<float> logits = random_logits(v, 100 * seed + static_cast<uint64_t>(v), scale);
        if (v > 10) logits[4] = -kInfinity;
        SamplingParams params = with(params_for(logits, seed * 7919, 1000 + seed), filters);
        params.temperature = seed % 2 == 0 ? 1.0f : 0.7f;
        const SampleRef expected = sample_token_ref(params);
        const Result<SampledToken> drawn = sample_token(params);
        ASSERT_TRUE(drawn.ok()) << drawn.status().message();
        ++total;
        if (std::min(expected.score_gap, expected.filter_gap) < testing::kSamplingDecision) {
          ++close;
          continue;
        }
        ASSERT_EQ(drawn->token, expected.token) << describe(params);
        ASSERT_NEAR(drawn->logprob, expected.logprob, testing::kLogprob) << describe(params);
        ASSERT_NEAR(drawn->sampling_logprob, expected.sampling_logprob, testing::kLogprob)
            << describe(params);
      }
    }
  }
  EXPECT_LT(close * 50, total) << close << " of " << total << " decisions too close to compare";
}

TEST(Sampling, BitsAreTheSameForBothInstructionSets) {
  if (!has_avx512()) GTEST_SKIP() << "this processor has no AVX-512";
  for (const int64_t v : {1, 31, 128, 777, 4096, 49152}) {
    for (const Filters& filters : kFilters) {
      for (uint64_t seed = 0; seed < 8; ++seed) {
        const std::vector<float> logits = random_logits(v, seed, 1.0 + static_cast<double>(seed));
        SamplingParams params = with(params_for(logits, seed), filters);
        params.temperature = 0.9f;
        set_isa(Isa::kAvx2);
        const SampledToken narrow = *sample_token(params);
        set_isa(Isa::kAvx512);
        const SampledToken wide = *sample_token(params);
        ASSERT_EQ(std::memcmp(&narrow, &wide, sizeof(wide)), 0) << describe(params);
      }
    }
  }
}

TEST(Sampling, PlaceOfTheRowAndThreadsDoNotMatter) {
  const int64_t v = 3000, rows = 64;
  const std::vector<float> logits = random_logits(v, 12);
  const Filters filters{200, 0.9, 0.001};
  const SampledToken alone = *sample_token(with(params_for(logits, 5, 6), filters));
  std::vector<float> batch(static_cast<size_t>(rows * (v + 1)), kInfinity);  // odd alignments
  for (int64_t r = 0; r < rows; ++r) std::copy(logits.begin(), logits.end(), &batch[r * (v + 1)]);
  std::vector<SampledToken> drawn(static_cast<size_t>(rows));
  set_num_threads(5);
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      SamplingParams params = with(params_for(logits, 5, 6), filters);
      params.logits_V = &batch[r * (v + 1)];
      drawn[r] = *sample_token(params);
    }
  });
  for (const SampledToken& token : drawn) {
    EXPECT_EQ(std::memcmp(&token, &alone, sizeof(alone)), 0);
  }
}

// Pearson's statistic of draws over different positions against the probabilities of the reference,
// which is an oracle that knows nothing of Gumbel noise. Mean = df, deviation sqrt(2 df).
double chi_square_deviations(const std::vector<float>& logits, const Filters& filters,
                             int64_t num_draws, float temperature) {
  SamplingParams params = with(params_for(logits, 99), filters);
  params.temperature = temperature;
  const SampleRef reference = sample_token_ref(params);
  std::vector<double> expected(logits.size());
  double sum = 0;
  for (const int32_t id : reference.kept) {
    sum += expected[id] = std::exp(double{logits[id]} / temperature);
  }
  std::vector<int64_t> counts(logits.size());
  for (int64_t i = 0; i < num_draws; ++i) {
    params.position = static_cast<uint32_t>(i);
    ++counts[sample_token(params)->token];
  }
  double statistic = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double mean = expected[i] / sum * static_cast<double>(num_draws);
    if (mean == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " was filtered out";
    } else {
      statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
    }
  }
  const double df = static_cast<double>(reference.kept.size()) - 1;
  return (statistic - df) / std::sqrt(2 * df);
}

TEST(Sampling, FrequenciesFollowTheDistribution) {
  const std::vector<float> logits = random_logits(150, 5, 0.8);
  for (const Filters& filters : {Filters{0, 1, 0}, Filters{20, 1, 0}, Filters{0, 0.7, 0},
                                 Filters{0, 1, 0.3}, Filters{60, 0.9, 0.1}}) {
    EXPECT_LT(std::abs(chi_square_deviations(logits, filters, 100000, 0.9f)), 4.5);
  }
}

// The statistic must notice a wrong sampler: one that draws at a temperature 5 % off.
TEST(Sampling, FrequencyTestNoticesAWrongTemperature) {
  const std::vector<float> logits = random_logits(150, 5, 0.8);
  std::vector<float> warmer = logits;
  for (float& logit : warmer) logit *= 1.05f;
  std::vector<int64_t> counts(logits.size());
  SamplingParams params = params_for(warmer, 99);
  double statistic = 0, sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  for (uint32_t i = 0; i < 100000; ++i) {
    params.position = i;
    ++counts[sample_token(params)->token];
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    const double mean = std::exp(double{logits[i]}) / sum * 100000;
    statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  EXPECT_GT((statistic - 149) / std::sqrt(2 * 149.0), 4.5);
}

// One peak and V - 1 tokens a gap below: with 24-bit uniforms near 1 the noise ends at 16.64 and
// hardly any of the tail is ever drawn (12 % of it at gap 18, none at 20).
TEST(Sampling, TailIsDrawnAtItsProbability) {
  constexpr int64_t kV = 151936;
  constexpr int kDraws = 20000;
  for (const double gap : {18.0, 20.0}) {
    std::vector<float> logits(kV, static_cast<float>(-gap));
    logits[4711] = 0;
    SamplingParams params = params_for(logits, 2024);
    int hits = 0;
    for (int i = 0; i < kDraws; ++i) {
      params.position = static_cast<uint32_t>(i);
      hits += sample_token(params)->token != 4711;
    }
    const double tail = (kV - 1) * std::exp(-gap), mean = kDraws * tail / (1 + tail);
    EXPECT_NEAR(hits, mean, 4 * std::sqrt(mean)) << "gap " << gap;
    EXPECT_GT(hits, 0.3 * mean) << "gap " << gap;
  }
}

// A draw below 2^10 gets 64 bits: the winner's score is then compared with all of them.
TEST(Sampling, RefinedDrawsDecideAtFullWidth) {
  const int64_t v = 151936;
  uint32_t position = 0;
  int64_t refined = -1;
  for (; refined < 0; ++position) {  // about 2.4e-7 of the draws
    for (int64_t id = 0; id < v; ++id) {
      if (gumbel_ref(7, position, id) > 22 * 0.6931471805599453) {
        refined = id;
        --position;
        break;
      }
    }
  }
  const double g = gumbel_ref(7, position, refined);
  const int64_t other = refined == 0 ? 1 : 0;
  const double rival = gumbel_ref(7, position, other);
  for (const double margin : {1e-5, -1e-5}) {
    std::vector<float> logits(static_cast<size_t>(v), -kInfinity);
    logits[other] = static_cast<float>(g - rival);
    logits[refined] = static_cast<float>(double{logits[other]} + rival - g + margin);
    const auto drawn = sample_token(params_for(logits, 7, position));
    EXPECT_EQ(drawn->token, margin > 0 ? refined : other) << "g = " << g;
  }
}

// The k largest of x + g by sorting all of them.
std::vector<NoisyScore> sorted_scores(const std::vector<float>& logits, const GumbelTopKParams& p) {
  std::vector<NoisyScore> all;
  for (int64_t i = 0; i < p.v; ++i) {
    if (logits[i] == -kInfinity) continue;
    all.push_back({logits[i] / p.temperature + gumbel_noise(p.seed, p.position, p.first_id + i),
                   p.first_id + i});
  }
  std::sort(all.begin(), all.end(),
            [](const NoisyScore& a, const NoisyScore& b) { return a.score > b.score; });
  all.resize(std::min(all.size(), static_cast<size_t>(p.k)));
  return all;
}

TEST(GumbelTopK, IsTheSortedRowHoweverItIsCutAndOnBothInstructionSets) {
  for (const Isa set : {Isa::kAvx2, Isa::kAvx512}) {
    if (set == Isa::kAvx512 && !has_avx512()) continue;
    set_isa(set);
    for (const int64_t v : {1, 5, 129, 5000}) {
      for (uint64_t seed = 0; seed < 20; ++seed) {
        std::vector<float> logits = random_logits(v, seed, 2);
        if (v > 4) logits[3] = -kInfinity;
        GumbelTopKParams params{.logits_V = logits.data(),
                                .v = v,
                                .first_id = seed % 2 == 0 ? 0 : 1280,
                                .temperature = 0.3,
                                .seed = seed,
                                .position = 4,
                                .k = 7};
        const std::vector<NoisyScore> expected = sorted_scores(logits, params);
        std::vector<NoisyScore> whole(7), parts(7);
        ASSERT_EQ(gumbel_top_k(params, whole.data(), 0), static_cast<int64_t>(expected.size()));
        int64_t count = 0;
        for (int64_t begin = (v - 1) / 256 * 256; begin >= 0; begin -= 256) {  // backwards
          GumbelTopKParams part = params;
          part.logits_V = logits.data() + begin;
          part.v = std::min<int64_t>(256, v - begin);
          part.first_id = params.first_id + begin;
          count = gumbel_top_k(part, parts.data(), count);
        }
        ASSERT_EQ(count, static_cast<int64_t>(expected.size()));
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_EQ(whole[i].id, expected[i].id) << "V " << v << ", seed " << seed;
          ASSERT_EQ(whole[i].score, expected[i].score);
          ASSERT_EQ(parts[i].id, expected[i].id) << "V " << v << ", seed " << seed;
        }
      }
    }
  }
  set_isa(has_avx512() ? Isa::kAvx512 : Isa::kAvx2);
}

TEST(GumbelTopK, TheFirstIsTheSampledTokenAndNoiseIsTheReferences) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> logits = random_logits(3000, seed);
    NoisyScore first;
    gumbel_top_k({.logits_V = logits.data(), .v = 3000, .seed = seed, .position = 9}, &first, 0);
    EXPECT_EQ(first.id, sample_token(params_for(logits, seed, 9))->token);
    EXPECT_NEAR(gumbel_noise(seed, 9, first.id), gumbel_ref(seed, 9, first.id), 1e-13);
  }
}

TEST(Sampling, NameWhatIsWrongWithTheRow) {
  std::vector<float> logits = random_logits(100, 1);
  logits[63] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(
      sample_token(params_for(logits)).status().message(),
      "sampling: the logit of token 63 is nan; expected finite values or -inf; are the weights "
      "finite?");
  logits[63] = kInfinity;
  EXPECT_EQ(sample_token(params_for(logits)).status().message(),
            "sampling: the largest of 100 logits is inf; expected a finite value; are the weights "
            "finite?");
  const std::vector<float> nothing(40, -kInfinity);
  const Status status = sample_token(params_for(nothing)).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(status.message(),
            "sampling: the largest of 40 logits is -inf; expected a finite value; are the weights "
            "finite?");
}

TEST(Sampling, NamesParametersOutsideTheirRange) {
  const std::vector<float> logits = random_logits(10, 1);
  const auto message = [](const SamplingParams& params) {
    const Status status = sample_token(params).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  SamplingParams params = params_for(logits);
  params.temperature = 0;
  EXPECT_EQ(message(params),
            "sampling: temperature must be in [0.0001, 10000], got 0; use greedy for the argmax");
  EXPECT_EQ(message(with(params_for(logits), {-1, 1, 0})),
            "sampling: top_k must be at least 0, got -1; 0 turns it off");
  EXPECT_EQ(message(with(params_for(logits), {0, 1.4, 0})),
            "sampling: top_p must be in (0, 1], got 1.4; 1 turns it off");
  EXPECT_EQ(message(with(params_for(logits), {0, 1, -0.5})),
            "sampling: min_p must be in [0, 1], got -0.5; 0 turns it off");
  params = params_for(logits);
  params.v = 0;
  EXPECT_EQ(message(params), "sampling: v must be in [1, 2^23], got 0");
}

}  // namespace
}  // namespace gradus::kernels
