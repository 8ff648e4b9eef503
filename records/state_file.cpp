// SPDX-License-Identifier: Apache-2.0
#include "records/state_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "common/check.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "records/internal/durable_file.h"

// Layout: header (64 bytes), the entries' bytes each at a multiple of 64, the index. An index
// record is {u32 name_bytes, u32 kind, u64 count, u64 offset, u64 hash, name}. The header is
// written again at the end: until then it says that the file has 0 bytes, which the reader takes
// for an unfinished one.
namespace gradus::records {
namespace {

constexpr char kMagic[8] = {'G', 'R', 'A', 'D', 'U', 'S', 'S', 'T'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kAlignment = 64;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t num_entries;
  uint64_t index_offset;
  uint64_t index_bytes;
  uint64_t index_hash;
  uint64_t file_bytes;
  uint64_t reserved;
  uint64_t header_hash;  // of the bytes before it
};
static_assert(sizeof(Header) == 64);

struct IndexRecord {
  uint32_t name_bytes;
  uint32_t kind;
  uint64_t count;
  uint64_t offset;
  uint64_t hash;
};
static_assert(sizeof(IndexRecord) == 32);

uint64_t header_hash(const Header& header) {
  return hash64(
      std::string_view(reinterpret_cast<const char*>(&header), offsetof(Header, header_hash)));
}

uint64_t element_bytes(StateKind kind) {
  return kind == StateKind::kF32 ? 4 : kind == StateKind::kText ? 1 : 8;
}

}  // namespace

const char* state_kind_name(StateKind kind) {
  switch (kind) {
    case StateKind::kF32:
      return "float32";
    case StateKind::kF64:
      return "float64";
    case StateKind::kI64:
      return "int64";
    case StateKind::kU64:
      return "uint64";
    case StateKind::kText:
      return "text";
  }
  GRADUS_CHECK(false, fmt::format("StateKind {}", static_cast<uint32_t>(kind)));
}

uint64_t StateEntry::num_bytes() const { return count * element_bytes(kind); }

// ---- writing

struct StateWriter::State {
  internal::OutputFile file;
  std::vector<StateEntry> entries;
  uint64_t offset = 0;
  Status status;
};

StateWriter::StateWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
StateWriter::StateWriter(StateWriter&&) noexcept = default;
StateWriter::~StateWriter() = default;

Result<StateWriter> StateWriter::create(const std::string& path) {
  Result<internal::OutputFile> file =
      internal::OutputFile::open(path, internal::OutputFile::Mode::kTruncate);
  GRADUS_RETURN_IF_ERROR(file.status());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  GRADUS_RETURN_IF_ERROR(file->write(&header, sizeof(header)));
  return StateWriter(std::unique_ptr<State>(new State{std::move(*file), {}, sizeof(Header), {}}));
}

Status StateWriter::add_bytes(const std::string& name, StateKind kind, const void* data,
                              uint64_t count) {
  State& state = *state_;
  GRADUS_RETURN_IF_ERROR(state.status);
  GRADUS_CHECK(std::none_of(state.entries.begin(), state.entries.end(),
                            [&](const StateEntry& entry) { return entry.name == name; }),
               fmt::format("{}: entry '{}' is added twice", state.file.path(), name));
  const uint64_t num_bytes = count * element_bytes(kind);
  state.entries.push_back({name, kind, count, state.offset, internal::hash_bytes(data, num_bytes)});
  state.status = state.file.write(data, num_bytes);
  state.offset += num_bytes;
  if (const uint64_t rest = state.offset % kAlignment; rest != 0 && state.status.ok()) {
    const char zeros[kAlignment] = {};
    state.status = state.file.write(zeros, kAlignment - rest);
    state.offset += kAlignment - rest;
  }
  return state.status;
}

Status StateWriter::add(const std::string& name, std::span<const float> values) {
  return add_bytes(name, StateKind::kF32, values.data(), values.size());
}
Status StateWriter::add(const std::string& name, std::span<const double> values) {
  return add_bytes(name, StateKind::kF64, values.data(), values.size());
}
Status StateWriter::add(const std::string& name, std::span<const int64_t> values) {
  return add_bytes(name, StateKind::kI64, values.data(), values.size());
}
Status StateWriter::add(const std::string& name, std::span<const uint64_t> values) {
  return add_bytes(name, StateKind::kU64, values.data(), values.size());
}
Status StateWriter::add_text(const std::string& name, std::string_view text) {
  return add_bytes(name, StateKind::kText, text.data(), text.size());
}

Status StateWriter::finish() {
  State& state = *state_;
  GRADUS_RETURN_IF_ERROR(state.status);
  std::string index;
  for (const StateEntry& entry : state.entries) {
    const IndexRecord record{static_cast<uint32_t>(entry.name.size()),
                             static_cast<uint32_t>(entry.kind), entry.count, entry.offset,
                             entry.hash};
    index.append(reinterpret_cast<const char*>(&record), sizeof(record));
    index += entry.name;
  }
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.num_entries = static_cast<uint32_t>(state.entries.size());
  header.index_offset = state.offset;
  header.index_bytes = index.size();
  header.index_hash = hash64(index);
  header.file_bytes = state.offset + index.size();
  header.header_hash = header_hash(header);
  auto write = [&]() -> Status {
    GRADUS_RETURN_IF_ERROR(state.file.write(index));
    GRADUS_RETURN_IF_ERROR(state.file.write_at(0, &header, sizeof(header)));
    GRADUS_RETURN_IF_ERROR(state.file.sync());
    return state.file.close();
  };
  state.status = write();
  return state.status;
}

// ---- reading

struct StateReader::State {
  std::string path;
  int descriptor = -1;
  std::vector<StateEntry> entries;
  std::unordered_map<std::string, size_t> by_name;

