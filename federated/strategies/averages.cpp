// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "federated/internal/strategies.h"

// Strategies that differ in the weights of a mean, or in what clients do before it.
namespace gradus::federated::internal {
namespace {

// McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.
class FedAvg : public Aggregator {
 public:
  using Aggregator::Aggregator;
};

// Li et al. 2020, arXiv:1812.06127, Eq. 2: the term is the clients'.
class FedProx final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  ClientTerms client_terms(int64_t) const override { return {.prox_mu = config().prox_mu}; }
};

// Li, He and Song 2021, arXiv:2103.16257, Eq. 4: the term is the clients'.
class Moon final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  ClientTerms client_terms(int64_t) const override {
    return {.moon_mu = config().moon_mu, .moon_temperature = config().moon_temperature};
  }
};

// Li et al. 2021, arXiv:2102.07623: normalisation layers stay with the clients.
class FedBn final : public FedAvg {
 public:
  FedBn(const AggregatorConfig& config, const AggregatorContext& context)
      : FedAvg(config, context) {
    for (const TensorSlice& tensor : context.tensors) {
      const auto is_in_name = [&](const std::string& text) {
        return tensor.name.find(text) != std::string::npos;
      };
      if (std::any_of(config.personal.begin(), config.personal.end(), is_in_name)) {
        personal_.push_back(tensor);
      }
    }
  }
  ClientTerms client_terms(int64_t) const override { return {.personal = personal_}; }
  bool keeps_lone_update() const override { return personal_.empty(); }
  void step(std::span<const ClientReport> reports, std::span<const double> weights,
            std::span<double> delta) override {
    FedAvg::step(reports, weights, delta);
    for (const TensorSlice& slice : personal_) {
      std::fill_n(delta.begin() + slice.begin, slice.size, 0.0);
    }
  }

 private:
  std::vector<TensorSlice> personal_;
};

// Nguyen et al. 2022, arXiv:2106.06639: a mean over the buffer, older updates weighed down.
class FedBuff final : public FedAvg {
 public:
  using FedAvg::FedAvg;
};

// Wang et al. 2020, arXiv:2007.07481, Eq. 6 and 7: D_k / |a_k|, times the mean |a|. With momentum
// rho, |a| = (t - rho (1 - rho^t) / (1 - rho)) / (1 - rho) after t steps; without, t.
class FedNova final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  Result<std::vector<double>> weights(std::span<const ClientReport> reports,
                                      std::vector<double> shares) override {
    std::vector<double> sizes;
    double mean = 0;
    for (size_t k = 0; k < reports.size(); ++k) {
      if (reports[k].num_steps.value_or(0) < 1) {
        return invalid_argument("client {}: no num_steps of at least 1, which fednova needs",
                                reports[k].client_id);
      }
      const auto t = static_cast<double>(*reports[k].num_steps);
      const double rho = context().client_momentum;
      sizes.push_back((t - rho * (1 - std::pow(rho, t)) / (1 - rho)) / (1 - rho));
      mean += shares[k] * sizes[k];
    }
    for (size_t k = 0; k < shares.size(); ++k) shares[k] *= mean / sizes[k];
    return shares;
  }
};

// Jhunjhunwala, Wang and Joshi 2023, arXiv:2301.09604, Eq. 8, with shares for 1 / M.
class FedExp final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  void step(std::span<const ClientReport> reports, std::span<const double> weights,
            std::span<double> delta) override {
    double of_updates = 0, of_mean = 0;
    for (size_t k = 0; k < reports.size(); ++k) of_updates += weights[k] * reports[k].squared_norm;
    for (const double d : delta) of_mean += d * d;
    const double lr = std::max(1.0, of_updates / (2 * (of_mean + config().exp_eps)));
    for (double& d : delta) d *= config().server_lr * lr;
  }
};

