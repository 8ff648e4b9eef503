// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm.h"

#include <algorithm>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/isa.h"

namespace gradus::kernels {

namespace avx2 {
void layer_norm_rows(const LayerNormParams& params, int64_t begin, int64_t end);
void layer_norm_backward_rows(const LayerNormBackwardParams& params, int64_t begin, int64_t end);
void layer_norm_backward_columns(const LayerNormBackwardParams& params, int64_t begin, int64_t end);
void rms_norm_rows(const RmsNormParams& params, int64_t begin, int64_t end);
void rms_norm_backward_rows(const RmsNormBackwardParams& params, int64_t begin, int64_t end);
void rms_norm_backward_columns(const RmsNormBackwardParams& params, int64_t begin, int64_t end);
void add_range(float* dst, const float* src, int64_t begin, int64_t end);
void column_sums_range(const float* dy, int64_t stride, int64_t m, int64_t begin, int64_t end,
                       float* db);
}  // namespace avx2
namespace avx512 {
void layer_norm_rows(const LayerNormParams& params, int64_t begin, int64_t end);
void layer_norm_backward_rows(const LayerNormBackwardParams& params, int64_t begin, int64_t end);
void layer_norm_backward_columns(const LayerNormBackwardParams& params, int64_t begin, int64_t end);
void rms_norm_rows(const RmsNormParams& params, int64_t begin, int64_t end);
void rms_norm_backward_rows(const RmsNormBackwardParams& params, int64_t begin, int64_t end);
void rms_norm_backward_columns(const RmsNormBackwardParams& params, int64_t begin, int64_t end);
void add_range(float* dst, const float* src, int64_t begin, int64_t end);
void column_sums_range(const float* dy, int64_t stride, int64_t m, int64_t begin, int64_t end,
                       float* db);
}  // namespace avx512

namespace {

// Floats that one thread should handle at least before a second one pays for waking up.
constexpr int64_t kGrainFloats = 32768;

int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, kGrainFloats / std::max<int64_t>(1, width));
}

}  // namespace

void rms_norm(const RmsNormParams& params) {
  GRADUS_CHECK(params.d >= 1, "rms_norm: d must be at least 1");
  const auto rows = isa() == Isa::kAvx512 ? avx512::rms_norm_rows : avx2::rms_norm_rows;
  parallel_for(params.m, row_grain(params.d),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void rms_norm_backward(const RmsNormBackwardParams& params) {
  GRADUS_CHECK(params.d >= 1, "rms_norm_backward: d must be at least 1");
  const bool wide = isa() == Isa::kAvx512;
  if (params.dweight_D != nullptr) {  // first, since dx may overwrite dy
    const auto columns = wide ? avx512::rms_norm_backward_columns : avx2::rms_norm_backward_columns;
    const int64_t grain =
        std::max<int64_t>(16, kGrainFloats / std::max<int64_t>(1, params.m) / 16 * 16);
    parallel_for(params.d, grain, [&](int64_t begin, int64_t end) { columns(params, begin, end); });
  }
  const auto rows = wide ? avx512::rms_norm_backward_rows : avx2::rms_norm_backward_rows;
  parallel_for(params.m, row_grain(params.d),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void layer_norm(const LayerNormParams& params) {
  GRADUS_CHECK(params.d >= 1, "layer_norm: d must be at least 1");
  const auto rows = isa() == Isa::kAvx512 ? avx512::layer_norm_rows : avx2::layer_norm_rows;
  parallel_for(params.m, row_grain(params.d),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void layer_norm_backward(const LayerNormBackwardParams& params) {
  GRADUS_CHECK(params.d >= 1, "layer_norm_backward: d must be at least 1");
  const bool wide = isa() == Isa::kAvx512;
  const auto columns =  // first, since dx may overwrite dy
      wide ? avx512::layer_norm_backward_columns : avx2::layer_norm_backward_columns;
  const int64_t grain =
      std::max<int64_t>(16, kGrainFloats / std::max<int64_t>(1, params.m) / 16 * 16);
  parallel_for(params.d, grain, [&](int64_t begin, int64_t end) { columns(params, begin, end); });
  const auto rows = wide ? avx512::layer_norm_backward_rows : avx2::layer_norm_backward_rows;
  parallel_for(params.m, row_grain(params.d),
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

void add_in_place(float* dst, const float* src, int64_t count) {
  const auto add = isa() == Isa::kAvx512 ? avx512::add_range : avx2::add_range;
  parallel_for(count, kGrainFloats, [&](int64_t begin, int64_t end) { add(dst, src, begin, end); });
}

void column_sums(const float* dy_MN, int64_t dy_stride, int64_t m, int64_t n, float* db_N) {
  const auto sums = isa() == Isa::kAvx512 ? avx512::column_sums_range : avx2::column_sums_range;
  const int64_t grain = std::max<int64_t>(16, kGrainFloats / std::max<int64_t>(1, m) / 16 * 16);
  parallel_for(n, grain,
               [&](int64_t begin, int64_t end) { sums(dy_MN, dy_stride, m, begin, end, db_N); });
}

}  // namespace gradus::kernels
