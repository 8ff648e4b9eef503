// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// Conversions between the stored float formats and float. Serial; `in` need not be aligned.
namespace gradus::model {

// Exact. `out` [n].
void f16_to_f32(const std::byte* in, int64_t n, float* out);
void bf16_to_f32(const std::byte* in, int64_t n, float* out);
// To nearest, ties to even; a NaN stays one. `out` [n].
void f32_to_bf16(const float* in, int64_t n, uint16_t* out);

// How many of `values` [n] are NaN or infinite.
int64_t count_non_finite(const float* values, int64_t n);

}  // namespace gradus::model
