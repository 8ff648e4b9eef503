// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/device_forward.h"
#include "model/checkpoint.h"
#include "model/device_kv_cache.h"
#include "model/model_config.h"

namespace gradus::model {

// Rows of one pass; pointers to device memory. Decoding: row t is the next token of table row t
// (positions negative: an empty place). Otherwise `tiles` cover the rows.
struct DevicePass {
  int64_t num_rows = 0;
  const int32_t* token_ids = nullptr;   // [T]
  const int32_t* positions = nullptr;   // [T]
  const int32_t* table_rows = nullptr;  // [T]; null: row t
  const int32_t* tables = nullptr;
  int64_t table_stride = 0;
  const kernels::AttentionTile* tiles = nullptr;
  int64_t num_tiles = 0;
  // Rows [0, num_first_rows) write their keys and values first; then pages are copied, so that a
  // prompt's last page is also that of the responses that follow it, among the other rows.
  int64_t num_first_rows = 0;
  const kernels::PageCopy* copies = nullptr;
  int64_t num_copies = 0;
  // Decoding alone: see DeviceAttentionParams.
  int64_t max_chunks = 0;
  uint32_t* arrivals = nullptr;
  float* partial = nullptr;
};

// The matrices of the embedding, of a layer or of an untied head, in the order in which they lie
// among the matrices of a model, in numbers: [begin, begin + size), padded to `padded` so that
// ranks can hold equal slices of it.
struct DeviceUnit {
  int64_t begin = 0, size = 0, padded = 0;
};
// Unit 0 is the embedding, i + 1 layer i, the last an untied head.
std::vector<DeviceUnit> device_units(const ModelConfig& config, int64_t num_slices);
// Norms' weights and biases, with padding.
int64_t num_device_vector_floats(const ModelConfig& config);

// A weight of the checkpoint in the device's tensors: row r of it is row `first + r` of its tensor,
// or, interleaved, in blocks of 8 of every 16. Parts of one tensor, which have its offset, follow
// one another.
struct DevicePart {
  std::string hf_name;
  int64_t rows = 0, columns = 0;  // columns 0: a vector
  int64_t offset = 0;             // bytes, of the tensor among the weights
  int64_t first = 0;
  bool interleaved = false;
  int64_t row_of(int64_t row) const { return first + (interleaved ? row / 8 * 16 + row % 8 : row); }
};

// What a layer's forward reads and writes, device memory; T rows. The streams may be one.
struct DeviceLayerRows {
  const float* input_TD = nullptr;  // residual stream before the layer
  float* middle_TD = nullptr;       // after attention
  float* output_TD = nullptr;       // after the layer
  void* normed_TD = nullptr;        // scratch
  void* raw_qkv = nullptr;          // before norm and rotation of heads; null: not kept
  void* qkv = nullptr;              // scratch
  void* attention = nullptr;        // bf16 [T, H K]
  float* lse_TH = nullptr;          // null: not kept
  void* gate_up = nullptr;          // bf16 [T, 2 F]; null: not kept
  void* inner = nullptr;            // scratch
};

// The transformer of model/transformer.h on the GPU: the same definition with bf16 weights, keys
// and values, and sums and residual stream in fp32. Every row is a function of its sequence up to
// it and of the weights alone, bit for bit, whether it is decoded or scored (docs/gpu.md); CPU and
// GPU agree as far as bf16 goes. Not thread-safe: it owns the activations of a pass.
class DeviceTransformer {
 public:
  // InvalidArgument, naming the field, for a model that the kernels cannot run.
  static Status check_supported(const ModelConfig& config);
  // Weights are asked of `read_weight` and rounded to bf16; norms and biases stay fp32. Of every
  // unit `num_slices` ranks can hold a slice each.
  static Result<std::unique_ptr<DeviceTransformer>> create(const kernels::Cuda& cuda,
                                                           const ModelConfig& config,
                                                           const WeightSource& read_weight,
                                                           int64_t num_slices = 1);
  // Normal weights of deviation 0.02, norms of one, biases of zero: for benchmarks.
  static Result<std::unique_ptr<DeviceTransformer>> create_random(const kernels::Cuda& cuda,
                                                                  const ModelConfig& config,
                                                                  uint64_t seed,
                                                                  int64_t num_slices = 1);

  const kernels::Cuda& cuda() const { return cuda_; }
  const ModelConfig& config() const { return config_; }
  int64_t weight_bytes() const { return size_; }
  // bf16 [V, D].
  const void* head() const;

  // Memory for passes of so many rows at positions [0, num_positions). Waits for the device.
  Status reserve(int64_t max_rows, int64_t num_positions);
  static int64_t activation_bytes(const ModelConfig& config, int64_t max_rows);

