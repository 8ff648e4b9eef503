// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/aligned_buffer.h"
#include "common/status.h"
#include "model/parameters.h"
#include "records/state_shards.h"
#include "trainer/trainer_config.h"
#include "trainer/weight_shards.h"

namespace gradus::trainer {

// Turns gradients into updates of a model's weights: AdamW (kernels/optimizer.h) for all of them,
// or Muon (kernels/muon.h) for the matrices of the layers and AdamW for embeddings, head, norms and
// biases. q, k and v, and gate and up, are matrices of their own. Keeps the running average of the
// weights if the config asks for one. Buffers have the layout of the weights. Not thread-safe.
class Optimizer {
 public:
  // Updates `pieces` alone: whole_pieces(layout), or what a rank holds of the weights (AdamW). The
  // buffers take memory for those. `weights` [layout.size] start the average; `layout` outlives
  // this.
  Optimizer(const model::WeightLayout& layout, const OptimizerConfig& config, const float* weights,
            std::vector<WeightPiece> pieces);

  // One update of `weights` [layout.size] by `gradient` [layout.size], whose norm is `norm` (for
  // clipping). `learning_rate` is that of AdamW now; Muon's follows the same schedule.
  void apply(const float* gradient, double norm, double learning_rate, float* weights);

  int64_t num_updates() const { return num_updates_; }
  const std::vector<WeightPiece>& pieces() const { return pieces_; }  // that it updates

  // The average of the weights [layout.size], or null without ema_decay:
  //   average = d average + (1 - d) weights after update t = 1, 2, ..., d = min(ema_decay,
  //   (1 + t) / (10 + t))
  // from the initial weights on, so that a short run is not held back by them.
  const float* average() const { return average_.size() > 0 ? average_.data() : nullptr; }
  float* average() { return average_.size() > 0 ? average_.data() : nullptr; }

  // Adds a share of the state (of parts of the weights: all of it) to a snapshot: "adam/m/WEIGHT"
  // (or "muon/m/WEIGHT"), "adam/v/WEIGHT" of the weights that AdamW updates, "adam/num_updates".
  // The average is not among it: checkpoints hold it as a model.
  void save(records::StateSnapshot& snapshot, int share, int num_shares) const;
  // Reads what any number of shares hold. InvalidArgument for the state of the other optimizer.
  Status load(const records::StateShards& shards);

  // AdamW's moments in the layout of the weights [layout.size], for a device that keeps them. All
  // weights are this optimizer's and AdamW updates them; padding is left alone.
  void get_moments(float* m, float* v) const;
  void set_moments(const float* m, const float* v, int64_t num_updates);

  // Bytes of moments and scratch memory, and of the average, of all weights.
  static int64_t planned_bytes(const model::WeightLayout& layout, const OptimizerConfig& config);
  static int64_t planned_average_bytes(const model::WeightLayout& layout,
                                       const OptimizerConfig& config);

 private:
  void update_average(const float* weights);
  bool is_sharded() const { return num_weights_ < layout_.size; }

  const model::WeightLayout& layout_;
  OptimizerConfig config_;
  std::vector<WeightPiece> pieces_;
  int64_t num_weights_ = 0;              // of the pieces
  std::vector<int64_t> second_moments_;  // where those of a place begin; -1: it has none
  AlignedBuffer m_;                      // first moments of AdamW, momentum of Muon
  AlignedBuffer v_;  // second moments of AdamW, of the weights that it updates, in their order
  AlignedBuffer scratch_;
  AlignedBuffer average_;
  int64_t num_updates_ = 0;
};

}  // namespace gradus::trainer
