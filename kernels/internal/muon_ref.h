// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace gradus::kernels {

// The step of kernels/muon.h in plain loops of double over row-major [N, K].
struct MuonRef {
  int64_t n = 0, k = 0;
  std::vector<double> weights, momentum_buffer;
  double momentum = 0.95, learning_rate = 0, update_scale = 1, weight_decay = 0;
  double a = 3.4445, b = -4.7750, c = 2.0315;
  int num_steps = 5;

  void step(const std::vector<double>& gradients);
  std::vector<double> newton_schulz(std::vector<double> update) const;
};

}  // namespace gradus::kernels
