// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "kernels/cuda.h"

namespace gradus::cli {

// Times the kernels of libgradus_cuda.so on the device beside what they are compared with. Each run
// starts with a cold L2 (a buffer larger than it is written in between); times are by CUDA events
// around one call. Not thread-safe.
class KernelBench {
 public:
  using Json = nlohmann::ordered_json;
  using Writer = std::function<Status(const Json&)>;

  KernelBench(const kernels::Cuda& cuda, int64_t repeats, Writer write)
      : cuda_(cuda), repeats_(repeats), write_(std::move(write)) {}

  // Calibration first (read rate, matrix products), then every case, largest shapes last; `quick`
  // keeps one shape. `only` leaves one kind of case: linear, sample, score or head_training; empty
  // = all.
  Status run(bool quick, const std::string& only);

 private:
  struct Times {
    double median_us = 0, min_us = 0;
  };
  using Call = std::function<Status()>;

  Result<Times> time(const Call& call);
  Status calibrate();
  Status sampler(int64_t v, int64_t d, const std::vector<int64_t>& batches);
  // The forward's products for each number of rows.
  Status linear(int64_t n, int64_t k, const std::vector<int64_t>& batches);
  Status scorer(int64_t rows, int64_t v, int64_t d);
  // The head's forward and backward in both modes, and parts of them, beside the products alone.
  Status head_training(int64_t rows, int64_t v, int64_t d);
  // Adds times, share of the roof and, where there is one, the ratio to the peer; writes the row.
  Status report(Json row, const Times& times, double bytes, double flops, const Times* peer);

  const kernels::Cuda& cuda_;
  int64_t repeats_;
  Writer write_;
  std::optional<kernels::CudaBuffer> flush_;
  std::optional<kernels::CudaTimer> timer_;
  double read_bytes_per_us_ = 0;
  double flops_per_us_ = 0;
};

}  // namespace gradus::cli
