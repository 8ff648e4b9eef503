// SPDX-License-Identifier: Apache-2.0
#include "retriever/index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <thread>

#include "retriever/rescore.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/kernel_settings.h"

namespace gradus::retriever {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kWidth = 32;
constexpr int64_t kDocuments = 600;

// Unit vectors in clusters, as those of texts are.
std::vector<float> unit_vectors(int64_t count, uint64_t seed) {
  const testing::AlignedFloats centres = testing::normals(40 * kWidth, 77);
  testing::AlignedFloats noise = testing::normals(count * kWidth, seed, 0.5);
  std::vector<float> rows(noise.begin(), noise.end());
  for (int64_t i = 0; i < count; ++i) {
    double squares = 0;
    for (int64_t c = 0; c < kWidth; ++c) {
      float& value = rows[i * kWidth + c];
      value += centres[(i * 17 + 3) % 40 * kWidth + c];
      squares += double{value} * value;
    }
    for (int64_t c = 0; c < kWidth; ++c) {
      rows[i * kWidth + c] = static_cast<float>(rows[i * kWidth + c] / std::sqrt(squares));
    }
  }
  return rows;
}

std::vector<int64_t> some_ids(int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(i * 31 % 9973 + 10);
  return ids;
}

IndexOptions options() {
  IndexOptions result;
  result.width = kWidth;
  result.code_bytes = 8;
  return result;
}

std::unique_ptr<VectorIndex> filled(const std::string& kind) {
  std::unique_ptr<VectorIndex> index = std::move(make_index(kind, options())).value();
  const Status status = index->add(some_ids(kDocuments), unit_vectors(kDocuments, 1));
  EXPECT_TRUE(status.ok()) << status.message();
  return index;
}

std::vector<std::string> kinds() {
  IndexRegistry registry("index kind");
  register_builtin_indexes(registry);
  return registry.names();
}

// Share of the exact lists that is found.
double recall(const Hits& found, const Hits& exact) {
  int64_t count = 0;
  for (int64_t q = 0; q < exact.m; ++q) {
    const auto from = found.ids.begin() + q * found.top;
    for (int64_t t = 0; t < exact.top; ++t) {
      count += std::find(from, from + found.top, exact.ids[q * exact.top + t]) != from + found.top;
    }
  }
  return static_cast<double>(count) / static_cast<double>(exact.m * exact.top);
}

class EveryIndex : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryIndex, FindsWhatTheExactIndexFindsInEveryBatch) {
  const auto index = filled(GetParam());
  EXPECT_EQ(index->size(), kDocuments);
  const std::vector<float> queries = unit_vectors(50, 5);
  const Hits exact = *filled("flat")->search(queries, 10);
  const Hits found = *index->search(queries, 10);
  // Codes of 8 bytes blur the order; the others find nearly all.
  EXPECT_GT(recall(found, exact), GetParam() == "ivf_pq" ? 0.4 : 0.95);
  for (int64_t q = 0; q < 50; ++q) {
    for (int64_t t = 0; t < 10; ++t) {
      const float score = found.scores[q * 10 + t];
      if (t > 0) {
        EXPECT_LE(score, found.scores[q * 10 + t - 1]);
      }
    }
    const Hits alone = *index->search(std::span(queries).subspan(q * kWidth, kWidth), 10);
    EXPECT_EQ(alone.ids,
              std::vector<int64_t>(found.ids.begin() + q * 10, found.ids.begin() + (q + 1) * 10));
  }
  if (GetParam() == "ivf_pq") return;
  EXPECT_EQ(found.ids[0], exact.ids[0]);
  EXPECT_NEAR(found.scores[0], exact.scores[0], 1e-5);
}

TEST_P(EveryIndex, RemovesAddsAndPadsShortLists) {
  const auto index = filled(GetParam());
  const std::vector<int64_t> ids = some_ids(kDocuments);
  const std::vector<float> vectors = unit_vectors(kDocuments, 1);
  const std::span<const float> query = std::span(vectors).subspan(7 * kWidth, kWidth);
  const int64_t best = index->search(query, 1)->ids[0];
  ASSERT_TRUE(index->remove(std::vector<int64_t>{best}).ok());
  EXPECT_EQ(index->size(), kDocuments - 1);
  const Hits after = *index->search(query, 30);
  EXPECT_EQ(std::count(after.ids.begin(), after.ids.end(), best), 0);
  EXPECT_EQ(index->remove(std::vector<int64_t>{best}).message(),
            fmt::format("index: id {} cannot be removed: it is not there", best));
  const auto place = std::find(ids.begin(), ids.end(), best) - ids.begin();
  ASSERT_TRUE(
      index->add(std::vector<int64_t>{best}, std::span(vectors).subspan(place * kWidth, kWidth))
          .ok());
  EXPECT_EQ(index->search(query, 1)->ids[0], best);

  std::vector<int64_t> all_but_two(ids.begin() + 2, ids.end());
  ASSERT_TRUE(index->remove(all_but_two).ok());
  const Hits few = *index->search(query, 5);
  EXPECT_EQ(std::set<int64_t>(few.ids.begin(), few.ids.begin() + 2),
            (std::set<int64_t>{ids[0], ids[1]}));
  EXPECT_EQ(few.ids[2], -1);
  EXPECT_EQ(few.scores[4], -testing::kInfinity);
}

