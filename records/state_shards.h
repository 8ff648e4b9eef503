// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/status.h"
#include "records/state_file.h"

// The state of a run in one state file (state_file.h) per rank, readable by any number of ranks: an
// array may lie in slices over the files, and is found again by its name.
//
//   StateSnapshot mine;                                     // on each of n ranks
//   mine.add_slice("adam/m", begin, total, my_part);
//   mine.write(state_shard_path(folder, "optimizer", rank, n));
//
//   Result<StateShards> all = StateShards::open(folder, "optimizer");   // later, on any rank
//   all->read("adam/m", std::span<float>(m));
namespace gradus::records {

// What one rank adds, copied, so that it can be written while training goes on. Adding a name twice
// is a bug and throws when it is written. Not thread-safe.
class StateSnapshot {
 public:
  void add(const std::string& name, std::span<const float> values);
  void add(const std::string& name, int64_t value);
  void add(const std::string& name, uint64_t value);
  void add(const std::string& name, double value);
  void add_text(const std::string& name, std::string_view text);
  // Elements [begin, begin + values.size()) of the array `name` of `total`; other ranks add the
  // rest. No values: nothing is added.
  void add_slice(const std::string& name, int64_t begin, int64_t total,
                 std::span<const float> values);

  int64_t num_bytes() const { return num_bytes_; }
  // Unavailable when the disk is full.
  Status write(const std::string& path) const;

 private:
  struct Text {
    std::string text;
  };
  using Value = std::variant<std::vector<float>, int64_t, uint64_t, double, Text>;
  std::vector<std::pair<std::string, Value>> values_;
  int64_t num_bytes_ = 0;
};

// FOLDER/STEM.bin for one shard, FOLDER/STEM-00002-of-00004.bin for the second (index 1) of four.
std::string state_shard_path(const std::string& folder, const std::string& stem, int index,
                             int count);

// The shards of a folder as if they were one file. Reads check kind, length and hash and name file
// and entry. Thread-safe after open().
class StateShards {
 public:
  // NotFound without any; DataLoss if one of the shards is missing or broken.
  static Result<StateShards> open(const std::string& folder, const std::string& stem);

  bool has(const std::string& name) const { return arrays_.contains(name); }
  // Names of all arrays and values, sorted.
  std::vector<std::string> names() const;
  // Elements of the whole array. DataLoss if there is no such name.
  Result<int64_t> size(const std::string& name) const;
  // `values` has the size of the array: InvalidArgument otherwise.
  Status read(const std::string& name, std::span<float> values) const;
  // Elements [begin, begin + values.size()): what a rank that holds a part of the array needs.
  Status read_slice(const std::string& name, int64_t begin, std::span<float> values) const;
  Result<int64_t> read_i64(const std::string& name) const;
  Result<uint64_t> read_u64(const std::string& name) const;
  Result<double> read_f64(const std::string& name) const;
  Result<std::string> read_text(const std::string& name) const;

 private:
  struct Piece {
    size_t shard = 0;
    std::string entry;
    int64_t begin = 0, end = 0;
  };
  struct Array {
    int64_t total = 0;
    std::vector<Piece> pieces;  // by `begin`
  };
  explicit StateShards(std::string place) : place_(std::move(place)) {}
  Status add_shard(const std::string& path);
  Result<const Array*> find(const std::string& name) const;
  // The shard that holds a single value.
  Result<const StateReader*> shard_of(const std::string& name) const;

  std::string place_;  // for messages
  std::vector<StateReader> shards_;
  std::map<std::string, Array> arrays_;
};

}  // namespace gradus::records
