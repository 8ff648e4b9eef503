// SPDX-License-Identifier: Apache-2.0
#include "retriever/index_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "tests/support/files.h"

namespace gradus::retriever {
namespace {

using ::testing::HasSubstr;

constexpr const char* kModel = "tests/golden/retrieval/tiny_bert";

// Three words of the small vocabulary, other ones for each i below 8,000.
std::string text_of(int64_t i) {
  const std::vector<std::string> words = {
      "the",   "and",   "for",    "that",  "what",  "read", "cost", "into", "pieces", "cuts",
      "class", "names", "number", "right", "range", "see",  "here", "main", "each",   "euros"};
  return words[i % 20] + " " + words[i / 20 % 20] + " " + words[i / 400 % 20];
}

PassageSource passages(int64_t count, int64_t first = 0) {
  return [=](const std::function<Status(const Passage&)>& take) -> Status {
    for (int64_t i = first; i < first + count; ++i) {
      const std::string id = fmt::format("p{}", i), text = text_of(i);
      GRADUS_RETURN_IF_ERROR(take({id, i % 2 == 0 ? "Even" : "", text}));
    }
    return {};
  };
}

class IndexFolderTest : public ::testing::Test {
 protected:
  Status build(const std::string& dir, const BuildOptions& options, int64_t count = 40) {
    return build_index_folder(dir, passages(count), *embedder_, options);
  }
  BuildOptions options(const std::string& kind = "flat") const {
    BuildOptions result;
    result.kind = kind;
    result.model_dir = kModel;
    return result;
  }
  static std::unique_ptr<VectorIndex> flat_of(const IndexFolder& folder) {
    IndexOptions flat;
    flat.width = folder.info().width;
    auto index = std::move(make_index("flat", flat)).value();
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < folder.info().num_documents; ++i) ids.push_back(i);
    const std::span<const float> rows(
        folder.vectors(), static_cast<size_t>(folder.info().num_documents * flat.width));
    EXPECT_TRUE(index->add(ids, rows).ok());
    return index;
  }
  std::string new_dir() { return folder_.path() + "/" + std::to_string(++num_dirs_); }

