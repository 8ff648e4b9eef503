// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
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
constexpr const char* kStageNames[] = {"keys",     "shares",  "values",
                                       "consents", "reveals", "nothing"};

// What was recovered of one client.
struct Revealed {
  std::vector<SecretShare> shares;  // of the seed of a survivor, else of the masking key
};

}  // namespace

struct SecureServer::State {
  explicit State(SecurePlan plan) : roster(std::move(plan)) {}

  internal::Roster roster;
  Stage stage = Stage::kKeys;
  std::map<int64_t, KeyMessage> keys;
  std::map<int64_t, ShareMessage> shares;
  std::set<int64_t> survivors;
  std::vector<int64_t> survivor_list;
  std::map<int64_t, ConsentMessage> consents;
  std::map<int64_t, Revealed> revealed;  // by owner
  std::set<int64_t> revealing;
  std::vector<uint32_t> sum_P;

  std::string where() const {
    return fmt::format("secure aggregation: round {}", roster.plan().round);
  }
  template <class... Args>
  Status refuse(int64_t client_id, fmt::format_string<Args...> format, Args&&... args) const {
    return invalid_argument(format, std::forward<Args>(args)...)
        .with_prefix(fmt::format("{}, client {}", where(), client_id));
  }
  Status give_up(Status status) {
    stage = Stage::kOver;
    return status.with_prefix(where());
  }
  // What holds for a message of any stage.
  template <class Message>
  Status check(Stage now, const Message& message, bool is_expected, bool is_known,
               const internal::Transcript& transcript) const {
    const char* what = kStageNames[static_cast<int>(now)];
    const int64_t id = message.client_id;
    if (stage != now) {
      return refuse(id, "sent {} when {} were expected; refused", what,
                    kStageNames[static_cast<int>(stage)]);
    }
    if (!roster.has(id)) return refuse(id, "is not in this round; refused");
    if (!is_expected) return refuse(id, "sent {} but not what comes before; refused", what);
    if (is_known) return refuse(id, "sent {} twice; the second is refused", what);
    if (!internal::is_signed(transcript, message.signature, roster.identity(id))) {
      return refuse(id, "its {} are not signed by it for this round; refused", what);
    }
    return {};
  }
  Status close(Stage now, size_t count) {
    GRADUS_CHECK(stage == now, "the stages of secure aggregation are closed in order");
    if (static_cast<int64_t>(count) < roster.plan().threshold) {
      return give_up(unavailable("{} of {} clients sent {}, {} are needed; no sum this round",
                                 count, roster.plan().client_ids_N.size(),
                                 kStageNames[static_cast<int>(now)], roster.plan().threshold));
    }
    stage = static_cast<Stage>(static_cast<int>(now) + 1);
    return {};
  }
  bool has_surviving_neighbour(int64_t client_id) const {
    for (const int64_t other : roster.neighbours(client_id)) {
      if (survivors.contains(other)) return true;
    }
    return false;
  }
  Status cannot_open(int64_t client_id, size_t count) {
    return give_up(unavailable(
        "the masks of client {} cannot be taken off: {} of its {} holders are left, {} are needed; "
        "no sum this round",
        client_id, count, roster.holders(client_id).size(), roster.plan().threshold));
  }
  Result<std::vector<internal::Mask>> masks_to_take_off();
};

SecureServer::SecureServer(SecurePlan plan) : state_(std::make_unique<State>(std::move(plan))) {}
SecureServer::SecureServer(SecureServer&&) noexcept = default;
SecureServer::~SecureServer() = default;

Status SecureServer::add(const KeyMessage& message) {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.check(Stage::kKeys, message, true, s.keys.contains(message.client_id),
                                 internal::transcript(s.roster.digest(), message)));
  s.keys[message.client_id] = message;
  return {};
}

