// SPDX-License-Identifier: Apache-2.0
#pragma once

// The *_cpu.cpp files of kernels/ are compiled twice, for AVX2 and for AVX-512 (gradus_module's
// ISA_SRCS): everything in them lives in `namespace gradus::kernels::GRADUS_ISA`, and the
// dispatching .cpp file calls avx512::f or avx2::f after isa(). Both give equal bits: each output
// is the same chain of operations.
//
// An ISA file may use nothing inline from outside its own namespace (std containers, templates):
// the linker keeps one copy of an inline function, and the AVX-512 one would crash an AVX2 machine.
namespace gradus::kernels {

enum class Isa { kAvx2, kAvx512 };

// The widest set that this processor has, or what set_isa() asked for (tests compare both).
Isa isa();

// Chooses the set for the calls that follow; asking for more than the processor has is a bug and
// throws.
void set_isa(Isa isa);

// Whether this processor has AVX-512 F, BW, DQ and VL.
bool has_avx512();

}  // namespace gradus::kernels
