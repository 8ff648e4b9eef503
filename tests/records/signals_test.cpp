// SPDX-License-Identifier: Apache-2.0
#include "records/signals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace gradus::records {
namespace {

// Each body runs in a process of its own, which ends with the code that it gives or by a signal.
int exit_code_of(int (*body)()) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(StopSignals, TheFirstOneAsks) {
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    reset_stop_signals();
    install_stop_signals();
    EXPECT_FALSE(stop_requested());
    ::raise(signal);
    EXPECT_TRUE(stop_requested());
    EXPECT_EQ(stop_signal(), signal);
  }
  reset_stop_signals();
}

TEST(StopSignals, TheSecondOneEndsTheProcessWith130) {
  EXPECT_EQ(exit_code_of([] {
              install_stop_signals();
              ::raise(SIGINT);
              ::raise(SIGTERM);
              return 7;
            }),
            130);
}

TEST(StopSignals, ARequestOfAnotherProcessNeverKills) {
  EXPECT_EQ(exit_code_of([] {
              install_stop_signals();
              ::raise(SIGUSR1);
              ::raise(SIGUSR1);
              return stop_requested() ? 7 : 8;
            }),
            7);
}

TEST(StopSignals, AClosedPipeIsAnErrorOfTheWrite) {
  EXPECT_EQ(exit_code_of([] {
              install_stop_signals();
              int ends[2];
              if (::pipe(ends) != 0) return 8;
              ::close(ends[0]);
              return ::write(ends[1], "x", 1) == -1 && errno == EPIPE ? 7 : 9;
            }),
            7);
}

}  // namespace
}  // namespace gradus::records
