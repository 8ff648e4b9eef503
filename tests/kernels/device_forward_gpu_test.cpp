// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_forward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/rng.h"
#include "tests/kernels/head_case.h"

namespace gradus::kernels {
namespace {

using gradus::testing::DeviceArray;
using gradus::testing::must;

float from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }
uint16_t to_bf16(float x) {  // to nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

DeviceArray<uint16_t> normals(const Cuda& cuda, int64_t count, float scale, uint64_t seed) {
  DeviceArray<uint16_t> array(cuda, static_cast<size_t>(count));
  must(check_random_bf16(cuda, array.data(), count, scale, seed));
  return array;
}

struct LinearShape {
  int64_t t, n, k;
};
// Rows and columns at the edges of every tile, depths that are not a multiple of a stage, and the
// products of Qwen3-0.6B and Qwen2.5-0.5B.
const LinearShape kLinearShapes[] = {
    {1, 8, 8},       {1, 1024, 3072},  {3, 896, 4864},  {8, 1152, 896},    {9, 64, 72},
    {17, 48, 200},   {64, 1024, 2048}, {65, 136, 576},  {100, 4096, 1024}, {128, 96, 64},
    {129, 896, 896}, {256, 512, 1024}, {300, 304, 328}, {1000, 264, 136},  {1300, 1152, 896}};
constexpr int kTiles[][2] = {{0, 0},   {1, 8},  {1, 16},  {1, 32},  {1, 64},
                             {1, 128}, {2, 64}, {2, 128}, {2, 256}, {4, 128}};

TEST(DeviceLinearSmall, IsOneChainOverKWhateverTheTile) {
  GRADUS_NEEDS_GPU(cuda);
  for (const LinearShape& shape : kLinearShapes) {
    const auto [t, n, k] = shape;
    const auto x = normals(*cuda, t * k, 1, 1), w = normals(*cuda, n * k, 0.05f, 2);
    DeviceArray<float> z(*cuda, static_cast<size_t>(t * n)), bias(*cuda, static_cast<size_t>(n));
    must(check_logits(*cuda, w.data(), x.data(), z.data(), t, n, k));
    const std::vector<float> expected = z.download();
    std::vector<float> bias_values(static_cast<size_t>(n));
    for (size_t i = 0; i < bias_values.size(); ++i) {
      bias_values[i] = 0.01f * static_cast<float>(i % 37) - 0.2f;
    }
    bias.upload(bias_values);
    for (const auto& [groups, features] : kTiles) {
      const std::string where =
          fmt::format("{} x {} x {}, tile {} x {}", t, n, k, groups, features);
      DeviceArray<uint16_t> y(*cuda, static_cast<size_t>(t * n));
      y.fill(0xAA);
      LinearParams p{.x_TK = x.data(),
                     .w_NK = w.data(),
                     .bias_N = bias.data(),
                     .t = t,
                     .n = n,
                     .k = k,
                     .y = y.data(),
                     .y_stride = n,
                     .force_groups = groups,
                     .force_features = features};
      must(device_linear(*cuda, p));
      const std::vector<uint16_t> stored = y.download();
      int64_t wrong = 0;
      for (size_t i = 0; i < stored.size(); ++i) {
        wrong += stored[i] != to_bf16(expected[i] + bias_values[i % static_cast<size_t>(n)]);
      }
      ASSERT_EQ(wrong, 0) << where;
      std::vector<float> before(expected.size());
      for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<float>(i % 11) - 5;
      DeviceArray<float> sum(*cuda, before);
      p.output = LinearOutput::kAdd;
      p.bias_N = nullptr;
      p.y = sum.data();
      must(device_linear(*cuda, p));
      const std::vector<float> added = sum.download();
      for (size_t i = 0; i < added.size(); ++i) wrong += added[i] != before[i] + expected[i];
      ASSERT_EQ(wrong, 0) << where << ", added";
    }
  }
}

TEST(DeviceLinearSmall, SwigluOfInterleavedRowsIsThatOfItsHalves) {
  GRADUS_NEEDS_GPU(cuda);
  for (const LinearShape& shape : {LinearShape{1, 32, 64}, {33, 6144, 1024}, {200, 304, 328}}) {
    const auto [t, n, k] = shape;
    const auto x = normals(*cuda, t * k, 1, 3), w = normals(*cuda, n * k, 0.1f, 4);
    DeviceArray<float> z(*cuda, static_cast<size_t>(t * n));
    must(check_logits(*cuda, w.data(), x.data(), z.data(), t, n, k));
    const std::vector<float> product = z.download();
    std::vector<uint16_t> first;
    for (const auto& [groups, features] : kTiles) {
      if (features == 8) continue;
      DeviceArray<uint16_t> y(*cuda, static_cast<size_t>(t * n / 2));
      y.fill(0xAA);
      must(device_linear(*cuda, {.x_TK = x.data(),
                                 .w_NK = w.data(),
                                 .t = t,
                                 .n = n,
                                 .k = k,
                                 .y = y.data(),
                                 .y_stride = n / 2,
                                 .output = LinearOutput::kSwiglu,
                                 .force_groups = groups,
                                 .force_features = features}));
      const std::vector<uint16_t> got = y.download();
      if (first.empty()) first = got;
      ASSERT_EQ(got, first) << t << " tile " << groups << " x " << features;
    }
    for (int64_t row = 0; row < t; ++row) {
      for (int64_t i = 0; i < n / 2; ++i) {
        const float* block = product.data() + row * n + i / 8 * 16;
        const double gate = block[i % 8], up = block[i % 8 + 8];
        const double exact = gate / (1 + std::exp(-gate)) * up;
        ASSERT_NEAR(from_bf16(first[static_cast<size_t>(row * n / 2 + i)]), exact,
                    std::abs(exact) * 0.0041 + 1e-30)
            << row << " " << i;
      }
    }
  }
}

TEST(DeviceRowsSmall, NormAndEmbeddingAreTheFormulas) {
  GRADUS_NEEDS_GPU(cuda);
  for (const int64_t d : {64, 576, 896, 1024, 4096}) {
    const int64_t v = 50, t = 9;
    const auto embedding = normals(*cuda, v * d, 2, 5);
    const std::vector<uint16_t> table = embedding.download();
    const DeviceArray<int32_t> tokens(*cuda, std::vector<int32_t>{3, 0, 49, -1, 7, 7, 20, 1, 2});
    DeviceArray<float> x(*cuda, static_cast<size_t>(t * d)), weight(*cuda, static_cast<size_t>(d));
    std::vector<float> weights(static_cast<size_t>(d));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = 1 + 0.01f * static_cast<float>(i % 9);
    weight.upload(weights);
    must(device_embed(*cuda, {.embedding_VD = embedding.data(),
                              .tokens_T = tokens.data(),
                              .t = t,
                              .d = d,
                              .x_TD = x.data()}));
    const std::vector<float> rows = x.download();
    const std::vector<int32_t> ids = tokens.download();
    for (int64_t i = 0; i < t * d; ++i) {
      const int64_t id = std::max(ids[static_cast<size_t>(i / d)], 0);
      ASSERT_EQ(rows[static_cast<size_t>(i)],
                from_bf16(table[static_cast<size_t>(id * d + i % d)]));
    }
    const DeviceArray<int32_t> wanted(*cuda, std::vector<int32_t>{8, 2, 2});
    DeviceArray<uint16_t> y(*cuda, static_cast<size_t>(3 * d)),
        all(*cuda, static_cast<size_t>(t * d));
    DeviceRmsNormParams p{.x_TD = x.data(),
                          .weight_D = weight.data(),
                          .rows_R = wanted.data(),
                          .r = 3,
                          .d = d,
                          .eps = 1e-6f,
                          .y_RD = y.data()};
    must(device_rms_norm(*cuda, p));
    const std::vector<uint16_t> some = y.download();
    p = {.x_TD = x.data(),
         .weight_D = weight.data(),
         .r = t,
         .d = d,
         .eps = 1e-6f,
         .y_RD = all.data()};
    must(device_rms_norm(*cuda, p));
    const std::vector<uint16_t> normed = all.download();
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t row = i == 0 ? 8 : 2;
      double squares = 0;
      for (int64_t j = 0; j < d; ++j) {
        const double value = rows[static_cast<size_t>(row * d + j)];
        squares += value * value;
      }
      const double rstd = 1 / std::sqrt(squares / static_cast<double>(d) + 1e-6);
      for (int64_t j = 0; j < d; ++j) {
        const uint16_t got = some[static_cast<size_t>(i * d + j)];
        ASSERT_EQ(got, normed[static_cast<size_t>(row * d + j)]);
        const double exact =
            rows[static_cast<size_t>(row * d + j)] * rstd * weights[static_cast<size_t>(j)];
        ASSERT_NEAR(from_bf16(got), exact, std::abs(exact) * 0.00392);
      }
    }
  }
}

// One sequence of `length` tokens with random q, k and v, rotated and written to its pages, which
// are scattered.
struct AttentionCase {
  AttentionCase(const Cuda& cuda_, int64_t length_, int64_t heads_, int64_t groups_, int64_t width_,
                bool norms)
      : cuda(cuda_),
        length(length_),
        heads(heads_),
        groups(groups_),
        width(width_),
        num_pages((length + 63) / 64),
        raw(normals(cuda, length * columns(), 1.5f, static_cast<uint64_t>(length + heads))
                .download()),
        qkv(cuda, raw),
        pages(cuda, static_cast<size_t>((num_pages + 3) * page_size())),
        tables(cuda, static_cast<size_t>(length * num_pages)),
        positions(cuda, static_cast<size_t>(length)),
        zeros(cuda, static_cast<size_t>(length)),
        cosines(cuda, static_cast<size_t>(length * width / 2)),
        sines(cuda, static_cast<size_t>(length * width / 2)),
        norm(cuda, static_cast<size_t>(width)) {
    pages.fill(0);
    zeros.fill(0);
    std::vector<int32_t> table;
    for (int64_t row = 0; row < length; ++row) {
      for (int64_t i = 0; i < num_pages; ++i) {
        table.push_back(static_cast<int32_t>((i * 5 + 2) % (num_pages + 3)));
      }
    }
    // A stride of 5 may not reach every page once; then they follow one another.
    if ((num_pages + 3) % 5 == 0) {
      for (size_t i = 0; i < table.size(); ++i) {
        table[i] = static_cast<int32_t>(i % static_cast<size_t>(num_pages) + 1);
      }
    }
    tables.upload(table);
    std::vector<int32_t> all(static_cast<size_t>(length));
    std::iota(all.begin(), all.end(), 0);
    positions.upload(all);
    std::vector<float> c, s;
    for (int64_t position = 0; position < length; ++position) {
      for (int64_t i = 0; i < width / 2; ++i) {
        const double angle =
            static_cast<double>(position) *
            std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(width));
        c.push_back(static_cast<float>(std::cos(angle)));
        s.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    cosines.upload(c);
    sines.upload(s);
    cosine_values = std::move(c);
    sine_values = std::move(s);
    if (norms) {
      for (int64_t i = 0; i < width; ++i)
        norm_values.push_back(0.5f + 0.01f * static_cast<float>(i));
      norm.upload(norm_values);
    }
    must(device_rotate(cuda, {.qkv_T = qkv.data(),
                              .t = length,
                              .num_heads = heads,
                              .rotation = rotation(),
                              .positions_T = positions.data(),
                              .table_rows_T = zeros.data(),
                              .kv = kv()}));
    must(synchronize(cuda));
  }
  HeadRotation rotation() const {
    const float* weight = norm_values.empty() ? nullptr : norm.data();
    return {weight, weight, 1e-6f, cosines.data(), sines.data()};
  }
  int64_t columns() const { return (heads + 2 * groups) * width; }
  int64_t page_size() const { return 2 * groups * 64 * width; }
  DeviceKv kv() { return {pages.data(), tables.data(), num_pages, groups, width}; }
  std::vector<uint16_t> prefill(int64_t tile_rows) {
    std::vector<AttentionTile> tiles;
    for (int64_t row = 0; row < length; row += tile_rows) {
      tiles.push_back({static_cast<int32_t>(row),
                       static_cast<int32_t>(std::min(tile_rows, length - row)),
                       static_cast<int32_t>(row), 0});
    }
    const DeviceArray<AttentionTile> on_device(cuda, tiles);
    DeviceArray<uint16_t> out(cuda, static_cast<size_t>(length * heads * width));
    out.fill(0xAA);
    must(device_attention(cuda, {.qkv_T = qkv.data(),
                                 .out_T = out.data(),
                                 .num_heads = heads,
                                 .scale = scale(),
                                 .kv = kv(),
                                 .tiles = on_device.data(),
                                 .num_tiles = static_cast<int64_t>(tiles.size())}));
    return out.download();
  }
  std::vector<uint16_t> decode(int64_t max_chunks) {
    DeviceArray<uint16_t> out(cuda, static_cast<size_t>(length * heads * width));
    out.fill(0xAA);
    DeviceArray<uint32_t> arrivals(cuda, static_cast<size_t>(length * groups));
    DeviceArray<float> partial(
        cuda, static_cast<size_t>(attention_partial_floats(length, heads, width, max_chunks)));
    arrivals.fill(0);
    partial.fill(0xFF);
    const DeviceArray<uint16_t> unrotated(cuda, raw);
    for (int again = 0; again < 2; ++again) {  // the second time finds the counters as left
      must(device_attention(cuda, {.qkv_T = unrotated.data(),
                                   .out_T = out.data(),
                                   .num_heads = heads,
                                   .scale = scale(),
                                   .kv = kv(),
                                   .rotation = rotation(),
                                   .positions_T = positions.data(),
                                   .t = length,
                                   .max_chunks = max_chunks,
                                   .arrivals = arrivals.data(),
                                   .partial = partial.data()}));
    }
    return out.download();
  }
  float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(width))); }

  // Head `head` (of q, k and v together) of a row after norm and rotation, in double from the
  // input.
  std::vector<double> rotated(int64_t row, int64_t head) const {
    std::vector<double> x(static_cast<size_t>(width)), y(x);
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) {
      x[static_cast<size_t>(i)] =
          from_bf16(raw[static_cast<size_t>(row * columns() + head * width + i)]);
      squares += x[static_cast<size_t>(i)] * x[static_cast<size_t>(i)];
    }
    if (head >= heads + groups) return x;
    for (size_t i = 0; i < norm_values.size(); ++i) {
      x[i] *= norm_values[i] / std::sqrt(squares / static_cast<double>(width) + 1e-6);
    }
    const size_t half = static_cast<size_t>(width / 2);
    for (size_t i = 0; i < half; ++i) {
      const double c = cosine_values[static_cast<size_t>(row) * half + i];
      const double s = sine_values[static_cast<size_t>(row) * half + i];
      y[i] = x[i] * c - x[i + half] * s;
      y[i + half] = x[i + half] * c + x[i] * s;
    }
    return y;
  }
  // Attention of one row and head in double.
  std::vector<double> exact(int64_t row, int64_t head) const {
    const std::vector<double> q = rotated(row, head);
    const int64_t group = head / (heads / groups);
    std::vector<double> weights, out(static_cast<size_t>(width));
    double max = -INFINITY, sum = 0;
    for (int64_t key = 0; key <= row; ++key) {
      const std::vector<double> k = rotated(key, heads + group);
      weights.push_back(std::inner_product(q.begin(), q.end(), k.begin(), 0.0) * scale());
      max = std::max(max, weights.back());
    }
    for (double& weight : weights) sum += weight = std::exp(weight - max);
    for (int64_t key = 0; key <= row; ++key) {
      const std::vector<double> v = rotated(key, heads + groups + group);
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] += weights[static_cast<size_t>(key)] / sum * v[i];
      }
    }
    return out;
  }

  const Cuda& cuda;
  int64_t length, heads, groups, width, num_pages;
  std::vector<uint16_t> raw;
  DeviceArray<uint16_t> qkv, pages;
  DeviceArray<int32_t> tables, positions, zeros;
  DeviceArray<float> cosines, sines, norm;
  std::vector<float> cosine_values, sine_values, norm_values;
};

