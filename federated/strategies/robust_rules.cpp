// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "federated/internal/robust.h"
#include "federated/internal/strategies.h"

// Rules that a minority of arbitrary updates cannot carry away.
namespace gradus::federated::internal {
namespace {

// Coordinates from which the weights of a rule by coordinate are told.
constexpr int64_t kWeighedCoordinates = 1024;

std::vector<size_t> all_members(size_t count) {
  std::vector<size_t> members(count);
  std::iota(members.begin(), members.end(), size_t{0});
  return members;
}

// A rule by coordinate over the sorted values: `window(sorted column)` says which run of ranks
// [begin, end) is averaged. The mean over the run's values is the update.
using Window = std::function<std::pair<size_t, size_t>(std::span<const float> sorted)>;

void combine_by_coordinate(const Updates& updates, std::span<const size_t> members,
                           const Window& window, std::span<double> weights,
                           std::span<double> delta) {
  const size_t count = members.size();
  for_sorted_columns(updates, members, [&](int64_t first, const float* rows) {
    std::vector<float> column(count);
    const int64_t last =
        std::min<int64_t>(first + static_cast<int64_t>(kColumns), updates.num_parameters);
    for (int64_t j = first; j < last; ++j) {
      for (size_t i = 0; i < count; ++i) {
        column[i] = rows[i * kColumns + static_cast<size_t>(j - first)];
      }
      const auto [begin, end] = window(column);
      double sum = 0;
      for (size_t i = begin; i < end; ++i) sum += static_cast<double>(column[i]);
      delta[static_cast<size_t>(j)] = sum / static_cast<double>(end - begin);
    }
  });
  // Who was in the run: by a sort that remembers, on the first coordinates.
  std::fill(weights.begin(), weights.end(), 0.0);
  const int64_t looked_at = std::min(updates.num_parameters, kWeighedCoordinates);
  std::vector<size_t> order(count);
  std::vector<float> column(count);
  for (int64_t j = 0; j < looked_at; ++j) {
    std::copy(members.begin(), members.end(), order.begin());
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return updates.values_K[a][j] < updates.values_K[b][j];
    });
    for (size_t i = 0; i < count; ++i) column[i] = updates.values_K[order[i]][j];
    const auto [begin, end] = window(column);
    for (size_t i = begin; i < end; ++i) {
      weights[order[i]] += 1 / static_cast<double>(end - begin) / static_cast<double>(looked_at);
    }
  }
}

class RobustRule : public Aggregator {
 public:
  using Aggregator::Aggregator;
  bool needs_all_updates() const override { return true; }
};

// Yin et al. 2018, arXiv:1803.01498, Definition 1; of an even number the mean of the middle two.
class Median final : public RobustRule {
 public:
  using RobustRule::RobustRule;
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    const auto window = [](std::span<const float> sorted) {
      return std::pair((sorted.size() - 1) / 2, sorted.size() / 2 + 1);
    };
    combine_by_coordinate(updates, all_members(updates.values_K.size()), window, weights, delta);
  }
};

// Yin et al. 2018, Definition 2: floor(trim_fraction K) values are left out at either end.
class TrimmedMean final : public RobustRule {
 public:
  using RobustRule::RobustRule;
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    const auto window = [&](std::span<const float> sorted) {
      // A fraction such as 0.2 is a little off in binary: 0.2 * 5 must be 1.
      const double exact = config().trim_fraction * static_cast<double>(sorted.size());
      const auto cut = static_cast<size_t>(std::floor(exact + 1e-9));
      return std::pair(cut, sorted.size() - cut);
    };
    combine_by_coordinate(updates, all_members(updates.values_K.size()), window, weights, delta);
  }
};

// Blanchard et al. 2017, arXiv:1703.02757: the update of least score; of equals the first client's.
class Krum : public RobustRule {
 public:
  using RobustRule::RobustRule;
  int64_t min_updates() const override {
    return config().num_byzantine > 0 ? 2 * config().num_byzantine + 3 : 1;
  }
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    const size_t count = updates.values_K.size();
    const std::vector<size_t> members = all_members(count);
    const std::vector<double> scores =
        krum_scores(squared_distances(updates), count, members, config().num_byzantine);
    std::vector<size_t> order = members;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return scores[a] < scores[b]; });
    order.resize(std::min(num_chosen(count), count));
    // Among the chosen, by their shares.
    double sum = 0;
    for (const size_t k : order) sum += weights[k];
    std::vector<double> chosen(count, 0.0);
    for (const size_t k : order) chosen[k] = weights[k] / sum;
    std::copy(chosen.begin(), chosen.end(), weights.begin());
    weighted_mean(updates, weights, delta);
  }

 protected:
  virtual size_t num_chosen(size_t /*count*/) const { return 1; }
};

// The same paper, Section 5: the mean of the num_selected updates of least score.
class MultiKrum final : public Krum {
 public:
  using Krum::Krum;

