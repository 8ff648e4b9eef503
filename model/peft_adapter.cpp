// SPDX-License-Identifier: Apache-2.0
#include "model/peft_adapter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "common/atomic_file.h"
#include "common/strings.h"
#include "kernels/gemm.h"
#include "model/checkpoint.h"
#include "model/internal/json_file.h"
#include "model/internal/tensor_check.h"
#include "model/safetensors.h"

namespace gradus::model {
namespace {

using nlohmann::json;

constexpr const char* kConfigFile = "/adapter_config.json";
constexpr const char* kTensorFile = "/adapter_model.safetensors";
constexpr const char* kBaseHash = "gradus.base_hash";
constexpr std::string_view kPrefix = "base_model.model.";
// The head of a reward model, and what peft lists as trained whole for it.
constexpr const char* kScore = "base_model.model.score.weight";
constexpr const char* kScoreTask = "SEQ_CLS";
constexpr std::array kScoreModules = {"classifier", "score"};

// Options that do not change what an adapter computes, those that are read elsewhere among them.
constexpr std::array kNeutralKeys = {"arrow_config",
                                     "auto_mapping",
                                     "base_model_name_or_path",
                                     "bias",
                                     "corda_config",
                                     "ensure_weight_tying",
                                     "eva_config",
                                     "exclude_modules",
                                     "inference_mode",
                                     "init_lora_weights",
                                     "layers_pattern",
                                     "loftq_config",
                                     "lora_alpha",
                                     "lora_dropout",
                                     "lora_ga_config",
                                     "megatron_config",
                                     "megatron_core",
                                     "peft_type",
                                     "peft_version",
                                     "qalora_group_size",
                                     "r",
                                     "revision",
                                     "runtime_config",
                                     "target_modules",
                                     "task_type",
                                     "use_rslora"};
// Ways to start that change the base as well: W is then not what the base's files hold.
constexpr std::array kBaseChangingInits = {"pissa", "olora", "corda", "loftq", "lora_ga"};

bool is_off(const json& value) {
  return value.is_null() || value == false ||
         ((value.is_array() || value.is_object()) && value.empty());
}

Status unsupported(const std::string& key, const json& value, const std::string& expected) {
  return invalid_argument(
      "'{}' is {}; {} is supported; merge the adapter with peft (merge_and_unload) and load the "
      "merged model",
      key, value.dump(), expected);
}

// Whether nothing but the head of a reward model is trained whole.
bool is_score_task(const json& config) {
  const json modules = config.value("modules_to_save", json());
  return config.value("task_type", json()) == kScoreTask && modules.is_array() &&
         std::all_of(modules.begin(), modules.end(), [](const json& module) {
           return std::find(kScoreModules.begin(), kScoreModules.end(), module) !=
                  kScoreModules.end();
         });
}

Status check_supported(const json& config) {
  const json type = config.value("peft_type", json());
  if (type != "LORA") return unsupported("peft_type", type, "only \"LORA\"");
  const json bias = config.value("bias", json("none"));
  if (bias != "none") return unsupported("bias", bias, "only \"none\"");
  const json init = config.value("init_lora_weights", json(true));
  for (const char* name : kBaseChangingInits) {
    if (init.is_string() && init.get<std::string>().starts_with(name)) {
      return unsupported("init_lora_weights", init, "only a start that keeps the base");
    }
  }
  for (const auto& [key, value] : config.items()) {
    const bool is_neutral =
        std::find(kNeutralKeys.begin(), kNeutralKeys.end(), key) != kNeutralKeys.end();
    if (key == "modules_to_save" && is_score_task(config)) continue;
    if (!is_neutral && !is_off(value)) return unsupported(key, value, "only the option's absence");
  }
  return {};
}

Result<SafetensorsReader> open_tensors(const std::string& dir) {
  const std::string path = dir + kTensorFile;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    const bool is_pickle = std::filesystem::exists(dir + "/adapter_model.bin", error);
    return not_found("{}: not found; {}", path,
                     is_pickle ? "adapter_model.bin is not read: save it anew with "
                                 "safe_serialization=True"
                               : "it holds the adapter's values");
  }
  return SafetensorsReader::open(path);
}

// "self_attn.q_proj" of a tensor's name as "q_proj".
Result<std::string> target_of(const std::string& tensor) {
  std::string_view name = tensor;
  const size_t end = name.rfind(name.ends_with(".lora_A.weight") ? ".lora_A" : ".lora_B");
  const bool is_factor = name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
  if (!is_factor || !name.starts_with(kPrefix)) {
    return invalid_argument(
        "tensor '{}' is no factor of LoRA; expected {}<module>.lora_A.weight or .lora_B.weight",
        tensor, kPrefix);
  }
  name = name.substr(0, end);
  const std::string target(name.substr(name.rfind('.') + 1));
  const std::vector<std::string>& known = lora_target_names();
  if (std::find(known.begin(), known.end(), target) == known.end()) {
    return invalid_argument("tensor '{}' adapts '{}', which is not supported; supported: {}",
                            tensor, target, join(known, ", "));
  }
  return target;
}

std::vector<int64_t> shape_of(const ParameterPlace& place) { return {place.rows, place.columns}; }

Status compare_with_layout(const SafetensorsReader& tensors, const std::string& base,
                           const LoraLayout& layout, int64_t rank) {
  std::vector<NamedShape> expected, found;
  for (const ParameterPlace& place : layout.places) {
    expected.push_back({place.hf_name, shape_of(place)});
  }
  for (const SafetensorsTensor& tensor : tensors.tensors()) {
    found.push_back({tensor.name, tensor.shape});
  }
  const std::string source = fmt::format("the base {} with rank {}", base, rank);
  return compare_tensors(expected, found, source).with_prefix(tensors.path());
}

std::string hash_text(const LoraAdapter& adapter) {
  return fmt::format("{:016x}", adapter.base_hash());
}

nlohmann::ordered_json config_json(const LoraAdapter& adapter, const std::string& base) {
  const LoraConfig& config = adapter.config();
  const bool has_head = adapter.layout().head >= 0;
  return {{"peft_type", "LORA"},
          {"task_type", has_head ? kScoreTask : "CAUSAL_LM"},
          {"base_model_name_or_path", base},
          {"r", config.rank},
          {"lora_alpha", config.alpha},
          {"use_rslora", config.rslora},
          {"target_modules", config.targets},
          {"lora_dropout", 0.0},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"use_dora", false},
          {"init_lora_weights", true},
          {"modules_to_save",
           has_head ? nlohmann::ordered_json(kScoreModules) : nlohmann::ordered_json(nullptr)},
          {"inference_mode", true}};
}

}  // namespace

