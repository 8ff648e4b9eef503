// SPDX-License-Identifier: Apache-2.0
#include "retriever/policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/gemm.h"
#include "retriever/corpus_policy.h"
#include "tests/support/files.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::retriever {
namespace {

using nlohmann::json;
using testing::AlignedFloats;

std::vector<int64_t> numbers(size_t count) {
  std::vector<int64_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

TEST(RankingPolicy, IsTheHandComputedListOfThree) {
  // exp(l) = 2, 1, 3 at a = 0.5: p(2, 0) = 3/6 * 2/3 = 1/3. By the logits: of place 0
  // 1 - 2/6 - 2/3 = 0, of place 1 -1/6 - 1/3 = -1/2, of place 2 1 - 3/6 = 1/2; by the scores twice
  // that.
  const std::vector<double> scores = {0.5 * std::log(2.0), 0, 0.5 * std::log(3.0)};
  const std::vector<int32_t> places = {2, 0};
  std::vector<double> slopes(3);
  EXPECT_NEAR(*ranking_logprob(scores, 0.5, places, slopes), std::log(1.0 / 3), 1e-15);
  EXPECT_NEAR(slopes[0], 0, 1e-15);
  EXPECT_NEAR(slopes[1], -1, 1e-15);
  EXPECT_NEAR(slopes[2], 1, 1e-15);
  EXPECT_EQ(*ranking_logprob(scores, 0.5, {}), 0);
}

TEST(RankingPolicy, EqualsTheProductFormInSixtyDigits) {
  const json golden = json::parse(test::read_file("tests/golden/retrieval/policy.json"));
  ASSERT_GE(golden["cases"].size(), 9u);
  for (const json& c : golden["cases"]) {
    const auto scores = c["input"]["scores"].get<std::vector<double>>();
    const auto places = c["input"]["selected"].get<std::vector<int32_t>>();
    std::vector<double> slopes(scores.size());
    const Result<double> logprob =
        ranking_logprob(scores, c["input"]["temperature"], places, slopes);
    ASSERT_TRUE(logprob.ok()) << logprob.status().message();
    const double want = c["logprob"];
    EXPECT_NEAR(*logprob, want, testing::kRankingReference * (1 + std::fabs(want))) << c;
    double scale = 1;
    for (const json& slope : c["grad"]) scale = std::max(scale, std::fabs(slope.get<double>()));
    for (size_t j = 0; j < slopes.size(); ++j) {
      EXPECT_NEAR(slopes[j], c["grad"][j].get<double>(), testing::kRankingReference * scale)
          << "place " << j << " of " << c;
    }
  }
}

// L + log1p(-exp(l - L)), taking chosen documents away from the whole, cancels where one holds
// nearly all mass; the comparison above must notice.
TEST(RankingPolicy, TheReferenceNoticesTheCancellingForm) {
  const json golden = json::parse(test::read_file("tests/golden/retrieval/policy.json"));
  double worst = 0;
  for (const json& c : golden["cases"]) {
    std::vector<double> logits = c["input"]["scores"];
    for (double& l : logits) l /= c["input"]["temperature"].get<double>();
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0, logprob = 0;
    for (const double l : logits) sum += std::exp(l - max);
    double log_sum = max + std::log(sum);
    for (const int32_t place : c["input"]["selected"].get<std::vector<int32_t>>()) {
      logprob += logits[place] - log_sum;
      log_sum += std::log1p(-std::exp(logits[place] - log_sum));
    }
    const double want = c["logprob"];
    const double error = std::fabs(logprob - want) / (1 + std::fabs(want));
    worst = std::isfinite(error) ? std::max(worst, error) : 1;
  }
  EXPECT_GT(worst, testing::kRankingReference);
}

// Pearson's statistic of draws against the law, over the 120 ordered lists of 3 out of 6.
double chi_square(const std::vector<double>& scores, double temperature, double drawn_at,
                  int64_t num_draws) {
  const std::vector<int64_t> ids = {40, 3, 129, 7, 88, 1000};
  std::map<std::vector<int32_t>, int64_t> counts;
  for (int64_t i = 0; i < num_draws; ++i) {
    ++counts[draw_ranking({.scores_K = scores,
                           .ids_K = ids,
                           .temperature = drawn_at,
                           .k = 3,
                           .seed = static_cast<uint64_t>(i / 4),
                           .hop = static_cast<uint32_t>(i % 4)})
                 ->places];
  }
  double statistic = 0, total = 0;
  int64_t seen = 0;
  for (int32_t a = 0; a < 6; ++a) {
    for (int32_t b = 0; b < 6; ++b) {
      for (int32_t c = 0; c < 6; ++c) {
        if (a == b || b == c || a == c) continue;
        const double p = std::exp(*ranking_logprob(scores, temperature, std::vector{a, b, c}));
        total += p;
        const double mean = p * static_cast<double>(num_draws);
        const int64_t count = counts[{a, b, c}];
        seen += count;
        statistic +=
            (static_cast<double>(count) - mean) * (static_cast<double>(count) - mean) / mean;
      }
    }
  }
  EXPECT_NEAR(total, 1, 1e-12);
  EXPECT_EQ(seen, num_draws);
  return statistic;
}

TEST(RankingPolicy, DrawsFollowTheLaw) {
  const std::vector<double> scores = {0.31, 0.28, 0.35, 0.22, 0.30, 0.26};
  // The 99th percentile of chi-square with 119 degrees of freedom is 157.8.
  EXPECT_LT(chi_square(scores, 0.05, 0.05, 1000000), 157.8);
  // Drawn at a temperature 2 % off, the statistic must notice.
  EXPECT_GT(chi_square(scores, 0.05, 0.051, 1000000), 157.8);
}

TEST(RankingPolicy, ADrawIsAFunctionOfSeedHopAndIdsAlone) {
  testing::AlignedFloats raw = testing::normals(30, 3, 0.1);
  std::vector<double> scores(raw.begin(), raw.end());
  std::vector<int64_t> ids(30);
  for (size_t j = 0; j < ids.size(); ++j) ids[j] = static_cast<int64_t>(j * 977 % 4096);
  std::vector<size_t> order(30);
  std::iota(order.begin(), order.end(), 0);
  std::vector<std::vector<int64_t>> drawn;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Ranking first = *draw_ranking({.scores_K = scores, .ids_K = ids, .seed = seed, .hop = 2});
    std::reverse(order.begin(), order.end());
    std::rotate(order.begin(), order.begin() + 7, order.end());
    std::vector<double> other_scores;
    std::vector<int64_t> other_ids, first_ids, second_ids;
    for (const size_t j : order) {
      other_scores.push_back(scores[j]);
      other_ids.push_back(ids[j]);
    }
    const Ranking second =
        *draw_ranking({.scores_K = other_scores, .ids_K = other_ids, .seed = seed, .hop = 2});
    for (const int32_t place : first.places) first_ids.push_back(ids[place]);
    for (const int32_t place : second.places) second_ids.push_back(other_ids[place]);
    EXPECT_EQ(first_ids, second_ids);
    EXPECT_NEAR(first.logprob, second.logprob, 1e-12);
    // Re-scored from the record: the ratio of the first update is 1.
    EXPECT_EQ(*ranking_logprob(scores, 0.05, first.places), first.logprob);
    drawn.push_back(first_ids);
  }
  std::sort(drawn.begin(), drawn.end());
  EXPECT_GT(std::unique(drawn.begin(), drawn.end()) - drawn.begin(), 40) << "seeds must matter";
}

TEST(RankingPolicy, GreedyTakesTheBestAndTheLowestIdOfEquals) {
  const std::vector<double> scores = {0.2, 0.5, 0.5, 0.1, 0.5};
  const std::vector<int64_t> ids = {1, 9, 4, 2, 6};
  EXPECT_EQ(draw_ranking({.scores_K = scores, .ids_K = ids, .greedy = true})->places,
            (std::vector<int32_t>{2, 4, 1}));
  EXPECT_EQ(draw_ranking({.scores_K = scores, .ids_K = ids, .k = 9, .greedy = true})->places.size(),
            5u);
  EXPECT_TRUE(draw_ranking({})->places.empty());
}

TEST(RankingPolicy, EffectiveDocumentsCountEqualOnes) {
  EXPECT_NEAR(effective_documents(std::vector<double>(8, 0.3), 0.05), 8, 1e-12);
  // p = 3/4, 1/4: H = 0.5623351446.
  EXPECT_NEAR(effective_documents(std::vector<double>{std::log(3.0), 0}, 1), std::exp(0.5623351446),
              1e-9);
}

TEST(RankingPolicy, NamesWhatIsWrong) {
  const std::vector<double> scores = {0.1, 0.2, std::nan("")};
  const std::vector<int64_t> ids = {1, -4};
  EXPECT_EQ(ranking_logprob(scores, 0.05, {}).status().message(),
            "retrieval policy: the score at place 2 of the pool is nan; expected a finite number; "
            "leave documents without a score out of the pool");
  const std::span<const double> two = std::span(scores).first(2);
  EXPECT_EQ(ranking_logprob(two, 0, {}).status().message(),
            "retrieval policy: temperature must be a positive number, got 0");
  EXPECT_EQ(ranking_logprob(two, 1, std::vector<int32_t>{0, 2}).status().message(),
            "retrieval policy: entry 1 of the list is place 2, but the pool has 2 documents; "
            "expected a place in [0, 2)");
  EXPECT_EQ(
      ranking_logprob(two, 1, std::vector<int32_t>{1, 1}).status().message(),
      "retrieval policy: place 1 is listed twice, the second time as entry 1; a list is drawn "
      "without replacement");
  EXPECT_EQ(draw_ranking({.scores_K = two, .ids_K = ids}).status().message(),
            "retrieval policy: the id at place 1 of the pool is -4; expected one in [0, 2^32)");
  EXPECT_EQ(draw_ranking({.scores_K = two, .ids_K = ids, .k = 0}).status().message(),
            "retrieval policy: k must be at least 1, got 0");
}

// A corpus of unit vectors with queries near some of them.
struct Corpus {
  int64_t n, d, s;
  AlignedFloats rows, packed, queries;

