// SPDX-License-Identifier: Apache-2.0
#include "privacy/secure_aggregation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "common/rng.h"
#include "privacy/internal/crypto.h"
#include "privacy/internal/masks.h"
#include "privacy/internal/transcripts.h"
#include "privacy/quantizer.h"
#include "privacy/secret_sharing.h"

namespace gradus::privacy {
namespace {

using internal::Transcript;

// Random bytes that repeat.
Entropy test_entropy(int64_t seed) {
  return [seed, draw = int64_t{0}](std::span<uint8_t> bytes) mutable {
    internal::key_stream(Transcript("test").add(seed).add(draw++).hash(), 0, bytes);
  };
}

IdentityKey identity_of(int64_t client) {
  return make_identity(Transcript("identity").add(client).hash());
}

SecurePlan make_plan(int64_t num_clients, int64_t num_neighbours, int64_t threshold,
                     int64_t num_values) {
  SecurePlan plan{.round = 7,
                  .num_neighbours = num_neighbours,
                  .threshold = threshold,
                  .num_values = num_values};
  for (int64_t i = 0; i < num_clients; ++i) {
    plan.client_ids_N.push_back(10 + 3 * i);
    plan.identities_N.push_back(identity_of(10 + 3 * i).public_key);
  }
  return plan;
}

constexpr int kNumStages = 5;

// A whole round in one process; clients drop out before the stage that is theirs in `drops`. Tests
// change messages on their way.
struct Rehearsal {
  SecurePlan plan;
  std::map<int64_t, int> drops{};  // by client id: 0 before keys .. 4 before reveal
  std::function<void(KeyMessage&)> on_keys{};
  std::function<void(ShareMessage&)> on_shares{};
  std::function<void(std::vector<SealedShares>&, int64_t)> on_routed_shares{};
  std::function<void(MaskedMessage&)> on_values{};
  std::function<void(std::vector<int64_t>&, int64_t)> on_survivors{};
  std::function<void(std::vector<ConsentMessage>&, int64_t)> on_consents{};
  std::function<void(RevealMessage&)> on_reveal{};

  std::vector<std::string> refused{};  // messages of server and clients
  std::map<int64_t, std::vector<uint32_t>> plain{};
  std::vector<int64_t> survivors{};

  bool is_in(int64_t id, int stage) const { return !drops.contains(id) || drops.at(id) > stage; }
  template <class T>
  bool took(SecureServer& server, int64_t id, const T& message) {
    const Status status = server.add(message);
    if (!status.ok()) {
      refused.push_back(status.message());
      drops[id] = 0;
    }
    return status.ok();
  }
  template <class T>
  bool gave(int64_t id, const Result<T>& message) {
    if (!message.ok()) {
      refused.push_back(message.status().message());
      drops[id] = 0;
    }
    return message.ok();
  }

  Result<std::vector<uint32_t>> go() {
    SecureServer server(plan);
    std::map<int64_t, SecureClient> clients;
    for (const int64_t id : plan.client_ids_N) {
      clients.emplace(id, SecureClient(plan, id, identity_of(id), test_entropy(id)));
      std::vector<uint32_t>& values = plain[id];
      values.resize(static_cast<size_t>(plan.num_values));
      RngSequence rng(static_cast<uint64_t>(id), RngStream::kTask);
      for (uint32_t& value : values) value = rng.next_u32();
    }
    for (auto& [id, client] : clients) {
      if (!is_in(id, 0)) continue;
      Result<KeyMessage> message = client.advertise();
      if (on_keys) on_keys(*message);
      took(server, id, *message);
    }
    auto keys = server.close_keys();
    if (!keys.ok()) return keys.status();
    for (auto& [id, client] : clients) {
      if (!is_in(id, 1)) continue;
      Result<ShareMessage> message = client.share((*keys)[id]);
      if (!gave(id, message)) continue;
      if (on_shares) on_shares(*message);
      took(server, id, *message);
    }
    auto shares = server.close_shares();
    if (!shares.ok()) return shares.status();
    for (auto& [id, client] : clients) {
      if (!is_in(id, 2)) continue;
      if (on_routed_shares) on_routed_shares((*shares)[id], id);
      Result<MaskedMessage> message = client.mask((*shares)[id], plain[id]);
      if (!gave(id, message)) continue;
      if (on_values) on_values(*message);
      took(server, id, *message);
    }
    auto list = server.close_values();
    if (!list.ok()) return list.status();
    survivors = *list;
    for (auto& [id, client] : clients) {
      if (!is_in(id, 3)) continue;
      std::vector<int64_t> told = survivors;
      if (on_survivors) on_survivors(told, id);
      Result<ConsentMessage> message = client.consent(told);
      if (gave(id, message)) took(server, id, *message);
    }
    auto consents = server.close_consents();
    if (!consents.ok()) return consents.status();
    for (auto& [id, client] : clients) {
      if (!is_in(id, 4)) continue;
      if (on_consents) on_consents((*consents)[id], id);
      Result<RevealMessage> message = client.reveal((*consents)[id]);
      if (!gave(id, message)) continue;
      if (on_reveal) on_reveal(*message);
      took(server, id, *message);
    }
    return server.finish();
  }

