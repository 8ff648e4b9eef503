// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/gemm.h"
#include "tests/support/kernel_settings.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;
using testing::normals;
using testing::same_bits;

std::vector<int32_t> random_ids(int64_t count, int64_t v, uint64_t seed) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(rng.between(0, v - 1)));
  return ids;
}

AlignedFloats packed_table(const AlignedFloats& table, int64_t v, int64_t d) {
  AlignedFloats packed(static_cast<size_t>(packed_size(v, d)));
  pack_weight(table.data(), d, v, d, packed.data());
  return packed;
}

// Panels of 16 ids: id 17 of width 2 is at panel 1 (32 floats on), lane 1: floats 33 and 49.
TEST(EmbeddingGather, TakesTheHandWorkedRow) {
  AlignedFloats packed(64);
  packed[33] = 5;
  packed[49] = 6;
  const int32_t id = 17;
  float out[2];
  embedding_gather(packed.data(), &id, 1, 2, out, 2);
  EXPECT_EQ(out[0], 5);
  EXPECT_EQ(out[1], 6);
}

TEST(EmbeddingGather, CopiesRowsOfTheTableUnderEverySetting) {
  testing::for_each_setting([] {
    for (const int64_t d : {1, 2, 15, 64, 100}) {
      for (const int64_t t : {0, 1, 7, 1000}) {
        const int64_t v = 37, stride = d + 3;
        AlignedFloats table = normals(v * d, 1);
        table[0] = testing::kNan;
        const AlignedFloats packed = packed_table(table, v, d);
        std::vector<int32_t> ids = random_ids(t, v, 2);
        if (t > 0) ids[0] = 0;
        AlignedFloats out(static_cast<size_t>(t * stride), 9.0f);
        embedding_gather(packed.data(), ids.data(), t, d, out.data(), stride);
        for (int64_t row = 0; row < t; ++row) {
          ASSERT_TRUE(same_bits({table.data() + ids[row] * d, static_cast<size_t>(d)},
                                {out.data() + row * stride, static_cast<size_t>(d)}))
              << "D " << d << ", row " << row;
          for (int64_t i = d; i < stride; ++i) ASSERT_EQ(out[row * stride + i], 9.0f);
        }
      }
    }
  });
}

// Each element is one chain of additions in token order, whatever threads do and wherever the
// tokens are cut; ids that occur often make the order show.
TEST(EmbeddingScatterAdd, AddsInTokenOrderHoweverTheTokensAreCut) {
  testing::for_each_setting([] {
    for (const int64_t d : {1, 17, 64, 200}) {
      const int64_t t = 300, v = 21, stride = d + 2;
      const AlignedFloats dx = normals(t * stride, 3);
      const AlignedFloats start = normals(v * d, 4);
      const std::vector<int32_t> ids = random_ids(t, 5, 5);  // of 21: most rows stay as they are
      AlignedFloats expected = start;
      for (int64_t row = 0; row < t; ++row) {
        for (int64_t i = 0; i < d; ++i) expected[ids[row] * d + i] += dx[row * stride + i];
      }
      for (const int64_t part : {1, 7, 64, 300}) {
        AlignedFloats packed = packed_table(start, v, d);
        for (int64_t begin = 0; begin < t; begin += part) {
          embedding_scatter_add(packed.data(), ids.data() + begin, dx.data() + begin * stride,
                                stride, std::min(part, t - begin), d);
        }
        EXPECT_TRUE(same_bits(packed_table(expected, v, d), packed))
            << "D " << d << ", parts of " << part;
      }
    }
  });
}

// The comparison above notices another order of additions.
TEST(EmbeddingScatterAdd, AnotherOrderOfTokensHasOtherBits) {
  const int64_t t = 300, d = 17;
  const AlignedFloats dx = normals(t * d, 3);
  AlignedFloats reversed;
  for (int64_t row = t - 1; row >= 0; --row) {
    reversed.insert(reversed.end(), dx.begin() + row * d, dx.begin() + (row + 1) * d);
  }
  const std::vector<int32_t> ids(static_cast<size_t>(t), 3);
  AlignedFloats forward(static_cast<size_t>(packed_size(16, d))), backward = forward;
  embedding_scatter_add(forward.data(), ids.data(), dx.data(), d, t, d);
  embedding_scatter_add(backward.data(), ids.data(), reversed.data(), d, t, d);
  EXPECT_FALSE(same_bits(forward, backward));
}

TEST(EmbeddingScatterAdd, NoTokensDoNothing) {
  AlignedFloats packed(static_cast<size_t>(packed_size(16, 3)), 2.0f);
  embedding_scatter_add(packed.data(), nullptr, nullptr, 3, 0, 3);
  for (const float value : packed) EXPECT_EQ(value, 2.0f);
}

}  // namespace
}  // namespace gradus::kernels
