// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/robust.h"

#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "common/check.h"
#include "common/parallel.h"

namespace gradus::federated::internal {
namespace {

constexpr int64_t kTile = 1024;  // coordinates at a time: 4 KB an update
constexpr int64_t kGroups = 16;  // of tiles, each with sums of its own
constexpr size_t kLanes = 16;

// |a - b|^2 of a tile in lanes of float: 64 terms a lane.
float tile_distance(const float* a, const float* b, int64_t count) {
  float sums[kLanes] = {};
  int64_t j = 0;
  for (; j + static_cast<int64_t>(kLanes) <= count; j += static_cast<int64_t>(kLanes)) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float d = a[j + static_cast<int64_t>(lane)] - b[j + static_cast<int64_t>(lane)];
      sums[lane] += d * d;
    }
  }
  for (size_t lane = 0; j < count; ++j, ++lane) sums[lane] += (a[j] - b[j]) * (a[j] - b[j]);
  float sum = 0;
  for (const float lane : sums) sum += lane;
  return sum;
}

// Runs `body(group, begin, end)` on fixed groups of coordinates.
void for_groups(int64_t num_parameters,
                const std::function<void(int64_t group, int64_t begin, int64_t end)>& body) {
  const int64_t tiles = (num_parameters + kTile - 1) / kTile;
  const int64_t per_group = std::max<int64_t>((tiles + kGroups - 1) / kGroups, 1) * kTile;
  parallel_for(kGroups, 1, [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
      const int64_t begin = std::min(g * per_group, num_parameters);
      body(g, begin, std::min(begin + per_group, num_parameters));
    }
  });
}

using Comparators = std::vector<std::pair<size_t, size_t>>;

// Batcher's odd-even merge sort of `count` rows: pairs of rows to be put in order. Comparators that
// reach beyond the end would meet +infinity there, and do nothing.
Comparators sorting_network(size_t count) {
  Comparators pairs;
  for (size_t p = 1; p < count; p *= 2) {
    for (size_t k = p; k >= 1; k /= 2) {
      for (size_t j = k % p; j + k < count; j += 2 * k) {
        for (size_t i = 0; i < k && i + j + k < count; ++i) {
          if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) pairs.emplace_back(i + j, i + j + k);
        }
      }
    }
  }
  return pairs;
}

// Sorts the rows of [count, kColumns], every column by itself. By hand: g++ 12 makes branches of
// the plain loop, which took ten times as long on 100 updates.
void sort_columns(const Comparators& pairs, float* rows) {
  for (const auto& [low, high] : pairs) {
    for (size_t lane = 0; lane < kColumns; lane += 8) {
      float* a = rows + low * kColumns + lane;
      float* b = rows + high * kColumns + lane;
      const __m256 x = _mm256_loadu_ps(a), y = _mm256_loadu_ps(b);
      // Of equals each gets one, 0 and -0 as well.
      _mm256_storeu_ps(a, _mm256_min_ps(x, y));
      _mm256_storeu_ps(b, _mm256_max_ps(y, x));
    }
  }
}

}  // namespace

std::vector<double> squared_distances(const Updates& updates) {
  const size_t k = updates.values_K.size();
  const size_t pairs = k * (k - 1) / 2;
  std::vector<std::vector<double>> group_sums(kGroups, std::vector<double>(pairs, 0.0));
  for_groups(updates.num_parameters, [&](int64_t group, int64_t begin, int64_t end) {
    std::vector<double>& sums = group_sums[static_cast<size_t>(group)];
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t count = std::min(kTile, end - at);
      size_t pair = 0;
      for (size_t i = 0; i < k; ++i) {
        for (size_t j = i + 1; j < k; ++j) {
          const float tile =
              tile_distance(updates.values_K[i] + at, updates.values_K[j] + at, count);
          sums[pair++] += static_cast<double>(tile);
        }
      }
    }
  });
  std::vector<double> distances(k * k, 0.0);
  size_t pair = 0;
  for (size_t i = 0; i < k; ++i) {
    for (size_t j = i + 1; j < k; ++j, ++pair) {
      double sum = 0;
      for (const std::vector<double>& sums : group_sums) sum += sums[pair];
      distances[i * k + j] = distances[j * k + i] = sum;
    }
  }
  return distances;
}

