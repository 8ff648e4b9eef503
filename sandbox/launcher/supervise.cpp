// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/supervise.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>

namespace gradus::sandbox {
namespace {

// How often the watch looks: a process can touch some 10 to 20 MiB in this time.
constexpr uint64_t kTickUs = 10000;

uint64_t now_us() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

bool is_closed(int socket) {
  pollfd wait = {socket, 0, 0};
  return poll(&wait, 1, 0) == 1;  // only what cannot be left out is reported: the end
}

// What the watch and the clock say of a run that goes on: the limit that it has passed, if any.
wire::RunEnd passed_limit(const wire::RunRequest& request, const TreeUsage& usage, uint64_t idle_us,
                          uint64_t passed_us) {
  if (usage.memory_bytes > request.memory_bytes) return wire::kMemoryLimit;
  if (usage.cpu_us > request.cpu_ms * 1000) return wire::kCpuLimit;
  const uint64_t wall_us = request.wall_ms * 1000;
  if (idle_us > wall_us) return wire::kWallLimit;
  if (passed_us <= wall_us * kMaxWallFactor) return wire::kExited;
  // Init and the program, which waited for a core: the machine's doing. More can wait for each
  // other.
  const bool is_starved = usage.waiting_us > wall_us && usage.num_processes <= 2;
  return is_starved ? wire::kStarved : wire::kWallLimit;
}

void read_records(const wire::RunRequest& request, const Buffer& status, bool is_killed,
                  wire::RunReply& reply) {
  RunRecord record;
  if (status.size() < sizeof record) {
    if (!is_killed) {
      reply.end = wire::kLauncherError;
      snprintf(reply.failure, sizeof reply.failure, "the run's init was killed");
    }
    return;
  }
  memcpy(&record, status.data(), sizeof record);
  if (record.is_finished == 0) {
    reply.end = wire::kLauncherError;
    snprintf(reply.failure, sizeof reply.failure, "%.79s: %s", record.failure,
             strerror(record.error));
    return;
  }
  reply.cpu_us = std::max(reply.cpu_us, record.cpu_us);
  reply.peak_bytes = std::max(reply.peak_bytes, record.peak_kib * 1024);
  if (is_killed) return;
  reply.end = WIFSIGNALED(record.wait_status) ? wire::kSignalled : wire::kExited;
  reply.exit_code = WIFEXITED(record.wait_status) ? WEXITSTATUS(record.wait_status) : 0;
  reply.signal = WIFSIGNALED(record.wait_status) ? WTERMSIG(record.wait_status) : 0;
  if (reply.cpu_us > request.cpu_ms * 1000) reply.end = wire::kCpuLimit;
}

}  // namespace

void supervise(const wire::RunRequest& request, const TreeWatch& watch, int socket, pid_t init,
               RunPipes& pipes, wire::RunReply& reply) {
  const uint64_t start = now_us();
  uint64_t last_tick = start, next_tick = start + kTickUs;
  uint64_t idle_us = 0;  // in which no process of the run could have gone on
  bool is_killed = false;
  const auto stop = [&](wire::RunEnd end) {
    reply.end = end;
    is_killed = true;
    kill(init, SIGKILL);
  };
  for (;;) {
    const uint64_t before = now_us();
    const uint64_t wait_us = next_tick > before ? next_tick - before : 0;
    if (!pipes.read_for(static_cast<int>((wait_us + 999) / 1000))) break;
    if (is_killed) continue;
    if (pipes.is_over(request.output_bytes)) {
      stop(wire::kOutputLimit);
      continue;
    }
    const uint64_t now = now_us();
    if (now < next_tick) continue;
    next_tick = now + kTickUs;
    TreeUsage usage;
    if (watch.is_open()) usage = watch.measure_run(request.kind != wire::kExec);
    reply.peak_bytes = std::max(reply.peak_bytes, usage.memory_bytes);
    reply.cpu_us = std::max(reply.cpu_us, usage.cpu_us);
    if (usage.num_busy == 0) idle_us += now - last_tick;
    last_tick = now;
    const wire::RunEnd end = passed_limit(request, usage, idle_us, now - start);
    // Without Sandbox nobody wants to know how it ends.
    if (end != wire::kExited || is_closed(socket)) stop(end);
  }
  reply.wall_us = now_us() - start;
  read_records(request, pipes.status(), is_killed, reply);
}

}  // namespace gradus::sandbox
