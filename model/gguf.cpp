// SPDX-License-Identifier: Apache-2.0
#include "model/gguf.h"

#include <array>
#include <bit>
#include <charconv>
#include <cstring>

#include "common/parallel.h"
#include "model/internal/dequantize.h"

namespace gradus::model {
namespace {

constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDimensions = 4;  // ggml's limit
constexpr int kMaxArrayDepth = 4;       // nested arrays are legal and in no known file
// The fewest bytes of an entry; they bound what a count may announce.
constexpr uint64_t kMinKeyBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8;

// Bytes of one number or truth value; 0 for what has no fixed size.
uint64_t width_of(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  GRADUS_CHECK(false, "gguf type out of range");
}

template <class T>
T load(const std::byte* in) {
  T value;
  std::memcpy(&value, in, sizeof(value));
  return value;
}

std::optional<int64_t> integer_at(GgufType type, const std::byte* in) {
  switch (type) {
    case GgufType::kU8:
      return load<uint8_t>(in);
    case GgufType::kI8:
      return load<int8_t>(in);
    case GgufType::kU16:
      return load<uint16_t>(in);
    case GgufType::kI16:
      return load<int16_t>(in);
    case GgufType::kU32:
      return load<uint32_t>(in);
    case GgufType::kI32:
      return load<int32_t>(in);
    case GgufType::kI64:
      return load<int64_t>(in);
    case GgufType::kU64: {
      const auto value = load<uint64_t>(in);
      return value > uint64_t{INT64_MAX} ? std::nullopt
                                         : std::optional(static_cast<int64_t>(value));
    }
    case GgufType::kF32:
    case GgufType::kF64:
    case GgufType::kBool:
    case GgufType::kString:
    case GgufType::kArray:
      return std::nullopt;
  }
  GRADUS_CHECK(false, "gguf type out of range");
}

double shortest_double(float value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  double number = 0;
  std::from_chars(text, end, number);
  return number;
}

std::optional<double> number_at(GgufType type, const std::byte* in) {
  if (type == GgufType::kF32) return shortest_double(load<float>(in));
  if (type == GgufType::kF64) return load<double>(in);
  const std::optional<int64_t> value = integer_at(type, in);
  return value ? std::optional(static_cast<double>(*value)) : std::nullopt;
}

// Reads numbers and texts one after the other and refuses to pass the end of the file.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, uint64_t position)
      : bytes_(bytes), position_(position) {}
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  Result<std::span<const std::byte>> take(uint64_t count) {
    if (count > remaining()) {
      return data_loss(
          "{} bytes are announced at byte {}, {} follow; the file is truncated or broken", count,
          position_, remaining());
    }
    const auto taken = bytes_.subspan(position_, count);
    position_ += count;
    return taken;
  }

  template <class T>
  Status read(T& out) {
    const auto taken = take(sizeof(T));
    if (taken.ok()) out = load<T>(taken->data());
    return taken.status();
  }