std::vector<double> krum_scores(std::span<const double> distances_KK, size_t num_updates,
                                std::span<const size_t> members, int64_t num_byzantine) {
  const int64_t nearest =
      std::max<int64_t>(static_cast<int64_t>(members.size()) - num_byzantine - 2, 0);
  std::vector<double> scores;
  for (const size_t i : members) {
    std::vector<double> others;
    for (const size_t j : members) {
      if (i != j) others.push_back(distances_KK[i * num_updates + j]);
    }
    std::sort(others.begin(), others.end());
    double score = 0;
    for (int64_t n = 0; n < nearest; ++n) score += others[static_cast<size_t>(n)];
    scores.push_back(score);
  }
  return scores;
}

void for_sorted_columns(const Updates& updates, std::span<const size_t> members,
                        const std::function<void(int64_t, const float*)>& use) {
  constexpr auto kWidth = static_cast<int64_t>(kColumns);
  const int64_t blocks = (updates.num_parameters + kWidth - 1) / kWidth;
  const Comparators network = sorting_network(members.size());
  parallel_for(blocks, 64, [&](int64_t first, int64_t last) {
    std::vector<float> rows(members.size() * kColumns, 0.0f);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kWidth;
      const int64_t count = std::min(kWidth, updates.num_parameters - begin);
      for (size_t i = 0; i < members.size(); ++i) {
        std::copy_n(updates.values_K[members[i]] + begin, count, rows.data() + i * kColumns);
      }
      sort_columns(network, rows.data());
      use(begin, rows.data());
    }
  });
}

void weighted_mean(const Updates& updates, std::span<const double> weights_K,
                   std::span<double> delta_P) {
  for_groups(updates.num_parameters, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t stop = std::min(at + kTile, end);
      for (int64_t j = at; j < stop; ++j) delta_P[static_cast<size_t>(j)] = 0;
      for (size_t k = 0; k < weights_K.size(); ++k) {
        if (weights_K[k] == 0) continue;
        const float* values = updates.values_K[k];
        for (int64_t j = at; j < stop; ++j) {
          delta_P[static_cast<size_t>(j)] += weights_K[k] * static_cast<double>(values[j]);
        }
      }
    }
  });
}

std::vector<double> squared_distances_to(const Updates& updates, std::span<const double> center_P) {
  const size_t k = updates.values_K.size();
  std::vector<std::vector<double>> group_sums(kGroups, std::vector<double>(k, 0.0));
  for_groups(updates.num_parameters, [&](int64_t group, int64_t begin, int64_t end) {
    for (size_t i = 0; i < k; ++i) {
      double lanes[kLanes] = {};
      const float* values = updates.values_K[i];
      int64_t j = begin;
      for (; j + static_cast<int64_t>(kLanes) <= end; j += static_cast<int64_t>(kLanes)) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
          const auto at = static_cast<size_t>(j) + lane;
          const double d = static_cast<double>(values[at]) - center_P[at];
          lanes[lane] += d * d;
        }
      }
      for (size_t lane = 0; j < end; ++j, ++lane) {
        const double d = static_cast<double>(values[j]) - center_P[static_cast<size_t>(j)];
        lanes[lane] += d * d;
      }
      for (const double lane : lanes) group_sums[static_cast<size_t>(group)][i] += lane;
    }
  });
  std::vector<double> distances(k, 0.0);
  for (const std::vector<double>& sums : group_sums) {
    for (size_t i = 0; i < k; ++i) distances[i] += sums[i];
  }
  return distances;
}

}  // namespace gradus::federated::internal
