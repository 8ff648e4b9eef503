// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gradus::model {

// Which pages of a key-value cache are taken, and by how many sequences each. The lowest free
// number first, so that what is taken is a function of the calls. Not thread-safe.
class PagePool {
 public:
  explicit PagePool(int64_t num_pages);  // >= 1

  int64_t num_pages() const { return static_cast<int64_t>(counts_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int32_t take();              // with count 1; there must be one
  void share(int32_t page);    // count + 1
  void release(int32_t page);  // count - 1; free at 0
  bool is_shared(int32_t page) const { return counts_[static_cast<size_t>(page)] > 1; }
  void clear();  // frees every page

 private:
  std::vector<int32_t> counts_;
  std::vector<int32_t> free_;  // a heap: the lowest number on top
};

}  // namespace gradus::model