TEST_P(EveryIndex, IsTheSameAfterSavingAndLoading) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/index.bin";
  const auto index = filled(GetParam());
  ASSERT_TRUE(index->remove(std::vector<int64_t>{some_ids(9).back()}).ok());
  ASSERT_TRUE(index->save(path).ok());
  const auto loaded = load_index(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const std::vector<float> queries = unit_vectors(20, 6);
  const Hits before = *index->search(queries, 12), after = *(*loaded)->search(queries, 12);
  EXPECT_EQ(after.ids, before.ids);
  EXPECT_EQ(after.scores, before.scores);
  EXPECT_EQ((*loaded)->size(), kDocuments - 1);

  // An empty one too.
  const auto empty = std::move(make_index(GetParam(), options())).value();
  EXPECT_EQ(empty->search(std::span(queries).first(kWidth), 3)->ids, std::vector<int64_t>(3, -1));
  ASSERT_TRUE(empty->save(path).ok());
  EXPECT_EQ((*load_index(path))->size(), 0);
}

TEST_P(EveryIndex, ADamagedFileIsOneClearError) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/index.bin";
  ASSERT_TRUE(filled(GetParam())->save(path).ok());
  const std::string whole = test::read_file(path);
  for (const size_t at : {size_t{9}, size_t{20}, whole.size() / 2, whole.size() - 1}) {
    std::string broken = whole;
    broken[at] = static_cast<char>(broken[at] ^ 4);
    test::write_file(path, broken);
    EXPECT_EQ(load_index(path).status().message(),
              fmt::format("{}: damaged: the checksum does not fit the {} bytes of the file; build "
                          "the index again",
                          path, whole.size()))
        << "byte " << at;
  }
  test::write_file(path, whole.substr(0, whole.size() / 3));
  EXPECT_THAT(load_index(path).status().message(), HasSubstr("damaged: the checksum"));
  test::write_file(path, whole.substr(0, 12));
  EXPECT_THAT(load_index(path).status().message(), HasSubstr("damaged: the checksum"));
  test::write_file(path, "something else");
  EXPECT_EQ(load_index(path).status().message(),
            path + ": not an index of this program; build it with gradus index build");
  EXPECT_EQ(load_index(path + ".no").status().code(), StatusCode::kNotFound);
}

TEST_P(EveryIndex, NamesWhatIsWrongAndChangesNothing) {
  const auto index = filled(GetParam());
  std::vector<float> vectors = unit_vectors(2, 9);
  EXPECT_EQ(index->add(std::vector<int64_t>{90001, 90001}, vectors).message(),
            "index: id 90001 cannot be added twice; remove the old one first, or give a new id");
  EXPECT_EQ(index->add(std::vector<int64_t>{90001, 10}, vectors).message(),
            "index: id 10 cannot be added twice; remove the old one first, or give a new id");
  EXPECT_EQ(index->add(std::vector<int64_t>{90001, -1}, vectors).message(),
            "index: id -1 cannot be added; ids are at least 0");
  EXPECT_EQ(index->search(vectors, 0).status().message(), "index: top must be at least 1, got 0");
  EXPECT_EQ(index->search(std::span(vectors).first(5), 3).status().message(),
            "index: queries of 5 values cannot be vectors of width 32");
  vectors[kWidth + 3] = testing::kNan;
  EXPECT_EQ(index->add(std::vector<int64_t>{90001, 90002}, vectors).message(),
            "index: the vector of id 90002 is not finite");
  EXPECT_EQ(index->search(vectors, 3).status().message(), "index: query 1 is not finite");
  EXPECT_EQ(index->size(), kDocuments);
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryIndex, ::testing::ValuesIn(kinds()),
                         [](const auto& kind) { return kind.param; });

