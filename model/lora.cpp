// SPDX-License-Identifier: Apache-2.0
#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "common/check.h"
#include "common/config/rules.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/gemm.h"

namespace gradus::model {
namespace {

using kernels::packed_size;
using kernels::padded;

constexpr const char* kAll = "all";
constexpr const char* kPeftPrefix = "base_model.model.";

class LoraLayoutBuilder {
 public:
  LoraLayoutBuilder(const LoraConfig& config, LoraLayout& layout)
      : config_(config), layout_(layout), targets_(resolved_targets(config.targets)) {}

  // The product of `count` matrices, the first of them at offset `weight`.
  Status add_group(const std::vector<ParameterPlace>& places, int64_t weight, int64_t count) {
    LoraGroup group{weight, {}};
    const auto first = std::find_if(places.begin(), places.end(), [&](const ParameterPlace& place) {
      return place.offset == weight;
    });
    int64_t column = 0;
    for (const ParameterPlace& place : std::span(first, first + count)) {
      const std::string module = place.hf_name.substr(0, place.hf_name.rfind('.'));
      const std::string target = module.substr(module.rfind('.') + 1);
      if (std::find(targets_.begin(), targets_.end(), target) != targets_.end()) {
        GRADUS_RETURN_IF_ERROR(check_rank(place, target));
        group.parts.push_back({module, place.offset, column, place.rows, place.columns});
        layout_.base_size += place.size;
      }
      column += padded(place.rows);
    }
    const int64_t r = config_.rank;
    for (LoraPart& part : group.parts) part.a = add(part.module + ".lora_A.weight", r, part.k);
    for (LoraPart& part : group.parts) part.b = add(part.module + ".lora_B.weight", part.n, r);
    if (!group.parts.empty()) layout_.groups.push_back(std::move(group));
    layout_.factors_size = layout_.size;
    return {};
  }

  void add_head(const ParameterPlace& head) {
    layout_.model_head = head.offset;
    layout_.head = add(head.hf_name, head.rows, head.columns);
  }

 private:
  Status check_rank(const ParameterPlace& place, const std::string& target) const {
    const int64_t smaller = std::min(place.rows, place.columns);
    if (config_.rank <= smaller) return {};
    return invalid_argument(
        "lora.rank ({}) is larger than the smaller side of {} [{}, {}]; use at most {}",
        config_.rank, target, place.rows, place.columns, smaller);
  }

  int64_t add(const std::string& name, int64_t rows, int64_t columns) {
    const int64_t offset = layout_.size;
    layout_.places.push_back(
        {kPeftPrefix + name, offset, rows, columns, packed_size(rows, columns)});
    layout_.size += layout_.places.back().size;
    return offset;
  }

  const LoraConfig& config_;
  LoraLayout& layout_;
  std::vector<std::string> targets_;
};

}  // namespace

double LoraConfig::scale() const {
  const double r = static_cast<double>(rank);
  return alpha / (rslora ? std::sqrt(r) : r);
}

void LoraConfig::visit(FieldVisitor& v) {
  std::vector<std::string> choices = lora_target_names();
  choices.emplace_back(kAll);
  v.field("rank", rank, "Rank of the adapter (LoRA); 0 trains all weights.", at_least(0));
  v.field("alpha", alpha, "The adapter counts alpha / rank times.", greater_than(0));
  v.field("targets", targets, "Matrices of every layer that are adapted; all: the seven of them.",
          one_of(std::move(choices)));
  v.field("rslora", rslora, "Whether it counts alpha / sqrt(rank) times instead (rsLoRA).");
  v.field("seed", seed, "Seed of the adapter's initial values; unset: run.seed.", at_least(0));
}

const std::vector<std::string>& lora_target_names() {
  static const std::vector<std::string> names = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                 "gate_proj", "up_proj", "down_proj"};
  return names;
}

std::vector<std::string> resolved_targets(const std::vector<std::string>& targets) {
  const auto has = [&](const std::string& name) {
    return std::find(targets.begin(), targets.end(), name) != targets.end();
  };
  std::vector<std::string> resolved;
  for (const std::string& name : lora_target_names()) {
    if (has(kAll) || has(name)) resolved.push_back(name);
  }
  return resolved;
}

