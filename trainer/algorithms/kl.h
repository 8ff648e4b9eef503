// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trainer/algorithm_config.h"

namespace gradus::trainer {

// An estimate of KL(policy || initial) at one token (Schulman 2020) and its derivative by lp, with
// d = lf - lp: k1 = -d, abs = |d|, k2 = d^2 / 2, k3 = e^d - d - 1; k3_corrected = e^(lp - lo) k3
// (DeepSeek-V3.2, arXiv:2512.02556); k1+ and k3+ have the gradient of k2 (straight-through). For
// k3, d is held in [-20, 20] and the value at 10, as verl does. `stopped` is lp under a
// stop-gradient.
struct KlTerm {
  double value = 0, slope = 0;
};
KlTerm kl_term(KlKind kind, double logprob, double stopped, double old_logprob,
               double reference_logprob);

// The coefficient after a step whose mean KL was `measured` over `num_sequences` responses (Ziegler
// et al. 2019, arXiv:1909.08593, 2.2): coef (1 + clip(kl / target - 1, -0.2, 0.2) n / horizon).
double adapted_kl_coef(const KlConfig& config, double coef, double measured, double num_sequences);

}  // namespace gradus::trainer
