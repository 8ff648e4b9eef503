// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "common/parallel.h"
#include "model/internal/float_formats.h"
#include "model/internal/json_file.h"

namespace gradus::model {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
// The reference implementation's limit; a file of another kind shows as a larger number.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kValuesPerTask = 1 << 16;

struct DtypeBits {
  std::string_view name;
  uint64_t bits;
};
constexpr std::array kDtypes = {
    DtypeBits{"F4", 4},      DtypeBits{"F6_E2M3", 6}, DtypeBits{"F6_E3M2", 6},
    DtypeBits{"BOOL", 8},    DtypeBits{"U8", 8},      DtypeBits{"I8", 8},
    DtypeBits{"F8_E5M2", 8}, DtypeBits{"F8_E4M3", 8}, DtypeBits{"F8_E8M0", 8},
    DtypeBits{"I16", 16},    DtypeBits{"U16", 16},    DtypeBits{"F16", 16},
    DtypeBits{"BF16", 16},   DtypeBits{"I32", 32},    DtypeBits{"U32", 32},
    DtypeBits{"F32", 32},    DtypeBits{"C64", 64},    DtypeBits{"F64", 64},
    DtypeBits{"I64", 64},    DtypeBits{"U64", 64},
};

// Bytes of a tensor; an error when the dtype is unknown, the size overflows or is no whole number
// of bytes.
Result<uint64_t> num_bytes_of(std::string_view dtype, const std::vector<int64_t>& shape) {
  const auto it = std::find_if(kDtypes.begin(), kDtypes.end(),
                               [&](const DtypeBits& known) { return known.name == dtype; });
  if (it == kDtypes.end()) return data_loss("unknown dtype '{}'", dtype);
  uint64_t bits = it->bits;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits)) {
      return data_loss("shape [{}] is too large", fmt::join(shape, ", "));
    }
  }
  if (bits % 8 != 0) {
    return data_loss("shape [{}] of {} is not a whole number of bytes", fmt::join(shape, ", "),
                     dtype);
  }
  return bits / 8;
}

// A list of integers >= 0, or nothing when `value` is something else.
std::optional<std::vector<int64_t>> sizes_of(const json& value) {
  if (!value.is_array()) return std::nullopt;
  std::vector<int64_t> sizes;
  for (const json& size : value) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{INT64_MAX})
      return std::nullopt;
    sizes.push_back(size.get<int64_t>());
  }
  return sizes;
}

// A header entry with the place of its bytes, counted from the end of the header.
struct Entry {
  SafetensorsTensor tensor;
  uint64_t begin = 0;
  uint64_t end = 0;
};

Result<Entry> parse_entry(const std::string& name, const json& info) {
  Entry entry;
  entry.tensor.name = name;
  const bool is_complete = info.is_object() && info.contains("dtype") &&
                           info["dtype"].is_string() && info.contains("shape") &&
                           info.contains("data_offsets");
  if (!is_complete) return data_loss("must be {{dtype, shape, data_offsets}}, got {}", info.dump());
  const auto shape = sizes_of(info["shape"]);
  if (!shape) return data_loss("shape must be a list of sizes, got {}", info["shape"].dump());
  const auto offsets = sizes_of(info["data_offsets"]);
  if (!offsets || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1]) {
    return data_loss("data_offsets must be [begin, end], got {}", info["data_offsets"].dump());
  }
  entry.tensor.dtype = info["dtype"].get<std::string>();
  entry.tensor.shape = *shape;
  entry.begin = static_cast<uint64_t>((*offsets)[0]);
  entry.end = static_cast<uint64_t>((*offsets)[1]);
  const Result<uint64_t> num_bytes = num_bytes_of(entry.tensor.dtype, *shape);
  if (!num_bytes.ok()) return num_bytes.status();
  if (entry.end - entry.begin != *num_bytes) {
    return data_loss("data_offsets [{}, {}] hold {} bytes; {} of shape [{}] needs {}", entry.begin,
                     entry.end, entry.end - entry.begin, entry.tensor.dtype,
                     fmt::join(*shape, ", "), *num_bytes);
  }
  return entry;
}

// The text of the header, after checks of its length.
Result<std::string_view> header_text(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return data_loss(
        "{} bytes are too few for a safetensors file; it is truncated or of another kind",
        file.size());
  }
  uint64_t length;
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > kMaxHeaderBytes) {
    return data_loss(
        "a header of {} bytes is announced, at most {} are allowed; this is not a safetensors "
        "file",
        length, kMaxHeaderBytes);
  }
  if (length > file.size() - kLengthBytes) {
    return data_loss("a header of {} bytes is announced, {} follow; the file is truncated", length,
                     file.size() - kLengthBytes);
  }
  return std::string_view(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
}

