// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_backward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/rng.h"
#include "kernels/device_forward.h"
#include "tests/kernels/head_case.h"
#include "tests/support/device_model.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using gradus::testing::DeviceArray;
using gradus::testing::must;
using gradus::testing::rounded_to_bf16;

float from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

std::vector<double> widened(const std::vector<uint16_t>& values) {
  std::vector<double> all;
  for (const uint16_t value : values) all.push_back(from_bf16(value));
  return all;
}
std::vector<double> widened(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

DeviceArray<uint16_t> normals(const Cuda& cuda, int64_t count, float scale, uint64_t seed) {
  DeviceArray<uint16_t> array(cuda, static_cast<size_t>(count));
  must(check_random_bf16(cuda, array.data(), count, scale, seed));
  return array;
}

std::vector<float> uniform(size_t count, float low, float high, uint64_t seed) {
  std::vector<float> values;
  for (size_t i = 0; i < count; ++i) {
    const double unit = static_cast<double>(hash64({seed, i}) >> 11) * 0x1p-53;
    values.push_back(low + (high - low) * static_cast<float>(unit));
  }
  return values;
}

// |a - b| over |b|, as vectors.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

TEST(DeviceBackwardSmall, NormAndItsWeightAreTheFormulas) {
  GRADUS_NEEDS_GPU(cuda);
  // Fewer rows than parts, and more; one to sixteen times what a block's threads take at once.
  for (const auto& [d, t] : std::vector<std::pair<int64_t, int64_t>>{
           {64, 1}, {576, 150}, {896, 2500}, {1536, 1025}, {4096, 150}, {5120, 40}, {8196, 9}}) {
    const double eps = 1e-6;
    const auto x = uniform(static_cast<size_t>(t * d), -3, 3, 1);
    const auto weight = uniform(static_cast<size_t>(d), 0.5f, 1.5f, 2);
    const auto dy = normals(*cuda, t * d, 1, 3);
    const std::vector<double> slopes = widened(dy.download());
    std::vector<double> dx(x.size(), 1.0), dweight(weight.size(), 2.0);
    for (int64_t r = 0; r < t; ++r) {
      const float* row = x.data() + r * d;
      double squares = 0, dot = 0;
      for (int64_t i = 0; i < d; ++i) {
        squares += double{row[i]} * row[i];
        dot += slopes[static_cast<size_t>(r * d + i)] * weight[static_cast<size_t>(i)] * row[i];
      }
      const double rstd = 1 / std::sqrt(squares / static_cast<double>(d) + eps);
      for (int64_t i = 0; i < d; ++i) {
        const double slope = slopes[static_cast<size_t>(r * d + i)];
        dx[static_cast<size_t>(r * d + i)] +=
            rstd * weight[static_cast<size_t>(i)] * slope -
            row[i] * rstd * rstd * rstd * dot / static_cast<double>(d);
        dweight[static_cast<size_t>(i)] += slope * row[i] * rstd;
      }
    }
    const DeviceArray<float> x_d(*cuda, x), weight_d(*cuda, weight);
    DeviceArray<float> dx_d(*cuda, std::vector<float>(x.size(), 1.0f)),
        sum_d(*cuda, std::vector<float>(weight.size(), 2.0f)),
        partial(*cuda, static_cast<size_t>(norm_backward_partial_floats(d)));
    DeviceArray<uint16_t> rounded(*cuda, x.size());
    must(device_rms_norm_backward(*cuda, {.x_TD = x_d.data(),
                                          .weight_D = weight_d.data(),
                                          .dy = {.bf16_RD = dy.data()},
                                          .r = t,
                                          .d = d,
                                          .eps = static_cast<float>(eps),
                                          .dx_TD = dx_d.data(),
                                          .rounded_TD = rounded.data(),
                                          .partial = partial.data(),
                                          .dweight_D = sum_d.data()}));
    const std::vector<float> got = dx_d.download();
    EXPECT_LT(distance(widened(got), dx), testing::kSumsOfF32) << d;
    EXPECT_LT(distance(widened(sum_d.download()), dweight), testing::kSumsOfF32) << d;
    const std::vector<uint16_t> bf16 = rounded.download();
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      wrong += std::bit_cast<float>(uint32_t{bf16[i]} << 16) != rounded_to_bf16(got[i]);
    }
    EXPECT_EQ(wrong, 0) << d;
  }
}

