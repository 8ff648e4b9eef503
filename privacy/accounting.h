// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "common/status.h"

// How much privacy a run costs: (epsilon, delta)-differential privacy of a whole client ("user
// level"), from what the server did. Two accountants: RDP is quick and a little pessimistic, PRV
// follows the whole distribution of the privacy loss and is tight. docs/privacy.md says which
// number to quote. All functions are pure and thread-safe.
namespace gradus::privacy {

// How the clients of a round are chosen; the bound must fit it.
enum class Sampling {
  kPoisson,  // each client by itself with probability `sampling_rate`; neighbours: one client more
  kFixedSize,  // a fixed share `sampling_rate` of all, without replacement; neighbours: one client
               // replaced, which moves a sum of clipped updates by up to 2 C
};

// `num_rounds` rounds, in each of which clients are sampled and the sum of their clipped updates
// (norm at most C) gets Gaussian noise of standard deviation `noise_multiplier` * C.
struct SampledGaussian {
  double sampling_rate = 1;     // in (0, 1]
  double noise_multiplier = 1;  // > 0
  int64_t num_rounds = 1;       // >= 0
  Sampling sampling = Sampling::kPoisson;
};

// Renyi divergence of one round at `order` > 1. Poisson: Mironov, Talwar and Zhang 2019,
// arXiv:1908.10530, section 3.3, for any order. Fixed size: Wang, Balle and Kasiviswanathan 2019,
// arXiv:1808.00087, Theorem 9, for whole orders; infinite between them.
double renyi_divergence(const SampledGaussian& round, double order);

struct RdpCost {
  double epsilon = 0;
  double order = 0;  // that gives it: of 1.1, 1.2 .. 10.9, 12, 13 .. 63
};

// Epsilon of all rounds at `delta`, by the conversion of Balle et al. 2020, arXiv:1905.09982,
// Theorem 21. InvalidArgument names a value outside its range. No rounds cost nothing.
Result<RdpCost> rdp_cost(std::span<const SampledGaussian> runs, double delta);

// Bounds of the true epsilon: lower <= epsilon <= upper. Quote `upper`.
struct PrvCost {
  double lower = 0, estimate = 0, upper = 0;
};

// The same by the privacy loss's distribution (Gopi, Lee and Wutschitz 2021, arXiv:2106.02848): on
// a grid, composed by FFT, with bounds at most `epsilon_error` off; delta's own error is delta /
// 1000. The worse of adding and removing a client. InvalidArgument as above, for fixed-size
// sampling, for a delta below 1e-10, which double does not resolve, and a grid of more than 2^23
// points.
Result<PrvCost> prv_cost(std::span<const SampledGaussian> runs, double delta,
                         double epsilon_error = 0.01);

enum class Accountant { kRdp, kPrv };

// The noise multiplier with which `num_rounds` rounds cost at most `epsilon`, by at most
// `tolerance` less; bisection from 20 down, as in Opacus. `run.noise_multiplier` is not read.
Result<double> noise_multiplier_for(double epsilon, double delta, SampledGaussian run,
                                    Accountant accountant, double tolerance = 0.01);

}  // namespace gradus::privacy
