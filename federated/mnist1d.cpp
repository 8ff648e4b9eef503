// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>

#include "common/rng.h"
#include "federated/client_data.h"

namespace gradus::federated {
namespace {

constexpr size_t kTemplate = 12, kResampled = 72, kFinal = 40;
constexpr int64_t kLeastPadding = 36, kMostPadding = 60, kShifts = 48;
constexpr double kEps = 1e-8, kScale = 0.4, kCorrelated = 0.25, kIid = 0.02, kShear = 0.75;
constexpr double kSigma = 2;  // of the Gaussian that correlates the noise
constexpr int64_t kRadius = 8;

constexpr double kTemplates[10][kTemplate] = {{5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5},
                                              {5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5},
                                              {5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5},
                                              {5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5},
                                              {5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5},
                                              {5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5},
                                              {5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5},
                                              {5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5},
                                              {5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5},
                                              {5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5}};

// Whitened, from 0 at its start, a sixth of the size.
std::vector<double> template_of(int32_t label) {
  const auto& raw = kTemplates[label];
  double mean = 0, variance = 0;
  for (const double x : raw) mean += x / kTemplate;
  for (const double x : raw) variance += (x - mean) * (x - mean) / kTemplate;
  std::vector<double> values;
  for (const double x : raw) values.push_back((x - raw[0]) / std::sqrt(variance) / 6);
  return values;
}

// i-th of `count` even steps from 0 to 1.
double even_step(size_t i, size_t count) {
  return i + 1 == count ? 1.0 : static_cast<double>(i) * (1.0 / static_cast<double>(count - 1));
}

std::vector<double> resample(const std::vector<double>& values, size_t count) {
  std::vector<double> result;
  size_t high = 1;
  for (size_t i = 0; i < count; ++i) {
    const double at = even_step(i, count);
    while (high + 1 < values.size() && even_step(high, values.size()) < at) ++high;
    const double low_at = even_step(high - 1, values.size());
    const double slope =
        (values[high] - values[high - 1]) / (even_step(high, values.size()) - low_at);
    result.push_back(slope * (at - low_at) + values[high - 1]);
  }
  return result;
}

// Gaussian of four deviations either way, mirrored at the ends with the end repeated.
std::vector<double> smoothed(const std::vector<double>& values) {
  std::array<double, 2 * kRadius + 1> kernel{};
  double sum = 0;
  for (int64_t i = -kRadius; i <= kRadius; ++i) {
    const double x = static_cast<double>(i) / kSigma;
    sum += kernel[static_cast<size_t>(i + kRadius)] = std::exp(-0.5 * x * x);
  }
  const auto count = static_cast<int64_t>(values.size());
  std::vector<double> result(values.size(), 0.0);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = -kRadius; j <= kRadius; ++j) {
      int64_t at = i + j;
      if (at < 0) at = -at - 1;
      if (at >= count) at = 2 * count - 1 - at;
      result[static_cast<size_t>(i)] +=
          kernel[static_cast<size_t>(j + kRadius)] / sum * values[static_cast<size_t>(at)];
    }
  }
  return result;
}

}  // namespace

std::vector<double> mnist1d_row(int32_t label, const Mnist1dDraws& draws) {
  std::vector<double> row = template_of(label);
  for (double& x : row) x += kEps;  // so that the template is not taken for padding below
  row.resize(kTemplate + static_cast<size_t>(draws.padding), 0.0);
  row = resample(row, kResampled);
  for (double& x : row) x *= 1 + kScale * (draws.scale - 0.5);
  std::rotate(row.begin(), row.end() - draws.shift, row.end());
  std::vector<double> noise = draws.correlated_noise_72;
  for (double& x : noise) x *= kCorrelated;
  noise = smoothed(noise);
  for (size_t i = 0; i < kResampled; ++i) {
    if (row[i] == 0) row[i] = noise[i];
    row[i] += kIid * draws.iid_noise_72[i];
    row[i] -= kShear * (draws.shear - 0.5) * (even_step(i, kResampled) - 0.5);
  }
  return resample(row, kFinal);
}

LabelledRows make_mnist1d(int64_t num_rows, uint64_t seed) {
  LabelledRows rows{.num_features = kFinal, .num_classes = 10};
  std::vector<double> all;
  for (int64_t i = 0; i < num_rows; ++i) {
    RngSequence random(hash64({seed, static_cast<uint64_t>(i)}), RngStream::kTask);
    Mnist1dDraws draws;
    draws.padding = random.between(kLeastPadding, kMostPadding);
    draws.scale = random.uniform();
    draws.shift = static_cast<int64_t>(random.below(kShifts));
    for (size_t j = 0; j < kResampled; ++j) draws.correlated_noise_72.push_back(random.normal());
    for (size_t j = 0; j < kResampled; ++j) draws.iid_noise_72.push_back(random.normal());
    draws.shear = random.uniform();
    const auto label = static_cast<int32_t>(i % 10);
    rows.labels_M.push_back(label);
    const std::vector<double> row = mnist1d_row(label, draws);
    all.insert(all.end(), row.begin(), row.end());
  }
  // All numbers together to mean 0 and deviation 1.
  double mean = 0, square = 0;
  for (const double x : all) mean += x;
  mean /= static_cast<double>(all.size());
  for (const double x : all) square += (x - mean) * (x - mean);
  const double deviation = std::sqrt(square / static_cast<double>(all.size()));
  for (const double x : all) rows.features_MF.push_back(static_cast<float>((x - mean) / deviation));
  return rows;
}

}  // namespace gradus::federated