TEST(DeviceBackwardSmall, NormOfChosenRowsSumsTheirGradients) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t t = 7, d = 128;
  const auto x = uniform(static_cast<size_t>(t * d), -3, 3, 4);
  const std::vector<float> ones(static_cast<size_t>(d), 1.0f);
  const std::vector<int32_t> rows = {1, 4, 6}, begin = {0, 3, 4, 6};
  const auto slopes = uniform(static_cast<size_t>(6 * d), -1, 1, 5);
  // Row r of the sums as bf16 rows would need rounding: sums that are exact in bf16 instead.
  std::vector<float> exact(slopes.size());
  for (size_t i = 0; i < exact.size(); ++i) exact[i] = std::round(slopes[i] * 4) / 4;
  std::vector<uint16_t> summed;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (int64_t i = 0; i < d; ++i) {
      float sum = 0;
      for (int32_t n = begin[r]; n < begin[r + 1]; ++n)
        sum += exact[static_cast<size_t>(n * d + i)];
      summed.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(sum) >> 16));
    }
  }
  const DeviceArray<float> x_d(*cuda, x), weight_d(*cuda, ones), slopes_d(*cuda, exact);
  const DeviceArray<int32_t> rows_d(*cuda, rows), begin_d(*cuda, begin);
  const DeviceArray<uint16_t> summed_d(*cuda, summed);
  std::vector<std::vector<float>> dx, sums;
  for (const GradientRows& dy : {GradientRows{.f32_ND = slopes_d.data(), .begin_R = begin_d.data()},
                                 GradientRows{.bf16_RD = summed_d.data()}}) {
    DeviceArray<float> dx_d(*cuda, std::vector<float>(x.size())),
        sum_d(*cuda, std::vector<float>(static_cast<size_t>(d))),
        partial(*cuda, static_cast<size_t>(norm_backward_partial_floats(d)));
    must(device_rms_norm_backward(*cuda, {.x_TD = x_d.data(),
                                          .weight_D = weight_d.data(),
                                          .rows_R = rows_d.data(),
                                          .dy = dy,
                                          .r = 3,
                                          .d = d,
                                          .eps = 1e-6f,
                                          .dx_TD = dx_d.data(),
                                          .partial = partial.data(),
                                          .dweight_D = sum_d.data()}));
    dx.push_back(dx_d.download());
    sums.push_back(sum_d.download());
  }
  EXPECT_EQ(dx[0], dx[1]);
  EXPECT_EQ(sums[0], sums[1]);
  for (int64_t i = 0; i < d; ++i) ASSERT_EQ(dx[0][static_cast<size_t>(2 * d + i)], 0) << i;
  EXPECT_NE(dx[0][static_cast<size_t>(6 * d)], 0);
}

TEST(DeviceBackwardSmall, SumsOfColumnsAreAddedToWhatIsThere) {
  GRADUS_NEEDS_GPU(cuda);
  for (const auto& [d, r] :
       std::vector<std::pair<int64_t, int64_t>>{{2, 1}, {1152, 4099}, {258, 255}}) {
    const auto dy = normals(*cuda, r * d, 1, 6);
    const std::vector<double> terms = widened(dy.download());
    std::vector<double> expected(static_cast<size_t>(d), 3.0);
    for (int64_t i = 0; i < r * d; ++i) {
      expected[static_cast<size_t>(i % d)] += terms[static_cast<size_t>(i)];
    }
    DeviceArray<float> sum(*cuda, std::vector<float>(static_cast<size_t>(d), 3.0f)),
        partial(*cuda, static_cast<size_t>(column_sums_partial_floats(d)));
    must(device_column_sums(
        *cuda,
        {.dy_RD = dy.data(), .r = r, .d = d, .partial = partial.data(), .sum_D = sum.data()}));
    EXPECT_LT(distance(widened(sum.download()), expected), testing::kSumsOfF32) << d;
  }
}

