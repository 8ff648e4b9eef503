// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "comm/communicator.h"

namespace gradus::comm {

struct InProcessOptions {
  // Ranks that wait for each other so long, or for one that has ended, throw what diagnose() says.
  double stuck_after_s = 60;
  // Ranks whose end, by throwing RankDied, the others survive.
  std::function<bool(int rank)> may_lose{};
};

// Thrown by a rank's body: it dies here and now.
struct RankDied {};

// Runs `body` on `size` ranks, each a thread of this process with its own communicator, and returns
// when all are done: the same program as under mpirun, for tests and for machines without MPI. What
// a rank throws is rethrown here; the others then stop waiting for it. Bodies share nothing that is
// not thread-safe: each needs its own Transformer.
void run_ranks(int size, const std::function<void(Communicator&)>& body,
               const InProcessOptions& options = {});

}  // namespace gradus::comm
