// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/types.h"

namespace gradus::data {

// Sequence packing without padding, a group's prompt once: the rows of a group are its prompt, then
// each response without its last token (nothing is predicted from it). A group is never split, so
// the gradient of its prompt rows is one sum in a fixed order whatever the micro-batch size.
//
// Example: prompt {5, 6, 7}, responses {8, 9} and {4}: rows 5 6 7 8 at positions 0 1 2 3; predicted
// are 8 from row 2, 9 from row 3, 4 from row 2.
struct PackGroup {
  std::vector<int32_t> prompt;                  // [P], P >= 1
  std::vector<std::vector<int32_t>> responses;  // each with at least one token
  // By response, the tokens that are there and not predicted (what tools wrote), in order; as a
  // whole empty: all are predicted.
  std::vector<std::vector<Observation>> observations{};
};

// Tokens of a response that are predicted: its targets.
int64_t num_pack_targets(const PackGroup& group, size_t response);

// Consecutive rows of one sequence.
struct PackRun {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int64_t first_position = 0;
  int64_t prompt_run = -1;  // of a response: the index of its prompt's run
};

// A token to predict.
struct PackTarget {
  int64_t row = 0;  // whose output predicts it
  int32_t token = 0;
};

struct Pack {
  std::vector<int32_t> token_ids;  // [T]
  std::vector<int32_t> positions;  // [T]
  std::vector<PackRun> runs;  // group by group, the prompt first; responses of one token have none
  std::vector<int64_t> group_begin;  // [groups + 1] into runs
  std::vector<PackTarget> targets;   // group by group, response by response, token by token
  int64_t num_rows() const { return static_cast<int64_t>(token_ids.size()); }
};

// Rows that a group takes in a pack: P + sum of (response length - 1).
int64_t num_pack_rows(const PackGroup& group);

Pack make_pack(std::span<const PackGroup> groups);

// Cuts groups 0 .. n-1 with these row counts into runs of consecutive groups of at most `max_rows`
// rows each; a larger group is alone. Returns the first group of each cut, and n at the end.
std::vector<int64_t> cut_micro_batches(std::span<const int64_t> rows_per_group, int64_t max_rows);

}  // namespace gradus::data
