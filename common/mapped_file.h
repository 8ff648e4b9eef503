// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "common/status.h"

namespace gradus {

// A file mapped into memory for reading. Move-only; const calls are thread-safe. The file must not
// shrink while it is mapped (reading beyond its new end kills the process).
class MappedFile {
 public:
  // NotFound when it cannot be opened, InvalidArgument when it is not a regular file. An empty file
  // maps to no bytes.
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

}  // namespace gradus
