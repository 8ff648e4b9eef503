// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

// What a client sends after its local training.
namespace gradus::federated {

// What a client says of an update.
struct ClientReport {
  int64_t client_id = 0;
  int64_t base_version = 0;  // of the global model that it began from
  int64_t num_samples = 0;   // n_k, >= 0
  std::optional<int64_t> num_steps{};
  std::optional<double> loss{};         // mean over its data of the model it began from, F_k
  std::optional<double> score{};        // FLood's S_k: mean energy of its data
  std::vector<int64_t> label_counts{};  // by class; empty if it has none
  std::optional<double> train_loss{};   // mean over its training; of no use to strategies

  int64_t staleness = 0;  // versions of the global model since base_version; set by Round

  // Of the values; set by measure().
  double squared_norm = 0;
  double max_abs = 0;
  bool is_finite = true;
};

// An update of one client: local model minus the global model of `base_version`. A strategy may ask
// for more vectors of the model's size behind it (Aggregator::num_vectors). The values are
// borrowed.
//
//   {.report = {.client_id = 3, .base_version = 7, .num_samples = 120}, .values = {0.1f, -0.2f}}
struct ModelDelta {
  ClientReport report;
  std::span<const float> values;
};

// Sets the report's squared_norm, max_abs and is_finite from the values.
void measure(ModelDelta& delta);

// A named run of a model's parameters.
struct TensorSlice {
  std::string name;
  int64_t begin = 0, size = 0;
};

}  // namespace gradus::federated
