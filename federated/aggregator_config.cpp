// SPDX-License-Identifier: Apache-2.0
#include "federated/aggregator_config.h"

namespace gradus::federated {

void AggregatorConfig::visit(FieldVisitor& v) {
  v.field("name", name, "Strategy; docs/federated.md lists them. Sets the defaults of the others.");
  v.field("base", base, "Strategy under flood.");
  v.field("weighting", weighting, "Clients count by their samples, or equally.",
          one_of({"samples", "uniform"}));
  v.field("server_lr", server_lr, "Step of the server along the combined update.", greater_than(0));
  v.field("momentum", momentum, "Of the server: fedavgm, diloco.", in_half_open(0, 1));
  v.field("beta1", beta1, "fedadagrad, fedadam, fedyogi: mean of updates.", in_half_open(0, 1));
  v.field("beta2", beta2, "fedadam, fedyogi: mean of squares.", in_half_open(0, 1));
  v.field("tau", tau, "fedadagrad, fedadam, fedyogi: added to the root.", greater_than(0));
  v.field("initial_v", initial_v, "The same: mean of squares at the start; unset: tau^2.",
          at_least(0));
  v.field("prox_mu", prox_mu, "fedprox: clients pay mu / 2 |y - x|^2.", at_least(0));
  v.field("moon_mu", moon_mu, "moon: weight of the contrastive term.", at_least(0));
  v.field("moon_temperature", moon_temperature, "moon: of the contrastive term.", greater_than(0));
  v.field("q", q, "qfedavg: exponent of the losses; 0 is plain averaging.", at_least(0));
  v.field("afl_lr", afl_lr, "afl: step of the clients' mixture along their losses.", at_least(0));
  v.field("disco_a", disco_a, "feddisco: price of a label mix that is not even.", at_least(0));
  v.field("disco_b", disco_b, "feddisco: added to every client.");
  v.field("dyn_alpha", dyn_alpha, "feddyn: strength of the dynamic regularizer.", greater_than(0));
  v.field("exp_eps", exp_eps, "fedexp: added to the squared norm of the mean.", greater_than(0));
  v.field("num_byzantine", num_byzantine,
          "krum, multi_krum, bulyan: updates that may be anything (f).", at_least(0));
  v.field("num_selected", num_selected, "multi_krum: updates that are averaged; 0: K - f.",
          at_least(0));
  v.field("trim_fraction", trim_fraction, "trimmed_mean: left out at either end.",
          in_half_open(0, 0.5));
  v.field("clip_norm", clip_norm, "norm_clipping, centered_clipping: largest norm of an update.",
          greater_than(0));
  v.field("num_iterations", num_iterations,
          "geometric_median: steps at most; centered_clipping: steps (of which it wants few).",
          at_least(1));
  v.field("staleness_exponent", staleness_exponent,
          "Weight (1 + s)^-e of an update that is s versions old; 0: such updates are refused.",
          at_least(0));
  v.field("personal", personal,
          "fedbn: tensors whose name has one of these texts in it stay with the clients.");
  flood.visit(v);
}

AggregatorConfig strategy_preset(const std::string& name, const std::string& base) {
  if (name == "flood" && base != "flood") {
    AggregatorConfig under = strategy_preset(base);
    under.name = name;
    under.base = base;
    return under;
  }
  AggregatorConfig config;
  config.name = name;
  if (name == "fedadagrad" || name == "fedadam" || name == "fedyogi") config.server_lr = 0.1;
  if (name == "fedadagrad") config.beta1 = 0;
  if (name == "scaffold" || name == "feddyn" || name == "fedexp" || name == "qfedavg" ||
      name == "multi_krum" || name == "centered_clipping" || name == "fedbuff" ||
      name == "diloco") {
    config.weighting = Weighting::kUniform;
  }
  if (name == "diloco") config.server_lr = 0.7;
  if (name == "centered_clipping") config.num_iterations = 3;
  if (name == "fedbuff") config.staleness_exponent = 0.5;
  if (name == "fedbn") config.personal = {"norm"};
  return config;
}

}  // namespace gradus::federated
