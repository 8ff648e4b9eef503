// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_product.h"

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

Status check_operand(std::string_view name, const void* p, int64_t stride, int64_t width) {
  if (p == nullptr || reinterpret_cast<uintptr_t>(p) % 16 != 0) {
    return invalid_argument("device_product: {} must be 16-byte aligned memory, got {}", name, p);
  }
  if (stride == 0) stride = width;
  if (stride >= width && stride % 8 == 0) return {};
  return invalid_argument(
      "device_product: {}_stride must be a multiple of 8 and at least the row's width {}, got {}",
      name, width, stride);
}

Status check(const DeviceProductParams& p) {
  for (const auto& [name, size] : {std::pair{"m", p.m}, {"n", p.n}, {"k", p.k}}) {
    if (size < 1 || size > INT32_MAX) {
      return invalid_argument("device_product: {} must be in [1, 2^31), got {}", name, size);
    }
  }
  GRADUS_RETURN_IF_ERROR(check_operand("a", p.a, p.a_stride, p.a_transposed ? p.m : p.k));
  GRADUS_RETURN_IF_ERROR(check_operand("b", p.b, p.b_stride, p.b_transposed ? p.k : p.n));
  GRADUS_RETURN_IF_ERROR(check_operand("c", p.c, p.c_stride, p.n));
  if (p.accumulate && p.c_bf16) {
    return invalid_argument("device_product: accumulate needs c in fp32, not in bf16");
  }
  return {};
}

}  // namespace

Status device_product(const Cuda& cuda, const DeviceProductParams& params) {
  GRADUS_RETURN_IF_ERROR(check(params));
  return cuda_call(fmt::format("device_product of {} x {} x {}", params.m, params.n, params.k),
                   cuda.table().product.run, params);
}

}  // namespace gradus::kernels
