// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding.h"

#include "common/parallel.h"
#include "kernels/gemm.h"

namespace gradus::kernels {
namespace {

int64_t offset_of(int32_t token, int64_t d) {
  return token / kPanelWidth * d * kPanelWidth + token % kPanelWidth;
}

}  // namespace

void embedding_gather(const float* table_packed, const int32_t* token_ids_T, int64_t t, int64_t d,
                      float* out_TD, int64_t out_stride) {
  parallel_for(t, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* column = table_packed + offset_of(token_ids_T[row], d);
      float* out = out_TD + row * out_stride;
      for (int64_t i = 0; i < d; ++i) out[i] = column[i * kPanelWidth];
    }
  });
}

void embedding_scatter_add(float* dtable_packed, const int32_t* token_ids_T, const float* dx_TD,
                           int64_t dx_stride, int64_t t, int64_t d) {
  // Threads share out the columns, so each element gets its additions in token order.
  parallel_for(d, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < t; ++row) {
      float* column = dtable_packed + offset_of(token_ids_T[row], d);
      const float* dx = dx_TD + row * dx_stride;
      for (int64_t i = begin; i < end; ++i) column[i * kPanelWidth] += dx[i];
    }
  });
}

}  // namespace gradus::kernels
