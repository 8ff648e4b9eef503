// SPDX-License-Identifier: Apache-2.0
#include "retriever/policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/rng.h"
#include "kernels/sampling.h"

namespace gradus::retriever {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double log_add_exp(double a, double b) {
  const double larger = std::max(a, b);
  if (larger == -kInfinity) return larger;
  return larger + std::log1p(std::exp(std::min(a, b) - larger));
}

Status check_pool(std::span<const double> scores, double temperature) {
  if (!(temperature > 0 && temperature < kInfinity)) {
    return invalid_argument("retrieval policy: temperature must be a positive number, got {}",
                            temperature);
  }
  for (size_t j = 0; j < scores.size(); ++j) {
    if (!std::isfinite(scores[j])) {
      return invalid_argument(
          "retrieval policy: the score at place {} of the pool is {}; expected a finite number; "
          "leave documents without a score out of the pool",
          j, scores[j]);
    }
  }
  return {};
}

Status check_places(std::span<const int32_t> places, size_t pool_size) {
  std::vector<bool> is_listed(pool_size);
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] < 0 || static_cast<size_t>(places[i]) >= pool_size) {
      return invalid_argument(
          "retrieval policy: entry {} of the list is place {}, but the pool has {} documents; "
          "expected a place in [0, {})",
          i, places[i], pool_size, pool_size);
    }
    if (is_listed[places[i]]) {
      return invalid_argument(
          "retrieval policy: place {} is listed twice, the second time as entry {}; a list is "
          "drawn "
          "without replacement",
          places[i], i);
    }
    is_listed[places[i]] = true;
  }
  return {};
}

}  // namespace

Result<double> ranking_logprob(std::span<const double> scores_K, double temperature,
                               std::span<const int32_t> places, std::span<double> dscores_K) {
  GRADUS_RETURN_IF_ERROR(check_pool(scores_K, temperature));
  GRADUS_RETURN_IF_ERROR(check_places(places, scores_K.size()));
  GRADUS_CHECK(dscores_K.empty() || dscores_K.size() == scores_K.size(),
               "ranking_logprob: one derivative per score");
  const size_t k = places.size();
  std::vector<double> logits(scores_K.size());
  std::vector<bool> is_chosen(scores_K.size());
  for (size_t j = 0; j < logits.size(); ++j) logits[j] = scores_K[j] / temperature;
  for (const int32_t place : places) is_chosen[place] = true;

  // The tail: what was not chosen.
  double tail_max = -kInfinity, tail_sum = 0;
  for (size_t j = 0; j < logits.size(); ++j) {
    if (!is_chosen[j]) tail_max = std::max(tail_max, logits[j]);
  }
  for (size_t j = 0; j < logits.size(); ++j) {
    if (!is_chosen[j]) tail_sum += std::exp(logits[j] - tail_max);
  }
  const double tail = tail_sum == 0 ? -kInfinity : tail_max + std::log(tail_sum);

  std::vector<double> log_sums(k);  // L_i
  double log_sum = tail, logprob = 0;
  for (size_t i = k; i-- > 0;) {
    log_sum = log_add_exp(log_sum, logits[places[i]]);
    log_sums[i] = log_sum;
    logprob += logits[places[i]] - log_sum;
  }
  if (dscores_K.empty()) return logprob;

  double tail_mass = 0;  // sum over the steps of the probability of the whole tail
  for (const double sum : log_sums) tail_mass += std::exp(tail - sum);
  for (size_t j = 0; j < logits.size(); ++j) {
    if (!is_chosen[j]) dscores_K[j] = -std::exp(logits[j] - tail) * tail_mass / temperature;
  }
  for (size_t i = 0; i < k; ++i) {
    const double logit = logits[places[i]];
    double mass = 0;
    for (size_t step = 0; step <= i; ++step) mass += std::exp(logit - log_sums[step]);
    dscores_K[places[i]] = (1 - mass) / temperature;
  }
  return logprob;
}

Result<Ranking> draw_ranking(const DrawParams& params) {
  GRADUS_RETURN_IF_ERROR(check_pool(params.scores_K, params.temperature));
  GRADUS_CHECK(params.ids_K.size() == params.scores_K.size(), "draw_ranking: one id per score");
  if (params.k < 1) {
    return invalid_argument("retrieval policy: k must be at least 1, got {}", params.k);
  }
  const size_t pool_size = params.scores_K.size();
  const uint64_t seed = retrieval_noise_seed(params.seed);
  std::vector<double> keys(pool_size);
  for (size_t j = 0; j < pool_size; ++j) {
    const int64_t id = params.ids_K[j];
    if (id < 0 || id >= int64_t{1} << 32) {
      return invalid_argument(
          "retrieval policy: the id at place {} of the pool is {}; expected one in [0, 2^32)", j,
          id);
    }
    keys[j] = params.scores_K[j] / params.temperature;
    if (!params.greedy) keys[j] += kernels::gumbel_noise(seed, params.hop, id);
  }
  Ranking ranking;
  ranking.places.resize(pool_size);
  std::iota(ranking.places.begin(), ranking.places.end(), 0);
  const size_t k = std::min(pool_size, static_cast<size_t>(params.k));
  std::partial_sort(ranking.places.begin(), ranking.places.begin() + static_cast<int64_t>(k),
                    ranking.places.end(), [&](int32_t a, int32_t b) {
                      return keys[a] > keys[b] ||
                             (keys[a] == keys[b] && params.ids_K[a] < params.ids_K[b]);
                    });
  ranking.places.resize(k);
  const Result<double> logprob =
      ranking_logprob(params.scores_K, params.temperature, ranking.places);
  if (!logprob.ok()) return logprob.status();
  ranking.logprob = *logprob;
  return ranking;
}

double effective_documents(std::span<const double> scores_K, double temperature) {
  if (scores_K.empty()) return 0;
  const double max = *std::max_element(scores_K.begin(), scores_K.end()) / temperature;
  double sum = 0, weighted = 0;
  for (const double score : scores_K) {
    const double distance = score / temperature - max;
    sum += std::exp(distance);
    weighted += distance * std::exp(distance);
  }
  return std::exp(std::log(sum) - weighted / sum);
}

uint64_t retrieval_noise_seed(uint64_t seed) {
  constexpr uint64_t kRetrieval = 0x7265747269657665;  // "retrieve"
  return hash64({seed, kRetrieval});
}

}  // namespace gradus::retriever