Result<SecureServer::ByClient<KeyMessage>> SecureServer::close_keys() {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.close(Stage::kKeys, s.keys.size()));
  ByClient<KeyMessage> routed;
  for (const auto& [id, own] : s.keys) {
    std::vector<KeyMessage>& messages = routed[id];
    for (const int64_t other : s.roster.neighbours(id)) {
      if (s.keys.contains(other)) messages.push_back(s.keys[other]);
    }
  }
  return routed;
}

Status SecureServer::add(const ShareMessage& message) {
  State& s = *state_;
  const int64_t id = message.client_id;
  GRADUS_RETURN_IF_ERROR(s.check(Stage::kShares, message, s.keys.contains(id),
                                 s.shares.contains(id),
                                 internal::transcript(s.roster.digest(), message)));
  std::vector<int64_t> holders;
  for (const int64_t holder : s.roster.holders(id)) {
    if (s.keys.contains(holder)) holders.push_back(holder);
  }
  bool fits =
      message.hashes.size() == holders.size() && message.shares.size() + 1 == holders.size();
  for (size_t i = 0, j = 0; fits && i < holders.size(); ++i) {
    fits = message.hashes[i].holder == holders[i];
    if (holders[i] == id) continue;
    const SealedShares& sealed = message.shares[j++];
    fits = fits && sealed.from == id && sealed.to == holders[i] &&
           sealed.sealed.size() == internal::kSealedBytes;
  }
  if (!fits) {
    return s.refuse(id, "its shares are not one for each of its {} neighbours; refused",
                    holders.size() - 1);
  }
  s.shares[id] = message;
  return {};
}

Result<SecureServer::ByClient<SealedShares>> SecureServer::close_shares() {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.close(Stage::kShares, s.shares.size()));
  ByClient<SealedShares> routed;
  for (auto& [id, message] : s.shares) {
    routed[id];
    for (SealedShares& sealed : message.shares) {
      if (s.shares.contains(sealed.to)) routed[sealed.to].push_back(std::move(sealed));
    }
    message.shares.clear();
  }
  s.sum_P.assign(static_cast<size_t>(s.roster.plan().num_values), 0);
  return routed;
}

Status SecureServer::add(const MaskedMessage& message) {
  State& s = *state_;
  const int64_t id = message.client_id;
  GRADUS_RETURN_IF_ERROR(s.check(Stage::kValues, message, s.shares.contains(id),
                                 s.survivors.contains(id),
                                 internal::transcript(s.roster.digest(), message)));
  if (message.values_P.size() != s.sum_P.size()) {
    return s.refuse(id, "sent {} values; they must be {}; refused", message.values_P.size(),
                    s.sum_P.size());
  }
  for (size_t i = 0; i < s.sum_P.size(); ++i) s.sum_P[i] += message.values_P[i];
  s.survivors.insert(id);
  return {};
}

Result<std::vector<int64_t>> SecureServer::close_values() {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.close(Stage::kValues, s.survivors.size()));
  for (const auto& [id, message] : s.shares) {
    if (!s.survivors.contains(id) && !s.has_surviving_neighbour(id)) continue;
    size_t count = 0;
    for (const int64_t holder : s.roster.holders(id)) count += s.survivors.contains(holder) ? 1 : 0;
    if (static_cast<int64_t>(count) < s.roster.plan().threshold) return s.cannot_open(id, count);
  }
  s.survivor_list.assign(s.survivors.begin(), s.survivors.end());
  return s.survivor_list;
}

Status SecureServer::add(const ConsentMessage& message) {
  State& s = *state_;
  const int64_t id = message.client_id;
  GRADUS_RETURN_IF_ERROR(
      s.check(Stage::kConsent, message, s.survivors.contains(id), s.consents.contains(id),
              internal::consent_transcript(s.roster.digest(), id, s.survivor_list)));
  s.consents[id] = message;
  return {};
}

