// SPDX-License-Identifier: Apache-2.0
#include "data/types.h"

namespace gradus::data {

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kInterrupted:
      return "interrupted";
    case FinishReason::kToolLimit:
      return "tool_limit";
  }
  GRADUS_CHECK(false, "finish reason out of range");
}

const char* tool_status_name(ToolStatus status) {
  switch (status) {
    case ToolStatus::kOk:
      return "ok";
    case ToolStatus::kInvalid:
      return "invalid";
    case ToolStatus::kError:
      return "error";
    case ToolStatus::kTimeout:
      return "timeout";
  }
  GRADUS_CHECK(false, "tool status out of range");
}

Status validate(const Trajectory& trajectory) {
  const int64_t length = static_cast<int64_t>(trajectory.token_ids.size());
  if (trajectory.prompt_length < 1 || trajectory.prompt_length > length) {
    return invalid_argument("trajectory {}/{}: prompt_length {} is not in [1, {}]",
                            trajectory.id.prompt_id, trajectory.id.sample_index,
                            trajectory.prompt_length, length);
  }
  int64_t num_observed = 0, observed_end = 0;
  for (const Observation& observation : trajectory.observations) {
    if (observation.begin < observed_end || observation.end <= observation.begin ||
        observation.end > length - trajectory.prompt_length) {
      return invalid_argument(
          "trajectory {}/{}: an observation has tokens [{}, {}) of {} response tokens, after one "
          "that ends at {}",
          trajectory.id.prompt_id, trajectory.id.sample_index, observation.begin, observation.end,
          length - trajectory.prompt_length, observed_end);
    }
    observed_end = observation.end;
    num_observed += observation.end - observation.begin;
  }
  const size_t num_sampled = static_cast<size_t>(length - trajectory.prompt_length - num_observed);
  if (trajectory.behavior_logprobs.size() != num_sampled ||
      trajectory.sampling_logprobs.size() != num_sampled) {
    return invalid_argument("trajectory {}/{}: {} and {} log-probs for {} sampled tokens",
                            trajectory.id.prompt_id, trajectory.id.sample_index,
                            trajectory.behavior_logprobs.size(),
                            trajectory.sampling_logprobs.size(), num_sampled);
  }
  int64_t covered = 0;
  for (const Segment& segment : trajectory.segments) {
    if (segment.begin != covered || segment.end <= segment.begin) {
      return invalid_argument("trajectory {}/{}: a segment has tokens [{}, {}) after {} tokens",
                              trajectory.id.prompt_id, trajectory.id.sample_index, segment.begin,
                              segment.end, covered);
    }
    covered = segment.end;
  }
  if (!trajectory.segments.empty() && covered != static_cast<int64_t>(num_sampled)) {
    return invalid_argument("trajectory {}/{}: segments have {} of {} sampled tokens",
                            trajectory.id.prompt_id, trajectory.id.sample_index, covered,
                            num_sampled);
  }
  return {};
}

void append_token(Trajectory& trajectory, int32_t token_id, float behavior_logprob,
                  float sampling_logprob) {
  trajectory.token_ids.push_back(token_id);
  trajectory.behavior_logprobs.push_back(behavior_logprob);
  trajectory.sampling_logprobs.push_back(sampling_logprob);
}

void append_observation(Trajectory& trajectory, std::span<const int32_t> token_ids,
                        Observation observation) {
  GRADUS_CHECK(!token_ids.empty(), "an observation has tokens");
  observation.begin = static_cast<int64_t>(trajectory.token_ids.size()) - trajectory.prompt_length;
  observation.end = observation.begin + static_cast<int64_t>(token_ids.size());
  trajectory.token_ids.insert(trajectory.token_ids.end(), token_ids.begin(), token_ids.end());
  trajectory.observations.push_back(std::move(observation));
}

}  // namespace gradus::data
