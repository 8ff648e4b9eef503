// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/registry.h"
#include "common/status.h"

namespace gradus::comm {
class Communicator;
}

namespace gradus::retriever {

// Letters: M queries, N documents, D width of their vectors, T list length.

// Lists of M queries, best first: score (inner product) descending, then id ascending. Places
// beyond what was found have id -1 and score -inf.
struct Hits {
  int64_t m = 0, top = 0;
  std::vector<int64_t> ids;   // [M, T]
  std::vector<float> scores;  // [M, T]
};

// What an index is made of; the kind says which fields it reads.
struct IndexOptions {
  int64_t width = 0;          // D >= 1
  int64_t links = 32;         // hnsw: of a node
  int64_t build_depth = 100;  // hnsw: candidates while building (efConstruction)
  int64_t search_depth = 64;  // hnsw: candidates while searching (efSearch)
  int64_t num_lists = 0;      // ivf_*: cells; 0 = 4 sqrt(N) of the first add, at most N / 39
  int64_t num_probes = 32;    // ivf_*: cells searched
  int64_t code_bytes = 48;    // ivf_pq: of a vector, a divisor of D
};

// Vectors by document id, and the nearest to a query by inner product. Const calls are
// thread-safe; add and remove want the index alone (Served serves one version while another is
// made).
class VectorIndex {
 public:
  virtual ~VectorIndex() = default;

  int64_t width() const { return options_.width; }
  virtual int64_t size() const = 0;  // documents
  // Whether lists and scores are exact: the recorded scores of an index that is not must be made
  // anew from the vectors.
  virtual bool is_exact() const = 0;

  // Adds documents, vectors_ND row after row. Kinds that learn cells do so from the first call.
  // InvalidArgument, which changes nothing: an id that is negative, known or repeated, a vector
  // that is not finite.
  Status add(std::span<const int64_t> ids_N, std::span<const float> vectors_ND);
  // NotFound naming the first id that is not there; nothing is changed then.
  Status remove(std::span<const int64_t> ids);
  // The `top` nearest of each query, queries_MD row after row. InvalidArgument if top < 1 or a
  // query is not finite.
  Result<Hits> search(std::span<const float> queries_MD, int64_t top) const;

  // Writes the index whole or not at all; load_index reads it.
  Status save(const std::string& path) const;

 protected:
  VectorIndex(std::string kind, IndexOptions options) : kind_(std::move(kind)), options_(options) {}
  const IndexOptions& options() const { return options_; }

 private:
  friend Result<std::unique_ptr<VectorIndex>> load_index(const std::string& path);
  virtual bool contains(int64_t id) const = 0;
  virtual Status do_add(std::span<const int64_t> ids_N, const float* vectors_ND) = 0;
  virtual Status do_remove(std::span<const int64_t> ids) = 0;
  virtual Status do_search(const float* queries_MD, Hits& hits) const = 0;
  virtual Result<std::string> serialise() const = 0;
  virtual Status deserialise(std::string_view bytes) = 0;

  std::string kind_;
  IndexOptions options_;
};

using IndexRegistry = Registry<VectorIndex, const IndexOptions&>;
void register_builtin_indexes(IndexRegistry& registry);

// An empty index; InvalidArgument names an unknown kind or an option outside its range.
Result<std::unique_ptr<VectorIndex>> make_index(const std::string& kind,
                                                const IndexOptions& options);

// NotFound without the file, DataLoss if it is no index of ours, cut off or damaged: a checksum
// over all of it is compared before anything is taken from it. That guards against accidents, not
// against malice: the readers of FAISS 1.7.3 trust what they read, so load only what you made.
Result<std::unique_ptr<VectorIndex>> load_index(const std::string& path);

// The search over all ranks: each holds the documents of a part of the corpus under their ids, all
// call with the same queries and get the same lists, those of one index of all documents.
Result<Hits> search_all_ranks(comm::Communicator& ranks, const VectorIndex& part,
                              std::span<const float> queries_MD, int64_t top);

// The `top` best of several lists for the same queries.
Hits merge_hits(std::span<const Hits> parts, int64_t top);

}  // namespace gradus::retriever
