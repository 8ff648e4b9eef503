// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "comm/device_communicator.h"
#include "common/status.h"
#include "kernels/cuda.h"
#include "model/device_transformer.h"
#include "model/transformer.h"

namespace gradus::model {

// One update of all weights (kernels/optimizer.h): matrices are decayed, norms and biases are not.
struct AdamwStep {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;  // from 1, for the corrections of the moments
  double scale = 1;  // of the gradient: clipping
};

// What ranks share out of a model that they train together (ZeRO: Rajbhandari et al. 2020,
// arXiv:1910.02054), each stage on top of the one before: 1, masters and moments; 2, gradients of
// layers; 3, the bf16 weights of layers. Vectors (norms, biases) are whole everywhere.
struct DeviceSharing {
  comm::DeviceCommunicator* ranks = nullptr;  // null: one rank
  int64_t zero_stage = 0;                     // of one rank nothing is shared out
  int64_t num_ranks() const { return ranks == nullptr ? 1 : ranks->size(); }
  int64_t stage() const { return num_ranks() > 1 ? zero_stage : 0; }
};

// Bytes on one rank's device.
struct DeviceStateBytes {
  int64_t state = 0;             // masters, moments and gradients
  int64_t weights_whole = 0;     // bf16, while an engine reads them
  int64_t weights_training = 0;  // bf16, in an update
};

// fp32 masters, gradients and AdamW's moments on the device, beside the bf16 weights of a
// DeviceTransformer, which are the masters rounded and which an engine may read too. "Host" arrays
// are in the layout of the parameters of a model::Transformer of the same config. Work is ordered
// on the default stream; what returns numbers, and what changes weights, waits for it.
//
// Of several ranks, stages 0 and 1 give the same bits, and so do 2 and 3; all do while a rank's
// batch is one pass. "Collective": all ranks call it, and with stage 1 and more it moves data
// between them. Not thread-safe.
class DeviceTrainingState {
 public:
  // Masters are the host's parameters. The transformer was created for as many slices as there are
  // ranks, has its matrices, and outlives the state; with stage 3 it ends up without them.
  // Unavailable names what did not fit. Collective.
  static Result<std::unique_ptr<DeviceTrainingState>> create(DeviceTransformer& transformer,
                                                             const Transformer& host,
                                                             const DeviceSharing& sharing = {});
  static DeviceStateBytes bytes(const ModelConfig& config, int64_t zero_stage, int64_t num_ranks);

  // To the masters and to the bf16 weights. Collective.
  Status upload(const float* parameters);
  Status download(float* parameters) const;  // the same on all ranks; collective

  Status clear_gradients();
  // The sum over ranks, where the optimizer reads it. Collective.
  Status sum_gradients();
  // L2 norm over all gradients after sum_gradients(), in one order for a number of ranks; may be
  // infinite or NaN. The same on all ranks; collective.
  Result<double> gradient_norm();
  // The sum, after sum_gradients() (collective); before it, or alone, this rank's own.
  Status gradients_to_host(float* gradients) const;
  Status apply(const AdamwStep& step);  // after sum_gradients(); collective

  // Of the masters' bits, in the device's order: another number than hash_parameters() of the
  // host's, the same for any number of ranks. Collective.
  Result<uint64_t> hash();
  Status moments_to_host(float* m, float* v) const;  // the same on all ranks; collective
  Status moments_from_host(const float* m, const float* v);

  // With stage 3 the bf16 weights are either whole, for an engine or for whoever goes through the
  // model alone, or by layers, for passes that all ranks make together. Collective.
  Status gather_weights();
  Status scatter_weights();

  // Whether a pass exchanges with other ranks, layer by layer, so that all make as many of them.
  bool is_lockstep() const { return stage_ >= 2 && !is_alone_; }
  // Between these a pass says nothing to other ranks, and gradients are this rank's own: the search
  // for what is not finite. With stage 2 and more it takes memory for a whole gradient; with stage
  // 3 weights must be gathered.
  Status begin_alone();
  void end_alone();

