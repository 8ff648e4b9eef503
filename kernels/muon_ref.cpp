// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/internal/muon_ref.h"

namespace gradus::kernels {
namespace {

using Matrix = std::vector<double>;

// y [M, N] = x [M, K] w [K, N].
Matrix product(const Matrix& x, const Matrix& w, int64_t m, int64_t k, int64_t n) {
  Matrix y(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l) {
        y[static_cast<size_t>(i * n + j)] +=
            x[static_cast<size_t>(i * k + l)] * w[static_cast<size_t>(l * n + j)];
      }
    }
  }
  return y;
}

Matrix transposed(const Matrix& x, int64_t m, int64_t n) {
  Matrix y(x.size());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j)
      y[static_cast<size_t>(j * m + i)] = x[static_cast<size_t>(i * n + j)];
  }
  return y;
}

}  // namespace

std::vector<double> MuonRef::newton_schulz(std::vector<double> update) const {
  const int64_t rows = std::min(n, k), columns = std::max(n, k);
  Matrix x = n > k ? transposed(update, n, k) : std::move(update);
  double sum = 0;
  for (const double value : x) sum += value * value;
  const double norm = std::max(std::sqrt(sum), 1e-7);
  for (double& value : x) value /= norm;
  for (int step = 0; step < num_steps; ++step) {
    const Matrix s = product(x, transposed(x, rows, columns), rows, columns, rows);
    Matrix polynomial = product(s, s, rows, rows, rows);
    for (size_t i = 0; i < s.size(); ++i) polynomial[i] = b * s[i] + c * polynomial[i];
    const Matrix change = product(polynomial, x, rows, rows, columns);
    for (size_t i = 0; i < x.size(); ++i) x[i] = a * x[i] + change[i];
  }
  return n > k ? transposed(x, rows, columns) : x;
}

void MuonRef::step(const std::vector<double>& gradients) {
  Matrix update(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double g = (1 - momentum) * gradients[i];
    momentum_buffer[i] = momentum * momentum_buffer[i] + g;
    update[i] = momentum * momentum_buffer[i] + g;
  }
  const Matrix direction = newton_schulz(std::move(update));
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] -= learning_rate * weight_decay * weights[i];
    weights[i] -= learning_rate * update_scale * direction[i];
  }
}

}  // namespace gradus::kernels
