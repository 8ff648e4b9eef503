// SPDX-License-Identifier: Apache-2.0
#include "records/state_shards.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "common/check.h"

namespace gradus::records {
namespace {

// A slice is the entry "NAME[BEGIN:END:TOTAL]".
std::string slice_name(const std::string& name, int64_t begin, int64_t end, int64_t total) {
  return fmt::format("{}[{}:{}:{}]", name, begin, end, total);
}

struct SliceName {
  std::string name;
  int64_t begin = 0, end = 0, total = 0;
};

// The parts of an entry's name; one that is no slice is the whole array.
SliceName parse_entry(const StateEntry& entry) {
  const int64_t count = static_cast<int64_t>(entry.count);
  const SliceName whole{entry.name, 0, count, count};
  const size_t open = entry.name.rfind('[');
  if (open == std::string::npos || !entry.name.ends_with(']')) return whole;
  SliceName slice{entry.name.substr(0, open)};
  const char* at = entry.name.data() + open + 1;
  const char* last = entry.name.data() + entry.name.size() - 1;
  for (int64_t* number : {&slice.begin, &slice.end, &slice.total}) {
    const auto parsed = std::from_chars(at, last, *number);
    if (parsed.ec != std::errc()) return whole;
    at = parsed.ptr + (parsed.ptr != last && *parsed.ptr == ':' ? 1 : 0);
  }
  return at == last ? slice : whole;
}

}  // namespace

void StateSnapshot::add(const std::string& name, std::span<const float> values) {
  values_.emplace_back(name, std::vector<float>(values.begin(), values.end()));
  num_bytes_ += static_cast<int64_t>(values.size_bytes());
}
void StateSnapshot::add(const std::string& name, int64_t value) {
  values_.emplace_back(name, value);
}
void StateSnapshot::add(const std::string& name, uint64_t value) {
  values_.emplace_back(name, value);
}
void StateSnapshot::add(const std::string& name, double value) {
  values_.emplace_back(name, value);
}
void StateSnapshot::add_text(const std::string& name, std::string_view text) {
  values_.emplace_back(name, Text{std::string(text)});
  num_bytes_ += static_cast<int64_t>(text.size());
}
void StateSnapshot::add_slice(const std::string& name, int64_t begin, int64_t total,
                              std::span<const float> values) {
  const int64_t end = begin + static_cast<int64_t>(values.size());
  GRADUS_CHECK(begin >= 0 && end <= total,
               fmt::format("slice [{}, {}) of '{}', which has {}", begin, end, name, total));
  if (begin == 0 && end == total) {
    add(name, values);
  } else if (!values.empty()) {
    add(slice_name(name, begin, end, total), values);
  }
}

Status StateSnapshot::write(const std::string& path) const {
  Result<StateWriter> writer = StateWriter::create(path);
  if (!writer.ok()) return writer.status();
  for (const auto& [name, value] : values_) {
    const auto add = [&writer, &name = name](const auto& held) -> Status {
      using Held = std::decay_t<decltype(held)>;
      if constexpr (std::is_same_v<Held, Text>) {
        return writer->add_text(name, held.text);
      } else if constexpr (std::is_same_v<Held, std::vector<float>>) {
        return writer->add(name, std::span<const float>(held));
      } else {
        return writer->add(name, held);
      }
    };
    GRADUS_RETURN_IF_ERROR(std::visit(add, value));
  }
  return writer->finish();
}

std::string state_shard_path(const std::string& folder, const std::string& stem, int index,
                             int count) {
  if (count == 1) return fmt::format("{}/{}.bin", folder, stem);
  return fmt::format("{}/{}-{:05}-of-{:05}.bin", folder, stem, index + 1, count);
}

Result<StateShards> StateShards::open(const std::string& folder, const std::string& stem) {
  StateShards shards(fmt::format("{}/{}", folder, stem));
  int count = 0;
  std::error_code error;
  if (std::filesystem::exists(state_shard_path(folder, stem, 0, 1), error)) count = 1;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    const size_t of = name.rfind("-of-");
    if (!name.starts_with(stem + "-") || !name.ends_with(".bin") || of == std::string::npos)
      continue;
    std::from_chars(name.data() + of + 4, name.data() + name.size(), count);
    break;
  }
  if (count == 0) return not_found("{}: no {}.bin and no shards of it", folder, stem);
  for (int i = 0; i < count; ++i) {
    GRADUS_RETURN_IF_ERROR(shards.add_shard(state_shard_path(folder, stem, i, count)));
  }
  for (auto& [name, array] : shards.arrays_) std::ranges::sort(array.pieces, {}, &Piece::begin);
  return shards;
}

