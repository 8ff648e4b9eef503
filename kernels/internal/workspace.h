// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace gradus::kernels {

// Scratch memory of the calling thread, 64-byte aligned, contents undefined; it grows to the
// largest size asked for and stays until the thread ends. Each slot is one buffer: a second call
// with the same slot gives the same memory, so every use of a slot within one kernel call has one
// owner:
//   kShared  packed by the calling thread's job and read by all its workers
//   kLocal   private to one work item
enum class Slot { kShared, kLocal };
void* workspace_bytes(Slot slot, size_t num_bytes);

template <class T>
T* workspace(Slot slot, size_t count) {
  return static_cast<T*>(workspace_bytes(slot, count * sizeof(T)));
}

}  // namespace gradus::kernels
