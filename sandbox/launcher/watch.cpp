// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/watch.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace gradus::sandbox {
namespace {

struct Line {
  char text[4096];
  bool read(int proc, pid_t pid, const char* name) {
    char path[64];
    snprintf(path, sizeof path, "%d/%s", pid, name);
    const int file = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    const ssize_t size = ::read(file, text, sizeof text - 1);
    close(file);
    text[size > 0 ? size : 0] = 0;
    return size > 0;
  }
};

uint64_t field_kib(const char* text, const char* name) {
  const char* at = strstr(text, name);
  return at == nullptr ? 0 : strtoull(at + strlen(name), nullptr, 10);
}

}  // namespace

bool TreeWatch::open() {
  const int context = static_cast<int>(syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC));
  if (context < 0) return false;
  if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
    proc_ = static_cast<int>(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0));
  }
  close(context);
  return proc_ >= 0;
}

void TreeWatch::set_zygote(pid_t zygote) {
  zygote_ = zygote;
  zygote_bytes_ = zygote > 0 && is_open() ? memory_of(zygote) : 0;
}

uint64_t TreeWatch::memory_of(pid_t pid) const {
  Line status;
  if (!status.read(proc_, pid, "status")) return 0;
  return (field_kib(status.text, "RssAnon:") + field_kib(status.text, "RssShmem:")) * 1024;
}

TreeUsage TreeWatch::measure_run(bool is_python) const {
  TreeUsage usage;
  const int folder = openat(proc_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* entries = folder >= 0 ? fdopendir(folder) : nullptr;
  if (entries == nullptr) return usage;
  while (const dirent* entry = readdir(entries)) {
    const long pid = strtol(entry->d_name, nullptr, 10);
    if (pid > 1 && pid != zygote_) {
      add(static_cast<pid_t>(pid), is_python ? zygote_bytes_ : 0, usage);
    }
  }
  closedir(entries);
  return usage;
}

void TreeWatch::add(pid_t pid, uint64_t shared_bytes, TreeUsage& usage) const {
  ++usage.num_processes;
  const uint64_t memory = memory_of(pid);
  usage.memory_bytes += memory > shared_bytes ? memory - shared_bytes : 0;
  Line line;
  if (line.read(proc_, pid, "stat")) {
    // Behind the name in brackets: state is field 3; utime, stime, cutime, cstime are 14 to 17.
    const char* at = strrchr(line.text, ')');
    unsigned long long ticks[4] = {};
    if (at != nullptr && at[1] == ' ' && (at[2] == 'R' || at[2] == 'D')) ++usage.num_busy;
    if (at != nullptr &&
        sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %llu %llu",
               &ticks[0], &ticks[1], &ticks[2], &ticks[3]) == 4) {
      const auto per_second = static_cast<uint64_t>(sysconf(_SC_CLK_TCK));
      usage.cpu_us += (ticks[0] + ticks[1] + ticks[2] + ticks[3]) * 1000000 / per_second;
    }
  }
  unsigned long long running = 0, waiting = 0;
  if (line.read(proc_, pid, "schedstat") &&
      sscanf(line.text, "%llu %llu", &running, &waiting) == 2 &&
      waiting / 1000 > usage.waiting_us) {
    usage.waiting_us = waiting / 1000;
  }
}

}  // namespace gradus::sandbox
