// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa.h"

#include <atomic>

#include "common/check.h"

namespace gradus::kernels {
namespace {

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{has_avx512() ? Isa::kAvx512 : Isa::kAvx2};
  return value;
}

}  // namespace

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

Isa isa() { return current().load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  GRADUS_CHECK(isa == Isa::kAvx2 || has_avx512(), "this processor has no AVX-512");
  current().store(isa, std::memory_order_relaxed);
}

}  // namespace gradus::kernels
