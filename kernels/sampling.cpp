// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "common/check.h"
#include "common/rng.h"
#include "kernels/internal/sampling_kernels.h"
#include "kernels/internal/workspace.h"
#include "kernels/isa.h"
#include "kernels/logprob.h"

namespace gradus::kernels {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Up to this many kept tokens, noise is drawn for each alone; above, the walk over the row, which
// draws 32 at a time, is faster.
constexpr int64_t kFewTokens = 256;

const SamplingKernels& sampling_kernels() {
  return isa() == Isa::kAvx512 ? avx512::sampling_kernels() : avx2::sampling_kernels();
}

// 2 atanh(s) for |s| <= 0.172 (= (sqrt 2 - 1) / (sqrt 2 + 1)): the odd series to s^21, whose rest
// is below 2^-55 of it. Written out with fma, so every machine gives the same bits; libm does not.
double twice_atanh(double s) {
  const double s2 = s * s;
  double p = 1.0 / 21;
  for (int n = 19; n >= 3; n -= 2) p = std::fma(p, s2, 1.0 / n);
  return 2 * std::fma(p * s2, s, s);
}

// ln x of a positive normal number.
double natural_log(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1022;
  double m = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull);
  if (m < 0.70710678118654752) {
    m += m;
    exponent -= 1;
  }
  // ln 2 in two parts, the first with trailing zeros, so that its multiples are exact.
  constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  const double series = twice_atanh((m - 1) / (m + 1));
  const double e = exponent;
  return std::fma(e, kLn2High, std::fma(e, kLn2Low, series));
}

// -ln(1 - u) for u in (0, 1); for small u without forming 1 - u, which would drop u's digits.
double exponential(double u) { return u < 0.25 ? twice_atanh(u / (2 - u)) : -natural_log(1 - u); }

// Where a token's noise stands in the stream: see SamplingParams.
std::array<uint32_t, 4> noise_counter(int64_t id, uint32_t position, uint32_t version) {
  const uint32_t v = static_cast<uint32_t>(id);
  constexpr uint32_t kSampleAndStream = static_cast<uint32_t>(RngStream::kSampling) << 24;
  return {(v >> 7) << 5 | (v >> 4 & 3) << 3 | (v & 7), position, kSampleAndStream, version};
}
uint32_t noise_word(int64_t id) {
  const uint32_t v = static_cast<uint32_t>(id);
  return 2 * (v >> 6 & 1) + (v >> 3 & 1);
}

uint32_t noise_draw(uint64_t seed, uint32_t position, int64_t id) {
  return philox4x32_10(seed, noise_counter(id, position, kSamplingVersion))[noise_word(id)];
}

// g for the draw r of this token.
double gumbel(uint64_t seed, uint32_t position, int64_t id, uint32_t r) {
  double u = (r + 0.5) * 0x1p-32;
  if (r < kRefineBelow) {
    const uint32_t low =
        philox4x32_10(seed, noise_counter(id, position, kSamplingVersion + 1))[noise_word(id)];
    u = (r * 0x1p32 + low + 0.5) * 0x1p-64;
  }
  return -natural_log(exponential(u));
}

// The order of the filters as one number: x descending, then id ascending.
uint64_t order_key(float x, int32_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);  // -0 and 0 are equal
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | static_cast<uint32_t>(id);
}

struct Candidate {
  uint64_t key;  // order_key
  uint64_t
      mass;  // exp(x - max) in units of 2^-40: integer sums do not depend on the order of adding
  float x;
  int32_t id;
};
constexpr double kMassUnits = 0x1p40;

uint64_t total_mass(const Candidate* begin, const Candidate* end) {
  uint64_t sum = 0;
  for (const Candidate* c = begin; c != end; ++c) sum += c->mass;
  return sum;
}

bool in_order(const Candidate& a, const Candidate& b) { return a.key < b.key; }

// What the filters left: a prefix of the order, ending with the key `last`.
struct Kept {
  Candidate* tokens = nullptr;  // in scratch memory, in no order
  int64_t count = 0;
  uint64_t last = std::numeric_limits<uint64_t>::max();
  float lowest_x = 0;
};

