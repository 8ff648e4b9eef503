// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "common/status.h"
#include "model/lora.h"

// Adapter directories as the Python package peft writes and reads them: adapter_config.json, and
// adapter_model.safetensors with base_model.model.<module>.lora_A.weight [r, K] and
// .lora_B.weight [N, r]. What Gradus writes also holds a hash of the base's adapted matrices in the
// file's metadata, which peft passes over, so that an adapter is not put on another base.
namespace gradus::model {

// Whether `dir` has an adapter_config.json.
bool is_adapter_dir(const std::string& dir);

// Rank, alpha and scaling of `dir`/adapter_config.json, targets by the names of its tensors.
// NotFound without the files; InvalidArgument for what is not LoRA on the matrices of
// lora_target_names() alone (bias, DoRA, modules_to_save, patterns, an unknown option), naming file
// and key.
Result<LoraConfig> load_lora_config(const std::string& dir);

// Whether the tensors of `dir` are those of `layout`, by names and shapes: the errors that
// load_adapter would give, without weights. `base` is for messages.
Status check_adapter_shapes(const std::string& dir, const std::string& base,
                            const LoraLayout& layout, int64_t rank);

// Reads A and B of `adapter`, made with load_lora_config(dir), into `values` of its layout: its
// own, or another set of them. DataLoss for missing, unknown or wrongly shaped tensors and values
// that are not finite; InvalidArgument if the adapter was made on other weights. `base` is the
// base's directory, for messages.
Status load_adapter(const std::string& dir, const std::string& base, const LoraAdapter& adapter,
                    float* values);

// The two in one: an adapter of the model `model` with the weights `parameters` from `base`.
Result<std::unique_ptr<LoraAdapter>> open_adapter(const std::string& dir, const std::string& base,
                                                  const ModelConfig& model,
                                                  const float* parameters);

// InvalidArgument if `dir` holds an adapter and no model.
Status check_holds_model(const std::string& dir);

// Whether `dir` holds the adapter of a reward model, with its score head.
bool has_score_head(const std::string& dir);

// The base on which `dir` says it was trained; "" if it does not say.
std::string base_model_of(const std::string& dir);

// Writes the two files into `dir`, which is made if it does not exist, with `values` of the
// adapter's layout as A and B.
Status write_adapter(const std::string& dir, const std::string& base, const LoraAdapter& adapter,
                     const float* values);

}  // namespace gradus::model
