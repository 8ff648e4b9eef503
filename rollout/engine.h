// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "common/status.h"
#include "data/types.h"
#include "model/model_config.h"

namespace gradus::rollout {

// Resources of an engine; none of them changes a bit of any result.
struct EngineOptions {
  int64_t max_batch = 64;              // sequences decoded together, >= 1
  int64_t kv_cache_bytes = 1ll << 30;  // rounded down to pages of 64 tokens, at least one
  int64_t prefill_chunk_tokens = 512;  // prompt tokens in one pass, >= 1
};

// What a run did, for metrics.
struct EngineStats {
  int64_t num_prompt_tokens = 0;  // computed, shared prompts once
  int64_t num_sampled_tokens = 0;
  int64_t num_passes = 0;
  int64_t num_preemptions = 0;
  double seconds = 0;
  double first_token_seconds = 0;  // from the call of run() to the first sampled token
  // The longest response, on which a rollout waits, and how long it was in the making.
  int64_t longest_tokens = 0;
  double longest_seconds = 0;
  // Places of the batch (at most one a request) times seconds, and of these the empty ones at the
  // end, when no request is left to start.
  double slot_seconds = 0, tail_idle_seconds = 0;
  double tool_wait_seconds = 0;  // in which nothing could be decoded
};

// Takes finished trajectories, in the order in which they finish. `request_index` counts the
// requests of the run.
class TrajectorySink {
 public:
  virtual ~TrajectorySink() = default;
  virtual void finished(size_t request_index, data::Trajectory trajectory) = 0;
};

// Samples responses to requests, on the CPU (CpuEngine) or on a GPU (DeviceEngine). A trajectory is
// a function of (weights, prompt, sampling parameters, rng_key) alone, bit for bit; one that goes
// on from an interrupted response (RolloutRequest::begun) also of that.
class Engine {
 public:
  virtual ~Engine() = default;

  // Runs all requests. `policy_version` and the hash are written into the trajectories. `cancel`,
  // if given and set, ends the unfinished ones as kCancelled at the next token. `progress(finished,
  // sampled_tokens)` is called after each pass. InvalidArgument names the request: an empty or too
  // long prompt, a token outside the vocabulary, a sequence that the cache cannot hold. DataLoss
  // when the model's logits are not finite.
  virtual Status run(std::span<const data::RolloutRequest> requests, uint64_t policy_version,
                     uint64_t weights_hash, TrajectorySink& sink,
                     const std::atomic<bool>* cancel = nullptr,
                     const std::function<void(int64_t, int64_t)>& progress = {}) = 0;

  virtual const EngineStats& stats() const = 0;  // of the last run

  // Gives memory that only a run needs back, so that training can use it; the next run takes it
  // again. Changes no bit of any result.
  virtual void release_cache() = 0;
};

// Pages that a cache of `bytes` has for this model: at least 1.
int64_t num_cache_pages(const model::ModelConfig& config, int64_t bytes);

// Pages that one request takes at most: those of its tokens but the last sampled one, which is
// never computed, and a copy of the page that its prompt ends in. Tokens of observations count as
// new ones.
int64_t num_request_pages(const model::ModelConfig& config, int64_t prompt_tokens,
                          int64_t max_new_tokens);

// kv_cache_mib that holds so many pages.
int64_t cache_mib_for(const model::ModelConfig& config, int64_t num_pages);

// Seed of one request: a function of these alone, so that neither order nor rank matters.
uint64_t request_seed(uint64_t run_seed, uint64_t pass, uint64_t prompt_id, int32_t sample_index);

}  // namespace gradus::rollout
