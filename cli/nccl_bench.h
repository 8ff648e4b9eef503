// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "common/status.h"
#include "kernels/cuda.h"

namespace gradus::cli {

struct NcclBenchOptions {
  int64_t mib = 1024;       // of memory that is moved
  int64_t bucket_mib = 16;  // what goes at once in the second broadcast
  int64_t repeats = 5;      // samples, of each the mean of ten
};

// Times the collectives between the devices of all ranks: a broadcast of all bytes at once and in
// buckets, as weights travel, and the sums and slices of a data-parallel update. Collective over
// `world`; `write` gets a row a case, on every rank.
Status bench_nccl(const kernels::Cuda& cuda, comm::Communicator& world,
                  const NcclBenchOptions& options,
                  const std::function<Status(const nlohmann::ordered_json&)>& write);

}  // namespace gradus::cli
