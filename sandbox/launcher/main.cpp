// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/launcher/layers.h"
#include "sandbox/launcher/pipes.h"
#include "sandbox/launcher/run.h"
#include "sandbox/launcher/supervise.h"
#include "sandbox/launcher/zygote_process.h"

// The sandbox's launcher: a small static program that the library carries, started once per worker.
// It shuts itself in (layers.h) and then runs one request after another until its socket closes. It
// keeps the right to make namespaces; what it starts gives up all rights before it runs anything.
namespace gradus::sandbox {
namespace {

constexpr int kSocket = 3;  // of Sandbox
constexpr uint64_t kMaxBodyBytes = 256 << 20;

struct StartInput {
  char python[4096] = {};
  char paths[32][4096] = {};
  const char* read_only[32] = {};
  uint32_t num_read_only = 0;
  uint32_t allowed_missing = 0;
};

bool read_text(char (&text)[4096]) {
  uint64_t size = 0;
  if (!read_all(kSocket, &size, sizeof size) || size >= sizeof text) return false;
  text[size] = 0;
  return read_all(kSocket, text, size);
}

bool read_start(StartInput& start) {
  wire::StartRequest request;
  if (!read_all(kSocket, &request, sizeof request)) return false;
  if (request.num_read_only > 32 || !read_text(start.python)) return false;
  for (uint32_t i = 0; i < request.num_read_only; ++i) {
    if (!read_text(start.paths[i])) return false;
    start.read_only[i] = start.paths[i];
  }
  start.num_read_only = request.num_read_only;
  start.allowed_missing = request.allowed_missing;
  return true;
}

// Everything that a run needs but its processes.
struct PreparedRun {
  const char* data = nullptr;  // mapping of the memory file that is fds[kRunFd]
  size_t size = 0;
  RunInput input;
  int fds[kNumRunFds] = {-1, -1, -1, -1, -1, -1, -1, -1};
  RunPipes pipes;