Status validate(const LoraConfig& config) {
  ConfigRules rules;
  rules.require(config.rank == 0 || !resolved_targets(config.targets).empty(),
                "lora.targets is empty but lora.rank is {}; name the matrices to adapt, or all",
                config.rank);
  return rules.status();
}

Result<LoraLayout> lora_layout(const ModelConfig& model, const LoraConfig& config) {
  const ParameterLayout base = parameter_layout(model);
  LoraLayout layout;
  LoraLayoutBuilder builder(config, layout);
  for (const LayerPlaces& layer : base.layers) {
    for (const auto& [weight, count] : {std::pair(layer.qkv, 3), std::pair(layer.output, 1),
                                        std::pair(layer.gate_up, 2), std::pair(layer.down, 1)}) {
      GRADUS_RETURN_IF_ERROR(builder.add_group(base.places, weight, count));
    }
  }
  if (model.head == Head::kScore) builder.add_head(base.places.back());
  return layout;
}

Result<std::unique_ptr<LoraAdapter>> LoraAdapter::create(const ModelConfig& model,
                                                         const LoraConfig& config,
                                                         const float* parameters, uint64_t seed) {
  Result<LoraLayout> layout = lora_layout(model, config);
  if (!layout.ok()) return layout.status();
  std::unique_ptr<LoraAdapter> adapter(new LoraAdapter(config, std::move(*layout), parameters));
  adapter->draw(seed);
  return adapter;
}

LoraAdapter::LoraAdapter(LoraConfig config, LoraLayout layout, const float* parameters)
    : config_(std::move(config)),
      layout_(std::move(layout)),
      values_(layout_.size),
      base_(layout_.base_size) {
  config_.targets = resolved_targets(config_.targets);
  float* kept = base_.data();
  for (const LoraGroup& group : layout_.groups) {
    for (const LoraPart& part : group.parts) {
      const int64_t size = packed_size(part.n, part.k);
      std::memcpy(kept, parameters + part.weight, static_cast<size_t>(size) * sizeof(float));
      kept += size;
    }
  }
  if (layout_.head < 0) return;
  std::copy_n(parameters + layout_.model_head, layout_.places.back().size,
              values_.data() + layout_.head);
}

void LoraAdapter::draw(uint64_t seed) {
  std::vector<const LoraPart*> parts;
  for (const LoraGroup& group : layout_.groups) {
    for (const LoraPart& part : group.parts) parts.push_back(&part);
  }
  parallel_for(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const LoraPart& part = *parts[static_cast<size_t>(i)];
      const double bound = 1.0 / std::sqrt(static_cast<double>(part.k));
      RngSequence rng(hash64({seed, hash64(part.module)}), RngStream::kInit);
      std::vector<float> a_rK(static_cast<size_t>(config_.rank * part.k));
      for (float& value : a_rK) value = static_cast<float>(bound * (2.0 * rng.uniform() - 1.0));
      kernels::pack_weight(a_rK.data(), part.k, config_.rank, part.k, values_.data() + part.a);
    }
  });
}

uint64_t LoraAdapter::base_hash() const { return hash_parameters(base_.data(), base_.size()); }

void LoraAdapter::restart(uint64_t seed) {
  std::fill_n(values_.data(), layout_.factors_size, 0.0f);
  draw(seed);
}

// target += s B A, chains of r fused multiply-adds that begin at what is there.
void LoraAdapter::add_product(const LoraPart& part, float* target) const {
  const int64_t r = config_.rank;
  const float s = static_cast<float>(config_.scale());
  std::vector<float> b_Nr(static_cast<size_t>(part.n * r));
  kernels::unpack_weight(values_.data() + part.b, part.n, r, b_Nr.data(), r);
  // Adding a product of zeros would change the sign of a zero in W.
  if (std::all_of(b_Nr.begin(), b_Nr.end(), [](float b) { return b == 0; })) return;
  std::vector<float> scaled_rN(b_Nr.size());
  for (int64_t n = 0; n < part.n; ++n) {
    for (int64_t i = 0; i < r; ++i) {
      scaled_rN[static_cast<size_t>(i * part.n + n)] = s * b_Nr[static_cast<size_t>(n * r + i)];
    }
  }
  std::vector<float> a_rK(static_cast<size_t>(r * part.k));
  kernels::unpack_weight(values_.data() + part.a, r, part.k, a_rK.data(), part.k);
  // A weight gradient over r rows is the product that is wanted, in the weights' own layout.
  kernels::gemm_backward_weight({.dy_MN = scaled_rN.data(),
                                 .dy_stride = part.n,
                                 .x_MK = a_rK.data(),
                                 .x_stride = part.k,
                                 .dw_packed = target,
                                 .m = r,
                                 .n = part.n,
                                 .k = part.k,
                                 .accumulate = true});
}

