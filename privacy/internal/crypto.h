// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "privacy/secure_messages.h"

// The few primitives of libsodium that secure aggregation stands on. Thread-safe.
namespace gradus::privacy::internal {

// What the system's randomness gives; anything else is for tests.
void system_entropy(std::span<uint8_t> bytes);

// X25519 (RFC 7748). `secret` is any 32 random bytes.
Bytes32 agreement_public_key(const Bytes32& secret);
// Nothing if `public_key` is a point of low order, with which every secret gives the same key.
std::optional<Bytes32> agreed_key(const Bytes32& secret, const Bytes32& public_key);

// Builds the bytes that are hashed or signed: fields of fixed length, one after the other, after a
// label that keeps uses apart.
class Transcript {
 public:
  explicit Transcript(std::string_view label);
  Transcript& add(std::span<const uint8_t> bytes);
  Transcript& add(int64_t value);
  std::span<const uint8_t> bytes() const { return bytes_; }
  // BLAKE2b (RFC 7693), with a key or without.
  Bytes32 hash() const;
  Bytes32 hash(const Bytes32& key) const;

 private:
  std::vector<uint8_t> bytes_;
};
// Of many bytes, without a copy of them.
Bytes32 hash_values(std::span<const uint32_t> values);

Signature sign(const Transcript& transcript, const IdentityKey& identity);  // Ed25519, RFC 8032
bool is_signed(const Transcript& transcript, const Signature& signature, const Bytes32& identity);

// XChaCha20-Poly1305 with a random nonce, which stands in front. `context` is authenticated too.
std::vector<uint8_t> seal(std::span<const uint8_t> plain, const Bytes32& key,
                          const Transcript& context, std::span<const uint8_t> nonce_24);
// Nothing if a bit of the sealed bytes, the key or the context is another.
std::optional<std::vector<uint8_t>> open(std::span<const uint8_t> sealed, const Bytes32& key,
                                         const Transcript& context);

// Key stream of ChaCha20 (RFC 8439, nonce 0) from byte 64 * block on.
void key_stream(const Bytes32& key, uint32_t block, std::span<uint8_t> bytes);

// Overwrites a secret that is no longer needed.
void wipe(std::span<uint8_t> bytes);

}  // namespace gradus::privacy::internal
