// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <numbers>
#include <vector>

#include "privacy/accounting.h"
#include "privacy/internal/fft.h"
#include "privacy/internal/runs.h"

namespace gradus::privacy {
namespace {

constexpr double kLeastDelta = 1e-10;
constexpr int64_t kMaxGridPoints = int64_t{1} << 23;

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double normal_pdf(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }

// The privacy loss of one round with P = N(0, s^2) and Q = (1 - q) P + q N(1, s^2): log Q/P under Q
// if a client leaves, log P/Q under P if one comes.
class PrivacyLoss {
 public:
  PrivacyLoss(const SampledGaussian& round, bool is_removal)
      : q_(round.sampling_rate), sigma_(round.noise_multiplier), is_removal_(is_removal) {}

  double cdf(double loss) const {
    if (is_removal_) return distribution(place(loss));
    return 1 - normal_cdf(place(-loss) / sigma_);
  }

  // Mean of the loss between -bound and bound, by Simpson's rule over the output of the mechanism.
  double truncated_mean(double bound) const {
    constexpr int kIntervals = 1 << 14;
    const double begin = std::max(place(-bound), -12 * sigma_);
    const double end = std::min(place(bound), 1 + 12 * sigma_);
    const double step = (end - begin) / kIntervals;
    double sum = 0;
    for (int i = 0; i <= kIntervals; ++i) {
      const double x = begin + i * step;
      const double weight = i == 0 || i == kIntervals ? 1 : i % 2 == 1 ? 4 : 2;
      const double log_ratio = q_ == 1 ? (x - 0.5) / (sigma_ * sigma_)
                                       : std::log1p(q_ * std::expm1((x - 0.5) / (sigma_ * sigma_)));
      sum += weight * (is_removal_ ? log_ratio : -log_ratio) * density(x);
    }
    return sum * step / 3 / (cdf(bound) - cdf(-bound));
  }

 private:
  // The output x with log Q(x) / P(x) = log_ratio; minus infinity if the ratio is never so small.
  double place(double log_ratio) const {
    const double part = (std::expm1(log_ratio) + q_) / q_;
    return part <= 0 ? -INFINITY : sigma_ * sigma_ * std::log(part) + 0.5;
  }
  double distribution(double x) const {
    return (1 - q_) * normal_cdf(x / sigma_) + q_ * normal_cdf((x - 1) / sigma_);
  }
  double density(double x) const {
    const double without = normal_pdf(x / sigma_) / sigma_;
    if (!is_removal_) return without;
    return (1 - q_) * without + q_ * normal_pdf((x - 1) / sigma_) / sigma_;
  }

  double q_, sigma_;
  bool is_removal_;
};

struct Grid {
  int64_t size = 0;  // a power of two
  double step = 0;
  double bound() const { return static_cast<double>(size / 2) * step; }
};

// So wide that no more than a part of delta_error lies outside, and so fine that rounding all
// rounds' losses to it moves their sum by more than epsilon_error with that probability at most.
Result<Grid> make_grid(std::span<const SampledGaussian> runs, double delta_error,
                       double epsilon_error) {
  const double total = static_cast<double>(internal::num_rounds(runs));
  double bound = 3 + epsilon_error;
  const Result<RdpCost> whole = rdp_cost(runs, delta_error / 4);
  if (!whole.ok()) return whole.status();
  bound = std::max(bound, whole->epsilon);
  for (SampledGaussian run : runs) {
    run.num_rounds = 1;
    const Result<RdpCost> one = rdp_cost({&run, 1}, delta_error / 8 / total);
    if (!one.ok()) return one.status();
    bound = std::max(bound, one->epsilon + 3);
  }
  const double step = epsilon_error / std::sqrt(total / 2 * std::log(12 / delta_error));
  const double points = 2 * bound / step;
  if (!(points <= static_cast<double>(kMaxGridPoints))) {
    return invalid_argument(
        "privacy: the PRV accountant would need {:.3g} grid points, its limit is {}; allow a "
        "larger "
        "epsilon error than {}, or take the RDP accountant",
        points, kMaxGridPoints, epsilon_error);
  }
  const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::ceil(points))));
  return Grid{.size = size, .step = 2 * bound / static_cast<double>(size)};
}

// The sum of all rounds' losses: probability of value(i) = (i - size / 2) * step + shift.
struct ComposedLoss {
  std::vector<double> probabilities;
  Grid grid;
  double shift = 0;
};