  // The sum of the plain vectors of those whose masked one the server took.
  std::vector<uint32_t> want() const {
    std::vector<uint32_t> sum(static_cast<size_t>(plan.num_values));
    for (const int64_t id : survivors) {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += plain.at(id)[i];
    }
    return sum;
  }
};

// Sums exactly or, with fewer than three of the five at the end, says so and gives nothing.
void expect_exact_or_nothing(const std::map<int64_t, int>& drops) {
  Rehearsal round{.plan = make_plan(5, 4, 3, 3), .drops = drops};
  std::string pattern;
  for (const auto& [id, stage] : drops) pattern += fmt::format(" {}@{}", id, stage);
  const Result<std::vector<uint32_t>> sum = round.go();
  ASSERT_EQ(sum.ok(), drops.size() <= 2) << pattern << ": " << sum.status().message();
  if (sum.ok()) {
    ASSERT_EQ(*sum, round.want()) << pattern;
  } else {
    ASSERT_EQ(sum.status().code(), StatusCode::kUnavailable) << pattern;
  }
}

TEST(SecureAggregation, IsExactForEveryPatternOfDropoutsAboveTheThreshold) {
  expect_exact_or_nothing({});
  for (int stage = 0; stage < kNumStages; ++stage) {
    for (int who = 1; who < 32; ++who) {
      std::map<int64_t, int> drops;
      for (int i = 0; i < 5; ++i) {
        if (who >> i & 1) drops[10 + 3 * i] = stage;
      }
      expect_exact_or_nothing(drops);
    }
  }
  // Two clients at two stages.
  for (int stages = 0; stages < kNumStages * kNumStages; ++stages) {
    expect_exact_or_nothing({{10, stages % kNumStages}, {19, stages / kNumStages}});
  }
}

TEST(SecureAggregation, IsExactOnASparseGraph) {
  Rehearsal round{.plan = make_plan(20, 8, 5, 5000)};
  round.drops = {{10, 0}, {16, 1}, {25, 2}, {31, 3}, {40, 4}, {46, 2}};
  const Result<std::vector<uint32_t>> sum = round.go();
  ASSERT_TRUE(sum.ok()) << sum.status().message();
  EXPECT_EQ(round.survivors.size(), 16u);
  EXPECT_EQ(*sum, round.want());
}

// What the server says, or nothing; the others' sum must be right all the same.
std::string refusal(Rehearsal round) {
  const Result<std::vector<uint32_t>> sum = round.go();
  EXPECT_TRUE(sum.ok()) << sum.status().message();
  if (sum.ok()) {
    EXPECT_EQ(*sum, round.want());
  }
  EXPECT_EQ(round.refused.size(), 1u);
  return round.refused.empty() ? "" : round.refused[0];
}

constexpr int64_t kCheat = 16;

TEST(SecureAggregation, TheServerRefusesWhatAClientMayNotSendAndGoesOnWithoutIt) {
  const SecurePlan plan = make_plan(5, 4, 3, 3);
  const std::string who = "secure aggregation: round 7, client 16: ";
  Rehearsal keys{.plan = plan, .on_keys = [](KeyMessage& m) {
                   if (m.client_id == kCheat) m.masking_key[3] ^= 1;
                 }};
  EXPECT_EQ(refusal(keys), who + "its keys are not signed by it for this round; refused");

  Rehearsal swapped{.plan = plan, .on_shares = [](ShareMessage& m) {
                      if (m.client_id == kCheat) std::swap(m.shares[0], m.shares[1]);
                    }};
  EXPECT_EQ(refusal(swapped), who + "its shares are not signed by it for this round; refused");

  Rehearsal values{.plan = plan, .on_values = [](MaskedMessage& m) {
                     if (m.client_id == kCheat) m.values_P[0] += 1;
                   }};
  EXPECT_EQ(refusal(values), who + "its values are not signed by it for this round; refused");

  Rehearsal reveal{.plan = plan, .on_reveal = [](RevealMessage& m) {
                     if (m.client_id == kCheat) m.shares[1].share[0] ^= 1;
                   }};
  EXPECT_EQ(refusal(reveal), who + "its reveals are not signed by it for this round; refused");
}

// The same by a client that signs its lies.
template <class Message>
void sign_again(const SecurePlan& plan, Message& message) {
  message.signature =
      internal::sign(internal::transcript(digest(plan), message), identity_of(message.client_id));
}

TEST(SecureAggregation, TheServerRefusesLiesThatAreSigned) {
  const SecurePlan plan = make_plan(5, 4, 3, 3);
  const std::string who = "secure aggregation: round 7, client 16: ";
  Rehearsal missing{.plan = plan, .on_shares = [&plan](ShareMessage& m) {
                      if (m.client_id != kCheat) return;
                      m.shares.pop_back();
                      sign_again(plan, m);
                    }};
  EXPECT_EQ(refusal(missing), who + "its shares are not one for each of its 4 neighbours; refused");

  Rehearsal length{.plan = plan, .on_values = [&plan](MaskedMessage& m) {
                     if (m.client_id != kCheat) return;
                     m.values_P.push_back(1);
                     sign_again(plan, m);
                   }};
  EXPECT_EQ(refusal(length), who + "sent 4 values; they must be 3; refused");

  // A wrong share, and the share of the other secret.
  Rehearsal share{.plan = plan, .on_reveal = [&plan](RevealMessage& m) {
                    if (m.client_id != kCheat) return;
                    m.shares[1].share[0] ^= 1;
                    sign_again(plan, m);
                  }};
  EXPECT_EQ(refusal(share),
            who + "its share of client 10 is not the one that was handed out; refused");
  Rehearsal kind{.plan = plan, .on_reveal = [&plan](RevealMessage& m) {
                   if (m.client_id != kCheat) return;
                   m.shares[1].kind = ShareKind::kKey;
                   sign_again(plan, m);
                 }};
  EXPECT_EQ(refusal(kind), who + "reveals the wrong one of client 10's two shares; refused");
  Rehearsal twice{.plan = plan, .on_reveal = [&plan](RevealMessage& m) {
                    if (m.client_id != kCheat) return;
                    m.shares.push_back(m.shares[1]);
                    sign_again(plan, m);
                  }};
  EXPECT_EQ(refusal(twice), who + "reveals a share of client 10 that it cannot have; refused");
}

TEST(SecureAggregation, SharesOfAnotherSecretEndTheRoundByName) {
  // Client 16 commits to a seed that it does not use; nobody can tell before the end.
  const SecurePlan plan = make_plan(5, 4, 3, 3);
  Rehearsal round{.plan = plan, .on_shares = [&plan](ShareMessage& m) {
                    if (m.client_id != kCheat) return;
                    m.seed_hash[0] ^= 1;
                    sign_again(plan, m);
                  }};
  EXPECT_EQ(round.go().status().message(),
            "secure aggregation: round 7: client 16 handed out shares of another secret than its "
            "own; no sum this round");
}

TEST(SecureAggregation, TheServerTakesMessagesInOrderAndOnce) {
  const SecurePlan plan = make_plan(3, 2, 2, 1);
  SecureServer server(plan);
  SecureClient client(plan, 10, identity_of(10), test_entropy(1));
  const KeyMessage message = *client.advertise();
  EXPECT_TRUE(server.add(message).ok());
  EXPECT_EQ(server.add(message).message(),
            "secure aggregation: round 7, client 10: sent keys twice; the second is refused");
  KeyMessage stranger = message;
  stranger.client_id = 11;
  EXPECT_EQ(server.add(stranger).message(),
            "secure aggregation: round 7, client 11: is not in this round; refused");
  EXPECT_EQ(server.add(MaskedMessage{.client_id = 10}).message(),
            "secure aggregation: round 7, client 10: sent values when keys were expected; refused");
  EXPECT_EQ(
      server.close_keys().status().message(),
      "secure aggregation: round 7: 1 of 3 clients sent keys, 2 are needed; no sum this round");
  EXPECT_EQ(
      server.add(message).message(),
      "secure aggregation: round 7, client 10: sent keys when nothing were expected; refused");
}

TEST(SecureAggregation, AMessageOfAnotherRoundIsRefused) {
  SecurePlan plan = make_plan(3, 2, 2, 1);
  SecureClient client(plan, 10, identity_of(10), test_entropy(1));
  const KeyMessage message = *client.advertise();
  for (SecurePlan other : {plan, plan, plan}) {
    static int what = 0;
    if (what == 0) other.round += 1;
    if (what == 1) other.session[0] ^= 1;
    if (what == 2) other.num_values += 1;
    ++what;
    EXPECT_EQ(SecureServer(other).add(message).message(),
              fmt::format("secure aggregation: round {}, client 10: its keys are not signed by it "
                          "for this round; refused",
                          other.round));
  }
}

TEST(SecureAggregation, AClientLeavesWhenTheServerCheats) {
  const SecurePlan plan = make_plan(5, 4, 3, 3);
  const std::string who = "secure aggregation: round 7, client 16: ";
  Rehearsal changed{.plan = plan,
                    .on_routed_shares = [](std::vector<SealedShares>& shares, int64_t id) {
                      if (id == kCheat) shares[0].sealed[30] ^= 1;
                    }};
  EXPECT_EQ(refusal(changed), who + "the shares from client 10 were changed on their way");
  Rehearsal misrouted{.plan = plan,
                      .on_routed_shares = [](std::vector<SealedShares>& shares, int64_t id) {
                        if (id == kCheat) shares[0].to = 10;
                      }};
  EXPECT_EQ(refusal(misrouted), who + "shares from client 10 to client 10, which are not for it");
  Rehearsal repeated{.plan = plan,
                     .on_routed_shares = [](std::vector<SealedShares>& shares, int64_t id) {
                       if (id == kCheat) shares.push_back(shares[0]);
                     }};
  EXPECT_EQ(refusal(repeated), who + "shares from client 10 twice");
  Rehearsal few{.plan = plan,
                .on_routed_shares = [](std::vector<SealedShares>& shares, int64_t id) {
                  if (id == kCheat) shares.resize(1);
                }};
  EXPECT_EQ(refusal(few), who +
                              "2 of 5 who hold its shares sent shares, 3 are needed; this client "
                              "leaves the round");

  // To tell client 16 that client 10 dropped out, and the others that it did not, would give the
  // server both of client 10's secrets.
  Rehearsal split{.plan = plan, .on_survivors = [](std::vector<int64_t>& list, int64_t id) {
                    if (id == kCheat) std::erase(list, 10);
                  }};
  EXPECT_EQ(refusal(split), who + "its consents are not signed by it for this round; refused");
  Rehearsal left_out{.plan = plan, .on_survivors = [](std::vector<int64_t>& list, int64_t id) {
                       if (id == kCheat) std::erase(list, kCheat);
                     }};
  EXPECT_EQ(refusal(left_out), who + "the list of survivors leaves it out");
  Rehearsal ghost{
      .plan = plan, .drops = {{10, 1}}, .on_survivors = [](std::vector<int64_t>& list, int64_t id) {
        if (id == kCheat) list.insert(list.begin(), 10);
      }};
  EXPECT_EQ(refusal(ghost), who + "the list of survivors has client 10, which sent it no shares");
  Rehearsal jumbled{.plan = plan, .on_survivors = [](std::vector<int64_t>& list, int64_t id) {
                      if (id == kCheat) std::swap(list[0], list[1]);
                    }};
  EXPECT_EQ(refusal(jumbled), who + "the list of survivors has client 10 out of order or unknown");
  Rehearsal forged{.plan = plan,
                   .on_consents = [](std::vector<ConsentMessage>& consents, int64_t id) {
                     if (id == kCheat) consents[0].signature[0] ^= 1;
                   }};
  EXPECT_EQ(refusal(forged), who + "client 10 has signed another list of survivors");
  Rehearsal lonely{.plan = plan,
                   .on_consents = [](std::vector<ConsentMessage>& consents, int64_t id) {
                     if (id == kCheat) consents.resize(1);
                   }};
  EXPECT_EQ(refusal(lonely), who +
                                 "2 of 5 who hold its shares consent, 3 are needed; this client "
                                 "leaves the round");
}

TEST(SecureAggregation, AClientTakesOnlyItsNeighboursSignedKeys) {
  const SecurePlan plan = make_plan(5, 2, 2, 1);
  std::map<int64_t, KeyMessage> keys;
  for (const int64_t id : plan.client_ids_N) {
    keys[id] = *SecureClient(plan, id, identity_of(id), test_entropy(id)).advertise();
  }
  const std::vector<int64_t> places = neighbour_graph(plan)[0];
  const auto id_at = [&plan](int64_t place) {
    return plan.client_ids_N[static_cast<size_t>(place)];
  };
  const int64_t near = id_at(places[0]);
  int64_t far = 1;
  while (far == places[0] || far == places[1]) ++far;
  const auto answer = [&](std::vector<KeyMessage> given) {
    SecureClient client(plan, 10, identity_of(10), test_entropy(10));
    EXPECT_TRUE(client.advertise().ok());
    return client.share(given).status().message();
  };
  const std::string who = "secure aggregation: round 7, client 10: ";
  EXPECT_EQ(answer({keys[near]}), "");
  EXPECT_EQ(answer({keys[id_at(far)]}),
            who + fmt::format("keys of client {}, which is not its neighbour", id_at(far)));
  EXPECT_EQ(answer({keys[near], keys[near]}), who + fmt::format("keys of client {} twice", near));
  KeyMessage forged = keys[near];
  forged.masking_key = keys[10].masking_key;  // the man in the middle
  EXPECT_EQ(answer({forged}),
            who + fmt::format("the keys of client {} are not signed by it for this round", near));
  KeyMessage low = keys[near];
  low.masking_key = Bytes32{};
  sign_again(plan, low);
  EXPECT_EQ(answer({low}), who + fmt::format("client {} sent a key of low order", near));
  EXPECT_EQ(answer({}),
            who +
                "1 of 3 who hold its shares sent keys, 2 are needed; this client leaves "
                "the round");
  SecureClient early(plan, 10, identity_of(10), test_entropy(10));
  EXPECT_EQ(early.share({}).status().message(),
            who + "asked for stage 'shares' when 'keys' was next; each comes once and in order");
}

TEST(SecureAggregation, AClientRevealsOnce) {
  // Asked again with another list, it would give away the other share of each neighbour.
  const SecurePlan plan = make_plan(3, 2, 2, 1);
  std::map<int64_t, SecureClient> clients;
  SecureServer server(plan);
  for (const int64_t id : plan.client_ids_N) {
    clients.emplace(id, SecureClient(plan, id, identity_of(id), test_entropy(id)));
    ASSERT_TRUE(server.add(*clients.at(id).advertise()).ok());
  }
  auto keys = *server.close_keys();
  for (auto& [id, client] : clients) ASSERT_TRUE(server.add(*client.share(keys[id])).ok());
  auto shares = *server.close_shares();
  for (auto& [id, client] : clients) ASSERT_TRUE(server.add(*client.mask(shares[id], {1})).ok());
  const std::vector<int64_t> survivors = *server.close_values();
  for (auto& [id, client] : clients) ASSERT_TRUE(server.add(*client.consent(survivors)).ok());
  auto consents = *server.close_consents();
  ASSERT_TRUE(clients.at(10).reveal(consents[10]).ok());
  EXPECT_EQ(clients.at(10).reveal(consents[10]).status().message(),
            "secure aggregation: round 7, client 10: asked for stage 'reveal' when 'no stage' was "
            "next; each comes once and in order");
  const std::vector<int64_t> fewer = {10, 13};
  EXPECT_FALSE(clients.at(13).consent(fewer).ok());
}

TEST(SecureAggregation, AClientRefusesAGraphThatFallsApart) {
  // Twelve in a circle, each with the one before and after it: without two that stand apart the
  // others are two arcs, and the server would learn the sum of each.
  const SecurePlan plan = make_plan(12, 2, 2, 1);
  const auto graph = neighbour_graph(plan);
  std::vector<int64_t> circle = {0, graph[0][0]};
  while (circle.size() < 12) {
    const auto& next = graph[static_cast<size_t>(circle.back())];
    circle.push_back(next[0] == circle[circle.size() - 2] ? next[1] : next[0]);
  }
  Rehearsal round{.plan = plan};
  for (const size_t gone : {2u, 7u}) {
    round.drops[plan.client_ids_N[static_cast<size_t>(circle[gone])]] = 2;
  }
  EXPECT_FALSE(round.go().ok());
  ASSERT_EQ(round.refused.size(), 10u);
  EXPECT_NE(round.refused[0].find("the graph of survivors falls apart, which would show the sum of "
                                  "each part"),
            std::string::npos);
}

TEST(SecureAggregation, TooFewAtTheEndAreNamed) {
  Rehearsal round{.plan = make_plan(5, 4, 3, 3), .drops = {{10, 2}, {13, 2}, {16, 4}}};
  EXPECT_EQ(
      round.go().status().message(),
      "secure aggregation: round 7: 2 of 5 clients sent reveals, 3 are needed; no sum this round");
  // Enough in all, but not around one of them: before the list of survivors, and after it.
  const SecurePlan sparse = make_plan(12, 4, 3, 1);
  const auto graph = neighbour_graph(sparse);
  for (const int stage : {2, 4}) {
    Rehearsal holes{.plan = sparse};
    for (const int64_t place : graph[0]) {
      if (holes.drops.size() < 3) {
        holes.drops[sparse.client_ids_N[static_cast<size_t>(place)]] = stage;
      }
    }
    EXPECT_EQ(holes.go().status().message(),
              "secure aggregation: round 7: the masks of client 10 cannot be taken off: 2 of its 5 "
              "holders are left, 3 are needed; no sum this round")
        << "stage " << stage;
  }
}

TEST(SecurePlan, IsChecked) {
  const auto message = [](const std::function<void(SecurePlan&)>& change) {
    SecurePlan plan = make_plan(10, 4, 3, 1);
    change(plan);
    return validate(plan).message();
  };
  const std::string where = "secure aggregation: ";
  EXPECT_EQ(message([](SecurePlan&) {}), "");
  EXPECT_EQ(message([](SecurePlan& p) { p.client_ids_N.resize(1); }),
            where + "1 clients; a sum of fewer than two hides nothing");
  EXPECT_EQ(message([](SecurePlan& p) { p.identities_N.pop_back(); }),
            where + "9 identities for 10 clients; each must have one");
  EXPECT_EQ(message([](SecurePlan& p) { p.client_ids_N[1] = 10; }),
            where + "client 10 comes after client 10; ids must increase");
  EXPECT_EQ(
      message([](SecurePlan& p) { p.num_neighbours = 3; }),
      where + "3 neighbours for 10 clients; it must be even, or 9 for all others, and at most 9");
  EXPECT_EQ(
      message([](SecurePlan& p) { p.num_neighbours = 10; }),
      where + "10 neighbours for 10 clients; it must be even, or 9 for all others, and at most 9");
  EXPECT_EQ(
      message([](SecurePlan& p) { p.threshold = 2; }),
      where +
          "threshold 2 with 4 neighbours; it must be between 3 and 5: more than half of those "
          "who hold a client's shares");
  EXPECT_EQ(
      message([](SecurePlan& p) { p.threshold = 6; }),
      where +
          "threshold 6 with 4 neighbours; it must be between 3 and 5: more than half of those "
          "who hold a client's shares");
  EXPECT_EQ(message([](SecurePlan& p) { p.num_values = 0; }),
            where + "0 values; it must be between 1 and 2^36 - 1");
}

TEST(NeighbourGraph, IsRegularSymmetricAndDrawnByThePlan) {
  SecurePlan plan = make_plan(30, 6, 4, 1);
  const auto graph = neighbour_graph(plan);
  for (int64_t i = 0; i < 30; ++i) {
    const auto& own = graph[static_cast<size_t>(i)];
    EXPECT_EQ(std::set<int64_t>(own.begin(), own.end()).size(), 6u);
    EXPECT_FALSE(std::binary_search(own.begin(), own.end(), i));
    for (const int64_t other : own) {
      const auto& back = graph[static_cast<size_t>(other)];
      EXPECT_TRUE(std::binary_search(back.begin(), back.end(), i)) << i << " " << other;
    }
  }
  plan.session[0] = 1;
  EXPECT_NE(neighbour_graph(plan), graph);
}

TEST(Masks, AreUniformOverAllOfTheModulusAndNewEachRound) {
  // A masked vector of zeros is its masks: both halves of each word by chi-square over 256 bins, at
  // 6 standard deviations.
  std::vector<std::vector<uint32_t>> rounds;
  for (int64_t round = 0; round < 2; ++round) {
    SecurePlan plan = make_plan(2, 1, 2, 65536);
    plan.round = round;
    // The same randomness in both rounds, so that only the plan tells them apart.
    SecureClient a(plan, 10, identity_of(10), test_entropy(1));
    SecureClient b(plan, 13, identity_of(13), test_entropy(2));
    const std::vector<KeyMessage> keys = {*a.advertise(), *b.advertise()};
    ASSERT_TRUE(a.share({&keys[1], 1}).ok());
    const ShareMessage from_b = *b.share({&keys[0], 1});
    rounds.push_back(a.mask(from_b.shares, std::vector<uint32_t>(65536))->values_P);
  }
  for (const int shift : {0, 8, 16, 24}) {
    std::vector<double> counts(256);
    for (const uint32_t word : rounds[0]) counts[word >> shift & 255] += 1;
    double chi_square = 0;
    for (const double count : counts) chi_square += (count - 256) * (count - 256) / 256;
    EXPECT_NEAR(chi_square, 255, 6 * std::sqrt(2. * 255)) << "byte " << shift / 8;
  }
  // The pair's mask differs between rounds; so does the difference, which seeds alone would leave.
  int num_equal = 0;
  for (size_t i = 0; i < 65536; ++i) num_equal += rounds[0][i] == rounds[1][i] ? 1 : 0;
  EXPECT_LT(num_equal, 4);
}

TEST(Masks, AreChaCha20WhateverTheThreads) {
  // RFC 8439, A.1, test vector 1: key and nonce 0, block 0.
  const std::vector<uint32_t> first = {0xade0b876, 0x903df1a0, 0xe56a5d40, 0x28bd8653};
  std::vector<uint32_t> values(100'000, 1);
  const internal::Mask mask{};
  internal::add_masks({&mask, 1}, values);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(values[i], first[i] + 1);
  // The stream goes on across the chunks, and the negative mask takes it off.
  std::vector<uint8_t> stream(400'000);
  internal::key_stream({}, 0, stream);
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t word;
    std::memcpy(&word, stream.data() + 4 * i, 4);
    ASSERT_EQ(values[i], word + 1) << i;
  }
  const internal::Mask off{.is_negative = true};
  internal::add_masks({&off, 1}, values);
  EXPECT_EQ(values, std::vector<uint32_t>(100'000, 1));
}

TEST(SecretSharing, AnyThresholdSharesRecoverTheSecret) {
  const Bytes32 secret = Transcript("secret").hash();
  const std::vector<uint8_t> points = {1, 2, 7, 200, 255};
  const auto shares = split_secret(secret, 3, points, test_entropy(3));
  for (size_t a = 0; a < 5; ++a) {
    for (size_t b = a + 1; b < 5; ++b) {
      const std::vector<SecretShare> two = {shares[a], shares[b]};
      EXPECT_NE(recover_secret(two), secret);
      for (size_t c = b + 1; c < 5; ++c) {
        const std::vector<SecretShare> three = {shares[c], shares[a], shares[b]};
        EXPECT_EQ(recover_secret(three), secret) << a << b << c;
      }
    }
  }
  EXPECT_EQ(recover_secret(shares), secret);
  const std::vector<uint8_t> one = {9};
  EXPECT_EQ(split_secret(secret, 1, one, test_entropy(1))[0].value, secret);
}

TEST(SecretSharing, FewerSharesSayNothing) {
  // Whatever the secret, each of t - 1 = 2 shares is uniform, and so is their sum.
  const std::vector<uint8_t> points = {1, 2, 3};
  for (const uint8_t fill : {0, 255}) {
    Bytes32 secret;
    secret.fill(fill);
    const Entropy entropy = test_entropy(fill);
    std::vector<double> counts[3];
    for (auto& one : counts) one.resize(256);
    constexpr int kTrials = 2048;
    for (int trial = 0; trial < kTrials; ++trial) {
      const auto shares = split_secret(secret, 3, points, entropy);
      for (size_t i = 0; i < 32; ++i) {
        counts[0][shares[0].value[i]] += 1;
        counts[1][shares[1].value[i]] += 1;
        counts[2][shares[0].value[i] ^ shares[1].value[i]] += 1;
      }
    }
    for (const auto& bins : counts) {
      constexpr double kWant = kTrials * 32 / 256.;
      double chi_square = 0;
      for (const double count : bins) chi_square += (count - kWant) * (count - kWant) / kWant;
      EXPECT_NEAR(chi_square, 255, 6 * std::sqrt(2. * 255)) << "secret of " << int{fill};
    }
  }
}

TEST(Quantizer, IsOffByHalfAStepAtMostAndExactInSums) {
  const Quantizer quantizer = *Quantizer::make(2, 8, 3);  // 127 steps up and down
  EXPECT_DOUBLE_EQ(quantizer.step(), 2. / 127);
  const std::vector<float> values = {0, 1, -1, 2, -2, 2.5f, 0.013f};
  std::vector<uint32_t> numbers(values.size()), sums(values.size());
  EXPECT_EQ(*quantizer.quantize(values, Rounding::kNearest, {}, numbers), 1);  // 2.5 is beyond
  for (int client = 0; client < 3; ++client) {
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += numbers[i];
  }
  const std::vector<double> mean = quantizer.dequantize(sums);
  for (size_t i = 0; i < values.size(); ++i) {
    const double want = std::clamp(static_cast<double>(values[i]), -2., 2.);
    EXPECT_LE(std::fabs(mean[i] / 3 - want), quantizer.step() / 2 * (1 + 1e-12)) << i;
  }
  EXPECT_EQ(mean[3], 6);
  EXPECT_EQ(mean[4], -6);
  const std::vector<float> broken = {0, INFINITY};
  EXPECT_EQ(
      quantizer.quantize(broken, Rounding::kNearest, {}, {numbers.data(), 2}).status().message(),
      "secure aggregation: value 1 is inf; all must be finite");
}

TEST(Quantizer, RoundsUpWithTheProbabilityOfTheRest) {
  const Quantizer quantizer = *Quantizer::make(127, 8, 1);  // steps of 1
  constexpr int kDraws = 1'000'000;
  for (const float value : {0.3f, -5.85f}) {
    const std::vector<float> values(kDraws, value);
    std::vector<uint32_t> numbers(kDraws);
    EXPECT_EQ(*quantizer.quantize(values, Rounding::kStochastic, Bytes32{1}, numbers), 0);
    double mean = 0;
    for (const uint32_t number : numbers) mean += static_cast<int32_t>(number) / double{kDraws};
    const double rest = value - std::floor(value);
    EXPECT_NEAR(mean, value, 4 * std::sqrt(rest * (1 - rest) / kDraws));
  }
}

TEST(Quantizer, RefusesBitsThatCouldWrap) {
  EXPECT_TRUE(Quantizer::make(1, 25, 100).ok());
  EXPECT_TRUE(Quantizer::make(1, 25, 128).ok());
  EXPECT_EQ(
      Quantizer::make(1, 25, 129).status().message(),
      "secure aggregation: 25 bits a value for 129 clients; it must be between 2 and 24, so that "
      "their sum fits into 32 bits");
  EXPECT_EQ(Quantizer::make(0, 8, 2).status().message(),
            "secure aggregation: the range is 0; it must be above 0");
  // The largest sum there can be.
  const Quantizer quantizer = *Quantizer::make(1, 25, 128);
  const std::vector<float> ends = {1, -1};
  std::vector<uint32_t> numbers(2), sums(2);
  ASSERT_TRUE(quantizer.quantize(ends, Rounding::kNearest, {}, numbers).ok());
  for (int client = 0; client < 128; ++client) {
    for (size_t i = 0; i < 2; ++i) sums[i] += numbers[i];
  }
  EXPECT_DOUBLE_EQ(quantizer.dequantize(sums)[0], 128);
  EXPECT_DOUBLE_EQ(quantizer.dequantize(sums)[1], -128);
}

}  // namespace
}  // namespace gradus::privacy