  // What a pass asks for in lockstep, by layer: the weights of the layer; they and memory for its
  // gradient, which then goes to the ranks; and, before the host waits for the device, wait().
  Status before_forward(int64_t layer);
  Status before_backward(int64_t layer);
  Status after_backward(int64_t layer);
  Status wait();
  // The same exchanges by a rank whose pass has no rows, or no gradient.
  Status idle_forward();
  Status idle_backward();

  // Of the weight at this offset of the transformer's; null for -1.
  float* gradient_at(int64_t offset) const;

 private:
  struct Tensor {
    int64_t offset = 0;             // bytes, among the transformer's weights
    int64_t rows = 0, columns = 0;  // columns 0: a vector
    int64_t first_part = 0, end_part = 0;
    int64_t size() const { return columns == 0 ? rows : rows * columns; }
  };
  // What this rank's optimizer owns of a unit, numbers from the unit's begin: all, or its slice.
  struct Own {
    int64_t begin = 0, end = 0;
    int64_t place = 0;  // of `begin` in the arrays of the optimizer, floats
    int64_t count(const DeviceUnit& unit) const {  // without padding
      return std::max<int64_t>(0, std::min(end, unit.size) - begin);
    }
  };
  DeviceTrainingState(DeviceTransformer& transformer, const Transformer& host,
                      const DeviceSharing& sharing);
  Status allocate();
  int64_t slice_of(const DeviceUnit& unit) const { return unit.padded / num_ranks_; }
  bool is_layer(size_t unit) const {
    return unit > 0 && static_cast<int64_t>(unit) <= transformer_.config().num_layers;
  }
  int64_t number_in_unit(const Tensor& tensor, size_t unit) const {
    return (tensor.offset - transformer_.matrices_offset()) / 2 - transformer_.units()[unit].begin;
  }
  float* whole_gradients() const;              // vectors, then all units; null: in pieces
  float* gradients_of(size_t unit) const;      // of the whole unit
  float* own_gradients_of(size_t unit) const;  // of this rank's slice, once summed
  uint8_t* own_weights_of(size_t unit) const;  // bf16, of what the optimizer owns
  template <class Body>
  void for_each_part(const Tensor& tensor, const Body& body) const;
  void tensor_from_host(const Tensor& tensor, const float* host, float* to) const;
  void tensor_to_host(const Tensor& tensor, const float* from, float* host) const;
  Status from_host(const float* host, const kernels::CudaBuffer& to) const;
  Status gather_to_host(const DeviceUnit& unit, const float* own, float* to) const;
  // `place_of` gives each unit, or this rank's slice of it.
  Status to_host(const float* vectors, bool is_sliced,
                 const std::function<const float*(size_t)>& place_of, float* host) const;
  Status optimizer_to_host(const kernels::CudaBuffer& from, float* host) const;
  Status gather_unit(size_t unit, void* place);
  Status share_weights();
  template <class T>
  Result<std::vector<T>> read_sums() const;
  template <class T>
  std::vector<std::vector<T>> of_all_ranks(const std::vector<T>& mine) const;

  DeviceTransformer& transformer_;
  const ParameterLayout layout_;
  comm::DeviceCommunicator* const ranks_;  // null: one rank
  const int64_t stage_, num_ranks_, rank_;
  const std::vector<DevicePart> parts_;
  const int64_t num_vectors_;  // floats
  std::vector<Tensor> tensors_;
  std::vector<Own> own_;   // by unit
  int64_t num_owned_ = 0;  // floats of each array of the optimizer: vectors, then units
  bool is_alone_ = false, are_summed_ = false;
  std::optional<kernels::CudaBuffer> masters_, m_, v_, sums_;
  // Stages 0 and 1: vectors, then all units. From stage 2 on in the optimizer's order; the units
  // that are no layers, and one layer at a time, are whole in `unit_gradients_`. Alone: as stage 0.
  std::optional<kernels::CudaBuffer> gradients_, unit_gradients_, alone_;
  std::vector<float*> unit_gradient_places_;  // null: not there
  float* gradient_window_ = nullptr;          // of a layer
  // Stage 3: this rank's slices; the units that are no layers, and one layer at a time.
  std::optional<kernels::CudaBuffer> weight_slices_, unit_weights_;
  uint8_t* weight_window_ = nullptr;
  bool are_weights_current_ = true;
};

}  // namespace gradus::model
