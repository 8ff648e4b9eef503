// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/mapped_file.h"
#include "common/parallel.h"
#include "model/internal/float_formats.h"
#include "model/internal/tensor_check.h"

namespace gradus::model {
namespace {

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr std::array kTokenizerFiles = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "chat_template.jinja"};

int64_t num_values(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

// A tensor that checkpoints of Llama carry and that follows from the config.
bool is_derived(const std::string& name) { return name.ends_with(".rotary_emb.inv_freq"); }

bool is_same_tensor(const SafetensorsTensor& a, const SafetensorsTensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::ranges::equal(a.bytes, b.bytes);
}

// A tied model may store its head: it must be the embedding.
Status check_stored_head(const SafetensorsReader& tensors) {
  const SafetensorsTensor* head = tensors.find(kHead);
  const SafetensorsTensor* embedding = tensors.find(kEmbedding);
  if (head == nullptr || embedding == nullptr || is_same_tensor(*head, *embedding)) return {};
  return data_loss(
      "{}: '{}' differs from '{}' but config.json ties them; set tie_word_embeddings to false",
      tensors.path(), kHead, kEmbedding);
}

Status check_tensors(const SafetensorsReader& tensors, const ModelConfig& config) {
  std::vector<NamedShape> expected, found;
  for (const WeightSpec& spec : weight_specs(config))
    expected.push_back({spec.hf_name, spec.shape});
  for (const SafetensorsTensor& tensor : tensors.tensors()) {
    const bool is_tied_head = config.tie_embeddings && tensor.name == kHead;
    if (!is_tied_head && !is_derived(tensor.name)) found.push_back({tensor.name, tensor.shape});
  }
  GRADUS_RETURN_IF_ERROR(
      compare_tensors(expected, found, "config.json").with_prefix(tensors.path()));
  return config.tie_embeddings ? check_stored_head(tensors) : Status();
}

Status copy_file(const std::string& from, const std::string& to) {
  const Result<MappedFile> source = MappedFile::open(from);
  if (!source.ok()) return source.status();
  const auto bytes = source->bytes();
  return write_file_atomically(to, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

int64_t value_bytes_of(WeightDType dtype) { return dtype == WeightDType::kBF16 ? 2 : 4; }

// Weights in the order of the file, cut into shards of at most `max_bytes` (but one weight at
// least) and, with several writers, of about equal size.
std::vector<std::vector<WeightSpec>> split_shards(std::vector<WeightSpec> specs,
                                                  int64_t value_bytes, int64_t max_bytes,
                                                  int num_writers) {
  // By name, as the reference implementation orders tensors of one dtype: a model that it saved is
  // reproduced byte for byte.
  std::ranges::sort(specs, {}, &WeightSpec::hf_name);
  if (num_writers > 1) {
    int64_t total = 0;
    for (const WeightSpec& spec : specs) total += num_values(spec.shape) * value_bytes;
    max_bytes = std::min(max_bytes, (total + num_writers - 1) / num_writers);
  }
  std::vector<std::vector<WeightSpec>> shards(1);
  int64_t bytes = 0;
  for (WeightSpec& spec : specs) {
    const int64_t size = num_values(spec.shape) * value_bytes;
    if (!shards.back().empty() && bytes + size > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += size;
    shards.back().push_back(std::move(spec));
  }
  return shards;
}

Status write_shard(const std::string& path, const std::vector<WeightSpec>& specs, const char* dtype,
                   const WeightSource& read_weight) {
  std::vector<SafetensorsSpec> entries;
  for (const WeightSpec& spec : specs) entries.push_back({spec.hf_name, dtype, spec.shape});
  Result<SafetensorsWriter> writer = SafetensorsWriter::create(path, std::move(entries));
  if (!writer.ok()) return writer.status();
  std::vector<float> values;
  for (const WeightSpec& spec : specs) {
    values.resize(static_cast<size_t>(num_values(spec.shape)));
    GRADUS_RETURN_IF_ERROR(read_weight(spec, values.data()));
    GRADUS_RETURN_IF_ERROR(writer->append_f32(values));
  }
  return writer->finish();
}

Status write_weights(const std::string& dir, const ModelConfig& config,
                     const WeightSource& read_weight, const WriteCheckpointOptions& options) {
  const char* dtype = options.dtype == WeightDType::kBF16 ? "BF16" : "F32";
  const std::string single = dir + "/model.safetensors";
  const std::string index = single + ".index.json";
  const std::vector<WeightFile> files = weight_files(config, options);
  nlohmann::json map = nlohmann::json::object();
  for (const WeightFile& file : files) {
    if (file.writer == options.writer) {
      GRADUS_RETURN_IF_ERROR(write_shard(dir + "/" + file.name, file.weights, dtype, read_weight));
    }
    for (const WeightSpec& spec : file.weights) map[spec.hf_name] = file.name;
  }
  std::error_code ignored;
  if (options.writer != 0) return {};
  if (files.size() == 1) {
    std::filesystem::remove(index, ignored);
    return {};
  }
  const nlohmann::json metadata = {
      {"total_size", num_parameters(config) * value_bytes_of(options.dtype)}};
  const nlohmann::json content = {{"metadata", metadata}, {"weight_map", std::move(map)}};
  GRADUS_RETURN_IF_ERROR(write_file_atomically(index, content.dump(2) + "\n"));
  std::filesystem::remove(single, ignored);  // readers would prefer it to the index
  return {};
}

// Values that a thread works on at once.
constexpr int64_t kValuesPerTask = 1 << 16;

Status finite_status(std::string_view name, int64_t num_bad, int64_t count) {
  if (num_bad == 0) return {};
  return data_loss("tensor '{}': {} of {} values are NaN or infinite; the weights are broken", name,
                   num_bad, count);
}

}  // namespace

Result<CheckpointReader> CheckpointReader::open(const std::string& dir) {
  Result<ModelConfig> config = load_model_config(dir);
  if (!config.ok()) return config.status();
  Result<SafetensorsReader> tensors = SafetensorsReader::open(dir);
  if (!tensors.ok()) return tensors.status();
  GRADUS_RETURN_IF_ERROR(check_tensors(*tensors, *config));
  return CheckpointReader(dir, std::move(config).value(), std::move(tensors).value());
}

const SafetensorsTensor& CheckpointReader::find(std::string_view hf_name,
                                                std::span<const int64_t> shape) const {
  const SafetensorsTensor* tensor = tensors_.find(hf_name);
  GRADUS_CHECK(tensor != nullptr, fmt::format("the config implies no tensor '{}'", hf_name));
  GRADUS_CHECK(std::ranges::equal(tensor->shape, shape),
               fmt::format("tensor '{}' is {}, asked for as {}", hf_name, shape_text(tensor->shape),
                           shape_text(shape)));
  return *tensor;
}

Status CheckpointReader::read_f32(std::string_view hf_name, std::span<const int64_t> shape,
                                  float* out) const {
  const SafetensorsTensor& tensor = find(hf_name, shape);
  GRADUS_RETURN_IF_ERROR(convert_to_f32(tensor, out).with_prefix(tensors_.path()));
  return check_finite(hf_name, {out, static_cast<size_t>(tensor.num_values())})
      .with_prefix(tensors_.path());
}

Status CheckpointReader::read_f32_parts(
    std::string_view hf_name, std::span<const int64_t> shape, int64_t part_rows,
    const std::function<void(int64_t first_row, std::span<const float> values)>& consume) const {
  const SafetensorsTensor& tensor = find(hf_name, shape);
  const int64_t rows = shape[0], columns = shape[1];
  const int64_t num_parts = (rows + part_rows - 1) / part_rows;
  const int64_t grain = std::max<int64_t>(1, kValuesPerTask / (part_rows * columns));
  std::atomic<int64_t> num_bad{0};
  float unused;
  GRADUS_RETURN_IF_ERROR(convert_to_f32(tensor, 0, 0, &unused).with_prefix(tensors_.path()));
  parallel_for(num_parts, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(part_rows * columns));
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * part_rows;
      const int64_t count = std::min(part_rows, rows - first) * columns;
      const Status status = convert_to_f32(tensor, first * columns, count, values.data());
      GRADUS_CHECK(status.ok(), status.message());
      const int64_t bad = count_non_finite(values.data(), count);
      if (bad != 0) num_bad += bad;
      consume(first, {values.data(), static_cast<size_t>(count)});
    }
  });
  return finite_status(hf_name, num_bad, rows * columns).with_prefix(tensors_.path());
}

Status check_finite(std::string_view name, std::span<const float> values) {
  const int64_t count = static_cast<int64_t>(values.size());
  std::atomic<int64_t> num_bad{0};
  parallel_for(count, kValuesPerTask, [&](int64_t begin, int64_t end) {
    const int64_t bad = count_non_finite(values.data() + begin, end - begin);
    if (bad != 0) num_bad += bad;
  });
  return finite_status(name, num_bad, count);
}

std::vector<WeightFile> weight_files(const ModelConfig& config,
                                     const WriteCheckpointOptions& options) {
  std::vector<std::vector<WeightSpec>> shards =
      split_shards(weight_specs(config), value_bytes_of(options.dtype), options.max_shard_bytes,
                   options.num_writers);
  if (shards.size() == 1) return {{"model.safetensors", std::move(shards[0]), 0}};
  std::vector<WeightFile> files;
  for (size_t i = 0; i < shards.size(); ++i) {
    files.push_back({fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()),
                     std::move(shards[i]), static_cast<int>(i) % options.num_writers});
  }
  return files;
}

