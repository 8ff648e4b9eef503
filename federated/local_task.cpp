// SPDX-License-Identifier: Apache-2.0
#include "federated/local_task.h"

#include <algorithm>

#include "federated/mlp.h"

namespace gradus::federated {
namespace {

// Updates of zeros, at no cost: what remains is the engine.
class NoTask final : public LocalTask {
 public:
  NoTask(int64_t num_parameters, int64_t num_clients)
      : num_parameters_(num_parameters), num_clients_(num_clients) {}
  int64_t num_parameters() const override { return num_parameters_; }
  std::vector<TensorSlice> tensors() const override { return {{"none", 0, num_parameters_}}; }
  int64_t num_clients() const override { return num_clients_; }
  int64_t num_samples(int64_t) const override { return 1; }
  int64_t state_size(const ClientTerms& terms) const override {
    return terms.needs_state() ? num_parameters_ : 0;
  }
  void initialize(uint64_t, std::span<float> model) const override {
    std::fill(model.begin(), model.end(), 0.0f);
  }
  std::unique_ptr<LocalWorker> make_worker() const override { return std::make_unique<Worker>(); }
  bool evaluate(std::span<const float>, Evaluation&) const override { return false; }

 private:
  class Worker final : public LocalWorker {
   public:
    ClientReport train(const ClientJob& job, std::span<float> update, std::span<float>) override {
      std::fill(update.begin(), update.end(), 0.0f);
      ClientReport report{.client_id = job.client_id, .num_samples = 1, .num_steps = 1};
      if (job.terms->report_loss) report.loss = 1;
      if (job.terms->report_labels) report.label_counts = {1, 1};
      if (job.terms->flood.is_on) report.score = 1;
      return report;
    }
  };
  int64_t num_parameters_, num_clients_;
};

}  // namespace

Result<std::unique_ptr<LocalTask>> make_local_task(const FederatedConfig& config, uint64_t seed) {
  const int64_t num_clients = config.clients.num_clients;
  if (config.task.kind == TaskKind::kNone) {
    return std::unique_ptr<LocalTask>(
        std::make_unique<NoTask>(config.task.num_parameters, num_clients));
  }
  Result<std::unique_ptr<ClientData>> data =
      make_client_data(config.task.data, config.task.partition, num_clients, seed);
  if (!data.ok()) return data.status();
  return std::unique_ptr<LocalTask>(
      std::make_unique<MlpTask>(config.task.hidden, config.local, std::move(*data)));
}

}  // namespace gradus::federated
