// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>
#include <span>

namespace gradus::privacy::internal {

// Discrete Fourier transform in place, radix 2; the size is a power of two. Forward has
// exp(-2 pi i jk / n), inverse the other sign and the factor 1 / n. Twiddle factors come from sin
// and cos of their own angle, so that errors stay near eps log n.
void fft(std::span<std::complex<double>> values, bool is_inverse);

}  // namespace gradus::privacy::internal
