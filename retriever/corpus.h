// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/atomic_file.h"
#include "common/mapped_file.h"
#include "common/status.h"

namespace gradus::retriever {

// A passage; in an index its document id is its number in the corpus.
struct Passage {
  std::string_view id;  // the corpus's own name for it
  std::string_view title;
  std::string_view text;
};

// Passages in one file that is mapped, not read: what is not asked for costs no memory. Each
// passage has a checksum, compared when it is asked for, and so has the table that says where they
// are, compared when the file is opened. Move-only; const calls are thread-safe.
class Corpus {
 public:
  // NotFound without the file; DataLoss if it is no corpus of ours, cut off or its table damaged.
  static Result<Corpus> open(const std::string& path);

  int64_t size() const { return size_; }
  // Valid while the corpus lives. `number` in [0, size()). DataLoss if its bytes are damaged.
  Result<Passage> passage(int64_t number) const;
  // Of all passages.
  uint64_t hash() const { return table_hash_; }

 private:
  Corpus(MappedFile file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  MappedFile file_;
  std::string path_;
  int64_t size_ = 0;
  const char* table_ = nullptr;
  uint64_t table_hash_ = 0;
};

// Writes such a file; it appears in finish() or not at all.
class CorpusWriter {
 public:
  static Result<CorpusWriter> create(const std::string& path);
  // InvalidArgument for texts of 4 GiB and more.
  Status append(const Passage& passage);
  Status finish();

 private:
  explicit CorpusWriter(AtomicFile file) : file_(std::move(file)) {}
  AtomicFile file_;
  uint64_t offset_ = 0;
  std::string table_;
};

}  // namespace gradus::retriever
