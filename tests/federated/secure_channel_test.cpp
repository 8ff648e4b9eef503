// SPDX-License-Identifier: Apache-2.0
#include "federated/secure_channel.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "tests/support/files.h"

namespace gradus::federated {
namespace {

using ::testing::HasSubstr;

constexpr double kSoon = 20;  // seconds; nothing here takes as long unless it hangs

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST(IdentityFile, ComesBackAndIsTheOwnersAlone) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/key.pem";
  const Identity identity = Identity::fresh();
  ASSERT_TRUE(identity.save(path).ok());
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  const Result<Identity> loaded = Identity::load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->public_key(), identity.public_key());
  EXPECT_THAT(identity.save(path).message(),
              HasSubstr("key.pem: exists; a key is not written over, choose another name"));
  chmod(path.c_str(), 0640);
  EXPECT_THAT(Identity::load(path).status().message(),
              HasSubstr("key.pem: others may read this private key (mode 0640); chmod 600 it"));
  test::write_file(path + "2", "not a key\n");
  chmod((path + "2").c_str(), 0600);
  EXPECT_THAT(Identity::load(path + "2").status().message(), HasSubstr("no private key in PEM"));
  EXPECT_THAT(Identity::load(path + "3").status().message(),
              HasSubstr("make a key with gradus federate keygen"));
}

TEST(PublicKeyText, ComesBackAndNothingElseIsTaken) {
  const PublicKey key = Identity::fresh().public_key();
  const std::string text = to_text(key);
  EXPECT_EQ(text.size(), 8u + 44u);
  ASSERT_TRUE(parse_public_key(text).ok());
  EXPECT_EQ(*parse_public_key(text), key);
  for (const std::string& bad : {text.substr(8), text.substr(0, 51), text + "A",
                                 text.substr(0, 20) + "!" + text.substr(21), std::string()}) {
    EXPECT_THAT(parse_public_key(bad).status().message(), HasSubstr("is no public key")) << bad;
  }
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/clients";
  const std::string other = to_text(Identity::fresh().public_key());
  test::write_file(path, "# the first two\n" + text + " Ann's machine\n\n" + other + "\n");
  const auto keys = read_public_keys(path);
  ASSERT_TRUE(keys.ok()) << keys.status().message();
  ASSERT_EQ(keys->size(), 2u);
  EXPECT_EQ((*keys)[0], key);
  test::write_file(path, text + "\n" + text + "\n");
  EXPECT_THAT(read_public_keys(path).status().message(),
              HasSubstr("clients:2: the key of line 1 again"));
}

// A listener with a thread that shakes hands and hands the channel to `serve`.
class SecureChannels : public ::testing::Test {
 protected:
  void SetUp() override {
    auto listener = SecureListener::listen("127.0.0.1:0", server_);
    ASSERT_TRUE(listener.ok()) << listener.status().message();
    listener_ = std::move(*listener);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(listener_->port()); }
  // Accepts one connection and calls `serve` with it; what the handshake said.
  template <class Serve>
  std::thread serve(Status& handshake, Serve action, double patience = kSoon) {
    return std::thread([this, &handshake, action, patience] {
      const SecureListener::Handshake shake = listener_->accept(kSoon);
      ASSERT_TRUE(shake);
      auto channel = shake(patience);
      handshake = channel.status();
      if (channel.ok()) action(**channel);
    });
  }
  Result<std::unique_ptr<SecureChannel>> connect() const {
    return connect_securely(address(), client_, server_.public_key(), kSoon);
  }

  Identity server_ = Identity::fresh(), client_ = Identity::fresh();
  std::unique_ptr<SecureListener> listener_;
};

TEST_F(SecureChannels, CarryFramesOfAllSizesAndKnowThePeersKey) {
  Status handshake;
  PublicKey seen;
  std::thread server = serve(handshake, [&](SecureChannel& channel) {
    seen = channel.peer();
    for (std::string frame; channel.receive(frame, kSoon).ok();) {
      ASSERT_TRUE(channel.send(bytes_of(frame), kSoon).ok());
    }
  });
  {
    auto channel = connect();
    ASSERT_TRUE(channel.ok()) << channel.status().message();
    EXPECT_EQ((*channel)->peer(), server_.public_key());
    EXPECT_FALSE((*channel)->wait(0)) << "nothing was sent";
    // 16384 bytes are the most that a TLS record holds.
    for (const int64_t size : {0l, 1l, 16380l, 16381l, 65537l, static_cast<long>(kMaxFrameBytes)}) {
      std::string sent(static_cast<size_t>(size), 'x'), received;
      for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 131 >> 3);
      ASSERT_TRUE((*channel)->send(bytes_of(sent), kSoon).ok());
      EXPECT_TRUE((*channel)->wait(kSoon));
      ASSERT_TRUE((*channel)->receive(received, kSoon).ok());
      EXPECT_EQ(received, sent) << size;
    }
    const std::string large(static_cast<size_t>(kMaxFrameBytes) + 1, 'x');
    EXPECT_THAT((*channel)->send(bytes_of(large), kSoon).message(),
                HasSubstr("a frame of 1048577 bytes; at most 1048576 are sent"));
  }
  server.join();
  EXPECT_TRUE(handshake.ok()) << handshake.message();
  EXPECT_EQ(seen, client_.public_key());
}

TEST_F(SecureChannels, RefuseAServerWithAnotherKey) {
  Status handshake;
  std::thread server = serve(handshake, [](SecureChannel&) {});
  const PublicKey expected = Identity::fresh().public_key();
  const auto channel = connect_securely(address(), client_, expected, kSoon);
  server.join();
  ASSERT_FALSE(channel.ok());
  EXPECT_THAT(channel.status().message(),
              HasSubstr("the server has the key " + to_text(server_.public_key()) + ", not " +
                        to_text(expected)));
}