struct AttentionShape {
  int64_t length, heads, groups, width;
  bool norms;
};
const AttentionShape kAttentionShapes[] = {{1, 2, 1, 64, false},   {70, 14, 2, 64, false},
                                           {300, 9, 3, 64, false}, {130, 16, 8, 128, true},
                                           {700, 4, 1, 128, true}, {1300, 16, 1, 64, false}};

TEST(DeviceAttentionSmall, DecodingGivesTheBitsOfPrefillAtEveryPosition) {
  GRADUS_NEEDS_GPU(cuda);
  for (const AttentionShape& shape : kAttentionShapes) {
    AttentionCase attention(*cuda, shape.length, shape.heads, shape.groups, shape.width,
                            shape.norms);
    const std::vector<uint16_t> whole = attention.prefill(64);
    const auto expect_whole = [&](const std::vector<uint16_t>& got, const char* name) {
      int64_t wrong = 0, first = -1;
      for (size_t i = 0; i < whole.size(); ++i) {
        if (got[i] == whole[i]) continue;
        ++wrong;
        if (first < 0) first = static_cast<int64_t>(i) / (shape.heads * shape.width);
      }
      EXPECT_EQ(wrong, 0) << name << " of " << shape.length << " x " << shape.heads << " x "
                          << shape.width << ", first at position " << first;
    };
    expect_whole(attention.prefill(17), "tiles of 17");
    expect_whole(attention.prefill(1), "tiles of 1");
    const int64_t chunks = (shape.length + 511) / 512;
    expect_whole(attention.decode(chunks), "decoding");
    expect_whole(attention.decode(chunks + 2), "decoding with room");
  }
}

