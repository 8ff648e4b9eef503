// SPDX-License-Identifier: Apache-2.0
#include "trainer/optimizer.h"

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "common/residency.h"
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
                     const float* weights, std::vector<WeightPiece> pieces)
    : layout_(layout),
      config_(config),
      pieces_(std::move(pieces)),
      m_(layout.size),
      v_(sizes_of(layout, config).second_moments),
      scratch_(sizes_of(layout, config).scratch),
      average_(config.ema_decay > 0 ? layout.size : 0) {
  int64_t second_moment = 0;
  for (const model::ParameterPlace& place : layout.places) {
    const bool has_one = !is_muon_place(config, place);
    second_moments_.push_back(has_one ? second_moment : -1);
    if (has_one) second_moment += place.size;
  }
  for (const WeightPiece& piece : pieces_) num_weights_ += piece.end - piece.first;
  if (is_sharded()) {
    for (AlignedBuffer* buffer : {&m_, &v_, &average_}) {
      use_small_pages({buffer->data(), static_cast<size_t>(buffer->size())});
    }
  }
  if (average_.size() == 0) return;
  for (const WeightPiece& piece : pieces_) {
    const int64_t begin = layout.places[piece.place].offset + piece.first;
    std::copy_n(weights + begin, piece.end - piece.first, average_.data() + begin);
  }
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
  for (const WeightPiece& piece : pieces_) {
    const model::ParameterPlace& place = layout_.places[piece.place];
    if (is_muon_place(config_, place)) {
      GRADUS_CHECK(piece.first == 0 && piece.end == place.size, "Muon updates whole matrices");
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
    const int64_t begin = place.offset + piece.first;
    adamw.weights = weights + begin;
    adamw.gradients = gradient + begin;
    adamw.m = m_.data() + begin;
    adamw.v = v_.data() + second_moments_[piece.place] + piece.first;
    adamw.count = piece.end - piece.first;
    kernels::adamw(adamw);
  }
  if (average_.size() > 0) update_average(weights);
}

void Optimizer::update_average(const float* weights) {
  const double t = static_cast<double>(num_updates_);
  const float decay = static_cast<float>(std::min(config_.ema_decay, (1 + t) / (10 + t)));
  const float rest = 1.0f - decay;
  float* average = average_.data();
  for (const WeightPiece& piece : pieces_) {
    const int64_t offset = layout_.places[piece.place].offset + piece.first;
    parallel_for(piece.end - piece.first, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t i = offset + begin; i < offset + end; ++i) {
        average[i] = decay * average[i] + rest * weights[i];
      }
    });
  }
}

void Optimizer::save(records::StateSnapshot& snapshot, int share, int num_shares) const {
  // Equal shares of the layout, cut between vectors of 16 floats; a weight may lie on a cut. Of
  // parts of the weights all: they are the share.
  int64_t begin = 0, end = layout_.size;
  if (!is_sharded()) {
    begin = layout_.size / 16 * share / num_shares * 16;
    if (share + 1 < num_shares) end = layout_.size / 16 * (share + 1) / num_shares * 16;
  }
  const std::string momentum = momentum_name(config_.optimizer);
  for (const WeightPiece& piece : pieces_) {
    const model::ParameterPlace& place = layout_.places[piece.place];
    const int64_t first = std::max(piece.first, begin - place.offset);
    const int64_t last = std::min(piece.end, end - place.offset);
    const auto add = [&](const std::string& prefix, const float* values) {
      if (first >= last) return;
      snapshot.add_slice(prefix + "/" + place.hf_name, first, place.size,
                         {values + first, static_cast<size_t>(last - first)});
    };
    add(momentum, m_.data() + place.offset);
    const int64_t second_moment = second_moments_[piece.place];
    if (second_moment >= 0) add("adam/v", v_.data() + second_moment);
  }
  if (share == 0) snapshot.add("adam/num_updates", num_updates_);
}

Status Optimizer::load(const records::StateShards& shards) {
  const bool is_muon = config_.optimizer == OptimizerKind::kMuon;
  const OptimizerKind other = is_muon ? OptimizerKind::kAdamW : OptimizerKind::kMuon;
  if (shards.has(momentum_name(other) + ("/" + layout_.places.front().hf_name))) {
    return invalid_argument(
        "the checkpoint has the state of optimizer: {}, this run asks for {}; resume with the "
        "optimizer that the run was started with",
        is_muon ? "adamw" : "muon", is_muon ? "muon" : "adamw");
  }
  const std::string momentum = momentum_name(config_.optimizer);
  for (const WeightPiece& piece : pieces_) {
    const model::ParameterPlace& place = layout_.places[piece.place];
    const auto read = [&](const std::string& prefix, float* values) -> Status {
      const std::string name = prefix + "/" + place.hf_name;
      if (piece.end - piece.first == place.size) {
        return shards.read(name, {values, static_cast<size_t>(place.size)});
      }
      return shards.read_slice(
          name, piece.first, {values + piece.first, static_cast<size_t>(piece.end - piece.first)});
    };
    GRADUS_RETURN_IF_ERROR(read(momentum, m_.data() + place.offset));
    const int64_t second_moment = second_moments_[piece.place];
    if (second_moment >= 0) GRADUS_RETURN_IF_ERROR(read("adam/v", v_.data() + second_moment));
  }
  const Result<int64_t> num_updates = shards.read_i64("adam/num_updates");
  if (!num_updates.ok()) return num_updates.status();
  num_updates_ = *num_updates;
  return {};
}

void Optimizer::get_moments(float* m, float* v) const {
  for (size_t i = 0; i < layout_.places.size(); ++i) {
    const model::ParameterPlace& place = layout_.places[i];
    GRADUS_CHECK(second_moments_[i] >= 0, place.hf_name);
    std::copy_n(m_.data() + place.offset, place.size, m + place.offset);
    std::copy_n(v_.data() + second_moments_[i], place.size, v + place.offset);
  }
}

void Optimizer::set_moments(const float* m, const float* v, int64_t num_updates) {
  for (size_t i = 0; i < layout_.places.size(); ++i) {
    const model::ParameterPlace& place = layout_.places[i];
    GRADUS_CHECK(second_moments_[i] >= 0, place.hf_name);
    std::copy_n(m + place.offset, place.size, m_.data() + place.offset);
    std::copy_n(v + place.offset, place.size, v_.data() + second_moments_[i]);
  }
  num_updates_ = num_updates;
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