TEST(FlatIndex, IsTheSameHoweverItWasFilled) {
  const std::vector<int64_t> ids = some_ids(100);
  const std::vector<float> vectors = unit_vectors(100, 1), queries = unit_vectors(5, 2);
  const auto whole = std::move(make_index("flat", options())).value();
  ASSERT_TRUE(whole->add(ids, vectors).ok());
  const auto parts = std::move(make_index("flat", options())).value();
  for (int64_t begin = 99; begin >= 0; begin -= 7) {
    const int64_t from = std::max<int64_t>(0, begin - 6), count = begin + 1 - from;
    ASSERT_TRUE(parts
                    ->add(std::span(ids).subspan(from, count),
                          std::span(vectors).subspan(from * kWidth, count * kWidth))
                    .ok());
  }
  EXPECT_EQ(parts->search(queries, 40)->ids, whole->search(queries, 40)->ids);
  EXPECT_EQ(parts->search(queries, 40)->scores, whole->search(queries, 40)->scores);
}

TEST(ScorePool, HasTheBitsOfTheFlatIndexForPoolsOfAnySize) {
  const std::vector<float> vectors = unit_vectors(300, 1), query = unit_vectors(1, 2);
  const auto flat = std::move(make_index("flat", options())).value();
  std::vector<int64_t> ids(300);
  for (int64_t i = 0; i < 300; ++i) ids[i] = i;
  ASSERT_TRUE(flat->add(ids, vectors).ok());
  for (const int64_t size : {0, 1, 7, 8, 30, 300}) {
    const Hits pool = *flat->search(query, std::max<int64_t>(size, 1));
    const std::span<const int64_t> places = std::span(pool.ids).first(size);
    std::vector<float> scores(static_cast<size_t>(size));
    score_pool(query.data(), vectors.data(), kWidth, places, scores);
    EXPECT_EQ(scores, std::vector<float>(pool.scores.begin(), pool.scores.begin() + size));
  }
}

TEST(IndexKinds, RefuseWhatTheyCannotServe) {
  EXPECT_THAT(make_index("hsnw", options()).status().message(),
              HasSubstr("unknown index kind 'hsnw'; did you mean 'hnsw'?; known: faiss_flat, flat, "
                        "hnsw, ivf_flat, ivf_pq"));
  EXPECT_EQ(make_index("flat", {}).status().message(), "index: width must be at least 1, got 0");
  IndexOptions wrong = options();
  wrong.code_bytes = 5;
  EXPECT_EQ(make_index("ivf_pq", wrong).status().message(),
            "index: code_bytes must divide the width (32), got 5");
  wrong.links = 1;
  EXPECT_EQ(make_index("hnsw", wrong).status().message(),
            "index: links must be in [2, 512] for hnsw, got 1");
  const auto cells = std::move(make_index("ivf_pq", options())).value();
  EXPECT_EQ(
      cells->add(some_ids(20), unit_vectors(20, 1)).message(),
      "index: ivf_pq learns its cells from the first 20 documents and needs at least 256; add "
      "more at once, or take another kind");
  const auto graph = std::move(make_index("hnsw", options())).value();
  std::vector<float> longer = unit_vectors(1, 1);
  for (float& value : longer) value *= 2;
  EXPECT_EQ(graph->add(std::vector<int64_t>{3}, longer).message(),
            "index: hnsw takes vectors of length 1 only, that of id 3 has 2.0000; divide them by "
            "their lengths, or take another kind");
}

TEST(SearchOfAllRanks, IsThatOfOneIndexForAnyNumberOfRanks) {
  const std::vector<int64_t> ids = some_ids(400);
  const std::vector<float> vectors = unit_vectors(400, 1), queries = unit_vectors(9, 4);
  const auto whole = std::move(make_index("flat", options())).value();
  ASSERT_TRUE(whole->add(ids, vectors).ok());
  const Hits expected = *whole->search(queries, 30);
  for (const int size : {1, 2, 4, 8}) {
    testing::run_ranks(size, [&](comm::Communicator& ranks) {
      const auto part = std::move(make_index("flat", options())).value();
      const int64_t from = 400 * ranks.rank() / size, to = 400 * (ranks.rank() + 1) / size;
      ASSERT_TRUE(part->add(std::span(ids).subspan(from, to - from),
                            std::span(vectors).subspan(from * kWidth, (to - from) * kWidth))
                      .ok());
      const Result<Hits> found = search_all_ranks(ranks, *part, queries, 30);
      EXPECT_EQ(found->ids, expected.ids) << size << " ranks";
      EXPECT_EQ(found->scores, expected.scores) << size << " ranks";
      // A failure of one is that of all.
      std::vector<float> mine = queries;
      if (ranks.rank() == size - 1) mine[0] = testing::kNan;
      EXPECT_THAT(search_all_ranks(ranks, *part, mine, 30).status().message(),
                  HasSubstr("index: query 0 is not finite"));
    });
  }
}

}  // namespace
}  // namespace gradus::retriever
