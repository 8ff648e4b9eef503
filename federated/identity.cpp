// SPDX-License-Identifier: Apache-2.0
#include "federated/identity.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>

#include "common/check.h"

namespace gradus::federated {
namespace {

constexpr char kPrefix[] = "ed25519:";

std::shared_ptr<void> owned(EVP_PKEY* key) {
  return {key, [](void* handle) { EVP_PKEY_free(static_cast<EVP_PKEY*>(handle)); }};
}

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

std::string to_text(const PublicKey& key) {
  unsigned char text[48] = {};
  EVP_EncodeBlock(text, key.bytes.data(), static_cast<int>(key.bytes.size()));
  return std::string(kPrefix) + reinterpret_cast<const char*>(text);
}

Result<PublicKey> parse_public_key(const std::string& text) {
  const std::string head = text.substr(0, sizeof(kPrefix) - 1);
  if (head != kPrefix) {
    return invalid_argument(
        "'{}' is no public key; expected {} and 44 characters, as gradus "
        "federate keygen prints it",
        text, kPrefix);
  }
  const std::string body = text.substr(head.size());
  unsigned char decoded[64] = {};
  // 44 characters with one = at the end are 32 bytes; OpenSSL counts the padding as a byte.
  const bool is_whole = body.size() == 44 && body[43] == '=' && body[42] != '=';
  if (!is_whole ||
      EVP_DecodeBlock(decoded, reinterpret_cast<const unsigned char*>(body.data()), 44) != 33) {
    return invalid_argument(
        "'{}' is no public key: its {} characters after {} are not 32 bytes in base64; copy the "
        "whole line that gradus federate keygen printed",
        text, body.size(), kPrefix);
  }
  PublicKey key;
  std::memcpy(key.bytes.data(), decoded, key.bytes.size());
  return key;
}

Result<std::vector<PublicKey>> read_public_keys(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    return not_found("{}: no such file; expected public keys of clients, one a line", path);
  std::vector<PublicKey> keys;
  std::map<PublicKey, int64_t> lines;
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const std::string word = line.substr(0, line.find_first_of(" \t\r"));
    if (word.empty() || word[0] == '#') continue;
    const Result<PublicKey> key = parse_public_key(word);
    if (!key.ok()) return key.status().with_prefix(fmt::format("{}:{}", path, number));
    const auto [first, is_new] = lines.try_emplace(*key, number);
    if (!is_new) {
      return invalid_argument("{}:{}: the key of line {} again; each client has one of its own",
                              path, number, first->second);
    }
    keys.push_back(*key);
  }
  return keys;
}

Identity::Identity(std::shared_ptr<void> handle) : handle_(std::move(handle)) {
  size_t size = public_key_.bytes.size();
  const int done = EVP_PKEY_get_raw_public_key(static_cast<EVP_PKEY*>(handle_.get()),
                                               public_key_.bytes.data(), &size);
  GRADUS_CHECK(done == 1 && size == 32, "no raw public key");
}

Identity Identity::fresh() {
  EVP_PKEY* key = EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519");
  GRADUS_CHECK(key != nullptr, "OpenSSL made no Ed25519 key");
  return Identity(owned(key));
}

Result<Identity> Identity::load(const std::string& path) {
  const std::unique_ptr<std::FILE, FileCloser> file(std::fopen(path.c_str(), "re"));
  if (!file) {
    return not_found("{}: {}; make a key with gradus federate keygen {}", path,
                     std::strerror(errno), path);
  }
  struct stat info {};
  fstat(fileno(file.get()), &info);
  if ((info.st_mode & 077) != 0) {
    return invalid_argument(
        "{}: others may read this private key (mode {:04o}); chmod 600 it, and make a new one if "
        "they did",
        path, info.st_mode & 07777);
  }
  EVP_PKEY* key = PEM_read_PrivateKey(
      file.get(), nullptr, [](char*, int, int, void*) { return -1; }, nullptr);
  if (key == nullptr) {
    return invalid_argument("{}: no private key in PEM form; make one with gradus federate keygen",
                            path);
  }
  std::shared_ptr<void> handle = owned(key);
  if (EVP_PKEY_get_base_id(key) != EVP_PKEY_ED25519) {
    return invalid_argument("{}: not an Ed25519 key; make one with gradus federate keygen", path);
  }
  return Identity(std::move(handle));
}

Status Identity::save(const std::string& path) const {
  // O_EXCL: never over an old key, which nobody could make again.
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) {
    if (errno == EEXIST) {
      return invalid_argument("{}: exists; a key is not written over, choose another name", path);
    }
    return unavailable("{}: {}", path, std::strerror(errno));
  }
  const std::unique_ptr<std::FILE, FileCloser> file(fdopen(descriptor, "w"));
  const int written = PEM_write_PrivateKey(file.get(), static_cast<EVP_PKEY*>(handle_.get()),
                                           nullptr, nullptr, 0, nullptr, nullptr);
  if (written != 1 || std::fflush(file.get()) != 0 || fsync(descriptor) != 0) {
    return unavailable("{}: the key was not written: {}", path, std::strerror(errno));
  }
  return {};
}

}  // namespace gradus::federated
