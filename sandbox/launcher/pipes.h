// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "sandbox/internal/wire.h"
#include "sandbox/launcher/run.h"

// What a run reads and what it gives back.
namespace gradus::sandbox {

bool read_all(int fd, void* data, size_t size);
bool write_all(int fd, const void* data, size_t size);
bool copy_to_file(int from, int file, uint64_t size);

// A file in memory alone; the descriptor is above all places that a run's descriptors go to, and is
// closed on exec. Below 0: errno says why.
int memory_file(const char* name, const void* data, size_t size);
// The same at its start, and for ever as it is.
int sealed_file(const char* name, const char* data, size_t size);

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  void append(const char* data, size_t size);
  void truncate(size_t size);
  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

// The reading ends of stdout, stderr, result, status and kept file.
class RunPipes {
 public:
  enum Stream { kStdout, kStderr, kResult, kStatus, kKept, kNumStreams };

  ~RunPipes();
  // Puts the writing ends into a run's descriptors.
  bool open(int fds[kNumRunFds]);
  // Waits until something can be read or the time is over, and reads it. False when init has closed
  // its status pipe, which is when it ends.
  bool read_for(int timeout_ms);
  // A stream that programs write to has gone over the limit.
  bool is_over(uint64_t limit) const;
  // All writers are gone: reads what is left, cut at the limits.
  void drain(uint64_t output_bytes, wire::RunReply& reply);
  // Init's records.
  const Buffer& status() const { return buffers_[kStatus]; }
  void set_sizes(wire::RunReply& reply) const;
  bool send(int socket, const wire::RunReply& reply) const;

 private:
  // False at the end of the stream.
  bool read_once(Stream stream);

  int fds_[kNumStreams] = {-1, -1, -1, -1, -1};
  Buffer buffers_[kNumStreams];
};

}  // namespace gradus::sandbox
