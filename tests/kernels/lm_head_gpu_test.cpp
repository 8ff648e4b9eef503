// SPDX-License-Identifier: Apache-2.0
#include "kernels/lm_head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/rng.h"
#include "kernels/internal/sampling_ref.h"
#include "tests/kernels/head_case.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using gradus::testing::cpu_params;
using gradus::testing::HeadCase;
using gradus::testing::HeadResult;
using gradus::testing::same_bits;

// Rows with mixed temperatures, some greedy.
std::vector<LmHeadRow> mixed_rows(int64_t b, uint64_t seed) {
  const float temperatures[] = {1, 0.7f, 0, 1.3f, 1, 0.05f, 3, 1};
  std::vector<LmHeadRow> rows(static_cast<size_t>(b));
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].seed = hash64({seed, i});
    rows[i].position = static_cast<uint32_t>(i * 7 + seed);
    rows[i].temperature = temperatures[i % 8];
  }
  return rows;
}

struct Shape {
  int64_t v, d, b;
};
// Vocabularies at a block's edge and past it, widths that are not a multiple of a stage, every
// tile.
const Shape kShapes[] = {{128, 64, 1},      {127, 72, 3},      {129, 8, 8},       {1000, 200, 9},
                         {4096, 256, 16},   {4097, 576, 17},   {49152, 576, 32},  {10000, 1000, 33},
                         {5000, 896, 64},   {7777, 128, 65},   {2048, 2048, 128}, {3001, 64, 129},
                         {12345, 512, 256}, {1500, 1032, 200}, {1, 64, 5},        {2, 8, 300},
                         {151936, 896, 40}};

std::string describe(const Shape& shape) {
  return fmt::format("V {}, D {}, B {}", shape.v, shape.d, shape.b);
}

// x - max and log-sum-exp in double.
struct Exact {
  double logprob, lse, entropy;
};
Exact exact(const float* z, int64_t v, double t, int32_t token) {
  double max = -INFINITY, sum = 0, weighted = 0;
  for (int64_t i = 0; i < v; ++i) max = std::max(max, z[i] / t);
  for (int64_t i = 0; i < v; ++i) {
    const double d = z[i] / t - max, e = std::exp(d);
    sum += e;
    weighted += d * e;
  }
  return {z[token] / t - max - std::log(sum), max + std::log(sum), std::log(sum) - weighted / sum};
}

TEST(LmHeadOnGpu, LogitsAreOneChainOverKWhateverTileMakesThem) {
  GRADUS_NEEDS_GPU(cuda);
  // With one token, the log-sum-exp is the logit: its bits are those of the plain kernel.
  for (const int64_t d : {8, 64, 72, 576, 896, 4096, 4864}) {
    for (const int64_t b : {1, 8, 9, 16, 17, 32, 64, 100, 128, 129, 256, 300}) {
      HeadCase head(*cuda, 1, d, b, 3, static_cast<uint64_t>(d + b));
      const std::vector<float> z = head.logits();
      const HeadResult got = head.sample(std::vector<LmHeadRow>(static_cast<size_t>(b)));
      for (size_t i = 0; i < z.size(); ++i) {
        ASSERT_TRUE(same_bits(got.lse[i], z[i]))
            << d << " " << b << " row " << i << ": " << got.lse[i] << " " << z[i];
        ASSERT_EQ(got.token[i], 0);
        ASSERT_EQ(got.logprob[i], 0.0f);
      }
    }
  }
}

TEST(LmHeadOnGpu, AChainSplitInTwoFailsTheComparison) {
  GRADUS_NEEDS_GPU(cuda);
  HeadCase head(*cuda, 1, 4096, 256, 3, 5);
  const std::vector<float> whole = head.logits(1), split = head.logits(2);
  int64_t different = 0;
  for (size_t i = 0; i < whole.size(); ++i) different += !same_bits(whole[i], split[i]);
  EXPECT_GT(different, 50);
}