 protected:
  size_t num_chosen(size_t count) const override {
    if (config().num_selected > 0) return static_cast<size_t>(config().num_selected);
    const auto bad = static_cast<size_t>(config().num_byzantine);
    return count > bad ? count - bad : 1;
  }
};

// El Mhamdi et al. 2018, arXiv:1802.07927, Algorithm 1: theta = K - 2f updates by repeated Krum,
// then by coordinate the mean of the theta - 2f values nearest to their median.
class Bulyan final : public RobustRule {
 public:
  using RobustRule::RobustRule;
  int64_t min_updates() const override {
    return config().num_byzantine > 0 ? 4 * config().num_byzantine + 3 : 1;
  }
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    const size_t count = updates.values_K.size();
    const auto bad = static_cast<size_t>(config().num_byzantine);
    const std::vector<double> distances = squared_distances(updates);
    std::vector<size_t> left = all_members(count), selected;
    while (selected.size() < count - 2 * bad) {
      const std::vector<double> scores =
          krum_scores(distances, count, left, config().num_byzantine);
      const auto best = std::min_element(scores.begin(), scores.end()) - scores.begin();
      selected.push_back(left[static_cast<size_t>(best)]);
      left.erase(left.begin() + best);
    }
    std::sort(selected.begin(), selected.end());
    const size_t kept = selected.size() - 2 * bad;
    const auto window = [kept](std::span<const float> sorted) {
      const size_t n = sorted.size();
      const double median =
          (static_cast<double>(sorted[(n - 1) / 2]) + static_cast<double>(sorted[n / 2])) / 2;
      size_t best = 0;
      double least = 0;
      for (size_t i = 0; i + kept <= n; ++i) {
        const double farthest = std::max(median - static_cast<double>(sorted[i]),
                                         static_cast<double>(sorted[i + kept - 1]) - median);
        if (i == 0 || farthest < least) {
          least = farthest;
          best = i;
        }
      }
      return std::pair(best, best + kept);
    };
    combine_by_coordinate(updates, selected, window, weights, delta);
  }
};

// Smoothed Weiszfeld steps to the point of least weighted distance, RFA, Pillutla et al. 2022,
// arXiv:1912.13445, Algorithm 2; begins at the weighted mean.
class GeometricMedian final : public RobustRule {
 public:
  using RobustRule::RobustRule;
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    constexpr double kSmoothing = 1e-6, kTolerance = 1e-10;
    const std::vector<double> shares(weights.begin(), weights.end());
    weighted_mean(updates, weights, delta);
    double before = -1;
    for (int64_t i = 0; i < config().num_iterations; ++i) {
      const std::vector<double> squares = squared_distances_to(updates, delta);
      double objective = 0, sum = 0;
      for (size_t k = 0; k < weights.size(); ++k) {
        const double distance = std::sqrt(squares[k]);
        objective += shares[k] * distance;
        weights[k] = shares[k] / std::max(distance, kSmoothing);
        sum += weights[k];
      }
      for (double& weight : weights) weight /= sum;
      weighted_mean(updates, weights, delta);
      if (before >= 0 && std::fabs(before - objective) <= kTolerance * objective) break;
      before = objective;
    }
  }
};

// Centered clipping, Karimireddy, He and Jaggi 2021, arXiv:2012.10333, Algorithm 2: num_iterations
// steps v += sum w_k (D_k - v) min(1, clip_norm / |D_k - v|) from the round before's v.
class CenteredClipping final : public RobustRule {
 public:
  using RobustRule::RobustRule;
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    if (center_.empty()) center_.assign(delta.size(), 0);
    std::copy(center_.begin(), center_.end(), delta.begin());
    const std::vector<double> shares(weights.begin(), weights.end());
    std::vector<double> mean(delta.size());
    for (int64_t i = 0; i < config().num_iterations; ++i) {
      const std::vector<double> squares = squared_distances_to(updates, delta);
      double sum = 0;
      for (size_t k = 0; k < weights.size(); ++k) {
        const double distance = std::sqrt(squares[k]);
        weights[k] =
            shares[k] * (distance > config().clip_norm ? config().clip_norm / distance : 1.0);
        sum += weights[k];
      }
      weighted_mean(updates, weights, mean);
      for (size_t j = 0; j < delta.size(); ++j) delta[j] += mean[j] - sum * delta[j];
    }
    for (size_t j = 0; j < delta.size(); ++j) center_[j] = static_cast<float>(delta[j]);
  }
  void visit_state(const StateVisitor& visit) override { visit("center", center_); }

 private:
  std::vector<float> center_;
};

}  // namespace

void register_robust_rules(AggregatorRegistry& registry) {
  registry.add("median", factory<Median>());
  registry.add("trimmed_mean", factory<TrimmedMean>());
  registry.add("krum", factory<Krum>());
  registry.add("multi_krum", factory<MultiKrum>());
  registry.add("bulyan", factory<Bulyan>());
  registry.add("geometric_median", factory<GeometricMedian>());
  registry.add("centered_clipping", factory<CenteredClipping>());
}

}  // namespace gradus::federated::internal