// Ye et al. 2023, arXiv:2305.19229, Eq. 5: p_k ~ relu(share - a d_k + b), d_k the Euclidean
// distance of the client's label mix from the even one.
class FedDisco final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  ClientTerms client_terms(int64_t) const override { return {.report_labels = true}; }
  Result<std::vector<double>> weights(std::span<const ClientReport> reports,
                                      std::vector<double> shares) override {
    const std::vector<double> given = shares;
    double sum = 0;
    for (size_t k = 0; k < reports.size(); ++k) {
      double labels = 0, squares = 0;
      for (const int64_t count : reports[k].label_counts) labels += static_cast<double>(count);
      if (labels <= 0) {
        return invalid_argument("client {}: no label_counts, which feddisco needs",
                                reports[k].client_id);
      }
      const double even = 1 / static_cast<double>(reports[k].label_counts.size());
      for (const int64_t count : reports[k].label_counts) {
        squares += std::pow(static_cast<double>(count) / labels - even, 2);
      }
      shares[k] =
          std::max(0.0, shares[k] - config().disco_a * std::sqrt(squares) + config().disco_b);
      sum += shares[k];
    }
    if (sum == 0) return given;  // all mixes too uneven for any to be preferred
    for (double& share : shares) share /= sum;
    return shares;
  }
};

// q-FedAvg, Li et al. 2020, arXiv:1905.10497, Algorithm 2: with L = 1 / client_lr,
// w_k = s_k F_k^q L / sum_i s_i (q F_i^(q-1) |L D_i|^2 + L F_i^q), s_k = K times the share.
class QFedAvg final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  ClientTerms client_terms(int64_t) const override { return {.report_loss = config().q > 0}; }
  bool keeps_lone_update() const override { return config().q == 0; }
  Result<std::vector<double>> weights(std::span<const ClientReport> reports,
                                      std::vector<double> shares) override {
    const double q = config().q, l = 1 / context().client_lr;
    double sum = 0;
    for (size_t k = 0; k < reports.size(); ++k) {
      if (q == 0) break;
      if (!reports[k].loss || *reports[k].loss < 0) {
        return invalid_argument("client {}: no loss of at least 0, which qfedavg needs",
                                reports[k].client_id);
      }
    }
    for (size_t k = 0; k < reports.size(); ++k) {
      // The least positive double: a loss of 0 may have a power that is not finite.
      const double f = q == 0 ? 1 : std::max(*reports[k].loss, 1e-300);
      const double slope = q == 0 ? 0 : q * std::pow(f, q - 1) * l * l * reports[k].squared_norm;
      sum += shares[k] * (slope + l * std::pow(f, q));
      shares[k] *= l * std::pow(f, q);
    }
    for (double& share : shares) share = sum > 0 ? share / sum : 0;
    return shares;
  }
};

// Agnostic federated learning, Mohri et al. 2019, arXiv:1902.00146, Section 4 (the mixture over
// clients ascends along their losses and is projected onto the simplex), for the clients of a round
// among each other: their part of the whole mixture stays what it was.
class Afl final : public FedAvg {
 public:
  Afl(const AggregatorConfig& config, const AggregatorContext& context)
      : FedAvg(config, context),
        mixture_(static_cast<size_t>(context.num_clients),
                 1.0f / static_cast<float>(std::max<int64_t>(context.num_clients, 1))) {}
  ClientTerms client_terms(int64_t) const override { return {.report_loss = true}; }
  Result<std::vector<double>> weights(std::span<const ClientReport> reports,
                                      std::vector<double> /*shares*/) override {
    double mass = 0;
    std::vector<double> mix;
    for (const ClientReport& report : reports) {
      if (!report.loss) {
        return invalid_argument("client {}: no loss, which afl needs", report.client_id);
      }
      mix.push_back(mixture_.at(static_cast<size_t>(report.client_id)));
      mass += mix.back();
    }
    for (size_t k = 0; k < mix.size(); ++k) {
      mix[k] = (mass > 0 ? mix[k] / mass : 1 / static_cast<double>(mix.size())) +
               config().afl_lr * *reports[k].loss;
    }
    project_onto_simplex(mix);
    for (size_t k = 0; k < mix.size(); ++k) {
      mixture_[static_cast<size_t>(reports[k].client_id)] = static_cast<float>(mix[k] * mass);
    }
    return mix;
  }
  void visit_state(const StateVisitor& visit) override { visit("mixture", mixture_); }

 private:
  // Duchi et al. 2008, "Efficient projections onto the l1-ball", Figure 1.
  static void project_onto_simplex(std::vector<double>& values) {
    std::vector<double> sorted = values;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double sum = 0, shift = 0;
    for (size_t i = 0; i < sorted.size(); ++i) {
      sum += sorted[i];
      const double candidate = (sum - 1) / static_cast<double>(i + 1);
      if (sorted[i] > candidate) shift = candidate;
    }
    for (double& value : values) value = std::max(0.0, value - shift);
  }