TEST(DeviceBackwardSmall, SwigluIsTheFormula) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t t = 33, f = 328;
  const auto gate_up = normals(*cuda, 2 * t * f, 2, 6), inner = normals(*cuda, t * f, 1, 7);
  const std::vector<double> before = widened(gate_up.download()), slope = widened(inner.download());
  std::vector<double> gradient(before.size()), value(slope.size());
  for (size_t i = 0; i < slope.size(); ++i) {
    const size_t gate_at = i / 8 * 16 + i % 8, up_at = gate_at + 8;
    const double gate = before[gate_at], up = before[up_at], s = 1 / (1 + std::exp(-gate));
    value[i] = gate * s * up;
    gradient[up_at] = slope[i] * gate * s;
    gradient[gate_at] = slope[i] * up * s * (1 + gate * (1 - s));
  }
  must(device_swiglu_backward(
      *cuda, {.gate_up_T = gate_up.data(), .inner_TF = inner.data(), .t = t, .f = f}));
  EXPECT_LT(distance(widened(gate_up.download()), gradient), testing::kBackwardInBf16);
  EXPECT_LT(distance(widened(inner.download()), value), testing::kBackwardInBf16);
}

TEST(DeviceBackwardSmall, EmbeddingRowsSumTheRowsThatReadThem) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t d = 72;
  const auto dx = uniform(static_cast<size_t>(5 * d), -1, 1, 8);
  const DeviceArray<float> dx_d(*cuda, dx);
  const DeviceArray<int32_t> tokens(*cuda, std::vector<int32_t>{3, 9}),
      begin(*cuda, std::vector<int32_t>{0, 2, 5}), rows(*cuda, std::vector<int32_t>{1, 4, 0, 2, 3});
  DeviceArray<float> sum(*cuda, std::vector<float>(static_cast<size_t>(10 * d), 0.5f));
  must(device_embed_backward(*cuda, {.dx_TD = dx_d.data(),
                                     .tokens_N = tokens.data(),
                                     .begin_N = begin.data(),
                                     .rows_M = rows.data(),
                                     .n = 2,
                                     .d = d,
                                     .dembedding_VD = sum.data()}));
  const std::vector<float> got = sum.download();
  const auto at = [&](int64_t row, int64_t i) { return dx[static_cast<size_t>(row * d + i)]; };
  for (int64_t i = 0; i < d; ++i) {
    ASSERT_EQ(got[static_cast<size_t>(3 * d + i)], 0.5f + at(1, i) + at(4, i)) << i;
    ASSERT_EQ(got[static_cast<size_t>(9 * d + i)], 0.5f + at(0, i) + at(2, i) + at(3, i)) << i;
    ASSERT_EQ(got[static_cast<size_t>(4 * d + i)], 0.5f) << i;
  }
}

