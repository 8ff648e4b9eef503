// SPDX-License-Identifier: Apache-2.0
#include "sandbox/internal/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

extern "C" {
extern const char gradus_launcher[];
extern const char gradus_launcher_end[];
}

namespace gradus::sandbox {
namespace {

// A launcher answers at once; a machine under load may take its time.
constexpr int64_t kStartTimeoutMs = 60000;
constexpr unsigned kMfdExec = 0x10;    // MFD_EXEC, which Debian 12's headers lack
constexpr int64_t kMaxWallFactor = 5;  // as in launcher/supervise.h
// Of a control group, for what is not the program: launcher, Python zygote, pages of files.
constexpr uint64_t kOwnBytes = 64 << 20;
constexpr uint64_t kOwnProcesses = 16;

using Clock = std::chrono::steady_clock;

Status system_error(const char* what) {
  return unavailable("sandbox: {}: {}", what, std::strerror(errno));
}

bool send_all(int socket, const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = send(socket, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    size -= static_cast<size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, void* data, size_t size, Clock::time_point deadline) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd wait = {socket, POLLIN, 0};
    const int ready = left <= 0 ? 0 : poll(&wait, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    const ssize_t got = recv(socket, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

void append_text(std::string& body, const std::string& text) {
  const uint64_t size = text.size();
  body.append(reinterpret_cast<const char*>(&size), sizeof size);
  body += text;
}

template <class Header>
std::string with_header(Header header, const std::string& body) {
  header.body_bytes = body.size();
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + body;
}

std::string start_message(const SandboxOptions& options, uint32_t allowed_missing) {
  wire::StartRequest request;
  request.allowed_missing = allowed_missing;
  request.num_read_only = static_cast<uint32_t>(options.read_only.size());
  std::string body;
  append_text(body, options.python);
  for (const std::string& path : options.read_only) append_text(body, path);
  return with_header(request, body);
}

std::string run_message(const Run& run) {
  wire::RunRequest request;
  request.kind = run.kind == RunKind::kProgram         ? wire::kExec
                 : run.kind == RunKind::kPythonProgram ? wire::kPythonProgram
                                                       : wire::kPythonCall;
  request.num_arguments = static_cast<uint32_t>(run.arguments.size());
  request.num_files = static_cast<uint32_t>(run.files.size());
  request.has_call = run.call.has_value();
  request.has_kept = !run.kept_file.empty();
  const auto mib = [](int64_t count) { return static_cast<uint64_t>(count) << 20; };
  request.cpu_ms = static_cast<uint64_t>(run.limits.cpu_ms);
  request.wall_ms = static_cast<uint64_t>(run.limits.wall_ms);
  request.memory_bytes = mib(run.limits.memory_mib);
  request.num_processes = static_cast<uint64_t>(run.limits.num_processes);
  request.output_bytes = static_cast<uint64_t>(run.limits.output_kib) << 10;
  request.disk_bytes = mib(run.limits.disk_mib);
  std::string body;
  append_text(body, run.stdin_text);
  for (const std::string& argument : run.arguments) append_text(body, argument);
  for (const RunFile& file : run.files) {
    append_text(body, file.name);
    append_text(body, file.content);
  }
  if (run.call.has_value()) append_text(body, *run.call);
  if (!run.kept_file.empty()) append_text(body, run.kept_file);
  return with_header(request, body);
}

// A memory file with the launcher in it, below 0: errno says why.
int launcher_file() {
  // Kernels from 6.3 on want to be told that it will be executed; those before know no such flag.
  int file = memfd_create("gradus_sandbox", MFD_CLOEXEC | kMfdExec);
  if (file < 0 && errno == EINVAL) file = memfd_create("gradus_sandbox", MFD_CLOEXEC);
  const auto size = static_cast<size_t>(gradus_launcher_end - gradus_launcher);
  if (file >= 0 && write(file, gradus_launcher, size) != static_cast<ssize_t>(size)) {
    close(file);
    return -1;
  }
  if (file < 0) return file;
  // Out of the way of descriptor 3, which becomes the socket before the file is executed.
  const int raised = fcntl(file, F_DUPFD_CLOEXEC, 16);
  close(file);
  return raised;
}

// Starts the launcher with no environment and its socket as descriptor 3; 0: errno says why.
pid_t spawn(int file, int socket) {
  const std::string path = fmt::format("/proc/self/fd/{}", file);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, socket, 3);
  char name[] = "gradus-sandbox";
  char* const arguments[] = {name, nullptr};
  char* const environment[] = {nullptr};
  pid_t pid = 0;
  errno = posix_spawn(&pid, path.c_str(), &actions, nullptr, arguments, environment);
  posix_spawn_file_actions_destroy(&actions);
  return errno == 0 ? pid : 0;
}

}  // namespace

Result<std::unique_ptr<Worker>> Worker::start(const SandboxOptions& options,
                                              uint32_t allowed_missing) {
  const int file = launcher_file();
  if (file < 0) return system_error("memfd_create");
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    close(file);
    return system_error("socketpair");
  }
  const pid_t pid = spawn(file, sockets[1]);
  const Status spawned = pid > 0 ? Status() : system_error("start of the launcher");
  close(file);
  close(sockets[1]);
  if (!spawned.ok()) {
    close(sockets[0]);
    return spawned;
  }
  auto worker = std::unique_ptr<Worker>(new Worker(pid, sockets[0]));
  worker->enter_control_group();  // before it has children: they are born in it
  const std::string message = start_message(options, allowed_missing);
  const auto deadline = Clock::now() + std::chrono::milliseconds(kStartTimeoutMs);
  if (!send_all(worker->socket_, message.data(), message.size()) ||
      !receive_all(worker->socket_, &worker->reply_, sizeof worker->reply_, deadline)) {
    return unavailable("sandbox: the launcher ended before it was ready");
  }
  if (worker->reply_.failure[0] != 0) {
    return unavailable("sandbox: {}", worker->reply_.failure);
  }
  return worker;
}

Worker::~Worker() {
  close(socket_);
  if (is_broken_) kill(pid_, SIGKILL);  // its child, the worker's pid 1, dies with it
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void Worker::enter_control_group() {
  auto group = ControlGroup::create();
  const Status status = group.ok() ? (*group)->add(pid_) : group.status();
  if (status.ok()) {
    group_ = std::move(*group);
  } else {
    no_group_ = status.message();
  }
}

Layer Worker::control_group() const {
  return {"control_group", group_ != nullptr,
          group_ != nullptr ? group_->description() : no_group_};
}

Status Worker::exchange(const std::string& request, wire::RunReply& reply, RunResult& result,
                        int64_t timeout_ms) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  bool is_done = send_all(socket_, request.data(), request.size()) &&
                 receive_all(socket_, &reply, sizeof reply, deadline);
  const auto receive = [&](std::string& text, uint32_t size) {
    text.resize(is_done ? size : 0);
    is_done = is_done && receive_all(socket_, text.data(), size, deadline);
  };
  receive(result.stdout_text, reply.stdout_bytes);
  receive(result.stderr_text, reply.stderr_bytes);
  receive(result.result, reply.result_bytes);
  receive(result.kept, reply.kept_bytes);
  if (is_done) return {};
  is_broken_ = true;
  return unavailable("sandbox: a worker has ended or does not answer; it is started anew");
}

Result<RunResult> Worker::run(const Run& run) {
  wire::RunReply reply;
  RunResult result;
  uint64_t num_kills = 0;
  if (group_ != nullptr) {
    const auto mib = static_cast<uint64_t>(run.limits.memory_mib + run.limits.disk_mib);
    GRADUS_RETURN_IF_ERROR(group_->set_limits(
        (mib << 20) + kOwnBytes, static_cast<uint64_t>(run.limits.num_processes) + kOwnProcesses));
    num_kills = group_->num_memory_kills();
  }
  const Status status = exchange(run_message(run), reply, result,
                                 run.limits.wall_ms * kMaxWallFactor + 2 * kStartTimeoutMs);
  // Whom the kernel chose may as well be the launcher or the zygote: it was the program's memory.
  if (group_ != nullptr && group_->num_memory_kills() > num_kills) {
    reply.end = wire::kMemoryLimit;
  } else if (!status.ok()) {
    return status;
  }
  if (reply.end == wire::kLauncherError) return unavailable("sandbox: {}", reply.failure);
  switch (reply.end) {
    case wire::kExited:
      result.end = RunEnd::kExited;
      break;
    case wire::kSignalled:
      result.end = RunEnd::kSignalled;
      break;
    case wire::kCpuLimit:
      result.end = RunEnd::kCpuLimit;
      break;
    case wire::kWallLimit:
      result.end = RunEnd::kWallLimit;
      break;
    case wire::kMemoryLimit:
      result.end = RunEnd::kMemoryLimit;
      break;
    case wire::kOutputLimit:
      result.end = RunEnd::kOutputLimit;
      break;
    case wire::kStarved:
      result.end = RunEnd::kStarved;
      break;
    default:
      GRADUS_CHECK(false, fmt::format("run ended with {}", reply.end));
  }
  result.exit_code = reply.exit_code;
  result.signal = reply.signal;
  result.cpu_ms = static_cast<double>(reply.cpu_us) / 1000;
  result.wall_ms = static_cast<double>(reply.wall_us) / 1000;
  result.peak_bytes = static_cast<int64_t>(reply.peak_bytes);
  return result;
}

}  // namespace gradus::sandbox
