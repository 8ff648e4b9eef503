// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdint.h>
#include <sys/types.h>

// What all processes of a run use together. Limits of single processes say nothing about a tree of
// them, and control groups are seldom there for a user to make.
namespace gradus::sandbox {

struct TreeUsage {
  uint64_t memory_bytes = 0;  // anonymous and shared memory, resident
  uint64_t cpu_us = 0;        // of those alive and the children that they have waited for
  uint64_t waiting_us = 0;    // longest time that one's main thread was ready and had no core
  uint32_t num_processes = 0;
  uint32_t num_busy = 0;  // that run or could, the others wait for something
};

// Reads a /proc of the worker's own process namespace, which is mounted nowhere.
class TreeWatch {
 public:
  // Makes it; false: errno says why. To be called as pid 1 of the namespace, where the machine's
  // /proc can still be seen.
  bool open();
  bool is_open() const { return proc_ >= 0; }

  // Process ids as the worker sees them. Everything but the launcher and the zygote belongs to the
  // run; what the zygote shares with each of its forks is nobody's.
  void set_zygote(pid_t zygote);
  TreeUsage measure_run(bool is_python) const;

 private:
  uint64_t memory_of(pid_t pid) const;
  void add(pid_t pid, uint64_t shared_bytes, TreeUsage& usage) const;

  int proc_ = -1;
  pid_t zygote_ = 0;
  uint64_t zygote_bytes_ = 0;
};

}  // namespace gradus::sandbox
