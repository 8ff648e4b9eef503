// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "common/status.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {

// Calls a function of the table with `arguments` and a place for the error's text; `what` says in
// the status what we were doing.
template <class... Parameters, class... Arguments>
Status cuda_call(std::string_view what, cuda::CudaCode (*function)(Parameters...),
                 Arguments&&... arguments) {
  cuda::CudaErrorText error = {};
  switch (function(std::forward<Arguments>(arguments)..., &error)) {
    case cuda::CudaCode::kOk:
      return {};
    case cuda::CudaCode::kInvalidArgument:
      return invalid_argument("{}: {}", what, error.text);
    case cuda::CudaCode::kUnavailable:
      break;
  }
  return unavailable("{}: {}", what, error.text);
}

}  // namespace gradus::kernels