// A client that speaks below the frames.
class RawClient {
 public:
  // `version`: the newest TLS that it speaks; `identity` null: it shows no certificate.
  RawClient(int port, const Identity* identity, int version = TLS1_3_VERSION) {
    socket_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
    context_ = SSL_CTX_new(TLS_method());
    SSL_CTX_set_max_proto_version(context_, version);
    if (identity != nullptr) {
      auto* key = static_cast<EVP_PKEY*>(identity->handle());
      X509* certificate = X509_new();
      ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
      X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
      X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
      X509_set_pubkey(certificate, key);
      EXPECT_GT(X509_sign(certificate, key, nullptr), 0);
      SSL_CTX_use_certificate(context_, certificate);
      SSL_CTX_use_PrivateKey(context_, key);
      X509_free(certificate);
    }
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, socket_);
  }
  ~RawClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
    close_socket();
  }
  bool shake_hands() { return SSL_connect(ssl_) == 1; }
  void write(const std::string& bytes) {
    EXPECT_EQ(SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())),
              static_cast<int>(bytes.size()));
  }
  void write_plain(const std::string& bytes) {
    EXPECT_EQ(::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  void close_socket() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

 private:
  int socket_ = -1;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
};

TEST_F(SecureChannels, RefusePlainTextOlderTlsAndClientsWithoutAKey) {
  {
    Status handshake;
    std::thread server = serve(handshake, [](SecureChannel&) {});
    RawClient client(listener_->port(), &client_);
    client.write_plain("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    server.join();
    EXPECT_EQ(handshake.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(handshake.message(), HasSubstr("no TLS 1.3 handshake: http request"));
  }
  {
    Status handshake;
    std::thread server = serve(handshake, [](SecureChannel&) {});
    RawClient client(listener_->port(), &client_, TLS1_2_VERSION);
    EXPECT_FALSE(client.shake_hands());
    server.join();
    EXPECT_THAT(handshake.message(), HasSubstr("no TLS 1.3 handshake: unsupported protocol"));
  }
  {
    Status handshake;
    std::thread server = serve(handshake, [](SecureChannel&) {});
    RawClient client(listener_->port(), nullptr);
    client.shake_hands();  // which a client takes for done before the server has judged
    server.join();
    EXPECT_THAT(handshake.message(),
                HasSubstr("no TLS 1.3 handshake: peer did not return a certificate"));
  }
  {
    Status handshake;
    std::thread server = serve(
        handshake, [](SecureChannel&) {}, 0.2);
    const RawClient client(listener_->port(), &client_);  // says nothing
    server.join();
    EXPECT_EQ(handshake.code(), StatusCode::kUnavailable);
    EXPECT_THAT(handshake.message(), HasSubstr("nothing came in time"));
  }
}

TEST_F(SecureChannels, RefuseFramesThatAreCutOffTooLargeOrLate) {
  const auto outcome_of = [&](const std::string& bytes, bool closes, double patience) {
    Status handshake, received;
    std::thread server = serve(handshake, [&](SecureChannel& channel) {
      std::string frame;
      received = channel.receive(frame, patience);
    });
    RawClient client(listener_->port(), &client_);
    EXPECT_TRUE(client.shake_hands());
    if (!bytes.empty()) client.write(bytes);
    if (closes) client.close_socket();
    server.join();
    EXPECT_TRUE(handshake.ok()) << handshake.message();
    return received;
  };
  const std::string half(
      "\0\0\0\x0a"
      "12345",
      9);
  EXPECT_EQ(outcome_of(half, true, kSoon).code(), StatusCode::kDataLoss);
  EXPECT_THAT(outcome_of(half, true, kSoon).message(), HasSubstr("a frame was cut off: "));
  EXPECT_THAT(outcome_of(half, false, 0.2).message(),
              HasSubstr("a frame was cut off: nothing came in time"));
  EXPECT_THAT(outcome_of(std::string("\0\0", 2), true, kSoon).message(), HasSubstr("cut off"));
  EXPECT_THAT(outcome_of(std::string("\0\x10\0\1", 4), false, kSoon).message(),
              HasSubstr("a frame of 1048577 bytes; at most 1048576 are taken"));
  EXPECT_THAT(outcome_of("\xff\xff\xff\xff", false, kSoon).message(),
              HasSubstr("a frame of 4294967295 bytes"));
  EXPECT_EQ(outcome_of("", true, kSoon).code(), StatusCode::kUnavailable);
  EXPECT_THAT(outcome_of("", false, 0.2).message(), HasSubstr("nothing came in time"));
}

TEST_F(SecureChannels, EndWhenAnotherThreadShutsThemDown) {
  Status handshake, received;
  std::thread server = serve(handshake, [&](SecureChannel& channel) {
    std::thread other([&] { channel.shut_down(); });
    std::string frame;
    received = channel.receive(frame, kSoon);
    other.join();
  });
  const auto channel = connect();
  ASSERT_TRUE(channel.ok());
  server.join();
  EXPECT_EQ(received.code(), StatusCode::kUnavailable);
}

TEST(SecureConnection, TellsWhatIsWrongWithAnAddress) {
  const Identity identity = Identity::fresh();
  const auto message = [&](const std::string& address) {
    return connect_securely(address, identity, identity.public_key(), 1).status().message();
  };
  EXPECT_THAT(message("localhost"), HasSubstr("'localhost' is no address; expected host:port"));
  EXPECT_THAT(message("127.0.0.1:70000"), HasSubstr("is no address"));
  EXPECT_THAT(message("127.0.0.1:1"), HasSubstr("127.0.0.1:1: Connection refused"));
}

}  // namespace
}  // namespace gradus::federated
