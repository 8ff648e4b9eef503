// SPDX-License-Identifier: Apache-2.0
#include "model/bert_encoder.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/atomic_file.h"
#include "common/check.h"
#include "common/rng.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "model/internal/json_file.h"
#include "model/internal/tensor_check.h"
#include "model/safetensors.h"

namespace gradus::model {
namespace {

using nlohmann::json;

Status read_size(const json& object, const char* key, int64_t most, int64_t& value) {
  const auto found = object.find(key);
  if (found == object.end()) return invalid_argument("missing '{}'", key);
  if (!found->is_number_integer() || found->get<double>() < 1 ||
      found->get<double>() > static_cast<double>(most)) {
    return invalid_argument("'{}' must be an integer in [1, {}], got {}", key, most, found->dump());
  }
  value = found->get<int64_t>();
  return {};
}

Status expect_text(const json& object, const char* key, const std::string& expected,
                   bool may_be_absent) {
  const auto found = object.find(key);
  if (found == object.end() ? may_be_absent : *found == expected) return {};
  return invalid_argument("{} is {}; served here: \"{}\"", key,
                          found == object.end() ? "missing" : found->dump(), expected);
}

Result<BertConfig> read_config(const std::string& path) {
  const Result<json> object = read_json_object(path);
  if (!object.ok()) return object.status();
  BertConfig config;
  constexpr int64_t kMost = int64_t{1} << 20;
  Status status = expect_text(*object, "model_type", "bert", false);
  if (status.ok()) status = expect_text(*object, "hidden_act", "gelu", false);
  if (status.ok()) status = expect_text(*object, "position_embedding_type", "absolute", true);
  const std::tuple<const char*, int64_t, int64_t*> sizes[] = {
      {"vocab_size", kMost * 16, &config.vocab_size},
      {"hidden_size", kMost, &config.width},
      {"intermediate_size", kMost, &config.inner_width},
      {"num_hidden_layers", 4096, &config.num_layers},
      {"num_attention_heads", kMost, &config.num_heads},
      {"max_position_embeddings", kMost * 16, &config.max_positions}};
  for (const auto& [key, most, value] : sizes) {
    if (status.ok()) status = read_size(*object, key, most, *value);
  }
  if (status.ok() && object->contains("layer_norm_eps")) {
    const json& eps = (*object)["layer_norm_eps"];
    if (!eps.is_number() || !(eps.get<double>() > 0)) {
      status = invalid_argument("'layer_norm_eps' must be above 0, got {}", eps.dump());
    } else {
      config.layer_norm_eps = eps.get<float>();
    }
  }
  if (status.ok() &&
      (config.width % 16 != 0 || config.inner_width % 16 != 0 ||
       config.width % config.num_heads != 0 || config.width / config.num_heads % 2 != 0 ||
       config.width / config.num_heads > kernels::kMaxHeadWidth)) {
    status = invalid_argument(
        "hidden_size {} and intermediate_size {} must be multiples of 16, and {} heads must divide "
        "the former into even widths of at most {}",
        config.width, config.inner_width, config.num_heads, kernels::kMaxHeadWidth);
  }
  if (!status.ok()) return status.with_prefix(path);
  return config;
}

}  // namespace

// Takes the tensors of a directory by name.
class BertLoader {
 public:
  BertLoader(const SafetensorsReader& reader, BertEncoder& encoder)
      : reader_(reader),
        encoder_(encoder),
        prefix_(reader.find("bert.embeddings.word_embeddings.weight") != nullptr ? "bert." : "") {}

