// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/rng.h"
#include "kernels/internal/sampling_kernels.h"
#include "kernels/internal/sampling_ref.h"

namespace gradus::kernels {

double gumbel_ref(uint64_t seed, uint32_t position, int64_t id) {
  const uint32_t v = static_cast<uint32_t>(id);
  const uint32_t bit3 = v >> 3 & 1, bit6 = v >> 6 & 1;
  const uint32_t word = (v >> 7) << 5 | (v >> 4 & 3) << 3 | (v & 7);
  std::array<uint32_t, 4> counter = {word, position, 0, kSamplingVersion};
  const uint32_t r = philox4x32_10(seed, counter)[2 * bit6 + bit3];
  double u = (r + 0.5) * 0x1p-32;
  if (r < kRefineBelow) {
    counter[3] += 1;
    const uint32_t r2 = philox4x32_10(seed, counter)[2 * bit6 + bit3];
    u = (r * 0x1p32 + r2 + 0.5) * 0x1p-64;
  }
  return -std::log(-std::log1p(-u));
}

SampleRef sample_token_ref(const SamplingParams& params) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double t = params.greedy ? 1.0 : double{params.temperature};
  std::vector<double> x(static_cast<size_t>(params.v));
  for (int64_t i = 0; i < params.v; ++i) x[i] = params.logits_V[i] / t;
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double value : x) sum += std::exp(value - max);

  SampleRef result;
  result.filter_gap = infinity;
  for (int32_t i = 0; i < params.v; ++i) {
    if (std::isfinite(x[i])) result.kept.push_back(i);
  }
  std::vector<int32_t>& kept = result.kept;
  std::sort(kept.begin(), kept.end(),
            [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  if (params.greedy) kept.resize(1);
  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(kept.size())) {
    const double below = x[kept[params.top_k]];
    kept.resize(static_cast<size_t>(params.top_k));
    result.filter_gap = std::min(result.filter_gap, x[kept.back()] - below);
  }
  if (params.top_p < 1 && !params.greedy) {
    double total = 0, reached = 0;
    for (const int32_t i : kept) total += std::exp(x[i] - max);
    size_t count = 0;
    while (count < kept.size() && (count == 0 || reached < params.top_p * total)) {
      result.filter_gap =
          std::min(result.filter_gap, std::abs(reached / total - params.top_p) + (count == 0));
      reached += std::exp(x[kept[count++]] - max);
    }
    result.filter_gap = std::min(result.filter_gap, std::abs(reached / total - params.top_p));
    if (count < kept.size()) {
      result.filter_gap = std::min(result.filter_gap, x[kept[count - 1]] - x[kept[count]]);
    }
    kept.resize(count);
  }
  if (params.min_p > 0 && !params.greedy) {
    const double lowest = max + std::log(params.min_p);
    for (const int32_t i : kept) {
      result.filter_gap = std::min(result.filter_gap, std::abs(x[i] - lowest) + (x[i] == max));
    }
    std::erase_if(kept, [&](int32_t i) { return x[i] != max && x[i] < lowest; });
  }

  double best = -infinity, second = -infinity, kept_sum = 0;
  for (const int32_t i : kept) {
    kept_sum += std::exp(x[i] - max);
    const double score = params.greedy ? x[i] : x[i] + gumbel_ref(params.seed, params.position, i);
    if (score > best || (score == best && i < result.token)) {
      second = best;
      best = score;
      result.token = i;
    } else {
      second = std::max(second, score);
    }
  }
  result.score_gap = best - second;
  result.logprob = x[result.token] - max - std::log(sum);
  result.sampling_logprob = x[result.token] - max - std::log(kept_sum);
  return result;
}

}  // namespace gradus::kernels