// Entries sorted by place must cover `data` without overlap and hole.
Status place_entries(std::vector<Entry>& entries, std::span<const std::byte> data) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  const std::string* previous = nullptr;
  for (Entry& entry : entries) {
    const std::string& name = entry.tensor.name;
    if (entry.begin < expected) {
      return data_loss("tensors '{}' and '{}' overlap at data byte {}", *previous, name,
                       entry.begin);
    }
    if (entry.begin > expected) {
      return data_loss(
          "hole of {} bytes before tensor '{}' at data byte {}; data must be contiguous",
          entry.begin - expected, name, entry.begin);
    }
    if (entry.end > data.size()) {
      return data_loss("tensor '{}' ends at data byte {}, the file has {}; the file is truncated",
                       name, entry.end, data.size());
    }
    entry.tensor.bytes = data.subspan(entry.begin, entry.end - entry.begin);
    expected = entry.end;
    previous = &name;
  }
  if (expected != data.size()) {
    return data_loss(
        "{} bytes follow the last tensor; the header and the data do not belong together",
        data.size() - expected);
  }
  return {};
}

// False also where the file system refuses to tell; opening then says why.
bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

std::string json_text(std::string_view text) { return json(text).dump(); }

std::string file_name_of_index(const std::string& index_path) {
  return std::filesystem::path(index_path).filename().string();
}

}  // namespace

int64_t SafetensorsTensor::num_values() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

Result<SafetensorsReader> SafetensorsReader::open(const std::string& path) {
  SafetensorsReader reader;
  reader.path_ = path;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    reader.path_ = path + "/model.safetensors";
    if (!exists(reader.path_)) reader.path_ += ".index.json";
    if (!exists(reader.path_)) {
      const bool has_pickle =
          exists(path + "/pytorch_model.bin") || exists(path + "/pytorch_model.bin.index.json");
      return not_found("{}: no model.safetensors or model.safetensors.index.json; {}", path,
                       has_pickle ? "pytorch_model.bin is not read, save it as safetensors with "
                                    "save_pretrained of transformers"
                                  : "expected a Hugging Face model directory");
    }
  }
  const bool is_index = reader.path_.ends_with(".index.json");
  GRADUS_RETURN_IF_ERROR(is_index ? reader.add_shards(reader.path_)
                                  : reader.add_file(reader.path_));
  return reader;
}

const SafetensorsTensor* SafetensorsReader::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

Status SafetensorsReader::add_file(const std::string& path) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  const Result<std::string_view> text = header_text(file->bytes());
  if (!text.ok()) return text.status().with_prefix(path);
  std::vector<JsonKey> keys;
  const Result<json> header = parse_json_object(*text, path + ": header", &keys);
  if (!header.ok()) return header.status();

  std::vector<Entry> entries;
  bool is_metadata = false;
  for (const JsonKey& key : keys) {
    if (key.depth == 1) is_metadata = key.name == "__metadata__";
    if (is_metadata && key.depth == 2 && files_.empty()) {
      const json& value = (*header)["__metadata__"][key.name];
      if (!value.is_string()) {
        return data_loss("{}: header: __metadata__ '{}' must be a string, got {}", path, key.name,
                         value.dump());
      }
      metadata_.emplace_back(key.name, value.get<std::string>());
    }
    if (is_metadata || key.depth != 1) continue;
    Result<Entry> entry = parse_entry(key.name, (*header)[key.name]);
    if (!entry.ok()) {
      return entry.status().with_prefix(fmt::format("{}: tensor '{}'", path, key.name));
    }
    entries.push_back(std::move(entry).value());
  }
  GRADUS_RETURN_IF_ERROR(
      place_entries(entries, file->bytes().subspan(kLengthBytes + text->size())).with_prefix(path));
  for (Entry& entry : entries) {
    if (!index_.emplace(entry.tensor.name, tensors_.size()).second) {
      return data_loss("{}: tensor '{}' is in an earlier shard too", path, entry.tensor.name);
    }
    tensors_.push_back(std::move(entry.tensor));
  }
  files_.push_back(std::move(file).value());
  return {};
}

Status SafetensorsReader::add_shards(const std::string& index_path) {
  const Result<json> index = read_json_object(index_path);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object()) {
    return data_loss("{}: key 'weight_map' is missing; expected {{tensor: file}}", index_path);
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string() || shard.get<std::string>().find('/') != std::string::npos) {
      return data_loss("{}: tensor '{}' must name a file of the same folder, got {}", index_path,
                       name, shard.dump());
    }
    shards.insert(shard.get<std::string>());
  }
  const std::string folder =
      index_path.substr(0, index_path.size() - file_name_of_index(index_path).size());
  for (const std::string& shard : shards) {
    const size_t first = tensors_.size();
    GRADUS_RETURN_IF_ERROR(add_file(folder + shard));
    for (size_t i = first; i < tensors_.size(); ++i) {
      const auto it = map->find(tensors_[i].name);
      if (it == map->end() || *it != shard) {
        return data_loss("{}: tensor '{}' is in {}, the index says {}; they do not belong together",
                         index_path, tensors_[i].name, shard,
                         it == map->end() ? "nothing of it" : it->get<std::string>());
      }
    }
  }
  for (const auto& [name, shard] : map->items()) {
    if (find(name) == nullptr) {
      return data_loss("{}: tensor '{}' is not in {}; the shard is of another model", index_path,
                       name, shard.get<std::string>());
    }
  }
  return {};
}

