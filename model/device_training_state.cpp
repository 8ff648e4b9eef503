// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <utility>

#include "common/parallel.h"
#include "kernels/device_optimizer.h"
#include "kernels/gemm.h"
#include "model/device_training.h"

namespace gradus::model {
namespace {

using kernels::CudaBuffer;

constexpr int64_t kF32 = 4;

}  // namespace

std::vector<DeviceTrainingState::Tensor> DeviceTrainingState::tensors_of(
    const std::vector<DevicePart>& parts, int64_t* num_floats) {
  std::vector<Tensor> tensors;
  *num_floats = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t index = static_cast<int64_t>(i);
    if (tensors.empty() || tensors.back().offset != parts[i].offset) {
      if (!tensors.empty()) *num_floats += (tensors.back().size() + 63) / 64 * 64;
      tensors.push_back({.offset = parts[i].offset,
                         .first = *num_floats,
                         .columns = parts[i].columns,
                         .first_part = index});
    }
    tensors.back().rows += parts[i].rows;
    tensors.back().end_part = index + 1;
  }
  if (!tensors.empty()) *num_floats += (tensors.back().size() + 63) / 64 * 64;
  return tensors;
}

DeviceTrainingState::DeviceTrainingState(DeviceTransformer& transformer, const Transformer& host,
                                         std::vector<Tensor> tensors, int64_t num_floats,
                                         CudaBuffer masters, CudaBuffer gradients, CudaBuffer m,
                                         CudaBuffer v, CudaBuffer sums)
    : transformer_(transformer),
      layout_(host.layout()),
      parts_(transformer.parts()),
      tensors_(std::move(tensors)),
      num_floats_(num_floats),
      masters_(std::move(masters)),
      gradients_(std::move(gradients)),
      m_(std::move(m)),
      v_(std::move(v)),
      sums_(std::move(sums)) {}

Result<std::unique_ptr<DeviceTrainingState>> DeviceTrainingState::create(
    DeviceTransformer& transformer, const Transformer& host) {
  int64_t num_floats = 0;
  std::vector<Tensor> tensors = tensors_of(transformer.parts(), &num_floats);
  std::vector<CudaBuffer> buffers;
  for (const char* what : {"master weights", "gradients", "AdamW's first moments",
                           "AdamW's second moments", "sums of squares"}) {
    const bool is_last = buffers.size() == 4;
    Result<CudaBuffer> buffer =
        CudaBuffer::allocate(transformer.cuda(), is_last ? kernels::device_sum_of_squares_bytes()
                                                         : static_cast<size_t>(num_floats * kF32));
    if (!buffer.ok()) return buffer.status().with_prefix(what);
    GRADUS_RETURN_IF_ERROR(buffer->fill(0));
    buffers.push_back(std::move(*buffer));
  }
  std::unique_ptr<DeviceTrainingState> state(new DeviceTrainingState(
      transformer, host, std::move(tensors), num_floats, std::move(buffers[0]),
      std::move(buffers[1]), std::move(buffers[2]), std::move(buffers[3]), std::move(buffers[4])));
  GRADUS_RETURN_IF_ERROR(state->upload(host.parameters()));
  return state;
}

int64_t DeviceTrainingState::bytes(const ModelConfig& config) {
  int64_t floats = 0;
  for (const WeightSpec& spec : weight_specs(config)) {
    int64_t size = 1;
    for (const int64_t extent : spec.shape) size *= extent;
    floats += (size + 63) / 64 * 64;
  }
  return 4 * floats * kF32;
}

float* DeviceTrainingState::gradient_at(int64_t offset) const {
  if (offset < 0) return nullptr;
  for (const Tensor& tensor : tensors_) {
    if (tensor.offset == offset) return gradients_.as<float>() + tensor.first;
  }
  GRADUS_CHECK(false, "no weight at this offset");
}

// Row-major rows of the tensors of the device, from the packed panels of the host.
Status DeviceTrainingState::from_host(const float* host, const CudaBuffer& to) const {
  std::vector<float> values, tensor_values;
  for (const Tensor& tensor : tensors_) {
    tensor_values.resize(static_cast<size_t>(tensor.size()));
    for (int64_t i = tensor.first_part; i < tensor.end_part; ++i) {
      const DevicePart& part = parts_[static_cast<size_t>(i)];
      const ParameterPlace& place = find_place(layout_, part.hf_name);
      const int64_t columns = std::max<int64_t>(part.columns, 1);
      values.resize(static_cast<size_t>(part.rows * columns));
      read_parameter(place, host + place.offset, values.data());
      parallel_for(part.rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          std::copy_n(values.data() + row * columns, columns,
                      tensor_values.data() + part.row_of(row) * columns);
        }
      });
    }
    GRADUS_RETURN_IF_ERROR(
        kernels::copy_to_device(transformer_.cuda(), to.as<float>() + tensor.first,
                                tensor_values.data(), tensor_values.size() * sizeof(float)));
  }
  return {};
}

