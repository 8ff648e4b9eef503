// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "records/rollout_dump.h"

namespace gradus::wire {
class RolloutRecord;
}

// Responses with their rewards as Protobuf messages (data/wire/flow.proto): how one rank sends them
// to another. Every bit and every byte comes back; a dump (rollout_dump.h) is for people.
namespace gradus::records {

void to_message(const RolloutRecord& record, wire::RolloutRecord& message);
// InvalidArgument if the trajectory is not sound.
Result<RolloutRecord> from_message(const wire::RolloutRecord& message);

std::string encode(std::span<const RolloutRecord> records);
// DataLoss if the bytes are no such message.
Result<std::vector<RolloutRecord>> decode_rollouts(std::string_view bytes);

}  // namespace gradus::records
