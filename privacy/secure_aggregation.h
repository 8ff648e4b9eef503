// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "privacy/secure_messages.h"

// Secure aggregation: the server learns the sum of the clients' vectors modulo 2^32, exactly, and
// nothing else of any of them, though some clients drop out (Bonawitz et al. 2017,
// doi:10.1145/3133956.3133982; "SecAgg+" is the sparse graph of Bell et al. 2020,
// doi:10.1145/3372297.3417885). Each client hides its vector under one mask of its own and one
// for each neighbour, which neighbours subtract; shares of the masks' secrets let the others open
// the masks that do not cancel. docs/privacy.md has the five stages, what is hidden from whom, and
// at what cost.
//
//   stage    a client calls   the server calls add() for each message, then
//   keys     advertise()      close_keys():     to each client its neighbours' keys
//   shares   share(keys)      close_shares():   to each client the shares sealed for it
//   values   mask(shares, x)  close_values():   to all the list of survivors
//   consent  consent(list)    close_consents(): to all the consents of their neighbours
//   reveal   reveal(consents) finish():         the sum
//
// A client that stays silent at a stage, or whose message is refused, has dropped out.
namespace gradus::privacy {

// One client in one round. Not thread-safe. Every function is called once and in order, and returns
// InvalidArgument if what it is given cannot come from an honest server and honest neighbours, or
// Unavailable if too few neighbours are left; the client must then leave the round.
class SecureClient {
 public:
  // The plan is valid and has `client_id` with this identity. `entropy`: the system's, but in
  // tests.
  SecureClient(SecurePlan plan, int64_t client_id, IdentityKey identity);
  SecureClient(SecurePlan plan, int64_t client_id, IdentityKey identity, Entropy entropy);
  SecureClient(SecureClient&&) noexcept;
  ~SecureClient();

  Result<KeyMessage> advertise();
  Result<ShareMessage> share(std::span<const KeyMessage> keys);
  Result<MaskedMessage> mask(std::span<const SealedShares> shares, std::vector<uint32_t> values_P);
  Result<ConsentMessage> consent(std::span<const int64_t> survivors);
  // Never both shares of one neighbour: with both, the server could read its vector.
  Result<RevealMessage> reveal(std::span<const ConsentMessage> consents);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The server in one round; holds one vector, whatever the number of clients. Not thread-safe. add()
// refuses a message with InvalidArgument and goes on without it. A close function ends its stage,
// with Unavailable if the sum can no longer be had; the round is then over and there is no output.
class SecureServer {
 public:
  explicit SecureServer(SecurePlan plan);  // valid
  SecureServer(SecureServer&&) noexcept;
  ~SecureServer();

  template <class T>
  using ByClient = std::map<int64_t, std::vector<T>>;

  Status add(const KeyMessage& message);
  Result<ByClient<KeyMessage>> close_keys();
  Status add(const ShareMessage& message);
  Result<ByClient<SealedShares>> close_shares();
  Status add(const MaskedMessage& message);
  Result<std::vector<int64_t>> close_values();
  Status add(const ConsentMessage& message);
  Result<ByClient<ConsentMessage>> close_consents();
  Status add(const RevealMessage& message);
  // The sum of the survivors' vectors modulo 2^32.
  Result<std::vector<uint32_t>> finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gradus::privacy
