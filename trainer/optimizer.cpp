// SPDX-License-Identifier: Apache-2.0
#include "trainer/optimizer.h"

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "kernels/muon.h"
#include "kernels/optimizer.h"

namespace gradus::trainer {
namespace {

bool is_muon_place(const OptimizerConfig& config, const model::ParameterPlace& place) {
  return config.optimizer == OptimizerKind::kMuon && place.columns > 0 &&
         place.hf_name.starts_with("model.layers.");
}

struct Sizes {
  int64_t second_moments = 0, scratch = 0;  // floats
};

Sizes sizes_of(const model::WeightLayout& layout, const OptimizerConfig& config) {
  Sizes sizes;
  for (const model::ParameterPlace& place : layout.places) {
    if (is_muon_place(config, place)) {
      sizes.scratch =
          std::max(sizes.scratch, kernels::muon_scratch_size(place.rows, place.columns));
    } else {
      sizes.second_moments += place.size;
    }
  }
  return sizes;
}

// What an orthogonal matrix is multiplied by beside the learning rate.
double update_scale(MuonScale scale, const model::ParameterPlace& place) {
  const double rows = static_cast<double>(place.rows), columns = static_cast<double>(place.columns);
  switch (scale) {
    case MuonScale::kSpectral:
      return std::sqrt(std::max(1.0, rows / columns));
    case MuonScale::kMatchAdamW:
      return 0.2 * std::sqrt(std::max(rows, columns));
  }
  GRADUS_CHECK(false, "an unknown muon_scale");
}

const char* momentum_name(OptimizerKind kind) {
  return kind == OptimizerKind::kMuon ? "muon/m" : "adam/m";
}

}  // namespace

Optimizer::Optimizer(const model::WeightLayout& layout, const OptimizerConfig& config,
                     const float* weights)
    : layout_(layout),
      config_(config),
      m_(layout.size),
      v_(sizes_of(layout, config).second_moments),
      scratch_(sizes_of(layout, config).scratch),
      average_(config.ema_decay > 0 ? layout.size : 0) {
  std::copy_n(weights, average_.size(), average_.data());
}

void Optimizer::apply(const float* gradient, double norm, double learning_rate, float* weights) {
  ++num_updates_;
  const double step = static_cast<double>(num_updates_);
  const bool is_clipped = config_.max_grad_norm > 0 && norm > config_.max_grad_norm;
  const float scale = is_clipped ? static_cast<float>(config_.max_grad_norm / norm) : 1.0f;
  kernels::AdamWParams adamw;
  adamw.gradient_scale = scale;
  adamw.learning_rate = static_cast<float>(learning_rate);
  adamw.beta1 = static_cast<float>(config_.adam_beta1);
  adamw.beta2 = static_cast<float>(config_.adam_beta2);
  adamw.eps = static_cast<float>(config_.adam_eps);
  adamw.correction1 = static_cast<float>(1.0 - std::pow(config_.adam_beta1, step));
  adamw.correction2 = static_cast<float>(1.0 - std::pow(config_.adam_beta2, step));
  const double muon_rate = learning_rate * (config_.muon_learning_rate / config_.learning_rate);
  int64_t second_moment = 0;
  for (const model::ParameterPlace& place : layout_.places) {
    if (is_muon_place(config_, place)) {
      kernels::muon({.w_packed = weights + place.offset,
                     .g_packed = gradient + place.offset,
                     .momentum_packed = m_.data() + place.offset,
                     .scratch = scratch_.data(),
                     .n = place.rows,
                     .k = place.columns,
                     .gradient_scale = scale,
                     .momentum = static_cast<float>(config_.muon_momentum),
                     .learning_rate = static_cast<float>(muon_rate),
                     .update_scale = static_cast<float>(update_scale(config_.muon_scale, place)),
                     .weight_decay = static_cast<float>(config_.weight_decay)});
      continue;
    }
    // Norms and biases are not decayed: pulling a scale of 1 towards 0 is no regularisation.
    adamw.weight_decay = place.columns > 0 ? static_cast<float>(config_.weight_decay) : 0.0f;
    adamw.weights = weights + place.offset;
    adamw.gradients = gradient + place.offset;
    adamw.m = m_.data() + place.offset;
    adamw.v = v_.data() + second_moment;
    adamw.count = place.size;
    kernels::adamw(adamw);
    second_moment += place.size;
  }
  if (average_.size() > 0) update_average(weights);
}

void Optimizer::update_average(const float* weights) {
  const double t = static_cast<double>(num_updates_);
  const float decay = static_cast<float>(std::min(config_.ema_decay, (1 + t) / (10 + t)));
  const float rest = 1.0f - decay;
  float* average = average_.data();
  parallel_for(layout_.size, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) average[i] = decay * average[i] + rest * weights[i];
  });
}

Status Optimizer::save(records::StateWriter& writer) const {
  GRADUS_RETURN_IF_ERROR(
      writer.add(momentum_name(config_.optimizer),
                 std::span<const float>(m_.data(), static_cast<size_t>(m_.size()))));
  GRADUS_RETURN_IF_ERROR(
      writer.add("adam/v", std::span<const float>(v_.data(), static_cast<size_t>(v_.size()))));
  return writer.add("adam/num_updates", num_updates_);
}

Status Optimizer::load(const records::StateReader& reader) {
  const bool is_muon = config_.optimizer == OptimizerKind::kMuon;
  const OptimizerKind other = is_muon ? OptimizerKind::kAdamW : OptimizerKind::kMuon;
  if (reader.has(momentum_name(other))) {
    return invalid_argument(
        "the checkpoint has the state of optimizer: {}, this run asks for {}; resume with the "
        "optimizer that the run was started with",
        is_muon ? "adamw" : "muon", is_muon ? "muon" : "adamw");
  }
  GRADUS_RETURN_IF_ERROR(reader.read(momentum_name(config_.optimizer),
                                     std::span<float>(m_.data(), static_cast<size_t>(m_.size()))));
  GRADUS_RETURN_IF_ERROR(
      reader.read("adam/v", std::span<float>(v_.data(), static_cast<size_t>(v_.size()))));
  const Result<int64_t> num_updates = reader.read_i64("adam/num_updates");
  if (!num_updates.ok()) return num_updates.status();
  num_updates_ = *num_updates;
  return {};
}

int64_t Optimizer::planned_bytes(const model::WeightLayout& layout, const OptimizerConfig& config) {
  const Sizes sizes = sizes_of(layout, config);
  return (layout.size + sizes.second_moments + sizes.scratch) * int64_t{sizeof(float)};
}

int64_t Optimizer::planned_average_bytes(const model::WeightLayout& layout,
                                         const OptimizerConfig& config) {
  return config.ema_decay > 0 ? layout.size * int64_t{sizeof(float)} : 0;
}

}  // namespace gradus::trainer