  Corpus(int64_t documents, int64_t width, int64_t states)
      : n(documents),
        d(width),
        s(states),
        rows(testing::normals(n * d, 1)),
        packed(static_cast<size_t>(kernels::packed_size(n, d))),
        queries(testing::normals(s * d, 2)) {
    normalise(rows);
    for (int64_t i = 0; i < s * d; ++i) queries[i] += 12 * rows[i % (n * d)];
    normalise(queries);
    kernels::pack_weight(rows.data(), d, n, d, packed.data());
  }
  void normalise(AlignedFloats& values) const {
    for (size_t begin = 0; begin < values.size(); begin += static_cast<size_t>(d)) {
      double squares = 0;
      for (int64_t i = 0; i < d; ++i) squares += double{values[begin + i]} * values[begin + i];
      for (int64_t i = 0; i < d; ++i) {
        values[begin + i] = static_cast<float>(values[begin + i] / std::sqrt(squares));
      }
    }
  }
  CorpusQueries params(double temperature) const {
    return {.documents = packed.data(),
            .num_documents = n,
            .width = d,
            .queries_SD = queries.data(),
            .num_queries = s,
            .temperature = temperature};
  }
  std::vector<double> scores(int64_t state) const {
    std::vector<double> all(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < d; ++i) all[j] += double{rows[j * d + i]} * queries[state * d + i];
    }
    return all;
  }
};

