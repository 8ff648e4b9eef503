// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/secure_sum.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "common/rng.h"
#include "federated/internal/fixed_point.h"
#include "privacy/secure_aggregation.h"

namespace gradus::federated::internal {
namespace {

constexpr int kBits = 52;
constexpr int64_t kOffset = int64_t{1} << (kBits - 1);  // makes terms whole numbers from 0 on
constexpr int64_t kMaxNeighbours = 64;

privacy::IdentityKey identity_of(uint64_t seed, int64_t client) {
  privacy::Bytes32 bytes{};
  for (uint64_t i = 0; i < 4; ++i) {
    const uint64_t word = hash64({seed, 0x5ec, static_cast<uint64_t>(client), i});
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
  return privacy::make_identity(bytes);
}

}  // namespace

Status add_securely(const SecureSum& plan, int64_t round, std::span<const SecureTerm> terms,
                    std::span<int64_t> sums_P) {
  const auto n = static_cast<int64_t>(plan.client_ids.size());
  if (n < 3) {
    return unavailable(
        "secure aggregation: {} clients in round {}; a sum hides its terms from 3 on", n, round);
  }
  for (const SecureTerm& term : terms) {
    if (!(std::fabs(term.weight) < kSecureMaxWeight)) {
      return invalid_argument(
          "client {}: its weight is {:.4g}; secure aggregation carries weights below {}",
          term.client_id, term.weight, kSecureMaxWeight);
    }
  }
  const int limb_bits = 32 - std::bit_width(static_cast<uint64_t>(n));
  const auto num_limbs = static_cast<size_t>((kBits + limb_bits - 1) / limb_bits);
  const size_t p = sums_P.size();

  privacy::SecurePlan secure{.round = round, .client_ids_N = plan.client_ids};
  int64_t k = plan.num_neighbours > 0 ? plan.num_neighbours : kMaxNeighbours;
  if (k >= n) k = n - 1;
  secure.num_neighbours = k;
  secure.threshold = (2 * (k + 1) + 2) / 3;
  secure.num_values = static_cast<int64_t>(num_limbs * p);
  std::vector<privacy::IdentityKey> identities;
  for (const int64_t id : plan.client_ids) {
    identities.push_back(identity_of(plan.seed, id));
    secure.identities_N.push_back(identities.back().public_key);
  }
  GRADUS_RETURN_IF_ERROR(privacy::validate(secure));

  privacy::SecureServer server(secure);
  std::map<int64_t, privacy::SecureClient> clients;
  for (size_t i = 0; i < identities.size(); ++i) {
    const int64_t id = plan.client_ids[i];
    const auto made = clients.emplace(id, privacy::SecureClient(secure, id, identities[i]));
    const Result<privacy::KeyMessage> message = made.first->second.advertise();
    if (!message.ok()) return message.status();
    GRADUS_RETURN_IF_ERROR(server.add(*message));
  }
  auto keys = server.close_keys();
  if (!keys.ok()) return keys.status();
  for (auto& [id, client] : clients) {
    const auto message = client.share((*keys)[id]);
    if (!message.ok()) return message.status();
    GRADUS_RETURN_IF_ERROR(server.add(*message));
  }
  auto shares = server.close_shares();
  if (!shares.ok()) return shares.status();
  std::vector<int64_t> fixed(p);
  for (const SecureTerm& term : terms) {
    std::fill(fixed.begin(), fixed.end(), 0);
    add_fixed_point(term.weight, term.values_P, kSecureExponent, fixed);
    std::vector<uint32_t> words(num_limbs * p);
    const uint64_t low = (uint64_t{1} << limb_bits) - 1;
    for (size_t j = 0; j < p; ++j) {
      auto rest = static_cast<uint64_t>(fixed[j] + kOffset);
      for (size_t limb = 0; limb < num_limbs; ++limb, rest >>= limb_bits) {
        words[limb * p + j] = static_cast<uint32_t>(rest & low);
      }
    }
    const auto message =
        clients.at(term.client_id).mask((*shares)[term.client_id], std::move(words));
    if (!message.ok()) return message.status();
    GRADUS_RETURN_IF_ERROR(server.add(*message));
  }
  const auto survivors = server.close_values();
  if (!survivors.ok()) return survivors.status();
  for (const SecureTerm& term : terms) {
    const auto message = clients.at(term.client_id).consent(*survivors);
    // Too few of its neighbours are left: it leaves, and the threshold decides.
    if (!message.ok()) continue;
    GRADUS_RETURN_IF_ERROR(server.add(*message));
  }
  auto consents = server.close_consents();
  if (!consents.ok()) return consents.status();
  for (auto& [id, received] : *consents) {
    const auto message = clients.at(id).reveal(received);
    if (!message.ok()) continue;
    GRADUS_RETURN_IF_ERROR(server.add(*message));
  }
  const auto sums = server.finish();
  if (!sums.ok()) return sums.status();
  for (size_t j = 0; j < p; ++j) {
    int64_t total = -static_cast<int64_t>(terms.size()) * kOffset;
    for (size_t limb = 0; limb < num_limbs; ++limb) {
      total += static_cast<int64_t>((*sums)[limb * p + j]) << (limb_bits * static_cast<int>(limb));
    }
    sums_P[j] += total;
  }
  return {};
}

}  // namespace gradus::federated::internal