  std::vector<float> mixture_;
};

// Sun et al. 2019, arXiv:1911.07963, Section 4: updates of at most clip_norm.
class NormClipping final : public FedAvg {
 public:
  using FedAvg::FedAvg;
  Result<std::vector<double>> weights(std::span<const ClientReport> reports,
                                      std::vector<double> shares) override {
    for (size_t k = 0; k < shares.size(); ++k) {
      const double norm = std::sqrt(reports[k].squared_norm);
      if (norm > config().clip_norm) shares[k] *= config().clip_norm / norm;
    }
    return shares;
  }
};

// FLood (arXiv:2602.01039) over another strategy: its shares take the place of the base's, and its
// sample weights join the base's terms.
class Flood final : public Aggregator {
 public:
  Flood(const AggregatorConfig& config, const AggregatorContext& context,
        std::unique_ptr<Aggregator> base)
      : Aggregator(config, context), base_(std::move(base)) {}

  ClientTerms client_terms(int64_t round) const override {
    ClientTerms terms = base_->client_terms(round);
    terms.flood = {.is_on = true,
                   .config = config().flood,
                   .weight = flood_weight(config().flood, round, context().num_rounds)};
    return terms;
  }
  std::span<const float> broadcast() const override { return base_->broadcast(); }
  int64_t num_vectors() const override { return base_->num_vectors(); }
  int64_t min_updates() const override { return base_->min_updates(); }
  bool keeps_lone_update() const override { return base_->keeps_lone_update(); }
  bool needs_all_updates() const override { return base_->needs_all_updates(); }

  Result<std::vector<double>> shares(std::span<const ClientReport> reports) override {
    if (config().flood.alpha == 0) return base_->shares(reports);  // to the bit
    std::vector<ClientReport> fresh(reports.begin(), reports.end());
    bool is_stale = false;
    for (ClientReport& report : fresh) {
      if (!report.score) {
        return invalid_argument(
            "client {}: no score, which flood needs; set alpha to 0 to do "
            "without",
            report.client_id);
      }
      is_stale |= report.staleness > 0;
      report.staleness = 0;
    }
    Result<std::vector<double>> shares = base_->shares(fresh);
    if (!shares.ok()) return shares.status();
    std::vector<double> mixed = flood_shares(config().flood, fresh, std::move(*shares));
    return is_stale ? normalized(reports, std::move(mixed)) : mixed;
  }
  Result<std::vector<double>> weights(std::span<const ClientReport> reports,
                                      std::vector<double> shares) override {
    return base_->weights(reports, std::move(shares));
  }
  void combine(const Updates& updates, std::span<double> weights,
               std::span<double> delta) override {
    base_->combine(updates, weights, delta);
  }
  void step(std::span<const ClientReport> reports, std::span<const double> weights,
            std::span<double> delta) override {
    base_->step(reports, weights, delta);
  }
  void visit_state(const StateVisitor& visit) override { base_->visit_state(visit); }

 private:
  std::unique_ptr<Aggregator> base_;
};

Result<std::unique_ptr<Aggregator>> make_flood(const AggregatorConfig& config,
                                               const AggregatorContext& context) {
  if (config.base == "flood") {
    return invalid_argument("base is flood; flood must stand on another strategy, e.g. fedavg");
  }
  AggregatorConfig base = config;
  base.name = config.base;
  Result<std::unique_ptr<Aggregator>> made = make_aggregator(base, context);
  if (!made.ok()) return made.status().with_prefix("base");
  return std::unique_ptr<Aggregator>(std::make_unique<Flood>(config, context, std::move(*made)));
}

}  // namespace

void register_averages(AggregatorRegistry& registry) {
  registry.add("fedavg", factory<FedAvg>());
  registry.add("fedprox", factory<FedProx>());
  registry.add("moon", factory<Moon>());
  registry.add("fedbn", factory<FedBn>());
  registry.add("fedbuff", factory<FedBuff>());
  registry.add("fednova", factory<FedNova>());
  registry.add("fedexp", factory<FedExp>());
  registry.add("feddisco", factory<FedDisco>());
  registry.add("qfedavg", factory<QFedAvg>());
  registry.add("afl", factory<Afl>());
  registry.add("norm_clipping", factory<NormClipping>());
  registry.add("flood", make_flood);
}

}  // namespace gradus::federated::internal
