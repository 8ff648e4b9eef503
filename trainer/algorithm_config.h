// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// The section `trainer.algorithm`. An algorithm is a preset, a name for values of the other keys;
// keys that are written override those of the preset. docs/algorithms.md has the formulas. Letters
// there and in all of trainer/algorithms: lp, lo, lb, lf are the log-probs of a token under the
// policy now, at the start of the step, when it was sampled, and under the initial model; A is its
// advantage.
namespace gradus::trainer {

// How the losses of tokens become one number. N tokens and B sequences take part in the mini-batch
// over all ranks, n in a sequence, L is aggregation_length.
enum class Aggregation {
  kTokenMean,            // sum / N
  kTokenSum,             // sum
  kSeqMeanTokenSum,      // sum / B
  kSeqMeanTokenSumNorm,  // sum / (B L)
  kSeqMeanTokenMean      // sum over sequences of (sum / n), / B
};

enum class Scaling { kGroup, kBatch, kNone };   // of advantages
enum class Deviation { kSample, kPopulation };  // divides by n - 1, by n

// Estimators of KL(policy || initial) with d = lf - lp. The last two have the value of k1 and k3
// and the gradient of k2.
enum class KlKind { kK1, kAbs, kK2, kK3, kK3Corrected, kK1Straight, kK3Straight };
enum class KlPlace { kLoss, kReward };
enum class KlController { kFixed, kAdaptive };

// The pull towards the initial model.
struct KlConfig {
  KlKind kind = KlKind::kK3;
  double coef = 0.0;  // 0: off
  KlPlace place = KlPlace::kLoss;
  bool is_weighted = false;
  KlController controller = KlController::kFixed;
  double target = 0.1;
  double horizon = 10000;

  void visit(FieldVisitor& v);
};

enum class CorrectionKind { kNone, kTisToken, kTisSequence, kIcepop, kGeometric, kReject, kBypass };
enum class CorrectionLevel { kToken, kSequence };

// For tokens that other weights sampled than those at the start of the step, with the ratio rho =
// exp(lo - lb).
struct CorrectionConfig {
  CorrectionKind kind = CorrectionKind::kNone;
  CorrectionLevel level = CorrectionLevel::kToken;  // of icepop and reject
  std::optional<double> low, high;                  // unset: those of the kind
  double veto = 0.0;                                // 0: off
  bool is_normalized = false;
  bool weighs_kept = false;  // of geometric and reject

  void visit(FieldVisitor& v);
};

struct SapoConfig {
  double tau_positive = 1.0, tau_negative = 1.05;

  void visit(FieldVisitor& v);
};

struct VespoConfig {
  double k_positive = 2.0, lambda_positive = 3.0, k_negative = 3.0, lambda_negative = 2.0;

  void visit(FieldVisitor& v);
};

// Of clip_cov and kl_cov.
struct CovarianceConfig {
  double fraction = 2e-4;
  double low = 1.0, high = 5.0;
  double kl_coef = 0.1;

  void visit(FieldVisitor& v);
};

// The defaults are those of the preset `grpo`.
struct AlgorithmConfig {
  std::string name = "grpo";       // of the preset
  std::string loss = "ppo";        // in the registry of policy losses
  std::string advantage = "grpo";  // in the registry of advantages
  Aggregation aggregation = Aggregation::kTokenMean;
  std::optional<int64_t> aggregation_length;  // unset: rollout.max_new_tokens
  KlConfig kl;
  CorrectionConfig correction;
  double clip_low = 0.2;
  double clip_high = 0.28;
  double clip_dual = 3.0;                // 0: off
  double delta = 0.0;                    // 0: off
  std::optional<double> opsm_threshold;  // unset: off
  double top_entropy_quantile = 1.0;
  bool mask_truncated = false;
  std::optional<Scaling> scaling;  // unset: that of the advantage
  Deviation deviation = Deviation::kSample;
  double std_epsilon = 1e-6;
  double gamma = 1.0;
  double gae_lambda = 1.0;
  SapoConfig sapo;
  VespoConfig vespo;
  CovarianceConfig covariance;
  double m2_threshold = 0.04;
  double behavior_bound = 5.0;

  void visit(FieldVisitor& v);
};

// Fills in what is unset and depends on other keys, so that a printed configuration shows it.
void resolve(AlgorithmConfig& config, int64_t max_new_tokens);

// InvalidArgument lists options that contradict each other, both keys named.
Status validate(const AlgorithmConfig& config);

// Whether the advantage compares the responses of a group, of which it then needs two.
bool compares_groups(const std::string& advantage);
Scaling default_scaling(const std::string& advantage);

// Bounds of rho that a correction has unless they are written; {0, 0} for none, which has no use
// for them.
struct RhoBounds {
  double low = 0, high = 0;
};
RhoBounds default_bounds(CorrectionKind kind);

std::vector<std::string> preset_names();

// The values that a preset stands for; a bug if there is no such preset.
AlgorithmConfig preset(const std::string& name);

}  // namespace gradus::trainer
