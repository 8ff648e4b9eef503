// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "common/status.h"

namespace gradus {

// A file that appears under its name whole or not at all: bytes go to a temporary neighbour, which
// commit() syncs to disk and renames over `path`. Destroyed before that, it leaves nothing and
// `path` as it was. Move-only; one thread.
class AtomicFile {
 public:
  // Unavailable when no file can be made beside `path`.
  static Result<AtomicFile> create(const std::string& path);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  // Unavailable when the disk is full; the message names `path` and the bytes written so far.
  Status append(std::span<const std::byte> bytes);
  Status append(std::string_view text);
  Status commit();

  const std::string& path() const { return path_; }

 private:
  AtomicFile(std::string path, std::string temporary_path, int descriptor)
      : path_(std::move(path)),
        temporary_path_(std::move(temporary_path)),
        descriptor_(descriptor) {}
  Status failure(const char* doing) const;

  std::string path_;
  std::string temporary_path_;
  int descriptor_ = -1;
  size_t num_bytes_ = 0;
};

// The three calls in one.
Status write_file_atomically(const std::string& path, std::string_view text);

}  // namespace gradus
