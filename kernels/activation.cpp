// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"

#include <algorithm>

#include "common/parallel.h"
#include "kernels/isa.h"

namespace gradus::kernels {

namespace avx2 {
void gelu_rows(const GeluParams& params, int64_t begin, int64_t end);
void gelu_backward_rows(const GeluBackwardParams& params, int64_t begin, int64_t end);
void swiglu_rows(const SwigluParams& params, int64_t begin, int64_t end);
void swiglu_backward_rows(const SwigluBackwardParams& params, int64_t begin, int64_t end);
}  // namespace avx2
namespace avx512 {
void gelu_rows(const GeluParams& params, int64_t begin, int64_t end);
void gelu_backward_rows(const GeluBackwardParams& params, int64_t begin, int64_t end);
void swiglu_rows(const SwigluParams& params, int64_t begin, int64_t end);
void swiglu_backward_rows(const SwigluBackwardParams& params, int64_t begin, int64_t end);
}  // namespace avx512

namespace {

// Elements that one thread should handle at least: about 10 us of work.
int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width));
}

}  // namespace

void swiglu(const SwigluParams& params) {
  const auto rows = isa() == Isa::kAvx512 ? avx512::swiglu_rows : avx2::swiglu_rows;
  parallel_for(params.m, row_grain(params.i),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void swiglu_backward(const SwigluBackwardParams& params) {
  const auto rows =
      isa() == Isa::kAvx512 ? avx512::swiglu_backward_rows : avx2::swiglu_backward_rows;
  parallel_for(params.m, row_grain(params.i),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void gelu(const GeluParams& params) {
  const auto rows = isa() == Isa::kAvx512 ? avx512::gelu_rows : avx2::gelu_rows;
  parallel_for(params.m, row_grain(params.i),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void gelu_backward(const GeluBackwardParams& params) {
  const auto rows = isa() == Isa::kAvx512 ? avx512::gelu_backward_rows : avx2::gelu_backward_rows;
  parallel_for(params.m, row_grain(params.i),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

}  // namespace gradus::kernels