TEST(CorpusPolicy, LogprobAndGradientEqualThePoolOfAllDocumentsInDouble) {
  for (const auto& [n, d, s, k] :
       {std::array<int64_t, 4>{1000, 24, 5, 3}, {256, 16, 2, 1}, {5, 8, 3, 5}, {3001, 40, 67, 4}}) {
    const Corpus corpus(n, d, s);
    for (const double temperature : {0.05, 0.2}) {
      std::vector<DrawKey> keys;
      for (int64_t i = 0; i < s; ++i) keys.push_back({static_cast<uint64_t>(i), 1});
      const auto drawn = draw_from_corpus(corpus.params(temperature), keys, k);
      ASSERT_TRUE(drawn.ok()) << drawn.status().message();
      std::vector<int32_t> places;
      for (const Ranking& one : *drawn) {
        places.insert(places.end(), one.places.begin(), one.places.end());
      }
      std::vector<double> logprobs(static_cast<size_t>(s));
      AlignedFloats gradient(static_cast<size_t>(s * d));
      ASSERT_TRUE(
          corpus_logprobs(corpus.params(temperature), places, k, logprobs, gradient.data()).ok());
      for (int64_t i = 0; i < s; ++i) {
        const std::vector<double> scores = corpus.scores(i);
        std::vector<double> slopes(scores.size());
        const double want = *ranking_logprob(scores, temperature, (*drawn)[i].places, slopes);
        EXPECT_NEAR(logprobs[i], want, testing::kCorpusPolicy) << n << " documents, state " << i;
        EXPECT_EQ((*drawn)[i].logprob, logprobs[i]);
        for (int64_t c = 0; c < d; ++c) {
          double slope = 0;
          for (int64_t j = 0; j < n; ++j) slope += slopes[j] * corpus.rows[j * d + c];
          ASSERT_NEAR(gradient[i * d + c], slope, testing::kCorpusPolicy / temperature)
              << n << " documents, state " << i << ", component " << c;
        }
      }
    }
  }
}

