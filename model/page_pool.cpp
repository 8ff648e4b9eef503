// SPDX-License-Identifier: Apache-2.0
#include "model/page_pool.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "common/check.h"

namespace gradus::model {

PagePool::PagePool(int64_t num_pages) : counts_(static_cast<size_t>(num_pages)) {
  GRADUS_CHECK(num_pages >= 1, "a cache needs at least one page");
  clear();
}

int32_t PagePool::take() {
  GRADUS_CHECK(!free_.empty(), "no free page");
  std::pop_heap(free_.begin(), free_.end(), std::greater<>());
  const int32_t page = free_.back();
  free_.pop_back();
  counts_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::share(int32_t page) {
  GRADUS_CHECK(counts_[static_cast<size_t>(page)] > 0, "sharing a free page");
  ++counts_[static_cast<size_t>(page)];
}

void PagePool::release(int32_t page) {
  int32_t& count = counts_[static_cast<size_t>(page)];
  GRADUS_CHECK(count > 0, "releasing a free page");
  if (--count == 0) {
    free_.push_back(page);
    std::push_heap(free_.begin(), free_.end(), std::greater<>());
  }
}

void PagePool::clear() {
  std::fill(counts_.begin(), counts_.end(), 0);
  free_.resize(counts_.size());
  std::iota(free_.begin(), free_.end(), 0);  // ascending: already a heap
}

}  // namespace gradus::model