TEST(DeviceBackwardSmall, RotationAndNormOfHeadsAreTheFormulas) {
  GRADUS_NEEDS_GPU(cuda);
  for (const int64_t width : {64, 128}) {
    for (const bool has_norms : {false, true}) {
      const int64_t t = 40, heads = 3, groups = 1, all = heads + 2 * groups, half = width / 2;
      const auto raw = normals(*cuda, t * all * width, 1, 9);
      const auto d = normals(*cuda, t * all * width, 1, 10);
      const std::vector<double> x = widened(raw.download()), dy = widened(d.download());
      const auto q_norm = uniform(static_cast<size_t>(width), 0.5f, 1.5f, 11);
      const auto k_norm = uniform(static_cast<size_t>(width), 0.5f, 1.5f, 12);
      const auto angles = uniform(static_cast<size_t>(100 * half), -3, 3, 13);
      std::vector<float> cosines, sines;
      for (const float angle : angles) {
        cosines.push_back(std::cos(angle));
        sines.push_back(std::sin(angle));
      }
      std::vector<int32_t> positions(static_cast<size_t>(t));
      for (size_t i = 0; i < positions.size(); ++i)
        positions[i] = static_cast<int32_t>(i * 7 % 100);
      std::vector<double> expected = dy;
      std::vector<double> dnorm[2];
      dnorm[0].assign(static_cast<size_t>(width), 0.25);
      dnorm[1] = dnorm[0];
      for (int64_t row = 0; row < t; ++row) {
        for (int64_t head = 0; head < heads + groups; ++head) {
          const size_t at = static_cast<size_t>((row * all + head) * width);
          const size_t w = static_cast<size_t>(width);
          std::vector<double> slope(w);
          for (int64_t i = 0; i < half; ++i) {
            const size_t angle =
                static_cast<size_t>(positions[static_cast<size_t>(row)] * half + i);
            const size_t low = static_cast<size_t>(i), high = low + static_cast<size_t>(half);
            slope[low] = dy[at + low] * cosines[angle] + dy[at + high] * sines[angle];
            slope[high] = dy[at + high] * cosines[angle] - dy[at + low] * sines[angle];
          }
          if (has_norms) {
            const std::vector<float>& norm = head < heads ? q_norm : k_norm;
            double squares = 0, dot = 0;
            for (size_t i = 0; i < w; ++i) {
              squares += x[at + i] * x[at + i];
              dot += slope[i] * norm[i] * x[at + i];
            }
            const double rstd = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-6);
            for (size_t i = 0; i < w; ++i) {
              dnorm[head < heads ? 0 : 1][i] += slope[i] * x[at + i] * rstd;
              slope[i] = rstd * norm[i] * slope[i] -
                         x[at + i] * rstd * rstd * rstd * dot / static_cast<double>(width);
            }
          }
          std::copy(slope.begin(), slope.end(), expected.begin() + static_cast<std::ptrdiff_t>(at));
        }
      }
      const DeviceArray<float> q_norm_d(*cuda, q_norm), k_norm_d(*cuda, k_norm),
          cosines_d(*cuda, cosines), sines_d(*cuda, sines);
      const DeviceArray<int32_t> positions_d(*cuda, positions);
      DeviceArray<float> dq(*cuda, std::vector<float>(static_cast<size_t>(width), 0.25f)),
          dk(*cuda, std::vector<float>(static_cast<size_t>(width), 0.25f)),
          partial(*cuda, static_cast<size_t>(rotate_backward_partial_floats(width)));
      must(device_rotate_backward(*cuda, {.raw_T = raw.data(),
                                          .dqkv_T = d.data(),
                                          .t = t,
                                          .num_heads = heads,
                                          .num_kv_heads = groups,
                                          .head_width = width,
                                          .rotation = {has_norms ? q_norm_d.data() : nullptr,
                                                       has_norms ? k_norm_d.data() : nullptr, 1e-6f,
                                                       cosines_d.data(), sines_d.data()},
                                          .positions_T = positions_d.data(),
                                          .partial = partial.data(),
                                          .dq_norm_K = dq.data(),
                                          .dk_norm_K = dk.data()}));
      EXPECT_LT(distance(widened(d.download()), expected), testing::kBackwardInBf16)
          << width << has_norms;
      EXPECT_LT(distance(widened(dq.download()), dnorm[0]), testing::kSumsOfF32)
          << width << has_norms;
      EXPECT_LT(distance(widened(dk.download()), dnorm[1]), testing::kSumsOfF32)
          << width << has_norms;
    }
  }
}