bool is_adapter_dir(const std::string& dir) {
  std::error_code error;
  return std::filesystem::exists(dir + kConfigFile, error);
}

Result<LoraConfig> load_lora_config(const std::string& dir) {
  const std::string path = dir + kConfigFile;
  const Result<json> object = read_json_object(path);
  if (!object.ok()) return object.status();
  GRADUS_RETURN_IF_ERROR(check_supported(*object).with_prefix(path));
  LoraConfig config;
  const json r = object->value("r", json()), alpha = object->value("lora_alpha", json());
  if (!r.is_number_integer() || r.get<int64_t>() < 1) {
    return invalid_argument("{}: 'r' must be an integer of at least 1, got {}", path, r.dump());
  }
  if (!alpha.is_number() || !(alpha.get<double>() > 0) || !std::isfinite(alpha.get<double>())) {
    return invalid_argument("{}: 'lora_alpha' must be greater than 0, got {}", path, alpha.dump());
  }
  config.rank = r.get<int64_t>();
  config.alpha = alpha.get<double>();
  config.rslora = object->value("use_rslora", json(false)) == true;
  const Result<SafetensorsReader> tensors = open_tensors(dir);
  if (!tensors.ok()) return tensors.status();
  std::set<std::string> targets;
  for (const SafetensorsTensor& tensor : tensors->tensors()) {
    if (tensor.name == kScore) continue;
    const Result<std::string> target = target_of(tensor.name);
    if (!target.ok()) return target.status().with_prefix(tensors->path());
    targets.insert(*target);
  }
  config.targets = resolved_targets({targets.begin(), targets.end()});
  if (config.targets.empty()) return data_loss("{}: holds no tensors", tensors->path());
  return config;
}

