// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/lm_head_params.h"

namespace gradus::kernels::cuda {

// Vocabulary ids are reduced in blocks of so many: the smallest unit of work, and of a shard.
inline constexpr int kHeadBlock = 128;
// Candidates for filters kept for each row; more of them than this is a row for the second pass.
inline constexpr int kHeadCandidates = 12288;
// Rows whose logits a further pass writes out at once.
inline constexpr int kHeadDenseRows = 16;
// Candidates reach this far below the row's largest logit, in nats.
inline constexpr float kHeadReach = 12.0f;

// What one block of the vocabulary says of one row. max, sum and weighted as in LogitStats;
// x is that of the block's best token.
struct BlockStats {
  float max, sum, weighted, x;
};

struct Candidate {
  float x;
  int32_t id;
};

// Everything a launch reads besides the two tensor maps. Pointers are to device memory.
struct HeadArgs {
  const LmHeadRow* rows;      // [B]
  const float* temperatures;  // [B]; the scorer's, null for the sampler
  const int32_t* targets;     // [B]; the scorer's, null for the sampler
  int num_rows;               // B
  int v, d;                   // columns of this shard, width
  int num_blocks;             // of this shard
  int first_block;            // of this shard among all
  int total_blocks;           // of the whole vocabulary
  int vocab_size;             // of the whole vocabulary, ids
  int row_tiles;              // ceil(B / rows of a tile)
  bool finalise;              // the last shard: merge and write results
  bool filters;               // some row may have filters or want top tokens

  // Workspace. Counters and bests are zero between launches.
  BlockStats* stats;         // [B, total_blocks]
  uint64_t* keys;            // [B, total_blocks]: the block's best score and token, 0 if none
  uint64_t* best;            // [B]: largest key so far
  uint32_t* running_max;     // [B]: ordered bits of the largest x so far
  float* target_x;           // [B]; the scorer's
  uint32_t* cut;             // [B]: ordered bits; every x from here on is a candidate
  uint32_t* num_candidates;  // [B]
  Candidate* candidates;     // [B, kHeadCandidates]
  int32_t* dense_slot;       // [B]: 1 + place among the rows of the second pass, 0 if none
  int32_t* dense_rows;       // [B]
  float* dense;              // [kHeadDenseRows, total_blocks * kHeadBlock]
  // Where the scorer stores exp(x - reference) as bf16 as well, one id after the other; null = not.
  const float* references;  // [B]
  void* exponentials;       // [V, exponentials_stride]
  int64_t exponentials_stride;
  uint32_t* control;  // [4]: arrivals, generation, rows of the second pass, all such ever

  // Results, [B] each; null = not wanted (not allowed for token and logprob).
  int32_t* token;
  float* logprob;
  float* sampling_logprob;
  float* lse;
  float* entropy;
  int32_t* num_kept;
  int num_top;
  int32_t* top_ids;     // [B, num_top]
  float* top_logprobs;  // [B, num_top]
};

}  // namespace gradus::kernels::cuda