TEST(CorpusPolicy, DrawsEqualThoseFromAPoolOfAllDocuments) {
  const Corpus corpus(700, 16, 40);
  std::vector<DrawKey> keys;
  for (uint32_t i = 0; i < 40; ++i) keys.push_back({i / 3, i % 3});
  const auto drawn = draw_from_corpus(corpus.params(0.3), keys, 6);
  const std::vector<int64_t> ids = numbers(700);
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::vector<double> scores = corpus.scores(static_cast<int64_t>(i));
    EXPECT_EQ((*drawn)[i].places, draw_ranking({.scores_K = scores,
                                                .ids_K = ids,
                                                .temperature = 0.3,
                                                .k = 6,
                                                .seed = keys[i].seed,
                                                .hop = keys[i].hop})
                                      ->places);
  }
}

TEST(CorpusPolicy, BitsDoNotDependOnCompanyThreadsOrInstructionSet) {
  const Corpus corpus(900, 24, 9);
  std::vector<DrawKey> keys;
  for (uint64_t i = 0; i < 9; ++i) keys.push_back({i, 0});
  std::vector<Ranking> expected;
  AlignedFloats expected_gradient;
  testing::for_each_setting([&] {
    for (const int64_t count : {9, 1}) {  // all states, and the last one alone
      CorpusQueries params = corpus.params(0.1);
      params.num_queries = count;
      params.queries_SD += (9 - count) * 24;
      const auto drawn = draw_from_corpus(params, std::span(keys).last(count), 3);
      std::vector<int32_t> places;
      for (const Ranking& one : *drawn) {
        places.insert(places.end(), one.places.begin(), one.places.end());
      }
      std::vector<double> logprobs(static_cast<size_t>(count));
      AlignedFloats gradient(static_cast<size_t>(count * 24));
      ASSERT_TRUE(corpus_logprobs(params, places, 3, logprobs, gradient.data()).ok());
      if (expected.empty()) {
        expected = *drawn;
        expected_gradient = gradient;
      }
      EXPECT_EQ(drawn->back().places, expected.back().places);
      EXPECT_EQ(drawn->back().logprob, expected.back().logprob);
      EXPECT_TRUE(
          testing::same_bits(std::span(gradient).last(24), std::span(expected_gradient).last(24)));
    }
  });
}

TEST(CorpusPolicy, NamesWhatIsWrong) {
  const Corpus corpus(20, 8, 1);
  std::vector<double> logprob(1);
  const std::vector<DrawKey> keys(1);
  EXPECT_EQ(draw_from_corpus(corpus.params(0.1), keys, 21).status().message(),
            "retrieval policy: k must be in [1, 20], the number of documents, got 21");
  EXPECT_EQ(corpus_logprobs(corpus.params(0.1), std::vector<int32_t>{3, 20}, 2, logprob, nullptr)
                .message(),
            "retrieval policy: the list of state 0 has document 20, but there are 20; expected "
            "numbers in [0, 20)");
  EXPECT_EQ(corpus_logprobs(corpus.params(0.1), std::vector<int32_t>{3, 3}, 2, logprob, nullptr)
                .message(),
            "retrieval policy: the list of state 0 has document 3 twice; a list is drawn without "
            "replacement");
  EXPECT_EQ(draw_from_corpus(corpus.params(-1), keys, 1).status().message(),
            "retrieval policy: temperature must be a positive number, got -1");
  Corpus broken(20, 8, 1);
  broken.queries[2] = testing::kNan;
  EXPECT_EQ(draw_from_corpus(broken.params(0.1), keys, 2).status().message(),
            "retrieval policy: state 0 has scores that are not finite; are the query and the "
            "documents finite?");
}

}  // namespace
}  // namespace gradus::retriever
