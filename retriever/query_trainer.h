// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "retriever/embedder.h"
#include "retriever/query_adapter.h"

namespace gradus::comm {
class Communicator;
}

namespace gradus::retriever {

// A recorded retrieval: what the policy saw, what it chose from, and what came of it.
struct RetrievalStep {
  std::vector<int32_t> token_ids;  // of the state's text, as Embedder::tokenize gives them
  std::vector<int64_t> pool;       // rows of the documents' vectors
  std::vector<int32_t> places;     // the ranked list: places in the pool
  double temperature = 0.05;       // a
  double logprob = 0;              // of the list when it was drawn, from exact scores
  double advantage = 0;            // of its trajectory
  double weight = 1;  // of the step in the objective: 1 / (G |tau|) for a mean over both
  // Part of the sum that it belongs to, in [0, kReductionBlocks); see QueryTrainer::update.
  int64_t block = 0;
};

// Gradients are summed block by block and these along one binary tree, so that the result does not
// depend on how blocks are shared out over 1, 2, 4 or 8 ranks.
inline constexpr int64_t kReductionBlocks = 8;

struct QueryTrainerOptions {
  double learning_rate = 1e-5;
  double clip_eps = 0.2;  // half-width of the ratio clip
  double max_grad_norm = 1;
  double weight_decay = 0.01;  // of matrices
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_eps = 1e-8;
  int64_t lora_rank = 0;  // > 0: a QueryAdapter is trained instead of all weights
  double lora_scale = 1;
  uint64_t lora_seed = 0;
};

struct QueryUpdate {
  double objective = 0;            // sum of weight min(rho A, clip(rho) A)
  double max_abs_log_ratio = 0;    // 0 for the first update on fresh steps
  double clip_fraction = 0;        // of the steps
  double effective_documents = 0;  // mean over the steps (retriever/policy.h)
  int64_t num_steps = 0;
  double grad_norm = 0;
  bool skipped = false;  // the gradient was not finite; the weights are as they were
};

// Trains the query side of a dense retriever as HARR does (arXiv:2602.03645, Eq. 12): GRPO on whole
// retrieval trajectories, a ranked list in the place of a token, rho the ratio of joint list
// probabilities. The documents' vectors stay as they are. Scores are made anew from the recorded
// pool with the forward that drew them, so rho is exactly 1 at the first update (the paper's code
// takes the old log-probability from another arithmetic). All weights of the encoder move, or
// those of an adapter. Not thread-safe.
class QueryTrainer {
 public:
  // `embedder` must outlive it.
  QueryTrainer(Embedder& embedder, const QueryTrainerOptions& options);

  // One AdamW step up the objective of `steps`, which stand by ascending block; rows of vectors_ND
  // are of the embedder's width. Steps of equal texts in a block share one pass. InvalidArgument
  // naming the first step that is not valid. With several ranks (1, 2, 4 or 8) each brings the
  // steps of its own blocks, kReductionBlocks / ranks of them in the order of ranks, and all make
  // the same update: the one of a single process with all steps, bit for bit. Without any step
  // nothing is changed.
  Result<QueryUpdate> update(std::span<const RetrievalStep> steps, const float* vectors_ND,
                             comm::Communicator* ranks = nullptr);

  void set_learning_rate(double rate) { options_.learning_rate = rate; }
  int64_t num_updates() const { return num_updates_; }

  // What a checkpoint needs beside the weights, by name, in one fixed order: moments, and of an
  // adapter its factors.
  void for_each_state(
      const std::function<void(const std::string& name, std::span<float> values)>& body);
  // Call it when they were replaced by those of a checkpoint. With an adapter the encoder must have
  // had the weights that the checkpoint's run began with when this was made; it then has the
  // merged ones.
  void state_was_set(int64_t num_updates);

 private:
  struct Partial;  // of a block
  struct Tensor {
    float *values, *gradients, *m, *v;
    int64_t count;
    bool is_matrix;
  };

  Status add_blocks(std::span<const RetrievalStep> steps, int64_t first, int64_t end,
                    const float* vectors_ND, model::BertWeights& sum,
                    std::vector<Partial>& partials);
  Status add_steps(std::span<const RetrievalStep> steps, const float* vectors_ND,
                   model::BertWeights& gradients, Partial& partial);
  Status add_step(const RetrievalStep& step, std::span<const float> query_D,
                  const float* vectors_ND, float* dquery_D, Partial& partial) const;
  std::vector<Tensor> tensors();  // that are trained
  void apply(QueryUpdate& update);

  Embedder& embedder_;
  QueryTrainerOptions options_;
  std::unique_ptr<QueryAdapter> adapter_;
  model::BertWeights gradients_, m_, v_;  // the moments are empty with an adapter
  int64_t num_updates_ = 0;
};

}  // namespace gradus::retriever
