// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/device_forward_params.h"

namespace gradus::kernels {

// The forward of the transformer on the GPU, operator by operator: bf16 weights, keys and values,
// an fp32 residual stream, fp32 sums. The row contract of docs/numerics.md holds with the constants
// of docs/gpu.md: a row's result is a function of that row, the weights and, in attention, of the
// keys and values up to it, whatever the tile, the number of rows or whether they decode.
//
// Functions enqueue on a stream; they neither allocate nor synchronise, and start while the kernel
// before them still ends (programmatic dependent launch). InvalidArgument names the first parameter
// outside its range; Unavailable a CUDA error, with operation and shapes.
//
// Letters: T rows, D width, K depth of a product or width of a head, H heads, G key-value heads.

Status device_linear(const Cuda& cuda, const LinearParams& params);
Status device_embed(const Cuda& cuda, const DeviceEmbedParams& params);
Status device_rms_norm(const Cuda& cuda, const DeviceRmsNormParams& params);
Status device_rotate(const Cuda& cuda, const DeviceRotateParams& params);
Status device_attention(const Cuda& cuda, const DeviceAttentionParams& params);

// Copies pages in all layers: page i of a layer at i * page_bytes, layers layer_bytes apart, both
// multiples of 16. No page is both read and written.
Status device_copy_pages(const Cuda& cuda, void* pages, const PageCopy* copies, int64_t count,
                         int64_t page_bytes, int64_t num_layers, int64_t layer_bytes,
                         Stream stream);
// to[i] = from[rows[i]], row_bytes each, a multiple of 16.
Status device_copy_rows(const Cuda& cuda, const void* from, const int32_t* rows, void* to,
                        int64_t count, int64_t row_bytes, Stream stream);
// Tells places what they hold from now on, in order; new_tables [count, table_stride] are the
// pages of those that begin.
Status device_start_slots(const Cuda& cuda, const SlotState& state, const SlotStart* starts,
                          int64_t count, const int32_t* tokens_from, int32_t* tables,
                          const int32_t* new_tables, int64_t table_stride, Stream stream);
// After a step: the sampled token comes next, one position further.
Status device_advance_slots(const Cuda& cuda, const SlotState& state, const int32_t* sampled,
                            int64_t count, Stream stream);

}  // namespace gradus::kernels
