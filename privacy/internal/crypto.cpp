// SPDX-License-Identifier: Apache-2.0
#include "privacy/internal/crypto.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace gradus::privacy::internal {
namespace {

// Chooses the code for this processor; must come before anything else of the library.
void start_sodium() {
  static const int status = sodium_init();
  GRADUS_CHECK(status >= 0, "libsodium cannot start: no source of randomness");
}

}  // namespace

void system_entropy(std::span<uint8_t> bytes) {
  start_sodium();
  randombytes_buf(bytes.data(), bytes.size());
}

Bytes32 agreement_public_key(const Bytes32& secret) {
  start_sodium();
  Bytes32 result;
  GRADUS_CHECK(crypto_scalarmult_base(result.data(), secret.data()) == 0, "X25519 base point");
  return result;
}

std::optional<Bytes32> agreed_key(const Bytes32& secret, const Bytes32& public_key) {
  start_sodium();
  Bytes32 result;
  if (crypto_scalarmult(result.data(), secret.data(), public_key.data()) != 0) return std::nullopt;
  return result;
}

Transcript::Transcript(std::string_view label) {
  add(static_cast<int64_t>(label.size()));
  bytes_.insert(bytes_.end(), label.begin(), label.end());
}

Transcript& Transcript::add(std::span<const uint8_t> bytes) {
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  return *this;
}

Transcript& Transcript::add(int64_t value) {
  for (int shift = 0; shift < 64; shift += 8) {
    bytes_.push_back(static_cast<uint8_t>(static_cast<uint64_t>(value) >> shift));
  }
  return *this;
}

Bytes32 Transcript::hash() const {
  start_sodium();
  Bytes32 result;
  crypto_generichash(result.data(), result.size(), bytes_.data(), bytes_.size(), nullptr, 0);
  return result;
}

Bytes32 Transcript::hash(const Bytes32& key) const {
  start_sodium();
  Bytes32 result;
  crypto_generichash(result.data(), result.size(), bytes_.data(), bytes_.size(), key.data(),
                     key.size());
  return result;
}

Bytes32 hash_values(std::span<const uint32_t> values) {
  start_sodium();
  Bytes32 result;
  crypto_generichash(result.data(), result.size(),
                     reinterpret_cast<const unsigned char*>(values.data()), values.size_bytes(),
                     nullptr, 0);
  return result;
}

Signature sign(const Transcript& transcript, const IdentityKey& identity) {
  start_sodium();
  Signature result;
  crypto_sign_detached(result.data(), nullptr, transcript.bytes().data(), transcript.bytes().size(),
                       identity.secret.data());
  return result;
}

bool is_signed(const Transcript& transcript, const Signature& signature, const Bytes32& identity) {
  start_sodium();
  return crypto_sign_verify_detached(signature.data(), transcript.bytes().data(),
                                     transcript.bytes().size(), identity.data()) == 0;
}

std::vector<uint8_t> seal(std::span<const uint8_t> plain, const Bytes32& key,
                          const Transcript& context, std::span<const uint8_t> nonce_24) {
  start_sodium();
  constexpr size_t kNonce = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES;
  GRADUS_CHECK(nonce_24.size() == kNonce, "seal needs a nonce of 24 bytes");
  std::vector<uint8_t> sealed(kNonce + plain.size() + crypto_aead_xchacha20poly1305_ietf_ABYTES);
  std::copy(nonce_24.begin(), nonce_24.end(), sealed.begin());
  crypto_aead_xchacha20poly1305_ietf_encrypt(
      sealed.data() + kNonce, nullptr, plain.data(), plain.size(), context.bytes().data(),
      context.bytes().size(), nullptr, sealed.data(), key.data());
  return sealed;
}

std::optional<std::vector<uint8_t>> open(std::span<const uint8_t> sealed, const Bytes32& key,
                                         const Transcript& context) {
  start_sodium();
  constexpr size_t kNonce = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES;
  constexpr size_t kTag = crypto_aead_xchacha20poly1305_ietf_ABYTES;
  if (sealed.size() < kNonce + kTag) return std::nullopt;
  std::vector<uint8_t> plain(sealed.size() - kNonce - kTag);
  if (crypto_aead_xchacha20poly1305_ietf_decrypt(
          plain.data(), nullptr, nullptr, sealed.data() + kNonce, sealed.size() - kNonce,
          context.bytes().data(), context.bytes().size(), sealed.data(), key.data()) != 0) {
    return std::nullopt;
  }
  return plain;
}

void key_stream(const Bytes32& key, uint32_t block, std::span<uint8_t> bytes) {
  start_sodium();
  static constexpr unsigned char kNonce[crypto_stream_chacha20_ietf_NONCEBYTES] = {};
  std::memset(bytes.data(), 0, bytes.size());
  crypto_stream_chacha20_ietf_xor_ic(bytes.data(), bytes.data(), bytes.size(), kNonce, block,
                                     key.data());
}

void wipe(std::span<uint8_t> bytes) { sodium_memzero(bytes.data(), bytes.size()); }

}  // namespace gradus::privacy::internal
