// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/pipes.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <initializer_list>

namespace gradus::sandbox {
namespace {

constexpr int kFirstFd = 16;

int raise_fd(int fd) {
  if (fd < 0) return fd;
  const int raised = fcntl(fd, F_DUPFD_CLOEXEC, kFirstFd);
  close(fd);
  return raised;
}

}  // namespace

bool read_all(int fd, void* data, size_t size) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = read(fd, at, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

bool write_all(int fd, const void* data, size_t size) {
  auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = write(fd, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    at += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

bool copy_to_file(int from, int file, uint64_t size) {
  char buffer[65536];
  while (size > 0) {
    const size_t part = size < sizeof buffer ? size : sizeof buffer;
    if (!read_all(from, buffer, part) || !write_all(file, buffer, part)) return false;
    size -= part;
  }
  return true;
}

int memory_file(const char* name, const void* data, size_t size) {
  const int file = raise_fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file >= 0 && !write_all(file, data, size)) {
    close(file);
    return -1;
  }
  return file;
}

int sealed_file(const char* name, const char* data, size_t size) {
  const int file = memory_file(name, data, size);
  if (file < 0) return file;
  lseek(file, 0, SEEK_SET);
  fcntl(file, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
  return file;
}

Buffer::~Buffer() { free(data_); }

void Buffer::append(const char* data, size_t size) {
  if (size_ + size > capacity_) {
    capacity_ = 2 * (size_ + size);
    data_ = static_cast<char*>(realloc(data_, capacity_));
    if (data_ == nullptr) _exit(1);  // Sandbox sees the socket close
  }
  memcpy(data_ + size_, data, size);
  size_ += size;
}

void Buffer::truncate(size_t size) {
  if (size < size_) size_ = size;
}

RunPipes::~RunPipes() {
  for (const int fd : fds_) {
    if (fd >= 0) close(fd);
  }
}

bool RunPipes::open(int fds[kNumRunFds]) {
  constexpr RunFd kWritingEnds[kNumStreams] = {kStdoutFd, kStderrFd, kResultFd, kStatusFd, kKeptFd};
  for (int stream = 0; stream < kNumStreams; ++stream) {
    int both[2];
    if (pipe2(both, O_CLOEXEC) != 0) return false;
    fds_[stream] = raise_fd(both[0]);
    fds[kWritingEnds[stream]] = raise_fd(both[1]);
    if (fds_[stream] < 0 || fds[kWritingEnds[stream]] < 0) return false;
  }
  return true;
}

bool RunPipes::read_once(Stream stream) {
  char buffer[65536];
  const ssize_t got = read(fds_[stream], buffer, sizeof buffer);
  if (got < 0 && errno == EINTR) return true;
  if (got <= 0) {
    close(fds_[stream]);
    fds_[stream] = -1;
    return false;
  }
  buffers_[stream].append(buffer, static_cast<size_t>(got));
  return true;
}

bool RunPipes::read_for(int timeout_ms) {
  pollfd waits[kNumStreams];
  for (int stream = 0; stream < kNumStreams; ++stream) waits[stream] = {fds_[stream], POLLIN, 0};
  if (poll(waits, kNumStreams, timeout_ms) <= 0) return true;
  for (int stream = 0; stream < kNumStreams; ++stream) {
    if (waits[stream].revents == 0) continue;
    const bool is_open = read_once(static_cast<Stream>(stream));
    if (!is_open && stream == kStatus) return false;
  }
  return true;
}

bool RunPipes::is_over(uint64_t limit) const {
  return buffers_[kStdout].size() > limit || buffers_[kStderr].size() > limit ||
         buffers_[kResult].size() > limit;
}

void RunPipes::drain(uint64_t output_bytes, wire::RunReply& reply) {
  // What lies in a pipe is at most its 64 KiB, so this ends.
  for (int stream = 0; stream < kNumStreams; ++stream) {
    while (fds_[stream] >= 0 && read_once(static_cast<Stream>(stream))) {
    }
  }
  if (is_over(output_bytes) && (reply.end == wire::kExited || reply.end == wire::kSignalled)) {
    reply.end = wire::kOutputLimit;
  }
  for (const Stream stream : {kStdout, kStderr, kResult}) buffers_[stream].truncate(output_bytes);
}

void RunPipes::set_sizes(wire::RunReply& reply) const {
  reply.stdout_bytes = static_cast<uint32_t>(buffers_[kStdout].size());
  reply.stderr_bytes = static_cast<uint32_t>(buffers_[kStderr].size());
  reply.result_bytes = static_cast<uint32_t>(buffers_[kResult].size());
  reply.kept_bytes = static_cast<uint32_t>(buffers_[kKept].size());
}

bool RunPipes::send(int socket, const wire::RunReply& reply) const {
  return write_all(socket, buffers_[kStdout].data(), reply.stdout_bytes) &&
         write_all(socket, buffers_[kStderr].data(), reply.stderr_bytes) &&
         write_all(socket, buffers_[kResult].data(), reply.result_bytes) &&
         write_all(socket, buffers_[kKept].data(), reply.kept_bytes);
}

}  // namespace gradus::sandbox
