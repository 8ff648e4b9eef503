// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/isa.h"
#include "tests/support/aligned.h"

// What the tests of the row kernels share: data, the settings that must not change a bit, and the
// row contract of docs/numerics.md as a function that a wrong kernel fails.
namespace gradus::testing {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline AlignedFloats normals(int64_t count, uint64_t seed, double scale = 1) {
  RngSequence rng(seed, RngStream::kTask);
  AlignedFloats values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(scale * rng.normal());
  return values;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

// Runs `body` for each instruction set of this processor with 1 and 3 threads; restores the
// defaults.
inline void for_each_setting(const std::function<void()>& body) {
  const kernels::Isa default_isa = kernels::isa();
  const int default_threads = num_threads();
  for (const kernels::Isa set : {kernels::Isa::kAvx2, kernels::Isa::kAvx512}) {
    if (set == kernels::Isa::kAvx512 && !kernels::has_avx512()) continue;
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(::testing::Message() << (set == kernels::Isa::kAvx2 ? "AVX2, " : "AVX-512, ")
                                        << threads << " threads");
      kernels::set_isa(set);
      set_num_threads(threads);
      body();
    }
  }
  kernels::set_isa(default_isa);
  set_num_threads(default_threads);
}

// Computes m rows: `in` has m rows of the kernel's input, `out` room for m rows of its output.
using RowKernel = std::function<void(const float* in, int64_t m, float* out)>;

// The row contract: one row in calls of 1, 2, 7, 64 and 1000 rows, at random places among other
// rows, under every setting, must give the bits of the row alone. Returns where it does not, or "".
inline std::string broken_row_contract(const RowKernel& kernel, int64_t in_width,
                                       int64_t out_width) {
  std::string broken;
  const AlignedFloats row = normals(in_width, 7);
  AlignedFloats alone(static_cast<size_t>(out_width));
  kernel(row.data(), 1, alone.data());
  uint64_t seed = 100;
  for_each_setting([&] {
    for (const int64_t m : {1, 2, 7, 64, 1000}) {
      for (int trial = 0; trial < 2; ++trial) {
        AlignedFloats in = normals(m * in_width, ++seed, trial == 0 ? 1 : 30);
        RngSequence rng(seed, RngStream::kTask);
        const int64_t place = rng.between(0, m - 1);
        std::copy(row.begin(), row.end(), in.begin() + place * in_width);
        AlignedFloats out(static_cast<size_t>(m * out_width));
        kernel(in.data(), m, out.data());
        if (same_bits(alone, {out.data() + place * out_width, alone.size()})) continue;
        broken += "row " + std::to_string(place) + " of " + std::to_string(m) + "; ";
      }
    }
  });
  return broken;
}

}  // namespace gradus::testing
