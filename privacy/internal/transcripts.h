// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "privacy/internal/crypto.h"
#include "privacy/secure_messages.h"

// What is signed and hashed in the protocol, the same on both sides.
namespace gradus::privacy::internal {

Transcript transcript(const Bytes32& plan, const KeyMessage& message);
Transcript transcript(const Bytes32& plan, const ShareMessage& message);
Transcript transcript(const Bytes32& plan, const MaskedMessage& message);
Transcript transcript(const Bytes32& plan, const RevealMessage& message);
Transcript consent_transcript(const Bytes32& plan, int64_t client_id,
                              std::span<const int64_t> survivors);
Transcript sealing_context(const Bytes32& plan, int64_t from, int64_t to);

// The key that two clients agree on for a purpose; nothing if the public key is unfit.
std::optional<Bytes32> pair_key(std::string_view purpose, const Bytes32& plan, int64_t client_id,
                                const Bytes32& secret, int64_t other_id,
                                const Bytes32& other_public_key);

Bytes32 share_hash(const Bytes32& plan, int64_t owner, int64_t holder, ShareKind kind,
                   const Bytes32& share);
Bytes32 seed_hash(const Bytes32& plan, int64_t owner, const Bytes32& seed);

constexpr size_t kSealedBytes = 24 + 2 * 32 + 16;  // nonce, two shares, authenticator

// A valid plan with what both sides look up in it. Places are those of SecurePlan::client_ids_N.
class Roster {
 public:
  explicit Roster(SecurePlan plan);

  const SecurePlan& plan() const { return plan_; }
  const Bytes32& digest() const { return digest_; }
  bool has(int64_t client_id) const { return place_of(client_id) >= 0; }
  const Bytes32& identity(int64_t client_id) const;
  // Ids of the client's neighbours, and the same with the client itself; increasing.
  const std::vector<int64_t>& neighbours(int64_t client_id) const;
  const std::vector<int64_t>& holders(int64_t client_id) const;
  bool are_neighbours(int64_t a, int64_t b) const;
  // Where the owner's polynomial was taken for this holder.
  uint8_t share_point(int64_t owner, int64_t holder) const;

 private:
  int64_t place_of(int64_t client_id) const;

  SecurePlan plan_;
  Bytes32 digest_;
  std::vector<std::vector<int64_t>> neighbours_N_, holders_N_;
};

}  // namespace gradus::privacy::internal
