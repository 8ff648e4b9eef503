// SPDX-License-Identifier: Apache-2.0
#include "retriever/internal/faiss_index.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_map>

#include "common/parallel.h"
#include "retriever/internal/bytes.h"

namespace gradus::retriever::internal {
namespace {

// FAISS starts OpenMP's threads beside ours, and on a small or busy machine their spinning costs
// more than they do: a search gets one thread, and queries are shared out over our own. Building,
// which is long and alone, gets all, unless it is short.
constexpr int64_t kLongBuildFloats = 1 << 22;

class OpenMpThreads {
 public:
  explicit OpenMpThreads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  OpenMpThreads(const OpenMpThreads&) = delete;
  OpenMpThreads& operator=(const OpenMpThreads&) = delete;
  ~OpenMpThreads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// Queries that one thread hands to FAISS at once. It goes to BLAS from 20 on, which is 17 times
// faster than its own loop.
constexpr int64_t kFewestQueries = 32;

template <class Body>
Status translated(const std::string& doing, const Body& body) {
  try {
    body();
  } catch (const faiss::FaissException& error) {
    return {StatusCode::kInternal, fmt::format("FAISS, {}: {}", doing, error.what())};
  } catch (const std::bad_alloc&) {
    return unavailable("FAISS, {}: not enough memory", doing);
  }
  return {};
}

// Documents by their number in FAISS's index. HNSW cannot remove, so no kind does: a removed
// document keeps its number without an id, and searches ask for so many more.
class FaissIndex : public VectorIndex {
 public:
  using Maker = std::unique_ptr<faiss::Index> (*)(const IndexOptions& options, int64_t num_lists);

  FaissIndex(std::string kind, const IndexOptions& options, Maker maker)
      : VectorIndex(kind, options), maker_(maker), kind_(std::move(kind)) {}

  int64_t size() const override { return static_cast<int64_t>(number_of_.size()); }
  bool is_exact() const override { return false; }  // scores are summed in another order

 private:
  bool contains(int64_t id) const override { return number_of_.contains(id); }
  int build_threads(int64_t count) const {
    return count * width() < kLongBuildFloats ? 1 : num_threads();
  }
  bool has_lists() const { return kind_.starts_with("ivf"); }

  Status do_add(std::span<const int64_t> ids, const float* vectors) override {
    const int64_t count = static_cast<int64_t>(ids.size());
    if (kind_ == "hnsw") GRADUS_RETURN_IF_ERROR(check_norms(ids, vectors));
    if (index_ == nullptr) GRADUS_RETURN_IF_ERROR(learn(count, vectors));
    GRADUS_RETURN_IF_ERROR(translated("adding vectors", [&] {
      const OpenMpThreads threads(build_threads(count));
      index_->add(count, vectors);
    }));
    for (const int64_t id : ids) {
      number_of_[id] = static_cast<int64_t>(ids_.size());
      ids_.push_back(id);
    }
    return {};
  }

  // L2 orders vectors as inner products do only if all have one length.
  Status check_norms(std::span<const int64_t> ids, const float* vectors) const {
    for (size_t i = 0; i < ids.size(); ++i) {
      double squares = 0;
      for (int64_t c = 0; c < width(); ++c) {
        const double value = vectors[static_cast<int64_t>(i) * width() + c];
        squares += value * value;
      }
      if (std::fabs(squares - 1) > 1e-3) {
        return invalid_argument(
            "index: hnsw takes vectors of length 1 only, that of id {} has {:.4f}; divide them by "
            "their lengths, or take another kind",
            ids[i], std::sqrt(squares));
      }
    }
    return {};
  }

  // Cells are learned from the vectors of the first add.
  Status learn(int64_t count, const float* vectors) {
    int64_t num_lists = 0;
    if (has_lists()) {
      // FAISS wants 39 vectors a cell at least.
      num_lists =
          options().num_lists > 0
              ? options().num_lists
              : std::clamp<int64_t>(static_cast<int64_t>(4 * std::sqrt(static_cast<double>(count))),
                                    1, std::max<int64_t>(1, count / 39));
      const int64_t least = kind_ == "ivf_pq" ? std::max<int64_t>(256, num_lists) : num_lists;
      if (count < least) {
        return invalid_argument(
            "index: {} learns its cells from the first {} documents and needs at least {}; add "
            "more at once, or take another kind",
            kind_, count, least);
      }
    }
    return translated("learning cells", [&] {
      const OpenMpThreads threads(build_threads(count));
      std::unique_ptr<faiss::Index> made = maker_(options(), num_lists);
      if (auto* lists = dynamic_cast<faiss::IndexIVF*>(made.get())) {
        lists->cp.min_points_per_centroid = 1;  // it would write to standard error
      }
      if (auto* codes = dynamic_cast<faiss::IndexIVFPQ*>(made.get())) {
        codes->pq.cp.min_points_per_centroid = 1;
      }
      made->train(count, vectors);
      index_ = std::move(made);
      set_depth();
    });
  }