class Filter {
 public:
  Filter(const SamplingParams& params, float max, double sum)
      : params_(params), kernels_(sampling_kernels()), max_(max), sum_(sum) {
    const size_t v = static_cast<size_t>(params.v);
    candidates_ = workspace<Candidate>(Slot::kLocal, v + v / 2 + 1);
    x_ = reinterpret_cast<float*>(candidates_ + v);
    e_ = x_ + v;
    ids_ = reinterpret_cast<int32_t*>(e_ + v);
  }

  Kept run() {
    const bool has_top_k = params_.top_k > 0 && params_.top_k < params_.v;
    if (has_top_k) {
      collect(top_k_bound());
      keep_first(params_.top_k);
      if (params_.top_p < 1) keep_mass(total_mass(candidates_, candidates_ + count_));
    } else if (params_.top_p < 1) {
      const uint64_t all = static_cast<uint64_t>(sum_ * kMassUnits);
      // Mostly a few tokens hold p of the mass, so look near the maximum first.
      for (const double distance : {5.0, 9.0, 14.0, kInfinity}) {
        collect(max_ - distance);
        if (total_mass(candidates_, candidates_ + count_) >= mass_wanted(all)) break;
      }
      keep_mass(all);
    } else {
      collect(max_ + natural_log(params_.min_p));
    }
    if (params_.min_p > 0) keep_likely();
    return kept();
  }

 private:
  // All tokens with x >= lowest_x, and no others.
  void collect(double lowest_x) {
    // Slightly below, since x is rounded.
    const double logit = lowest_x * params_.temperature;
    const double slack = std::abs(logit) * 0x1p-20 + 1e-37;
    const float lowest = std::isfinite(logit) ? static_cast<float>(logit - slack)
                                              : std::numeric_limits<float>::lowest();
    const int64_t found = kernels_.collect(params_.logits_V, params_.v, lowest, ids_);
    kernels_.weigh(params_.logits_V, ids_, found, params_.temperature, max_, x_, e_);
    count_ = 0;
    for (int64_t i = 0; i < found; ++i) {
      if (x_[i] < lowest_x) continue;
      candidates_[count_++] = {order_key(x_[i], ids_[i]),
                               static_cast<uint64_t>(double{e_[i]} * kMassUnits), x_[i], ids_[i]};
    }
  }

  // A value of x that at least top_k tokens reach, and not many more: the k-th largest of 4 k or so
  // group maxima. -inf where that would not save work.
  double top_k_bound() const {
    const int64_t chunks_wanted = (4 * params_.top_k + 15) / 16 + 3;
    const int64_t chunk = params_.v / chunks_wanted / 16 * 16;
    if (chunk < 64) return -kInfinity;
    const int64_t num_groups = (params_.v + chunk - 1) / chunk * 16;
    float* maxima = x_;  // free until collect()
    kernels_.group_maxima(params_.logits_V, params_.v, chunk, maxima);
    std::nth_element(maxima, maxima + (params_.top_k - 1), maxima + num_groups,
                     std::greater<float>());
    return maxima[params_.top_k - 1] / params_.temperature;
  }

  void keep_first(int64_t k) {
    if (count_ <= k) return;
    std::nth_element(candidates_, candidates_ + k, candidates_ + count_, in_order);
    count_ = k;
  }

  uint64_t mass_wanted(uint64_t all) const {
    return static_cast<uint64_t>(params_.top_p * static_cast<double>(all));
  }

  // The shortest prefix whose mass reaches top_p of `all`: halves of [begin, end) are split off in
  // order until the crossing stands in a short range, which is sorted.
  void keep_mass(uint64_t all) {
    const uint64_t wanted = mass_wanted(all);
    uint64_t before = 0;
    Candidate *begin = candidates_, *end = candidates_ + count_;
    while (end - begin > 16) {
      Candidate* middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, in_order);
      const uint64_t half = total_mass(begin, middle);
      if (before + half >= wanted) {
        end = middle;
      } else {
        before += half;
        begin = middle;
      }
    }
    std::sort(begin, end, in_order);
    while (begin < end) {
      before += begin++->mass;
      if (before >= wanted) break;
    }
    count_ = begin - candidates_;
  }

  void keep_likely() {
    const double lowest = max_ + natural_log(params_.min_p);
    Candidate* end = std::partition(candidates_, candidates_ + count_, [&](const Candidate& c) {
      return c.x >= lowest || c.x == max_;
    });
    count_ = end - candidates_;
  }

  Kept kept() const {
    const Candidate* last = std::max_element(candidates_, candidates_ + count_, in_order);
    return {candidates_, count_, last->key, last->x};
  }

  const SamplingParams& params_;
  const SamplingKernels& kernels_;
  float max_;
  double sum_;
  Candidate* candidates_;
  float *x_, *e_;
  int32_t* ids_;
  int64_t count_ = 0;
};

