// SPDX-License-Identifier: Apache-2.0
#include "privacy/accounting.h"

#include <cmath>

#include "privacy/internal/runs.h"

namespace gradus::privacy {

namespace internal {

Status check_runs(std::span<const SampledGaussian> runs, double delta) {
  if (!(delta > 0 && delta < 1)) {
    return invalid_argument(
        "privacy: delta is {}; it must be between 0 and 1, e.g. 1e-5, and "
        "smaller than one over the number of clients",
        delta);
  }
  for (const SampledGaussian& run : runs) {
    if (!(run.sampling_rate > 0 && run.sampling_rate <= 1)) {
      return invalid_argument("privacy: the sampling rate is {}; it must be above 0 and at most 1",
                              run.sampling_rate);
    }
    if (!(run.noise_multiplier > 0 && std::isfinite(run.noise_multiplier))) {
      return invalid_argument(
          "privacy: the noise multiplier is {}; it must be above 0, as without noise no epsilon is "
          "finite",
          run.noise_multiplier);
    }
    if (run.num_rounds < 0) {
      return invalid_argument("privacy: the number of rounds is {}; it must be at least 0",
                              run.num_rounds);
    }
  }
  return {};
}

int64_t num_rounds(std::span<const SampledGaussian> runs) {
  int64_t sum = 0;
  for (const SampledGaussian& run : runs) sum += run.num_rounds;
  return sum;
}

}  // namespace internal

Result<double> noise_multiplier_for(double epsilon, double delta, SampledGaussian run,
                                    Accountant accountant, double tolerance) {
  constexpr double kLargest = 1e6;
  if (!(epsilon > 0 && std::isfinite(epsilon)) || !(tolerance > 0)) {
    return invalid_argument("privacy: the target epsilon is {}, to within {}; both must be above 0",
                            epsilon, tolerance);
  }
  const auto cost = [&](double noise_multiplier) -> Result<double> {
    run.noise_multiplier = noise_multiplier;
    if (accountant == Accountant::kRdp) {
      const Result<RdpCost> rdp = rdp_cost({&run, 1}, delta);
      return rdp.ok() ? Result<double>(rdp->epsilon) : rdp.status();
    }
    const Result<PrvCost> prv = prv_cost({&run, 1}, delta);
    return prv.ok() ? Result<double>(prv->upper) : prv.status();
  };
  double low = 0, high = 10, reached = INFINITY;
  while (reached > epsilon) {
    high *= 2;
    if (high > kLargest) {
      return invalid_argument(
          "privacy: no noise multiplier up to {} gives epsilon {}; raise epsilon or delta, or take "
          "fewer rounds",
          kLargest, epsilon);
    }
    const Result<double> got = cost(high);
    if (!got.ok()) return got.status();
    reached = *got;
  }
  while (epsilon - reached > tolerance && high - low > 1e-9 * high) {
    const double middle = (low + high) / 2;
    const Result<double> got = cost(middle);
    // A multiplier that is far too small needs a grid beyond the limit.
    if (!got.ok() && accountant == Accountant::kRdp) return got.status();
    if (got.ok() && *got < epsilon) {
      high = middle;
      reached = *got;
    } else {
      low = middle;
    }
  }
  return high;
}

}  // namespace gradus::privacy
