// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/transformer.h"
#include "records/state_file.h"
#include "trainer/federated_rl_config.h"

// What clients of a federated run send, and what the server does with its sum. The mean of products
// B_k A_k is not the product of the means, so what an adapter's factors become by averaging is a
// choice (`trainer.federated.payload`):
//
//   full      D_k = all weights. Without LoRA.
//   fedit     D_k = [dA_k, dB_k], averaged apart (Zhang et al. 2024, arXiv:2305.05644). The product
//   of
//             the means is not the mean of the products.
//   ffa       A stays as it was drawn, D_k = dB_k (Sun et al. 2024, arXiv:2403.12313): A sum p_k
//   B_k
//             is the mean of the products.
//   stacking  D_k = s B_k A_k goes into W, and each round begins with an A drawn anew and B = 0
//             (FLoRA, Wang et al. 2024, arXiv:2409.05976). The product of the stacked factors
//             [B_1 .. B_K] [p_1 A_1; ..; p_K A_K] is this sum.
//   fedex     factors as in fedit, and W takes what they lack, s (sum p_k B_k A_k - B A)
//   (FedEx-LoRA,
//             Singhal et al. 2024, arXiv:2410.09432).
//
// A sender of stacking or fedex needs no more than A_k and B_k, and a receiver makes the products
// from them; here each rank does so for its clients. The strategy sees the products (and, under
// fedex, the factors behind them) as one vector, so every strategy can be had with every payload;
// under one that takes the weighted mean the model becomes W + s sum p_k B_k A_k, up to the
// rounding of fp32.
namespace gradus::trainer {

// Not thread-safe; one per rank, all with equal states. `transformer` outlives it.
class FederatedPayload {
 public:
  // `kind` fits the model: see resolved_payload(). Takes the model as the global one. `seed`: of
  // the A that stacking draws.
  FederatedPayload(FederatedPayloadKind kind, model::Transformer& transformer, uint64_t seed);

  FederatedPayloadKind kind() const { return kind_; }
  int64_t size() const;  // P, floats of an update
  // fp32 bytes that a client sends: its factors, or all weights.
  int64_t num_upload_bytes() const;

  // The global model becomes that which is trained.
  void restore();
  // D_k of the model as a client has trained it, [P].
  std::vector<float> difference() const;
  // The server's step: the global model moves by `delta` [P], and is restored. `round` from 0.
  void apply(std::span<const double> delta, int64_t round);

  // Whether W under the adapter moves, so that a checkpoint is a whole model.
  bool moves_base() const {
    return kind_ == FederatedPayloadKind::kStacking || kind_ == FederatedPayloadKind::kFedEx;
  }
  // What restores factors and W, where W moves; nothing else.
  Status save(records::StateWriter& writer) const;
  Status load(const records::StateReader& reader);
  // The model as it is becomes the global one: after a checkpoint was loaded.
  void take_global();

 private:
  model::LoraAdapter& adapter() const { return *adapter_; }

  FederatedPayloadKind kind_;
  model::Transformer& transformer_;
  model::LoraAdapter* adapter_;  // the model's, also while it is taken off; null: none
  uint64_t seed_;
  std::vector<float> global_;   // weights or factors that are trained
  std::vector<float> product_;  // of the global factors, where W moves
};

std::string_view name_of(FederatedPayloadKind kind);

// `kind`, with automatic replaced: fedex with an adapter, full without. InvalidArgument if the
// kind and the model do not go together.
Result<FederatedPayloadKind> resolved_payload(FederatedPayloadKind kind, bool has_adapter);

}  // namespace gradus::trainer