  ~PreparedRun() {
    if (data != nullptr) munmap(const_cast<char*>(data), size);
    close_fds();
  }
  void close_fds() {
    for (int& fd : fds) {
      if (fd >= 0) close(fd);
      fd = -1;
    }
  }
};

// False: the socket is closed or the body is not what its request says.
bool receive_run(const Layers& layers, PreparedRun& run) {
  wire::RunRequest request;
  if (!read_all(kSocket, &request, sizeof request)) return false;
  if (request.body_bytes > kMaxBodyBytes) return false;
  request.layers = layers.active;
  request.uid = layers.uid;
  request.gid = layers.gid;
  run.fds[kRunFd] = memory_file("run", &request, sizeof request);
  if (run.fds[kRunFd] < 0 || !copy_to_file(kSocket, run.fds[kRunFd], request.body_bytes)) {
    return false;
  }
  run.size = sizeof request + request.body_bytes;
  void* data = mmap(nullptr, run.size, PROT_READ, MAP_SHARED, run.fds[kRunFd], 0);
  if (data == MAP_FAILED) return false;
  run.data = static_cast<const char*>(data);
  return parse_run(run.data, run.size, run.input);
}

// Null, or what could not be done.
const char* prepare_fds(PreparedRun& run) {
  const RunInput& input = run.input;
  run.fds[kStdinFd] = sealed_file("stdin", input.stdin_text.data, input.stdin_text.size);
  run.fds[kCallFd] = sealed_file("call", input.call.data, input.call.size);
  if (run.fds[kStdinFd] < 0 || run.fds[kCallFd] < 0) return "memfd_create";
  if (!run.pipes.open(run.fds)) return "pipe";
  return nullptr;
}

const char* const kEnvironment[] = {"PATH=/usr/local/bin:/usr/bin:/bin",
                                    "HOME=/tmp",
                                    "TMPDIR=/tmp",
                                    "LANG=C.UTF-8",
                                    "OMP_NUM_THREADS=1",
                                    nullptr};

// In init's process.
[[noreturn]] void run_init(PreparedRun& run) {
  if (const char* what = enter_run(run.input, run.fds, false)) fail_run(what);
  const pid_t program = fork();
  if (program < 0) fail_run("fork");
  if (program > 0) wait_as_init(run.input, program);
  char* arguments[kMaxArguments + 1] = {};
  static char texts[1 << 16];
  size_t used = 0;
  for (uint32_t i = 0; i < run.input.request->num_arguments; ++i) {
    const Text& text = run.input.arguments[i];
    if (used + text.size + 1 > sizeof texts) {
      errno = E2BIG;
      fail_run("arguments");
    }
    memcpy(texts + used, text.data, text.size);
    arguments[i] = texts + used;
    used += text.size + 1;
  }
  if (const char* what = become_program(run.input)) fail_run(what);
  execve(arguments[0], arguments, const_cast<char* const*>(kEnvironment));
  fail_run("exec");
}

pid_t start_program(const Layers& layers, PreparedRun& run) {
  const bool has_ipc = (layers.active & wire::bit(wire::kIpcNamespace)) != 0;
  const auto flags = static_cast<unsigned long>(CLONE_NEWPID | CLONE_NEWNS | SIGCHLD |
                                                (has_ipc ? CLONE_NEWIPC : 0));
  const auto init = static_cast<pid_t>(syscall(SYS_clone, flags, 0, 0, 0, 0));
  if (init == 0) run_init(run);
  return init;
}

void fail(wire::RunReply& reply, const char* what, int error) {
  reply.end = wire::kLauncherError;
  if (error == 0) {
    snprintf(reply.failure, sizeof reply.failure, "%s", what);
  } else {
    snprintf(reply.failure, sizeof reply.failure, "%s: %s", what, strerror(error));
  }
}

void perform(Layers& layers, ZygoteProcess& zygote, PreparedRun& run, wire::RunReply& reply) {
  if (const char* what = prepare_fds(run)) return fail(reply, what, errno);
  const bool is_python = run.input.request->kind != wire::kExec;
  if (is_python && !zygote.is_running()) {
    const char* what = zygote.start();
    if (what != nullptr) return fail(reply, what, 0);
    layers.watch.set_zygote(zygote.pid());
  }
  const pid_t init = is_python ? zygote.start_run(run.fds) : start_program(layers, run);
  if (init <= 0) {
    if (is_python) zygote.stop();
    return fail(reply, "start of the run", init < -1 ? -init : errno);
  }
  run.close_fds();
  supervise(*run.input.request, layers.watch, kSocket, init, run.pipes, reply);
  // Returns only when nothing of the run's process namespace is left.
  if (is_python) {
    if (!zygote.wait_run()) {
      zygote.stop();
      layers.watch.set_zygote(0);
      return fail(reply, "the Python zygote ended", 0);
    }
  } else {
    while (waitpid(init, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  run.pipes.drain(run.input.request->output_bytes, reply);
}

// One request after another, until the socket closes.
void serve(Layers& layers, const char* python) {
  ZygoteProcess zygote(python);
  for (;;) {
    PreparedRun run;
    if (!receive_run(layers, run)) return;
    wire::RunReply reply;
    perform(layers, zygote, run, reply);
    run.pipes.set_sizes(reply);
    if (!write_all(kSocket, &reply, sizeof reply) || !run.pipes.send(kSocket, reply)) return;
  }
}

// As pid 1 of the worker's process namespace: when it ends, all that it started ends.
[[noreturn]] void run_worker(Layers& layers, const StartInput& start) {
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  build_root(layers, start.read_only, start.num_read_only);
  probe_rest(layers);
  layers.reply.is_ready = layers.is_enough();
  if (!write_all(kSocket, &layers.reply, sizeof layers.reply)) _exit(1);
  if (layers.reply.is_ready) serve(layers, start.python);
  _exit(0);
}

int run_launcher() {
  close_range(kSocket + 1, ~0u, 0);
  const int nothing = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < 3; ++fd) dup2(nothing, fd);
  if (nothing > kSocket) close(nothing);
  fcntl(kSocket, F_SETFD, FD_CLOEXEC);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  setsid();  // Ctrl-C in the terminal is the trainer's, which then closes the socket
  umask(022);

  static StartInput start;
  if (!read_start(start)) return 1;
  static Layers layers;
  layers.allowed_missing = start.allowed_missing;
  enter_namespaces(layers);
  const pid_t worker = fork();
  if (worker == 0) run_worker(layers, start);
  if (worker < 0) {
    snprintf(layers.reply.failure, sizeof layers.reply.failure, "fork: %s", strerror(errno));
    write_all(kSocket, &layers.reply, sizeof layers.reply);
    return 1;
  }
  close(kSocket);
  while (waitpid(worker, nullptr, 0) < 0 && errno == EINTR) {
  }
  return 0;
}

}  // namespace
}  // namespace gradus::sandbox

int main() { return gradus::sandbox::run_launcher(); }
