// SPDX-License-Identifier: Apache-2.0
#include "data/wire/flow_messages.h"

#include <limits>

#include "data/wire/flow.pb.h"

namespace gradus::data {
namespace {

template <class Message>
Status parse(std::string_view bytes, const char* what, Message& message) {
  // Protobuf counts bytes in an int.
  const bool fits = bytes.size() <= static_cast<size_t>(std::numeric_limits<int>::max());
  if (fits && message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return {};
  return data_loss("a message of {} bytes is no {}; it was cut or damaged on its way", bytes.size(),
                   what);
}

void to_message(const SamplingParams& sampling, wire::SamplingParams& message) {
  message.set_temperature(sampling.temperature);
  message.set_greedy(sampling.greedy);
  message.set_top_k(sampling.top_k);
  message.set_top_p(sampling.top_p);
  message.set_min_p(sampling.min_p);
  message.set_max_new_tokens(sampling.max_new_tokens);
  message.mutable_stop_ids()->Assign(sampling.stop_ids.begin(), sampling.stop_ids.end());
  message.mutable_stop_texts()->Assign(sampling.stop_texts.begin(), sampling.stop_texts.end());
}

SamplingParams from_message(const wire::SamplingParams& message) {
  return {message.temperature(),
          message.greedy(),
          message.top_k(),
          message.top_p(),
          message.min_p(),
          message.max_new_tokens(),
          {message.stop_ids().begin(), message.stop_ids().end()},
          {message.stop_texts().begin(), message.stop_texts().end()}};
}

wire::FinishReason to_message(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return wire::STOP;
    case FinishReason::kLength:
      return wire::LENGTH;
    case FinishReason::kCancelled:
      return wire::CANCELLED;
    case FinishReason::kInterrupted:
      return wire::INTERRUPTED;
    case FinishReason::kToolLimit:
      return wire::TOOL_LIMIT;
  }
  GRADUS_CHECK(false, "finish reason out of range");
}

Result<FinishReason> from_message(wire::FinishReason reason) {
  switch (reason) {
    case wire::STOP:
      return FinishReason::kStop;
    case wire::LENGTH:
      return FinishReason::kLength;
    case wire::CANCELLED:
      return FinishReason::kCancelled;
    case wire::INTERRUPTED:
      return FinishReason::kInterrupted;
    case wire::TOOL_LIMIT:
      return FinishReason::kToolLimit;
    default:  // any integer can arrive
      return data_loss("a trajectory's finish reason is {}, which no version knows",
                       static_cast<int>(reason));
  }
}

}  // namespace

void to_message(const RequestId& id, wire::RequestId& message) {
  message.set_prompt_id(id.prompt_id);
  message.set_sample_index(id.sample_index);
}

RequestId from_message(const wire::RequestId& message) {
  return {message.prompt_id(), message.sample_index()};
}

void to_message(const RolloutRequest& request, wire::RolloutRequest& message) {
  to_message(request.id, *message.mutable_id());
  message.mutable_token_ids()->Assign(request.token_ids.begin(), request.token_ids.end());
  to_message(request.sampling, *message.mutable_sampling());
  message.set_rng_key(request.rng_key);
  if (!request.begun.token_ids.empty()) to_message(request.begun, *message.mutable_begun());
  message.set_token_budget(request.token_budget);
}

void to_message(const Trajectory& trajectory, wire::Trajectory& message) {
  to_message(trajectory.id, *message.mutable_id());
  message.mutable_token_ids()->Assign(trajectory.token_ids.begin(), trajectory.token_ids.end());
  message.set_prompt_length(trajectory.prompt_length);
  message.mutable_behavior_logprobs()->Assign(trajectory.behavior_logprobs.begin(),
                                              trajectory.behavior_logprobs.end());
  message.mutable_sampling_logprobs()->Assign(trajectory.sampling_logprobs.begin(),
                                              trajectory.sampling_logprobs.end());
  message.set_finish_reason(to_message(trajectory.finish_reason));
  message.set_policy_version(trajectory.policy_version);
  message.set_weights_hash(trajectory.weights_hash);
  message.set_text(trajectory.text);
  for (const Segment& segment : trajectory.segments) {
    wire::Segment& added = *message.add_segments();
    added.set_begin(segment.begin);
    added.set_end(segment.end);
    added.set_policy_version(segment.policy_version);
    added.set_weights_hash(segment.weights_hash);
  }
  for (const Observation& observation : trajectory.observations) {
    wire::Observation& added = *message.add_observations();
    added.set_begin(observation.begin);
    added.set_end(observation.end);
    added.set_tool(observation.tool);
    added.set_status(static_cast<wire::ToolStatus>(observation.status));
    added.set_is_cut(observation.is_cut);
    added.set_text(observation.text);
  }
}

Result<Trajectory> from_message(const wire::Trajectory& message) {
  const Result<FinishReason> finish_reason = from_message(message.finish_reason());
  if (!finish_reason.ok()) return finish_reason.status();
  Trajectory trajectory = {from_message(message.id()),
                           {message.token_ids().begin(), message.token_ids().end()},
                           message.prompt_length(),
                           {message.behavior_logprobs().begin(), message.behavior_logprobs().end()},
                           {message.sampling_logprobs().begin(), message.sampling_logprobs().end()},
                           *finish_reason,
                           message.policy_version(),
                           message.weights_hash(),
                           message.text(),
                           {}};
  for (const wire::Segment& segment : message.segments()) {
    trajectory.segments.push_back(
        {segment.begin(), segment.end(), segment.policy_version(), segment.weights_hash()});
  }
  for (const wire::Observation& observation : message.observations()) {
    if (!wire::ToolStatus_IsValid(observation.status())) {
      return invalid_argument("a message has the tool status {}; it comes from another build",
                              static_cast<int>(observation.status()));
    }
    trajectory.observations.push_back({observation.begin(), observation.end(), observation.tool(),
                                       static_cast<ToolStatus>(observation.status()),
                                       observation.is_cut(), observation.text()});
  }
  GRADUS_RETURN_IF_ERROR(validate(trajectory));
  return trajectory;
}

Result<RolloutRequest> from_message(const wire::RolloutRequest& message) {
  RolloutRequest request = {from_message(message.id()),
                            {message.token_ids().begin(), message.token_ids().end()},
                            from_message(message.sampling()),
                            message.rng_key(),
                            {},
                            message.token_budget()};
  if (message.has_begun()) {
    Result<Trajectory> begun = from_message(message.begun());
    if (!begun.ok()) return begun.status();
    request.begun = std::move(*begun);
  }
  return request;
}

std::string encode(const RolloutRequest& request) {
  wire::RolloutRequest message;
  to_message(request, message);
  return message.SerializeAsString();
}

std::string encode(const Trajectory& trajectory) {
  wire::Trajectory message;
  to_message(trajectory, message);
  return message.SerializeAsString();
}

std::string encode(const Metrics& metrics) {
  wire::MetricParts message;
  for (const MetricPart& part : metrics.parts()) {
    wire::MetricPart& added = *message.add_parts();
    added.set_name(part.name);
    added.set_value(part.value);
    added.set_weight(part.weight);
  }
  return message.SerializeAsString();
}

Result<RolloutRequest> decode_request(std::string_view bytes) {
  wire::RolloutRequest message;
  GRADUS_RETURN_IF_ERROR(parse(bytes, "request", message));
  return from_message(message);
}

Result<Trajectory> decode_trajectory(std::string_view bytes) {
  wire::Trajectory message;
  GRADUS_RETURN_IF_ERROR(parse(bytes, "trajectory", message));
  return from_message(message);
}

Result<Metrics> decode_metrics(std::string_view bytes) {
  wire::MetricParts message;
  GRADUS_RETURN_IF_ERROR(parse(bytes, "list of metrics", message));
  Metrics metrics;
  for (const wire::MetricPart& part : message.parts()) {
    if (find_metric(part.name()) == nullptr) {
      return data_loss("a message has the metric '{}', which is not declared", part.name());
    }
    metrics.restore({part.name(), part.value(), part.weight()});
  }
  return metrics;
}

}  // namespace gradus::data
