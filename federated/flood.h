// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/config/field_visitor.h"
#include "federated/model_delta.h"

// FLood (arXiv:2602.01039): clients weigh samples that look out of distribution, by a rank of their
// energy, and the server mixes mean energies into the weights of clients. `paper` is the released
// code to the letter, without its defects; `normalized` keeps the size of a client's step and makes
// scores comparable (docs/federated.md). All functions are pure and thread-safe.
namespace gradus::federated {

enum class FloodMode { kPaper, kNormalized };
enum class FloodScore { kEnergy, kMsp, kMaxLogit, kGen };
enum class FloodSchedule { kConstant, kLinear, kQuadratic, kCosine, kSigmoid, kSaturating };
// Which samples of a batch get the weight. The last three are the controls of a study: the high
// scores, as many at random, and every sample by the batch's mean weight (the same gradient size
// without any choice).
enum class FloodFlag { kLow, kNone, kHigh, kRandom, kEvery };

struct FloodConfig {
  FloodMode mode = FloodMode::kPaper;
  double alpha = 0.5;
  FloodFlag flag = FloodFlag::kLow;
  double quantile = 0.7;
  FloodSchedule schedule = FloodSchedule::kCosine;
  double amplitude = 50;
  double max_weight = 3;
  int64_t ramp_rounds = 0;
  FloodScore score = FloodScore::kEnergy;
  double temperature = 1;
  double sharpness = 1;
  double max_share = 3;

  void visit(FieldVisitor& v);
};

// What clients need in a round: the weight of flagged samples, W(t).
struct FloodTerms {
  bool is_on = false;
  FloodConfig config{};
  double weight = 1;
};

// The schedule's share h(s / T) of its end in [0, 1]: 0 at s = 0, 1 from s = T on. `ramp` T >= 1.
double schedule_share(FloodSchedule schedule, int64_t s, int64_t ramp);
// W(t) of round t (the first is 0) of num_rounds: 2 a h(s) with s = t - 1, and 1 in round 0, in
// paper mode; 1 + (max_weight - 1) h(t) in normalized mode.
double flood_weight(const FloodConfig& config, int64_t round, int64_t num_rounds);

// S(x) of one row of logits, higher for what the model knows; C >= 1. Energy is T log sum exp(z/T).
double ood_score(FloodScore score, double temperature, std::span<const float> logits_C);

// Flags of a batch: scores strictly below the lower-interpolated quantile (kHigh: of the negated
// scores; kRandom: as many as kLow, chosen by `seed`; kNone and kEvery: none).
std::vector<bool> flood_flags(const FloodConfig& config, std::span<const double> scores_B,
                              uint64_t seed);

// w_i of the batch, constants for the gradient of (1/B) sum w_i loss_i.
std::vector<double> flood_sample_weights(const FloodTerms& terms, std::span<const double> scores_B,
                                         uint64_t seed);

// p_k from the shares without FLood (those of sample counts, under FedAvg) and the scores, which
// every report has; sums to 1, never negative. In paper mode scores are shifted to a least one of 0
// if one of them is not positive. With alpha = 0 the shares themselves.
std::vector<double> flood_shares(const FloodConfig& config, std::span<const ClientReport> reports_K,
                                 std::vector<double> shares_K);

}  // namespace gradus::federated
