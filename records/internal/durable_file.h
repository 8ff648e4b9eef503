// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

// Files that survive a crash: written whole or not at all, and flushed to the disk when asked.
namespace gradus::records::internal {

// "PATH: cannot WHAT: reason; remedy" for the value of errno, the remedy fitting a full disk.
Status file_error(const std::string& path, std::string_view what, int error_number);

// A file opened for writing through write(2), so that a full disk is seen at once. Not thread-safe.
class OutputFile {
 public:
  enum class Mode { kTruncate, kAppend };

  static Result<OutputFile> open(const std::string& path, Mode mode);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  ~OutputFile();

  const std::string& path() const { return path_; }
  Status write(const void* data, size_t num_bytes);
  Status write(std::string_view text) { return write(text.data(), text.size()); }
  Status write_at(int64_t offset, const void* data, size_t num_bytes);
  // Flushes to the disk.
  Status sync();
  // Reports what the destructor would swallow.
  Status close();

 private:
  OutputFile(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  int descriptor_ = -1;
  std::string path_;
};

Status sync_file(const std::string& path);
Status sync_folder(const std::string& path);

Result<std::string> read_file(const std::string& path);

// 64-bit hash of bytes: hash64 over the hashes of 1 MiB chunks, which all threads share.
uint64_t hash_bytes(const void* data, size_t num_bytes);
// The same hash of `num_bytes` of a file from `offset` on.
Result<uint64_t> hash_file(const std::string& path, int64_t offset, int64_t num_bytes);

inline constexpr int64_t kHashChunkBytes = 1 << 20;
// Combines the chunk hashes, in order.
uint64_t combine_chunk_hashes(const std::vector<uint64_t>& chunk_hashes, int64_t num_bytes);

}  // namespace gradus::records::internal
