// SPDX-License-Identifier: Apache-2.0
#include "comm/communicator.h"

#include <cstring>

#include "kernels/norm.h"

namespace gradus::comm {

void all_reduce_tree(Communicator& communicator, std::span<float> values,
                     std::span<float> scratch) {
  const int rank = communicator.rank(), size = communicator.size();
  GRADUS_CHECK(scratch.size() >= values.size(), "all_reduce_tree needs scratch memory");
  const std::span<float> received = scratch.first(values.size());
  for (int step = 1; step < size; step *= 2) {
    if (rank % (2 * step) == step) {
      communicator.send(values, rank - step);
      break;
    }
    if (rank % (2 * step) == 0 && rank + step < size) {
      communicator.receive(received, rank + step);
      kernels::add_in_place(values.data(), received.data(), static_cast<int64_t>(values.size()));
    }
  }
  if (size > 1) communicator.broadcast(values, 0);
}

std::vector<double> all_reduce_sum(Communicator& communicator, std::span<const double> values) {
  std::vector<double> sums(values.size(), 0.0);
  const std::string mine(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  for (const std::string& theirs : communicator.all_gather(mine)) {
    GRADUS_CHECK(theirs.size() == mine.size(), "ranks sum different numbers of values");
    for (size_t i = 0; i < sums.size(); ++i) {
      double value;
      std::memcpy(&value, theirs.data() + i * sizeof(double), sizeof(double));
      sums[i] += value;
    }
  }
  return sums;
}

Status agree(Communicator& communicator, const Status& status) {
  const std::string mine =
      status.ok() ? ""
                  : static_cast<char>('0' + static_cast<int>(status.code())) + status.message();
  const std::vector<std::string> all = communicator.all_gather(mine);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].empty()) continue;
    const StatusCode code = static_cast<StatusCode>(all[rank][0] - '0');
    const std::string message = all[rank].substr(1);
    return {code, all.size() == 1 ? message : fmt::format("rank {}: {}", rank, message)};
  }
  return {};
}

}  // namespace gradus::comm
