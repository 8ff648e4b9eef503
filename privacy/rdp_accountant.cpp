// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "common/check.h"
#include "privacy/accounting.h"
#include "privacy/internal/runs.h"

namespace gradus::privacy {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// log(e^a + e^b) and log(e^a - e^b), a >= b.
double log_add(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return low == -kInfinity ? high : high + std::log1p(std::exp(low - high));
}
double log_subtract(double a, double b) {
  if (b == -kInfinity) return a;
  return b >= a ? -kInfinity : a + std::log1p(-std::exp(b - a));
}

// erfc itself is 0 from 27 on.
double log_erfc(double x) {
  if (x < 20) return std::log(std::erfc(x));
  const double y = 1 / (2 * x * x);
  return -x * x - std::log(x * std::sqrt(std::numbers::pi)) +
         std::log1p(-y * (1 - 3 * y * (1 - 5 * y * (1 - 7 * y))));
}

double log_binomial(double n, double k) {
  return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
}

// log E (Q / P)^order, P = N(0, s^2), Q = (1 - q) P + q N(1, s^2): a finite sum.
double log_moment_of_whole_order(double q, double sigma, int64_t order) {
  double sum = -kInfinity;
  for (int64_t i = 0; i <= order; ++i) {
    const double k = static_cast<double>(i), n = static_cast<double>(order);
    sum = log_add(sum, log_binomial(n, k) + k * std::log(q) + (n - k) * std::log1p(-q) +
                           (k * k - k) / (2 * sigma * sigma));
  }
  return sum;
}

// The same for any order: the integral is cut at z, where both parts of Q are equal, and each half
// is a binomial series.
double log_moment_of_any_order(double q, double sigma, double order) {
  const double z = sigma * sigma * std::log(1 / q - 1) + 0.5;
  const double width = std::numbers::sqrt2 * sigma;
  double below = -kInfinity, above = -kInfinity;
  double log_size = 0;  // of the binomial coefficient
  bool is_positive = true;
  for (double i = 0;; ++i) {
    const double j = order - i;
    const double lower = log_size + i * std::log(q) + j * std::log1p(-q) +
                         (i * i - i) / (2 * sigma * sigma) + std::log(0.5) +
                         log_erfc((i - z) / width);
    const double upper = log_size + j * std::log(q) + i * std::log1p(-q) +
                         (j * j - j) / (2 * sigma * sigma) + std::log(0.5) +
                         log_erfc((z - j) / width);
    below = is_positive ? log_add(below, lower) : log_subtract(below, lower);
    above = is_positive ? log_add(above, upper) : log_subtract(above, upper);
    if (std::max(lower, upper) < -30) return log_add(below, above);
    log_size += std::log(std::fabs(order - i)) - std::log(i + 1);
    if (order - i < 0) is_positive = !is_positive;
  }
}

double divergence_of_fixed_size(double q, double sigma, int64_t order) {
  // Of one round on all clients: sensitivity 2 C.
  const auto whole = [sigma](double a) { return 2 * a / (sigma * sigma); };
  const double n = static_cast<double>(order);
  // The term of two is q^2 (n over 2) min(4 (e^whole(2) - 1), 2 e^whole(2)).
  const double two = std::min(std::log(4.0) + whole(2) + std::log(-std::expm1(-whole(2))),
                              std::log(2.0) + whole(2));
  double sum = log_add(0, 2 * std::log(q) + log_binomial(n, 2) + two);
  for (int64_t i = 3; i <= order; ++i) {
    const double k = static_cast<double>(i);
    sum = log_add(sum, k * std::log(q) + log_binomial(n, k) + (k - 1) * whole(k) + std::log(2.0));
  }
  return std::min(sum / (n - 1), whole(n));
}

std::vector<double> orders() {
  std::vector<double> result;
  for (int i = 11; i < 110; ++i) result.push_back(i / 10.0);
  for (int i = 12; i < 64; ++i) result.push_back(i);
  return result;
}

}  // namespace

double renyi_divergence(const SampledGaussian& round, double order) {
  GRADUS_CHECK(order > 1, "renyi_divergence needs an order above 1");
  const double q = round.sampling_rate, sigma = round.noise_multiplier;
  const bool is_whole = order == std::floor(order);
  if (round.sampling == Sampling::kFixedSize) {
    return is_whole ? divergence_of_fixed_size(q, sigma, static_cast<int64_t>(order)) : kInfinity;
  }
  if (q == 1) return order / (2 * sigma * sigma);
  const double log_moment = is_whole
                                ? log_moment_of_whole_order(q, sigma, static_cast<int64_t>(order))
                                : log_moment_of_any_order(q, sigma, order);
  return std::max(0.0, log_moment) / (order - 1);
}

Result<RdpCost> rdp_cost(std::span<const SampledGaussian> runs, double delta) {
  GRADUS_RETURN_IF_ERROR(internal::check_runs(runs, delta));
  if (internal::num_rounds(runs) == 0) return RdpCost{};
  RdpCost best{.epsilon = kInfinity};
  for (const double order : orders()) {
    double divergence = 0;
    for (const SampledGaussian& run : runs) {
      if (run.num_rounds == 0) continue;
      divergence += static_cast<double>(run.num_rounds) * renyi_divergence(run, order);
    }
    const double epsilon =
        divergence + std::log1p(-1 / order) - (std::log(delta) + std::log(order)) / (order - 1);
    if (epsilon < best.epsilon) best = {.epsilon = epsilon, .order = order};
  }
  best.epsilon = std::max(best.epsilon, 0.0);
  return best;
}

}  // namespace gradus::privacy
