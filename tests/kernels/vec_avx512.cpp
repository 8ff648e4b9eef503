// SPDX-License-Identifier: Apache-2.0
#define GRADUS_ISA avx512
#define GRADUS_ISA_avx512 1
#include "tests/kernels/vec_functions.inc"