  Status load() {
    const BertConfig& config = encoder_.config_;
    const int64_t d = config.width;
    GRADUS_RETURN_IF_ERROR(take("embeddings.word_embeddings.weight", {config.vocab_size, d},
                                encoder_.weights_.words_VD));
    GRADUS_RETURN_IF_ERROR(take("embeddings.position_embeddings.weight", {config.max_positions, d},
                                encoder_.weights_.positions_PD));
    // Of the token types only the first is ever used: there is one segment.
    std::vector<float> types;
    const SafetensorsTensor* tensor = find("embeddings.token_type_embeddings.weight");
    const int64_t num_types = tensor == nullptr || tensor->shape.empty() ? 1 : tensor->shape[0];
    GRADUS_RETURN_IF_ERROR(take("embeddings.token_type_embeddings.weight",
                                {std::max<int64_t>(1, num_types), d}, types));
    encoder_.weights_.type_D.assign(types.begin(), types.begin() + d);
    GRADUS_RETURN_IF_ERROR(take_norm("embeddings.LayerNorm", encoder_.weights_.embedding_norm));
    for (int64_t i = 0; i < config.num_layers; ++i) {
      const std::string layer = fmt::format("encoder.layer.{}.", i);
      BertWeights::Layer& to = encoder_.weights_.layers.emplace_back();
      GRADUS_RETURN_IF_ERROR(
          take_linear({layer + "attention.self.query", layer + "attention.self.key",
                       layer + "attention.self.value"},
                      d, d, to.qkv));
      GRADUS_RETURN_IF_ERROR(take_linear({layer + "attention.output.dense"}, d, d, to.attention));
      GRADUS_RETURN_IF_ERROR(take_norm(layer + "attention.output.LayerNorm", to.attention_norm));
      GRADUS_RETURN_IF_ERROR(
          take_linear({layer + "intermediate.dense"}, config.inner_width, d, to.inner));
      GRADUS_RETURN_IF_ERROR(
          take_linear({layer + "output.dense"}, d, config.inner_width, to.outer));
      GRADUS_RETURN_IF_ERROR(take_norm(layer + "output.LayerNorm", to.outer_norm));
    }
    return {};
  }

 private:
  const SafetensorsTensor* find(const std::string& name) const {
    return reader_.find(prefix_ + name);
  }

  Status take(const std::string& name, const std::vector<int64_t>& shape,
              std::vector<float>& values) const {
    const SafetensorsTensor* tensor = find(name);
    if (tensor == nullptr) {
      return data_loss("{}: no tensor '{}'; is it a BERT encoder?", reader_.path(), prefix_ + name);
    }
    if (tensor->shape != shape) {
      return data_loss("{}: tensor '{}' has the shape {}, config.json asks for {}", reader_.path(),
                       tensor->name, shape_text(tensor->shape), shape_text(shape));
    }
    values.resize(static_cast<size_t>(tensor->num_values()));
    return convert_to_f32(*tensor, values.data()).with_prefix(reader_.path());
  }

  Status take_norm(const std::string& name, BertWeights::Norm& norm) const {
    GRADUS_RETURN_IF_ERROR(take(name + ".weight", {encoder_.config_.width}, norm.weight));
    return take(name + ".bias", {encoder_.config_.width}, norm.bias);
  }

  // Layers of equal shape that read the same input, one after the other.
  Status take_linear(const std::vector<std::string>& names, int64_t outputs, int64_t inputs,
                     BertWeights::Linear& linear) const {
    std::vector<float> weights, biases;
    for (const std::string& name : names) {
      std::vector<float> weight, bias;
      GRADUS_RETURN_IF_ERROR(take(name + ".weight", {outputs, inputs}, weight));
      GRADUS_RETURN_IF_ERROR(take(name + ".bias", {outputs}, bias));
      weights.insert(weights.end(), weight.begin(), weight.end());
      biases.insert(biases.end(), bias.begin(), bias.end());
    }
    linear.outputs = static_cast<int64_t>(biases.size());
    linear.inputs = inputs;
    linear.weight = AlignedBuffer(kernels::packed_size(linear.outputs, inputs));
    linear.bias = AlignedBuffer(kernels::padded(linear.outputs));
    kernels::pack_weight(weights.data(), inputs, linear.outputs, inputs, linear.weight.data());
    std::copy(biases.begin(), biases.end(), linear.bias.data());
    return {};
  }