  Status read(std::string_view& out) {
    uint64_t length = 0;
    GRADUS_RETURN_IF_ERROR(read(length));
    const auto taken = take(length);
    if (taken.ok()) out = {reinterpret_cast<const char*>(taken->data()), taken->size()};
    return taken.status();
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t position_;
};

Status read_type(Cursor& cursor, GgufType& out) {
  uint32_t type = 0;
  const uint64_t position = cursor.position();
  GRADUS_RETURN_IF_ERROR(cursor.read(type));
  if (type > static_cast<uint32_t>(GgufType::kF64)) {
    return data_loss("unknown value type {} at byte {}; types are 0 to 12", type, position);
  }
  out = static_cast<GgufType>(type);
  return {};
}

// The `count` items of value.type.
Status read_items(Cursor& cursor, int depth, GgufValue& value) {
  if (const uint64_t width = width_of(value.type); width > 0) {
    if (value.count > cursor.remaining() / width) {
      return data_loss(
          "{} items of {} bytes are announced at byte {}, {} bytes follow; the file is "
          "truncated or broken",
          value.count, width, cursor.position(), cursor.remaining());
    }
    value.bytes = cursor.take(value.count * width).value();
    return {};
  }
  const uint64_t least_bytes = value.type == GgufType::kString ? 8 : 12;
  if (value.count > cursor.remaining() / least_bytes) {
    return data_loss(
        "{} items are announced at byte {}, {} bytes follow; the file is truncated or broken",
        value.count, cursor.position(), cursor.remaining());
  }
  if (value.type == GgufType::kString) {
    value.texts.resize(value.count);
    for (std::string_view& text : value.texts) GRADUS_RETURN_IF_ERROR(cursor.read(text));
    return {};
  }
  if (depth == kMaxArrayDepth) {
    return data_loss("arrays are nested more than {} deep at byte {}", kMaxArrayDepth,
                     cursor.position());
  }
  for (uint64_t i = 0; i < value.count; ++i) {
    GgufValue& array = value.arrays.emplace_back();
    array.is_array = true;
    GRADUS_RETURN_IF_ERROR(read_type(cursor, array.type));
    GRADUS_RETURN_IF_ERROR(cursor.read(array.count));
    GRADUS_RETURN_IF_ERROR(read_items(cursor, depth + 1, array));
  }
  return {};
}

Status read_value(Cursor& cursor, GgufValue& value) {
  GRADUS_RETURN_IF_ERROR(read_type(cursor, value.type));
  if (value.type == GgufType::kArray) {
    value.is_array = true;
    GRADUS_RETURN_IF_ERROR(read_type(cursor, value.type));
    GRADUS_RETURN_IF_ERROR(cursor.read(value.count));
  }
  return read_items(cursor, 1, value);
}

struct KnownType {
  GgmlType type;
  const char* name;
};
constexpr std::array kKnownTypes = {
    KnownType{GgmlType::kF32, "F32"},   KnownType{GgmlType::kF16, "F16"},
    KnownType{GgmlType::kBF16, "BF16"}, KnownType{GgmlType::kQ8_0, "Q8_0"},
    KnownType{GgmlType::kQ4_0, "Q4_0"}, KnownType{GgmlType::kQ4_1, "Q4_1"},
    KnownType{GgmlType::kQ5_0, "Q5_0"}, KnownType{GgmlType::kQ5_1, "Q5_1"},
    KnownType{GgmlType::kQ4_K, "Q4_K"}, KnownType{GgmlType::kQ5_K, "Q5_K"},
    KnownType{GgmlType::kQ6_K, "Q6_K"},
};

// ggml's name of a format that is not read, for messages.
std::string foreign_type_name(uint32_t type) {
  struct Foreign {
    uint32_t type;
    const char* name;
  };
  constexpr std::array kForeign = {
      Foreign{9, "Q8_1"},     Foreign{10, "Q2_K"},   Foreign{11, "Q3_K"},    Foreign{15, "Q8_K"},
      Foreign{16, "IQ2_XXS"}, Foreign{17, "IQ2_XS"}, Foreign{18, "IQ3_XXS"}, Foreign{19, "IQ1_S"},
      Foreign{20, "IQ4_NL"},  Foreign{21, "IQ3_S"},  Foreign{22, "IQ2_S"},   Foreign{23, "IQ4_XS"},
      Foreign{29, "IQ1_M"},   Foreign{34, "TQ1_0"},  Foreign{35, "TQ2_0"},   Foreign{39, "MXFP4"},
  };
  for (const Foreign& foreign : kForeign) {
    if (foreign.type == type) return foreign.name;
  }
  return fmt::format("number {}", type);
}

Status known_type(uint32_t number, GgmlType& out) {
  std::vector<std::string> names;
  for (const KnownType& known : kKnownTypes) {
    if (static_cast<uint32_t>(known.type) == number) {
      out = known.type;
      return {};
    }
    names.emplace_back(known.name);
  }
  return invalid_argument("its format {} is not supported; supported are {}",
                          foreign_type_name(number), fmt::join(names, ", "));
}

// A tensor's entry; `offset` counts from the start of the data.
Status read_tensor(Cursor& cursor, GgufTensor& tensor, uint64_t& offset, uint64_t& num_bytes) {
  uint32_t num_dimensions = 0;
  GRADUS_RETURN_IF_ERROR(cursor.read(num_dimensions));
  if (num_dimensions > kMaxDimensions) {
    return data_loss("{} dimensions; at most {} are allowed", num_dimensions, kMaxDimensions);
  }
  tensor.shape.resize(num_dimensions);
  uint64_t num_values = 1;
  for (uint32_t i = 0; i < num_dimensions; ++i) {
    uint64_t extent = 0;
    GRADUS_RETURN_IF_ERROR(cursor.read(extent));
    if (__builtin_mul_overflow(num_values, extent, &num_values) || num_values > uint64_t{1} << 48 ||
        extent > uint64_t{1} << 48) {
      return data_loss("dimension {} of {} makes it too large", i, extent);
    }
    tensor.shape[num_dimensions - 1 - i] = static_cast<int64_t>(extent);
  }
  uint32_t type = 0;
  GRADUS_RETURN_IF_ERROR(cursor.read(type));
  GRADUS_RETURN_IF_ERROR(cursor.read(offset));
  GRADUS_RETURN_IF_ERROR(known_type(type, tensor.type));
  const GgmlBlock block = ggml_block(tensor.type);
  const int64_t row = num_dimensions == 0 ? 1 : tensor.shape.back();
  if (row % block.values != 0) {
    return data_loss("rows of {} values are not whole blocks of {} ({})", row, block.values,
                     ggml_type_name(tensor.type));
  }
  num_bytes = num_values / static_cast<uint64_t>(block.values) * static_cast<uint64_t>(block.bytes);
  return {};
}

}  // namespace

const char* ggml_type_name(GgmlType type) {
  for (const KnownType& known : kKnownTypes) {
    if (known.type == type) return known.name;
  }
  GRADUS_CHECK(false, "ggml type out of range");
}

std::optional<int64_t> GgufValue::integer() const {
  return is_array || bytes.empty() ? std::nullopt : integer_at(type, bytes.data());
}

std::optional<double> GgufValue::number() const {
  return is_array || bytes.empty() ? std::nullopt : number_at(type, bytes.data());
}

std::optional<bool> GgufValue::truth() const {
  if (is_array || type != GgufType::kBool) return std::nullopt;
  return bytes[0] != std::byte{0};
}

std::optional<std::string_view> GgufValue::text() const {
  if (is_array || type != GgufType::kString) return std::nullopt;
  return texts[0];
}

std::optional<std::vector<int64_t>> GgufValue::integers() const {
  if (!is_array || width_of(type) == 0) return std::nullopt;
  std::vector<int64_t> items;
  for (uint64_t i = 0; i < count; ++i) {
    const auto item = integer_at(type, bytes.data() + i * width_of(type));
    if (!item) return std::nullopt;
    items.push_back(*item);
  }
  return items;
}

std::optional<std::vector<double>> GgufValue::numbers() const {
  if (!is_array || width_of(type) == 0) return std::nullopt;
  std::vector<double> items;
  for (uint64_t i = 0; i < count; ++i) {
    const auto item = number_at(type, bytes.data() + i * width_of(type));
    if (!item) return std::nullopt;
    items.push_back(*item);
  }
  return items;
}

int64_t GgufTensor::num_values() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

Result<GgufReader> GgufReader::open(const std::string& path) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  GgufReader reader(std::move(file).value());
  reader.path_ = path;
  GRADUS_RETURN_IF_ERROR(reader.parse().with_prefix(path));
  return reader;
}

