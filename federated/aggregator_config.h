// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"
#include "federated/flood.h"

namespace gradus::federated {

// What a client's weight is made of before the strategy has its say.
enum class Weighting { kSamples, kUniform };

// The section `federated.strategy`. A strategy's name stands for values of the other keys
// (strategy_preset); keys that are written override those. docs/federated.md has the formulas.
struct AggregatorConfig {
  std::string name = "fedavg";
  std::string base = "fedavg";  // of flood
  Weighting weighting = Weighting::kSamples;
  double server_lr = 1;
  double momentum = 0.9;
  double beta1 = 0.9, beta2 = 0.99, tau = 1e-3;
  std::optional<double> initial_v{};
  double prox_mu = 0.01;
  double moon_mu = 1, moon_temperature = 0.5;
  double q = 1;
  double afl_lr = 0.1;
  double disco_a = 0.5, disco_b = 0.1;
  double dyn_alpha = 0.1;
  double exp_eps = 1e-3;
  int64_t num_byzantine = 1;
  int64_t num_selected = 0;
  double trim_fraction = 0.2;
  double clip_norm = 10;
  int64_t num_iterations = 100;
  double staleness_exponent = 0;
  std::vector<std::string> personal{};
  FloodConfig flood{};

  void visit(FieldVisitor& v);
};

// The values that `name` stands for (under flood those of `base`); those of fedavg for a name that
// is not known.
AggregatorConfig strategy_preset(const std::string& name, const std::string& base = "fedavg");

}  // namespace gradus::federated
