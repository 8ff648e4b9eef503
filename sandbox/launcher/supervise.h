// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "sandbox/launcher/pipes.h"
#include "sandbox/launcher/watch.h"

namespace gradus::sandbox {

// Reads what a run writes until its init ends, and kills init, and with it all of the run, as soon
// as a limit is passed or Sandbox has closed its end of `socket`. Fills in how it ended. The wall
// clock stands still while the program is ready to run and the machine has no core for it, up to
// kMaxWallFactor times the limit.
void supervise(const wire::RunRequest& request, const TreeWatch& watch, int socket, pid_t init,
               RunPipes& pipes, wire::RunReply& reply);

constexpr uint64_t kMaxWallFactor = 5;

}  // namespace gradus::sandbox
