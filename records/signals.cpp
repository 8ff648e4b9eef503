// SPDX-License-Identifier: Apache-2.0
#include "records/signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

namespace gradus::records {
namespace {

constexpr int kExitStopped = 130;  // what shells report for a process that Ctrl-C ended

// A handler has no arguments to carry state in, hence the one global besides the logger.
std::atomic<int> first_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "handlers need lock-free atomics");

void say(const char* text) {
  const ssize_t ignored = ::write(2, text, std::strlen(text));
  static_cast<void>(ignored);
}

void handle_stop(int signal) {
  const int saved_errno = errno;
  int expected = 0;
  if (first_signal.compare_exchange_strong(expected, signal)) {
    say("\ngradus: stopping after this step with a checkpoint; a second signal stops at once\n");
  } else if (signal != SIGUSR1) {
    say("\ngradus: stopped at once; the last checkpoint is whole\n");
    ::_exit(kExitStopped);
  }
  errno = saved_errno;
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = handle_stop;
  action.sa_flags = SA_RESTART;  // file and MPI calls go on as if nothing had happened
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &action, nullptr);
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigemptyset(&ignore.sa_mask);
  ::sigaction(SIGPIPE, &ignore, nullptr);
}

bool stop_requested() { return first_signal.load(std::memory_order_relaxed) != 0; }

int stop_signal() { return first_signal.load(std::memory_order_relaxed); }

void reset_stop_signals() { first_signal = 0; }

}  // namespace gradus::records
