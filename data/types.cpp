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
  }
  GRADUS_CHECK(false, "finish reason out of range");
}

Status validate(const Trajectory& trajectory) {
  const int64_t length = static_cast<int64_t>(trajectory.token_ids.size());
  if (trajectory.prompt_length < 1 || trajectory.prompt_length > length) {
    return invalid_argument("trajectory {}/{}: prompt_length {} is not in [1, {}]",
                            trajectory.id.prompt_id, trajectory.id.sample_index,
                            trajectory.prompt_length, length);
  }
  const size_t response_length = static_cast<size_t>(length - trajectory.prompt_length);
  if (trajectory.behavior_logprobs.size() != response_length ||
      trajectory.sampling_logprobs.size() != response_length) {
    return invalid_argument("trajectory {}/{}: {} and {} log-probs for {} response tokens",
                            trajectory.id.prompt_id, trajectory.id.sample_index,
                            trajectory.behavior_logprobs.size(),
                            trajectory.sampling_logprobs.size(), response_length);
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
  if (!trajectory.segments.empty() && covered != static_cast<int64_t>(response_length)) {
    return invalid_argument("trajectory {}/{}: segments have {} of {} response tokens",
                            trajectory.id.prompt_id, trajectory.id.sample_index, covered,
                            response_length);
  }
  return {};
}

void append_token(Trajectory& trajectory, int32_t token_id, float behavior_logprob,
                  float sampling_logprob) {
  trajectory.token_ids.push_back(token_id);
  trajectory.behavior_logprobs.push_back(behavior_logprob);
  trajectory.sampling_logprobs.push_back(sampling_logprob);
}

}  // namespace gradus::data
