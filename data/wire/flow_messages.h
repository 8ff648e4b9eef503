// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/metrics.h"
#include "common/status.h"
#include "data/types.h"

// Structs as Protobuf messages (flow.proto) and back, bit for bit: versions, hashes, statuses and
// NaNs included. The text forms of a dump are for people; between ranks these go.
namespace gradus::wire {

class RequestId;
class RolloutRequest;
class Trajectory;

}  // namespace gradus::wire

namespace gradus::data {

void to_message(const RequestId& id, wire::RequestId& message);
void to_message(const RolloutRequest& request, wire::RolloutRequest& message);
void to_message(const Trajectory& trajectory, wire::Trajectory& message);

RequestId from_message(const wire::RequestId& message);
// InvalidArgument if a trajectory is not sound (data::validate), DataLoss if its finish reason is
// unknown.
Result<RolloutRequest> from_message(const wire::RolloutRequest& message);
Result<Trajectory> from_message(const wire::Trajectory& message);

// One message as bytes. Reading them back gives DataLoss if they are not such a message.
std::string encode(const RolloutRequest& request);
std::string encode(const Trajectory& trajectory);
std::string encode(const Metrics& metrics);
Result<RolloutRequest> decode_request(std::string_view bytes);
Result<Trajectory> decode_trajectory(std::string_view bytes);
// DataLoss also for a metric that is not declared.
Result<Metrics> decode_metrics(std::string_view bytes);

}  // namespace gradus::data
