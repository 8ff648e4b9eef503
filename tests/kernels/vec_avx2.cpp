// SPDX-License-Identifier: Apache-2.0
#define GRADUS_ISA avx2
#define GRADUS_ISA_avx2 1
#include "tests/kernels/vec_functions.inc"
