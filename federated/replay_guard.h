// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>

#include "common/status.h"

namespace gradus::federated {

// Lets each message of a client in once: that an old one comes again, by a broken network or by
// somebody who recorded it, must not count twice. A message is named by round, client and a nonce
// that the client has drawn for it. What is sound in an update is for Round (round.h) to judge.
// Remembers `num_rounds` rounds, as old as the server takes updates; not thread-safe.
class ReplayGuard {
 public:
  explicit ReplayGuard(int64_t num_rounds) : num_rounds_(num_rounds) {}

  // Begins a round; forgets what is too old.
  void start_round(int64_t round);

  // InvalidArgument for a message of a round that is not open, one that was seen, or a second one
  // of a client in a round; it is then not remembered.
  Status admit(int64_t round, int64_t client_id, uint64_t nonce);

 private:
  int64_t num_rounds_;
  int64_t round_ = -1;
  std::map<int64_t, std::map<int64_t, uint64_t>> seen_;  // round -> client -> nonce
};

}  // namespace gradus::federated
