// SPDX-License-Identifier: Apache-2.0
#include "common/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace gradus {

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  // The counter keeps apart the writers of one process, the process id those of several; O_EXCL
  // skips what a killed process of the same id has left.
  static std::atomic<unsigned> counter{0};
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::string temporary = fmt::format("{}.tmp-{}-{}", path, ::getpid(), counter++);
    const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0) return AtomicFile(path, std::move(temporary), descriptor);
    if (errno != EEXIST) break;
  }
  return unavailable("{}: cannot create: {}", path, std::strerror(errno));
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::move(other.temporary_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      num_bytes_(other.num_bytes_) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_path_.c_str());
}

Status AtomicFile::failure(const char* doing) const {
  return unavailable("{}: cannot {} after {} bytes: {}; free some space or choose another place",
                     path_, doing, num_bytes_, std::strerror(errno));
}

Status AtomicFile::append(std::span<const std::byte> bytes) {
  GRADUS_CHECK(descriptor_ >= 0, path_ + ": append after commit");
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return failure("write");
    }
    num_bytes_ += static_cast<size_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

Status AtomicFile::append(std::string_view text) {
  return append(std::as_bytes(std::span(text.data(), text.size())));
}

Status AtomicFile::commit() {
  GRADUS_CHECK(descriptor_ >= 0, path_ + ": committed twice");
  if (::fsync(descriptor_) != 0) return failure("sync");
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) return failure("rename");
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0) return failure("close");
  // The new name itself is on disk only when its folder is.
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  const int folder_descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_descriptor >= 0) {
    ::fsync(folder_descriptor);
    ::close(folder_descriptor);
  }
  return {};
}

Status write_file_atomically(const std::string& path, std::string_view text) {
  Result<AtomicFile> file = AtomicFile::create(path);
  if (!file.ok()) return file.status();
  GRADUS_RETURN_IF_ERROR(file->append(text));
  return file->commit();
}

}  // namespace gradus
