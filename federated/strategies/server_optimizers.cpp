// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "federated/internal/strategies.h"

// Strategies whose server takes the mean update for a gradient (with the sign turned). d is the
// mean.
namespace gradus::federated::internal {
namespace {

// Vectors of the server that start as `start` at the first step.
void grow(std::vector<float>& values, size_t size, double start) {
  if (values.empty()) values.assign(size, static_cast<float>(start));
}

// Hsu, Qi and Brown 2019, arXiv:1909.06335: m = momentum m + d; x += lr m.
class FedAvgM : public Aggregator {
 public:
  using Aggregator::Aggregator;
  void step(std::span<const ClientReport>, std::span<const double>,
            std::span<double> delta) override {
    grow(m_, delta.size(), 0);
    for (size_t j = 0; j < delta.size(); ++j) {
      const double m = config().momentum * static_cast<double>(m_[j]) + delta[j];
      m_[j] = static_cast<float>(m);
      delta[j] = config().server_lr * direction(m, delta[j]);
    }
  }
  void visit_state(const StateVisitor& visit) override { visit("momentum", m_); }

 protected:
  virtual double direction(double m, double /*d*/) const { return m; }

 private:
  std::vector<float> m_;
};

// Outer step of DiLoCo, Douillard et al. 2023, arXiv:2311.08105: Nesterov's form, x += lr (d +
// momentum m).
class DiLoCo final : public FedAvgM {
 public:
  using FedAvgM::FedAvgM;
  bool keeps_lone_update() const override { return false; }

 protected:
  double direction(double m, double d) const override { return d + config().momentum * m; }
};

// Reddi et al. 2021, arXiv:2003.00295, Algorithm 2, without correction of the start: m = beta1 m +
// (1 - beta1) d; x += lr m / (sqrt(v) + tau), v by the rule of each; v starts at tau^2 unless set.
class AdaptiveServer : public Aggregator {
 public:
  using Aggregator::Aggregator;
  bool keeps_lone_update() const override { return false; }
  void step(std::span<const ClientReport>, std::span<const double>,
            std::span<double> delta) override {
    const double tau = config().tau;
    grow(m_, delta.size(), 0);
    grow(v_, delta.size(), config().initial_v.value_or(tau * tau));
    for (size_t j = 0; j < delta.size(); ++j) {
      const double d = delta[j];
      const double m = config().beta1 * static_cast<double>(m_[j]) + (1 - config().beta1) * d;
      const double v = next_v(static_cast<double>(v_[j]), d * d);
      m_[j] = static_cast<float>(m);
      v_[j] = static_cast<float>(v);
      delta[j] = config().server_lr * m / (std::sqrt(v) + tau);
    }
  }
  void visit_state(const StateVisitor& visit) override {
    visit("m", m_);
    visit("v", v_);
  }

 protected:
  virtual double next_v(double v, double square) const = 0;

 private:
  std::vector<float> m_, v_;
};

class FedAdagrad final : public AdaptiveServer {
 public:
  using AdaptiveServer::AdaptiveServer;

 protected:
  double next_v(double v, double square) const override { return v + square; }
};

class FedAdam final : public AdaptiveServer {
 public:
  using AdaptiveServer::AdaptiveServer;

 protected:
  double next_v(double v, double square) const override {
    return config().beta2 * v + (1 - config().beta2) * square;
  }
};

class FedYogi final : public AdaptiveServer {
 public:
  using AdaptiveServer::AdaptiveServer;

 protected:
  double next_v(double v, double square) const override {
    const double sign = v > square ? 1 : v < square ? -1 : 0;
    return v - (1 - config().beta2) * square * sign;
  }
};

}  // namespace

void register_server_optimizers(AggregatorRegistry& registry) {
  registry.add("fedavgm", factory<FedAvgM>());
  registry.add("diloco", factory<DiLoCo>());
  registry.add("fedadagrad", factory<FedAdagrad>());
  registry.add("fedadam", factory<FedAdam>());
  registry.add("fedyogi", factory<FedYogi>());
}

}  // namespace gradus::federated::internal
