// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "data/tokenizer.h"
#include "model/transformer.h"
#include "rollout/engine.h"

namespace gradus::rollout {

class ToolBox;

// The engine on the CPU: continuous batching (Orca, Yu et al. 2022) over a paged key-value cache:
// each pass carries the next token of every running sequence and chunks of prompts that wait;
// neighbouring requests with equal prompts share its computation; when pages run out the youngest
// sequence is preempted and computed again later.
//
// Not thread-safe. The transformer and the tokenizer must outlive it.
class CpuEngine : public Engine {
 public:
  // `tokenizer` may be null if no request has stop texts and there are no tools; then
  // Trajectory::text stays empty. `tools`, if not null, is what responses may call: one waits for
  // its answer beside the batch, whose place goes to another, and keeps its pages while they last.
  // What a response becomes depends neither on how long calls take nor on which ends first.
  CpuEngine(model::Transformer& transformer, const data::Tokenizer* tokenizer,
            EngineOptions options, ToolBox* tools = nullptr);
  ~CpuEngine() override;

  Status run(std::span<const data::RolloutRequest> requests, uint64_t policy_version,
             uint64_t weights_hash, TrajectorySink& sink, const std::atomic<bool>* cancel = nullptr,
             const std::function<void(int64_t, int64_t)>& progress = {}) override;
  const EngineStats& stats() const override;
  // Pages take memory as they are first used, and training beside them is planned for.
  void release_cache() override {}

 private:
  class Scheduler;
  model::Transformer& transformer_;
  const data::Tokenizer* tokenizer_;
  EngineOptions options_;
  ToolBox* tools_;
  std::unique_ptr<model::KvCache> cache_;
  std::unique_ptr<EngineStats> stats_;
};

}  // namespace gradus::rollout
