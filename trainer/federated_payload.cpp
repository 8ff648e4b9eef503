// SPDX-License-Identifier: Apache-2.0
#include "trainer/federated_payload.h"

#include <algorithm>

#include "common/check.h"
#include "common/rng.h"

namespace gradus::trainer {

std::string_view name_of(FederatedPayloadKind kind) {
  switch (kind) {
    case FederatedPayloadKind::kAuto:
      return "auto";
    case FederatedPayloadKind::kFull:
      return "full";
    case FederatedPayloadKind::kFedIt:
      return "fedit";
    case FederatedPayloadKind::kFfa:
      return "ffa";
    case FederatedPayloadKind::kStacking:
      return "stacking";
    case FederatedPayloadKind::kFedEx:
      return "fedex";
  }
  GRADUS_CHECK(false, "an unknown payload");
}

Result<FederatedPayloadKind> resolved_payload(FederatedPayloadKind kind, bool has_adapter) {
  if (kind == FederatedPayloadKind::kAuto) {
    return has_adapter ? FederatedPayloadKind::kFedEx : FederatedPayloadKind::kFull;
  }
  if ((kind == FederatedPayloadKind::kFull) != has_adapter) return kind;
  return invalid_argument(
      "trainer.federated.payload is {}, but {}", name_of(kind),
      has_adapter
          ? "the run trains an adapter (lora.rank, model.adapter); take fedit, ffa, stacking "
            "or fedex"
          : "the run trains all weights; set lora.rank, or take full");
}

FederatedPayload::FederatedPayload(FederatedPayloadKind kind, model::Transformer& transformer,
                                   uint64_t seed)
    : kind_(kind), transformer_(transformer), adapter_(transformer.adapter()), seed_(seed) {
  GRADUS_CHECK((kind == FederatedPayloadKind::kFull) == (transformer.adapter() == nullptr) &&
                   kind != FederatedPayloadKind::kAuto,
               "a payload that fits the model");
  if (kind == FederatedPayloadKind::kFfa) adapter().freeze_a(true);
  take_global();
  if (kind != FederatedPayloadKind::kStacking) return;
  // An adapter that was trained before goes into W first.
  apply(std::vector<double>(static_cast<size_t>(size()), 0.0), -1);
}

int64_t FederatedPayload::size() const {
  const auto trained = static_cast<int64_t>(global_.size());
  if (kind_ == FederatedPayloadKind::kStacking) return adapter().layout().base_size;
  if (kind_ == FederatedPayloadKind::kFedEx) return adapter().layout().base_size + trained;
  return trained;
}

int64_t FederatedPayload::num_upload_bytes() const {
  int64_t count = 0;
  for (const model::ParameterPlace& place : transformer_.trainable().layout.places) {
    if (kind_ == FederatedPayloadKind::kFfa &&
        place.hf_name.find(".lora_A.") != std::string::npos) {
      continue;
    }
    count += place.rows * std::max<int64_t>(place.columns, 1);
  }
  return count * static_cast<int64_t>(sizeof(float));
}

void FederatedPayload::take_global() {
  const model::TrainableWeights trained = transformer_.trainable();
  global_.assign(trained.values, trained.values + trained.layout.size);
  if (!moves_base()) return;
  product_.resize(static_cast<size_t>(adapter().layout().base_size));
  adapter().product(product_);
}

void FederatedPayload::restore() {
  std::copy(global_.begin(), global_.end(), transformer_.trainable().values);
  transformer_.trainable_changed();
}

std::vector<float> FederatedPayload::difference() const {
  const float* trained = transformer_.trainable().values;
  std::vector<float> delta(static_cast<size_t>(size()));
  size_t first = 0;  // of the factors
  if (moves_base()) {
    first = product_.size();
    adapter().product(std::span(delta).first(first));
    for (size_t j = 0; j < first; ++j) delta[j] -= product_[j];
  }
  for (size_t j = first; j < delta.size(); ++j) {
    delta[j] = trained[j - first] - global_[j - first];
  }
  return delta;
}

void FederatedPayload::apply(std::span<const double> delta, int64_t round) {
  GRADUS_CHECK(static_cast<int64_t>(delta.size()) == size(), "a step of the payload's size");
  const size_t first = moves_base() ? product_.size() : 0;
  for (size_t j = first; j < delta.size(); ++j) {
    float& value = global_[j - first];
    value = static_cast<float>(static_cast<double>(value) + delta[j]);
  }
  if (!moves_base()) return restore();
  // W + s B A moves by delta, whatever the factors become: W takes the rest.
  std::vector<double> merged(first);
  const std::span<float> base = adapter().base();
  for (size_t j = 0; j < first; ++j) {
    merged[j] = static_cast<double>(base[j]) + static_cast<double>(product_[j]) + delta[j];
  }
  if (kind_ == FederatedPayloadKind::kStacking) {
    adapter().restart(hash64({seed_, 0xF10A, static_cast<uint64_t>(round + 1)}));
  } else {
    std::copy(global_.begin(), global_.end(), transformer_.trainable().values);
  }
  take_global();
  for (size_t j = 0; j < first; ++j) {
    base[j] = static_cast<float>(merged[j] - static_cast<double>(product_[j]));
  }
  transformer_.trainable_changed();
}

Status FederatedPayload::save(records::StateWriter& writer) const {
  if (!moves_base()) return {};
  GRADUS_RETURN_IF_ERROR(writer.add("payload/factors", std::span<const float>(global_)));
  return writer.add("payload/base", std::span<const float>(adapter().base()));
}

Status FederatedPayload::load(const records::StateReader& reader) {
  if (!moves_base()) return {};
  GRADUS_RETURN_IF_ERROR(reader.read("payload/factors", std::span(global_)));
  GRADUS_RETURN_IF_ERROR(reader.read("payload/base", adapter().base()));
  restore();
  take_global();
  return {};
}

}  // namespace gradus::trainer
