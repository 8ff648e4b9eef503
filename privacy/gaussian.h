// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"
#include "privacy/secure_messages.h"

// The mechanism of DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963): updates are clipped, summed
// with weights that no client can move, and the sum gets Gaussian noise. privacy/accounting.h says
// what that costs; docs/privacy.md, what must hold for the number to be true.
namespace gradus::privacy {

// Scales the update so that its norm is at most `clip_norm` > 0, in exact arithmetic too; returns
// the norm it had. InvalidArgument names the first value that is not finite. Thread-safe.
Result<double> clip_update(std::span<float> values_P, double clip_norm);

// Weights p_k = min(n_k / sample_cap, 1) / expected_weight: the denominator is a constant, the
// weight that a round has on average, so that one client more or less changes nothing but its own
// term. Normalised over the round's participants instead, p_k would move all others' terms as well
// and the sensitivity would be 2 C max p_k. InvalidArgument for values that are not positive.
struct PrivateWeights {
  std::vector<double> weights_K;
  double max_weight = 0;  // that any client could have: p_max = 1 / expected_weight
};
Result<PrivateWeights> private_weights(std::span<const int64_t> num_samples_K, int64_t sample_cap,
                                       double expected_weight);

// Standard deviation of the noise of sum_k p_k clip(D_k): one client moves it by C p_max at most.
// With equal weights 1 / n this is z C / n; with unequal ones z C / n would be too little.
inline double noise_stddev(double noise_multiplier, double clip_norm, double max_weight) {
  return noise_multiplier * clip_norm * max_weight;
}

// Gaussian noise from ChaCha20's key stream: a draw is a function of key, round and place, so
// results depend on neither threads nor resumption. The guarantee holds against all who do not know
// the key. Thread-safe.
class GaussianNoise {
 public:
  // A key of the system's randomness: for real use.
  static GaussianNoise fresh();
  // A key made of a run's seed: for simulations that must repeat. Whoever knows the seed can take
  // the noise off again.
  static GaussianNoise from_seed(uint64_t seed);

  // values_P += stddev * N(0, 1); `purpose` keeps two uses in one round apart.
  void add(double stddev, int64_t round, int64_t purpose, std::span<double> values_P) const;

 private:
  explicit GaussianNoise(const Bytes32& key) : key_(key) {}
  Bytes32 key_;
};

// The clipping norm that follows a quantile of the norms (Andrew et al. 2021, arXiv:1905.03871,
// section 2.2): C <- C exp(-rate (b - quantile)), b the fraction of updates that were NOT clipped.
// Not thread-safe.
class AdaptiveClip {
 public:
  // All > 0, quantile < 1.
  AdaptiveClip(double clip_norm, double quantile, double rate)
      : clip_norm_(clip_norm), quantile_(quantile), rate_(rate) {}

  double clip_norm() const { return clip_norm_; }
  void update(double unclipped_fraction);

 private:
  double clip_norm_, quantile_, rate_;
};

// The multiplier z_D of the updates' noise, so that they and the count of unclipped ones, with
// noise of `count_stddev`, together cost what one Gaussian of `noise_multiplier` does: z_D^-2 =
// z^-2 - (2 s)^-2 (Andrew et al., Theorem 1). InvalidArgument if the count alone costs more than
// all.
Result<double> update_noise_multiplier(double noise_multiplier, double count_stddev);

}  // namespace gradus::privacy
