// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/gemm.h"

namespace gradus::kernels {

// The oracle of gemm.h: the chains as plain loops over std::fma, one output after the other. The
// chains are fully specified, so the production kernels must equal these bit for bit.
void gemm_forward_ref(const GemmForwardParams& params);
void gemm_backward_input_ref(const GemmBackwardInputParams& params);
void gemm_backward_weight_ref(const GemmBackwardWeightParams& params);

}  // namespace gradus::kernels