// A bound below this cannot belong to a score of at least `score`: rounding in the bound is a few
// 2^-23 of its terms.
float bound_below(double score) {
  return static_cast<float>(score - (std::abs(score) + 64) * 0x1p-18);
}

// The best score so far and its token.
struct Winner {
  const SamplingParams& params;
  uint64_t last_key;  // tokens after it in the order are filtered out
  double score = -kInfinity;
  int64_t id = -1;

  float threshold() const {
    return id < 0 ? std::numeric_limits<float>::lowest() : bound_below(score);
  }
  void offer(int64_t token, uint32_t draw) {
    const float x = params.logits_V[token] / params.temperature;
    if (order_key(x, static_cast<int32_t>(token)) > last_key) return;
    const double candidate = x + gumbel(params.seed, params.position, token, draw);
    if (candidate > score || (candidate == score && token < id)) {
      score = candidate;
      id = token;
    }
  }
  void offer(int64_t token) { offer(token, noise_draw(params.seed, params.position, token)); }
};

int64_t draw_token(const SamplingParams& params, int64_t likeliest, const Kept* kept) {
  Winner winner{.params = params,
                .last_key = kept == nullptr ? std::numeric_limits<uint64_t>::max() : kept->last};
  if (kept != nullptr && kept->count <= kFewTokens) {
    for (int64_t i = 0; i < kept->count; ++i) winner.offer(kept->tokens[i].id);
    return winner.id;
  }
  winner.offer(likeliest);  // a high threshold from the start
  float lowest_logit = std::numeric_limits<float>::lowest();
  if (kept != nullptr) {
    const double logit = double{kept->lowest_x} * params.temperature;
    lowest_logit = static_cast<float>(logit - std::abs(logit) * 0x1p-20 - 1e-37);
  }
  sampling_kernels().scan_noise({.logits_V = params.logits_V,
                                 .v = params.v,
                                 .inverse_temperature = 1 / params.temperature,
                                 .lowest_logit = lowest_logit,
                                 .seed = params.seed,
                                 .position = params.position,
                                 .threshold = winner.threshold(),
                                 .offer =
                                     [](void* state, int64_t id, uint32_t draw) {
                                       Winner& best = *static_cast<Winner*>(state);
                                       best.offer(id, draw);
                                       return best.threshold();
                                     },
                                 .state = &winner});
  return winner.id;
}

// The list of gumbel_top_k.
struct TopScores {
  const GumbelTopKParams& params;
  NoisyScore* best;
  int64_t count;

  float threshold() const {
    return count < params.k ? std::numeric_limits<float>::lowest()
                            : bound_below(best[count - 1].score);
  }
  void offer(int64_t place, uint32_t draw) {
    const float z = params.logits_V[place];
    if (!(z > -std::numeric_limits<float>::infinity())) return;
    const int64_t id = params.first_id + place;
    const NoisyScore scored{z / params.temperature + gumbel(params.seed, params.position, id, draw),
                            id};
    const auto comes_before = [](const NoisyScore& a, const NoisyScore& b) {
      return a.score > b.score || (a.score == b.score && a.id < b.id);
    };
    NoisyScore* const end = best + count;
    NoisyScore* const at = std::lower_bound(best, end, scored, comes_before);
    if (at - best == params.k) return;
    if (count < params.k) ++count;
    std::move_backward(at, best + count - 1, best + count);
    *at = scored;
  }
};