  void set_depth() {
    if (auto* graph = dynamic_cast<faiss::IndexHNSW*>(index_.get())) {
      graph->hnsw.efSearch = static_cast<int>(options().search_depth);
    }
    if (auto* lists = dynamic_cast<faiss::IndexIVF*>(index_.get())) {
      lists->nprobe = static_cast<size_t>(options().num_probes);
    }
  }

  Status do_remove(std::span<const int64_t> ids) override {
    for (const int64_t id : ids) {
      ids_[number_of_[id]] = -1;
      number_of_.erase(id);
    }
    // A graph is searched to a certain depth, so what is left must not be lost among what is gone.
    return kind_ == "hnsw" && 2 * size() < static_cast<int64_t>(ids_.size()) ? build_anew()
                                                                             : Status();
  }

  Status build_anew() {
    std::vector<int64_t> ids;
    std::vector<float> vectors(static_cast<size_t>(size() * width()));
    for (size_t number = 0; number < ids_.size(); ++number) {
      if (ids_[number] < 0) continue;
      index_->reconstruct(static_cast<int64_t>(number),
                          vectors.data() + static_cast<int64_t>(ids.size()) * width());
      ids.push_back(ids_[number]);
    }
    index_.reset();
    ids_.clear();
    number_of_.clear();
    return ids.empty() ? Status() : do_add(ids, vectors.data());
  }

  Status do_search(const float* queries, Hits& hits) const override {
    const int64_t removed = static_cast<int64_t>(ids_.size()) - size();
    const int64_t wanted = std::min(hits.top + removed, static_cast<int64_t>(ids_.size()));
    std::vector<faiss::Index::idx_t> numbers(static_cast<size_t>(hits.m * wanted));
    std::vector<float> distances(numbers.size());
    const int64_t grain = std::max(kFewestQueries, (hits.m + num_threads() - 1) / num_threads());
    std::vector<Status> statuses(static_cast<size_t>(hits.m));
    parallel_for(hits.m, grain, [&](int64_t begin, int64_t end) {
      const OpenMpThreads one(1);
      statuses[begin] = translated("searching", [&] {
        index_->search(end - begin, queries + begin * width(), wanted,
                       distances.data() + begin * wanted, numbers.data() + begin * wanted);
      });
    });
    for (const Status& status : statuses) GRADUS_RETURN_IF_ERROR(status);
    for (int64_t q = 0; q < hits.m; ++q)
      take_list(&numbers[q * wanted], &distances[q * wanted], wanted, q, hits);
    return {};
  }

  void take_list(const faiss::Index::idx_t* numbers, const float* distances, int64_t count,
                 int64_t q, Hits& hits) const {
    std::vector<std::pair<float, int64_t>> list;
    for (int64_t i = 0; i < count; ++i) {
      if (numbers[i] < 0 || ids_[numbers[i]] < 0) continue;
      // Of vectors of length 1, |q|^2 = 1 too: d^2 = 2 - 2 q.e. For other queries the score is
      // shifted by a constant, and the exact one is made from the vectors.
      const float score =
          index_->metric_type == faiss::METRIC_L2 ? 1 - distances[i] / 2 : distances[i];
      list.emplace_back(-score, ids_[numbers[i]]);
    }
    std::sort(list.begin(), list.end());
    for (size_t t = 0; t < list.size() && static_cast<int64_t>(t) < hits.top; ++t) {
      hits.scores[q * hits.top + static_cast<int64_t>(t)] = -list[t].first;
      hits.ids[q * hits.top + static_cast<int64_t>(t)] = list[t].second;
    }
  }

  Result<std::string> serialise() const override {
    std::string bytes;
    append_values(bytes, std::span<const int64_t>(ids_));
    if (index_ == nullptr) return bytes;
    faiss::VectorIOWriter writer;
    GRADUS_RETURN_IF_ERROR(
        translated("writing the index", [&] { faiss::write_index(index_.get(), &writer); }));
    bytes.append(reinterpret_cast<const char*>(writer.data.data()), writer.data.size());
    return bytes;
  }

