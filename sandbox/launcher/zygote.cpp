// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/launcher/run.h"

// The library that the Python zygote (zygote.py) loads: all that its language cannot do. Calls come
// in the order of the script, from its only thread.
namespace {

using namespace gradus::sandbox;

constexpr int kLauncherSocket = 3;

int fds[kNumRunFds];
RunInput input;
pid_t last_init = 0;

}  // namespace

extern "C" {

// Waits for the next run and makes the next fork begin a process namespace. 0: none will come.
int gradus_next() {
  char byte = 0;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)];
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(kLauncherSocket, &message, MSG_CMSG_CLOEXEC) != 1) return 0;
  // The launcher has read that the last run is over, so its process id may be given again.
  if (last_init > 0) waitpid(last_init, nullptr, 0);
  last_init = 0;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_len != CMSG_LEN(sizeof fds)) return 0;
  __builtin_memcpy(fds, CMSG_DATA(header), sizeof fds);

  struct stat about;
  if (fstat(fds[kRunFd], &about) != 0) return 0;
  const auto size = static_cast<size_t>(about.st_size);
  void* data_of_run = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fds[kRunFd], 0);
  if (data_of_run == MAP_FAILED || !parse_run(static_cast<char*>(data_of_run), size, input)) {
    return 0;
  }
  // A second unshare must start from the zygote's own namespace again.
  const int self = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  if (self < 0 || setns(self, CLONE_NEWPID) != 0 || unshare(CLONE_NEWPID) != 0) return 0;
  close(self);
  return 1;
}

// In the zygote: `init` is the run's first process, or below 0 an error number.
void gradus_started(int init) {
  munmap(const_cast<wire::RunRequest*>(input.request),
         sizeof(wire::RunRequest) + input.request->body_bytes);
  for (const int fd : fds) close(fd);
  ssize_t sent = write(kLauncherSocket, &init, sizeof init);
  if (init > 0) {
    siginfo_t info;
    while (waitid(P_PID, static_cast<id_t>(init), &info, WEXITED | WNOWAIT) != 0 &&
           errno == EINTR) {
    }
    last_init = init;
    sent += write(kLauncherSocket, "d", 1);
  }
  if (sent < 0) _exit(1);
}

// In init. Does not return where something fails.
void gradus_enter() {
  if (const char* what = enter_run(input, fds, true)) fail_run(what);
}

// In init, once the program is forked; below 0: it could not be.
void gradus_wait(int program) {
  if (program < 0) {
    errno = -program;
    fail_run("fork");
  }
  wait_as_init(input, program);
}

// In the program's process: the kind of the run.
int gradus_confine() {
  const int kind = static_cast<int>(input.request->kind);
  if (const char* what = become_program(input)) fail_run(what);
  close(5);
  return kind;
}
}