  const SafetensorsReader& reader_;
  BertEncoder& encoder_;
  std::string prefix_;
};

Result<std::unique_ptr<BertEncoder>> BertEncoder::load(const std::string& dir) {
  const Result<BertConfig> config = read_config(dir + "/config.json");
  if (!config.ok()) return config.status();
  const Result<SafetensorsReader> reader = SafetensorsReader::open(dir);
  if (!reader.ok()) return reader.status();
  std::unique_ptr<BertEncoder> encoder(new BertEncoder(*config));
  GRADUS_RETURN_IF_ERROR(BertLoader(*reader, *encoder).load());
  return encoder;
}

std::unique_ptr<BertEncoder> BertEncoder::make(const BertConfig& config,
                                               std::span<const double> frequencies_V,
                                               uint64_t seed) {
  GRADUS_CHECK(static_cast<int64_t>(frequencies_V.size()) == config.vocab_size,
               "BertEncoder::make: a frequency for each word");
  GRADUS_CHECK(std::ranges::all_of(frequencies_V, [](double f) { return f >= 1; }),
               "BertEncoder::make: frequencies are at least 1");
  std::unique_ptr<BertEncoder> encoder(new BertEncoder(config));
  BertWeights& weights = encoder->weights_;
  weights = BertWeights::zeros(config);
  RngSequence random(seed, RngStream::kInit);
  const auto draw = [&random](std::vector<float>& values, double deviation) {
    for (float& value : values) value = static_cast<float>(deviation * random.normal());
  };
  const auto draw_linear = [&](BertWeights::Linear& linear) {
    std::vector<float> rows(static_cast<size_t>(linear.outputs * linear.inputs));
    draw(rows, 0.02);
    kernels::pack_weight(rows.data(), linear.inputs, linear.outputs, linear.inputs,
                         linear.weight.data());
  };
  const auto set_norm = [](BertWeights::Norm& norm) { std::ranges::fill(norm.weight, 1.0f); };
  draw(weights.words_VD, 1);
  for (int64_t i = 0; i < config.vocab_size * config.width; ++i) {
    weights.words_VD[static_cast<size_t>(i)] *=
        static_cast<float>(1 / std::sqrt(frequencies_V[static_cast<size_t>(i / config.width)]));
  }
  draw(weights.positions_PD, 0.002);
  set_norm(weights.embedding_norm);
  for (Layer& layer : weights.layers) {
    for (Linear* linear : {&layer.qkv, &layer.attention, &layer.inner, &layer.outer}) {
      draw_linear(*linear);
    }
    set_norm(layer.attention_norm);
    set_norm(layer.outer_norm);
  }
  return encoder;
}

Status BertEncoder::save(const std::string& dir) const {
  const int64_t d = config_.width;
  const json text = {{"architectures", {"BertModel"}},
                     {"model_type", "bert"},
                     {"hidden_act", "gelu"},
                     {"position_embedding_type", "absolute"},
                     {"vocab_size", config_.vocab_size},
                     {"hidden_size", d},
                     {"intermediate_size", config_.inner_width},
                     {"num_hidden_layers", config_.num_layers},
                     {"num_attention_heads", config_.num_heads},
                     {"max_position_embeddings", config_.max_positions},
                     {"type_vocab_size", 1},
                     {"layer_norm_eps", config_.layer_norm_eps}};
  GRADUS_RETURN_IF_ERROR(write_file_atomically(dir + "/config.json", text.dump(2) + "\n"));
  std::vector<SafetensorsSpec> specs;
  std::vector<std::vector<float>> values;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape,
                       std::vector<float> tensor) {
    specs.push_back({name, "F32", shape});
    values.push_back(std::move(tensor));
  };
  const auto add_norm = [&](const std::string& name, const Norm& norm) {
    add(name + ".weight", {d}, norm.weight);
    add(name + ".bias", {d}, norm.bias);
  };
  // Layers of equal shape that stand one after the other.
  const auto add_linear = [&](const Linear& linear, const std::vector<std::string>& names) {
    std::vector<float> rows(static_cast<size_t>(linear.outputs * linear.inputs));
    kernels::unpack_weight(linear.weight.data(), linear.outputs, linear.inputs, rows.data(),
                           linear.inputs);
    const int64_t outputs = linear.outputs / static_cast<int64_t>(names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      const int64_t first = static_cast<int64_t>(i) * outputs;
      add(names[i] + ".weight", {outputs, linear.inputs},
          {rows.begin() + first * linear.inputs, rows.begin() + (first + outputs) * linear.inputs});
      add(names[i] + ".bias", {outputs},
          {linear.bias.data() + first, linear.bias.data() + first + outputs});
    }
  };
  add("embeddings.word_embeddings.weight", {config_.vocab_size, d}, weights_.words_VD);
  add("embeddings.position_embeddings.weight", {config_.max_positions, d}, weights_.positions_PD);
  add("embeddings.token_type_embeddings.weight", {1, d}, weights_.type_D);
  add_norm("embeddings.LayerNorm", weights_.embedding_norm);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const std::string prefix = fmt::format("encoder.layer.{}.", i);
    const Layer& layer = weights_.layers[i];
    add_linear(layer.qkv, {prefix + "attention.self.query", prefix + "attention.self.key",
                           prefix + "attention.self.value"});
    add_linear(layer.attention, {prefix + "attention.output.dense"});
    add_norm(prefix + "attention.output.LayerNorm", layer.attention_norm);
    add_linear(layer.inner, {prefix + "intermediate.dense"});
    add_linear(layer.outer, {prefix + "output.dense"});
    add_norm(prefix + "output.LayerNorm", layer.outer_norm);
  }
  Result<SafetensorsWriter> writer = SafetensorsWriter::create(dir + "/model.safetensors", specs);
  if (!writer.ok()) return writer.status();
  for (const std::vector<float>& tensor : values) {
    GRADUS_RETURN_IF_ERROR(writer->append_f32(tensor));
  }
  return writer->finish();
}

