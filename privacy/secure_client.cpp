// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <set>

#include "common/check.h"
#include "privacy/internal/crypto.h"
#include "privacy/internal/masks.h"
#include "privacy/internal/transcripts.h"
#include "privacy/secret_sharing.h"
#include "privacy/secure_aggregation.h"

namespace gradus::privacy {
namespace {

enum class Stage { kKeys, kShares, kValues, kConsent, kReveal, kOver };
constexpr const char* kStageNames[] = {"keys", "shares", "values", "consent", "reveal", "no stage"};

// What this client knows of a neighbour.
struct Neighbour {
  Bytes32 sealing{};    // key of the shares between the two
  Bytes32 mask_seed{};  // of the mask between the two
  bool has_shared = false;
  Bytes32 seed_share{}, key_share{};  // of the neighbour's secrets
};

}  // namespace

struct SecureClient::State {
  State(SecurePlan plan, int64_t client_id, IdentityKey own, Entropy source)
      : roster(std::move(plan)), id(client_id), identity(own), entropy(std::move(source)) {}

  internal::Roster roster;
  int64_t id;
  IdentityKey identity;
  Entropy entropy;
  Stage stage = Stage::kKeys;
  Bytes32 sealing_secret{}, masking_secret{}, seed{}, own_seed_share{};
  std::map<int64_t, Neighbour> neighbours;
  std::vector<int64_t> survivors;

  int64_t threshold() const { return roster.plan().threshold; }

  template <class... Args>
  Status refuse(fmt::format_string<Args...> format, Args&&... args) {
    stage = Stage::kOver;
    return invalid_argument(format, std::forward<Args>(args)...).with_prefix(where());
  }
  Status too_few(const char* what, size_t count) {
    stage = Stage::kOver;
    return unavailable(
               "{} of {} who hold its shares {}, {} are needed; this client leaves the round",
               count, roster.holders(id).size(), what, threshold())
        .with_prefix(where());
  }
  std::string where() const {
    return fmt::format("secure aggregation: round {}, client {}", roster.plan().round, id);
  }
  // Moves on from `now`; anything else than the next stage is refused.
  Status enter(Stage now) {
    if (stage != now) {
      const Stage expected = stage;
      return refuse("asked for stage '{}' when '{}' was next; each comes once and in order",
                    kStageNames[static_cast<int>(now)], kStageNames[static_cast<int>(expected)]);
    }
    stage = static_cast<Stage>(static_cast<int>(now) + 1);
    return {};
  }
  bool is_survivor(int64_t client_id) const {
    return std::binary_search(survivors.begin(), survivors.end(), client_id);
  }
  bool survivors_are_connected() const;
};

// Masks hide a client among those that the graph joins to it: were it in parts, the sum of each
// part would show.
bool SecureClient::State::survivors_are_connected() const {
  std::vector<int64_t> open = {survivors.front()};
  std::set<int64_t> reached = {survivors.front()};
  while (!open.empty()) {
    const int64_t here = open.back();
    open.pop_back();
    for (const int64_t next : roster.neighbours(here)) {
      if (is_survivor(next) && reached.insert(next).second) open.push_back(next);
    }
  }
  return reached.size() == survivors.size();
}

SecureClient::SecureClient(SecurePlan plan, int64_t client_id, IdentityKey identity)
    : SecureClient(std::move(plan), client_id, identity, internal::system_entropy) {}

SecureClient::SecureClient(SecurePlan plan, int64_t client_id, IdentityKey identity,
                           Entropy entropy)
    : state_(std::make_unique<State>(std::move(plan), client_id, identity, std::move(entropy))) {
  GRADUS_CHECK(
      state_->roster.has(client_id) && state_->roster.identity(client_id) == identity.public_key,
      "the plan does not have this client under this identity");
}

SecureClient::SecureClient(SecureClient&&) noexcept = default;
SecureClient::~SecureClient() = default;

Result<KeyMessage> SecureClient::advertise() {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.enter(Stage::kKeys));
  s.entropy(s.sealing_secret);
  s.entropy(s.masking_secret);
  KeyMessage message{.client_id = s.id,
                     .sealing_key = internal::agreement_public_key(s.sealing_secret),
                     .masking_key = internal::agreement_public_key(s.masking_secret)};
  message.signature = internal::sign(internal::transcript(s.roster.digest(), message), s.identity);
  return message;
}