  ~State() {
    if (descriptor >= 0) ::close(descriptor);
  }

  Status read_at(uint64_t offset, void* data, uint64_t num_bytes) const {
    auto* out = static_cast<char*>(data);
    while (num_bytes > 0) {
      const ssize_t got = ::pread(descriptor, out, num_bytes, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return internal::file_error(path, "read", errno);
      if (got == 0) return data_loss("{}: ends at byte {} while it is being read", path, offset);
      out += got;
      offset += static_cast<uint64_t>(got);
      num_bytes -= static_cast<uint64_t>(got);
    }
    return {};
  }

  Status read_header(Header& header);
  Status read_index(const Header& header);
};

Status StateReader::State::read_header(Header& header) {
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) return internal::file_error(path, "read", errno);
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  const uint64_t got = std::min<uint64_t>(file_bytes, sizeof(header));
  GRADUS_RETURN_IF_ERROR(read_at(0, &header, got));
  if (got < sizeof(kMagic) || std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return data_loss("{}: not a Gradus state file; expected it to start with 'GRADUSST'", path);
  }
  if (got == sizeof(header) && header.version != kVersion) {
    return data_loss("{}: state file version {}; this build reads version {}", path, header.version,
                     kVersion);
  }
  if (got == sizeof(header) && header.file_bytes == 0) {
    return data_loss("{}: writing it did not finish; use an earlier checkpoint", path);
  }
  if (got < sizeof(header) || file_bytes < header.file_bytes) {
    return data_loss(
        "{}: truncated: {} bytes, expected {}; use an earlier checkpoint", path, file_bytes,
        got < sizeof(header) ? std::string("more") : std::to_string(header.file_bytes));
  }
  if (header.header_hash != header_hash(header) || file_bytes != header.file_bytes ||
      header.index_offset > file_bytes || header.index_bytes != file_bytes - header.index_offset) {
    return data_loss("{}: corrupt header; use an earlier checkpoint", path);
  }
  return {};
}

Status StateReader::State::read_index(const Header& header) {
  std::string index(header.index_bytes, '\0');
  GRADUS_RETURN_IF_ERROR(read_at(header.index_offset, index.data(), index.size()));
  if (hash64(index) != header.index_hash) {
    return data_loss("{}: corrupt index; use an earlier checkpoint", path);
  }
  // The hash has vouched for the index: what does not fit now is a bug of the writer.
  size_t at = 0;
  for (uint32_t i = 0; i < header.num_entries; ++i) {
    IndexRecord record{};
    GRADUS_CHECK(at + sizeof(record) <= index.size(), path + ": index is too short");
    std::memcpy(&record, index.data() + at, sizeof(record));
    at += sizeof(record);
    GRADUS_CHECK(at + record.name_bytes <= index.size() && record.kind <= 4, path + ": bad record");
    StateEntry entry{index.substr(at, record.name_bytes), static_cast<StateKind>(record.kind),
                     record.count, record.offset, record.hash};
    at += record.name_bytes;
    by_name.emplace(entry.name, entries.size());
    entries.push_back(std::move(entry));
  }
  return {};
}

StateReader::StateReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
StateReader::StateReader(StateReader&&) noexcept = default;
StateReader::~StateReader() = default;

Result<StateReader> StateReader::open(const std::string& path) {
  auto state = std::make_unique<State>();
  state->path = path;
  state->descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (state->descriptor < 0) return internal::file_error(path, "open", errno);
  Header header{};
  GRADUS_RETURN_IF_ERROR(state->read_header(header));
  GRADUS_RETURN_IF_ERROR(state->read_index(header));
  return StateReader(std::move(state));
}

const std::vector<StateEntry>& StateReader::entries() const { return state_->entries; }

bool StateReader::has(const std::string& name) const { return state_->by_name.contains(name); }

Result<const StateEntry*> StateReader::find(const std::string& name, StateKind kind) const {
  const auto found = state_->by_name.find(name);
  if (found == state_->by_name.end()) {
    return data_loss("{}: no entry '{}'; was it written by another version or configuration?",
                     state_->path, name);
  }
  const StateEntry& entry = state_->entries[found->second];
  if (entry.kind != kind) {
    return data_loss("{}: entry '{}' is {}; expected {}", state_->path, name,
                     state_kind_name(entry.kind), state_kind_name(kind));
  }
  return &entry;
}

// Each chunk is hashed while it is in the cache: one pass over memory, all threads.
Status StateReader::read_bytes(const StateEntry& entry, void* data) const {
  const auto total = static_cast<int64_t>(entry.count * element_bytes(entry.kind));
  const int64_t chunk = internal::kHashChunkBytes;
  const int64_t num_chunks = (total + chunk - 1) / chunk;
  std::vector<uint64_t> hashes(static_cast<size_t>(num_chunks));
  std::vector<Status> statuses(static_cast<size_t>(num_chunks));
  parallel_for(num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* out = static_cast<char*>(data) + i * chunk;
      const auto size = static_cast<size_t>(std::min(chunk, total - i * chunk));
      const auto index = static_cast<size_t>(i);
      statuses[index] = state_->read_at(entry.offset + static_cast<uint64_t>(i * chunk), out, size);
      hashes[index] = hash64(std::string_view(out, size));
    }
  });
  for (const Status& status : statuses) GRADUS_RETURN_IF_ERROR(status);
  if (internal::combine_chunk_hashes(hashes, total) != entry.hash) {
    return data_loss("{}: entry '{}' is corrupt: its hash is wrong; use an earlier checkpoint",
                     state_->path, entry.name);
  }
  return {};
}

