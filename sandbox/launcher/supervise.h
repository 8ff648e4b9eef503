// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "sandbox/launcher/pipes.h"
#include "sandbox/launcher/watch.h"

namespace gradus::sandbox {

// Reads what a run writes until its init ends, and kills init, and with it all of the run, as soon
// as a limit is passed or Sandbox has closed its end of `socket`. Fills in how it ended. The wall
// clock runs only while all of the run's processes wait for something, or until kMaxWallFactor
// times the limit have passed.
void supervise(const wire::RunRequest& request, const TreeWatch& watch, int socket, pid_t init,
               RunPipes& pipes, wire::RunReply& reply);

constexpr uint64_t kMaxWallFactor = 5;

}  // namespace gradus::sandbox