ComposedLoss compose(std::span<const SampledGaussian> runs, const Grid& grid, bool is_removal) {
  const int64_t half = grid.size / 2;
  const auto size = static_cast<size_t>(grid.size);
  std::vector<std::complex<double>> product(size, 1.0), one(size);
  ComposedLoss result;
  result.grid = grid;
  for (const SampledGaussian& run : runs) {
    if (run.num_rounds == 0) continue;
    const PrivacyLoss loss(run, is_removal);
    const double bound = grid.bound();
    const double mass = loss.cdf(bound) - loss.cdf(-bound);
    double mean = 0, left = loss.cdf(-bound);
    for (int64_t j = -half; j < half; ++j) {
      const double value = static_cast<double>(j) * grid.step;
      const double right = loss.cdf(j == half - 1 ? bound : value + grid.step / 2);
      const double probability = (right - left) / mass;
      left = right;
      one[static_cast<size_t>((j + grid.size) % grid.size)] = probability;
      mean += value * probability;
    }
    // Values are moved so that the mean is the true one: then rounding errors do not add up.
    const auto times = static_cast<double>(run.num_rounds);
    result.shift += times * (loss.truncated_mean(bound) - mean);
    internal::fft(one, false);
    for (size_t i = 0; i < size; ++i) {
      product[i] *= one[i] == 0.0 ? 0.0 : std::exp(times * std::log(one[i]));
    }
  }
  internal::fft(product, true);
  result.probabilities.resize(size);
  for (int64_t i = 0; i < grid.size; ++i) {
    result.probabilities[static_cast<size_t>(i)] =
        product[static_cast<size_t>((i + half) % grid.size)].real();
  }
  return result;
}

// The least epsilon >= 0 with delta(epsilon) = sum over losses above epsilon of
// p (1 - exp(epsilon - loss)) at most `delta`.
double epsilon_at(const ComposedLoss& loss, double delta) {
  // From the top down: `above` is the probability of losses from this value on, `weighted` the same
  // with each weighted by exp(value - loss).
  double above = 0, weighted = 0, epsilon = 0;
  for (int64_t i = loss.grid.size - 1; i >= 0; --i) {
    const double value = static_cast<double>(i - loss.grid.size / 2) * loss.grid.step + loss.shift;
    const double next_above = above + loss.probabilities[static_cast<size_t>(i)];
    const double next_weighted =
        weighted * std::exp(-loss.grid.step) + loss.probabilities[static_cast<size_t>(i)];
    if (next_above - next_weighted > delta) {
      // Here delta(value) is too large, one step up it was not; between them no loss is added.
      epsilon = value + loss.grid.step + std::log((above - delta) / weighted);
      break;
    }
    if (value < 0) break;
    above = next_above;
    weighted = next_weighted;
  }
  return std::max(epsilon, 0.0);
}

}  // namespace

Result<PrvCost> prv_cost(std::span<const SampledGaussian> runs, double delta,
                         double epsilon_error) {
  GRADUS_RETURN_IF_ERROR(internal::check_runs(runs, delta));
  if (delta < kLeastDelta) {
    return invalid_argument(
        "privacy: delta is {}; the PRV accountant takes {} and more, as smaller ones drown in "
        "rounding; take the RDP accountant",
        delta, kLeastDelta);
  }
  if (!(epsilon_error > 0 && epsilon_error <= 1)) {
    return invalid_argument("privacy: the epsilon error is {}; it must be above 0 and at most 1",
                            epsilon_error);
  }
  for (const SampledGaussian& run : runs) {
    if (run.sampling == Sampling::kFixedSize) {
      return invalid_argument(
          "privacy: the PRV accountant knows Poisson sampling only; take the RDP accountant for "
          "samples of fixed size");
    }
  }
  if (internal::num_rounds(runs) == 0) return PrvCost{};
  const double delta_error = delta / 1000;
  const Result<Grid> grid = make_grid(runs, delta_error, epsilon_error);
  if (!grid.ok()) return grid.status();
  PrvCost cost;
  for (const bool is_removal : {true, false}) {
    const ComposedLoss loss = compose(runs, *grid, is_removal);
    cost.lower = std::max(cost.lower, epsilon_at(loss, delta + delta_error) - epsilon_error);
    cost.estimate = std::max(cost.estimate, epsilon_at(loss, delta));
    cost.upper = std::max(cost.upper, epsilon_at(loss, delta - delta_error) + epsilon_error);
  }
  return cost;
}

}  // namespace gradus::privacy
