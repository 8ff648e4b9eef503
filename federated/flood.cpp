// SPDX-License-Identifier: Apache-2.0
#include "federated/flood.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "common/check.h"
#include "common/rng.h"

namespace gradus::federated {
namespace {

constexpr double kGenPower = 0.1;  // gamma and M of GEN (Liu et al. 2023, CVPR)
constexpr size_t kGenClasses = 10;

double log_sum_exp(std::span<const float> logits_C, double temperature) {
  const double largest = *std::max_element(logits_C.begin(), logits_C.end()) / temperature;
  double sum = 0;
  for (const float z : logits_C) sum += std::exp(z / temperature - largest);
  return largest + std::log(sum);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The lower-interpolated quantile: sorted[floor(q (B - 1))].
double quantile_of(std::span<const double> values, double q) {
  std::vector<double> sorted(values.begin(), values.end());
  const auto rank =
      static_cast<std::ptrdiff_t>(std::floor(q * static_cast<double>(sorted.size() - 1)));
  std::nth_element(sorted.begin(), sorted.begin() + rank, sorted.end());
  return sorted[static_cast<size_t>(rank)];
}

std::vector<bool> below_quantile(std::span<const double> scores, double q) {
  std::vector<bool> flags(scores.size(), false);
  if (scores.empty()) return flags;
  const double threshold = quantile_of(scores, q);
  for (size_t i = 0; i < scores.size(); ++i) flags[i] = scores[i] < threshold;
  return flags;
}

// Softmax of standardised scores, held in [-2, 2] deviations.
std::vector<double> score_softmax(double sharpness, std::span<const ClientReport> reports) {
  const double n = static_cast<double>(reports.size());
  double mean = 0, variance = 0, sum = 0;
  for (const ClientReport& report : reports) mean += *report.score / n;
  for (const ClientReport& report : reports) variance += std::pow(*report.score - mean, 2) / n;
  std::vector<double> shares;
  for (const ClientReport& report : reports) {
    const double z = variance > 0 ? (*report.score - mean) / std::sqrt(variance) : 0;
    shares.push_back(std::exp(sharpness * std::clamp(z, -2.0, 2.0)));
    sum += shares.back();
  }
  for (double& share : shares) share /= sum;
  return shares;
}

std::vector<double> proportional_scores(std::span<const ClientReport> reports) {
  double least = *reports.front().score, sum = 0;
  for (const ClientReport& report : reports) least = std::min(least, *report.score);
  const double shift = least > 0 ? 0 : -least;
  std::vector<double> shares;
  for (const ClientReport& report : reports) {
    shares.push_back(*report.score + shift);
    sum += shares.back();
  }
  for (double& share : shares)
    share = sum > 0 ? share / sum : 1 / static_cast<double>(shares.size());
  return shares;
}

// What is above `cap` goes to the others in proportion, until nobody is; cap * K >= 1.
void cap_shares(double cap, std::vector<double>& shares) {
  std::vector<bool> is_capped(shares.size(), false);
  for (size_t pass = 0; pass < shares.size(); ++pass) {
    double free_mass = 1, free_sum = 0;
    bool has_new = false;
    for (size_t k = 0; k < shares.size(); ++k) {
      has_new |= !is_capped[k] && shares[k] > cap;
      is_capped[k] = is_capped[k] || shares[k] > cap;
      if (is_capped[k]) free_mass -= cap;
      if (!is_capped[k]) free_sum += shares[k];
    }
    if (!has_new) return;
    for (size_t k = 0; k < shares.size(); ++k) {
      shares[k] = is_capped[k] ? cap : shares[k] * free_mass / free_sum;
    }
  }
}

}  // namespace

void FloodConfig::visit(FieldVisitor& v) {
  v.field("mode", mode, "The released code's rules, or weights of mean 1 and standardised scores.",
          one_of({"paper", "normalized"}));
  v.field("alpha", alpha,
          "Part of the scores in the weights of clients, against 1 of sample counts.",
          at_least(0).with_remedy("use 0 for sample counts alone"));
  v.field("flag", flag,
          "Samples of a batch that get the weight: low scores, none (server half alone), and the "
          "controls of a study: high scores, random ones, every one by the batch's mean weight.",
          one_of({"low", "none", "high", "random", "every"}));
  v.field("quantile", quantile, "Scores below this quantile of the batch are flagged.",
          in_closed(0, 1));
  v.field("schedule", schedule, "How the weight of flagged samples grows over the rounds.",
          one_of({"constant", "linear", "quadratic", "cosine", "sigmoid", "saturating"}));
  v.field("amplitude", amplitude, "Paper mode: the weight grows from 0 to twice this.",
          at_least(0));
  v.field("max_weight", max_weight, "Normalized mode: the weight grows from 1 to this.",
          at_least(1));
  v.field("ramp_rounds", ramp_rounds,
          "Rounds of growth; 0: half of the run in paper mode, all of it in normalized mode.",
          at_least(0));
  v.field("score", score, "Score of a sample, higher for what the model knows.",
          one_of({"energy", "msp", "max_logit", "gen"}));
  v.field("temperature", temperature, "Of the energy.", greater_than(0));
  v.field("sharpness", sharpness, "Normalized mode: inverse temperature of the softmax of scores.",
          at_least(0));
  v.field("max_share", max_share,
          "Normalized mode: largest weight of a client, in parts of the mean.", at_least(1));
}

double schedule_share(FloodSchedule schedule, int64_t s, int64_t ramp) {
  const double length = static_cast<double>(std::max<int64_t>(ramp, 1));
  const double now = std::min(static_cast<double>(std::max<int64_t>(s, 0)), length);
  const double u = now / length;
  switch (schedule) {
    case FloodSchedule::kConstant:
      return 1;
    case FloodSchedule::kLinear:
      return u;
    case FloodSchedule::kQuadratic:
      return u * u;
    case FloodSchedule::kCosine:
      return (1 - std::cos(std::numbers::pi * u)) / 2;
    case FloodSchedule::kSigmoid: {
      const double low = sigmoid(-5 * length), high = sigmoid(5 * length);
      return (sigmoid(10 * (now - length / 2)) - low) / (high - low);
    }
    case FloodSchedule::kSaturating:
      return (1 - std::exp(-5 * u)) / (1 - std::exp(-5.0));
  }
  GRADUS_CHECK(false, "unknown FLood schedule");
}

double flood_weight(const FloodConfig& config, int64_t round, int64_t num_rounds) {
  const bool is_paper = config.mode == FloodMode::kPaper;
  const int64_t whole = std::max<int64_t>(is_paper ? num_rounds / 2 : num_rounds, 1);
  const int64_t ramp = config.ramp_rounds > 0 ? config.ramp_rounds : whole;
  if (!is_paper) {
    return 1 + (config.max_weight - 1) * schedule_share(config.schedule, round, ramp);
  }
  if (round == 0) return 1;
  return 2 * config.amplitude * schedule_share(config.schedule, round - 1, ramp);
}

double ood_score(FloodScore score, double temperature, std::span<const float> logits_C) {
  switch (score) {
    case FloodScore::kEnergy:
      return temperature * log_sum_exp(logits_C, temperature);
    case FloodScore::kMaxLogit:
      return *std::max_element(logits_C.begin(), logits_C.end());
    case FloodScore::kMsp:
      return std::exp(*std::max_element(logits_C.begin(), logits_C.end()) -
                      log_sum_exp(logits_C, 1));
    case FloodScore::kGen: {
      const double log_sum = log_sum_exp(logits_C, 1);
      std::vector<double> p;
      for (const float z : logits_C) p.push_back(std::exp(z - log_sum));
      std::sort(p.begin(), p.end(), std::greater<>());
      double sum = 0;
      for (size_t i = 0; i < std::min(p.size(), kGenClasses); ++i) {
        sum += std::pow(p[i], kGenPower) * std::pow(1 - p[i], kGenPower);
      }
      return -sum;
    }
  }
  GRADUS_CHECK(false, "unknown FLood score");
}

std::vector<bool> flood_flags(const FloodConfig& config, std::span<const double> scores_B,
                              uint64_t seed) {
  switch (config.flag) {
    case FloodFlag::kLow:
      return below_quantile(scores_B, config.quantile);
    case FloodFlag::kNone:
    case FloodFlag::kEvery:
      return std::vector<bool>(scores_B.size(), false);
    case FloodFlag::kHigh: {
      std::vector<double> negated;
      for (const double score : scores_B) negated.push_back(-score);
      return below_quantile(negated, config.quantile);
    }
    case FloodFlag::kRandom: {
      std::vector<double> keys;
      RngSequence random(seed, RngStream::kShuffle);
      for (size_t i = 0; i < scores_B.size(); ++i) keys.push_back(random.uniform());
      return below_quantile(keys, config.quantile);
    }
  }
  GRADUS_CHECK(false, "unknown FLood flag");
}

std::vector<double> flood_sample_weights(const FloodTerms& terms, std::span<const double> scores_B,
                                         uint64_t seed) {
  const FloodConfig& config = terms.config;
  std::vector<double> weights(scores_B.size(), 1.0);
  if (!terms.is_on || weights.empty()) return weights;
  const double count = static_cast<double>(weights.size());
  if (config.flag == FloodFlag::kEvery) {
    if (config.mode == FloodMode::kNormalized) return weights;  // the mean is 1
    const std::vector<bool> flags = below_quantile(scores_B, config.quantile);
    const auto flagged = static_cast<double>(std::count(flags.begin(), flags.end(), true));
    std::fill(weights.begin(), weights.end(), (count - flagged + flagged * terms.weight) / count);
    return weights;
  }
  const std::vector<bool> flags = flood_flags(config, scores_B, seed);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (flags[i]) weights[i] = terms.weight;
  }
  if (config.mode == FloodMode::kNormalized) {
    const double mean = std::accumulate(weights.begin(), weights.end(), 0.0) / count;
    for (double& weight : weights) weight /= mean;
  }
  return weights;
}

std::vector<double> flood_shares(const FloodConfig& config, std::span<const ClientReport> reports_K,
                                 std::vector<double> shares_K) {
  if (config.alpha == 0 || reports_K.empty()) return shares_K;
  const std::vector<double> scores = config.mode == FloodMode::kPaper
                                         ? proportional_scores(reports_K)
                                         : score_softmax(config.sharpness, reports_K);
  double sum = 0;
  for (size_t k = 0; k < shares_K.size(); ++k) {
    shares_K[k] = (shares_K[k] + config.alpha * scores[k]) / (1 + config.alpha);
    sum += shares_K[k];
  }
  for (double& share : shares_K) share /= sum;
  if (config.mode == FloodMode::kNormalized) {
    cap_shares(config.max_share / static_cast<double>(shares_K.size()), shares_K);
  }
  return shares_K;
}

}  // namespace gradus::federated
