// SPDX-License-Identifier: Apache-2.0
#include "kernels/optimizer.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "kernels/isa.h"

namespace gradus::kernels {

namespace avx2 {
void adamw_range(const AdamWParams& params, int64_t begin, int64_t end);
float block_sum_of_squares(const float* values, int64_t count);
}  // namespace avx2
namespace avx512 {
void adamw_range(const AdamWParams& params, int64_t begin, int64_t end);
float block_sum_of_squares(const float* values, int64_t count);
}  // namespace avx512

void adamw(const AdamWParams& params) {
  const auto range = isa() == Isa::kAvx512 ? avx512::adamw_range : avx2::adamw_range;
  parallel_for(params.count, 16384, [&](int64_t begin, int64_t end) { range(params, begin, end); });
}

double sum_of_squares(const float* values, int64_t count) {
  constexpr int64_t kBlock = kSquaresBlock;
  const auto block_sum =
      isa() == Isa::kAvx512 ? avx512::block_sum_of_squares : avx2::block_sum_of_squares;
  const int64_t num_blocks = (count + kBlock - 1) / kBlock;
  std::vector<float> sums(static_cast<size_t>(num_blocks));
  parallel_for(num_blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sums[static_cast<size_t>(i)] =
          block_sum(values + i * kBlock, std::min(kBlock, count - i * kBlock));
    }
  });
  double sum = 0;
  for (const float block : sums) sum += block;
  return sum;
}

}  // namespace gradus::kernels
