// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "common/metrics.h"
#include "trainer/policy_loss.h"

// The loss of a mini-batch, independent of how it is cut into micro-batches and ranks: every count,
// weight and choice that takes the whole mini-batch is made before the first backward, from numbers
// that all ranks have; each rank then asks for the share of its responses.
//
//   N, B, the number of responses with an advantage   from the responses themselves
//   weights of corrections and their mean, m2po       from lo and lb
//   marks of clip_cov and kl_cov                      from A and the preview of lp
//   quantile of the entropies                         from the preview of entropies
//   mean weight of a bypassed reinforce               from lb and the preview of lp
//
// A preview is a forward over the mini-batch before its first backward, gathered from all ranks. On
// a fresh rollout lp is lo bit for bit and needs none.
namespace gradus::trainer {

// All loss tokens of a mini-batch over all ranks, one response after the other.
struct MiniBatch {
  std::vector<int64_t> sequence_begin = {0};  // [S + 1]
  std::vector<uint64_t> sequence_keys;        // [S] hash of a response's ids, for random choices
  std::vector<double> advantages;             // A, [tokens]
  std::vector<double> old_logprobs;           // lo
  std::vector<double> behavior_logprobs;      // lb
  std::vector<double> logprobs;               // preview of lp; may be empty if lp is lo
  std::vector<double> entropies;              // preview, nats; may be empty without top_entropy
};

// What the sum of the losses of a response of `num_tokens` loss tokens is divided by.
double loss_divisor(const AlgorithmConfig& config, const BatchCounts& counts, int64_t num_tokens);

// What a preview must show.
bool needs_preview_of_logprobs(const AlgorithmConfig& config);
bool needs_preview_of_entropies(const AlgorithmConfig& config);

// Whether lo is more than the lb of responses of earlier weights, which takes a forward: what
// compares the two does; else lo is lb, and the ratio corrects.
bool needs_old_logprobs(const AlgorithmConfig& config);

// Responses [first_sequence, first_sequence + num_sequences), with numbers of the forward that the
// backward belongs to.
struct MicroBatch {
  int64_t first_sequence = 0, num_sequences = 0;
  std::span<const double> logprobs;            // lp, [tokens of these responses]
  std::span<const double> reference_logprobs;  // lf; empty without KL in the loss
  std::span<const double> entropies;
  std::span<const double> stopped;  // lp under stop-gradients; empty: logprobs
};

// A micro-batch's share of the loss (shares add up) and its gradient.
struct LossTerms {
  std::vector<double> token_loss;             // policy and KL term of each token, not aggregated
  std::vector<double> dlogprobs, dentropies;  // of the whole loss
  double policy_loss = 0, kl_loss = 0;        // aggregated; the KL without its coefficient
  double entropy = 0;                         // share of the mean over N tokens
  double policy_kl = 0;                       // sum over tokens of lo - lp
  LossCounts counts;
  double min_ratio = std::numeric_limits<double>::infinity();  // exp(lp - lo)
  double max_ratio = -std::numeric_limits<double>::infinity();
};

class LossPlan {
 public:
  // `loss` and `config` outlive the plan.
  LossPlan(const AlgorithmConfig& config, const PolicyLoss& loss, double entropy_coef,
           MiniBatch batch);

  // Thread-safe.
  LossTerms terms(const MicroBatch& micro_batch) const;

  const BatchCounts& counts() const { return counts_; }
  const MiniBatch& batch() const { return batch_; }
  // Weight of the policy loss of each token; 0: left out, and still in every denominator.
  const std::vector<double>& weights() const { return weights_; }
  // Whether any two of lo and lb differ.
  bool has_foreign_tokens() const;
  // rollout_corr/...: how far lo is from lb, and what the correction did.
  void add_correction_metrics(Metrics& metrics) const;

 private:
  size_t num_tokens() const { return batch_.old_logprobs.size(); }
  void weigh_tokens();
  void keep_top_entropies();
  void mark_covariances();
  std::vector<double> weights_of(int64_t sequence, std::span<const double> stopped) const;
  void add_kl(const MicroBatch& micro_batch, const LossSequence& sequence, size_t at,
              double divisor, LossTerms& terms) const;

  const AlgorithmConfig& config_;
  const PolicyLoss& loss_;
  double entropy_coef_;
  MiniBatch batch_;
  BatchCounts counts_;
  std::vector<double> weights_;
  std::vector<uint8_t> marks_;
  double bypass_scale_ = 1;  // of the weights of a bypassed reinforce
};

}  // namespace gradus::trainer
