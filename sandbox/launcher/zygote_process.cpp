// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/zygote_process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
extern const char gradus_zygote_script[];  // ends in 0
}

namespace gradus::sandbox {
namespace {

// An interpreter starts in 20 to 100 ms; a machine under load may take its time.
constexpr int kStartTimeoutMs = 60000;

bool wait_readable(int fd, int timeout_ms) {
  pollfd wait = {fd, POLLIN, 0};
  int ready;
  while ((ready = poll(&wait, 1, timeout_ms)) < 0 && errno == EINTR) {
  }
  return ready == 1;
}

// The zygote makes namespaces, so it keeps the worker's capabilities through exec.
bool keep_capabilities() {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets) != 0) return false;
  for (auto& set : sets) set.inheritable = set.permitted;
  if (syscall(SYS_capset, &header, sets) != 0) return false;
  for (int capability = 0; capability < 64; ++capability) {
    if ((sets[capability / 32].permitted >> (capability % 32) & 1) != 0) {
      prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
    }
  }
  return true;
}

[[noreturn]] void run_python(const char* python, int socket, int error_pipe) {
  dup2(error_pipe, 2);
  dup2(socket, 3);
  fcntl(3, F_SETFD, 0);
  close_range(4, ~0u, 0);
  signal(SIGPIPE, SIG_DFL);
  const char* const arguments[] = {python, "-s", "-B", "-X", "utf8", "-c", gradus_zygote_script,
                                   nullptr};
  // The seed of hashes is fixed, so that a program's verdict does not depend on it.
  const char* const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin",
                                     "HOME=/tmp",
                                     "TMPDIR=/tmp",
                                     "LANG=C.UTF-8",
                                     "OMP_NUM_THREADS=1",
                                     "PYTHONHASHSEED=0",
                                     nullptr};
  if (keep_capabilities()) {
    execve(python, const_cast<char* const*>(arguments), const_cast<char* const*>(environment));
  }
  dprintf(2, "%s", strerror(errno));
  _exit(127);
}

}  // namespace

const char* ZygoteProcess::start() {
  int sockets[2], errors[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) return "socketpair";
  if (pipe2(errors, O_CLOEXEC) != 0) return "pipe";
  pid_ = fork();
  if (pid_ == 0) run_python(python_, sockets[1], errors[1]);
  close(sockets[1]);
  close(errors[1]);
  socket_ = sockets[0];
  char ready = 0;
  if (pid_ > 0 && wait_readable(socket_, kStartTimeoutMs) && read(socket_, &ready, 1) == 1) {
    close(errors[0]);
    return nullptr;
  }
  // The last line of what it said.
  char text[4096];
  ssize_t size = 0;
  if (wait_readable(errors[0], 100)) size = read(errors[0], text, sizeof text - 1);
  close(errors[0]);
  while (size > 0 && text[size - 1] == '\n') --size;
  text[size > 0 ? size : 0] = 0;
  const char* line = strrchr(text, '\n');
  line = line == nullptr ? text : line + 1;
  snprintf(failure_, sizeof failure_, "python '%.60s' does not start: %.90s", python_,
           *line != 0 ? line : "it says nothing");
  stop();
  return failure_;
}

pid_t ZygoteProcess::start_run(const int fds[kNumRunFds]) {
  char byte = 'n';
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(kNumRunFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(kNumRunFds * sizeof(int));
  memcpy(CMSG_DATA(header), fds, kNumRunFds * sizeof(int));
  if (sendmsg(socket_, &message, MSG_NOSIGNAL) != 1) return -errno;
  int init = 0;
  if (!wait_readable(socket_, kStartTimeoutMs)) return -ETIMEDOUT;
  if (read(socket_, &init, sizeof init) != sizeof init) return -EPIPE;
  return init;
}

bool ZygoteProcess::wait_run() {
  char done = 0;
  return wait_readable(socket_, kStartTimeoutMs) && read(socket_, &done, 1) == 1;
}

void ZygoteProcess::stop() {
  if (socket_ >= 0) close(socket_);
  socket_ = -1;
  pid_ = 0;
  kill(-1, SIGKILL);  // the worker's pid 1 is the caller: all but itself
  while (waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {
  }
}

}  // namespace gradus::sandbox