TEST(LmHeadOnGpu, DrawsTheTokensOfTheCpuSamplerFromTheSameLogits) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(describe(shape));
    HeadCase head(*cuda, shape.v, shape.d, shape.b, 3, static_cast<uint64_t>(shape.v));
    const std::vector<float> z = head.logits();
    const std::vector<LmHeadRow> rows = mixed_rows(shape.b, 11);
    const HeadResult got = head.sample(rows);
    for (int64_t i = 0; i < shape.b; ++i) {
      const float* logits = z.data() + i * shape.v;
      const Result<SampledToken> cpu = sample_token(cpu_params(logits, shape.v, rows[i]));
      ASSERT_TRUE(cpu.ok());
      EXPECT_EQ(got.token[i], cpu->token) << "row " << i << " T " << rows[i].temperature;
      if (got.token[i] < 0) continue;
      const double t = rows[i].temperature == 0 ? 1.0 : double{rows[i].temperature};
      const Exact want = exact(logits, shape.v, t, got.token[i]);
      const double scale = std::max(1.0, std::abs(want.lse) / 16);
      EXPECT_NEAR(got.logprob[i], want.logprob, scale * gradus::testing::kLogprob) << "row " << i;
      EXPECT_NEAR(got.lse[i], want.lse, scale * gradus::testing::kLogprob) << "row " << i;
      EXPECT_NEAR(got.entropy[i], want.entropy, scale * gradus::testing::kLogprob) << "row " << i;
      EXPECT_EQ(got.sampling_logprob[i], rows[i].temperature == 0 ? 0.0f : got.logprob[i]);
    }
  }
}

TEST(LmHeadOnGpu, RowsDoNotDependOnTheirCompanyPlaceOrTile) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t b = 256;
  HeadCase head(*cuda, 20000, 512, b, 4, 3);
  const std::vector<LmHeadRow> rows = mixed_rows(b, 3);
  const HeadResult whole = head.sample(rows);
  for (const int64_t n : {1, 2, 7, 8, 16, 31, 64, 100, 128, 200}) {
    for (const int64_t first : {int64_t{0}, int64_t{5}, b - n}) {
      const std::vector<LmHeadRow> part(rows.begin() + first, rows.begin() + first + n);
      const HeadResult got = head.sample(part, first);
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(got.token[i], whole.token[first + i]) << n << " rows from " << first;
        ASSERT_TRUE(same_bits(got.logprob[i], whole.logprob[first + i])) << n << " from " << first;
        ASSERT_TRUE(same_bits(got.lse[i], whole.lse[first + i])) << n << " from " << first;
        ASSERT_TRUE(same_bits(got.entropy[i], whole.entropy[first + i])) << n << " from " << first;
      }
    }
  }
  for (int repeat = 0; repeat < 50; ++repeat) {
    const HeadResult again = head.sample(rows);
    ASSERT_EQ(again.token, whole.token);
    ASSERT_EQ(0, std::memcmp(again.logprob.data(), whole.logprob.data(), b * sizeof(float)));
  }
}

TEST(LmHeadOnGpu, ShardsOfTheVocabularyGiveTheBitsOfTheWhole) {
  GRADUS_NEEDS_GPU(cuda);
  for (const int64_t b : {1, 40, 256}) {
    HeadCase head(*cuda, 33333, 256, b, 4, 9);
    const std::vector<LmHeadRow> rows = mixed_rows(b, 4);
    const HeadResult whole = head.sample(rows);
    for (const int64_t shards : {2, 4, 8}) {
      const HeadResult got = head.sample(rows, 0, false, 0, shards);
      ASSERT_EQ(got.token, whole.token) << shards;
      for (int64_t i = 0; i < b; ++i) {
        ASSERT_TRUE(same_bits(got.logprob[i], whole.logprob[i])) << shards;
        ASSERT_TRUE(same_bits(got.entropy[i], whole.entropy[i])) << shards;
      }
    }
  }
}

TEST(LmHeadOnGpu, ScorerGivesTheSamplersBits) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Shape& shape : {Shape{4097, 576, 1}, Shape{20000, 512, 100}, Shape{20000, 512, 2500},
                             Shape{151936, 896, 256}}) {
    SCOPED_TRACE(describe(shape));
    HeadCase head(*cuda, shape.v, shape.d, shape.b, 3, 21);
    const std::vector<LmHeadRow> rows = mixed_rows(shape.b, 6);
    std::vector<float> temperatures;
    for (const LmHeadRow& row : rows) {
      temperatures.push_back(row.temperature == 0 ? 1.0f : row.temperature);
    }
    const HeadResult sampled = head.sample(rows);
    const HeadResult scored = head.score(temperatures, sampled.token);
    for (int64_t i = 0; i < shape.b; ++i) {
      ASSERT_TRUE(same_bits(sampled.logprob[i], scored.logprob[i]))
          << "row " << i << ": " << sampled.logprob[i] << " " << scored.logprob[i];
      ASSERT_TRUE(same_bits(sampled.lse[i], scored.lse[i])) << "row " << i;
      ASSERT_TRUE(same_bits(sampled.entropy[i], scored.entropy[i])) << "row " << i;
    }
  }
}