  test::TemporaryFolder folder_;
  std::unique_ptr<Embedder> embedder_ = std::move(Embedder::load(kModel)).value();
  int num_dirs_ = 0;
};

TEST_F(IndexFolderTest, FindsAPassageByItsOwnText) {
  for (const std::string kind : {"flat", "hnsw", "faiss_flat"}) {
    const std::string dir = new_dir();
    ASSERT_TRUE(build(dir, options(kind)).ok());
    const auto folder = IndexFolder::open(dir);
    ASSERT_TRUE(folder.ok()) << folder.status().message();
    EXPECT_EQ(folder->corpus().size(), 40);
    const std::vector<float> query =
        *embedder_->embed(std::vector<std::string>{text_of(7), "Even\n" + text_of(8)});
    const Hits hits = *folder->search(query, 3);
    EXPECT_EQ(hits.ids[0], 7) << kind;
    EXPECT_EQ(hits.ids[3], 8) << kind;
    EXPECT_NEAR(hits.scores[0], 1, 1e-6);
    const Passage passage = *folder->corpus().passage(hits.ids[3]);
    EXPECT_EQ(passage.id, "p8");
    EXPECT_EQ(passage.title, "Even");
    EXPECT_EQ(passage.text, text_of(8));
    // The scores are those of the exact index, to the bit.
    EXPECT_EQ(hits.scores[0], flat_of(*folder)->search(query, 3)->scores[0]) << kind;
  }
}

// A build that is stopped and gone on with gives the bytes of one that is not.
TEST_F(IndexFolderTest, GoesOnWhereItWasStopped) {
  const std::string whole = new_dir(), parts = new_dir();
  constexpr int64_t kCount = 2500;  // three blocks
  ASSERT_TRUE(build(whole, options(), kCount).ok());
  BuildOptions stopping = options();
  int64_t last = 0;
  stopping.progress = [&](const char* stage, int64_t done, int64_t) {
    if (std::string(stage) != "embedding") return true;
    last = done;
    return done < 1024;
  };
  EXPECT_EQ(build(parts, stopping, kCount).message(), "stopped; the same command goes on with it");
  EXPECT_EQ(last, 1024);
  EXPECT_THAT(IndexFolder::open(parts).status().message(),
              HasSubstr("no index.json, so no index, or one whose build was stopped"));
  // As if it had been killed in the middle of a block.
  const std::string part = test::read_file(parts + "/vectors.part");
  test::write_file(parts + "/vectors.part", part + std::string(777, 'x'));
  std::vector<int64_t> seen;
  BuildOptions going_on = options();
  going_on.progress = [&](const char* stage, int64_t done, int64_t) {
    if (std::string(stage) == "embedding") seen.push_back(done);
    return true;
  };
  ASSERT_TRUE(build(parts, going_on, kCount).ok());
  EXPECT_EQ(seen, (std::vector<int64_t>{1024, 2048, 2500}));
  for (const char* file : {"/vectors.bin", "/corpus.bin", "/index.json"}) {
    EXPECT_EQ(test::read_file(parts + file), test::read_file(whole + file)) << file;
  }
  EXPECT_FALSE(std::filesystem::exists(parts + "/build.json"));
  // Once more is nothing to do.
  seen.clear();
  EXPECT_TRUE(build(parts, going_on, kCount).ok());
  EXPECT_TRUE(seen.empty());
}

TEST_F(IndexFolderTest, RefusesAFolderOfAnotherBuild) {
  const std::string dir = new_dir();
  ASSERT_TRUE(build(dir, options()).ok());
  EXPECT_EQ(build(dir, options("hnsw")).message(),
            dir +
                "/index.json: kind is \"flat\", this build has \"hnsw\"; choose another folder or "
                "remove this one");
  EXPECT_EQ(build(dir, options(), 41).message(),
            dir +
                ": holds 40 passages of another corpus, this one has 41; choose another folder or "
                "remove this one");
  EXPECT_EQ(build(new_dir(), options("flatt")).message(),
            "unknown index kind 'flatt'; did you mean 'flat'?; known: faiss_flat, flat, hnsw, "
            "ivf_flat, ivf_pq");
  const std::string empty = new_dir();
  EXPECT_EQ(build(empty, options(), 0).message(), empty + ": the corpus has no passages");
}

TEST_F(IndexFolderTest, ADamagedFileIsOneClearError) {
  const std::string dir = new_dir();
  ASSERT_TRUE(build(dir, options()).ok());
  const auto broken = [&](const char* file, size_t at) {
    const std::string path = dir + file, whole = test::read_file(path);
    std::string other = whole;
    other[at] = static_cast<char>(other[at] ^ 1);
    test::write_file(path, other);
    const auto folder = IndexFolder::open(dir);
    std::string message = folder.status().message();
    if (folder.ok()) message = folder->corpus().passage(0).status().message();
    test::write_file(path, whole);
    return message;
  };
  const size_t corpus_size = test::read_file(dir + "/corpus.bin").size();
  EXPECT_EQ(broken("/vectors.bin", 100),
            dir +
                "/vectors.bin: damaged: not the 40 vectors that index.json names; build the index "
                "again");
  EXPECT_EQ(broken("/corpus.bin", 12),
            dir + "/corpus.bin: passage 0 is damaged; build the index again");
  EXPECT_EQ(broken("/corpus.bin", corpus_size - 30),
            dir + "/corpus.bin: the table of its 40 passages is damaged; build the index again");
  EXPECT_THAT(broken("/corpus.bin", corpus_size - 2), HasSubstr("cut off or damaged at its end"));
  EXPECT_THAT(broken("/corpus.bin", 2), HasSubstr("not a corpus of this program"));
  EXPECT_THAT(broken("/index.json", 0), HasSubstr("/index.json: not a JSON object"));
  const std::string path = dir + "/index.json";
  test::write_file(path, R"({"kind": "flat"})");
  EXPECT_THAT(IndexFolder::open(dir).status().message(), HasSubstr(path + ": damaged: "));
}

// Searches go on while versions change, and each sees one version only.
TEST(Served, NeverFailsNorMixesVersions) {
  const auto version = [](uint64_t number) {
    IndexOptions options;
    options.width = 4;
    auto index = std::move(make_index("flat", options)).value();
    // Documents of version v have ids 10 v, 10 v + 1.
    const auto id = static_cast<int64_t>(10 * number);
    EXPECT_TRUE(
        index->add(std::vector<int64_t>{id, id + 1}, std::vector<float>{1, 0, 0, 0, 0, 1, 0, 0})
            .ok());
    return std::shared_ptr<const VectorIndex>(std::move(index));
  };
  Served<VectorIndex> served(version(1));
  std::atomic<bool> is_done = false;
  std::atomic<int64_t> num_searches = 0;
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!is_done) {
        const auto [number, index] = served.current();
        const Result<Hits> hits = index->search(std::vector<float>{0, 1, 0, 0}, 2);
        ASSERT_TRUE(hits.ok());
        ASSERT_EQ(hits->ids[0], static_cast<int64_t>(10 * number + 1));
        ASSERT_EQ(hits->ids[1], static_cast<int64_t>(10 * number));
        ++num_searches;
      }
    });
  }
  for (uint64_t number = 2; number <= 200; ++number) {
    EXPECT_EQ(served.swap(version(number)), number);
  }
  while (num_searches < 100) std::this_thread::yield();
  is_done = true;
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace gradus::retriever
