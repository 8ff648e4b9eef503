// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/status.h"

// What clients and server of secure aggregation say to each other (secure_aggregation.h has the
// protocol). Plain data; each message is signed over the plan's digest, so that one of another
// round, plan or client is refused.
namespace gradus::privacy {

using Bytes32 = std::array<uint8_t, 32>;
using Signature = std::array<uint8_t, 64>;

// Fills a span with random bytes that nobody can guess.
using Entropy = std::function<void(std::span<uint8_t>)>;

// Who a client is, for as long as it takes part: an Ed25519 key pair.
struct IdentityKey {
  Bytes32 public_key{};
  std::array<uint8_t, 64> secret{};
};
IdentityKey make_identity();
IdentityKey make_identity(const Bytes32& seed);

// What all sides know of a round before it begins.
struct SecurePlan {
  int64_t round = 0;
  Bytes32 session{};                    // random, of the run; the graph is drawn by it
  std::vector<int64_t> client_ids_N{};  // increasing
  std::vector<Bytes32> identities_N{};  // their public keys
  int64_t num_neighbours = 0;           // k: even, or N - 1 for all; at most 254
  int64_t threshold = 0;                // t: more than half of k + 1, at most k + 1
  int64_t num_values = 0;               // P, length of every vector, below 2^36
};

// InvalidArgument names the first thing that is wrong.
Status validate(const SecurePlan& plan);
// Stands for the whole plan in every signature and key.
Bytes32 digest(const SecurePlan& plan);
// For each client, by place in client_ids_N, the places of its neighbours, increasing. Clients
// stand in a circle in an order drawn by the digest, and each has the k/2 before and after it (Bell
// et al. 2020, the Harary graph). The relation is symmetric.
std::vector<std::vector<int64_t>> neighbour_graph(const SecurePlan& plan);

// Stage 1, client to server: the two X25519 keys of this round.
struct KeyMessage {
  int64_t client_id = 0;
  Bytes32 sealing_key{};
  Bytes32 masking_key{};
  Signature signature{};
};

// Stage 2: shares of the client's two secrets for one neighbour, which alone can read them.
struct SealedShares {
  int64_t from = 0, to = 0;
  std::vector<uint8_t> sealed{};
};
// Hashes of one neighbour's two shares: with them the server knows a wrong share from a right one.
struct ShareHashes {
  int64_t holder = 0;
  Bytes32 seed{}, key{};
};
struct ShareMessage {
  int64_t client_id = 0;
  std::vector<SealedShares> shares{};  // by increasing `to`
  std::vector<ShareHashes> hashes{};   // by increasing holder, the client itself too
  Bytes32 seed_hash{};                 // of the seed of the client's own mask
  Signature signature{};
};

// Stage 3: the client's vector under its masks.
struct MaskedMessage {
  int64_t client_id = 0;
  std::vector<uint32_t> values_P{};
  Signature signature{};
};

// Stage 4: the client has seen this list of survivors and no other.
struct ConsentMessage {
  int64_t client_id = 0;
  Signature signature{};
};

// Stage 5: for each neighbour, and the client itself, one of the two shares it holds.
enum class ShareKind : uint8_t { kSeed = 0, kKey = 1 };
struct RevealedShare {
  int64_t owner = 0;
  ShareKind kind = ShareKind::kSeed;  // the seed of a survivor, the masking key of one that is gone
  Bytes32 share{};
};
struct RevealMessage {
  int64_t client_id = 0;
  std::vector<RevealedShare> shares{};
  Signature signature{};
};

}  // namespace gradus::privacy