// A prompt and the responses that follow it.
struct Group {
  int64_t prompt;
  std::vector<int64_t> responses;
};

struct AttentionCase {
  int64_t num_rows = 0;
  std::vector<std::vector<int32_t>> seen;  // by row, the rows that it sees
  std::vector<AttentionBackwardTile> query_tiles, key_tiles;
  explicit AttentionCase(const std::vector<Group>& groups) {
    for (const Group& group : groups) num_rows += group.prompt;
    int64_t prompt = 0, response = num_rows;
    for (const Group& group : groups) {
      const int64_t first_response = response;
      for (const int64_t length : group.responses) response += length;
      num_rows = std::max(num_rows, response);
      add_run(prompt, group.prompt, 0, 0, first_response, response);
      int64_t at = first_response;
      for (const int64_t length : group.responses) {
        add_run(at, length, prompt, prompt + group.prompt, 0, 0);
        at += length;
      }
      prompt += group.prompt;
    }
  }
  void add_run(int64_t first, int64_t length, int64_t keys, int64_t keys_end, int64_t queries,
               int64_t queries_end) {
    seen.resize(static_cast<size_t>(std::max<int64_t>(num_rows, first + length)));
    const auto narrow = [](int64_t x) { return static_cast<int32_t>(x); };
    for (int64_t i = 0; i < length; ++i) {
      auto& rows = seen[static_cast<size_t>(first + i)];
      for (int64_t k = keys; k < keys_end; ++k) rows.push_back(narrow(k));
      for (int64_t k = first; k <= first + i; ++k) rows.push_back(narrow(k));
    }
    for (int64_t i = 0; i < length; i += 64) {
      AttentionBackwardTile tile = {narrow(first + i), narrow(std::min<int64_t>(64, length - i)),
                                    narrow(first),     narrow(first + length),
                                    narrow(keys),      narrow(keys_end)};
      query_tiles.push_back(tile);
      tile.other_begin = narrow(queries);
      tile.other_end = narrow(queries_end);
      key_tiles.push_back(tile);
    }
  }
};