Result<ShareMessage> SecureClient::share(std::span<const KeyMessage> keys) {
  State& s = *state_;
  const Bytes32& plan = s.roster.digest();
  GRADUS_RETURN_IF_ERROR(s.enter(Stage::kShares));
  for (const KeyMessage& key : keys) {
    const int64_t other = key.client_id;
    if (!s.roster.has(other) || !s.roster.are_neighbours(s.id, other)) {
      return s.refuse("keys of client {}, which is not its neighbour", other);
    }
    if (s.neighbours.contains(other)) return s.refuse("keys of client {} twice", other);
    if (!internal::is_signed(internal::transcript(plan, key), key.signature,
                             s.roster.identity(other))) {
      return s.refuse("the keys of client {} are not signed by it for this round", other);
    }
    const auto sealing =
        internal::pair_key("seal", plan, s.id, s.sealing_secret, other, key.sealing_key);
    const auto mask =
        internal::pair_key("mask", plan, s.id, s.masking_secret, other, key.masking_key);
    if (!sealing || !mask) return s.refuse("client {} sent a key of low order", other);
    s.neighbours[other] = {.sealing = *sealing, .mask_seed = *mask};
  }
  if (static_cast<int64_t>(s.neighbours.size()) + 1 < s.threshold()) {
    return s.too_few("sent keys", s.neighbours.size() + 1);
  }

  s.entropy(s.seed);
  std::vector<int64_t> holders = {s.id};
  for (const auto& [other, neighbour] : s.neighbours) holders.push_back(other);
  std::sort(holders.begin(), holders.end());
  std::vector<uint8_t> points;
  for (const int64_t holder : holders) points.push_back(s.roster.share_point(s.id, holder));
  const auto seeds = split_secret(s.seed, s.threshold(), points, s.entropy);
  const auto secrets = split_secret(s.masking_secret, s.threshold(), points, s.entropy);

  ShareMessage message{.client_id = s.id, .seed_hash = internal::seed_hash(plan, s.id, s.seed)};
  for (size_t i = 0; i < holders.size(); ++i) {
    const int64_t holder = holders[i];
    const Bytes32 &seed = seeds[i].value, &secret = secrets[i].value;
    message.hashes.push_back(
        {.holder = holder,
         .seed = internal::share_hash(plan, s.id, holder, ShareKind::kSeed, seed),
         .key = internal::share_hash(plan, s.id, holder, ShareKind::kKey, secret)});
    if (holder == s.id) {
      s.own_seed_share = seed;
      continue;
    }
    std::array<uint8_t, 64> both;
    std::copy(seed.begin(), seed.end(), both.begin());
    std::copy(secret.begin(), secret.end(), both.begin() + 32);
    std::array<uint8_t, 24> nonce;
    s.entropy(nonce);
    message.shares.push_back(
        {.from = s.id,
         .to = holder,
         .sealed = internal::seal(both, s.neighbours[holder].sealing,
                                  internal::sealing_context(plan, s.id, holder), nonce)});
  }
  message.signature = internal::sign(internal::transcript(plan, message), s.identity);
  return message;
}

