// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "model/model_config.h"
#include "model/safetensors.h"

// Hugging Face model directories: config.json, generation_config.json, model.safetensors (or shards
// with an index), and the tokenizer's files, which are carried along unread.
namespace gradus::model {

// The weights of a directory, checked against its config. Move-only; const calls are thread-safe.
class CheckpointReader {
 public:
  // Opens `dir` and compares the tensors of its files with weight_specs(config): missing, unknown
  // and wrongly shaped ones are reported together (first names and counts), DataLoss. A tied model
  // may carry lm_head.weight if it equals the embedding. Values are not read here.
  static Result<CheckpointReader> open(const std::string& dir);

  const ModelConfig& config() const { return config_; }
  const std::string& dir() const { return dir_; }

  // Writes the tensor, row-major, to `out` [product of shape]. `hf_name` and `shape` must be one of
  // weight_specs(config()); all else is a bug and throws. DataLoss names a tensor with NaN or
  // infinite values and counts them.
  Status read_f32(std::string_view hf_name, std::span<const int64_t> shape, float* out) const;

  // The same for a matrix, `part_rows` rows at a time from all threads: consume(first_row, values
  // [rows, columns]), the last part with what is left. A part is read straight from the file's map,
  // so that no copy of the matrix is made. After an error some parts may have been consumed.
  Status read_f32_parts(
      std::string_view hf_name, std::span<const int64_t> shape, int64_t part_rows,
      const std::function<void(int64_t first_row, std::span<const float> values)>& consume) const;

 private:
  CheckpointReader(std::string dir, ModelConfig config, SafetensorsReader tensors)
      : dir_(std::move(dir)), config_(std::move(config)), tensors_(std::move(tensors)) {}
  const SafetensorsTensor& find(std::string_view hf_name, std::span<const int64_t> shape) const;

  std::string dir_;
  ModelConfig config_;
  SafetensorsReader tensors_;
};

// DataLoss names the tensor and counts its NaN and infinite values, if it has any. Uses the thread
// pool.
Status check_finite(std::string_view name, std::span<const float> values);

// Stored precision of weights; computation is always f32.
enum class WeightDType { kF32, kBF16 };

struct WriteCheckpointOptions {
  WeightDType dtype = WeightDType::kF32;
  // Directory whose tokenizer.json, tokenizer_config.json, special_tokens_map.json,
  // chat_template.jinja and generation_config.json are copied, those that exist; empty: none,
  // generation_config.json is made of `config`.
  std::string tokenizer_dir = {};
  // Above this many bytes of weights the file is split into shards with an index.
  int64_t max_shard_bytes = int64_t{5} << 30;
  // With several writers (ranks of a run) each writes its own shards of about equal size; writer 0
  // also writes everything else.
  int num_writers = 1;
  int writer = 0;
};

// A file of weights, in the order of the file.
struct WeightFile {
  std::string name;  // model.safetensors, or model-00001-of-00002.safetensors
  std::vector<WeightSpec> weights;
  int writer = 0;
};
// The files that write_checkpoint makes of a model's weights, of all writers.
std::vector<WeightFile> weight_files(const ModelConfig& config,
                                     const WriteCheckpointOptions& options);

// Fills `out` [product of the spec's shape], row-major, with the weight.
using WeightSource = std::function<Status(const WeightSpec& spec, float* out)>;

// Writes a directory that load_model_config, CheckpointReader and transformers read. `dir` is made
// if it does not exist; files in it are replaced one by one, each complete or not at all,
// config.json last. One weight at a time is in memory. `read_weight` is called once for each weight
// of weight_files() that is this writer's, in that order. Unavailable when the disk is full or
// `dir` cannot be written.
Status write_checkpoint(const std::string& dir, const ModelConfig& config,
                        const WeightSource& read_weight,
                        const WriteCheckpointOptions& options = {});

}  // namespace gradus::model
