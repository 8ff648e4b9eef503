// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/run.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/launcher/confine.h"

namespace gradus::sandbox {
namespace {

constexpr int kStatusPlace = 5;
constexpr int kKeptPlace = 6;

bool take(const char*& at, const char* end, Text& text) {
  uint64_t size = 0;
  if (static_cast<size_t>(end - at) < sizeof size) return false;
  memcpy(&size, at, sizeof size);
  at += sizeof size;
  if (size > static_cast<uint64_t>(end - at)) return false;
  text = {at, size};
  at += size;
  return true;
}

bool write_all(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = write(fd, data, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    data += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

bool copy_name(const Text& text, char (&name)[256]) {
  if (text.size == 0 || text.size >= sizeof name || memchr(text.data, '/', text.size) != nullptr) {
    return false;
  }
  memcpy(name, text.data, text.size);
  name[text.size] = 0;
  return true;
}

bool write_files(const RunInput& input) {
  for (uint32_t i = 0; i < input.request->num_files; ++i) {
    char name[256];
    if (!copy_name(input.file_names[i], name)) return false;
    const int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    if (file < 0) return false;
    const bool is_written =
        write_all(file, input.file_contents[i].data, input.file_contents[i].size);
    // The program's owner differs from init's only without a user namespace.
    const bool is_owned = fchown(file, input.request->uid, input.request->gid) == 0;
    close(file);
    if (!is_written || !is_owned) return false;
  }
  return true;
}

// A regular file that the program left under this name, never what a link points at.
void give_back(const RunInput& input) {
  char name[256];
  if (input.request->has_kept == 0 || !copy_name(input.kept_name, name)) return;
  const int file = open(name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return;
  struct stat about;
  if (fstat(file, &about) == 0 && S_ISREG(about.st_mode)) {
    char buffer[65536];
    ssize_t size;
    while ((size = read(file, buffer, sizeof buffer)) > 0) {
      if (!write_all(kKeptPlace, buffer, static_cast<size_t>(size))) break;
    }
  }
  close(file);
}

}  // namespace

bool parse_run(const char* data, size_t size, RunInput& input) {
  if (size < sizeof(wire::RunRequest)) return false;
  input.request = reinterpret_cast<const wire::RunRequest*>(data);
  const wire::RunRequest& request = *input.request;
  if (request.num_arguments > kMaxArguments || request.num_files > kMaxFiles) return false;
  const char* at = data + sizeof request;
  const char* end = data + size;
  bool is_good = take(at, end, input.stdin_text);
  for (uint32_t i = 0; is_good && i < request.num_arguments; ++i) {
    is_good = take(at, end, input.arguments[i]);
  }
  for (uint32_t i = 0; is_good && i < request.num_files; ++i) {
    is_good = take(at, end, input.file_names[i]) && take(at, end, input.file_contents[i]);
  }
  if (is_good && request.has_call != 0) is_good = take(at, end, input.call);
  if (is_good && request.has_kept != 0) is_good = take(at, end, input.kept_name);
  return is_good && at == end;
}

const char* enter_run(const RunInput& input, int fds[kNumRunFds], bool unshares) {
  const wire::RunRequest& request = *input.request;
  // All are above the places they go to, so none is overwritten before its turn.
  for (int place = 0; place < kRunFd; ++place) {
    if (dup2(fds[place], place) != place) return "dup2";
  }
  if (request.has_call == 0) {
    close(3);
    close(4);
  }
  fcntl(kStatusPlace, F_SETFD, FD_CLOEXEC);
  fcntl(kKeptPlace, F_SETFD, FD_CLOEXEC);
  if (close_range(7, ~0u, 0) != 0) return "close_range";
  if (unshares) {
    const bool has_ipc = (request.layers & wire::bit(wire::kIpcNamespace)) != 0;
    if (unshare(CLONE_NEWNS | (has_ipc ? CLONE_NEWIPC : 0)) != 0) return "unshare";
  }
  char options[160];
  snprintf(options, sizeof options, "size=%llu,nr_inodes=4096,mode=0700,uid=%u,gid=%u",
           static_cast<unsigned long long>(request.disk_bytes), request.uid, request.gid);
  if (mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options) != 0) return "mount of /tmp";
  if (chdir("/tmp") != 0) return "chdir to /tmp";
  umask(022);
  if (!write_files(input)) return "writing the run's files";
  return nullptr;
}

void wait_as_init(const RunInput& input, pid_t program) {
  RunRecord record;
  // The program's ends of the pipes are its own.
  for (int fd = 0; fd < kStatusPlace; ++fd) close(fd);
  for (;;) {
    int status = 0;
    rusage usage = {};
    const pid_t pid = wait4(-1, &status, 0, &usage);
    if (pid < 0 && errno != EINTR) fail_run("wait");
    if (pid != program) continue;
    record.is_finished = 1;
    record.wait_status = status;
    record.cpu_us = static_cast<uint64_t>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                    static_cast<uint64_t>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    record.peak_kib = static_cast<uint64_t>(usage.ru_maxrss);
    break;
  }
  kill(-1, SIGKILL);  // from pid 1: all others of this namespace
  while (wait4(-1, nullptr, 0, nullptr) > 0 || errno == EINTR) {
  }
  give_back(input);
  write_all(kStatusPlace, reinterpret_cast<const char*>(&record), sizeof record);
  _exit(0);
}

void fail_run(const char* what) {
  RunRecord record;
  record.error = errno;
  snprintf(record.failure, sizeof record.failure, "%s", what);
  write_all(kStatusPlace, reinterpret_cast<const char*>(&record), sizeof record);
  _exit(125);
}

const char* become_program(const RunInput& input) {
  close(kKeptPlace);
  return confine(*input.request);
}

}  // namespace gradus::sandbox