TEST(DeviceBackwardSmall, AttentionIsTheFormula) {
  GRADUS_NEEDS_GPU(cuda);
  const std::vector<Group> batches[] = {
      {{1, {}}}, {{64, {}}}, {{70, {3, 64, 1}}, {5, {130}}, {200, {65, 66}}}};
  for (const auto& groups : batches) {
    for (const auto& [width, heads, kv_heads] :
         {std::array<int64_t, 3>{64, 3, 1}, {128, 2, 2}, {64, 4, 2}}) {
      const AttentionCase one(groups);
      const int64_t t = one.num_rows, all = heads + 2 * kv_heads, per = heads / kv_heads;
      const std::string where = fmt::format("{} rows, {} heads of {}", t, heads, width);
      const double scale = 1 / std::sqrt(static_cast<double>(width));
      const auto qkv_d = normals(*cuda, t * all * width, 1, 14);
      const auto dout_d = normals(*cuda, t * heads * width, 1, 15);
      const std::vector<double> qkv = widened(qkv_d.download()), dout = widened(dout_d.download());
      std::vector<double> gradient(qkv.size());
      std::vector<float> lse(static_cast<size_t>(t * heads));
      std::vector<uint16_t> out(static_cast<size_t>(t * heads * width));
      const auto row_of = [&](int64_t row, int64_t head) { return (row * all + head) * width; };
      for (int64_t row = 0; row < t; ++row) {
        for (int64_t head = 0; head < heads; ++head) {
          const auto& keys = one.seen[static_cast<size_t>(row)];
          const int64_t k_head = heads + head / per, v_head = k_head + kv_heads;
          const double* q = qkv.data() + row_of(row, head);
          const double* d = dout.data() + (row * heads + head) * width;
          std::vector<double> p, dp;
          double sum = 0, delta = 0;
          for (const int32_t key : keys) {
            const double* k = qkv.data() + row_of(key, k_head);
            const double* v = qkv.data() + row_of(key, v_head);
            p.push_back(std::exp(scale * std::inner_product(q, q + width, k, 0.0)));
            dp.push_back(std::inner_product(d, d + width, v, 0.0));
            sum += p.back();
          }
          lse[static_cast<size_t>(row * heads + head)] = static_cast<float>(std::log2(sum));
          for (size_t i = 0; i < p.size(); ++i) delta += (p[i] /= sum) * dp[i];
          for (int64_t c = 0; c < width; ++c) {
            double o = 0;
            for (size_t i = 0; i < keys.size(); ++i) {
              o += p[i] * qkv[static_cast<size_t>(row_of(keys[i], v_head) + c)];
            }
            const float rounded = static_cast<float>(o);
            out[static_cast<size_t>((row * heads + head) * width + c)] =
                static_cast<uint16_t>((std::bit_cast<uint32_t>(rounded) + 0x8000) >> 16);
          }
          for (size_t i = 0; i < keys.size(); ++i) {
            const double ds = p[i] * (dp[i] - delta) * scale;
            for (int64_t c = 0; c < width; ++c) {
              const size_t k_at = static_cast<size_t>(row_of(keys[i], k_head) + c);
              gradient[static_cast<size_t>(row_of(row, head) + c)] += ds * qkv[k_at];
              gradient[k_at] += ds * q[c];
              gradient[static_cast<size_t>(row_of(keys[i], v_head) + c)] += p[i] * d[c];
            }
          }
        }
      }
      const DeviceArray<uint16_t> out_d(*cuda, out);
      const DeviceArray<float> lse_d(*cuda, lse);
      DeviceArray<float> delta_d(*cuda, lse.size());
      const DeviceArray<AttentionBackwardTile> queries(*cuda, one.query_tiles),
          keys(*cuda, one.key_tiles);
      std::vector<uint16_t> first;
      for (int repeat = 0; repeat < 2; ++repeat) {
        DeviceArray<uint16_t> dqkv(*cuda, qkv.size());
        dqkv.fill(0xFF);  // NaN: everything must be written
        must(device_attention_backward(
            *cuda, {.qkv_T = qkv_d.data(),
                    .out_T = out_d.data(),
                    .dout_T = dout_d.data(),
                    .lse_TH = lse_d.data(),
                    .delta_TH = delta_d.data(),
                    .dqkv_T = dqkv.data(),
                    .t = t,
                    .num_heads = heads,
                    .num_kv_heads = kv_heads,
                    .head_width = width,
                    .scale = static_cast<float>(scale),
                    .query_tiles = queries.data(),
                    .key_tiles = keys.data(),
                    .num_query_tiles = static_cast<int64_t>(one.query_tiles.size()),
                    .num_key_tiles = static_cast<int64_t>(one.key_tiles.size())}));
        const std::vector<uint16_t> got = dqkv.download();
        if (repeat == 1) {
          EXPECT_EQ(got, first) << where;
          continue;
        }
        first = got;
        // q, k and v apart: one of them wrong must not hide among the others.
        const int64_t begins[] = {0, heads, heads + kv_heads, all};
        for (int part = 0; part < 3; ++part) {
          std::vector<double> a, b;
          for (int64_t row = 0; row < t; ++row) {
            for (int64_t i = row_of(row, begins[part]); i < row_of(row, begins[part + 1]); ++i) {
              a.push_back(from_bf16(got[static_cast<size_t>(i)]));
              b.push_back(gradient[static_cast<size_t>(i)]);
            }
          }
          // One key alone has a gradient of zero.
          if (t == 1 && part < 2) continue;
          EXPECT_LT(distance(a, b), testing::kBackwardInBf16) << where << ", part " << part;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gradus::kernels
