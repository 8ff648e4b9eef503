// SPDX-License-Identifier: Apache-2.0
#include "trainer/device_parts.h"

#include <unistd.h>

#include <algorithm>

#include "comm/device_communicator.h"
#include "model/device_training.h"
#include "rollout/device_engine.h"
#include "trainer/device_learner.h"

namespace gradus::trainer {
namespace {

// The most memory that was taken when it looked.
class MemoryWatch {
 public:
  explicit MemoryWatch(const kernels::Cuda& cuda) : cuda_(cuda) {}
  void look() {
    const Result<kernels::CudaMemory> memory = kernels::device_memory(cuda_);
    if (memory.ok()) peak_ = std::max(peak_, memory->total - memory->free);
  }
  int64_t peak() const { return peak_; }

 private:
  kernels::Cuda cuda_;
  int64_t peak_ = 0;
};

class CudaTrainingDevice : public TrainingDevice {
 public:
  static Result<std::unique_ptr<CudaTrainingDevice>> create(const kernels::Cuda& cuda,
                                                            const model::Transformer& host,
                                                            const BackwardConfig& backward,
                                                            std::shared_ptr<MemoryWatch> watch,
                                                            comm::Communicator& ranks) {
    Result<std::unique_ptr<comm::DeviceCommunicator>> devices =
        comm::DeviceCommunicator::create(cuda, ranks);
    if (!devices.ok()) return devices.status();
    Result<std::unique_ptr<model::DeviceTransformer>> transformer =
        to_device(cuda, host, ranks.size());
    GRADUS_RETURN_IF_ERROR(comm::agree(ranks, transformer.status()));
    Result<std::unique_ptr<model::DeviceTrainingState>> state = model::DeviceTrainingState::create(
        **transformer, host, {.ranks = devices->get(), .zero_stage = backward.zero_stage});
    GRADUS_RETURN_IF_ERROR(comm::agree(ranks, state.status()));
    return std::unique_ptr<CudaTrainingDevice>(
        new CudaTrainingDevice(std::move(*devices), std::move(*transformer), std::move(*state),
                               backward.gradient_checkpointing, std::move(watch)));
  }

  model::DeviceTransformer& transformer() { return *transformer_; }

  Status upload(const float* parameters) override { return state_->upload(parameters); }
  Status download(float* parameters) const override { return state_->download(parameters); }
  Result<uint64_t> weights_hash() override { return state_->hash(); }
  Status clear_gradients() override { return state_->clear_gradients(); }
  Status ready_for_update() override { return state_->scatter_weights(); }
  Status ready_for_engine() override { return state_->gather_weights(); }
  Status sum_gradients_over_ranks() override { return state_->sum_gradients(); }
  Result<double> gradient_norm() override { return state_->gradient_norm(); }
  Status gradients_to_host(float* gradients) const override {
    return state_->gradients_to_host(gradients);
  }
  Status apply(const model::AdamwStep& step) override { return state_->apply(step); }
  Status moments_to_host(float* m, float* v) const override {
    return state_->moments_to_host(m, v);
  }
  Status moments_from_host(const float* m, const float* v) override {
    return state_->moments_from_host(m, v);
  }
  Status forward(const data::Pack& pack, float temperature, bool keep_for_backward) override {
    return pass_.forward(pack, temperature, keep_for_backward);
  }
  std::span<const float> logprobs() const override { return pass_.logprobs(); }
  std::span<const float> entropies() const override { return pass_.entropies(); }
  Status backward(std::span<const float> dlogprobs, std::span<const float> dentropies) override {
    return pass_.backward(dlogprobs, dentropies);
  }
  bool is_lockstep() const override { return state_->is_lockstep(); }
  Status idle_forward() override { return state_->idle_forward(); }
  Status idle_backward() override { return state_->idle_backward(); }
  Status alone(const std::function<Status()>& body) override {
    pass_.release();
    comm::Communicator& host = ranks_->host();
    GRADUS_RETURN_IF_ERROR(comm::agree(host, state_->gather_weights()));
    Status status = comm::agree(host, state_->begin_alone());
    if (status.ok()) status = body();
    pass_.release();
    state_->end_alone();
    return status;
  }
  void release_activations() override {
    watch_->look();
    pass_.release();
  }

