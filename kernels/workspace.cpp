// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/internal/workspace.h"

namespace gradus::kernels {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Buffer {
  std::unique_ptr<void, Free> memory;
  size_t capacity = 0;
};

}  // namespace

void* workspace_bytes(Slot slot, size_t num_bytes) {
  static thread_local std::array<Buffer, 2> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (buffer.capacity < num_bytes) {
    const size_t capacity = (num_bytes + 4095) / 4096 * 4096;
    buffer.memory.reset();  // first, so that the old and the new never stand side by side
    buffer.capacity = 0;
    buffer.memory.reset(std::aligned_alloc(4096, capacity));
    if (!buffer.memory) throw std::bad_alloc();
    buffer.capacity = capacity;
  }
  return buffer.memory.get();
}

}  // namespace gradus::kernels
