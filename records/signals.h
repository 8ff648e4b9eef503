// SPDX-License-Identifier: Apache-2.0
#pragma once

// Stopping a run in good order. The first SIGINT or SIGTERM asks for it: the trainer finishes the
// step, writes a checkpoint and ends. A second one ends the process at once with exit code 130.
// SIGUSR1 asks too and never kills: mpirun forwards it to all ranks (it turns Ctrl-C into a kill
// after a second), and schedulers send it before the time limit.
namespace gradus::records {

// Installs the handlers; call once, before threads start. SIGPIPE is ignored, so that a closed pipe
// is an error of the write and not the end of the run.
void install_stop_signals();

// Whether a stop was asked for. Async-signal-safe, thread-safe. Ranks may see it at different
// steps: agree on it (a maximum over the ranks) before acting.
bool stop_requested();

// The signal that asked, or 0.
int stop_signal();

// Forgets the requests; for tests.
void reset_stop_signals();

}  // namespace gradus::records
