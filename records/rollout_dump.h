// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/types.h"

// Trajectories with their rewards as JSON lines, one file per step: to look at, and to replay the
// trainer without the rollout engine.
namespace gradus::records {

// One part of a reward, as rewards report it.
struct RewardPartRecord {
  std::string name;
  double raw = std::numeric_limits<double>::quiet_NaN();
  double weight = 1.0;
  double weighted = std::numeric_limits<double>::quiet_NaN();
  std::string status = "ok";  // ok, not_applicable, undecided, timeout, error, invalid_gold
  std::string detail;
};

struct RolloutRecord {
  int64_t step = 0;
  uint64_t data_position = 0;  // rows of the data visited once the step's sampling was done
  data::Trajectory trajectory;
  std::string prompt;  // text of the prompt
  std::string task;
  std::string answer;  // ground truth
  double reward = std::numeric_limits<double>::quiet_NaN();
  std::vector<RewardPartRecord> parts;
  double advantage = std::numeric_limits<double>::quiet_NaN();
  // [sampled tokens] of the critic before each token, or none: without a critic.
  std::vector<float> values{};
};

// One line: {"step", "data_position", "prompt_id", "sample_index", "task", "prompt", "response",
// "answer", "reward", "advantage", "parts", "finish_reason", "policy_version", "weights_hash"
// (hex), "prompt_ids", "ids", "logprobs", "sampling_logprobs" (absent when equal to logprobs),
// "segments" (lists [begin, end, policy_version, weights_hash]; absent when one version sampled
// all), "observations" (lists [begin, end, tool, status, is_cut, text] of "ids"; absent without
// calls of tools; "response" is without them, "logprobs" are those of the other ids), "values"
// (absent without a critic)}, without the line's end. Log-probs read back to the same bits; bytes
// of the texts that are not UTF-8 become U+FFFD (the ids keep the truth).
std::string rollout_line(const RolloutRecord& record);
Result<RolloutRecord> parse_rollout_line(std::string_view line);

// Writes a whole file, atomically. Unavailable when the disk is full.
Status write_rollouts(const std::string& path, const std::vector<RolloutRecord>& records);

// Reads it back. A bad line ends with "path:line: ..."; NotFound if there is no file.
Result<std::vector<RolloutRecord>> read_rollouts(const std::string& path);

// The steps that have a file in a folder of rollouts, ascending; empty if there is no such folder.
std::vector<int64_t> rollout_steps(const std::string& folder);

}  // namespace gradus::records
