// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/isa.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

// A pack of rows over a paged store: what the model hands to the kernels, with the data on top.
struct Pack {
  KvPageLayout layout;
  int64_t num_heads = 0;
  int64_t num_rows = 0;
  std::vector<float> q, k, v;  // [T, H K], [T, G K]
  std::vector<int32_t> positions;
  std::vector<std::vector<int32_t>> pages_of_run;
  std::vector<AttentionRun> runs;

  int64_t q_width() const { return num_heads * layout.head_width; }
  int64_t kv_width() const { return layout.num_kv_heads * layout.head_width; }
};

std::vector<float> normals(uint64_t seed, int64_t count) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.normal());
  return values;
}

std::vector<float> forward(const Pack& pack, std::vector<float>& store, std::vector<float>* lse) {
  std::vector<float> out(static_cast<size_t>(pack.num_rows * pack.q_width()));
  if (lse != nullptr) lse->assign(static_cast<size_t>(pack.num_rows * pack.num_heads), 0);
  kv_write({.layout = pack.layout,
            .pages = store.data(),
            .k_TGK = pack.k.data(),
            .v_TGK = pack.v.data(),
            .kv_stride = pack.kv_width(),
            .runs = pack.runs.data(),
            .num_runs = static_cast<int64_t>(pack.runs.size())});
  attention_forward({.layout = pack.layout,
                     .pages = store.data(),
                     .q_THK = pack.q.data(),
                     .q_stride = pack.q_width(),
                     .out_THK = out.data(),
                     .out_stride = pack.q_width(),
                     .lse_TH = lse != nullptr ? lse->data() : nullptr,
                     .num_heads = pack.num_heads,
                     .scale = 1.0f / std::sqrt(static_cast<float>(pack.layout.head_width)),
                     .runs = pack.runs.data(),
                     .num_runs = static_cast<int64_t>(pack.runs.size())});
  return out;
}

// One sequence of `length` tokens in one run.
Pack sequence(int64_t length, int64_t heads, int64_t kv_heads, int64_t width, uint64_t seed) {
  Pack pack;
  pack.layout = {kv_heads, width};
  pack.num_heads = heads;
  pack.num_rows = length;
  pack.q = normals(seed, length * heads * width);
  pack.k = normals(seed + 1, length * kv_heads * width);
  pack.v = normals(seed + 2, length * kv_heads * width);
  pack.pages_of_run.emplace_back(static_cast<size_t>((length + 63) / 64));
  std::iota(pack.pages_of_run[0].begin(), pack.pages_of_run[0].end(), 0);
  pack.runs.push_back({0, length, 0, pack.pages_of_run[0].data()});
  return pack;
}

std::vector<float> new_store(const Pack& pack, int64_t num_pages) {
  return std::vector<float>(static_cast<size_t>(num_pages * pack.layout.page_size()));
}

// softmax(q k^T / sqrt(K)) v in double, plain loops.
std::vector<double> reference(const Pack& pack) {
  const int64_t width = pack.layout.head_width, group = pack.num_heads / pack.layout.num_kv_heads;
  std::vector<double> out(static_cast<size_t>(pack.num_rows * pack.q_width()));
  for (int64_t t = 0; t < pack.num_rows; ++t) {
    for (int64_t h = 0; h < pack.num_heads; ++h) {
      std::vector<double> scores(static_cast<size_t>(t + 1));
      double sum = 0, largest = -INFINITY;
      for (int64_t j = 0; j <= t; ++j) {
        double score = 0;
        for (int64_t i = 0; i < width; ++i) {
          score += double{pack.q[static_cast<size_t>(t * pack.q_width() + h * width + i)]} *
                   pack.k[static_cast<size_t>(j * pack.kv_width() + h / group * width + i)];
        }
        scores[static_cast<size_t>(j)] = score / std::sqrt(static_cast<double>(width));
        largest = std::max(largest, scores[static_cast<size_t>(j)]);
      }
      for (double& score : scores) sum += score = std::exp(score - largest);
      for (int64_t j = 0; j <= t; ++j) {
        for (int64_t i = 0; i < width; ++i) {
          out[static_cast<size_t>(t * pack.q_width() + h * width + i)] +=
              scores[static_cast<size_t>(j)] / sum *
              pack.v[static_cast<size_t>(j * pack.kv_width() + h / group * width + i)];
        }
      }
    }
  }
  return out;
}

