// SPDX-License-Identifier: Apache-2.0
#include "retriever/internal/flat_index.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "common/aligned_buffer.h"
#include "kernels/gemm.h"
#include "kernels/nearest.h"
#include "retriever/internal/bytes.h"

namespace gradus::retriever::internal {
namespace {

using kernels::kPanelWidth;

// All vectors in the panels of kernels/gemm.h; search is kernels::nearest_rows.
class FlatIndex : public VectorIndex {
 public:
  explicit FlatIndex(const IndexOptions& options) : VectorIndex("flat", options) {}

  int64_t size() const override { return static_cast<int64_t>(ids_.size()); }
  bool is_exact() const override { return true; }

 private:
  bool contains(int64_t id) const override { return place_of_.contains(id); }

  Status do_add(std::span<const int64_t> ids, const float* vectors) override {
    const int64_t begin = size(), end = begin + static_cast<int64_t>(ids.size());
    reserve(end);
    int64_t row = begin;
    // To the end of the last panel by single rows, the rest by whole panels.
    for (; row < end && row % kPanelWidth != 0; ++row)
      set_row(row, vectors + (row - begin) * width());
    if (row < end) {
      kernels::pack_weight(vectors + (row - begin) * width(), width(), end - row, width(),
                           panels_.data() + row * width());
    }
    for (const int64_t id : ids) {
      place_of_[id] = size();
      ids_.push_back(id);
    }
    return {};
  }

  // The last row takes the place of a removed one: order does not show in lists.
  Status do_remove(std::span<const int64_t> ids) override {
    std::vector<float> last(static_cast<size_t>(width()));
    for (const int64_t id : ids) {
      const int64_t place = place_of_[id];
      get_row(size() - 1, last.data());
      set_row(place, last.data());
      ids_[place] = ids_.back();
      place_of_[ids_[place]] = place;
      ids_.pop_back();
      place_of_.erase(id);
    }
    return {};
  }

  Status do_search(const float* queries, Hits& hits) const override {
    kernels::nearest_rows({.queries_MK = queries,
                           .queries_stride = width(),
                           .rows_packed = panels_.data(),
                           .ids_N = ids_.data(),
                           .m = hits.m,
                           .n = size(),
                           .k = width(),
                           .top = hits.top,
                           .scores_MT = hits.scores.data(),
                           .ids_MT = hits.ids.data()});
    return {};
  }

  Result<std::string> serialise() const override {
    std::string bytes;
    append_values(bytes, std::span<const int64_t>(ids_));
    const size_t begin = bytes.size();
    bytes.resize(begin + static_cast<size_t>(size() * width()) * sizeof(float));
    std::vector<float> row(static_cast<size_t>(width()));
    for (int64_t i = 0; i < size(); ++i) {
      get_row(i, row.data());
      std::memcpy(bytes.data() + begin + static_cast<size_t>(i * width()) * sizeof(float),
                  row.data(), row.size() * sizeof(float));
    }
    return bytes;
  }

  Status deserialise(std::string_view bytes) override {
    std::vector<int64_t> ids;
    GRADUS_RETURN_IF_ERROR(take_values(bytes, ids));
    if (bytes.size() != ids.size() * static_cast<size_t>(width()) * sizeof(float)) {
      return data_loss("{} bytes of vectors for {} documents of width {}", bytes.size(), ids.size(),
                       width());
    }
    std::vector<float> vectors(ids.size() * static_cast<size_t>(width()));
    if (!bytes.empty()) std::memcpy(vectors.data(), bytes.data(), bytes.size());
    return add(ids, vectors);
  }

  void reserve(int64_t rows) {
    const int64_t wanted = kernels::packed_size(rows, width());
    if (wanted <= panels_.size()) return;
    // By halves, so that many small adds copy each row a few times only.
    AlignedBuffer larger(std::max(wanted, panels_.size() + panels_.size() / 2));
    std::copy_n(panels_.data(), kernels::packed_size(size(), width()), larger.data());
    panels_ = std::move(larger);
  }
  float* row_begin(int64_t row) {
    return panels_.data() + row / kPanelWidth * kPanelWidth * width() + row % kPanelWidth;
  }
  void set_row(int64_t row, const float* values) {
    float* column = row_begin(row);
    for (int64_t i = 0; i < width(); ++i) column[i * kPanelWidth] = values[i];
  }
  void get_row(int64_t row, float* values) const {
    const float* column = const_cast<FlatIndex*>(this)->row_begin(row);
    for (int64_t i = 0; i < width(); ++i) values[i] = column[i * kPanelWidth];
  }

  AlignedBuffer panels_;
  std::vector<int64_t> ids_;  // by place
  std::unordered_map<int64_t, int64_t> place_of_;
};

}  // namespace

Result<std::unique_ptr<VectorIndex>> make_flat_index(const IndexOptions& options) {
  return std::unique_ptr<VectorIndex>(new FlatIndex(options));
}

}  // namespace gradus::retriever::internal
