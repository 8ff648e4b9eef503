// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "common/status.h"
#include "federated/identity.h"

// Frames between two programs over TCP and TLS 1.3 (OpenSSL). Both ends prove that they hold the
// private key of an Ed25519 key (identity.h), by certificates that they sign themselves; nothing in
// a certificate but its key is looked at. A frame is 4 bytes of length, most significant first, and
// as many bytes.
namespace gradus::federated {

// The largest frame that either side takes; a tile of an update is far below.
inline constexpr int64_t kMaxFrameBytes = 1 << 20;

// One connection. One thread, except shut_down().
class SecureChannel {
 public:
  SecureChannel(const SecureChannel&) = delete;
  SecureChannel& operator=(const SecureChannel&) = delete;
  ~SecureChannel();

  // The key that the other end holds.
  const PublicKey& peer() const;
  const std::string& peer_address() const;  // "127.0.0.1:40112", for messages

  // Sends a frame. Unavailable if the other end is gone or takes nothing for `timeout_s`; the
  // channel is then of no more use. InvalidArgument for more than kMaxFrameBytes.
  Status send(std::span<const std::byte> frame, double timeout_s);

  // Whether there is something to receive, waiting for it up to `timeout_s`; 0 asks alone. An end
  // that is gone counts as something: receive() then says so. Ends early, with false, when the file
  // descriptor `wake` becomes readable.
  bool wait(double timeout_s, int wake = -1);

  // The next frame, into `frame`. Unavailable if the other end is gone or sends nothing for
  // `timeout_s`; DataLoss if a frame is larger than kMaxFrameBytes or cut off.
  Status receive(std::string& frame, double timeout_s);

  // Ends the connection from any thread: both ends' calls then return Unavailable.
  void shut_down();

 private:
  friend class SecureListener;
  friend Result<std::unique_ptr<SecureChannel>> connect_securely(const std::string&,
                                                                 const Identity&, const PublicKey&,
                                                                 double);
  struct State;
  explicit SecureChannel(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// "host:port" of a name or an IPv4 address. NotFound if the name is unknown, InvalidArgument if
// there is no port, Unavailable if nobody listens there or nothing comes for `timeout_s`,
// InvalidArgument if who does holds another key than `server`, or speaks no TLS 1.3.
Result<std::unique_ptr<SecureChannel>> connect_securely(const std::string& address,
                                                        const Identity& identity,
                                                        const PublicKey& server, double timeout_s);

// Takes connections. One thread, but handshakes may be made on others.
class SecureListener {
 public:
  // "127.0.0.1:7143"; port 0 takes a free one. Unavailable if it cannot be had.
  static Result<std::unique_ptr<SecureListener>> listen(const std::string& address,
                                                        const Identity& identity);
  ~SecureListener();
  SecureListener(const SecureListener&) = delete;
  SecureListener& operator=(const SecureListener&) = delete;

  int port() const;

  // Waits up to `timeout_s` for a connection and gives its handshake, to be called on any thread:
  // its channel, or Unavailable if the peer does not shake hands within the time it is given, and
  // InvalidArgument if what it speaks is not TLS 1.3 or it shows no Ed25519 key. Empty if nobody
  // came. Who may come is for the caller to judge, by peer().
  using Handshake = std::function<Result<std::unique_ptr<SecureChannel>>(double timeout_s)>;
  Handshake accept(double timeout_s);

 private:
  struct State;
  explicit SecureListener(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gradus::federated