  Status deserialise(std::string_view bytes) override {
    GRADUS_RETURN_IF_ERROR(take_values(bytes, ids_));
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (ids_[i] >= 0) number_of_[ids_[i]] = static_cast<int64_t>(i);
    }
    if (bytes.empty()) return {};
    faiss::VectorIOReader reader;
    reader.data.assign(bytes.begin(), bytes.end());
    GRADUS_RETURN_IF_ERROR(
        translated("reading the index", [&] { index_.reset(faiss::read_index(&reader)); }));
    if (index_->d != width() || index_->ntotal != static_cast<int64_t>(ids_.size())) {
      return data_loss("the index has {} vectors of width {}, its head says {} of width {}",
                       index_->ntotal, index_->d, ids_.size(), width());
    }
    set_depth();
    return {};
  }

  Maker maker_;
  std::string kind_;
  std::unique_ptr<faiss::Index> index_;  // null until the first add
  std::vector<int64_t> ids_;             // by number; -1: removed
  std::unordered_map<int64_t, int64_t> number_of_;
};

std::unique_ptr<faiss::Index> make_flat(const IndexOptions& options, int64_t) {
  return std::make_unique<faiss::IndexFlatIP>(options.width);
}

std::unique_ptr<faiss::Index> make_hnsw(const IndexOptions& options, int64_t) {
  auto index = std::make_unique<faiss::IndexHNSWFlat>(static_cast<int>(options.width),
                                                      static_cast<int>(options.links));
  index->hnsw.efConstruction = static_cast<int>(options.build_depth);
  return index;
}

template <class Index, class... Args>
std::unique_ptr<faiss::Index> make_ivf(const IndexOptions& options, int64_t num_lists,
                                       Args... args) {
  auto quantizer = std::make_unique<faiss::IndexFlatIP>(options.width);
  auto index =
      std::make_unique<Index>(quantizer.get(), static_cast<size_t>(options.width),
                              static_cast<size_t>(num_lists), args..., faiss::METRIC_INNER_PRODUCT);
  index->own_fields = true;
  static_cast<void>(quantizer.release());  // the index owns it now
  return index;
}

std::unique_ptr<faiss::Index> make_ivf_flat(const IndexOptions& options, int64_t num_lists) {
  return make_ivf<faiss::IndexIVFFlat>(options, num_lists);
}

std::unique_ptr<faiss::Index> make_ivf_pq(const IndexOptions& options, int64_t num_lists) {
  return make_ivf<faiss::IndexIVFPQ>(options, num_lists, static_cast<size_t>(options.code_bytes),
                                     size_t{8});
}

Status check_range(const std::string& kind, const char* name, int64_t value, int64_t least,
                   int64_t most) {
  if (value >= least && value <= most) return {};
  return invalid_argument("index: {} must be in [{}, {}] for {}, got {}", name, least, most, kind,
                          value);
}

Result<std::unique_ptr<VectorIndex>> make(const std::string& kind, const IndexOptions& options,
                                          FaissIndex::Maker maker) {
  GRADUS_RETURN_IF_ERROR(check_range(kind, "links", options.links, 2, 512));
  GRADUS_RETURN_IF_ERROR(check_range(kind, "build_depth", options.build_depth, 1, 1 << 20));
  GRADUS_RETURN_IF_ERROR(check_range(kind, "search_depth", options.search_depth, 1, 1 << 20));
  GRADUS_RETURN_IF_ERROR(check_range(kind, "num_lists", options.num_lists, 0, 1 << 24));
  GRADUS_RETURN_IF_ERROR(check_range(kind, "num_probes", options.num_probes, 1, 1 << 24));
  if (kind == "ivf_pq" && (options.code_bytes < 1 || options.width % options.code_bytes != 0)) {
    return invalid_argument("index: code_bytes must divide the width ({}), got {}", options.width,
                            options.code_bytes);
  }
  return std::unique_ptr<VectorIndex>(new FaissIndex(kind, options, maker));
}

}  // namespace

void register_faiss_indexes(IndexRegistry& registry) {
  const std::pair<const char*, FaissIndex::Maker> kinds[] = {{"faiss_flat", make_flat},
                                                             {"hnsw", make_hnsw},
                                                             {"ivf_flat", make_ivf_flat},
                                                             {"ivf_pq", make_ivf_pq}};
  for (const auto& [kind, maker] : kinds) {
    registry.add(kind, [kind = std::string(kind), maker = maker](const IndexOptions& options) {
      return make(kind, options, maker);
    });
  }
}

}  // namespace gradus::retriever::internal
