// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/safetensors.h"
#include "records/state_shards.h"

namespace gradus::test {

// Names and bits of weights, their average and the state in a checkpoint's folder, sorted by name,
// those of a critic after them:
// equal for equal states, however many ranks wrote them. Tests that call it link the modules model
// and records.
inline std::string checkpoint_state(const std::string& folder) {
  std::map<std::string, std::string> bits;
  const std::string adapter = folder + "/adapter_model.safetensors";
  const auto weights =
      model::SafetensorsReader::open(std::filesystem::exists(adapter) ? adapter : folder);
  const auto state = records::StateShards::open(folder, "optimizer");
  EXPECT_TRUE(weights.ok()) << weights.status().message();
  EXPECT_TRUE(state.ok()) << state.status().message();
  if (!weights.ok() || !state.ok()) return {};
  const auto add_weights = [&](const std::string& kind, const model::SafetensorsReader& reader) {
    for (const model::SafetensorsTensor& tensor : reader.tensors()) {
      bits[kind + tensor.name] = {reinterpret_cast<const char*>(tensor.bytes.data()),
                                  tensor.bytes.size()};
    }
  };
  add_weights("weight ", *weights);
  if (std::filesystem::exists(folder + "/ema")) {
    const std::string average_adapter = folder + "/ema/adapter_model.safetensors";
    const auto average = model::SafetensorsReader::open(
        std::filesystem::exists(average_adapter) ? average_adapter : folder + "/ema");
    EXPECT_TRUE(average.ok()) << average.status().message();
    if (average.ok()) add_weights("average ", *average);
  }
  for (const std::string& name : state->names()) {
    if (const auto number = state->read_i64(name); number.ok()) {
      bits[name] = std::to_string(*number);
    } else if (const auto natural = state->read_u64(name); natural.ok()) {
      bits[name] = std::to_string(*natural);
    } else if (const auto real = state->read_f64(name); real.ok()) {
      bits[name] = {reinterpret_cast<const char*>(&*real), sizeof(double)};
    } else if (const auto text = state->read_text(name); text.ok()) {
      bits[name] = *text;
    } else {
      std::vector<float> values(static_cast<size_t>(state->size(name).value()));
      const Status read = state->read(name, std::span<float>(values));
      EXPECT_TRUE(read.ok()) << read.message();
      bits[name] = {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
    }
  }
  std::string all;
  for (const auto& [name, value] : bits) all += name + "=" + value + "\n";
  if (std::filesystem::exists(folder + "/critic")) {
    all += "critic\n" + checkpoint_state(folder + "/critic");
  }
  return all;
}

}  // namespace gradus::test