TEST(AttentionForward, MatchesPlainSoftmaxInDouble) {
  struct Shape {
    int64_t length, heads, kv_heads, width;
  };
  for (const Shape s : {Shape{1, 1, 1, 2}, Shape{63, 3, 1, 16}, Shape{65, 9, 3, 64},
                        Shape{600, 4, 2, 8}, Shape{1100, 2, 2, 40}, Shape{130, 8, 1, 128}}) {
    const Pack pack = sequence(s.length, s.heads, s.kv_heads, s.width, 5);
    std::vector<float> store = new_store(pack, (s.length + 63) / 64);
    const std::vector<float> out = forward(pack, store, nullptr);
    const std::vector<double> expected = reference(pack);
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], expected[i], testing::kAttention)
          << "length " << s.length << ", heads " << s.heads << ", width " << s.width << ", element "
          << i;
    }
  }
}

// Two keys of equal score: the output is the mean of the values.
TEST(AttentionForward, AveragesValuesOfEqualScores) {
  Pack pack = sequence(2, 1, 1, 2, 1);
  pack.q = {0, 0, 0, 0};
  pack.v = {1, 2, 3, 6};
  std::vector<float> store = new_store(pack, 1);
  const std::vector<float> out = forward(pack, store, nullptr);
  EXPECT_EQ(out, (std::vector<float>{1, 2, 2, 4}));
}

// The row contract: whole, in chunks of 1, 17 and 64 rows, among other sequences, on either
// instruction set and with other thread counts, each row has the same bits.
TEST(AttentionForward, BitsDoNotDependOnChunksNeighboursThreadsOrInstructionSet) {
  const int64_t length = 700;
  const Pack whole = sequence(length, 9, 3, 64, 11);
  std::vector<float> store = new_store(whole, 11);
  std::vector<float> lse;
  const std::vector<float> expected = forward(whole, store, &lse);
  for (const Isa set : {Isa::kAvx2, Isa::kAvx512}) {
    if (set == Isa::kAvx512 && !has_avx512()) continue;
    set_isa(set);
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      for (const int64_t chunk : {1, 17, 64}) {
        std::vector<float> other_store = new_store(whole, 40);
        std::vector<int32_t> pages;
        for (int32_t i = 0; i < 11; ++i) pages.push_back(37 - 3 * i);
        for (int64_t begin = 0; begin < length; begin += chunk) {
          const int64_t rows = std::min(chunk, length - begin);
          Pack part = whole;
          part.num_rows = rows + 2;  // two rows of another sequence come first
          const auto slice = [&](const std::vector<float>& from, int64_t width, uint64_t seed) {
            std::vector<float> to = normals(seed, 2 * width);
            to.insert(to.end(), from.begin() + begin * width,
                      from.begin() + (begin + rows) * width);
            return to;
          };
          part.q = slice(whole.q, whole.q_width(), 77);
          part.k = slice(whole.k, whole.kv_width(), 78);
          part.v = slice(whole.v, whole.kv_width(), 79);
          const int32_t other_page = 39;
          part.runs = {{0, 2, 0, &other_page}, {2, rows, begin, pages.data()}};
          const std::vector<float> out = forward(part, other_store, nullptr);
          ASSERT_EQ(std::memcmp(out.data() + 2 * whole.q_width(),
                                expected.data() + begin * whole.q_width(),
                                static_cast<size_t>(rows * whole.q_width()) * sizeof(float)),
                    0)
              << "chunk " << chunk << " at " << begin << ", " << threads << " threads";
        }
      }
    }
  }
  set_isa(has_avx512() ? Isa::kAvx512 : Isa::kAvx2);
}

// A NaN must come out wherever it went in: in the query, in a key or in a value that the row sees.
TEST(AttentionForward, NanReachesEveryRowThatSeesIt) {
  const float nan = std::nanf("");
  for (const Isa set : {Isa::kAvx2, Isa::kAvx512}) {
    if (set == Isa::kAvx512 && !has_avx512()) continue;
    set_isa(set);
    for (const int64_t place : {0, 5, 64, 130, 515}) {
      const Pack clean = sequence(600, 2, 1, 20, 31);
      Pack bad_query = clean, bad_key = clean, bad_value = clean;
      bad_query.q[static_cast<size_t>(place * clean.q_width() + 3)] = nan;  // head 0
      bad_key.k[static_cast<size_t>(place * clean.kv_width() + 7)] = nan;
      bad_value.v[static_cast<size_t>(place * clean.kv_width() + 7)] = nan;
      std::vector<float> store = new_store(clean, 10), lse_of_key;
      const std::vector<float> of_query = forward(bad_query, store, nullptr);
      const std::vector<float> of_key = forward(bad_key, store, &lse_of_key);
      const std::vector<float> of_value = forward(bad_value, store, nullptr);
      for (int64_t row = 0; row < 600; ++row) {
        SCOPED_TRACE(::testing::Message() << "NaN at " << place << ", row " << row);
        const size_t first = static_cast<size_t>(row * clean.q_width());
        for (size_t i = 0; i < 40; ++i) {
          ASSERT_EQ(std::isnan(of_query[first + i]), row == place && i < 20) << i;
          if (row < place) continue;
          ASSERT_TRUE(std::isnan(of_key[first + i])) << i;
          ASSERT_TRUE(i % 20 != 7 || std::isnan(of_value[first + i])) << i;
        }
        ASSERT_TRUE(row < place || std::isnan(lse_of_key[static_cast<size_t>(row * 2)]));
      }
    }
  }
  set_isa(has_avx512() ? Isa::kAvx512 : Isa::kAvx2);
}

