// SPDX-License-Identifier: Apache-2.0
#include "cli/nccl_bench.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "comm/device_communicator.h"

namespace gradus::cli {
namespace {

constexpr int kCallsPerSample = 10;

}  // namespace

Status bench_nccl(const kernels::Cuda& cuda, comm::Communicator& world,
                  const NcclBenchOptions& options,
                  const std::function<Status(const nlohmann::ordered_json&)>& write) {
  const auto devices = comm::DeviceCommunicator::create(cuda, world);
  GRADUS_RETURN_IF_ERROR(devices.status());
  comm::DeviceCommunicator& all = **devices;
  const int64_t bytes = options.mib << 20, bucket = options.bucket_mib << 20;
  const int64_t slice = bytes / 4 / all.size();  // values of a rank
  auto memory = kernels::CudaBuffer::allocate(cuda, static_cast<size_t>(bytes));
  GRADUS_RETURN_IF_ERROR(memory.status());
  GRADUS_RETURN_IF_ERROR(memory->fill(0));
  char* const p = memory->as<char>();
  float* const values = memory->as<float>();
  float* const mine = values + all.rank() * slice;
  const auto broadcast_in = [&](int64_t part) {
    for (int64_t i = 0; i < bytes; i += part) {
      GRADUS_RETURN_IF_ERROR(all.broadcast(p + i, std::min(part, bytes - i), 0, nullptr));
    }
    return Status();
  };
  const std::vector<std::pair<std::string, std::function<Status()>>> cases = {
      {"broadcast", [&] { return broadcast_in(bytes); }},
      {fmt::format("broadcast in buckets of {} MiB", options.bucket_mib),
       [&] { return broadcast_in(bucket); }},
      {"all_reduce", [&] { return all.all_reduce(values, values, bytes / 4, nullptr); }},
      {"reduce_scatter", [&] { return all.reduce_scatter(values, mine, slice, nullptr); }},
      {"all_gather", [&] { return all.all_gather(mine, values, slice * 4, nullptr); }}};
  for (const auto& [name, call] : cases) {
    std::vector<double> ms;
    for (int64_t sample = -1; sample < options.repeats; ++sample) {  // the first one warms up
      world.barrier();
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kCallsPerSample; ++i) GRADUS_RETURN_IF_ERROR(call());
      GRADUS_RETURN_IF_ERROR(all.wait());
      const std::chrono::duration<double, std::milli> taken =
          std::chrono::steady_clock::now() - begin;
      if (sample >= 0) ms.push_back(taken.count() / kCallsPerSample);
    }
    std::sort(ms.begin(), ms.end());
    const double median = ms[ms.size() / 2];
    GRADUS_RETURN_IF_ERROR(write({{"case", name},
                                  {"ranks", all.size()},
                                  {"device", cuda.description()},
                                  {"bytes", bytes},
                                  {"ms_median", median},
                                  {"ms_min", ms.front()},
                                  {"gb_per_s", static_cast<double>(bytes) / median / 1e6}}));
  }
  return {};
}

}  // namespace gradus::cli
