// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "common/status.h"
#include "data/tokenizer.h"
#include "data/types.h"
#include "model/device_transformer.h"
#include "rollout/engine.h"

namespace gradus::rollout {

// The engine on the GPU: continuous batching over a paged cache, one recorded graph of kernels for
// a step of the whole batch (a graph for each size of the batch, recorded when first needed),
// sampling and the next step's input on the device. The host enqueues a step before it has read the
// one before, so the device never waits for it; a response that ends by its tokens costs at most a
// step that is thrown away. Pages for a whole response are taken when it starts, so nothing is ever
// preempted. A trajectory is a function of (weights, prompt, sampling parameters, rng_key) alone,
// bit for bit, and its log-probs are those of model::DeviceScorer.
//
// Not thread-safe. The transformer and the tokenizer must outlive it.
class DeviceEngine : public Engine {
 public:
  // `tokenizer` may be null if no request has stop texts; then Trajectory::text stays empty.
  // Unavailable names what did not fit into the device's memory.
  static Result<std::unique_ptr<DeviceEngine>> create(model::DeviceTransformer& transformer,
                                                      const data::Tokenizer* tokenizer,
                                                      EngineOptions options);
  ~DeviceEngine() override;

  // After an error of the device the engine is not to be used again. Unavailable when there is no
  // memory for a cache that was released.
  Status run(std::span<const data::RolloutRequest> requests, uint64_t policy_version,
             uint64_t weights_hash, TrajectorySink& sink, const std::atomic<bool>* cancel = nullptr,
             const std::function<void(int64_t, int64_t)>& progress = {}) override;

  const EngineStats& stats() const override;

  // Gives back the pages, and the recorded graphs, which hold their addresses. Waits for the
  // device.
  void release_cache() override;

 private:
  class Scheduler;
  struct State;
  explicit DeviceEngine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gradus::rollout