Status StateReader::read_array(const std::string& name, StateKind kind, void* data,
                               uint64_t count) const {
  const Result<const StateEntry*> entry = find(name, kind);
  GRADUS_RETURN_IF_ERROR(entry.status());
  if ((*entry)->count != count) {
    return invalid_argument("{}: entry '{}' has {} elements; this run expects {}", state_->path,
                            name, (*entry)->count, count);
  }
  return read_bytes(**entry, data);
}

Status StateReader::read(const std::string& name, std::span<float> values) const {
  return read_array(name, StateKind::kF32, values.data(), values.size());
}
Status StateReader::read(const std::string& name, std::span<double> values) const {
  return read_array(name, StateKind::kF64, values.data(), values.size());
}
Status StateReader::read(const std::string& name, std::span<int64_t> values) const {
  return read_array(name, StateKind::kI64, values.data(), values.size());
}
Status StateReader::read(const std::string& name, std::span<uint64_t> values) const {
  return read_array(name, StateKind::kU64, values.data(), values.size());
}
Result<double> StateReader::read_f64(const std::string& name) const {
  double value = 0;
  GRADUS_RETURN_IF_ERROR(read(name, std::span(&value, 1)));
  return value;
}
Result<int64_t> StateReader::read_i64(const std::string& name) const {
  int64_t value = 0;
  GRADUS_RETURN_IF_ERROR(read(name, std::span(&value, 1)));
  return value;
}
Result<uint64_t> StateReader::read_u64(const std::string& name) const {
  uint64_t value = 0;
  GRADUS_RETURN_IF_ERROR(read(name, std::span(&value, 1)));
  return value;
}
Result<std::string> StateReader::read_text(const std::string& name) const {
  const Result<const StateEntry*> entry = find(name, StateKind::kText);
  GRADUS_RETURN_IF_ERROR(entry.status());
  std::string text((*entry)->count, '\0');
  GRADUS_RETURN_IF_ERROR(read_bytes(**entry, text.data()));
  return text;
}

}  // namespace gradus::records