Status check_adapter_shapes(const std::string& dir, const std::string& base,
                            const LoraLayout& layout, int64_t rank) {
  const Result<SafetensorsReader> tensors = open_tensors(dir);
  if (!tensors.ok()) return tensors.status();
  return compare_with_layout(*tensors, base, layout, rank);
}

Status load_adapter(const std::string& dir, const std::string& base, const LoraAdapter& adapter,
                    float* out) {
  const Result<SafetensorsReader> tensors = open_tensors(dir);
  if (!tensors.ok()) return tensors.status();
  GRADUS_RETURN_IF_ERROR(
      compare_with_layout(*tensors, base, adapter.layout(), adapter.config().rank));
  for (const auto& [key, value] : tensors->metadata()) {
    if (key != kBaseHash || value == hash_text(adapter)) continue;
    return invalid_argument(
        "{}: the adapter was trained on other weights than those of {} (hash {}, here {}); give "
        "the base it was trained on: '{}'",
        tensors->path(), base, value, hash_text(adapter), base_model_of(dir));
  }
  std::vector<float> values;
  for (const ParameterPlace& place : adapter.layout().places) {
    const SafetensorsTensor& tensor = *tensors->find(place.hf_name);
    values.resize(static_cast<size_t>(place.rows * place.columns));
    GRADUS_RETURN_IF_ERROR(convert_to_f32(tensor, values.data()).with_prefix(tensors->path()));
    GRADUS_RETURN_IF_ERROR(check_finite(place.hf_name, values).with_prefix(tensors->path()));
    kernels::pack_weight(values.data(), place.columns, place.rows, place.columns,
                         out + place.offset);
  }
  return {};
}

Result<std::unique_ptr<LoraAdapter>> open_adapter(const std::string& dir, const std::string& base,
                                                  const ModelConfig& model,
                                                  const float* parameters) {
  const Result<LoraConfig> config = load_lora_config(dir);
  if (!config.ok()) return config.status();
  Result<std::unique_ptr<LoraAdapter>> adapter = LoraAdapter::create(model, *config, parameters, 0);
  if (!adapter.ok()) return adapter.status().with_prefix(dir);
  GRADUS_RETURN_IF_ERROR(load_adapter(dir, base, **adapter, (*adapter)->values()));
  return adapter;
}

Status check_holds_model(const std::string& dir) {
  std::error_code error;
  if (!is_adapter_dir(dir) || std::filesystem::exists(dir + "/config.json", error)) return {};
  return invalid_argument(
      "{}: holds an adapter, not a model; give it as --adapter or model.adapter, and its base "
      "('{}') as the model",
      dir, base_model_of(dir));
}

bool has_score_head(const std::string& dir) {
  const Result<json> object = read_json_object(dir + kConfigFile);
  return object.ok() && is_score_task(*object);
}

std::string base_model_of(const std::string& dir) {
  const Result<json> object = read_json_object(dir + kConfigFile);
  if (!object.ok()) return "";
  const json base = object->value("base_model_name_or_path", json());
  return base.is_string() ? base.get<std::string>() : "";
}

Status write_adapter(const std::string& dir, const std::string& base, const LoraAdapter& adapter,
                     const float* in) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return unavailable("{}: cannot create the directory: {}", dir, error.message());
  std::vector<ParameterPlace> places = adapter.layout().places;
  std::ranges::sort(places, {}, &ParameterPlace::hf_name);
  std::vector<SafetensorsSpec> specs;
  for (const ParameterPlace& place : places) {
    specs.push_back({place.hf_name, "F32", shape_of(place)});
  }
  Result<SafetensorsWriter> writer = SafetensorsWriter::create(
      dir + kTensorFile, std::move(specs), {{"format", "pt"}, {kBaseHash, hash_text(adapter)}});
  if (!writer.ok()) return writer.status();
  std::vector<float> values;
  for (const ParameterPlace& place : places) {
    values.resize(static_cast<size_t>(place.rows * place.columns));
    kernels::unpack_weight(in + place.offset, place.rows, place.columns, values.data(),
                           place.columns);
    GRADUS_RETURN_IF_ERROR(writer->append_f32(values));
  }
  GRADUS_RETURN_IF_ERROR(writer->finish());
  return write_file_atomically(dir + kConfigFile, config_json(adapter, base).dump(2) + "\n");
}

}  // namespace gradus::model
