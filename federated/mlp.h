// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "federated/client_data.h"
#include "federated/local_task.h"

namespace gradus::federated {

// A classifier of rows: linear layers with ReLU between them, softmax cross-entropy, SGD with
// momentum, on the kernels of the whole tree. Parameters are the kernels' panels and padded biases
// (kernels/gemm.h), layer by layer; padding is and stays 0.
class MlpTask final : public LocalTask {
 public:
  MlpTask(std::vector<int64_t> hidden, LocalTrainingConfig local, std::unique_ptr<ClientData> data);

  int64_t num_parameters() const override;
  std::vector<TensorSlice> tensors() const override;
  int64_t num_clients() const override { return data_->num_clients(); }
  int64_t num_samples(int64_t client) const override { return data_->num_samples(client); }
  int64_t state_size(const ClientTerms& terms) const override;
  void initialize(uint64_t seed, std::span<float> model_P) const override;
  std::unique_ptr<LocalWorker> make_worker() const override;
  bool evaluate(std::span<const float> model_P, Evaluation& evaluation) const override;

  struct Layer {
    int64_t inputs = 0, outputs = 0;
    int64_t weight = 0, bias = 0;  // offsets
  };
  const std::vector<Layer>& layers() const { return layers_; }
  const LocalTrainingConfig& local() const { return local_; }
  const ClientData& data() const { return *data_; }

 private:
  LocalTrainingConfig local_;
  std::unique_ptr<ClientData> data_;
  std::vector<Layer> layers_;
  int64_t num_parameters_ = 0;
};

}  // namespace gradus::federated
