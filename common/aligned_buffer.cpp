// SPDX-License-Identifier: Apache-2.0
#include "common/aligned_buffer.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "common/parallel.h"

namespace gradus {

AlignedBuffer::AlignedBuffer(int64_t size) : size_(size) {
  if (size == 0) return;
  const size_t bytes = static_cast<size_t>(size) * sizeof(float);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, bytes, MADV_HUGEPAGE);
  data_ = static_cast<float*>(memory);
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_) * sizeof(float));
}

void AlignedBuffer::reserve(int64_t size) {
  if (size > size_) *this = AlignedBuffer(size);
}

void AlignedBuffer::fill_zero() {
  parallel_for(size_, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    std::memset(data_ + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  });
}

}  // namespace gradus
