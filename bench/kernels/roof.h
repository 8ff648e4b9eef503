// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// The two roofs that kernels are measured against, taken in the same run and between the timed
// calls: a processor lowers its clock under wide vectors, and its neighbours change what memory
// gives.
namespace gradus::bench {

// Seconds of this thread's processor time if Gradus runs in one thread (what other processes do
// then counts for less), else of the wall clock.
double seconds();

// Multiply-adds of independent chains in registers, by all threads, with the vectors of
// kernels::isa(): GFLOP/s of one short burst.
double fma_gflops();

// Reads `count` floats once with all threads: GB/s.
double read_gb_per_s(const float* data, int64_t count);

// Floats on huge pages where the system gives them, filled with values in [-0.5, 0.5); never freed.
float* make_floats(int64_t count);

struct Samples {
  std::vector<double> values;
  void add(double value) { values.push_back(value); }
  double quantile(double q) {
    std::sort(values.begin(), values.end());
    return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
  }
  double median() { return quantile(0.5); }
};

}  // namespace gradus::bench