void LoraAdapter::product(std::span<float> out) const {
  GRADUS_CHECK(static_cast<int64_t>(out.size()) == layout_.base_size, "one float a weight");
  std::fill(out.begin(), out.end(), 0.0f);
  float* target = out.data();
  for (const LoraGroup& group : layout_.groups) {
    for (const LoraPart& part : group.parts) {
      add_product(part, target);
      target += packed_size(part.n, part.k);
    }
  }
}

void LoraAdapter::merge(float* parameters) const {
  const float* kept = base_.data();
  for (const LoraGroup& group : layout_.groups) {
    for (const LoraPart& part : group.parts) {
      float* merged = parameters + part.weight;
      const int64_t size = packed_size(part.n, part.k);
      std::memcpy(merged, kept, static_cast<size_t>(size) * sizeof(float));
      kept += size;
      add_product(part, merged);
    }
  }
  if (layout_.head < 0) return;
  std::copy_n(values_.data() + layout_.head, layout_.places.back().size,
              parameters + layout_.model_head);
}

void LoraAdapter::add_gradient(int64_t weight, const float* dy_TN, int64_t dy_stride,
                               const float* x_TK, int64_t x_stride, int64_t num_rows,
                               float* gradient) {
  const auto group = std::lower_bound(
      layout_.groups.begin(), layout_.groups.end(), weight,
      [](const LoraGroup& candidate, int64_t offset) { return candidate.weight < offset; });
  if (group == layout_.groups.end() || group->weight != weight || num_rows == 0) return;
  const std::vector<LoraPart>& parts = group->parts;
  const int64_t r = config_.rank, k = parts[0].k, a = parts[0].a;
  const int64_t columns = static_cast<int64_t>(parts.size()) * padded(r);
  u_.reserve(num_rows * columns);
  v_.reserve(num_rows * columns);
  kernels::gemm_forward({.x_MK = x_TK,
                         .x_stride = x_stride,
                         .w_packed = values_.data() + a,
                         .y_MN = u_.data(),
                         .y_stride = columns,
                         .m = num_rows,
                         .n = columns,
                         .k = k});
  // Columns of padding in v are never written: they stay 0, and with them the gradient of A's rows
  // of padding.
  for (size_t i = 0; i < parts.size(); ++i) {
    const LoraPart& part = parts[i];
    const int64_t first = static_cast<int64_t>(i) * padded(r);
    kernels::gemm_backward_weight({.dy_MN = dy_TN + part.column,
                                   .dy_stride = dy_stride,
                                   .x_MK = u_.data() + first,
                                   .x_stride = columns,
                                   .dw_packed = gradient + part.b,
                                   .m = num_rows,
                                   .n = part.n,
                                   .k = r,
                                   .accumulate = true});
    if (is_a_frozen_) continue;
    kernels::gemm_backward_input({.dy_MN = dy_TN + part.column,
                                  .dy_stride = dy_stride,
                                  .w_packed = values_.data() + part.b,
                                  .dx_MK = v_.data() + first,
                                  .dx_stride = columns,
                                  .m = num_rows,
                                  .n = part.n,
                                  .k = r});
  }
  if (is_a_frozen_) return;
  kernels::gemm_backward_weight({.dy_MN = v_.data(),
                                 .dy_stride = columns,
                                 .x_MK = x_TK,
                                 .x_stride = x_stride,
                                 .dw_packed = gradient + a,
                                 .m = num_rows,
                                 .n = columns,
                                 .k = k,
                                 .accumulate = true});
}

}  // namespace gradus::model