BertWeights BertWeights::zeros(const BertConfig& config) {
  const int64_t d = config.width;
  BertWeights result;
  const auto norm = [d] {
    return Norm{std::vector<float>(static_cast<size_t>(d)),
                std::vector<float>(static_cast<size_t>(d))};
  };
  const auto linear = [](int64_t outputs, int64_t inputs) {
    return Linear{AlignedBuffer(kernels::packed_size(outputs, inputs)),
                  AlignedBuffer(kernels::padded(outputs)), outputs, inputs};
  };
  result.words_VD.resize(static_cast<size_t>(config.vocab_size * d));
  result.positions_PD.resize(static_cast<size_t>(config.max_positions * d));
  result.type_D.resize(static_cast<size_t>(d));
  result.embedding_norm = norm();
  for (int64_t i = 0; i < config.num_layers; ++i) {
    result.layers.push_back({linear(3 * d, d), linear(d, d), linear(config.inner_width, d),
                             linear(d, config.inner_width), norm(), norm()});
  }
  return result;
}

void BertWeights::for_each(
    const std::function<void(float* values, int64_t count, bool is_matrix)>& body) {
  const auto all = [&](std::vector<float>& values, bool is_matrix) {
    body(values.data(), static_cast<int64_t>(values.size()), is_matrix);
  };
  const auto norm = [&](Norm& one) {
    all(one.weight, false);
    all(one.bias, false);
  };
  all(words_VD, true);
  all(positions_PD, true);
  all(type_D, false);
  norm(embedding_norm);
  for (Layer& layer : layers) {
    for (Linear* linear : {&layer.qkv, &layer.attention, &layer.inner, &layer.outer}) {
      body(linear->weight.data(), kernels::packed_size(linear->outputs, linear->inputs), true);
      body(linear->bias.data(), linear->outputs, false);
    }
    norm(layer.attention_norm);
    norm(layer.outer_norm);
  }
}

