// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "federated/federated_config.h"

// Labelled rows, and which of them each client has.
namespace gradus::federated {

// M rows of F features and a label in [0, C) each.
struct LabelledRows {
  int64_t num_features = 0, num_classes = 0;
  std::vector<float> features_MF;
  std::vector<int32_t> labels_M;
  std::vector<int64_t> owners_M;  // client of each row, if the data knows

  int64_t num_rows() const { return static_cast<int64_t>(labels_M.size()); }
};

// Rows of numbers, comma-separated; the last is the label, the first the owner if `has_owners`.
// Features are divided by `scale`. NotFound, or InvalidArgument with file and line.
Result<LabelledRows> read_csv(const std::string& path, double scale, bool has_owners);

// MNIST-1D (Greydanus and Kobak 2020, arXiv:2011.14439): 40 numbers a row, ten classes, made of the
// published templates by the published recipe with its default arguments.
LabelledRows make_mnist1d(int64_t num_rows, uint64_t seed);

// The parts of a row's recipe that are random, for comparison with the original.
struct Mnist1dDraws {
  int64_t padding = 0;                                    // zeros behind the template, in [36, 60]
  double scale = 0;                                       // in [0, 1), of the amplitude
  int64_t shift = 0;                                      // circular, in [0, 48)
  std::vector<double> correlated_noise_72, iid_noise_72;  // standard normal
  double shear = 0;                                       // in [0, 1)
};
std::vector<double> mnist1d_row(int32_t label, const Mnist1dDraws& draws);

// Rows of one client, as training wants them.
struct ClientRows {
  std::vector<float> features_NF;
  std::vector<int32_t> labels_N;
};

// What a run's clients have. Thread-safe after it is made.
class ClientData {
 public:
  virtual ~ClientData() = default;
  virtual int64_t num_clients() const = 0;
  virtual int64_t num_samples(int64_t client) const = 0;
  // Replaces what is in `rows`.
  virtual void load(int64_t client, ClientRows& rows) const = 0;
  virtual const LabelledRows& test_rows() const = 0;
};

// Reads or makes the rows and shares them out, by `seed`. InvalidArgument if there are too few rows
// for so many clients.
Result<std::unique_ptr<ClientData>> make_client_data(const FederatedDataConfig& data,
                                                     const PartitionConfig& partition,
                                                     int64_t num_clients, uint64_t seed);

// Row numbers by client of a partition over the given labels (all kinds but natural and resampled).
Result<std::vector<std::vector<int32_t>>> partition_rows(const PartitionConfig& config,
                                                         std::span<const int32_t> labels,
                                                         int64_t num_classes, int64_t num_clients,
                                                         uint64_t seed);

}  // namespace gradus::federated
