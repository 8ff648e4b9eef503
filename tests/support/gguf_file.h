// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gradus::test {

// Builds the bytes of a GGUF file, right or deliberately wrong ones.
class GgufFile {
 public:
  template <class T>
  static std::string raw(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }
  static std::string raw_text(std::string_view text) {
    return raw(uint64_t{text.size()}) + std::string(text);
  }

  // A key with the number of its type and the bytes of its value.
  GgufFile& key(std::string_view name, uint32_t type, const std::string& value) {
    keys_ += raw_text(name) + raw(type) + value;
    ++num_keys_;
    return *this;
  }
  GgufFile& u32(std::string_view name, uint32_t value) { return key(name, 4, raw(value)); }
  GgufFile& f32(std::string_view name, float value) { return key(name, 6, raw(value)); }
  GgufFile& text(std::string_view name, std::string_view value) {
    return key(name, 8, raw_text(value));
  }
  GgufFile& texts(std::string_view name, const std::vector<std::string>& values) {
    std::string bytes = raw(uint32_t{8}) + raw(uint64_t{values.size()});
    for (const std::string& value : values) bytes += raw_text(value);
    return key(name, 9, bytes);
  }
  GgufFile& i32s(std::string_view name, const std::vector<int32_t>& values) {
    std::string bytes = raw(uint32_t{5}) + raw(uint64_t{values.size()});
    for (const int32_t value : values) bytes += raw(value);
    return key(name, 9, bytes);
  }

  // A tensor of ggml's type number `type`; `shape` outermost first.
  GgufFile& tensor(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                   const std::string& bytes) {
    data_.resize((data_.size() + 31) / 32 * 32, '\0');
    return tensor_entry(name, shape, type, data_.size(), bytes);
  }
  GgufFile& tensor_entry(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                         uint64_t offset, const std::string& bytes) {
    tensors_ += raw_text(name) + raw(static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i > 0; --i) tensors_ += raw(static_cast<uint64_t>(shape[i - 1]));
    tensors_ += raw(type) + raw(offset);
    data_ += bytes;
    ++num_tensors_;
    return *this;
  }
  GgufFile& f32_tensor(std::string_view name, const std::vector<int64_t>& shape,
                       std::span<const float> values) {
    return tensor(name, shape, 0,
                  std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes()));
  }

  std::string bytes(uint32_t version = 3) const {
    std::string out = "GGUF" + raw(version) + raw(num_tensors_) + raw(num_keys_) + keys_ + tensors_;
    out.resize((out.size() + 31) / 32 * 32, '\0');
    return out + data_;
  }

 private:
  uint64_t num_keys_ = 0;
  uint64_t num_tensors_ = 0;
  std::string keys_;
  std::string tensors_;
  std::string data_;
};

}  // namespace gradus::test
