// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

// Which pages of a large buffer have memory behind them, so that a buffer can keep its layout and
// take memory for the parts in use alone (docs/decisions/0009-zero-by-pages.md). For buffers of
// AlignedBuffer's, which begin at a page. Thread-safe for disjoint ranges.
namespace gradus {

// Pages of 4 KiB instead of huge ones, of which a few floats would take 2 MiB each.
void use_small_pages(std::span<float> values);

// Makes `values` zeros and gives the memory of the whole pages inside them back, until they are
// next touched.
void release_pages(std::span<float> values);

// The same, and until unlock_pages() touching them ends the process: zeros in the place of weights
// would be trained on in silence.
void release_and_lock_pages(std::span<float> values);
void unlock_pages(std::span<float> values);

// Bytes of the pages of `values` that have memory behind them.
int64_t resident_bytes(std::span<const float> values);

}  // namespace gradus
