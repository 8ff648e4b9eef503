// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/registry.h"
#include "federated/aggregator_config.h"
#include "federated/flood.h"
#include "federated/model_delta.h"

// A strategy of federated learning: what clients add to their local training, how much each update
// counts, how updates become one, and the server's step along it. docs/federated.md has all of
// them with formulas and papers, and how to add one.
//
// Letters: K updates of the round in increasing order of client id, P parameters, x the global
// model, y_k a client's model after its training, D_k = y_k - x.
namespace gradus::federated {

// What a strategy adds to local training. g is the gradient of the client's loss at y.
struct ClientTerms {
  double prox_mu = 0;        // g + mu (y - x)
  bool use_control = false;  // SCAFFOLD: g - c_i + c; sends c_i+ - c_i as a second vector
  double dyn_alpha = 0;      // FedDyn: g - h_i + alpha (y - x); h_i -= alpha (y - x) at the end
  double moon_mu = 0, moon_temperature = 0.5;
  std::vector<TensorSlice> personal{};  // slices that stay with the client
  FloodTerms flood{};
  bool report_loss = false, report_labels = false;  // ClientReport::loss, label_counts

  // Whether clients keep a vector of P floats from round to round.
  bool needs_state() const {
    return use_control || dyn_alpha > 0 || moon_mu > 0 || !personal.empty();
  }
};

// What holds for the whole run.
struct AggregatorContext {
  int64_t num_parameters = 0;  // P
  int64_t num_clients = 0;     // N of the run, in whatever part of them a round has
  int64_t num_rounds = 1;
  double client_lr = 0.1;  // of the clients' optimizer
  double client_momentum = 0;
  std::vector<TensorSlice> tensors{};
};

// The accepted updates of a round.
struct Updates {
  std::span<const ClientReport> reports_K;
  std::vector<const float*> values_K;  // [P] each
  int64_t num_parameters = 0;
};

// Calls a function on every named vector that lasts from round to round.
using StateVisitor = std::function<void(const std::string& name, std::vector<float>& values)>;

// Not thread-safe; one per run and rank, all with equal states. Every function is called on every
// rank with equal arguments, `combine` with the updates of all ranks, and must give equal bits
// there. The functions see accepted updates only and never none.
class Aggregator {
 public:
  Aggregator(AggregatorConfig config, AggregatorContext context)
      : config_(std::move(config)), context_(std::move(context)) {}
  virtual ~Aggregator() = default;

  virtual ClientTerms client_terms(int64_t /*round*/) const { return {}; }
  // A vector that goes to the clients beside the model; empty: zeros (SCAFFOLD's c).
  virtual std::span<const float> broadcast() const { return {}; }
  // Vectors of P floats in an update: D_k, then what the strategy asks for beyond it, which is
  // averaged over the clients equally.
  virtual int64_t num_vectors() const { return 1; }
  // Updates that a round needs; with fewer the model stays as it is.
  virtual int64_t min_updates() const { return 1; }
  // Whether a lone client's update is taken as it is (at the first round).
  virtual bool keeps_lone_update() const { return true; }

  // What each update counts before the strategy has its say; sums to 1. InvalidArgument if a
  // report lacks what is needed.
  virtual Result<std::vector<double>> shares(std::span<const ClientReport> reports_K);
  // The weights w_k of the combination sum w_k D_k; need not sum to 1.
  virtual Result<std::vector<double>> weights(std::span<const ClientReport> /*reports_K*/,
                                              std::vector<double> shares_K) {
    return shares_K;
  }

  // Rules that are no weighted sum say so and combine by themselves; `weights_K` becomes what each
  // update counted, on average over the coordinates.
  virtual bool needs_all_updates() const { return false; }
  virtual void combine(const Updates& updates, std::span<double> weights_K,
                       std::span<double> delta_P);

  // The combined update becomes the server's step, in place: x += delta. [P * num_vectors].
  virtual void step(std::span<const ClientReport> reports_K, std::span<const double> weights_K,
                    std::span<double> delta);

  virtual void visit_state(const StateVisitor& /*visit*/) {}

  const AggregatorConfig& config() const { return config_; }
  const AggregatorContext& context() const { return context_; }

 protected:
  // Weights of equal or sample-counted clients, times (1 + staleness)^-exponent; sums to 1.
  std::vector<double> normalized(std::span<const ClientReport> reports_K,
                                 std::vector<double> raw_K) const;

 private:
  AggregatorConfig config_;
  AggregatorContext context_;
};

using AggregatorRegistry = Registry<Aggregator, const AggregatorConfig&, const AggregatorContext&>;
void register_builtin_aggregators(AggregatorRegistry& registry);

// The strategy of `config`. InvalidArgument with the nearest name if it, or its base, is unknown.
Result<std::unique_ptr<Aggregator>> make_aggregator(const AggregatorConfig& config,
                                                    const AggregatorContext& context);

}  // namespace gradus::federated
