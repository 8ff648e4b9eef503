// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"

// Who a server or a client of a deployment is: an Ed25519 key. There are no certificate authorities
// and no names: a peer is the key that it proves to hold, and lists of public keys say who may
// come. All functions are thread-safe.
namespace gradus::federated {

struct PublicKey {
  std::array<uint8_t, 32> bytes{};
  auto operator<=>(const PublicKey&) const = default;
};

// "ed25519:" and 44 characters of base64.
std::string to_text(const PublicKey& key);
// InvalidArgument tells what is wrong with the text.
Result<PublicKey> parse_public_key(const std::string& text);

// A file of public keys, one a line; what follows a space, lines that begin with # and empty ones
// are for people. The i-th key is that of client i. NotFound, or InvalidArgument with file and line
// for a line that is no key and for a key that stands there twice.
Result<std::vector<PublicKey>> read_public_keys(const std::string& path);

// A private key. Copies share it.
class Identity {
 public:
  // A new one, of the system's randomness.
  static Identity fresh();
  // Reads what save() wrote. NotFound; InvalidArgument if it is no Ed25519 key or if others than
  // the owner may read the file.
  static Result<Identity> load(const std::string& path);

  // Writes a PEM file that its owner alone may read (mode 0600). InvalidArgument if there is one.
  Status save(const std::string& path) const;

  const PublicKey& public_key() const { return public_key_; }
  // OpenSSL's EVP_PKEY, which lives as long as this.
  void* handle() const { return handle_.get(); }

 private:
  explicit Identity(std::shared_ptr<void> handle);
  std::shared_ptr<void> handle_;
  PublicKey public_key_;
};

}  // namespace gradus::federated
