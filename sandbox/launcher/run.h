// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "sandbox/internal/wire.h"

// The processes of one run, the same for programs and for Python:
//
//   launcher (pid 1 of the worker) -> init (pid 1 of the run) -> program (pid 2)
//
// When the program ends or init is killed, the kernel kills whatever else the run has started, and
// its files vanish with its mount namespace. No memory is allocated.
namespace gradus::sandbox {

struct Text {
  const char* data = nullptr;
  size_t size = 0;
};

constexpr uint32_t kMaxArguments = 64;
constexpr uint32_t kMaxFiles = 16;

// A RunRequest with its body, which lie in one memory file. Views into its mapping.
struct RunInput {
  const wire::RunRequest* request = nullptr;
  Text stdin_text;
  Text arguments[kMaxArguments];
  Text file_names[kMaxFiles];
  Text file_contents[kMaxFiles];
  Text call;
  Text kept_name;
};

// False if a length leads out of the body.
bool parse_run(const char* data, size_t size, RunInput& input);

// Descriptors of a run, in the order in which they are handed to the zygote.
enum RunFd {
  kStdinFd,   // becomes 0: a memory file
  kStdoutFd,  // 1
  kStderrFd,  // 2
  kCallFd,    // 3: a memory file; /dev/null without a call
  kResultFd,  // 4
  kStatusFd,  // 5: init's record for the launcher; the program does not get it
  kKeptFd,    // 6: nor this
  kRunFd,     // the memory file of the RunInput
  kNumRunFds,
};

// What init tells the launcher.
struct RunRecord {
  uint32_t is_finished = 0;  // else: `failure` says what could not be done
  int32_t wait_status = 0;
  int32_t error = 0;
  uint64_t cpu_us = 0;  // of the program and the children that it has waited for
  uint64_t peak_kib = 0;
  char failure[80] = {};
};

// In init, in its own process namespace: own mounts and IPC if `unshares`, the working folder with
// the run's files, the descriptors in their places. Null, or what could not be done.
const char* enter_run(const RunInput& input, int fds[kNumRunFds], bool unshares);

// In init: waits for the program, ends the rest, gives back the kept file.
[[noreturn]] void wait_as_init(const RunInput& input, pid_t program);

// Tells the launcher what could not be done (with errno) and ends the process.
[[noreturn]] void fail_run(const char* what);

// In the program's process: gives up all rights (confine.h) and init's descriptors.
const char* become_program(const RunInput& input);

}  // namespace gradus::sandbox
