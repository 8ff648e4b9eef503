// SPDX-License-Identifier: Apache-2.0
#include "privacy/gaussian.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>

#include "common/check.h"
#include "common/parallel.h"
#include "privacy/internal/crypto.h"

namespace gradus::privacy {

Result<double> clip_update(std::span<float> values_P, double clip_norm) {
  GRADUS_CHECK(clip_norm > 0, "clip_update needs a positive norm");
  double squares = 0;
  for (size_t i = 0; i < values_P.size(); ++i) {
    if (!std::isfinite(values_P[i])) {
      return invalid_argument("update: value {} is {}; all must be finite", i, values_P[i]);
    }
    squares += static_cast<double>(values_P[i]) * values_P[i];
  }
  const double norm = std::sqrt(squares);
  if (norm <= clip_norm) return norm;
  // Products are rounded up by at most 2^-24 of themselves.
  const double scale = clip_norm / norm * (1 - 0x1.0p-20);
  for (float& value : values_P) value = static_cast<float>(value * scale);
  return norm;
}

Result<PrivateWeights> private_weights(std::span<const int64_t> num_samples_K, int64_t sample_cap,
                                       double expected_weight) {
  if (sample_cap < 1 || !(expected_weight > 0)) {
    return invalid_argument("privacy: sample cap {} and expected weight {}; both must be above 0",
                            sample_cap, expected_weight);
  }
  PrivateWeights result;
  for (const int64_t num_samples : num_samples_K) {
    if (num_samples < 0) {
      return invalid_argument("privacy: a client with {} samples; it must be at least 0",
                              num_samples);
    }
    result.weights_K.push_back(static_cast<double>(std::min(num_samples, sample_cap)) /
                               static_cast<double>(sample_cap) / expected_weight);
  }
  result.max_weight = 1 / expected_weight;
  return result;
}

GaussianNoise GaussianNoise::fresh() {
  Bytes32 key;
  internal::system_entropy(key);
  return GaussianNoise(key);
}

GaussianNoise GaussianNoise::from_seed(uint64_t seed) {
  return GaussianNoise(
      internal::Transcript("noise of a simulation").add(static_cast<int64_t>(seed)).hash());
}

void GaussianNoise::add(double stddev, int64_t round, int64_t purpose,
                        std::span<double> values_P) const {
  constexpr int64_t kChunk = 1024;
  constexpr int64_t kValuesPerBlock = 8;  // of 64 bytes
  const Bytes32 key = internal::Transcript("noise").add(round).add(purpose).hash(key_);
  const auto length = static_cast<int64_t>(values_P.size());
  parallel_for((length + kChunk - 1) / kChunk, 8, [&](int64_t first, int64_t last) {
    std::array<uint64_t, kChunk> words;
    const auto uniform = [&words](int64_t i) {  // in (0, 1)
      return (static_cast<double>(words[static_cast<size_t>(i)] >> 11) + 0.5) * 0x1.0p-53;
    };
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, count = std::min(kChunk, length - begin);
      internal::key_stream(key, static_cast<uint32_t>(begin / kValuesPerBlock),
                           {reinterpret_cast<uint8_t*>(words.data()), sizeof(words)});
      for (int64_t i = 0; i < count; ++i) {
        // Box and Muller: a pair of words gives two values.
        const double radius = std::sqrt(-2 * std::log(uniform(i & ~int64_t{1})));
        const double angle = 2 * std::numbers::pi * uniform(i | 1);
        values_P[static_cast<size_t>(begin + i)] +=
            stddev * radius * ((i & 1) == 0 ? std::cos(angle) : std::sin(angle));
      }
    }
  });
}

void AdaptiveClip::update(double unclipped_fraction) {
  clip_norm_ *= std::exp(-rate_ * (unclipped_fraction - quantile_));
}

Result<double> update_noise_multiplier(double noise_multiplier, double count_stddev) {
  if (!(2 * count_stddev > noise_multiplier) || !(noise_multiplier > 0)) {
    return invalid_argument(
        "privacy: noise of {} on the count of unclipped updates is too little for noise multiplier "
        "{}; it must be above half of it",
        count_stddev, noise_multiplier);
  }
  return 1 / std::sqrt(1 / (noise_multiplier * noise_multiplier) -
                       1 / (4 * count_stddev * count_stddev));
}

}  // namespace gradus::privacy