Status write_checkpoint(const std::string& dir, const ModelConfig& config,
                        const WeightSource& read_weight, const WriteCheckpointOptions& options) {
  GRADUS_RETURN_IF_ERROR(validate(config).with_prefix(dir));
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return unavailable("{}: cannot create the directory: {}", dir, error.message());
  GRADUS_RETURN_IF_ERROR(write_weights(dir, config, read_weight, options));
  if (options.writer != 0) return {};

  const std::string& source = options.tokenizer_dir;
  const bool has_source = !source.empty() && !std::filesystem::equivalent(source, dir, error);
  for (const char* name : kTokenizerFiles) {
    const std::string from = fmt::format("{}/{}", source, name);
    if (has_source && exists(from)) {
      GRADUS_RETURN_IF_ERROR(copy_file(from, fmt::format("{}/{}", dir, name)));
    }
  }
  const std::string generation = "/generation_config.json";
  if (has_source && exists(source + generation)) {
    GRADUS_RETURN_IF_ERROR(copy_file(source + generation, dir + generation));
  } else if (source.empty() || !exists(dir + generation)) {
    GRADUS_RETURN_IF_ERROR(write_file_atomically(dir + generation, generation_config_json(config)));
  }
  const char* dtype = options.dtype == WeightDType::kBF16 ? "bfloat16" : "float32";
  return write_file_atomically(dir + "/config.json", config_json(config, dtype));
}

}  // namespace gradus::model
