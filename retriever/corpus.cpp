// SPDX-License-Identifier: Apache-2.0
#include "retriever/corpus.h"

#include <cstring>

#include "common/check.h"
#include "common/rng.h"
#include "retriever/internal/bytes.h"

namespace gradus::retriever {
namespace {

// File: magic; the bytes of all passages (id, title, text); the table; its checksum, the number of
// passages, and the magic again.
constexpr std::string_view kMagic = "GRADCRP1";

struct Entry {
  uint64_t offset;  // of the passage's first byte in the file
  uint32_t id_size, title_size, text_size, unused;
  uint64_t hash;
};
struct Trailer {
  uint64_t table_hash, count;
  char magic[8];
};

}  // namespace

Result<CorpusWriter> CorpusWriter::create(const std::string& path) {
  Result<AtomicFile> file = AtomicFile::create(path);
  if (!file.ok()) return file.status();
  CorpusWriter writer(std::move(*file));
  GRADUS_RETURN_IF_ERROR(writer.file_.append(kMagic));
  writer.offset_ = kMagic.size();
  return writer;
}

Status CorpusWriter::append(const Passage& passage) {
  std::string bytes;
  for (const std::string_view part : {passage.id, passage.title, passage.text}) {
    if (part.size() > UINT32_MAX) {
      return invalid_argument("passage '{}': a part of {} bytes; expected less than 4 GiB",
                              passage.id.substr(0, 60), part.size());
    }
    bytes += part;
  }
  internal::append_value(table_,
                         Entry{offset_, static_cast<uint32_t>(passage.id.size()),
                               static_cast<uint32_t>(passage.title.size()),
                               static_cast<uint32_t>(passage.text.size()), 0, hash64(bytes)});
  offset_ += bytes.size();
  return file_.append(bytes);
}

Status CorpusWriter::finish() {
  Trailer trailer{hash64(table_), table_.size() / sizeof(Entry), {}};
  std::memcpy(trailer.magic, kMagic.data(), kMagic.size());
  internal::append_value(table_, trailer);
  GRADUS_RETURN_IF_ERROR(file_.append(table_));
  return file_.commit();
}

Result<Corpus> Corpus::open(const std::string& path) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  Corpus corpus(std::move(*file), path);
  const std::string_view bytes(reinterpret_cast<const char*>(corpus.file_.bytes().data()),
                               corpus.file_.bytes().size());
  if (!bytes.starts_with(kMagic)) {
    return data_loss("{}: not a corpus of this program; make it with gradus index build", path);
  }
  Trailer trailer{};
  const uint64_t room = bytes.size() - kMagic.size();
  bool is_whole = room >= sizeof(trailer);
  if (is_whole) {
    std::memcpy(&trailer, bytes.data() + bytes.size() - sizeof(trailer), sizeof(trailer));
    is_whole = std::string_view(trailer.magic, sizeof(trailer.magic)) == kMagic &&
               trailer.count <= (room - sizeof(trailer)) / sizeof(Entry);
  }
  if (!is_whole) {
    return data_loss("{}: cut off or damaged at its end ({} bytes); build the index again", path,
                     bytes.size());
  }
  const uint64_t table_size = trailer.count * sizeof(Entry);
  corpus.table_ = bytes.data() + bytes.size() - sizeof(trailer) - table_size;
  if (hash64(std::string_view(corpus.table_, table_size)) != trailer.table_hash) {
    return data_loss("{}: the table of its {} passages is damaged; build the index again", path,
                     trailer.count);
  }
  corpus.size_ = static_cast<int64_t>(trailer.count);
  corpus.table_hash_ = trailer.table_hash;
  return corpus;
}

Result<Passage> Corpus::passage(int64_t number) const {
  GRADUS_CHECK(number >= 0 && number < size_, "Corpus: number of a passage");
  Entry entry;
  std::memcpy(&entry, table_ + number * static_cast<int64_t>(sizeof(entry)), sizeof(entry));
  const std::string_view bytes(reinterpret_cast<const char*>(file_.bytes().data()),
                               file_.bytes().size());
  const uint64_t size = uint64_t{entry.id_size} + entry.title_size + entry.text_size;
  if (entry.offset > bytes.size() || size > bytes.size() - entry.offset ||
      hash64(bytes.substr(entry.offset, size)) != entry.hash) {
    return data_loss("{}: passage {} is damaged; build the index again", path_, number);
  }
  const std::string_view all = bytes.substr(entry.offset, size);
  return Passage{all.substr(0, entry.id_size), all.substr(entry.id_size, entry.title_size),
                 all.substr(entry.id_size + entry.title_size)};
}

}  // namespace gradus::retriever