void BertEncoder::embed(std::span<const int32_t> token_ids, std::span<const int64_t> begin,
                        float* x_TD) const {
  const int64_t d = config_.width;
  for (size_t s = 0; s + 1 < begin.size(); ++s) {
    GRADUS_CHECK(begin[s] < begin[s + 1] && begin[s + 1] - begin[s] <= config_.max_positions,
                 "BertEncoder: length of a sequence");
    for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
      const int64_t id = token_ids[static_cast<size_t>(t)];
      GRADUS_CHECK(id >= 0 && id < config_.vocab_size, "BertEncoder: token id");
      const float* word = weights_.words_VD.data() + id * d;
      const float* position = weights_.positions_PD.data() + (t - begin[s]) * d;
      for (int64_t i = 0; i < d; ++i) {
        x_TD[t * d + i] = word[i] + position[i] + weights_.type_D[i];
      }
    }
  }
}

void BertEncoder::apply(const Linear& linear, const float* x, int64_t num_rows, float* y) const {
  kernels::gemm_forward({.x_MK = x,
                         .x_stride = linear.inputs,
                         .w_packed = linear.weight.data(),
                         .bias_N = linear.bias.data(),
                         .y_MN = y,
                         .y_stride = linear.outputs,
                         .m = num_rows,
                         .n = linear.outputs,
                         .k = linear.inputs});
}

void BertEncoder::apply_backward(const Linear& linear, const float* x, const float* dy,
                                 int64_t num_rows, float* dx, Linear& gradients) {
  kernels::gemm_backward_weight({.dy_MN = dy,
                                 .dy_stride = linear.outputs,
                                 .x_MK = x,
                                 .x_stride = linear.inputs,
                                 .dw_packed = gradients.weight.data(),
                                 .m = num_rows,
                                 .n = linear.outputs,
                                 .k = linear.inputs,
                                 .accumulate = true});
  kernels::column_sums(dy, linear.outputs, num_rows, linear.outputs, gradients.bias.data());
  kernels::gemm_backward_input({.dy_MN = dy,
                                .dy_stride = linear.outputs,
                                .w_packed = linear.weight.data(),
                                .dx_MK = dx,
                                .dx_stride = linear.inputs,
                                .m = num_rows,
                                .n = linear.outputs,
                                .k = linear.inputs});
}

// In place; keeps what backward needs where it is asked for.
void BertEncoder::normalise(const Norm& norm, float* x_TD, int64_t num_rows, AlignedBuffer* sum,
                            AlignedBuffer* mean, AlignedBuffer* rstd) const {
  const int64_t d = config_.width;
  if (sum != nullptr) {
    sum->reserve(num_rows * d);
    mean->reserve(num_rows);
    rstd->reserve(num_rows);
    std::copy_n(x_TD, num_rows * d, sum->data());
  }
  kernels::layer_norm({.x_MD = x_TD,
                       .x_stride = d,
                       .weight_D = norm.weight.data(),
                       .bias_D = norm.bias.data(),
                       .y_MD = x_TD,
                       .y_stride = d,
                       .mean_M = mean == nullptr ? nullptr : mean->data(),
                       .rstd_M = rstd == nullptr ? nullptr : rstd->data(),
                       .m = num_rows,
                       .d = d,
                       .eps = config_.layer_norm_eps});
}