Status DeviceTrainingState::to_host(const CudaBuffer& from, float* host) const {
  std::vector<float> all(static_cast<size_t>(num_floats_)), values;
  GRADUS_RETURN_IF_ERROR(from.copy_to_host(all.data(), all.size() * sizeof(float)));
  for (const Tensor& tensor : tensors_) {
    for (int64_t i = tensor.first_part; i < tensor.end_part; ++i) {
      const DevicePart& part = parts_[static_cast<size_t>(i)];
      const ParameterPlace& place = find_place(layout_, part.hf_name);
      const int64_t columns = std::max<int64_t>(part.columns, 1);
      values.resize(static_cast<size_t>(part.rows * columns));
      parallel_for(part.rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          std::copy_n(all.data() + tensor.first + part.row_of(row) * columns, columns,
                      values.data() + row * columns);
        }
      });
      if (part.columns == 0) {
        std::copy(values.begin(), values.end(), host + place.offset);
      } else {
        kernels::pack_weight(values.data(), part.columns, part.rows, part.columns,
                             host + place.offset);
      }
    }
  }
  return {};
}

Status DeviceTrainingState::upload(const float* parameters) {
  GRADUS_RETURN_IF_ERROR(from_host(parameters, masters_));
  for (const Tensor& tensor : tensors_) {
    const float* from = masters_.as<float>() + tensor.first;
    if (tensor.columns > 0) {
      GRADUS_RETURN_IF_ERROR(kernels::device_round(transformer_.cuda(), from,
                                                   transformer_.at<uint8_t>(tensor.offset),
                                                   tensor.size(), nullptr));
    } else {
      GRADUS_RETURN_IF_ERROR(kernels::device_copy(transformer_.cuda(),
                                                  transformer_.at<uint8_t>(tensor.offset), from,
                                                  tensor.size() * kF32, nullptr));
    }
  }
  return kernels::synchronize(transformer_.cuda());
}

Status DeviceTrainingState::download(float* parameters) const {
  return to_host(masters_, parameters);
}

Status DeviceTrainingState::clear_gradients() {
  return kernels::device_zero(transformer_.cuda(), gradients_.data(), num_floats_ * kF32, nullptr);
}

Status DeviceTrainingState::gradients_to_host(float* gradients) const {
  return to_host(gradients_, gradients);
}

Status DeviceTrainingState::moments_to_host(float* m, float* v) const {
  GRADUS_RETURN_IF_ERROR(to_host(m_, m));
  return to_host(v_, v);
}

Status DeviceTrainingState::moments_from_host(const float* m, const float* v) {
  GRADUS_RETURN_IF_ERROR(from_host(m, m_));
  return from_host(v, v_);
}

Result<double> DeviceTrainingState::gradient_norm() {
  GRADUS_RETURN_IF_ERROR(kernels::device_sum_of_squares(
      transformer_.cuda(),
      {.values = gradients_.as<float>(), .count = num_floats_, .sums = sums_.as<double>()}));
  double sum = 0;
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_host(
      transformer_.cuda(), &sum, sums_.as<double>() + kernels::kSquaresParts, sizeof(sum)));
  return std::sqrt(sum);
}

Result<uint64_t> DeviceTrainingState::hash() {
  GRADUS_RETURN_IF_ERROR(kernels::device_hash(
      transformer_.cuda(),
      {.values = masters_.data(), .count = num_floats_, .sums = sums_.as<uint64_t>()}));
  uint64_t sum = 0;
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_host(
      transformer_.cuda(), &sum, sums_.as<uint64_t>() + kernels::kSquaresParts, sizeof(sum)));
  return sum;
}

Status DeviceTrainingState::apply(const AdamwStep& step) {
  const double number = static_cast<double>(step.step);
  kernels::DeviceAdamWParams params;
  params.gradient_scale = static_cast<float>(step.scale);
  params.learning_rate = static_cast<float>(step.learning_rate);
  params.beta1 = static_cast<float>(step.beta1);
  params.beta2 = static_cast<float>(step.beta2);
  params.eps = static_cast<float>(step.eps);
  params.correction1 = static_cast<float>(1.0 - std::pow(step.beta1, number));
  params.correction2 = static_cast<float>(1.0 - std::pow(step.beta2, number));
  for (const Tensor& tensor : tensors_) {
    params.weights = masters_.as<float>() + tensor.first;
    params.gradients = gradients_.as<float>() + tensor.first;
    params.m = m_.as<float>() + tensor.first;
    params.v = v_.as<float>() + tensor.first;
    params.count = tensor.size();
    const bool is_matrix = tensor.columns > 0;
    params.weight_decay = is_matrix ? static_cast<float>(step.weight_decay) : 0.0f;
    params.weights_bf16 = is_matrix ? transformer_.at<uint8_t>(tensor.offset) : nullptr;
    params.weights_f32 = is_matrix ? nullptr : transformer_.at<float>(tensor.offset);
    GRADUS_RETURN_IF_ERROR(kernels::device_adamw(transformer_.cuda(), params));
  }
  // Products ask for weights before the kernel before them has ended.
  return kernels::synchronize(transformer_.cuda());
}

}  // namespace gradus::model