// Rows with every mix of filters.
std::vector<LmHeadRow> filtered_rows(int64_t b, uint64_t seed) {
  struct Filters {
    int32_t top_k;
    double top_p, min_p;
  };
  const Filters filters[] = {{0, 1, 0},       {1, 1, 0},     {5, 1, 0},    {50, 1, 0},
                             {512, 1, 0},     {0, 0.3, 0},   {0, 0.9, 0},  {0, 0.99, 0},
                             {0, 1, 0.05},    {0, 1, 1},     {50, 0.9, 0}, {20, 0.5, 0.1},
                             {0, 0.95, 0.02}, {100000, 1, 0}};
  std::vector<LmHeadRow> rows = mixed_rows(b, seed);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Filters& f = filters[i % std::size(filters)];
    rows[i].top_k = f.top_k;
    rows[i].top_p = f.top_p;
    rows[i].min_p = f.min_p;
  }
  return rows;
}

TEST(LmHeadOnGpu, FiltersKeepAndDrawWhatTheCpuSamplerDoes) {
  GRADUS_NEEDS_GPU(cuda);
  const int num_top = 20;
  for (const Shape& shape :
       {Shape{1000, 64, 30}, Shape{33, 64, 30}, Shape{49152, 128, 60}, Shape{20000, 512, 256}}) {
    for (const float scale : {1.0f, 4.0f, 12.0f}) {
      SCOPED_TRACE(describe(shape) + fmt::format(" scale {}", scale));
      HeadCase head(*cuda, shape.v, shape.d, shape.b, scale, 31);
      const std::vector<float> z = head.logits();
      const std::vector<LmHeadRow> rows = filtered_rows(shape.b, 8);
      const HeadResult got = head.sample(rows, 0, true, num_top);
      for (int64_t i = 0; i < shape.b; ++i) {
        const float* logits = z.data() + i * shape.v;
        const SamplingParams params = cpu_params(logits, shape.v, rows[i]);
        const SampleRef want = sample_token_ref(params);
        const std::string what =
            fmt::format("row {} T {} top_k {} top_p {} min_p {}", i, rows[i].temperature,
                        rows[i].top_k, rows[i].top_p, rows[i].min_p);
        if (want.filter_gap > gradus::testing::kSamplingDecision) {
          EXPECT_EQ(got.num_kept[i], static_cast<int32_t>(want.kept.size())) << what;
          if (want.score_gap > gradus::testing::kSamplingDecision) {
            EXPECT_EQ(got.token[i], want.token) << what;
          }
          if (got.token[i] == want.token) {
            const double slack =
                std::max(1.0, std::abs(double{got.lse[i]}) / 16) * gradus::testing::kLogprob;
            EXPECT_NEAR(got.sampling_logprob[i], want.sampling_logprob, slack) << what;
            EXPECT_NEAR(got.logprob[i], want.logprob, slack) << what;
          }
        }
        std::vector<int32_t> order(static_cast<size_t>(shape.v));
        std::iota(order.begin(), order.end(), 0);
        const auto n = static_cast<int64_t>(std::min<int64_t>(num_top, shape.v));
        std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](int32_t a, int32_t b) {
          return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        });
        for (int64_t j = 0; j < n; ++j) {
          ASSERT_EQ(got.top_ids[i * num_top + j], order[j]) << what << " place " << j;
        }
      }
    }
  }
}

