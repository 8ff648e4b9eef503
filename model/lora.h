// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/config/field_visitor.h"
#include "common/status.h"
#include "model/parameters.h"

// LoRA (Hu et al. 2021, arXiv:2106.09685, Eq. 3): a matrix W [N, K] is trained as W + s B A with A
// [r, K] and B [N, r], s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732). The model
// always holds the merged matrices, written anew from a kept copy of W after each update: rollout
// and training run the forward that they always run, at its speed, and agree in every bit. Only the
// gradient knows the factors, so gradients and moments have the adapter's size.
//
// Letters: T rows, N outputs, K inputs, r rank.
namespace gradus::model {

// The `lora` section of a run's YAML, and what PEFT's adapter_config.json says of the same things.
struct LoraConfig {
  int64_t rank = 0;  // 0: full fine-tuning
  double alpha = 16;
  std::vector<std::string> targets = {"all"};
  bool rslora = false;
  std::optional<int64_t> seed;  // of A; unset: run.seed

  double scale() const;  // s; rank >= 1
  void visit(FieldVisitor& v);
};

// The matrices of a layer that can be adapted: "q_proj" to "down_proj".
const std::vector<std::string>& lora_target_names();
// `targets` in the order of lora_target_names(), each once, "all" replaced by all of them.
std::vector<std::string> resolved_targets(const std::vector<std::string>& targets);

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const LoraConfig& config);

// The adapter of one matrix.
struct LoraPart {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int64_t weight = 0;  // offset of W in the model's buffer
  int64_t column = 0;  // where the N outputs begin in those of the group's product
  int64_t n = 0, k = 0;
  int64_t a = 0, b = 0;  // offsets in the adapter's buffer, both in panels (kernels/gemm.h)
};

// The adapted ones of the matrices that one product computes (q, k and v, or gate and up). Their As
// stand one after the other, so that they are one matrix of parts * padded(r) rows.
struct LoraGroup {
  int64_t weight = 0;  // offset of the product's first matrix: LayerPlaces
  std::vector<LoraPart> parts;
};

// The adapter's buffer: As and Bs by PEFT's names.
// A score head, which the base of a reward model does not have, stands behind them: it is trained
// whole, without the factor s.
struct LoraLayout : WeightLayout {
  std::vector<LoraGroup> groups;  // by `weight`
  int64_t base_size = 0;          // floats of the adapted matrices
  int64_t factors_size = 0;       // floats of As and Bs
  int64_t head = -1;              // offset of the score head; -1: none
  int64_t model_head = -1;        // the same in the model's buffer
};

// InvalidArgument if the rank exceeds a side of a matrix, which it names. `config` must be valid.
Result<LoraLayout> lora_layout(const ModelConfig& model, const LoraConfig& config);

// The factors of one model's matrices and the matrices that they add to. Not thread-safe.
class LoraAdapter {
 public:
  // Copies the matrices to adapt out of `parameters`, a buffer of the model's layout. A is drawn as
  // PEFT draws it, uniform in +-1 / sqrt(K), a function of (seed, matrix); B is 0.
  static Result<std::unique_ptr<LoraAdapter>> create(const ModelConfig& model,
                                                     const LoraConfig& config,
                                                     const float* parameters, uint64_t seed);

  const LoraConfig& config() const { return config_; }
  const LoraLayout& layout() const { return layout_; }
  float* values() { return values_.data(); }  // [layout().size]
  const float* values() const { return values_.data(); }
  uint64_t base_hash() const;  // of the matrices without the adapter

  // The matrices without the adapter, in panels, one after the other in the order of
  // layout().groups: [layout().base_size]. Who writes to them merges anew.
  std::span<float> base() { return {base_.data(), static_cast<size_t>(layout_.base_size)}; }
  // s B A of every adapted matrix, in the order and layout of base(): [layout().base_size].
  void product(std::span<float> out) const;
  // A drawn anew by `seed`, as create() does; B is 0.
  void restart(uint64_t seed);
  // Whether add_gradient leaves out the gradient of A (FFA-LoRA, arXiv:2403.12313).
  void freeze_a(bool is_frozen) { is_a_frozen_ = is_frozen; }

  // Writes W + s B A of every adapted matrix, and the score head, to its place in `parameters`:
  // chains of r fused multiply-adds that begin at W. Where B is 0 the bits are those of W.
  void merge(float* parameters) const;

  // Adds the gradients of A and B, but for the factor s, to `gradient` [layout().size]: with
  // u = x A^T and v = dy B they are v^T x and dy^T u, chains in token order. `weight` is the offset
  // of a product's first matrix; nothing is done where none of its matrices is adapted.
  void add_gradient(int64_t weight, const float* dy_TN, int64_t dy_stride, const float* x_TK,
                    int64_t x_stride, int64_t num_rows, float* gradient);

 private:
  LoraAdapter(LoraConfig config, LoraLayout layout, const float* parameters);
  void draw(uint64_t seed);
  void add_product(const LoraPart& part, float* target) const;

  LoraConfig config_;
  LoraLayout layout_;
  AlignedBuffer values_, base_;
  bool is_a_frozen_ = false;
  AlignedBuffer u_, v_;  // [T, parts * padded(r)] of add_gradient
};

}  // namespace gradus::model
