// SPDX-License-Identifier: Apache-2.0
#include "federated/replay_guard.h"

namespace gradus::federated {

void ReplayGuard::start_round(int64_t round) {
  round_ = round;
  seen_.erase(seen_.begin(), seen_.lower_bound(round - num_rounds_ + 1));
}

Status ReplayGuard::admit(int64_t round, int64_t client_id, uint64_t nonce) {
  if (round > round_ || round <= round_ - num_rounds_) {
    return invalid_argument("client {}: a message of round {}; rounds {} to {} are open; refused",
                            client_id, round, round_ - num_rounds_ + 1, round_);
  }
  const auto [entry, is_new] = seen_[round].try_emplace(client_id, nonce);
  if (is_new) return {};
  if (entry->second == nonce) {
    return invalid_argument(
        "client {}: the message of round {} with nonce {:016x} came before; a replay, refused",
        client_id, round, nonce);
  }
  return invalid_argument("client {}: a second update in round {}; a client sends one; refused",
                          client_id, round);
}

}  // namespace gradus::federated
