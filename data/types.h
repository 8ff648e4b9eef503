// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

// The data that flows from a dataset row to a weight update (docs/architecture.md):
//
//   Prompt -> RolloutRequest -> Trajectory -> RewardBreakdown -> Advantage -> MicroBatch -> Update
//
// Plain structs; each has a free validate() that names the first broken invariant with both numbers
// and is called once at a module boundary. Ids are carried to the end.
//
// Letters: P prompt tokens, L prompt + response tokens.
namespace gradus::data {

// One task to answer. Example: {7, {15, 20, 11}, "2+3=", "arithmetic", "5", {{"level", "1"}}}.
struct Prompt {
  uint64_t prompt_id = 0;                       // index of the row in its data set
  std::vector<int32_t> token_ids;               // [P], P >= 1, after the chat template
  std::string text;                             // what token_ids encode
  std::string task;                             // `data_source` of the row; routes rewards
  std::string answer;                           // ground truth, may be empty
  std::map<std::string, std::string> metadata;  // `extra_info`, values as JSON text unless strings
};

// How to sample. The order of the filters is: temperature, top-k, top-p, min-p, renormalise.
struct SamplingParams {
  double temperature = 1.0;      // > 0; ignored when greedy
  bool greedy = false;           // the largest logit, lowest id on ties; log-probs at temperature 1
  int64_t top_k = 0;             // keep the k most likely; 0 keeps all
  double top_p = 1.0;            // in (0, 1]; smallest set reaching p, the crossing token stays
  double min_p = 0.0;            // in [0, 1); drop tokens below min_p times the largest probability
  int64_t max_new_tokens = 128;  // >= 1
  std::vector<int32_t> stop_ids;        // a stop id ends the response and is part of it
  std::vector<std::string> stop_texts;  // the response ends with the token that completes one
};

struct RequestId {
  uint64_t prompt_id = 0;
  int32_t sample_index = 0;  // in [0, G)
  bool operator==(const RequestId&) const = default;
};

// kInterrupted: at its token budget, to be gone on with. kToolLimit: it called a tool when no call
// was left.
enum class FinishReason { kStop, kLength, kCancelled, kInterrupted, kToolLimit };
const char* finish_reason_name(FinishReason reason);  // "stop", "length", "cancelled", ...

// How a call of a tool ended. kInvalid: the call itself is wrong, e.g. not an expression; kError:
// the tool could not do it; kTimeout: not in time. The model reads why in each case.
enum class ToolStatus { kOk, kInvalid, kError, kTimeout };
const char* tool_status_name(ToolStatus status);  // "ok", "invalid", "error", "timeout"

// Response tokens [begin, end) that a tool wrote and nobody sampled. They have no log-prob, no
// advantage and no loss.
struct Observation {
  int64_t begin = 0, end = 0;  // end > begin
  std::string tool;
  ToolStatus status = ToolStatus::kOk;
  bool is_cut = false;  // the tool said more than fits
  std::string text{};   // its tokens, decoded
  bool operator==(const Observation&) const = default;
};

// Sampled tokens [begin, end), counted without observations, that one version of the weights
// sampled.
struct Segment {
  int64_t begin = 0, end = 0;
  uint64_t policy_version = 0;
  uint64_t weights_hash = 0;
  bool operator==(const Segment&) const = default;
};

// A sampled response with its prompt. S of its L - P response tokens were sampled, the others are
// observations. Example, P = 3, L = 5, S = 2:
//   token_ids {15, 20, 11, 42, 2}, prompt_length 3, behavior_logprobs {-0.7, -0.1}.
struct Trajectory {
  RequestId id;
  std::vector<int32_t> token_ids;        // [L]
  int64_t prompt_length = 0;             // P
  std::vector<float> behavior_logprobs;  // [S] log-softmax(logits / T) before the filters
  std::vector<float> sampling_logprobs;  // [S] after the filters, renormalised
  FinishReason finish_reason = FinishReason::kLength;
  uint64_t policy_version = 0;  // weights that produced it, or its last tokens
  uint64_t weights_hash = 0;
  // What the policy wrote, decoded, without the stop id. What tools wrote is not in it: it must
  // earn nothing.
  std::string text;
  // The whole response by the weights that sampled it, in order, if several took part (it was
  // interrupted by an update); else empty: policy_version sampled all.
  std::vector<Segment> segments;
  std::vector<Observation> observations{};  // in order; without tools none
};

// One response to sample. All samples of a prompt carry equal token_ids and share its computation.
struct RolloutRequest {
  RequestId id;
  std::vector<int32_t> token_ids;  // [P]
  SamplingParams sampling;
  // The request seed; what is drawn is a function of (weights, token_ids, rng_key) alone.
  uint64_t rng_key = 0;
  // A response to go on with, whose prompt is token_ids: it was interrupted, and what it has was
  // sampled by earlier weights. Without tokens: a new one.
  Trajectory begun;
  int64_t token_budget = 0;  // new tokens after which the response is interrupted; 0: never
};

Status validate(const Trajectory& trajectory);

// Appends a sampled token with its log-probs. A trajectory grows by this and the next alone.
void append_token(Trajectory& trajectory, int32_t token_id, float behavior_logprob,
                  float sampling_logprob);

// Appends what a tool said; `observation`'s place is set. At least one token.
void append_observation(Trajectory& trajectory, std::span<const int32_t> token_ids,
                        Observation observation);

}  // namespace gradus::data
