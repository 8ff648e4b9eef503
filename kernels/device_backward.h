// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/device_backward_params.h"

namespace gradus::kernels {

// The backward of kernels/device_forward.h between its products, operator by operator: gradients of
// activations in bf16, of the residual stream and of weights in fp32. Sums over rows and over keys
// go in fixed parts that meet in order, without atomics: results repeat bit for bit, and depend on
// what else is in the call only where a weight's gradient sums over its rows.
//
// Functions enqueue on a stream; they neither allocate nor synchronise. InvalidArgument names the
// first parameter outside its range; Unavailable a CUDA error, with operation and shapes.
//
// Letters: T rows, R rows of a call, D width, F inner width, K width of a head, H heads, G
// key-value heads.

Status device_rms_norm_backward(const Cuda& cuda, const DeviceRmsNormBackwardParams& params);
Status device_column_sums(const Cuda& cuda, const DeviceColumnSumsParams& params);
Status device_swiglu_backward(const Cuda& cuda, const DeviceSwigluBackwardParams& params);
Status device_rotate_rows(const Cuda& cuda, const DeviceRotateRowsParams& params);
Status device_rotate_backward(const Cuda& cuda, const DeviceRotateBackwardParams& params);
Status device_embed_backward(const Cuda& cuda, const DeviceEmbedBackwardParams& params);
// y = x rounded to bf16, `count` numbers, a multiple of 4.
Status device_round(const Cuda& cuda, const float* x, void* y, int64_t count, Stream stream);
Status device_attention_backward(const Cuda& cuda, const DeviceAttentionBackwardParams& params);

}  // namespace gradus::kernels
