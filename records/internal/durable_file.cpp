// SPDX-License-Identifier: Apache-2.0
#include "records/internal/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/parallel.h"
#include "common/rng.h"

namespace gradus::records::internal {
namespace {

Status write_fully(int descriptor, const std::string& path, const char* data, size_t num_bytes) {
  while (num_bytes > 0) {
    // One call writes at most 2 GiB on Linux; smaller pieces also keep a signal's delay short.
    const ssize_t written =
        ::write(descriptor, data, std::min(num_bytes, static_cast<size_t>(1) << 26));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return file_error(path, "write", errno);
    data += written;
    num_bytes -= static_cast<size_t>(written);
  }
  return {};
}

int open_retrying(const std::string& path, int flags) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

Status sync_path(const std::string& path, int flags) {
  const int descriptor = open_retrying(path, flags);
  if (descriptor < 0) return file_error(path, "open", errno);
  const int failed = ::fsync(descriptor);
  const int error_number = errno;
  ::close(descriptor);
  // Some file systems have no fsync for folders and say EINVAL; the rename is then all there is.
  if (failed != 0 && error_number != EINVAL) return file_error(path, "flush", error_number);
  return {};
}

}  // namespace

Status file_error(const std::string& path, std::string_view what, int error_number) {
  std::string_view remedy = "check the path and its permissions";
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG) {
    remedy = "free some space or choose a place on another disk";
  } else if (error_number == EIO) {
    remedy = "the disk or the network file system is failing";
  }
  const auto code = error_number == ENOENT ? StatusCode::kNotFound : StatusCode::kUnavailable;
  return {code,
          fmt::format("{}: cannot {}: {}; {}", path, what, std::strerror(error_number), remedy)};
}

Result<OutputFile> OutputFile::open(const std::string& path, Mode mode) {
  const int descriptor =
      open_retrying(path, O_WRONLY | O_CREAT | (mode == Mode::kAppend ? O_APPEND : O_TRUNC));
  if (descriptor < 0) return file_error(path, "create", errno);
  return OutputFile(descriptor, path);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status OutputFile::write(const void* data, size_t num_bytes) {
  return write_fully(descriptor_, path_, static_cast<const char*>(data), num_bytes);
}

Status OutputFile::write_at(int64_t offset, const void* data, size_t num_bytes) {
  if (::lseek(descriptor_, offset, SEEK_SET) < 0) return file_error(path_, "seek", errno);
  return write(data, num_bytes);
}

Status OutputFile::sync() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL) return file_error(path_, "flush", errno);
  return {};
}

Status OutputFile::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0) return file_error(path_, "close", errno);
  return {};
}

Status sync_file(const std::string& path) { return sync_path(path, O_RDONLY); }
Status sync_folder(const std::string& path) { return sync_path(path, O_RDONLY | O_DIRECTORY); }

Result<std::string> read_file(const std::string& path) {
  const int descriptor = open_retrying(path, O_RDONLY);
  if (descriptor < 0) return file_error(path, "open", errno);
  std::string content;
  struct stat info {};
  if (::fstat(descriptor, &info) == 0 && info.st_size > 0) {
    content.reserve(static_cast<size_t>(info.st_size));
  }
  char buffer[1 << 16];
  for (;;) {
    const ssize_t got = ::read(descriptor, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const Status status = file_error(path, "read", errno);
      ::close(descriptor);
      return status;
    }
    if (got == 0) break;
    content.append(buffer, static_cast<size_t>(got));
  }
  ::close(descriptor);
  return content;
}

uint64_t combine_chunk_hashes(const std::vector<uint64_t>& chunk_hashes, int64_t num_bytes) {
  const std::string_view bytes(reinterpret_cast<const char*>(chunk_hashes.data()),
                               chunk_hashes.size() * sizeof(uint64_t));
  return hash64({hash64(bytes), static_cast<uint64_t>(num_bytes)});
}

uint64_t hash_bytes(const void* data, size_t num_bytes) {
  const auto total = static_cast<int64_t>(num_bytes);
  const int64_t num_chunks = (total + kHashChunkBytes - 1) / kHashChunkBytes;
  std::vector<uint64_t> hashes(static_cast<size_t>(num_chunks));
  parallel_for(num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t offset = i * kHashChunkBytes;
      const int64_t size = std::min(kHashChunkBytes, total - offset);
      hashes[static_cast<size_t>(i)] = hash64(
          std::string_view(static_cast<const char*>(data) + offset, static_cast<size_t>(size)));
    }
  });
  return combine_chunk_hashes(hashes, total);
}

Result<uint64_t> hash_file(const std::string& path, int64_t offset, int64_t num_bytes) {
  const int descriptor = open_retrying(path, O_RDONLY);
  if (descriptor < 0) return file_error(path, "open", errno);
  const int64_t num_chunks = (num_bytes + kHashChunkBytes - 1) / kHashChunkBytes;
  std::vector<uint64_t> hashes(static_cast<size_t>(num_chunks));
  std::atomic<int> error_number{0};
  parallel_for(num_chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<char> buffer(static_cast<size_t>(std::min(kHashChunkBytes, num_bytes)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * kHashChunkBytes;
      const int64_t size = std::min(kHashChunkBytes, num_bytes - at);
      int64_t got = 0;
      while (got < size) {
        const ssize_t count = ::pread(descriptor, buffer.data() + got,
                                      static_cast<size_t>(size - got), offset + at + got);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
          error_number = count < 0 ? errno : EIO;
          return;
        }
        got += count;
      }
      hashes[static_cast<size_t>(i)] =
          hash64(std::string_view(buffer.data(), static_cast<size_t>(size)));
    }
  });
  ::close(descriptor);
  if (error_number != 0) return file_error(path, "read", error_number);
  return combine_chunk_hashes(hashes, num_bytes);
}

}  // namespace gradus::records::internal
