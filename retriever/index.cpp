// SPDX-License-Identifier: Apache-2.0
#include "retriever/index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "comm/communicator.h"
#include "common/atomic_file.h"
#include "common/check.h"
#include "common/mapped_file.h"
#include "common/rng.h"
#include "retriever/internal/bytes.h"
#include "retriever/internal/faiss_index.h"
#include "retriever/internal/flat_index.h"

namespace gradus::retriever {
namespace {

constexpr std::string_view kMagic = "GRADIDX1";

// Number of the first vector with a value that is not finite, or -1.
int64_t first_not_finite(std::span<const float> vectors, int64_t width) {
  for (size_t i = 0; i < vectors.size(); ++i) {
    if (!std::isfinite(vectors[i])) return static_cast<int64_t>(i) / width;
  }
  return -1;
}

Status check_shape(const char* what, std::span<const float> vectors, int64_t width) {
  if (vectors.size() % static_cast<size_t>(width) == 0) return {};
  return invalid_argument("index: {} of {} values cannot be vectors of width {}", what,
                          vectors.size(), width);
}

}  // namespace

Status VectorIndex::add(std::span<const int64_t> ids_N, std::span<const float> vectors_ND) {
  GRADUS_CHECK(vectors_ND.size() == ids_N.size() * static_cast<size_t>(width()),
               "VectorIndex::add: one vector per id");
  std::unordered_set<int64_t> added;
  for (const int64_t id : ids_N) {
    if (id < 0) return invalid_argument("index: id {} cannot be added; ids are at least 0", id);
    if (contains(id) || !added.insert(id).second) {
      return invalid_argument(
          "index: id {} cannot be added twice; remove the old one first, or give a new id", id);
    }
  }
  if (const int64_t bad = first_not_finite(vectors_ND, width()); bad >= 0) {
    return invalid_argument("index: the vector of id {} is not finite", ids_N[bad]);
  }
  return ids_N.empty() ? Status() : do_add(ids_N, vectors_ND.data());
}

Status VectorIndex::remove(std::span<const int64_t> ids) {
  std::unordered_set<int64_t> removed;
  for (const int64_t id : ids) {
    if (!contains(id) || !removed.insert(id).second) {
      return not_found("index: id {} cannot be removed: it is not there", id);
    }
  }
  return ids.empty() ? Status() : do_remove(ids);
}

Result<Hits> VectorIndex::search(std::span<const float> queries_MD, int64_t top) const {
  GRADUS_RETURN_IF_ERROR(check_shape("queries", queries_MD, width()));
  if (top < 1) return invalid_argument("index: top must be at least 1, got {}", top);
  if (const int64_t bad = first_not_finite(queries_MD, width()); bad >= 0) {
    return invalid_argument("index: query {} is not finite", bad);
  }
  Hits hits;
  hits.m = static_cast<int64_t>(queries_MD.size()) / width();
  hits.top = top;
  hits.ids.assign(static_cast<size_t>(hits.m * top), -1);
  hits.scores.assign(hits.ids.size(), -std::numeric_limits<float>::infinity());
  if (hits.m > 0 && size() > 0) GRADUS_RETURN_IF_ERROR(do_search(queries_MD.data(), hits));
  return hits;
}

// File: magic, checksum (u64, of the rest), length of the kind and the kind, options, then what the
// kind writes.
Status VectorIndex::save(const std::string& path) const {
  std::string content;
  internal::append_values(content, std::span<const char>(kind_));
  internal::append_value(content, options_);
  Result<std::string> body = serialise();
  if (!body.ok()) return body.status().with_prefix(path);
  const uint64_t checksum = hash64({hash64(content), hash64(*body)});
  Result<AtomicFile> file = AtomicFile::create(path);
  if (!file.ok()) return file.status();
  std::string head(kMagic);
  internal::append_value(head, checksum);
  internal::append_value(head, static_cast<uint64_t>(content.size()));
  GRADUS_RETURN_IF_ERROR(file->append(head + content));
  GRADUS_RETURN_IF_ERROR(file->append(*body));
  return file->commit();
}

Result<std::unique_ptr<VectorIndex>> load_index(const std::string& path) {
  const Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  std::string_view bytes(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  if (!bytes.starts_with(kMagic)) {
    return data_loss("{}: not an index of this program; build it with gradus index build", path);
  }
  bytes.remove_prefix(kMagic.size());
  uint64_t checksum = 0, size = 0;
  Status status = internal::take_value(bytes, checksum);
  if (status.ok()) status = internal::take_value(bytes, size);
  if (!status.ok() || size > bytes.size() ||
      hash64({hash64(bytes.substr(0, size)), hash64(bytes.substr(size))}) != checksum) {
    return data_loss(
        "{}: damaged: the checksum does not fit the {} bytes of the file; build the index again",
        path, file->bytes().size());
  }
  std::string_view content = bytes.substr(0, size);
  std::vector<char> kind;
  IndexOptions options;
  GRADUS_RETURN_IF_ERROR(internal::take_values(content, kind).with_prefix(path));
  GRADUS_RETURN_IF_ERROR(internal::take_value(content, options).with_prefix(path));
  Result<std::unique_ptr<VectorIndex>> index =
      make_index(std::string(kind.begin(), kind.end()), options);
  if (!index.ok()) return index.status().with_prefix(path);
  GRADUS_RETURN_IF_ERROR((*index)->deserialise(bytes.substr(size)).with_prefix(path));
  return index;
}

void register_builtin_indexes(IndexRegistry& registry) {
  registry.add("flat", internal::make_flat_index);
  internal::register_faiss_indexes(registry);
}

Result<std::unique_ptr<VectorIndex>> make_index(const std::string& kind,
                                                const IndexOptions& options) {
  if (options.width < 1) {
    return invalid_argument("index: width must be at least 1, got {}", options.width);
  }
  IndexRegistry registry("index kind");
  register_builtin_indexes(registry);
  return registry.create(kind, options);
}

Hits merge_hits(std::span<const Hits> parts, int64_t top) {
  Hits merged;
  merged.m = parts.empty() ? 0 : parts[0].m;
  merged.top = top;
  std::vector<std::pair<float, int64_t>> all;  // score negated, so that pairs sort as lists do
  for (int64_t q = 0; q < merged.m; ++q) {
    all.clear();
    for (const Hits& part : parts) {
      for (int64_t t = q * part.top; t < (q + 1) * part.top; ++t) {
        if (part.ids[t] >= 0) all.emplace_back(-part.scores[t], part.ids[t]);
      }
    }
    const size_t kept = std::min(all.size(), static_cast<size_t>(top));
    std::partial_sort(all.begin(), all.begin() + static_cast<int64_t>(kept), all.end());
    for (size_t t = 0; t < static_cast<size_t>(top); ++t) {
      merged.ids.push_back(t < kept ? all[t].second : -1);
      merged.scores.push_back(t < kept ? -all[t].first : -std::numeric_limits<float>::infinity());
    }
  }
  return merged;
}

Result<Hits> search_all_ranks(comm::Communicator& ranks, const VectorIndex& part,
                              std::span<const float> queries_MD, int64_t top) {
  const Result<Hits> mine = part.search(queries_MD, top);
  GRADUS_RETURN_IF_ERROR(comm::agree(ranks, mine.status()));
  const std::vector<int64_t> ids = comm::all_gather_values(ranks, mine->ids);
  const std::vector<float> scores = comm::all_gather_values(ranks, mine->scores);
  std::vector<Hits> parts(static_cast<size_t>(ranks.size()), Hits{mine->m, top, {}, {}});
  const size_t count = mine->ids.size();
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    const auto from = static_cast<int64_t>(rank * count);
    parts[rank].ids.assign(ids.begin() + from, ids.begin() + from + static_cast<int64_t>(count));
    parts[rank].scores.assign(scores.begin() + from,
                              scores.begin() + from + static_cast<int64_t>(count));
  }
  return merge_hits(parts, top);
}

}  // namespace gradus::retriever