// Regression: queries are computed in tiles, and 0 times the NaN of a later key of the tile was
// NaN.
TEST(AttentionForward, WhatIsNotANumberDoesNotReachTheRowsBeforeIt) {
  for (const Isa set : {Isa::kAvx2, Isa::kAvx512}) {
    if (set == Isa::kAvx512 && !has_avx512()) continue;
    set_isa(set);
    const Pack clean = sequence(140, 2, 1, 20, 31);
    std::vector<float> store = new_store(clean, 3);
    const std::vector<float> expected = forward(clean, store, nullptr);
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const int64_t place : {1, 2, 5, 63, 64, 65, 130}) {
        Pack broken = clean;
        for (int64_t i = 0; i < clean.kv_width(); ++i) {
          broken.k[static_cast<size_t>(place * clean.kv_width() + i)] = bad;
          broken.v[static_cast<size_t>(place * clean.kv_width() + i)] = bad;
        }
        const std::vector<float> out = forward(broken, store, nullptr);
        EXPECT_EQ(std::memcmp(out.data(), expected.data(),
                              static_cast<size_t>(place * clean.q_width()) * sizeof(float)),
                  0)
            << bad << " at " << place;
        EXPECT_TRUE(std::isnan(out[static_cast<size_t>(place * clean.q_width())]));
      }
    }
  }
  set_isa(has_avx512() ? Isa::kAvx512 : Isa::kAvx2);
}

// The gradients of one sequence's queries, its own loss weights as upstream.
std::vector<float> query_gradients(const Pack& pack) {
  std::vector<float> store = new_store(pack, (pack.num_rows + 63) / 64), lse;
  const std::vector<float> out = forward(pack, store, &lse);
  const std::vector<float> dout = normals(34, pack.num_rows * pack.q_width());
  std::vector<float> dq(out.size());
  // The backward writes q, k and v gradients with one stride.
  const int64_t stride = pack.q_width() + 2 * pack.kv_width();
  std::vector<float> gradients(static_cast<size_t>(pack.num_rows * stride));
  const KeyRows keys = {0, 0, pack.num_rows};
  const AttentionBackwardRun run = {pack.runs[0], &keys, 1};
  const std::vector<int64_t> groups = {0, 1};
  attention_backward({.layout = pack.layout,
                      .pages = store.data(),
                      .q_THK = pack.q.data(),
                      .q_stride = pack.q_width(),
                      .out_THK = out.data(),
                      .dout_THK = dout.data(),
                      .out_stride = pack.q_width(),
                      .lse_TH = lse.data(),
                      .num_heads = pack.num_heads,
                      .scale = 1.0f / std::sqrt(static_cast<float>(pack.layout.head_width)),
                      .dq_THK = gradients.data(),
                      .dk_TGK = gradients.data() + pack.q_width(),
                      .dv_TGK = gradients.data() + pack.q_width() + pack.kv_width(),
                      .dq_stride = stride,
                      .runs = &run,
                      .group_begin = groups.data(),
                      .num_groups = 1});
  for (int64_t row = 0; row < pack.num_rows; ++row) {
    std::copy_n(gradients.begin() + row * stride, pack.q_width(),
                dq.begin() + row * pack.q_width());
  }
  return dq;
}