TEST(DeviceAttentionSmall, DecodingWritesTheKeyAndValueThatPrefillWrites) {
  GRADUS_NEEDS_GPU(cuda);
  for (const AttentionShape& shape : kAttentionShapes) {
    AttentionCase attention(*cuda, shape.length, shape.heads, shape.groups, shape.width,
                            shape.norms);
    const std::vector<uint16_t> written = attention.pages.download();
    // One position after the other finds what the ones before have written.
    attention.pages.fill(0);
    const DeviceArray<uint16_t> unrotated(*cuda, attention.raw);
    DeviceArray<uint16_t> out(*cuda, static_cast<size_t>(shape.heads * shape.width));
    const int64_t chunks = (shape.length + 511) / 512;
    DeviceArray<uint32_t> arrivals(*cuda, static_cast<size_t>(shape.groups));
    DeviceArray<float> partial(
        *cuda, static_cast<size_t>(attention_partial_floats(1, shape.heads, shape.width, chunks)));
    arrivals.fill(0);
    for (int64_t row = 0; row < shape.length; ++row) {
      must(device_attention(*cuda, {.qkv_T = unrotated.data() + row * attention.columns(),
                                    .out_T = out.data(),
                                    .num_heads = shape.heads,
                                    .scale = attention.scale(),
                                    .kv = attention.kv(),
                                    .rotation = attention.rotation(),
                                    .positions_T = attention.positions.data() + row,
                                    .t = 1,
                                    .max_chunks = chunks,
                                    .arrivals = arrivals.data(),
                                    .partial = partial.data()}));
      must(synchronize(*cuda));
    }
    const std::vector<uint16_t> last = out.download();
    EXPECT_EQ(attention.pages.download(), written) << shape.length;
    const std::vector<uint16_t> whole = attention.prefill(64);
    EXPECT_TRUE(
        std::equal(last.begin(), last.end(), whole.end() - static_cast<int64_t>(last.size())))
        << shape.length;
  }
}

