// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/update_sums.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "federated/internal/fixed_point.h"
#include "federated/internal/round_plan.h"

namespace gradus::federated::internal {
namespace {

constexpr int64_t kStripe = 1 << 14;  // values that a lock is for

}  // namespace

void UpdateSums::Free::operator()(void* data) const { std::free(data); }

UpdateSums::UpdateSums(int64_t num_parameters, int64_t num_vectors, const RoundResult& plan)
    : num_parameters_(num_parameters),
      num_vectors_(num_vectors),
      size_(num_parameters * num_vectors),
      // From the kernel, zeroed: it counts once it is touched.
      data_(std::calloc(static_cast<size_t>(size_), sizeof(int64_t))),
      stripes_(static_cast<size_t>((size_ + kStripe - 1) / kStripe)) {
  GRADUS_CHECK(data_ != nullptr, "no memory for the sums of a round");
  for (int64_t v = 0; v < num_vectors; ++v) {
    std::vector<double>& weights = weights_VK_.emplace_back();
    for (size_t k = 0; k < plan.reports_K.size(); ++k) weights.push_back(weight_in(plan, k, v));
    exponents_V_.push_back(exponent_of(plan, v));
  }
}

void UpdateSums::add(size_t k, int64_t offset, std::span<const float> values) {
  auto* sums = static_cast<int64_t*>(data_.get());
  while (!values.empty()) {
    // Neither over the end of a stripe nor over that of a vector.
    const int64_t v = offset / num_parameters_;
    const int64_t end = std::min((v + 1) * num_parameters_, (offset / kStripe + 1) * kStripe);
    const auto count =
        static_cast<size_t>(std::min(static_cast<int64_t>(values.size()), end - offset));
    const double weight = weights_VK_[static_cast<size_t>(v)][k];
    if (weight != 0) {
      const std::lock_guard lock(stripes_[static_cast<size_t>(offset / kStripe)]);
      add_fixed_point(weight, values.first(count), exponents_V_[static_cast<size_t>(v)],
                      {sums + offset, count});
    }
    values = values.subspan(count);
    offset += static_cast<int64_t>(count);
  }
}

std::span<double> UpdateSums::finish() {
  auto* bytes = static_cast<char*>(data_.get());
  std::vector<int64_t> sums(kStripe);
  std::vector<double> numbers(kStripe);
  for (int64_t at = 0; at < size_;) {
    const int64_t v = at / num_parameters_;
    const auto count =
        static_cast<size_t>(std::min({kStripe, (v + 1) * num_parameters_ - at, size_ - at}));
    std::memcpy(sums.data(), bytes + 8 * at, 8 * count);
    from_fixed_point({sums.data(), count}, exponents_V_[static_cast<size_t>(v)], numbers);
    std::memcpy(bytes + 8 * at, numbers.data(), 8 * count);
    at += static_cast<int64_t>(count);
  }
  return {static_cast<double*>(data_.get()), static_cast<size_t>(size_)};
}

void UpdateSums::add_to_model(int64_t offset, std::span<const float> x) {
  auto* bytes = static_cast<char*>(data_.get());
  for (size_t j = 0; j < x.size(); ++j) {
    // Written to the left of what is still to be read.
    const auto at = static_cast<size_t>(offset) + j;
    double step = 0;
    std::memcpy(&step, bytes + 8 * at, 8);
    const auto next = static_cast<float>(static_cast<double>(x[j]) + step);
    std::memcpy(bytes + 4 * at, &next, 4);
  }
}

void UpdateSums::give_back_the_rest() {
  void* smaller = std::realloc(data_.get(), static_cast<size_t>(num_parameters_) * sizeof(float));
  if (smaller == nullptr) return;  // then it stays as large as it was
  (void)data_.release();
  data_.reset(smaller);
}

}  // namespace gradus::federated::internal
