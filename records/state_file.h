// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

// A file of named arrays for what safetensors has no place for: optimizer moments, positions of
// data and randomness, counters. Values come back bit for bit. Little-endian; layout in
// state_file.cpp.
//
//   Result<StateWriter> writer = StateWriter::create("optimizer.bin");
//   writer->add("adam/m", std::span<const float>(m)); writer->add("step", int64_t{40});
//   writer->finish();
//
//   Result<StateReader> reader = StateReader::open("optimizer.bin");
//   reader->read("adam/m", std::span<float>(m));      // straight into place, checked on the way
namespace gradus::records {

enum class StateKind : uint32_t { kF32 = 0, kF64 = 1, kI64 = 2, kU64 = 3, kText = 4 };
const char* state_kind_name(StateKind kind);  // "float32", "float64", "int64", "uint64", "text"

// What the index says of an entry.
struct StateEntry {
  std::string name;
  StateKind kind = StateKind::kF32;
  uint64_t count = 0;   // elements, or bytes of text
  uint64_t offset = 0;  // in the file, a multiple of 64
  uint64_t hash = 0;    // of the bytes
  uint64_t num_bytes() const;
};

// Writes entries straight from the caller's memory, without a copy. After an error every further
// call returns it. Not thread-safe.
class StateWriter {
 public:
  static Result<StateWriter> create(const std::string& path);
  StateWriter(StateWriter&&) noexcept;
  ~StateWriter();

  // Adds an entry; a name used twice is a bug of ours and throws. Unavailable when the disk is
  // full.
  Status add(const std::string& name, std::span<const float> values);
  Status add(const std::string& name, std::span<const double> values);
  Status add(const std::string& name, std::span<const int64_t> values);
  Status add(const std::string& name, std::span<const uint64_t> values);
  Status add(const std::string& name, double value) { return add(name, std::span(&value, 1)); }
  Status add(const std::string& name, int64_t value) { return add(name, std::span(&value, 1)); }
  Status add(const std::string& name, uint64_t value) { return add(name, std::span(&value, 1)); }
  Status add_text(const std::string& name, std::string_view text);

  // Writes the index and flushes to the disk. A file without this call is refused by the reader.
  Status finish();

 private:
  struct State;
  explicit StateWriter(std::unique_ptr<State> state);
  Status add_bytes(const std::string& name, StateKind kind, const void* data, uint64_t count);

  std::unique_ptr<State> state_;
};

// Reads what StateWriter wrote. Every read checks name, kind, length and hash: DataLoss or
// InvalidArgument with path, entry, what was seen and what was expected. Thread-safe after open().
class StateReader {
 public:
  // NotFound, or DataLoss for a foreign, truncated, unfinished or newer file.
  static Result<StateReader> open(const std::string& path);
  StateReader(StateReader&&) noexcept;
  ~StateReader();

  const std::vector<StateEntry>& entries() const;
  bool has(const std::string& name) const;

  // Reads an array into the caller's memory; its length must be that of the entry.
  Status read(const std::string& name, std::span<float> values) const;
  Status read(const std::string& name, std::span<double> values) const;
  Status read(const std::string& name, std::span<int64_t> values) const;
  Status read(const std::string& name, std::span<uint64_t> values) const;
  Result<double> read_f64(const std::string& name) const;
  Result<int64_t> read_i64(const std::string& name) const;
  Result<uint64_t> read_u64(const std::string& name) const;
  Result<std::string> read_text(const std::string& name) const;

 private:
  struct State;
  explicit StateReader(std::unique_ptr<State> state);
  Result<const StateEntry*> find(const std::string& name, StateKind kind) const;
  Status read_array(const std::string& name, StateKind kind, void* data, uint64_t count) const;
  Status read_bytes(const StateEntry& entry, void* data) const;

  std::unique_ptr<State> state_;
};

}  // namespace gradus::records