Status check(const SamplingParams& params) {
  if (params.v < 1 || params.v > int64_t{1} << 23) {
    return invalid_argument("sampling: v must be in [1, 2^23], got {}", params.v);
  }
  if (params.greedy) return {};
  if (!(params.temperature >= 1e-4f && params.temperature <= 1e4f)) {
    return invalid_argument(
        "sampling: temperature must be in [0.0001, 10000], got {}; use greedy for the argmax",
        params.temperature);
  }
  if (params.top_k < 0) {
    return invalid_argument("sampling: top_k must be at least 0, got {}; 0 turns it off",
                            params.top_k);
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return invalid_argument("sampling: top_p must be in (0, 1], got {}; 1 turns it off",
                            params.top_p);
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return invalid_argument("sampling: min_p must be in [0, 1], got {}; 0 turns it off",
                            params.min_p);
  }
  return {};
}

Status check_logits(const SamplingParams& params, const LogitScan& scan, float temperature) {
  if (scan.has_nan) {
    int64_t id = 0;
    while (!std::isnan(params.logits_V[id])) ++id;
    return {
        StatusCode::kDataLoss,
        fmt::format("sampling: the logit of token {} is nan; expected finite values or -inf; are "
                    "the weights finite?",
                    id)};
  }
  if (!std::isfinite(scan.max / temperature)) {
    return {
        StatusCode::kDataLoss,
        fmt::format("sampling: the largest of {} logits is {}; expected a finite value; are the "
                    "weights finite?",
                    params.v, scan.max)};
  }
  return {};
}

}  // namespace

double gumbel_noise(uint64_t seed, uint32_t position, int64_t id) {
  return gumbel(seed, position, id, noise_draw(seed, position, id));
}

int64_t gumbel_top_k(const GumbelTopKParams& params, NoisyScore* best_K, int64_t count) {
  GRADUS_CHECK(params.k >= 1 && count >= 0 && count <= params.k, "gumbel_top_k: list sizes");
  GRADUS_CHECK(params.first_id >= 0 && params.first_id % 128 == 0 &&
                   params.first_id + params.v <= int64_t{1} << 32,
               "gumbel_top_k: ids");
  TopScores top{params, best_K, count};
  sampling_kernels().scan_noise({.logits_V = params.logits_V,
                                 .v = params.v,
                                 .first_id = params.first_id,
                                 .inverse_temperature = static_cast<float>(1 / params.temperature),
                                 .lowest_logit = std::numeric_limits<float>::lowest(),
                                 .seed = params.seed,
                                 .position = params.position,
                                 .threshold = top.threshold(),
                                 .offer =
                                     [](void* state, int64_t place, uint32_t draw) {
                                       TopScores& scores = *static_cast<TopScores*>(state);
                                       scores.offer(place, draw);
                                       return scores.threshold();
                                     },
                                 .state = &top});
  return top.count;
}

Result<SampledToken> sample_token(const SamplingParams& params) {
  GRADUS_RETURN_IF_ERROR(check(params));
  const LogitScan scan = sampling_kernels().scan(params.logits_V, params.v);
  const float temperature = params.greedy ? 1.0f : params.temperature;
  GRADUS_RETURN_IF_ERROR(check_logits(params, scan, temperature));
  const LogitStats stats = logit_stats(params.logits_V, params.v, temperature);
  const auto logprob = [&](int64_t id) {
    return token_logprob(stats, params.logits_V[id], temperature);
  };
  if (params.greedy) {
    return SampledToken{.token = static_cast<int32_t>(scan.argmax),
                        .logprob = logprob(scan.argmax)};
  }
  const bool filters =
      (params.top_k > 0 && params.top_k < params.v) || params.top_p < 1 || params.min_p > 0;
  if (!filters) {
    const int64_t id = draw_token(params, scan.argmax, nullptr);
    return SampledToken{
        .token = static_cast<int32_t>(id), .logprob = logprob(id), .sampling_logprob = logprob(id)};
  }
  const Kept kept = Filter(params, stats.max, double{stats.sum}).run();
  const int64_t id = draw_token(params, scan.argmax, &kept);
  const double distance = double{params.logits_V[id] / temperature} - double{stats.max};
  const double kept_sum =
      static_cast<double>(total_mass(kept.tokens, kept.tokens + kept.count)) / kMassUnits;
  return SampledToken{.token = static_cast<int32_t>(id),
                      .logprob = logprob(id),
                      .sampling_logprob = static_cast<float>(distance - natural_log(kept_sum))};
}

}  // namespace gradus::kernels