Status GgufReader::parse() {
  const std::span<const std::byte> file = file_.bytes();
  if (file.size() < 4 || std::memcmp(file.data(), "GGUF", 4) != 0) {
    return data_loss("does not start with 'GGUF'; not a GGUF file");
  }
  Cursor cursor(file, 4);
  uint32_t version = 0;
  uint64_t num_tensors = 0, num_keys = 0;
  GRADUS_RETURN_IF_ERROR(cursor.read(version).with_prefix("header"));
  if (version != 2 && version != 3) {
    const bool is_swapped = version == 0x02000000 || version == 0x03000000;
    return invalid_argument("version {} is not supported; supported are 2 and 3, little-endian{}",
                            version, is_swapped ? " (this file is big-endian)" : "");
  }
  GRADUS_RETURN_IF_ERROR(cursor.read(num_tensors).with_prefix("header"));
  GRADUS_RETURN_IF_ERROR(cursor.read(num_keys).with_prefix("header"));
  if (num_keys > cursor.remaining() / kMinKeyBytes ||
      num_tensors > cursor.remaining() / kMinTensorBytes) {
    return data_loss(
        "header: {} keys and {} tensors are announced, {} bytes follow; the file is truncated "
        "or broken",
        num_keys, num_tensors, cursor.remaining());
  }
  for (uint64_t i = 0; i < num_keys; ++i) {
    std::string_view key;
    GRADUS_RETURN_IF_ERROR(cursor.read(key).with_prefix(fmt::format("metadata key {}", i)));
    GgufValue value;
    GRADUS_RETURN_IF_ERROR(read_value(cursor, value).with_prefix(fmt::format("key '{}'", key)));
    if (!key_index_.emplace(key, metadata_.size()).second)
      return data_loss("duplicate key '{}'", key);
    metadata_.emplace_back(key, std::move(value));
  }
  std::vector<uint64_t> offsets(num_tensors), sizes(num_tensors);
  for (uint64_t i = 0; i < num_tensors; ++i) {
    GgufTensor tensor;
    GRADUS_RETURN_IF_ERROR(cursor.read(tensor.name).with_prefix(fmt::format("tensor {}", i)));
    GRADUS_RETURN_IF_ERROR(read_tensor(cursor, tensor, offsets[i], sizes[i])
                               .with_prefix(fmt::format("tensor '{}'", tensor.name)));
    if (!tensor_index_.emplace(tensor.name, i).second) {
      return data_loss("duplicate tensor '{}'", tensor.name);
    }
    tensors_.push_back(std::move(tensor));
  }

  uint64_t alignment = kDefaultAlignment;
  if (const GgufValue* value = find("general.alignment")) {
    const int64_t wanted = value->integer().value_or(0);
    if (wanted < 1 || wanted > (1 << 20) || !std::has_single_bit(static_cast<uint64_t>(wanted))) {
      return data_loss("key 'general.alignment' must be a power of two up to 2^20");
    }
    alignment = static_cast<uint64_t>(wanted);
  }
  const uint64_t header_bytes = cursor.position();
  const uint64_t data_begin = (header_bytes + alignment - 1) / alignment * alignment;
  const auto data =
      data_begin < file.size() ? file.subspan(data_begin) : std::span<const std::byte>();
  for (uint64_t i = 0; i < num_tensors; ++i) {
    if (offsets[i] % alignment != 0) {
      return data_loss("tensor '{}': offset {} is not a multiple of the alignment {}",
                       tensors_[i].name, offsets[i], alignment);
    }
    if (offsets[i] > data.size() || sizes[i] > data.size() - offsets[i]) {
      return data_loss(
          "tensor '{}': {} bytes at data offset {}, the file has {} bytes of data; the file is "
          "truncated",
          tensors_[i].name, sizes[i], offsets[i], data.size());
    }
    tensors_[i].bytes = data.subspan(offsets[i], sizes[i]);
  }
  return {};
}

const GgufValue* GgufReader::find(std::string_view key) const {
  const auto it = key_index_.find(key);
  return it == key_index_.end() ? nullptr : &metadata_[it->second].second;
}

const GgufTensor* GgufReader::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

void GgufReader::read_f32(const GgufTensor& tensor, float* out) {
  constexpr int64_t kValuesPerTask = 1 << 15;
  const GgmlBlock block = ggml_block(tensor.type);
  parallel_for(tensor.num_values() / block.values, kValuesPerTask / block.values,
               [&](int64_t begin, int64_t end) {
                 dequantize(tensor.type, tensor.bytes.data() + begin * block.bytes, end - begin,
                            out + begin * block.values);
               });
}

}  // namespace gradus::model
