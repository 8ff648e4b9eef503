// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// exp and log of kernels/internal/vec.h, compiled once per instruction set for vec_test.cpp. `exp`
// goes over the vector form with a masked tail, as the kernels do.
namespace gradus::kernels {

namespace avx2 {
void exp_of_all(const float* x, int64_t count, float* y);
void exp_one_by_one(const float* x, int64_t count, float* y);
void log_of_all(const float* x, int64_t count, float* y);
}  // namespace avx2

namespace avx512 {
void exp_of_all(const float* x, int64_t count, float* y);
void exp_one_by_one(const float* x, int64_t count, float* y);
void log_of_all(const float* x, int64_t count, float* y);
}  // namespace avx512

}  // namespace gradus::kernels
