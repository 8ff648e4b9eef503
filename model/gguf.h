// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/mapped_file.h"
#include "common/status.h"

// GGUF, the container of llama.cpp (versions 2 and 3, little-endian): metadata by key, then tensors
// in ggml's block-quantised formats. A file is foreign data: every count and offset is held against
// its size.
namespace gradus::model {

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

// A metadata value: a number, a truth value, a text, or an array of one of them. Views into the
// mapped file.
struct GgufValue {
  GgufType type = GgufType::kU8;  // of the items if is_array
  bool is_array = false;
  uint64_t count = 1;                   // items
  std::span<const std::byte> bytes;     // numbers and truth values: count x their size
  std::vector<std::string_view> texts;  // texts: [count]
  std::vector<GgufValue> arrays;        // arrays of arrays: [count]

  // The scalar, if it is one of that kind and fits; a whole float is no integer.
  std::optional<int64_t> integer() const;
  std::optional<double> number()
      const;  // of f32 the double with the same shortest decimal: 1e-05f is 1e-05
  std::optional<bool> truth() const;
  std::optional<std::string_view> text() const;
  // All items of an array of that kind.
  std::optional<std::vector<int64_t>> integers() const;
  std::optional<std::vector<double>> numbers() const;
};

// Formats of weights; the numbers are ggml's.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30
};
const char* ggml_type_name(GgmlType type);  // "Q4_1"

struct GgufTensor {
  std::string_view name;
  GgmlType type = GgmlType::kF32;
  std::vector<int64_t> shape;        // row-major, outermost first (the file has it reversed)
  std::span<const std::byte> bytes;  // in the mapped file
  int64_t num_values() const;
};

// An open file. Move-only; const calls are thread-safe. The file must not change meanwhile.
class GgufReader {
 public:
  // NotFound when it cannot be opened; DataLoss, with the byte or the key, for what is broken;
  // InvalidArgument for a version or a tensor format that is not supported.
  static Result<GgufReader> open(const std::string& path);

  GgufReader(GgufReader&&) = default;
  GgufReader& operator=(GgufReader&&) = default;

  const std::string& path() const { return path_; }
  // In the file's order.
  const std::vector<std::pair<std::string_view, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  // Null when there is none of that name.
  const GgufValue* find(std::string_view key) const;
  const GgufTensor* find_tensor(std::string_view name) const;

  // The tensor as floats, row-major, to `out` [num_values()]: bit for bit what
  // gguf.quants.dequantize of the PyPI package gives. Uses the thread pool.
  static void read_f32(const GgufTensor& tensor, float* out);

 private:
  explicit GgufReader(MappedFile file) : file_(std::move(file)) {}
  Status parse();

  std::string path_;
  MappedFile file_;
  std::vector<std::pair<std::string_view, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> key_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

}  // namespace gradus::model
