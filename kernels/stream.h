// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace gradus::kernels {

// A CUDA stream; null is the default one.
using Stream = void*;

}  // namespace gradus::kernels
