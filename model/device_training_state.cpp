// SPDX-License-Identifier: Apache-2.0
#include "model/device_training_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "common/parallel.h"
#include "kernels/device_backward.h"
#include "kernels/device_optimizer.h"
#include "kernels/gemm.h"

namespace gradus::model {
namespace {

using kernels::CudaBuffer;

constexpr int64_t kBf16 = 2, kF32 = 4;
constexpr int64_t kSumSlots = kernels::kSquaresParts + 1;  // of a unit's sum, the last is the sum
constexpr int64_t kGatherFloats = int64_t{1} << 20;        // of a rank, on the way to the host

Status take(std::optional<CudaBuffer>& buffer, const kernels::Cuda& cuda, int64_t bytes,
            const char* what) {
  Result<CudaBuffer> made =
      CudaBuffer::allocate(cuda, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (!made.ok()) return made.status().with_prefix(what);
  buffer.emplace(std::move(*made));
  return buffer->fill(0);
}

// Of the units that are whole on a rank which holds slices of the layers: those that are no layer,
// and one layer at a time.
int64_t num_held(const ModelConfig& config, const std::vector<DeviceUnit>& units) {
  int64_t held = 0, largest_layer = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    if (u > 0 && static_cast<int64_t>(u) <= config.num_layers) {
      largest_layer = std::max(largest_layer, units[u].padded);
    } else {
      held += units[u].padded;
    }
  }
  return held + largest_layer;
}

// In parallel.
template <class Body>
void for_each_row(const DevicePart& part, const Body& body) {
  parallel_for(part.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace

DeviceStateBytes DeviceTrainingState::bytes(const ModelConfig& config, int64_t zero_stage,
                                            int64_t num_ranks) {
  const int64_t stage = num_ranks > 1 ? zero_stage : 0;
  const std::vector<DeviceUnit> units = device_units(config, num_ranks);
  const int64_t vectors = num_device_vector_floats(config);
  const int64_t all = units.back().begin + units.back().padded;
  const int64_t slice = all / num_ranks, held = num_held(config, units);
  const int64_t owned = vectors + (stage >= 1 ? slice : all);
  const int64_t gradients = vectors + (stage >= 2 ? slice + held : all);
  const int64_t whole = vectors * kF32 + all * kBf16;
  DeviceStateBytes bytes;
  bytes.state = (3 * owned + gradients) * kF32;
  bytes.weights_whole = whole + (stage >= 3 ? slice * kBf16 : 0);
  bytes.weights_training = stage >= 3 ? vectors * kF32 + (slice + held) * kBf16 : whole;
  return bytes;
}

DeviceTrainingState::DeviceTrainingState(DeviceTransformer& transformer, const Transformer& host,
                                         const DeviceSharing& sharing)
    : transformer_(transformer),
      layout_(host.layout()),
      ranks_(sharing.num_ranks() > 1 ? sharing.ranks : nullptr),
      stage_(sharing.stage()),
      num_ranks_(sharing.num_ranks()),
      rank_(ranks_ == nullptr ? 0 : ranks_->rank()),
      parts_(transformer.parts()),
      num_vectors_(transformer.matrices_offset() / kF32),
      unit_gradient_places_(transformer.units().size()) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i);
    if (tensors_.empty() || tensors_.back().offset != parts_[i].offset) {
      tensors_.push_back(
          {.offset = parts_[i].offset, .columns = parts_[i].columns, .first_part = index});
    }
    tensors_.back().rows += parts_[i].rows;
    tensors_.back().end_part = index + 1;
  }
  num_owned_ = num_vectors_;
  for (const DeviceUnit& unit : transformer.units()) {
    const int64_t slice = slice_of(unit), begin = stage_ >= 1 ? rank_ * slice : 0;
    const int64_t end = stage_ >= 1 ? begin + slice : unit.padded;
    own_.push_back({.begin = begin, .end = end, .place = num_owned_});
    num_owned_ += end - begin;
  }
}

Result<std::unique_ptr<DeviceTrainingState>> DeviceTrainingState::create(
    DeviceTransformer& transformer, const Transformer& host, const DeviceSharing& sharing) {
  for (const DeviceUnit& unit : transformer.units()) {
    GRADUS_CHECK(unit.padded % sharing.num_ranks() == 0,
                 "the transformer was created for other ranks");
  }
  std::unique_ptr<DeviceTrainingState> state(new DeviceTrainingState(transformer, host, sharing));
  GRADUS_RETURN_IF_ERROR(state->allocate());
  GRADUS_RETURN_IF_ERROR(state->upload(host.parameters()));
  return state;
}

Status DeviceTrainingState::allocate() {
  const kernels::Cuda& cuda = transformer_.cuda();
  const std::vector<DeviceUnit>& units = transformer_.units();
  const int64_t all = units.back().begin + units.back().padded;
  if (stage_ >= 3) {
    transformer_.release_matrices();
    GRADUS_RETURN_IF_ERROR(
        take(weight_slices_, cuda, all / num_ranks_ * kBf16, "slices of the weights"));
  }
  GRADUS_RETURN_IF_ERROR(take(masters_, cuda, num_owned_ * kF32, "master weights"));
  GRADUS_RETURN_IF_ERROR(
      take(gradients_, cuda, (stage_ >= 2 ? num_owned_ : num_vectors_ + all) * kF32, "gradients"));
  if (stage_ >= 2) {
    GRADUS_RETURN_IF_ERROR(take(unit_gradients_, cuda,
                                num_held(transformer_.config(), units) * kF32,
                                "gradients of a layer and of the embedding"));
    float* next = unit_gradients_->as<float>();
    for (size_t u = 0; u < units.size(); ++u) {
      if (!is_layer(u)) unit_gradient_places_[u] = std::exchange(next, next + units[u].padded);
    }
    gradient_window_ = next;
  }
  GRADUS_RETURN_IF_ERROR(take(m_, cuda, num_owned_ * kF32, "AdamW's first moments"));
  GRADUS_RETURN_IF_ERROR(take(v_, cuda, num_owned_ * kF32, "AdamW's second moments"));
  return take(sums_, cuda, static_cast<int64_t>(units.size() + 1) * kSumSlots * int64_t{8},
              "sums of squares");
}

float* DeviceTrainingState::whole_gradients() const {
  if (alone_) return alone_->as<float>();
  return stage_ < 2 ? gradients_->as<float>() : nullptr;
}

float* DeviceTrainingState::gradients_of(size_t unit) const {
  if (float* whole = whole_gradients()) {
    return whole + num_vectors_ + transformer_.units()[unit].begin;
  }
  GRADUS_CHECK(unit_gradient_places_[unit] != nullptr,
               fmt::format("the gradient of unit {} is on other ranks", unit));
  return unit_gradient_places_[unit];
}

float* DeviceTrainingState::own_gradients_of(size_t unit) const {
  if (stage_ >= 2) return gradients_->as<float>() + own_[unit].place;
  return gradients_of(unit) + rank_ * slice_of(transformer_.units()[unit]);
}

float* DeviceTrainingState::gradient_at(int64_t offset) const {
  if (offset < 0) return nullptr;
  const int64_t matrices = transformer_.matrices_offset();
  if (offset < matrices) {
    return (alone_ ? alone_ : gradients_)->as<float>() + offset / kF32;
  }
  const size_t unit = static_cast<size_t>(transformer_.unit_of(offset));
  return gradients_of(unit) + (offset - matrices) / kBf16 - transformer_.units()[unit].begin;
}

// Calls `body` with each part of a tensor, its place on the host, its columns (1 of a vector) and
// room for its values.
template <class Body>
void DeviceTrainingState::for_each_part(const Tensor& tensor, const Body& body) const {
  std::vector<float> values;
  for (int64_t i = tensor.first_part; i < tensor.end_part; ++i) {
    const DevicePart& part = parts_[static_cast<size_t>(i)];
    const int64_t columns = std::max<int64_t>(part.columns, 1);
    values.resize(static_cast<size_t>(part.rows * columns));
    body(part, find_place(layout_, part.hf_name), columns, values.data());
  }
}

// Row-major rows of a tensor of the device, from the packed panels of the host.
void DeviceTrainingState::tensor_from_host(const Tensor& tensor, const float* host,
                                           float* to) const {
  for_each_part(tensor, [&](const DevicePart& part, const ParameterPlace& place, int64_t columns,
                            float* values) {
    read_parameter(place, host + place.offset, values);
    for_each_row(part, [&](int64_t row) {
      std::copy_n(values + row * columns, columns, to + part.row_of(row) * columns);
    });
  });
}

void DeviceTrainingState::tensor_to_host(const Tensor& tensor, const float* from,
                                         float* host) const {
  for_each_part(tensor, [&](const DevicePart& part, const ParameterPlace& place, int64_t columns,
                            float* values) {
    for_each_row(part, [&](int64_t row) {
      std::copy_n(from + part.row_of(row) * columns, columns, values + row * columns);
    });
    if (part.columns == 0) {
      std::copy_n(values, part.rows, host + place.offset);
    } else {
      kernels::pack_weight(values, part.columns, part.rows, part.columns, host + place.offset);
    }
  });
}

// What this rank owns of a host's array, in the optimizer's order.
Status DeviceTrainingState::from_host(const float* host, const CudaBuffer& to) const {
  std::vector<float> values;
  for (const Tensor& tensor : tensors_) {
    values.resize(static_cast<size_t>(tensor.size()));
    tensor_from_host(tensor, host, values.data());
    int64_t first = 0, end = tensor.size();  // of the tensor
    float* place = to.as<float>();
    if (tensor.columns == 0) {
      place += tensor.offset / kF32;
    } else {
      const size_t unit = static_cast<size_t>(transformer_.unit_of(tensor.offset));
      const int64_t begin = number_in_unit(tensor, unit);
      first = std::clamp(own_[unit].begin - begin, first, end);
      end = std::clamp(own_[unit].end - begin, first, end);
      place += own_[unit].place + begin + first - own_[unit].begin;
    }
    if (first == end) continue;
    GRADUS_RETURN_IF_ERROR(
        kernels::copy_to_device(transformer_.cuda(), place, values.data() + first,
                                static_cast<size_t>(end - first) * sizeof(float)));
  }
  return {};
}

// A unit of which every rank has a slice, to the host.
Status DeviceTrainingState::gather_to_host(const DeviceUnit& unit, const float* own,
                                           float* to) const {
  const int64_t slice = slice_of(unit), step = std::min(slice, kGatherFloats);
  std::optional<CudaBuffer> buffer;
  GRADUS_RETURN_IF_ERROR(
      take(buffer, transformer_.cuda(), step * num_ranks_ * kF32, "room for slices"));
  std::vector<float> values(static_cast<size_t>(step * num_ranks_));
  for (int64_t first = 0; first < slice; first += step) {
    const int64_t count = std::min(step, slice - first);
    GRADUS_RETURN_IF_ERROR(ranks_->all_gather(own + first, buffer->data(), count * kF32, nullptr));
    GRADUS_RETURN_IF_ERROR(ranks_->wait("slices to the host"));
    GRADUS_RETURN_IF_ERROR(buffer->copy_to_host(
        values.data(), static_cast<size_t>(count * num_ranks_) * sizeof(float)));
    for (int64_t r = 0; r < num_ranks_; ++r) {
      std::copy_n(values.data() + r * count, count, to + r * slice + first);
    }
  }
  return {};
}

Status DeviceTrainingState::to_host(const float* vectors, bool is_sliced,
                                    const std::function<const float*(size_t)>& place_of,
                                    float* host) const {
  const kernels::Cuda& cuda = transformer_.cuda();
  std::vector<float> values(static_cast<size_t>(num_vectors_));
  GRADUS_RETURN_IF_ERROR(
      kernels::copy_to_host(cuda, values.data(), vectors, values.size() * sizeof(float)));
  for (const Tensor& tensor : tensors_) {
    if (tensor.columns == 0) tensor_to_host(tensor, values.data() + tensor.offset / kF32, host);
  }
  for (size_t u = 0; u < own_.size(); ++u) {
    const DeviceUnit& unit = transformer_.units()[u];
    values.resize(static_cast<size_t>(unit.padded));
    GRADUS_RETURN_IF_ERROR(
        is_sliced ? gather_to_host(unit, place_of(u), values.data())
                  : kernels::copy_to_host(cuda, values.data(), place_of(u),
                                          static_cast<size_t>(unit.size) * sizeof(float)));
    for (const Tensor& tensor : tensors_) {
      if (tensor.columns == 0 || transformer_.unit_of(tensor.offset) != static_cast<int>(u)) {
        continue;
      }
      tensor_to_host(tensor, values.data() + number_in_unit(tensor, u), host);
    }
  }
  return {};
}

Status DeviceTrainingState::optimizer_to_host(const CudaBuffer& from, float* host) const {
  return to_host(
      from.as<float>(), stage_ >= 1, [&](size_t u) { return from.as<float>() + own_[u].place; },
      host);
}

Status DeviceTrainingState::download(float* parameters) const {
  return optimizer_to_host(*masters_, parameters);
}

Status DeviceTrainingState::moments_to_host(float* m, float* v) const {
  GRADUS_RETURN_IF_ERROR(optimizer_to_host(*m_, m));
  return optimizer_to_host(*v_, v);
}

Status DeviceTrainingState::moments_from_host(const float* m, const float* v) {
  GRADUS_RETURN_IF_ERROR(from_host(m, *m_));
  return from_host(v, *v_);
}

Status DeviceTrainingState::gradients_to_host(float* gradients) const {
  const bool is_sliced = are_summed_ && stage_ >= 1;
  GRADUS_CHECK(is_sliced || whole_gradients() != nullptr, "before the sum gradients are in pieces");
  const float* vectors = gradient_at(0);
  return to_host(
      vectors, is_sliced,
      [&](size_t u) -> const float* { return is_sliced ? own_gradients_of(u) : gradients_of(u); },
      gradients);
}

uint8_t* DeviceTrainingState::own_weights_of(size_t unit) const {
  if (stage_ >= 3) {
    return weight_slices_->as<uint8_t>() + (own_[unit].place - num_vectors_) * kBf16;
  }
  return transformer_.unit_at(static_cast<int>(unit)) + own_[unit].begin * kBf16;
}

// Brings a unit of the weights together.
Status DeviceTrainingState::gather_unit(size_t unit, void* place) {
  return ranks_->all_gather(own_weights_of(unit), place,
                            slice_of(transformer_.units()[unit]) * kBf16, nullptr);
}

// After each rank has changed what it owns of the bf16 weights.
Status DeviceTrainingState::share_weights() {
  are_weights_current_ = stage_ < 3;
  if (stage_ == 1 || stage_ == 2) {
    for (size_t u = 0; u < own_.size(); ++u) {
      GRADUS_RETURN_IF_ERROR(gather_unit(u, transformer_.unit_at(static_cast<int>(u))));
    }
    GRADUS_RETURN_IF_ERROR(ranks_->wait("weights"));
  }
  // Products ask for weights before the kernel before them has ended.
  return kernels::synchronize(transformer_.cuda());
}

Status DeviceTrainingState::upload(const float* parameters) {
  const kernels::Cuda& cuda = transformer_.cuda();
  GRADUS_RETURN_IF_ERROR(from_host(parameters, *masters_));
  GRADUS_RETURN_IF_ERROR(kernels::device_copy(cuda, transformer_.at<uint8_t>(0), masters_->data(),
                                              num_vectors_ * kF32, nullptr));
  for (size_t u = 0; u < own_.size(); ++u) {
    const int64_t count = own_[u].count(transformer_.units()[u]);
    if (count == 0) continue;
    GRADUS_RETURN_IF_ERROR(kernels::device_round(cuda, masters_->as<float>() + own_[u].place,
                                                 own_weights_of(u), count, nullptr));
  }
  return share_weights();
}

Status DeviceTrainingState::gather_weights() {
  if (stage_ < 3 || (transformer_.has_matrices() && are_weights_current_)) return {};
  if (!transformer_.has_matrices()) {
    for (size_t u = 0; u < own_.size(); ++u) transformer_.place_unit(static_cast<int>(u), nullptr);
    unit_weights_.reset();
    GRADUS_RETURN_IF_ERROR(transformer_.allocate_matrices());
  }
  for (size_t u = 0; u < own_.size(); ++u) {
    GRADUS_RETURN_IF_ERROR(gather_unit(u, transformer_.unit_at(static_cast<int>(u))));
  }
  are_weights_current_ = true;
  return ranks_->wait("weights");
}

Status DeviceTrainingState::scatter_weights() {
  if (stage_ < 3 || (unit_weights_ && are_weights_current_)) return {};
  const std::vector<DeviceUnit>& units = transformer_.units();
  if (!unit_weights_) {
    transformer_.release_matrices();
    GRADUS_RETURN_IF_ERROR(take(unit_weights_, transformer_.cuda(),
                                num_held(transformer_.config(), units) * kBf16,
                                "weights of a layer and of the embedding"));
  }
  uint8_t* next = unit_weights_->as<uint8_t>();
  for (size_t u = 0; u < units.size(); ++u) {
    if (is_layer(u)) continue;
    transformer_.place_unit(static_cast<int>(u), next);
    GRADUS_RETURN_IF_ERROR(gather_unit(u, next));
    next += units[u].padded * kBf16;
  }
  weight_window_ = next;
  are_weights_current_ = true;
  return ranks_->wait("weights");
}

Status DeviceTrainingState::begin_alone() {
  const std::vector<DeviceUnit>& units = transformer_.units();
  if (stage_ >= 2) {
    GRADUS_RETURN_IF_ERROR(take(alone_, transformer_.cuda(),
                                (num_vectors_ + units.back().begin + units.back().padded) * kF32,
                                "gradients"));
  }
  is_alone_ = true;
  return {};
}

void DeviceTrainingState::end_alone() {
  alone_.reset();
  is_alone_ = false;
}

Status DeviceTrainingState::before_forward(int64_t layer) {
  if (!is_lockstep() || stage_ < 3) return {};
  GRADUS_CHECK(unit_weights_ && are_weights_current_, "weights are scattered before a pass");
  for (int64_t i = 0; i < transformer_.config().num_layers; ++i) {
    transformer_.place_unit(static_cast<int>(i + 1), i == layer ? weight_window_ : nullptr);
  }
  return gather_unit(static_cast<size_t>(layer + 1), weight_window_);
}

Status DeviceTrainingState::before_backward(int64_t layer) {
  if (!is_lockstep()) return {};
  GRADUS_RETURN_IF_ERROR(before_forward(layer));
  const size_t unit = static_cast<size_t>(layer + 1);
  const int64_t slice = slice_of(transformer_.units()[unit]);
  unit_gradient_places_[unit] = gradient_window_;
  // What was summed so far takes part in the next sum as this rank's own.
  GRADUS_RETURN_IF_ERROR(kernels::device_zero(transformer_.cuda(), gradient_window_,
                                              slice * num_ranks_ * kF32, nullptr));
  return kernels::device_copy(transformer_.cuda(), gradient_window_ + rank_ * slice,
                              own_gradients_of(unit), slice * kF32, nullptr);
}

Status DeviceTrainingState::after_backward(int64_t layer) {
  if (!is_lockstep()) return {};
  const size_t unit = static_cast<size_t>(layer + 1);
  unit_gradient_places_[unit] = nullptr;
  return ranks_->reduce_scatter(gradient_window_, own_gradients_of(unit),
                                slice_of(transformer_.units()[unit]), nullptr);
}

Status DeviceTrainingState::wait() {
  return is_lockstep() ? ranks_->wait("a pass of all ranks") : Status();
}

Status DeviceTrainingState::idle_forward() {
  for (int64_t i = 0; i < transformer_.config().num_layers; ++i) {
    GRADUS_RETURN_IF_ERROR(before_forward(i));
  }
  return wait();
}

Status DeviceTrainingState::idle_backward() {
  for (int64_t i = transformer_.config().num_layers - 1; i >= 0; --i) {
    GRADUS_RETURN_IF_ERROR(before_backward(i));
    GRADUS_RETURN_IF_ERROR(after_backward(i));
  }
  return wait();
}

Status DeviceTrainingState::clear_gradients() {
  are_summed_ = false;
  const kernels::Cuda& cuda = transformer_.cuda();
  const auto clear = [&](const std::optional<CudaBuffer>& buffer) -> Status {
    if (!buffer) return {};
    return kernels::device_zero(cuda, buffer->data(), static_cast<int64_t>(buffer->bytes()),
                                nullptr);
  };
  if (is_alone_ && stage_ >= 2) return clear(alone_);
  GRADUS_RETURN_IF_ERROR(clear(gradients_));
  return clear(unit_gradients_);
}

Status DeviceTrainingState::sum_gradients() {
  GRADUS_CHECK(!is_alone_, "alone there is no sum");
  are_summed_ = true;
  if (num_ranks_ == 1) return {};
  for (size_t u = 0; u < own_.size(); ++u) {
    if (stage_ >= 2 && is_layer(u)) continue;  // its backward did it
    const int64_t slice = slice_of(transformer_.units()[u]);
    float* own = own_gradients_of(u);
    GRADUS_RETURN_IF_ERROR(ranks_->reduce_scatter(gradients_of(u), own, slice, nullptr));
    if (stage_ == 0) {
      GRADUS_RETURN_IF_ERROR(ranks_->all_gather(own, gradients_of(u), slice * kF32, nullptr));
    }
  }
  float* vectors = gradients_->as<float>();
  GRADUS_RETURN_IF_ERROR(ranks_->all_reduce(vectors, vectors, num_vectors_, nullptr));
  return ranks_->wait("sum of gradients");
}

// The totals of all slots.
template <class T>
Result<std::vector<T>> DeviceTrainingState::read_sums() const {
  std::vector<T> all(sums_->bytes() / sizeof(T)), sums;
  GRADUS_RETURN_IF_ERROR(sums_->copy_to_host(all.data(), sums_->bytes()));
  for (size_t slot = 0; slot <= own_.size(); ++slot) {
    sums.push_back(all[(slot + 1) * static_cast<size_t>(kSumSlots) - 1]);
  }
  return sums;
}

// Of every rank, by rank.
template <class T>
std::vector<std::vector<T>> DeviceTrainingState::of_all_ranks(const std::vector<T>& mine) const {
  if (num_ranks_ == 1) return {mine};
  std::vector<std::vector<T>> all;
  const std::string bytes(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(T));
  for (const std::string& text : ranks_->host().all_gather(bytes)) {
    std::memcpy(all.emplace_back(mine.size()).data(), text.data(), text.size());
  }
  return all;
}

Result<double> DeviceTrainingState::gradient_norm() {
  GRADUS_CHECK(are_summed_, "the norm is one of the sum");
  const kernels::Cuda& cuda = transformer_.cuda();
  double* sums = sums_->as<double>();
  GRADUS_RETURN_IF_ERROR(kernels::device_sum_of_squares(
      cuda, {.values = gradients_->as<float>(), .count = num_vectors_, .sums = sums}));
  for (size_t u = 0; u < own_.size(); ++u) {
    sums += kSumSlots;
    GRADUS_RETURN_IF_ERROR(kernels::device_sum_of_squares(
        cuda,
        {.values = own_gradients_of(u), .count = slice_of(transformer_.units()[u]), .sums = sums}));
  }
  const Result<std::vector<double>> mine = read_sums<double>();
  // All ranks take part, or the others would wait.
  const std::vector<double> none(own_.size() + 1, std::nan(""));
  const std::vector<std::vector<double>> all = of_all_ranks(mine.ok() ? *mine : none);
  GRADUS_RETURN_IF_ERROR(mine.status());
  double total = all[0][0];  // of the vectors, which are the same everywhere
  for (size_t slot = 1; slot <= own_.size(); ++slot) {
    for (const std::vector<double>& of_rank : all) total += of_rank[slot];
  }
  return std::sqrt(total);
}

Result<uint64_t> DeviceTrainingState::hash() {
  const kernels::Cuda& cuda = transformer_.cuda();
  uint64_t* sums = sums_->as<uint64_t>();
  GRADUS_RETURN_IF_ERROR(kernels::device_hash(
      cuda, {.values = masters_->data(), .count = num_vectors_, .sums = sums}));
  int64_t first = num_vectors_;  // places without the padding, which depends on the ranks
  for (size_t u = 0; u < own_.size(); ++u) {
    sums += kSumSlots;
    const DeviceUnit& unit = transformer_.units()[u];
    GRADUS_RETURN_IF_ERROR(
        kernels::device_hash(cuda, {.values = masters_->as<float>() + own_[u].place,
                                    .count = own_[u].count(unit),
                                    .first = first + own_[u].begin,
                                    .sums = sums}));
    first += unit.size;
  }
  const Result<std::vector<uint64_t>> mine = read_sums<uint64_t>();
  const std::vector<std::vector<uint64_t>> all =
      of_all_ranks(mine.ok() ? *mine : std::vector<uint64_t>(own_.size() + 1));
  GRADUS_RETURN_IF_ERROR(mine.status());
  uint64_t total = all[0][0];
  for (size_t r = 0; r < (stage_ >= 1 ? all.size() : 1); ++r) {
    for (size_t slot = 1; slot <= own_.size(); ++slot) total += all[r][slot];
  }
  return total;
}

Status DeviceTrainingState::apply(const AdamwStep& step) {
  GRADUS_CHECK(are_summed_, "the optimizer takes the sum");
  const double number = static_cast<double>(step.step);
  kernels::DeviceAdamWParams params;
  params.gradient_scale = static_cast<float>(step.scale);
  params.learning_rate = static_cast<float>(step.learning_rate);
  params.beta1 = static_cast<float>(step.beta1);
  params.beta2 = static_cast<float>(step.beta2);
  params.eps = static_cast<float>(step.eps);
  params.correction1 = static_cast<float>(1.0 - std::pow(step.beta1, number));
  params.correction2 = static_cast<float>(1.0 - std::pow(step.beta2, number));
  const auto update = [&](int64_t place, const float* gradients, int64_t count) -> Status {
    if (count == 0) return {};
    params.weights = masters_->as<float>() + place;
    params.gradients = gradients;
    params.m = m_->as<float>() + place;
    params.v = v_->as<float>() + place;
    params.count = count;
    return kernels::device_adamw(transformer_.cuda(), params);
  };
  params.weights_f32 = transformer_.at<float>(0);
  GRADUS_RETURN_IF_ERROR(update(0, gradients_->as<float>(), num_vectors_));
  params.weights_f32 = nullptr;
  params.weight_decay = static_cast<float>(step.weight_decay);
  for (size_t u = 0; u < own_.size(); ++u) {
    params.weights_bf16 = own_weights_of(u);
    const float* gradients = stage_ >= 1 ? own_gradients_of(u) : gradients_of(u);
    GRADUS_RETURN_IF_ERROR(
        update(own_[u].place, gradients, own_[u].count(transformer_.units()[u])));
  }
  return share_weights();
}

}  // namespace gradus::model
