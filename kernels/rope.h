// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace gradus::kernels {

// Rotary position embedding (Su et al. 2021, arXiv:2104.09864, Eq. 34) on pairs (i, i + K/2), the
// layout of Llama checkpoints; the paper interleaves. Angles position * frequency in double, their
// sine and cosine rounded once to float, by our own series: libm differs between hosts.
//
// Letters: T rows, H heads, K head width (even).

// cos and sin of position * frequencies[i] for positions [0, num_positions), grown on demand.
// Not thread-safe while growing.
class RopeTable {
 public:
  // frequencies [K/2], radians per position.
  explicit RopeTable(std::vector<double> frequencies);
  // Makes positions [0, num_positions) available; num_positions <= 2^24.
  void reserve(int64_t num_positions);
  int64_t half_width() const { return static_cast<int64_t>(frequencies_.size()); }
  const float* cosines() const { return cosines_.data(); }  // [positions, K/2]
  const float* sines() const { return sines_.data(); }

 private:
  std::vector<double> frequencies_;
  std::vector<float> cosines_, sines_;
  int64_t num_positions_ = 0;
};

struct RopeParams {
  float* x_THK = nullptr;  // in/out: head h of row t at x + t * x_stride + h * K
  int64_t x_stride = 0;
  const int32_t* positions_T = nullptr;  // [T], each reserved in the table
  int64_t t = 0, num_heads = 0, head_width = 0;
  const float* cosines = nullptr;  // RopeTable::cosines() and sines(), [positions, K/2]
  const float* sines = nullptr;
  bool inverse = false;  // rotate by -angle: the backward of the forward
};
void rope(const RopeParams& params);

// Sine and cosine of x in [0, 2^25), error below 1e-15.
void sine_cosine(double x, double& sine, double& cosine);

}  // namespace gradus::kernels