TEST(DeviceAttentionSmall, IsSoftmaxAttentionOfNormedAndRotatedHeads) {
  GRADUS_NEEDS_GPU(cuda);
  for (const AttentionShape& shape : kAttentionShapes) {
    AttentionCase attention(*cuda, shape.length, shape.heads, shape.groups, shape.width,
                            shape.norms);
    const std::vector<uint16_t> got = attention.prefill(64);
    for (const int64_t row : {int64_t{0}, shape.length / 2, shape.length - 1}) {
      for (int64_t head = 0; head < shape.heads; head += 3) {
        const std::vector<double> exact = attention.exact(row, head);
        for (int64_t i = 0; i < shape.width; ++i) {
          const float value =
              from_bf16(got[static_cast<size_t>((row * shape.heads + head) * shape.width + i)]);
          // q, k and the probabilities are rounded to bf16 on the way.
          ASSERT_NEAR(value, exact[static_cast<size_t>(i)], 0.06)
              << "row " << row << " head " << head << " of " << shape.length;
        }
      }
    }
  }
}

TEST(DeviceSlotsSmall, BeginMoveAdvanceAndEnd) {
  GRADUS_NEEDS_GPU(cuda);
  const int64_t stride = 3;
  DeviceArray<int32_t> tokens(*cuda, std::vector<int32_t>{0, 0, 0, 0});
  DeviceArray<int32_t> positions(*cuda, std::vector<int32_t>{-1, -1, -1, -1});
  DeviceArray<LmHeadRow> rows(*cuda, std::vector<LmHeadRow>(4));
  DeviceArray<int32_t> tables(*cuda, 12);
  tables.fill(0);
  const SlotState state{tokens.data(), positions.data(), rows.data()};
  const DeviceArray<int32_t> sampled(*cuda, std::vector<int32_t>{70, 71, 72, 73});
  const DeviceArray<SlotStart> starts(
      *cuda, std::vector<SlotStart>{
                 {.slot = 2, .token = 1, .position = 9, .row = {.seed = 5, .position = 10}},
                 {.slot = 0, .token = 0, .position = 4, .row = {.seed = 6, .position = 5}}});
  const DeviceArray<int32_t> pages(*cuda, std::vector<int32_t>{1, 2, 3, 4, 5, 6});
  must(device_start_slots(*cuda, state, starts.data(), 2, sampled.data(), tables.data(),
                          pages.data(), stride, nullptr));
  must(device_advance_slots(*cuda, state, sampled.data(), 3, nullptr));
  EXPECT_EQ(tokens.download(), (std::vector<int32_t>{70, 71, 72, 0}));
  EXPECT_EQ(positions.download(), (std::vector<int32_t>{5, -1, 10, -1}));
  EXPECT_EQ(rows.download()[2].position, 11u);
  EXPECT_EQ(tables.download(), (std::vector<int32_t>{4, 5, 6, 0, 0, 0, 1, 2, 3, 0, 0, 0}));
  const DeviceArray<SlotStart> moves(
      *cuda, std::vector<SlotStart>{{.slot = 0, .token = -1, .position = -1},
                                    {.slot = 0, .token = -1, .position = 0, .from = 2}});
  must(device_start_slots(*cuda, state, moves.data(), 2, nullptr, tables.data(), nullptr, stride,
                          nullptr));
  EXPECT_EQ(tokens.download(), (std::vector<int32_t>{72, 71, 72, 0}));
  EXPECT_EQ(positions.download(), (std::vector<int32_t>{10, -1, -1, -1}));
  EXPECT_EQ(rows.download()[0].seed, 5u);
  EXPECT_EQ(tables.download(), (std::vector<int32_t>{1, 2, 3, 0, 0, 0, 1, 2, 3, 0, 0, 0}));
}

}  // namespace
}  // namespace gradus::kernels
