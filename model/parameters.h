// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/status.h"
#include "model/checkpoint.h"
#include "model/model_config.h"

// All weights of a model in one flat fp32 buffer, in the layout that the kernels read: matrices in
// panels of 16 rows (kernels/gemm.h), vectors as they are, each part starting at a multiple of 16
// floats. Gradients and optimizer moments are buffers of the same layout, so that an update is one
// elementwise pass. q, k and v, and gate and up, are neighbours: each group is one matrix product.
namespace gradus::model {

// Where one weight of a checkpoint is in the buffer.
struct ParameterPlace {
  std::string hf_name;
  int64_t offset = 0;   // floats from the start of the buffer
  int64_t rows = 0;     // N of a matrix [N, K]; length of a vector
  int64_t columns = 0;  // K of a matrix; 0 for a vector
  int64_t size = 0;     // floats taken, with padding
};

// Offsets of one layer's parts; -1 where the model has no such part.
struct LayerPlaces {
  int64_t attention_norm = -1, qkv = -1, qkv_bias = -1, q_norm = -1, k_norm = -1;
  int64_t output = -1, output_bias = -1;
  int64_t mlp_norm = -1, gate_up = -1, gate_up_bias = -1, down = -1, down_bias = -1;
};

// What stands where in a buffer of weights.
struct WeightLayout {
  std::vector<ParameterPlace> places;  // in the order of the buffer
  int64_t size = 0;                    // floats
};

struct ParameterLayout : WeightLayout {
  std::vector<LayerPlaces> layers;
  int64_t embedding = 0, final_norm = 0;
  int64_t head = 0;  // [head_rows(), D]; equals `embedding` when tied
  // Columns of the fused products' outputs: k starts at q_columns, v at q_columns + kv_columns.
  int64_t q_columns = 0, kv_columns = 0, mlp_columns = 0;
  int64_t qkv_columns() const { return q_columns + 2 * kv_columns; }
};

// `config` must be valid.
ParameterLayout parameter_layout(const ModelConfig& config);

// Reads every weight of a checkpoint into `buffer` (layout.size floats).
Status load_parameters(const CheckpointReader& checkpoint, const ParameterLayout& layout,
                       float* buffer);

// The place of a weight; a name that the layout lacks is a bug and throws.
const ParameterPlace& find_place(const ParameterLayout& layout, const std::string& hf_name);

// Copies one weight, row-major, out of `values` [place.size], the buffer from place.offset on.
void read_parameter(const ParameterPlace& place, const float* values, float* out);
// The same of a whole buffer: what write_checkpoint asks for.
Status read_parameter(const ParameterLayout& layout, const float* buffer, const WeightSpec& spec,
                      float* out);

// Normal with standard deviation `range` for matrices (divided by sqrt(2 num_layers) for those that
// write to the residual stream, as GPT-2; 1 / (D + 1) for a score head, as Stiennon et al. 2020,
// arXiv:2009.01325, start it), ones for norms, zeros for biases; a function of (config, seed).
void init_parameters(const ModelConfig& config, const ParameterLayout& layout, uint64_t seed,
                     double range, float* buffer);

// Only the head of the same: for a score head on weights that come from elsewhere.
void init_score_head(const ModelConfig& config, const ParameterLayout& layout, uint64_t seed,
                     float* buffer);

// 64-bit hash of a buffer's bits, the same for any number of threads.
uint64_t hash_parameters(const float* buffer, int64_t size);

}  // namespace gradus::model
