// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/model_rows.h"
#include "cli/partial_directory.h"
#include "model/checkpoint.h"
#include "model/peft_adapter.h"

namespace gradus::cli {
namespace {

struct MergeOptions {
  std::string model, adapter, output;
  std::string dtype = "f32";
};

Status merge(MergeOptions options) {
  options.output = without_trailing_slashes(options.output);
  GRADUS_RETURN_IF_ERROR(check_new_directory(options.output));
  const Result<ModelForRows> loaded = load_model_for_rows(
      options.model,
      model::has_score_head(options.adapter) ? model::Head::kScore : model::Head::kLanguage,
      options.adapter);
  if (!loaded.ok()) return loaded.status();
  const model::Transformer& transformer = *loaded->transformer;
  PartialDirectory directory(options.output);
  const auto dtype = options.dtype == "bf16" ? model::WeightDType::kBF16 : model::WeightDType::kF32;
  GRADUS_RETURN_IF_ERROR(model::write_checkpoint(
      directory.path(), transformer.config(),
      [&](const model::WeightSpec& spec, float* out) {
        return model::read_parameter(transformer.layout(), transformer.parameters(), spec, out);
      },
      {.dtype = dtype, .tokenizer_dir = options.model}));
  GRADUS_RETURN_IF_ERROR(directory.commit());
  const nlohmann::ordered_json summary = {
      {"out", options.output},
      {"parameters", model::num_parameters(transformer.config())},
      {"dtype", options.dtype}};
  std::cout << summary.dump() << "\n";
  return {};
}

}  // namespace

void add_merge_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App* command = app.add_subcommand(
      "merge", "Write a model with a LoRA adapter merged into its weights as one directory");
  command->add_option("--model", options->model, "Hugging Face model directory, the base")
      ->required();
  command->add_option("--adapter", options->adapter, "LoRA adapter of it (PEFT's format)")
      ->required();
  command->add_option("output", options->output, "Directory to make; new or empty")->required();
  command->add_option("--dtype", options->dtype, "Stored precision of the weights: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return merge(*options); }; });
}

}  // namespace gradus::cli