Result<SecureServer::ByClient<ConsentMessage>> SecureServer::close_consents() {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.close(Stage::kConsent, s.consents.size()));
  ByClient<ConsentMessage> routed;
  for (const auto& [id, own] : s.consents) {
    std::vector<ConsentMessage>& messages = routed[id];
    for (const int64_t other : s.roster.neighbours(id)) {
      if (s.consents.contains(other)) messages.push_back(s.consents[other]);
    }
  }
  return routed;
}

Status SecureServer::add(const RevealMessage& message) {
  State& s = *state_;
  const int64_t id = message.client_id;
  GRADUS_RETURN_IF_ERROR(s.check(Stage::kReveal, message, s.consents.contains(id),
                                 s.revealing.contains(id),
                                 internal::transcript(s.roster.digest(), message)));
  std::set<int64_t> owners;
  for (const RevealedShare& share : message.shares) {
    const auto owner = s.shares.find(share.owner);
    if (owner == s.shares.end() || !owners.insert(share.owner).second) {
      return s.refuse(id, "reveals a share of client {} that it cannot have; refused", share.owner);
    }
    const auto& hashes = owner->second.hashes;
    const auto held = std::find_if(hashes.begin(), hashes.end(),
                                   [id](const ShareHashes& one) { return one.holder == id; });
    if (held == hashes.end()) {
      return s.refuse(id, "reveals a share of client {} that it cannot have; refused", share.owner);
    }
    const bool is_seed = share.kind == ShareKind::kSeed;
    if (is_seed != s.survivors.contains(share.owner)) {
      return s.refuse(id, "reveals the wrong one of client {}'s two shares; refused", share.owner);
    }
    if (internal::share_hash(s.roster.digest(), share.owner, id, share.kind, share.share) !=
        (is_seed ? held->seed : held->key)) {
      return s.refuse(id, "its share of client {} is not the one that was handed out; refused",
                      share.owner);
    }
  }
  for (const RevealedShare& share : message.shares) {
    s.revealed[share.owner].shares.push_back(
        {.point = s.roster.share_point(share.owner, id), .value = share.share});
  }
  s.revealing.insert(id);
  return {};
}

Result<std::vector<internal::Mask>> SecureServer::State::masks_to_take_off() {
  const auto threshold = static_cast<size_t>(roster.plan().threshold);
  std::vector<internal::Mask> masks;
  for (const auto& [id, message] : shares) {
    const bool is_survivor = survivors.contains(id);
    if (!is_survivor && !has_surviving_neighbour(id)) continue;
    std::vector<SecretShare>& held = revealed[id].shares;
    if (held.size() < threshold) return cannot_open(id, held.size());
    held.resize(threshold);
    const Bytes32 secret = recover_secret(held);
    const bool is_right =
        is_survivor ? internal::seed_hash(roster.digest(), id, secret) == message.seed_hash
                    : internal::agreement_public_key(secret) == keys[id].masking_key;
    if (!is_right) {
      return give_up(data_loss(
          "client {} handed out shares of another secret than its own; no sum this round", id));
    }
    if (is_survivor) {
      masks.push_back({.seed = secret, .is_negative = true});
      continue;
    }
    for (const int64_t other : roster.neighbours(id)) {
      if (!survivors.contains(other)) continue;
      const auto seed =
          internal::pair_key("mask", roster.digest(), id, secret, other, keys[other].masking_key);
      GRADUS_CHECK(seed.has_value(), "neighbours have agreed on a key that does not exist");
      // The neighbour added it if its id is the smaller.
      masks.push_back({.seed = *seed, .is_negative = other < id});
    }
  }
  return masks;
}

Result<std::vector<uint32_t>> SecureServer::finish() {
  State& s = *state_;
  GRADUS_RETURN_IF_ERROR(s.close(Stage::kReveal, s.revealing.size()));
  const Result<std::vector<internal::Mask>> masks = s.masks_to_take_off();
  if (!masks.ok()) return masks.status();
  internal::add_masks(*masks, s.sum_P);
  s.stage = Stage::kOver;
  return std::move(s.sum_P);
}

}  // namespace gradus::privacy
