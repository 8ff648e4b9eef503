// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "common/status.h"

// Plain values in byte strings: a count (u64), then the values as they lie in memory.
namespace gradus::retriever::internal {

template <class T>
void append_value(std::string& bytes, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <class T>
void append_values(std::string& bytes, std::span<const T> values) {
  append_value(bytes, static_cast<uint64_t>(values.size()));
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

// Both take what they read off the front; DataLoss if it is not all there.
template <class T>
Status take_value(std::string_view& bytes, T& value) {
  if (bytes.size() < sizeof(T)) return data_loss("ends in the middle of a value");
  std::memcpy(&value, bytes.data(), sizeof(T));
  bytes.remove_prefix(sizeof(T));
  return {};
}

template <class T>
Status take_values(std::string_view& bytes, std::vector<T>& values) {
  uint64_t count = 0;
  GRADUS_RETURN_IF_ERROR(take_value(bytes, count));
  if (count > bytes.size() / sizeof(T)) {
    return data_loss("{} values are announced, {} bytes are left", count, bytes.size());
  }
  values.resize(count);
  if (count > 0) std::memcpy(values.data(), bytes.data(), count * sizeof(T));
  bytes.remove_prefix(count * sizeof(T));
  return {};
}

}  // namespace gradus::retriever::internal
