// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "federated/round.h"

namespace gradus::federated::internal {

// The weighted sums of a round, made of updates that come in tiles: 8 bytes for each parameter and
// vector, whatever the number of clients, and in the end the same memory is the step and then the
// model. add() may be called from many threads.
class UpdateSums {
 public:
  // Zeros, for updates with these weights (round_plan.h). `num_parameters` P and `num_vectors` as
  // of the strategy.
  UpdateSums(int64_t num_parameters, int64_t num_vectors, const RoundResult& plan);

  int64_t size() const { return size_; }

  // Adds values [offset, offset + values.size()) of report k's update. No value may be larger than
  // the report's max_abs.
  void add(size_t k, int64_t offset, std::span<const float> values);

  // Ends adding: the sums as numbers, [P * num_vectors], in place.
  std::span<double> finish();

  // After finish(): the first P doubles d become floats x + d, in place; `read_model` gives x by
  // pieces: it fills `piece` from `offset` on.
  template <class ReadModel>
  Result<std::span<float>> become_model(const ReadModel& read_model) {
    std::vector<float> piece(1 << 14);
    for (int64_t at = 0; at < num_parameters_; at += static_cast<int64_t>(piece.size())) {
      const auto count =
          static_cast<size_t>(std::min(num_parameters_ - at, static_cast<int64_t>(piece.size())));
      const std::span<float> x(piece.data(), count);
      GRADUS_RETURN_IF_ERROR(read_model(at, x));
      add_to_model(at, x);
    }
    give_back_the_rest();
    return std::span(static_cast<float*>(data_.get()), static_cast<size_t>(num_parameters_));
  }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  void add_to_model(int64_t offset, std::span<const float> x);
  void give_back_the_rest();  // all but the model

  int64_t num_parameters_, num_vectors_, size_;
  std::vector<std::vector<double>> weights_VK_;
  std::vector<int> exponents_V_;
  std::unique_ptr<void, Free> data_;  // int64, then double, then float
  std::vector<std::mutex> stripes_;
};

}  // namespace gradus::federated::internal
