// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/strategies.h"

// Strategies that correct the drift of clients by vectors that both sides keep.
namespace gradus::federated::internal {
namespace {

// SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1 with Option II. The server adds
// |P| / N of the mean change of the clients' controls, so that c is the mean of all N for good.
class Scaffold final : public Aggregator {
 public:
  using Aggregator::Aggregator;
  ClientTerms client_terms(int64_t) const override { return {.use_control = true}; }
  std::span<const float> broadcast() const override { return control_; }
  int64_t num_vectors() const override { return 2; }
  void step(std::span<const ClientReport> reports, std::span<const double>,
            std::span<double> delta) override {
    const size_t p = delta.size() / 2;
    if (control_.empty()) control_.assign(p, 0);
    const double part = static_cast<double>(reports.size()) /
                        static_cast<double>(std::max<int64_t>(context().num_clients, 1));
    for (size_t j = 0; j < p; ++j) {
      control_[j] = static_cast<float>(static_cast<double>(control_[j]) + part * delta[p + j]);
      delta[j] *= config().server_lr;
    }
  }
  void visit_state(const StateVisitor& visit) override { visit("control", control_); }

 private:
  std::vector<float> control_;
};

// FedDyn, Acar et al. 2021, arXiv:2111.04263, Algorithm 1: h -= alpha |P| / N d;
// x = mean y_k - h / alpha.
class FedDyn final : public Aggregator {
 public:
  using Aggregator::Aggregator;
  bool keeps_lone_update() const override { return false; }
  ClientTerms client_terms(int64_t) const override { return {.dyn_alpha = config().dyn_alpha}; }
  void step(std::span<const ClientReport> reports, std::span<const double>,
            std::span<double> delta) override {
    if (h_.empty()) h_.assign(delta.size(), 0);
    const double alpha = config().dyn_alpha;
    const double part = static_cast<double>(reports.size()) /
                        static_cast<double>(std::max<int64_t>(context().num_clients, 1));
    for (size_t j = 0; j < delta.size(); ++j) {
      const double h = static_cast<double>(h_[j]) - alpha * part * delta[j];
      h_[j] = static_cast<float>(h);
      delta[j] = config().server_lr * (delta[j] - h / alpha);
    }
  }
  void visit_state(const StateVisitor& visit) override { visit("h", h_); }

 private:
  std::vector<float> h_;
};

}  // namespace

void register_controls(AggregatorRegistry& registry) {
  registry.add("scaffold", factory<Scaffold>());
  registry.add("feddyn", factory<FedDyn>());
}

}  // namespace gradus::federated::internal