Status convert_to_f32(const SafetensorsTensor& tensor, int64_t first, int64_t count, float* out) {
  const std::byte* bytes = tensor.bytes.data();
  if (tensor.dtype == "F32") {
    std::memcpy(out, bytes + first * 4, static_cast<size_t>(count) * sizeof(float));
  } else if (tensor.dtype == "F16") {
    f16_to_f32(bytes + first * 2, count, out);
  } else if (tensor.dtype == "BF16") {
    bf16_to_f32(bytes + first * 2, count, out);
  } else {
    return invalid_argument("tensor '{}' is {}; weights must be F32, F16 or BF16", tensor.name,
                            tensor.dtype);
  }
  return {};
}

Status convert_to_f32(const SafetensorsTensor& tensor, float* out) {
  GRADUS_RETURN_IF_ERROR(convert_to_f32(tensor, 0, 0, out));  // of the dtype
  parallel_for(tensor.num_values(), kValuesPerTask, [&](int64_t begin, int64_t end) {
    const Status status = convert_to_f32(tensor, begin, end - begin, out + begin);
    GRADUS_CHECK(status.ok(), status.message());
  });
  return {};
}

Result<SafetensorsWriter> SafetensorsWriter::create(
    const std::string& path, std::vector<SafetensorsSpec> specs,
    const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::vector<std::string> entries;
  if (!metadata.empty()) {
    std::vector<std::string> pairs;
    for (const auto& [key, value] : metadata)
      pairs.push_back(json_text(key) + ":" + json_text(value));
    entries.push_back(fmt::format("\"__metadata__\":{{{}}}", fmt::join(pairs, ",")));
  }
  uint64_t offset = 0;
  for (const SafetensorsSpec& spec : specs) {
    const Result<uint64_t> num_bytes = num_bytes_of(spec.dtype, spec.shape);
    GRADUS_CHECK(num_bytes.ok(), spec.name + ": " + num_bytes.status().message());
    entries.push_back(fmt::format("{}:{{\"dtype\":{},\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                                  json_text(spec.name), json_text(spec.dtype),
                                  fmt::join(spec.shape, ","), offset, offset + *num_bytes));
    offset += *num_bytes;
  }
  std::string header = fmt::format("{{{}}}", fmt::join(entries, ","));
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data are aligned

  Result<AtomicFile> file = AtomicFile::create(path);
  if (!file.ok()) return file.status();
  const uint64_t length = header.size();
  GRADUS_RETURN_IF_ERROR(file->append(std::as_bytes(std::span(&length, 1))));
  GRADUS_RETURN_IF_ERROR(file->append(header));
  return SafetensorsWriter(std::move(file).value(), std::move(specs));
}

Status SafetensorsWriter::append(std::span<const std::byte> bytes) {
  GRADUS_CHECK(next_ < specs_.size(), file_.path() + ": all tensors are written");
  const SafetensorsSpec& spec = specs_[next_];
  const uint64_t expected = *num_bytes_of(spec.dtype, spec.shape);
  GRADUS_CHECK(bytes.size() == expected, fmt::format("tensor '{}': {} bytes, expected {}",
                                                     spec.name, bytes.size(), expected));
  ++next_;
  return file_.append(bytes);
}

Status SafetensorsWriter::append_f32(std::span<const float> values) {
  GRADUS_CHECK(next_ < specs_.size(), file_.path() + ": all tensors are written");
  const SafetensorsSpec& spec = specs_[next_];
  if (spec.dtype == "F32") return append(std::as_bytes(values));
  GRADUS_CHECK(spec.dtype == "BF16", "append_f32 writes F32 and BF16, not " + spec.dtype);
  std::vector<uint16_t> halves(values.size());
  parallel_for(static_cast<int64_t>(values.size()), kValuesPerTask,
               [&](int64_t begin, int64_t end) {
                 f32_to_bf16(values.data() + begin, end - begin, halves.data() + begin);
               });
  return append(std::as_bytes(std::span(halves)));
}

Status SafetensorsWriter::finish() {
  GRADUS_CHECK(next_ == specs_.size(),
               fmt::format("{}: {} of {} tensors written", file_.path(), next_, specs_.size()));
  return file_.commit();
}

}  // namespace gradus::model