void BertEncoder::normalise_backward(const Norm& norm, const AlignedBuffer& sum,
                                     const AlignedBuffer& mean, const AlignedBuffer& rstd,
                                     float* dx_TD, int64_t num_rows, Norm& gradients) const {
  const int64_t d = config_.width;
  kernels::column_sums(dx_TD, d, num_rows, d, gradients.bias.data());
  kernels::layer_norm_backward({.dy_MD = dx_TD,
                                .dy_stride = d,
                                .x_MD = sum.data(),
                                .x_stride = d,
                                .weight_D = norm.weight.data(),
                                .mean_M = mean.data(),
                                .rstd_M = rstd.data(),
                                .dx_MD = dx_TD,
                                .dx_stride = d,
                                .dweight_D = gradients.weight.data(),
                                .m = num_rows,
                                .d = d});
}

// The kernel lets a row see the keys up to its own position. Here every row sees its whole
// sequence: each is given as a run of its own at the last position, behind which all keys are
// written.
void BertEncoder::make_runs(std::span<const int64_t> begin) {
  page_ids_.clear();
  sequences_.clear();
  rows_.clear();
  std::vector<size_t> first_page;
  for (size_t s = 0; s + 1 < begin.size(); ++s) {
    first_page.push_back(page_ids_.size());
    for (int64_t t = begin[s]; t < begin[s + 1]; t += kernels::kPageTokens) {
      page_ids_.push_back(static_cast<int32_t>(page_ids_.size()));
    }
  }
  for (size_t s = 0; s + 1 < begin.size(); ++s) {
    const int64_t length = begin[s + 1] - begin[s];
    const int32_t* pages = page_ids_.data() + first_page[s];
    sequences_.push_back({begin[s], length, 0, pages});
    for (int64_t t = begin[s]; t < begin[s + 1]; ++t) rows_.push_back({t, 1, length - 1, pages});
  }
}

void BertEncoder::write_keys(const float* qkv) {
  const int64_t d = config_.width;
  const kernels::KvPageLayout layout{config_.num_heads, d / config_.num_heads};
  pages_.reserve(static_cast<int64_t>(page_ids_.size()) * layout.page_size());
  kernels::kv_write({.layout = layout,
                     .pages = pages_.data(),
                     .k_TGK = qkv + d,
                     .v_TGK = qkv + 2 * d,
                     .kv_stride = 3 * d,
                     .runs = sequences_.data(),
                     .num_runs = static_cast<int64_t>(sequences_.size())});
}

void BertEncoder::attend(const float* qkv, float* out_TD, float* lse_TH) {
  const int64_t d = config_.width, head_width = d / config_.num_heads;
  write_keys(qkv);
  kernels::attention_forward({.layout = {config_.num_heads, head_width},
                              .pages = pages_.data(),
                              .q_THK = qkv,
                              .q_stride = 3 * d,
                              .out_THK = out_TD,
                              .out_stride = d,
                              .lse_TH = lse_TH,
                              .num_heads = config_.num_heads,
                              .scale = 1 / std::sqrt(static_cast<float>(head_width)),
                              .runs = rows_.data(),
                              .num_runs = static_cast<int64_t>(rows_.size())});
}

void BertEncoder::attend_backward(const Activations::Layer& saved, const float* dout_TD,
                                  float* dqkv) {
  const int64_t d = config_.width, head_width = d / config_.num_heads;
  const int64_t t = static_cast<int64_t>(rows_.size());
  write_keys(saved.qkv.data());
  std::fill_n(dqkv, t * 3 * d, 0.0f);
  std::vector<kernels::KeyRows> keys;
  for (const kernels::AttentionRun& sequence : sequences_) {
    keys.push_back({0, sequence.row_begin, sequence.num_rows});
  }
  std::vector<kernels::AttentionBackwardRun> runs;
  std::vector<int64_t> group_begin = {0};
  for (size_t s = 0; s < sequences_.size(); ++s) {
    for (int64_t i = 0; i < sequences_[s].num_rows; ++i) {
      runs.push_back({rows_[runs.size()], &keys[s], 1});
    }
    group_begin.push_back(static_cast<int64_t>(runs.size()));
  }
  kernels::attention_backward({.layout = {config_.num_heads, head_width},
                               .pages = pages_.data(),
                               .q_THK = saved.qkv.data(),
                               .q_stride = 3 * d,
                               .out_THK = saved.attention.data(),
                               .dout_THK = dout_TD,
                               .out_stride = d,
                               .lse_TH = saved.lse.data(),
                               .num_heads = config_.num_heads,
                               .scale = 1 / std::sqrt(static_cast<float>(head_width)),
                               .dq_THK = dqkv,
                               .dk_TGK = dqkv + d,
                               .dv_TGK = dqkv + 2 * d,
                               .dq_stride = 3 * d,
                               .runs = runs.data(),
                               .group_begin = group_begin.data(),
                               .num_groups = static_cast<int64_t>(sequences_.size())});
}

