// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/partial_directory.h"
#include "common/atomic_file.h"
#include "data/gguf_tokenizer.h"
#include "model/checkpoint.h"
#include "model/gguf_checkpoint.h"

namespace gradus::cli {
namespace {

struct ConvertOptions {
  std::string input;
  std::string output;
  std::string dtype = "f32";
};

// The special tokens alone, a file that older readers ask for.
std::string special_tokens_map(const std::string& tokenizer_config_json) {
  const auto config = nlohmann::ordered_json::parse(tokenizer_config_json);
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  for (const char* key :
       {"bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens"}) {
    if (config.contains(key) && !config[key].is_null()) map[key] = config[key];
  }
  return map.dump(2) + "\n";
}

Status convert(ConvertOptions options) {
  options.output = without_trailing_slashes(options.output);
  GRADUS_RETURN_IF_ERROR(check_new_directory(options.output));
  const Result<model::GgufCheckpoint> gguf = model::GgufCheckpoint::open(options.input);
  if (!gguf.ok()) return gguf.status();
  const auto metadata = model::tokenizer_metadata(gguf->file());
  if (!metadata.ok()) return metadata.status();
  const auto tokenizer = data::make_tokenizer_files(*metadata, options.input);
  if (!tokenizer.ok()) return tokenizer.status();

  PartialDirectory directory(options.output);
  const auto read_weight = [&](const model::WeightSpec& spec, float* out) {
    return gguf->read_f32(spec.hf_name, spec.shape, out);
  };
  const auto dtype = options.dtype == "bf16" ? model::WeightDType::kBF16 : model::WeightDType::kF32;
  GRADUS_RETURN_IF_ERROR(
      model::write_checkpoint(directory.path(), gguf->config(), read_weight, {.dtype = dtype}));
  const std::pair<const char*, std::string> files[] = {
      {"tokenizer.json", tokenizer->tokenizer_json},
      {"tokenizer_config.json", tokenizer->tokenizer_config_json},
      {"special_tokens_map.json", special_tokens_map(tokenizer->tokenizer_config_json)},
  };
  for (const auto& [name, text] : files) {
    GRADUS_RETURN_IF_ERROR(
        write_file_atomically(fmt::format("{}/{}", directory.path(), name), text));
  }
  GRADUS_RETURN_IF_ERROR(directory.commit());
  const nlohmann::ordered_json summary = {
      {"out", options.output},
      {"family", model::family_name(gguf->config().family)},
      {"parameters", model::num_parameters(gguf->config())},
      {"dtype", options.dtype},
  };
  std::cout << summary.dump() << "\n";
  return {};
}

}  // namespace

void add_convert_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<ConvertOptions>();
  CLI::App* command = app.add_subcommand(
      "convert",
      "Write a GGUF model as a Hugging Face directory (architectures llama, qwen2, qwen3)");
  command->add_option("input", options->input, "GGUF file")->required();
  command->add_option("output", options->output, "Directory to make; new or empty")->required();
  command->add_option("--dtype", options->dtype, "Stored precision of the weights: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return convert(*options); }; });
}

}  // namespace gradus::cli
