// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace gradus {

// A zeroed array of floats aligned to 64 bytes, for weights, gradients and activations. Comes from
// the kernel by whole pages (huge ones where it can), so memory counts only once it is touched.
// Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size);  // floats, >= 0
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  float* data() { return data_; }
  const float* data() const { return data_; }
  int64_t size() const { return size_; }
  // Grows to at least `size` floats; what was in it is lost when it grows.
  void reserve(int64_t size);
  void fill_zero();

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gradus
