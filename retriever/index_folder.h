// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include "common/mapped_file.h"
#include "common/status.h"
#include "retriever/corpus.h"
#include "retriever/embedder.h"
#include "retriever/index.h"

namespace gradus::retriever {

// What `gradus index build` makes: passages (corpus.bin), their vectors row after row
// (vectors.bin), the index (index.bin; not for kind flat, which the vectors make at once) and
// index.json, which is written last and says what the rest is.
struct IndexFolderInfo {
  std::string kind;
  std::string model_dir;      // of the encoder
  uint64_t encoder_hash = 0;  // Embedder::hash
  uint64_t corpus_hash = 0;   // Corpus::hash
  uint64_t vectors_hash = 0;
  int64_t num_documents = 0, width = 0;
};

struct BuildOptions {
  std::string kind = "flat";
  std::string model_dir;
  IndexOptions index;  // the width is the encoder's
  // Told of each stage ("passages", "embedding", "index") and how far it is; false stops the build
  // in good order.
  std::function<bool(const char* stage, int64_t done, int64_t total)> progress;
};

// Builds `dir` from passages; `corpus` calls what it is given for each. A build that was stopped
// goes on where it was: vectors are kept in blocks. InvalidArgument if what `dir` has is of another
// corpus, model or kind; Unavailable "stopped" when progress said so.
using PassageSource = std::function<Status(const std::function<Status(const Passage&)>&)>;
Status build_index_folder(const std::string& dir, const PassageSource& corpus, Embedder& embedder,
                          const BuildOptions& options);

// An open folder. Move-only; const calls are thread-safe.
class IndexFolder {
 public:
  // NotFound without index.json; DataLoss naming the file that is damaged or of another build. Of
  // kind flat, the index holds the documents of part `part` of `num_parts` alone, for ranks that
  // search together (search_all_ranks); of the others all.
  static Result<IndexFolder> open(const std::string& dir, int64_t part = 0, int64_t num_parts = 1);

  const IndexFolderInfo& info() const { return info_; }
  const Corpus& corpus() const { return *corpus_; }
  const VectorIndex& index() const { return *index_; }
  // [N, D] by document.
  const float* vectors() const { return reinterpret_cast<const float*>(vectors_->bytes().data()); }

  // The `top` nearest of each query by exact scores: those of an index that is not exact are made
  // anew from the vectors and the lists put in order.
  Result<Hits> search(std::span<const float> queries_MD, int64_t top) const;

 private:
  IndexFolder() = default;
  IndexFolderInfo info_;
  std::unique_ptr<Corpus> corpus_;
  std::unique_ptr<MappedFile> vectors_;
  std::unique_ptr<VectorIndex> index_;
};

// The index that searches use while another is made. A search takes current() once and keeps it, so
// it sees one version from begin to end, and none fails while versions change; an old one goes when
// its last search ends. Thread-safe.
template <class Index>
class Served {
 public:
  struct Version {
    uint64_t number = 0;  // 1, 2, ...: goes into every reply
    std::shared_ptr<const Index> index;
  };
  explicit Served(std::shared_ptr<const Index> first) : version_{1, std::move(first)} {}
  Version current() const {
    const std::lock_guard lock(mutex_);
    return version_;
  }
  // Returns the new number.
  uint64_t swap(std::shared_ptr<const Index> next) {
    const std::lock_guard lock(mutex_);
    version_ = {version_.number + 1, std::move(next)};
    return version_.number;
  }

 private:
  mutable std::mutex mutex_;
  Version version_;
};

}  // namespace gradus::retriever
