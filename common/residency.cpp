// SPDX-License-Identifier: Apache-2.0
#include "common/residency.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "common/check.h"

namespace gradus {
namespace {

struct Pages {
  char* begin = nullptr;
  size_t bytes = 0;
};

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// The pages that lie wholly inside `values`.
Pages inner_pages(std::span<float> values) {
  const uintptr_t size = page_bytes();
  const uintptr_t first = reinterpret_cast<uintptr_t>(values.data());
  const uintptr_t begin = (first + size - 1) / size * size;
  const uintptr_t end = (first + values.size_bytes()) / size * size;
  if (begin >= end) return {};
  return {reinterpret_cast<char*>(begin), end - begin};
}

}  // namespace

void use_small_pages(std::span<float> values) {
  const Pages pages = inner_pages(values);
  // Not to be had with every kernel; then memory is saved in larger pieces.
  if (pages.bytes > 0) static_cast<void>(madvise(pages.begin, pages.bytes, MADV_NOHUGEPAGE));
}

void release_pages(std::span<float> values) {
  const Pages pages = inner_pages(values);
  char* const begin = reinterpret_cast<char*>(values.data());
  char* const end = begin + values.size_bytes();
  if (pages.bytes == 0) {
    std::memset(begin, 0, values.size_bytes());
    return;
  }
  std::memset(begin, 0, static_cast<size_t>(pages.begin - begin));
  std::memset(pages.begin + pages.bytes, 0, static_cast<size_t>(end - pages.begin) - pages.bytes);
  GRADUS_CHECK(madvise(pages.begin, pages.bytes, MADV_DONTNEED) == 0, "madvise(MADV_DONTNEED)");
}

void release_and_lock_pages(std::span<float> values) {
  release_pages(values);
  const Pages pages = inner_pages(values);
  if (pages.bytes == 0) return;
  GRADUS_CHECK(mprotect(pages.begin, pages.bytes, PROT_NONE) == 0, "mprotect(PROT_NONE)");
}

void unlock_pages(std::span<float> values) {
  const Pages pages = inner_pages(values);
  if (pages.bytes == 0) return;
  GRADUS_CHECK(mprotect(pages.begin, pages.bytes, PROT_READ | PROT_WRITE) == 0, "mprotect");
}

int64_t resident_bytes(std::span<const float> values) {
  if (values.empty()) return 0;
  const uintptr_t size = page_bytes();
  const uintptr_t first = reinterpret_cast<uintptr_t>(values.data());
  const uintptr_t begin = first / size * size;
  const uintptr_t end = (first + values.size_bytes() + size - 1) / size * size;
  std::vector<unsigned char> in_core((end - begin) / size);
  GRADUS_CHECK(mincore(reinterpret_cast<void*>(begin), end - begin, in_core.data()) == 0,
               "mincore");
  int64_t num_pages = 0;
  for (const unsigned char page : in_core) num_pages += page & 1;
  return num_pages * static_cast<int64_t>(size);
}

}  // namespace gradus