TEST(LmHeadOnGpu, FilteredRowsDoNotDependOnTheirCompany) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t b = 200;
  HeadCase head(*cuda, 30000, 256, b, 5, 41);
  const std::vector<LmHeadRow> rows = filtered_rows(b, 9);
  const HeadResult whole = head.sample(rows, 0, true, 20);
  for (const int64_t n : {1, 14, 60}) {
    const HeadResult got =
        head.sample(std::vector<LmHeadRow>(rows.begin() + 7, rows.begin() + 7 + n), 7, true, 20);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(got.token[i], whole.token[i + 7]) << n << " " << i;
      ASSERT_EQ(got.num_kept[i], whole.num_kept[i + 7]) << n << " " << i;
      ASSERT_TRUE(same_bits(got.sampling_logprob[i], whole.sampling_logprob[i + 7]))
          << n << " " << i;
      ASSERT_TRUE(same_bits(got.logprob[i], whole.logprob[i + 7])) << n << " " << i;
    }
  }
}

// A head whose logits are given: D = 8, h = (1, 0, ...), so z[i] = w[i, 0], rounded to bf16.
void set_logits(HeadCase& head, const std::vector<float>& z) {
  const auto bf16 = [](float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return static_cast<uint16_t>((bits + 0x8000u) >> 16);
  };
  std::vector<uint16_t> w(static_cast<size_t>(head.v() * 8)), h(static_cast<size_t>(head.b() * 8));
  for (size_t i = 0; i < z.size(); ++i) w[8 * i] = bf16(z[i]);
  for (int64_t i = 0; i < head.b(); ++i) h[static_cast<size_t>(8 * i)] = bf16(1.0f);
  head.w().upload(w);
  head.h().upload(h);
}

TEST(LmHeadOnGpu, TheTailIsDrawnAtItsProbability) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t v = 151936, b = 256;
  HeadCase head(*cuda, v, 8, b, 1, 1);
  for (const float gap : {14.0f, 16.0f, 18.0f, 20.0f, 22.0f, 24.0f}) {
    std::vector<float> z(static_cast<size_t>(v), 0.0f);
    z[77777] = gap;
    set_logits(head, z);
    const int64_t launches = 1500;
    int64_t in_tail = 0;
    std::vector<LmHeadRow> rows(static_cast<size_t>(b));
    for (int64_t n = 0; n < launches; ++n) {
      for (int64_t i = 0; i < b; ++i) {
        rows[i].seed = hash64({static_cast<uint64_t>(gap), 5, static_cast<uint64_t>(i)});
        rows[i].position = static_cast<uint32_t>(n);
      }
      for (const int32_t token : head.sample(rows).token) in_tail += token != 77777;
    }
    const double tail = (v - 1) * std::exp(-double{gap}), p = tail / (1 + tail);
    const double draws = static_cast<double>(launches * b);
    const double z_score =
        (static_cast<double>(in_tail) - draws * p) / std::sqrt(draws * p * (1 - p));
    std::printf("gap %.0f: %lld of %.0f in the tail, expected %.1f, z %.2f\n", gap,
                static_cast<long long>(in_tail), draws, draws * p, z_score);
    EXPECT_LT(std::abs(z_score), 5) << gap;
  }
}

TEST(LmHeadOnGpu, DrawsHaveTheProbabilitiesOfTheSoftmax) {
  GRADUS_NEEDS_GPU(cuda);
  for (const int64_t v : {2, 17, 100, 1000}) {
    const int64_t b = 256, launches = 400;
    HeadCase head(*cuda, v, 8, b, 1, 1);
    std::vector<float> z(static_cast<size_t>(v));
    RngSequence rng(static_cast<uint64_t>(v), RngStream::kTask);
    for (float& x : z) x = static_cast<float>(static_cast<int>(rng.below(32))) / 8 - 20;
    set_logits(head, z);
    std::vector<int64_t> counts(static_cast<size_t>(v));
    std::vector<LmHeadRow> rows(static_cast<size_t>(b));
    for (int64_t n = 0; n < launches; ++n) {
      for (int64_t i = 0; i < b; ++i) {
        rows[i].seed = hash64({9, static_cast<uint64_t>(i)});
        rows[i].position = static_cast<uint32_t>(n);
      }
      for (const int32_t token : head.sample(rows).token) {
        ASSERT_GE(token, 0);
        ASSERT_LT(token, v);
        ++counts[static_cast<size_t>(token)];
      }
    }
    double sum = 0, chi2 = 0;
    for (const float x : z) sum += std::exp(double{x});
    for (size_t i = 0; i < z.size(); ++i) {
      const double expected = static_cast<double>(launches * b) * std::exp(double{z[i]}) / sum;
      chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    const double degrees = static_cast<double>(v - 1);
    EXPECT_LT((chi2 - degrees) / std::sqrt(2 * degrees), 5) << "V " << v << " chi2 " << chi2;
  }
}

TEST(LmHeadOnGpu, EqualLogitsAreDecidedByTheLowestIdWhenGreedyAndEvenlyWhenNot) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t v = 50000, b = 256;
  HeadCase head(*cuda, v, 8, b, 1, 1);
  set_logits(head, std::vector<float>(static_cast<size_t>(v), -3.0f));
  std::vector<LmHeadRow> rows(static_cast<size_t>(b));
  for (LmHeadRow& row : rows) row.temperature = 0;
  for (const int32_t token : head.sample(rows).token) ASSERT_EQ(token, 0);
  double mean = 0;
  const int launches = 400;
  for (int n = 0; n < launches; ++n) {
    for (int64_t i = 0; i < b; ++i) {
      rows[i] = {.seed = hash64({3, static_cast<uint64_t>(i)}),
                 .position = static_cast<uint32_t>(n)};
    }
    for (const int32_t token : head.sample(rows).token)
      mean += (token + 0.5) / static_cast<double>(v);
  }
  const double draws = static_cast<double>(b) * launches;
  EXPECT_NEAR(mean / draws, 0.5, 5 * std::sqrt(1 / 12.0 / draws));
}

