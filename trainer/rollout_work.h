// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/weight_channel.h"
#include "common/metrics.h"
#include "common/status.h"
#include "data/types.h"
#include "records/rollout_dump.h"

// What trainers ask of rollout ranks, and what these answer (docs/cluster.md). Sent as Protobuf
// (data/wire/flow.proto).
namespace gradus::trainer {

struct RolloutWork {
  uint64_t number = 0;          // of the work, from 1; a share that is asked again keeps it
  uint64_t share = 0;           // which part of the work
  int64_t step = 0;             // that will train on it
  comm::WeightStamp weights;    // to sample by
  bool brings_weights = false;  // they come first, on the weight channel
  bool is_end = false;          // there is no more work
  // Whole groups. A response that has ended is among the requests to be scored with its siblings.
  std::vector<data::RolloutRequest> requests{};
};

struct RolloutAnswer {
  uint64_t number = 0;
  uint64_t share = 0;
  std::vector<records::RolloutRecord> records{};  // by request; rewarded where a group has ended
  Metrics metrics{};
  int64_t error_code = 0;  // a StatusCode; 0: well
  std::string error{};
};

std::string encode(const RolloutWork& work);
std::string encode(const RolloutAnswer& answer);
// DataLoss if the bytes are no such message.
Result<RolloutWork> decode_work(std::string_view bytes);
Result<RolloutAnswer> decode_answer(std::string_view bytes);

}  // namespace gradus::trainer