Result<MaskedMessage> SecureClient::mask(std::span<const SealedShares> shares,
                                         std::vector<uint32_t> values_P) {
  State& s = *state_;
  const Bytes32& plan = s.roster.digest();
  GRADUS_RETURN_IF_ERROR(s.enter(Stage::kValues));
  GRADUS_CHECK(static_cast<int64_t>(values_P.size()) == s.roster.plan().num_values,
               "mask needs as many values as the plan says");
  std::vector<internal::Mask> masks = {{.seed = s.seed}};
  for (const SealedShares& sealed : shares) {
    const auto found = s.neighbours.find(sealed.from);
    if (sealed.to != s.id || found == s.neighbours.end()) {
      return s.refuse("shares from client {} to client {}, which are not for it", sealed.from,
                      sealed.to);
    }
    Neighbour& neighbour = found->second;
    if (neighbour.has_shared) return s.refuse("shares from client {} twice", sealed.from);
    const auto both = internal::open(sealed.sealed, neighbour.sealing,
                                     internal::sealing_context(plan, sealed.from, s.id));
    if (!both || both->size() != 64) {
      return s.refuse("the shares from client {} were changed on their way", sealed.from);
    }
    std::copy_n(both->begin(), 32, neighbour.seed_share.begin());
    std::copy_n(both->begin() + 32, 32, neighbour.key_share.begin());
    neighbour.has_shared = true;
    masks.push_back({.seed = neighbour.mask_seed, .is_negative = s.id > sealed.from});
  }
  if (static_cast<int64_t>(masks.size()) < s.threshold()) {
    return s.too_few("sent shares", masks.size());
  }
  internal::add_masks(masks, values_P);
  internal::wipe(s.seed);
  internal::wipe(s.masking_secret);
  internal::wipe(s.sealing_secret);
  MaskedMessage message{.client_id = s.id, .values_P = std::move(values_P)};
  message.signature = internal::sign(internal::transcript(plan, message), s.identity);
  return message;
}

Result<ConsentMessage> SecureClient::consent(std::span<const int64_t> survivors) {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.enter(Stage::kConsent));
  s.survivors.assign(survivors.begin(), survivors.end());
  size_t num_holders = 0;
  for (size_t i = 0; i < s.survivors.size(); ++i) {
    const int64_t survivor = s.survivors[i];
    if (!s.roster.has(survivor) || (i > 0 && survivor <= s.survivors[i - 1])) {
      return s.refuse("the list of survivors has client {} out of order or unknown", survivor);
    }
    if (survivor == s.id) {
      ++num_holders;
      continue;
    }
    if (!s.roster.are_neighbours(s.id, survivor)) continue;
    const auto found = s.neighbours.find(survivor);
    if (found == s.neighbours.end() || !found->second.has_shared) {
      return s.refuse("the list of survivors has client {}, which sent it no shares", survivor);
    }
    ++num_holders;
  }
  if (!s.is_survivor(s.id)) return s.refuse("the list of survivors leaves it out");
  if (static_cast<int64_t>(num_holders) < s.threshold()) {
    return s.too_few("survive", num_holders);
  }
  if (!s.survivors_are_connected()) {
    return s.refuse("the graph of survivors falls apart, which would show the sum of each part");
  }
  return ConsentMessage{
      .client_id = s.id,
      .signature = internal::sign(
          internal::consent_transcript(s.roster.digest(), s.id, s.survivors), s.identity)};
}

Result<RevealMessage> SecureClient::reveal(std::span<const ConsentMessage> consents) {
  State& s = *state_;
  const Bytes32& plan = s.roster.digest();
  GRADUS_RETURN_IF_ERROR(s.enter(Stage::kReveal));
  std::set<int64_t> consenting = {s.id};
  for (const ConsentMessage& consent : consents) {
    const int64_t other = consent.client_id;
    if (!s.roster.has(other) || !s.roster.are_neighbours(s.id, other) || !s.is_survivor(other)) {
      return s.refuse("a consent of client {}, which is no surviving neighbour", other);
    }
    if (!internal::is_signed(internal::consent_transcript(plan, other, s.survivors),
                             consent.signature, s.roster.identity(other))) {
      return s.refuse("client {} has signed another list of survivors", other);
    }
    consenting.insert(other);
  }
  if (static_cast<int64_t>(consenting.size()) < s.threshold()) {
    return s.too_few("consent", consenting.size());
  }
  RevealMessage message{.client_id = s.id};
  message.shares.push_back({.owner = s.id, .kind = ShareKind::kSeed, .share = s.own_seed_share});
  for (const auto& [other, neighbour] : s.neighbours) {
    if (!neighbour.has_shared) continue;
    const bool survives = s.is_survivor(other);
    message.shares.push_back({.owner = other,
                              .kind = survives ? ShareKind::kSeed : ShareKind::kKey,
                              .share = survives ? neighbour.seed_share : neighbour.key_share});
  }
  message.signature = internal::sign(internal::transcript(plan, message), s.identity);
  return message;
}

}  // namespace gradus::privacy