TEST(LmHeadOnGpu, ANanGivesNoTokenAndSparesTheOtherRows) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t b = 40;
  HeadCase head(*cuda, 5000, 64, b, 3, 2);
  const std::vector<LmHeadRow> rows = mixed_rows(b, 2);
  const HeadResult before = head.sample(rows);
  std::vector<uint16_t> h = head.h().download();
  h[5 * 64 + 3] = 0x7FC0;  // NaN
  h[9 * 64 + 3] = 0x7F80;  // +inf
  head.h().upload(h);
  const HeadResult got = head.sample(rows);
  for (int64_t i = 0; i < b; ++i) {
    if (i == 5 || i == 9) {
      EXPECT_EQ(got.token[i], -1) << i;
      EXPECT_TRUE(std::isnan(got.logprob[i])) << i;
    } else {
      EXPECT_EQ(got.token[i], before.token[i]) << i;
      EXPECT_TRUE(same_bits(got.logprob[i], before.logprob[i])) << i;
    }
  }
}

// Every kind of row and every tile once, small enough for compute-sanitizer; each result was
// written.
TEST(LmHeadSmall, WritesEveryResultOfEveryTile) {
  GRADUS_NEEDS_GPU(cuda);
  for (const int64_t b : {1, 9, 17, 40, 100, 140}) {
    HeadCase head(*cuda, 700, 72, b, 4, 5);
    for (const bool filters : {false, true}) {
      const HeadResult got = head.sample(filters ? filtered_rows(b, 3) : mixed_rows(b, 3), 0,
                                         filters, filters ? 20 : 0);
      const HeadResult scored =
          head.score(std::vector<float>(static_cast<size_t>(b), 1.0f), got.token);
      for (int64_t i = 0; i < b; ++i) {
        ASSERT_GE(got.token[i], 0);
        ASSERT_LT(got.token[i], 700);
        ASSERT_LE(got.logprob[i], 0);
        ASSERT_LE(got.sampling_logprob[i], 0);
        ASSERT_GE(got.entropy[i], 0);
        ASSERT_GE(got.num_kept[i], 1);
        ASSERT_LE(scored.logprob[i], 0);
      }
    }
  }
}

TEST(LmHeadOnGpu, WrongNoiseFailsTheComparisons) {
  GRADUS_NEEDS_GPU(cuda);
  // What the tests above must notice: noise that is that of the next position.
  const int64_t b = 64;
  HeadCase head(*cuda, 8192, 64, b, 3, 77);
  std::vector<LmHeadRow> rows(static_cast<size_t>(b));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = {.seed = i, .position = 5};
  const HeadResult right = head.sample(rows);
  for (LmHeadRow& row : rows) row.position += 1;
  const HeadResult later = head.sample(rows);
  int64_t different = 0;
  for (int64_t i = 0; i < b; ++i) different += right.token[i] != later.token[i];
  EXPECT_GT(different, b / 2);
}

}  // namespace
}  // namespace gradus::kernels
