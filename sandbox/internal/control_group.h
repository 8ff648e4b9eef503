// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"

namespace gradus::sandbox {

// A control group of a worker's own: the kernel's bound of the memory and the number of all its
// processes together, where the tree watch looks only every 10 ms. Made in the group that this
// process is in, or in version 2 also beside it, if its owner may; then nothing needs to be moved
// but the launcher, whose children are born in it. Not thread-safe.
class ControlGroup {
 public:
  // `proc` is the folder of this process in /proc. Unavailable says why there can be none. Empty
  // groups that a killed process has left behind are taken away.
  static Result<std::unique_ptr<ControlGroup>> create(const std::string& proc = "/proc/self");
  ~ControlGroup();  // takes it away, once its processes are gone
  ControlGroup(const ControlGroup&) = delete;
  ControlGroup& operator=(const ControlGroup&) = delete;

  // Moves a process that has no children yet. Unavailable: the kernel does not let us.
  Status add(pid_t pid);

  // What all processes may use together. Written only where it changes.
  Status set_limits(uint64_t memory_bytes, uint64_t num_processes);

  // How many processes the kernel has killed for lack of memory in it.
  uint64_t num_memory_kills() const;

  // "version 1: /sys/fs/cgroup/memory/x, /sys/fs/cgroup/pids/x"
  const std::string& description() const { return description_; }

 private:
  struct Folders {
    std::string memory, pids;  // one and the same in version 2
    bool is_version_2 = false;
  };
  explicit ControlGroup(Folders folders);
  Status write(const std::string& folder, const char* file, uint64_t value) const;

  Folders folders_;
  std::string description_;
  uint64_t memory_bytes_ = 0;
  uint64_t num_processes_ = 0;
};

}  // namespace gradus::sandbox