TEST(AttentionBackward, WhatIsNotANumberDoesNotReachTheQueriesBeforeIt) {
  const Pack clean = sequence(140, 2, 1, 20, 31);
  const std::vector<float> expected = query_gradients(clean);
  for (const int64_t place : {1, 2, 63, 64, 130}) {
    Pack broken = clean;
    broken.k[static_cast<size_t>(place * clean.kv_width() + 7)] = std::nanf("");
    broken.v[static_cast<size_t>(place * clean.kv_width() + 3)] = INFINITY;
    const std::vector<float> dq = query_gradients(broken);
    EXPECT_EQ(std::memcmp(dq.data(), expected.data(),
                          static_cast<size_t>(place * clean.q_width()) * sizeof(float)),
              0)
        << place;
    EXPECT_TRUE(std::isnan(dq[static_cast<size_t>(place * clean.q_width())]));
  }
}

// A pack of one prompt and two responses that share it.
TEST(AttentionBackward, MatchesFiniteDifferencesThroughASharedPrompt) {
  const int64_t prompt = 70, first = 5, second = 68, heads = 4, kv_heads = 2, width = 6;
  Pack pack = sequence(prompt + first + second, heads, kv_heads, width, 21);
  // Pages 0, 1: prompt; 2: first response (positions 64-74); 3, 4, 5: second (positions 64-137).
  const std::vector<int32_t> prompt_pages = {0, 1}, first_pages = {0, 2}, second_pages = {0, 3, 4};
  pack.runs = {{0, prompt, 0, prompt_pages.data()},
               {prompt, first, prompt, first_pages.data()},
               {prompt + first, second, prompt, second_pages.data()}};
  // The prompt's tail beyond position 64 is written into the responses' own pages too.
  const std::vector<AttentionRun> tails = {{64, prompt - 64, 64, first_pages.data()},
                                           {64, prompt - 64, 64, second_pages.data()}};
  const std::vector<float> weights = normals(33, pack.num_rows * pack.q_width());
  std::vector<float> store, lse, out;
  const auto loss = [&] {
    store = new_store(pack, 5);
    kv_write({.layout = pack.layout,
              .pages = store.data(),
              .k_TGK = pack.k.data(),
              .v_TGK = pack.v.data(),
              .kv_stride = pack.kv_width(),
              .runs = tails.data(),
              .num_runs = 2});
    out = forward(pack, store, &lse);
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += double{out[i]} * weights[i];
    return sum;
  };
  loss();
  const int64_t stride = pack.q_width() + 2 * pack.kv_width();
  std::vector<float> grads(static_cast<size_t>(pack.num_rows * stride));
  const std::vector<KeyRows> keys = {{0, 0, prompt},
                                     {0, 0, prompt},
                                     {prompt, prompt, first},
                                     {0, 0, prompt},
                                     {prompt, prompt + first, second}};
  const std::vector<AttentionBackwardRun> runs = {{pack.runs[0], keys.data(), 1},
                                                  {pack.runs[1], keys.data() + 1, 2},
                                                  {pack.runs[2], keys.data() + 3, 2}};
  const std::vector<int64_t> groups = {0, 3};
  attention_backward({.layout = pack.layout,
                      .pages = store.data(),
                      .q_THK = pack.q.data(),
                      .q_stride = pack.q_width(),
                      .out_THK = out.data(),
                      .dout_THK = weights.data(),
                      .out_stride = pack.q_width(),
                      .lse_TH = lse.data(),
                      .num_heads = heads,
                      .scale = 1.0f / std::sqrt(static_cast<float>(width)),
                      .dq_THK = grads.data(),
                      .dk_TGK = grads.data() + pack.q_width(),
                      .dv_TGK = grads.data() + pack.q_width() + pack.kv_width(),
                      .dq_stride = stride,
                      .runs = runs.data(),
                      .group_begin = groups.data(),
                      .num_groups = 1});
  RngSequence rng(3, RngStream::kTask);
  const auto check = [&](std::vector<float>& values, int64_t row_width, int64_t offset,
                         const char* name) {
    for (int trial = 0; trial < 40; ++trial) {
      const size_t i = rng.below(values.size());
      const float before = values[i], step = 0.02f;
      values[i] = before + step;
      const double above = loss();
      values[i] = before - step;
      const double below = loss();
      values[i] = before;
      const int64_t row = static_cast<int64_t>(i) / row_width,
                    column = static_cast<int64_t>(i) % row_width;
      const float grad = grads[static_cast<size_t>(row * stride + offset + column)];
      EXPECT_NEAR(grad, (above - below) / (2 * step), testing::kFiniteDifference)
          << name << " row " << row << " column " << column;
    }
  };
  check(pack.q, pack.q_width(), 0, "q");
  check(pack.k, pack.kv_width(), pack.q_width(), "k");
  check(pack.v, pack.kv_width(), pack.q_width() + pack.kv_width(), "v");
}

}  // namespace
}  // namespace gradus::kernels
