// SPDX-License-Identifier: Apache-2.0
#include "kernels/nearest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/gemm.h"
#include "tests/support/kernel_settings.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;

struct Found {
  std::vector<float> scores;
  std::vector<int64_t> ids;
};

struct Rows {
  int64_t n, k;
  AlignedFloats values, packed;
  std::vector<int64_t> ids;

  Rows(int64_t count, int64_t width)
      : n(count),
        k(width),
        values(testing::normals(n * k, 11)),
        packed(static_cast<size_t>(packed_size(n, k))) {
    for (int64_t i = 0; i < n; ++i) ids.push_back(i * 7919 % 100003);
    // Every fifth row is a copy of another: ties, which go by id.
    for (int64_t i = 4; i < n; i += 5) {
      std::copy_n(values.begin() + (i - 4) * k, k, values.begin() + i * k);
    }
    pack_weight(values.data(), k, n, k, packed.data());
  }

  Found search(const AlignedFloats& queries, int64_t m, int64_t top, bool with_ids = true) const {
    Found found{std::vector<float>(static_cast<size_t>(m * top)),
                std::vector<int64_t>(static_cast<size_t>(m * top))};
    nearest_rows({.queries_MK = queries.data(),
                  .queries_stride = k,
                  .rows_packed = packed.data(),
                  .ids_N = with_ids ? ids.data() : nullptr,
                  .m = m,
                  .n = n,
                  .k = k,
                  .top = top,
                  .scores_MT = found.scores.data(),
                  .ids_MT = found.ids.data()});
    return found;
  }

  // One chain of fused multiply-adds per score, all of them sorted.
  Found sorted(const AlignedFloats& queries, int64_t m, int64_t top) const {
    Found found;
    for (int64_t q = 0; q < m; ++q) {
      std::vector<std::pair<float, int64_t>> all;
      for (int64_t i = 0; i < n; ++i) {
        float score = 0;
        for (int64_t c = 0; c < k; ++c) {
          score = std::fma(queries[q * k + c], values[i * k + c], score);
        }
        all.emplace_back(-score, ids[i]);
      }
      std::sort(all.begin(), all.end());
      for (int64_t t = 0; t < top; ++t) {
        found.scores.push_back(t < n ? -all[t].first : -testing::kInfinity);
        found.ids.push_back(t < n ? all[t].second : -1);
      }
    }
    return found;
  }
};

TEST(NearestRows, AreTheSortedScoresBitForBitUnderEverySetting) {
  for (const int64_t n : {0, 1, 15, 17, 500, 7000}) {
    const Rows rows(n, 24);
    for (const int64_t m : {1, 2, 7, 300}) {
      if (n == 7000 && m == 300) continue;  // slow loops of the reference
      const AlignedFloats queries = testing::normals(m * 24, static_cast<uint64_t>(m));
      for (const int64_t top : {1, 30}) {
        const Found expected = rows.sorted(queries, m, top);
        testing::for_each_setting([&] {
          const Found found = rows.search(queries, m, top);
          ASSERT_EQ(found.ids, expected.ids) << n << " rows, " << m << " queries, top " << top;
          ASSERT_EQ(found.scores, expected.scores) << n << " rows, " << m << " queries";
        });
      }
    }
  }
}

TEST(NearestRows, ScoresAreThoseOfTheProductOfAnyBatch) {
  const Rows rows(333, 40);
  const AlignedFloats queries = testing::normals(9 * 40, 3);
  AlignedFloats product(static_cast<size_t>(9 * padded(333)));
  gemm_forward({.x_MK = queries.data(),
                .x_stride = 40,
                .w_packed = rows.packed.data(),
                .y_MN = product.data(),
                .y_stride = padded(333),
                .m = 9,
                .n = 333,
                .k = 40});
  const Found found = rows.search(queries, 9, 333, false);
  for (int64_t q = 0; q < 9; ++q) {
    for (int64_t t = 0; t < 333; ++t) {
      const int64_t row = found.ids[q * 333 + t];
      ASSERT_EQ(found.scores[q * 333 + t], product[q * padded(333) + row]);
    }
  }
}

}  // namespace
}  // namespace gradus::kernels