 private:
  CudaTrainingDevice(std::unique_ptr<comm::DeviceCommunicator> ranks,
                     std::unique_ptr<model::DeviceTransformer> transformer,
                     std::unique_ptr<model::DeviceTrainingState> state, bool gradient_checkpointing,
                     std::shared_ptr<MemoryWatch> watch)
      : ranks_(std::move(ranks)),
        transformer_(std::move(transformer)),
        state_(std::move(state)),
        pass_(*transformer_, state_.get(), gradient_checkpointing),
        watch_(std::move(watch)) {}

  std::unique_ptr<comm::DeviceCommunicator> ranks_;
  std::unique_ptr<model::DeviceTransformer> transformer_;
  std::unique_ptr<model::DeviceTrainingState> state_;
  model::DeviceTrainingPass pass_;
  std::shared_ptr<MemoryWatch> watch_;
};

// The initial model on the device, beside the policy.
class DeviceReferenceModel : public ReferenceModel {
 public:
  explicit DeviceReferenceModel(std::unique_ptr<model::DeviceTransformer> transformer)
      : transformer_(std::move(transformer)), pass_(*transformer_, nullptr, false) {}
  Status forward(const data::Pack& pack, float temperature) override {
    return pass_.forward(pack, temperature, false);
  }
  std::span<const float> logprobs() const override { return pass_.logprobs(); }
  std::span<const float> entropies() const override { return pass_.entropies(); }

 private:
  std::unique_ptr<model::DeviceTransformer> transformer_;
  model::DeviceTrainingPass pass_;
};

}  // namespace

Result<std::unique_ptr<model::DeviceTransformer>> to_device(const kernels::Cuda& cuda,
                                                            const model::Transformer& host,
                                                            int64_t num_slices) {
  return model::DeviceTransformer::create(
      cuda, host.config(),
      [&](const model::WeightSpec& spec, float* out) {
        return model::read_parameter(host.layout(), host.parameters(), spec, out);
      },
      num_slices);
}

int32_t device_of_rank(comm::Communicator& communicator) {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  const std::vector<std::string> hosts = communicator.all_gather(name);
  const auto before = hosts.begin() + communicator.rank();
  return static_cast<int32_t>(std::count(hosts.begin(), before, *before));
}

Result<ComputeParts> make_device_parts(const kernels::Cuda& cuda, Policy& policy,
                                       const DeviceSetup& setup, comm::Communicator& communicator) {
  const auto watch = std::make_shared<MemoryWatch>(cuda);
  Result<std::unique_ptr<CudaTrainingDevice>> device =
      CudaTrainingDevice::create(cuda, *policy.transformer, setup.backward, watch, communicator);
  if (!device.ok()) return device.status();
  model::DeviceTransformer& transformer = (*device)->transformer();
  ComputeParts parts;
  parts.learner = std::make_unique<DeviceLearner>(*policy.transformer, std::move(*device),
                                                  setup.optimizer, setup.backward, communicator);
  if (setup.has_reference) {
    Result<std::unique_ptr<model::DeviceTransformer>> reference =
        to_device(cuda, *policy.transformer);
    if (!reference.ok()) return reference.status().with_prefix("the initial model");
    parts.reference = std::make_unique<DeviceReferenceModel>(std::move(*reference));
  }
  if (setup.rollout != nullptr) {
    Result<std::unique_ptr<rollout::DeviceEngine>> engine = rollout::DeviceEngine::create(
        transformer, policy.tokenizer.get(), engine_options(*setup.rollout));
    if (!engine.ok()) return engine.status();
    parts.engine = std::move(*engine);
  }
  watch->look();  // what sampling takes is there
  parts.peak_device_bytes = [watch] { return watch->peak(); };
  return parts;
}

}  // namespace gradus::trainer