void BertEncoder::forward(std::span<const int32_t> token_ids_T, std::span<const int64_t> begin,
                          float* hidden_TD) {
  pass(token_ids_T, begin, hidden_TD, nullptr);
}

void BertEncoder::forward(std::span<const int32_t> token_ids_T, std::span<const int64_t> begin,
                          float* hidden_TD, Activations& activations) {
  activations.token_ids.assign(token_ids_T.begin(), token_ids_T.end());
  activations.begin.assign(begin.begin(), begin.end());
  activations.layers.resize(weights_.layers.size());
  pass(token_ids_T, begin, hidden_TD, &activations);
}

void BertEncoder::pass(std::span<const int32_t> token_ids_T, std::span<const int64_t> begin,
                       float* hidden_TD, Activations* activations) {
  const int64_t t = static_cast<int64_t>(token_ids_T.size()), d = config_.width;
  const int64_t inner_width = config_.inner_width;
  GRADUS_CHECK(!begin.empty() && begin.front() == 0 && begin.back() == t,
               "BertEncoder: sequences must cover the tokens");
  qkv_.reserve(t * 3 * d);
  attention_.reserve(t * d);
  projected_.reserve(t * d);
  inner_.reserve(t * inner_width);
  make_runs(begin);
  embed(token_ids_T, begin, hidden_TD);
  const bool keeps = activations != nullptr;
  normalise(weights_.embedding_norm, hidden_TD, t, keeps ? &activations->embedding_sum : nullptr,
            keeps ? &activations->embedding_mean : nullptr,
            keeps ? &activations->embedding_rstd : nullptr);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const Layer& layer = weights_.layers[i];
    Activations::Layer* saved = keeps ? &activations->layers[i] : nullptr;
    float *qkv = qkv_.data(), *attention = attention_.data(), *inner = inner_.data();
    float* lse = nullptr;
    if (keeps) {
      saved->input.reserve(t * d);
      saved->qkv.reserve(t * 3 * d);
      saved->attention.reserve(t * d);
      saved->lse.reserve(t * config_.num_heads);
      saved->middle.reserve(t * d);
      saved->inner.reserve(t * inner_width);
      std::copy_n(hidden_TD, t * d, saved->input.data());
      qkv = saved->qkv.data();
      attention = saved->attention.data();
      inner = saved->inner.data();
      lse = saved->lse.data();
    }
    apply(layer.qkv, hidden_TD, t, qkv);
    attend(qkv, attention, lse);
    apply(layer.attention, attention, t, projected_.data());
    kernels::add_in_place(hidden_TD, projected_.data(), t * d);
    normalise(layer.attention_norm, hidden_TD, t, keeps ? &saved->attention_sum : nullptr,
              keeps ? &saved->attention_mean : nullptr, keeps ? &saved->attention_rstd : nullptr);
    if (keeps) std::copy_n(hidden_TD, t * d, saved->middle.data());
    apply(layer.inner, hidden_TD, t, inner);
    kernels::gelu({.x_MI = inner,
                   .x_stride = inner_width,
                   .y_MI = inner_.data(),
                   .y_stride = inner_width,
                   .m = t,
                   .i = inner_width});
    apply(layer.outer, inner_.data(), t, projected_.data());
    kernels::add_in_place(hidden_TD, projected_.data(), t * d);
    normalise(layer.outer_norm, hidden_TD, t, keeps ? &saved->outer_sum : nullptr,
              keeps ? &saved->outer_mean : nullptr, keeps ? &saved->outer_rstd : nullptr);
  }
}

