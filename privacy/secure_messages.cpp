// SPDX-License-Identifier: Apache-2.0
#include "privacy/secure_messages.h"

#include <sodium.h>

#include <algorithm>
#include <numeric>

#include "common/check.h"
#include "privacy/internal/transcripts.h"

namespace gradus::privacy {

IdentityKey make_identity() {
  Bytes32 seed;
  internal::system_entropy(seed);
  IdentityKey identity = make_identity(seed);
  internal::wipe(seed);
  return identity;
}

IdentityKey make_identity(const Bytes32& seed) {
  internal::Transcript("start").hash();  // starts the library
  IdentityKey identity;
  crypto_sign_seed_keypair(identity.public_key.data(), identity.secret.data(), seed.data());
  return identity;
}

Status validate(const SecurePlan& plan) {
  const auto num_clients = static_cast<int64_t>(plan.client_ids_N.size());
  if (num_clients < 2) {
    return invalid_argument("secure aggregation: {} clients; a sum of fewer than two hides nothing",
                            num_clients);
  }
  if (plan.identities_N.size() != plan.client_ids_N.size()) {
    return invalid_argument("secure aggregation: {} identities for {} clients; each must have one",
                            plan.identities_N.size(), num_clients);
  }
  for (size_t i = 1; i < plan.client_ids_N.size(); ++i) {
    if (plan.client_ids_N[i] <= plan.client_ids_N[i - 1]) {
      return invalid_argument(
          "secure aggregation: client {} comes after client {}; ids must increase",
          plan.client_ids_N[i], plan.client_ids_N[i - 1]);
    }
  }
  const int64_t k = plan.num_neighbours, most = std::min<int64_t>(num_clients - 1, 254);
  if (k < 1 || k > most || (k % 2 != 0 && k != num_clients - 1)) {
    return invalid_argument(
        "secure aggregation: {} neighbours for {} clients; it must be even, or {} for all others, "
        "and at most "
        "{}",
        k, num_clients, num_clients - 1, most);
  }
  if (2 * plan.threshold <= k + 1 || plan.threshold > k + 1) {
    return invalid_argument(
        "secure aggregation: threshold {} with {} neighbours; it must be between {} and {}: more "
        "than half of "
        "those who hold a client's shares",
        plan.threshold, k, (k + 1) / 2 + 1, k + 1);
  }
  if (plan.num_values < 1 || plan.num_values >= int64_t{1} << 36) {
    return invalid_argument("secure aggregation: {} values; it must be between 1 and 2^36 - 1",
                            plan.num_values);
  }
  return {};
}

Bytes32 digest(const SecurePlan& plan) {
  internal::Transcript all("gradus secure aggregation 1");
  all.add(plan.round).add(plan.session);
  all.add(static_cast<int64_t>(plan.client_ids_N.size()));
  for (size_t i = 0; i < plan.client_ids_N.size(); ++i) {
    all.add(plan.client_ids_N[i]).add(plan.identities_N[i]);
  }
  return all.add(plan.num_neighbours).add(plan.threshold).add(plan.num_values).hash();
}

std::vector<std::vector<int64_t>> neighbour_graph(const SecurePlan& plan) {
  const auto n = static_cast<int64_t>(plan.client_ids_N.size());
  const bool is_complete = plan.num_neighbours == n - 1;
  // Fisher and Yates by the plan's own key stream; n is far below 2^32, so the remainder's bias is
  // too small to matter to a graph.
  std::vector<int64_t> circle(static_cast<size_t>(n));
  std::iota(circle.begin(), circle.end(), 0);
  std::vector<uint8_t> bytes(static_cast<size_t>(n) * 8);
  internal::key_stream(internal::Transcript("graph").add(digest(plan)).hash(), 0, bytes);
  for (int64_t i = n - 1; i > 0; --i) {
    uint64_t draw = 0;
    for (int64_t b = 0; b < 8; ++b) draw = draw << 8 | bytes[static_cast<size_t>(8 * i + b)];
    std::swap(circle[static_cast<size_t>(i)],
              circle[static_cast<size_t>(draw % static_cast<uint64_t>(i + 1))]);
  }
  std::vector<std::vector<int64_t>> graph(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    std::vector<int64_t>& neighbours = graph[static_cast<size_t>(circle[static_cast<size_t>(i)])];
    const int64_t reach = is_complete ? n - 1 : plan.num_neighbours / 2;
    for (int64_t j = 1; j <= reach; ++j) {
      neighbours.push_back(circle[static_cast<size_t>((i + j) % n)]);
      if (!is_complete) neighbours.push_back(circle[static_cast<size_t>((i - j + n) % n)]);
    }
    std::sort(neighbours.begin(), neighbours.end());
  }
  return graph;
}

namespace internal {

Transcript transcript(const Bytes32& plan, const KeyMessage& message) {
  Transcript all("keys");
  all.add(plan).add(message.client_id).add(message.sealing_key).add(message.masking_key);
  return all;
}

Transcript transcript(const Bytes32& plan, const ShareMessage& message) {
  Transcript all("shares");
  all.add(plan).add(message.client_id).add(static_cast<int64_t>(message.shares.size()));
  for (const SealedShares& shares : message.shares) {
    all.add(shares.from).add(shares.to);
    all.add(static_cast<int64_t>(shares.sealed.size())).add(shares.sealed);
  }
  all.add(static_cast<int64_t>(message.hashes.size()));
  for (const ShareHashes& hashes : message.hashes) {
    all.add(hashes.holder).add(hashes.seed).add(hashes.key);
  }
  all.add(message.seed_hash);
  return all;
}

Transcript transcript(const Bytes32& plan, const MaskedMessage& message) {
  Transcript all("values");
  all.add(plan).add(message.client_id).add(static_cast<int64_t>(message.values_P.size()));
  all.add(hash_values(message.values_P));
  return all;
}

Transcript transcript(const Bytes32& plan, const RevealMessage& message) {
  Transcript all("reveal");
  all.add(plan).add(message.client_id).add(static_cast<int64_t>(message.shares.size()));
  for (const RevealedShare& share : message.shares) {
    all.add(share.owner).add(static_cast<int64_t>(share.kind)).add(share.share);
  }
  return all;
}

Transcript consent_transcript(const Bytes32& plan, int64_t client_id,
                              std::span<const int64_t> survivors) {
  Transcript all("consent");
  all.add(plan).add(client_id).add(static_cast<int64_t>(survivors.size()));
  for (const int64_t survivor : survivors) all.add(survivor);
  return all;
}

Transcript sealing_context(const Bytes32& plan, int64_t from, int64_t to) {
  Transcript all("sealed");
  all.add(plan).add(from).add(to);
  return all;
}

std::optional<Bytes32> pair_key(std::string_view purpose, const Bytes32& plan, int64_t client_id,
                                const Bytes32& secret, int64_t other_id,
                                const Bytes32& other_public_key) {
  const std::optional<Bytes32> agreed = agreed_key(secret, other_public_key);
  if (!agreed) return std::nullopt;
  Transcript all(purpose);
  all.add(plan).add(std::min(client_id, other_id)).add(std::max(client_id, other_id));
  return all.hash(*agreed);
}

Bytes32 share_hash(const Bytes32& plan, int64_t owner, int64_t holder, ShareKind kind,
                   const Bytes32& share) {
  Transcript all("share");
  all.add(plan).add(owner).add(holder).add(static_cast<int64_t>(kind)).add(share);
  return all.hash();
}

Bytes32 seed_hash(const Bytes32& plan, int64_t owner, const Bytes32& seed) {
  return Transcript("seed").add(plan).add(owner).add(seed).hash();
}

Roster::Roster(SecurePlan plan) : plan_(std::move(plan)) {
  const Status status = validate(plan_);
  GRADUS_CHECK(status.ok(), status.message());
  digest_ = privacy::digest(plan_);
  for (const std::vector<int64_t>& places : neighbour_graph(plan_)) {
    std::vector<int64_t> ids;
    for (const int64_t place : places)
      ids.push_back(plan_.client_ids_N[static_cast<size_t>(place)]);
    std::vector<int64_t> holders = ids;
    holders.push_back(plan_.client_ids_N[neighbours_N_.size()]);
    std::sort(holders.begin(), holders.end());
    neighbours_N_.push_back(std::move(ids));
    holders_N_.push_back(std::move(holders));
  }
}

int64_t Roster::place_of(int64_t client_id) const {
  const auto& ids = plan_.client_ids_N;
  const auto found = std::lower_bound(ids.begin(), ids.end(), client_id);
  return found == ids.end() || *found != client_id ? -1 : found - ids.begin();
}

const Bytes32& Roster::identity(int64_t client_id) const {
  return plan_.identities_N.at(static_cast<size_t>(place_of(client_id)));
}
const std::vector<int64_t>& Roster::neighbours(int64_t client_id) const {
  return neighbours_N_.at(static_cast<size_t>(place_of(client_id)));
}
const std::vector<int64_t>& Roster::holders(int64_t client_id) const {
  return holders_N_.at(static_cast<size_t>(place_of(client_id)));
}

bool Roster::are_neighbours(int64_t a, int64_t b) const {
  const std::vector<int64_t>& ids = neighbours(a);
  return std::binary_search(ids.begin(), ids.end(), b);
}

uint8_t Roster::share_point(int64_t owner, int64_t holder) const {
  const std::vector<int64_t>& ids = holders(owner);
  return static_cast<uint8_t>(std::lower_bound(ids.begin(), ids.end(), holder) - ids.begin() + 1);
}

}  // namespace internal
}  // namespace gradus::privacy
