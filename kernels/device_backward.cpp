// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_backward.h"

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

Status check_heads(const char* what, int64_t num_heads, int64_t num_kv_heads, int64_t head_width) {
  if (head_width != 64 && head_width != 128) {
    return invalid_argument("{}: head width must be 64 or 128, got {}", what, head_width);
  }
  if (num_kv_heads < 1 || num_heads % num_kv_heads != 0) {
    return invalid_argument("{}: {} heads must be a multiple of {} key-value heads", what,
                            num_heads, num_kv_heads);
  }
  return {};
}

Status check_multiple(const char* what, const char* name, int64_t value, int64_t of) {
  if (value > 0 && value % of == 0) return {};
  return invalid_argument("{}: {} must be a multiple of {}, got {}", what, name, of, value);
}

}  // namespace

Status device_rms_norm_backward(const Cuda& cuda, const DeviceRmsNormBackwardParams& params) {
  GRADUS_RETURN_IF_ERROR(check_multiple("device_rms_norm_backward", "d", params.d, 4));
  if (params.d > kMaxNormBackwardWidth) {
    return invalid_argument("device_rms_norm_backward: d must be at most {}, got {}",
                            kMaxNormBackwardWidth, params.d);
  }
  if (params.r == 0) return {};
  return cuda_call(fmt::format("device_rms_norm_backward of {} rows of {}", params.r, params.d),
                   cuda.table().backward.rms_norm, params);
}

Status device_column_sums(const Cuda& cuda, const DeviceColumnSumsParams& params) {
  GRADUS_RETURN_IF_ERROR(check_multiple("device_column_sums", "d", params.d, 2));
  if (params.r == 0) return {};
  return cuda_call(fmt::format("device_column_sums of {} rows of {}", params.r, params.d),
                   cuda.table().backward.column_sums, params);
}

Status device_swiglu_backward(const Cuda& cuda, const DeviceSwigluBackwardParams& params) {
  GRADUS_RETURN_IF_ERROR(check_multiple("device_swiglu_backward", "f", params.f, 8));
  return cuda_call(fmt::format("device_swiglu_backward of {} rows of {}", params.t, params.f),
                   cuda.table().backward.swiglu, params);
}

Status device_rotate_rows(const Cuda& cuda, const DeviceRotateRowsParams& params) {
  GRADUS_RETURN_IF_ERROR(
      check_heads("device_rotate_rows", params.num_heads, params.num_kv_heads, params.head_width));
  return cuda_call(fmt::format("device_rotate_rows of {} rows", params.t),
                   cuda.table().backward.rotate_rows, params);
}

Status device_rotate_backward(const Cuda& cuda, const DeviceRotateBackwardParams& params) {
  GRADUS_RETURN_IF_ERROR(check_heads("device_rotate_backward", params.num_heads,
                                     params.num_kv_heads, params.head_width));
  return cuda_call(fmt::format("device_rotate_backward of {} rows", params.t),
                   cuda.table().backward.rotate, params);
}

Status device_embed_backward(const Cuda& cuda, const DeviceEmbedBackwardParams& params) {
  if (params.n == 0) return {};
  return cuda_call(fmt::format("device_embed_backward of {} tokens", params.n),
                   cuda.table().backward.embed, params);
}

Status device_round(const Cuda& cuda, const float* x, void* y, int64_t count, Stream stream) {
  GRADUS_RETURN_IF_ERROR(check_multiple("device_round", "count", count, 4));
  return cuda_call(fmt::format("device_round of {} numbers", count), cuda.table().backward.round, x,
                   y, count, stream);
}

Status device_attention_backward(const Cuda& cuda, const DeviceAttentionBackwardParams& params) {
  GRADUS_RETURN_IF_ERROR(check_heads("device_attention_backward", params.num_heads,
                                     params.num_kv_heads, params.head_width));
  return cuda_call(fmt::format("device_attention_backward of {} rows, {} heads of {}", params.t,
                               params.num_heads, params.head_width),
                   cuda.table().backward.attention, params);
}

}  // namespace gradus::kernels