void BertEncoder::layer_backward(size_t index, const Activations& activations, float* dx_TD,
                                 BertWeights& gradients) {
  const Layer& layer = weights_.layers[index];
  Layer& to = gradients.layers[index];
  const Activations::Layer& saved = activations.layers[index];
  const int64_t t = activations.begin.back(), d = config_.width, inner_width = config_.inner_width;
  normalise_backward(layer.outer_norm, saved.outer_sum, saved.outer_mean, saved.outer_rstd, dx_TD,
                     t, to.outer_norm);
  // dx is the derivative of the sum: of the sublayer and of what went past it.
  AlignedBuffer dinner(t * inner_width);
  kernels::gelu({.x_MI = saved.inner.data(),
                 .x_stride = inner_width,
                 .y_MI = inner_.data(),
                 .y_stride = inner_width,
                 .m = t,
                 .i = inner_width});
  apply_backward(layer.outer, inner_.data(), dx_TD, t, dinner.data(), to.outer);
  kernels::gelu_backward({.x_MI = saved.inner.data(),
                          .x_stride = inner_width,
                          .dy_MI = dinner.data(),
                          .dy_stride = inner_width,
                          .m = t,
                          .i = inner_width});
  apply_backward(layer.inner, saved.middle.data(), dinner.data(), t, projected_.data(), to.inner);
  kernels::add_in_place(dx_TD, projected_.data(), t * d);
  normalise_backward(layer.attention_norm, saved.attention_sum, saved.attention_mean,
                     saved.attention_rstd, dx_TD, t, to.attention_norm);
  apply_backward(layer.attention, saved.attention.data(), dx_TD, t, attention_.data(),
                 to.attention);
  attend_backward(saved, attention_.data(), qkv_.data());
  apply_backward(layer.qkv, saved.input.data(), qkv_.data(), t, projected_.data(), to.qkv);
  kernels::add_in_place(dx_TD, projected_.data(), t * d);
}

void BertEncoder::backward(const Activations& activations, float* dhidden_TD,
                           BertWeights& gradients) {
  const int64_t t = activations.begin.back(), d = config_.width;
  make_runs(activations.begin);
  for (size_t i = weights_.layers.size(); i-- > 0;) {
    layer_backward(i, activations, dhidden_TD, gradients);
  }
  normalise_backward(weights_.embedding_norm, activations.embedding_sum, activations.embedding_mean,
                     activations.embedding_rstd, dhidden_TD, t, gradients.embedding_norm);
  for (size_t s = 0; s + 1 < activations.begin.size(); ++s) {
    for (int64_t row = activations.begin[s]; row < activations.begin[s + 1]; ++row) {
      const float* dx = dhidden_TD + row * d;
      float* word = gradients.words_VD.data() + activations.token_ids[row] * d;
      float* position = gradients.positions_PD.data() + (row - activations.begin[s]) * d;
      for (int64_t i = 0; i < d; ++i) {
        word[i] += dx[i];
        position[i] += dx[i];
        gradients.type_D[i] += dx[i];
      }
    }
  }
}

uint64_t BertEncoder::weights_hash() const {
  uint64_t hash = 0;
  // for_each gives what may be written to; nothing is here.
  const_cast<BertWeights&>(weights_).for_each([&hash](float* values, int64_t count, bool) {
    hash = hash64({hash, hash64(std::string_view(reinterpret_cast<const char*>(values),
                                                 static_cast<size_t>(count) * sizeof(float)))});
  });
  return hash;
}

}  // namespace gradus::model