  // Runs all layers; what they leave is the residual stream of the pass, until the next one.
  Status forward(const DevicePass& pass, DeviceKvCache& cache, kernels::Stream stream);
  // Final norm of rows `rows` [count] of the last pass (null: row i), bf16 [count, D].
  Status final_norm(const int32_t* rows, int64_t count, void* hidden, kernels::Stream stream);

  // The parts of a pass, for training. Angles must be reserved.
  Status embed(const DevicePass& pass, float* x_TD, kernels::Stream stream);
  Status layer_forward(int64_t layer, const DevicePass& pass, kernels::DeviceKv kv,
                       const DeviceLayerRows& rows, kernels::Stream stream);
  Status final_norm(const float* x_TD, const int32_t* rows, int64_t count, void* hidden,
                    kernels::Stream stream);

  // Offsets among the weights, bytes; -1: the model has no such part.
  struct Layer {
    int64_t attention_norm, qkv, qkv_bias, q_norm, k_norm, output, output_bias;
    int64_t mlp_norm, gate_up, gate_up_bias, down, down_bias;
  };
  const std::vector<Layer>& layers() const { return layers_; }
  int64_t embedding_offset() const { return embedding_; }
  int64_t final_norm_offset() const { return final_norm_; }
  int64_t head_offset() const { return head_; }  // that of the embedding, if tied
  std::vector<DevicePart> parts() const;
  // At an offset; null for -1. Of a matrix: of a unit that is there.
  template <class T>
  T* at(int64_t offset) const {
    return offset < 0 ? nullptr : reinterpret_cast<T*>(address(offset));
  }

  // Vectors (norms' weights and biases, fp32) have the offsets below this, matrices those from it
  // on, two bytes a number in the order of their units.
  int64_t matrices_offset() const { return matrices_; }
  const std::vector<DeviceUnit>& units() const { return units_; }
  int unit_of(int64_t offset) const;  // of a matrix
  // All matrices are there, after create(); gives their memory back; takes memory for them, to be
  // filled. Addresses change: what was recorded with them is invalid.
  bool has_matrices() const { return weights_.has_value(); }
  void release_matrices();
  Status allocate_matrices();
  // Where a unit is while not all are there; null: nowhere, and at() of it ends the process.
  void place_unit(int unit, void* p) { unit_places_[static_cast<size_t>(unit)] = p; }
  uint8_t* unit_at(int unit) const;
  kernels::HeadRotation rotation(int64_t layer) const;
  float attention_scale() const;

 private:
  DeviceTransformer(const kernels::Cuda& cuda, ModelConfig config);
  static Result<std::unique_ptr<DeviceTransformer>> allocate(const kernels::Cuda& cuda,
                                                             const ModelConfig& config,
                                                             int64_t num_slices);
  void lay_out();
  uint8_t* address(int64_t offset) const;

  kernels::Cuda cuda_;
  ModelConfig config_;
  int64_t size_ = 0;      // bytes of weights
  int64_t matrices_ = 0;  // bytes of vectors before them
  std::vector<DeviceUnit> units_;
  std::vector<void*> unit_places_;
  int64_t embedding_ = -1, final_norm_ = -1, head_ = -1;
  std::vector<Layer> layers_;
  int64_t max_rows_ = 0, num_positions_ = 0;
  std::optional<kernels::CudaBuffer> vectors_, weights_, activations_, rotary_;
};

// The tiles of `num_rows` rows of one sequence from `row_begin` of a pass on, at consecutive
// positions.
void add_tiles(std::vector<kernels::AttentionTile>& tiles, int64_t row_begin, int64_t num_rows,
               int64_t first_position, int64_t table_row);

// Log-probabilities of given tokens on the GPU: what decoding them would have recorded, bit for
// bit. Not thread-safe.
class DeviceScorer {
 public:
  // At most `max_rows` tokens go in a pass, which changes no bit. The transformer must outlive it.
  DeviceScorer(DeviceTransformer& transformer, int64_t max_rows);
  // Of tokens 1 .. of each sequence, log-softmax(logits / temperature). Ids must be in the
  // vocabulary.
  Result<std::vector<std::vector<float>>> score(std::span<const std::vector<int32_t>> sequences,
                                                float temperature);

 private:
  Status pass(std::span<const std::vector<int32_t>> sequences, int64_t first_row, float temperature,
              std::span<std::vector<float>> logprobs);
  DeviceTransformer& transformer_;
  int64_t max_rows_;
  std::optional<DeviceKvCache> cache_;
};

}  // namespace gradus::model