Status StateShards::add_shard(const std::string& path) {
  Result<StateReader> reader = StateReader::open(path);
  if (!reader.ok()) return {StatusCode::kDataLoss, reader.status().message()};
  for (const StateEntry& entry : reader->entries()) {
    SliceName slice = parse_entry(entry);
    Array& array = arrays_[slice.name];
    array.total = std::max(array.total, slice.total);
    array.pieces.push_back({shards_.size(), entry.name, slice.begin, slice.end});
  }
  shards_.push_back(std::move(*reader));
  return {};
}

std::vector<std::string> StateShards::names() const {
  std::vector<std::string> names;
  for (const auto& [name, array] : arrays_) names.push_back(name);
  return names;
}

Result<const StateShards::Array*> StateShards::find(const std::string& name) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) {
    return data_loss("{}: no entry '{}'; was it written by another version or configuration?",
                     place_, name);
  }
  return &found->second;
}

Result<int64_t> StateShards::size(const std::string& name) const {
  const Result<const Array*> array = find(name);
  if (!array.ok()) return array.status();
  return (*array)->total;
}

Status StateShards::read(const std::string& name, std::span<float> values) const {
  const Result<const Array*> array = find(name);
  GRADUS_RETURN_IF_ERROR(array.status());
  if ((*array)->total != static_cast<int64_t>(values.size())) {
    return invalid_argument("{}: entry '{}' has {} elements; this run expects {}", place_, name,
                            (*array)->total, values.size());
  }
  return read_slice(name, 0, values);
}

Status StateShards::read_slice(const std::string& name, int64_t begin,
                               std::span<float> values) const {
  const Result<const Array*> array = find(name);
  GRADUS_RETURN_IF_ERROR(array.status());
  const int64_t end = begin + static_cast<int64_t>(values.size());
  int64_t at = begin;
  std::vector<float> whole;
  for (const Piece& piece : (*array)->pieces) {
    if (piece.end <= at || piece.begin > at || at == end) continue;
    const int64_t until = std::min(end, piece.end);
    const StateReader& shard = shards_[piece.shard];
    const std::span<float> out =
        values.subspan(static_cast<size_t>(at - begin), static_cast<size_t>(until - at));
    if (at == piece.begin && until == piece.end) {
      GRADUS_RETURN_IF_ERROR(shard.read(piece.entry, out));
    } else {  // the hash is of the whole piece
      whole.resize(static_cast<size_t>(piece.end - piece.begin));
      GRADUS_RETURN_IF_ERROR(shard.read(piece.entry, std::span<float>(whole)));
      std::copy_n(whole.begin() + (at - piece.begin), until - at, out.begin());
    }
    at = until;
  }
  if (at < end) {
    return data_loss("{}: '{}' lacks its elements from {} on (of {}); a shard is not complete",
                     place_, name, at, (*array)->total);
  }
  return {};
}

Result<const StateReader*> StateShards::shard_of(const std::string& name) const {
  const Result<const Array*> array = find(name);
  if (!array.ok()) return array.status();
  return &shards_[(*array)->pieces.front().shard];
}

Result<int64_t> StateShards::read_i64(const std::string& name) const {
  const Result<const StateReader*> shard = shard_of(name);
  return shard.ok() ? (*shard)->read_i64(name) : Result<int64_t>(shard.status());
}
Result<uint64_t> StateShards::read_u64(const std::string& name) const {
  const Result<const StateReader*> shard = shard_of(name);
  return shard.ok() ? (*shard)->read_u64(name) : Result<uint64_t>(shard.status());
}
Result<double> StateShards::read_f64(const std::string& name) const {
  const Result<const StateReader*> shard = shard_of(name);
  return shard.ok() ? (*shard)->read_f64(name) : Result<double>(shard.status());
}
Result<std::string> StateShards::read_text(const std::string& name) const {
  const Result<const StateReader*> shard = shard_of(name);
  return shard.ok() ? (*shard)->read_text(name) : Result<std::string>(shard.status());
}

}  // namespace gradus::records
