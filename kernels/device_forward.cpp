// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_forward.h"

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

Status check(const LinearParams& p) {
  const int64_t outputs = p.output == LinearOutput::kSwiglu ? 16 : 8;
  if (p.t < 1) return invalid_argument("device_linear: t must be at least 1, got {}", p.t);
  if (p.n < outputs || p.n % outputs != 0) {
    return invalid_argument("device_linear: n must be a multiple of {}, got {}", outputs, p.n);
  }
  if (p.k < 8 || p.k % 8 != 0) {
    return invalid_argument("device_linear: k must be a multiple of 8, got {}", p.k);
  }
  if (p.y_stride % 2 != 0) {
    return invalid_argument("device_linear: y_stride must be even, got {}", p.y_stride);
  }
  return {};
}

Status check(const DeviceAttentionParams& p) {
  const int64_t width = p.kv.head_width, groups = p.kv.num_kv_heads;
  if (width != 64 && width != 128) {
    return invalid_argument("device_attention: head width must be 64 or 128, got {}", width);
  }
  if (groups < 1 || p.num_heads % groups != 0 || p.num_heads / groups > kDeviceMaxHeadsPerGroup) {
    return invalid_argument(
        "device_attention: {} heads must be a multiple of {} key-value heads, at most {} times",
        p.num_heads, groups, kDeviceMaxHeadsPerGroup);
  }
  if (p.tiles == nullptr && p.max_chunks > 1 && (p.arrivals == nullptr || p.partial == nullptr)) {
    return invalid_argument("device_attention: {} chunks need arrivals and partial", p.max_chunks);
  }
  return {};
}

}  // namespace

Status device_linear(const Cuda& cuda, const LinearParams& params) {
  GRADUS_RETURN_IF_ERROR(check(params));
  return cuda_call(fmt::format("device_linear of {} rows, {} x {}", params.t, params.n, params.k),
                   cuda.table().forward.linear, params);
}

Status device_embed(const Cuda& cuda, const DeviceEmbedParams& params) {
  return cuda_call(fmt::format("device_embed of {} rows of {}", params.t, params.d),
                   cuda.table().forward.embed, params);
}

Status device_rms_norm(const Cuda& cuda, const DeviceRmsNormParams& params) {
  return cuda_call(fmt::format("device_rms_norm of {} rows of {}", params.r, params.d),
                   cuda.table().forward.rms_norm, params);
}

Status device_rotate(const Cuda& cuda, const DeviceRotateParams& params) {
  return cuda_call(fmt::format("device_rotate of {} rows, {} + 2 x {} heads of {}", params.t,
                               params.num_heads, params.kv.num_kv_heads, params.kv.head_width),
                   cuda.table().forward.rotate, params);
}

Status device_attention(const Cuda& cuda, const DeviceAttentionParams& params) {
  GRADUS_RETURN_IF_ERROR(check(params));
  return cuda_call(fmt::format("device_attention of {} {}, {} heads of {}",
                               params.tiles != nullptr ? params.num_tiles : params.t,
                               params.tiles != nullptr ? "tiles" : "rows", params.num_heads,
                               params.kv.head_width),
                   cuda.table().forward.attention, params);
}

Status device_copy_pages(const Cuda& cuda, void* pages, const PageCopy* copies, int64_t count,
                         int64_t page_bytes, int64_t num_layers, int64_t layer_bytes,
                         Stream stream) {
  if (count == 0) return {};
  return cuda_call(fmt::format("device_copy_pages of {} pages", count),
                   cuda.table().forward.copy_pages, pages, copies, count, page_bytes, num_layers,
                   layer_bytes, stream);
}

Status device_copy_rows(const Cuda& cuda, const void* from, const int32_t* rows, void* to,
                        int64_t count, int64_t row_bytes, Stream stream) {
  if (count == 0) return {};
  return cuda_call(fmt::format("device_copy_rows of {} rows", count),
                   cuda.table().forward.copy_rows, from, rows, to, count, row_bytes, stream);
}

Status device_start_slots(const Cuda& cuda, const SlotState& state, const SlotStart* starts,
                          int64_t count, const int32_t* tokens_from, int32_t* tables,
                          const int32_t* new_tables, int64_t table_stride, Stream stream) {
  if (count == 0) return {};
  return cuda_call(fmt::format("device_start_slots of {} places", count),
                   cuda.table().forward.start_slots, state, starts, count, tokens_from, tables,
                   new_tables, table_stride, stream);
}

Status device_advance_slots(const Cuda& cuda, const SlotState& state, const int32_t* sampled,
                            int64_t count, Stream stream) {
  return cuda_call(fmt::format("device_advance_slots of {} places", count),
                   cuda.table().forward.advance_slots, state, sampled, count, stream);
}

}  // namespace gradus::kernels
