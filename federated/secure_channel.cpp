// SPDX-License-Identifier: Apache-2.0
#include "federated/secure_channel.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>

#include "common/check.h"

namespace gradus::federated {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSmallFrame = 4096;  // bytes, up to which head and body are sent together

struct ContextDeleter {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
struct SslDeleter {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};
struct CertificateDeleter {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
using Context = std::unique_ptr<SSL_CTX, ContextDeleter>;
using Ssl = std::unique_ptr<SSL, SslDeleter>;
using Certificate = std::unique_ptr<X509, CertificateDeleter>;

// What OpenSSL says went wrong; clears its queue.
std::string openssl_error() {
  std::string text;
  for (unsigned long code = 0; (code = ERR_get_error()) != 0;) {
    const char* reason = ERR_reason_error_string(code);
    text = reason != nullptr ? reason : fmt::format("error {:x}", code);
  }
  return text.empty() ? "no reason given" : text;
}

std::optional<PublicKey> key_of(X509* certificate) {
  EVP_PKEY* key = certificate == nullptr ? nullptr : X509_get0_pubkey(certificate);
  if (key == nullptr || EVP_PKEY_get_base_id(key) != EVP_PKEY_ED25519) return std::nullopt;
  PublicKey found;
  size_t size = found.bytes.size();
  if (EVP_PKEY_get_raw_public_key(key, found.bytes.data(), &size) != 1) return std::nullopt;
  return found;
}

// TLS requires a certificate; of this one the key alone has a meaning.
Certificate self_signed(const Identity& identity) {
  auto* key = static_cast<EVP_PKEY*>(identity.handle());
  Certificate made(X509_new());
  X509* x = made.get();
  bool is_made = X509_set_version(x, X509_VERSION_3) == 1 &&
                 ASN1_INTEGER_set(X509_get_serialNumber(x), 1) == 1 &&
                 ASN1_TIME_set_string(X509_getm_notBefore(x), "20200101000000Z") == 1 &&
                 ASN1_TIME_set_string(X509_getm_notAfter(x), "99991231235959Z") == 1;
  X509_NAME* name = X509_get_subject_name(x);
  const auto* text = reinterpret_cast<const unsigned char*>("gradus");
  is_made = is_made && X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, text, -1, -1, 0) == 1 &&
            X509_set_issuer_name(x, name) == 1 && X509_set_pubkey(x, key) == 1 &&
            X509_sign(x, key, nullptr) > 0;
  GRADUS_CHECK(is_made, "no certificate: " + openssl_error());
  return made;
}

// The peer has signed the handshake with the key of its certificate: that is all that is wanted.
int accept_any_ed25519(X509_STORE_CTX* store, void*) {
  return key_of(X509_STORE_CTX_get0_cert(store)) ? 1 : 0;
}

Context make_context(const Identity& identity) {
  // A write to a peer that is gone is an error of the write.
  std::signal(SIGPIPE, SIG_IGN);
  Context context(SSL_CTX_new(TLS_method()));
  SSL_CTX* c = context.get();
  GRADUS_CHECK(c != nullptr, "no TLS context: " + openssl_error());
  const Certificate certificate = self_signed(identity);
  const bool is_made =
      SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) == 1 &&
      // The shortest key first: all are beyond reach, and this one is the fastest.
      SSL_CTX_set_ciphersuites(c,
                               "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:"
                               "TLS_AES_256_GCM_SHA384") == 1 &&
      SSL_CTX_use_certificate(c, certificate.get()) == 1 &&
      SSL_CTX_use_PrivateKey(c, static_cast<EVP_PKEY*>(identity.handle())) == 1 &&
      SSL_CTX_set_num_tickets(c, 0) == 1;
  GRADUS_CHECK(is_made, "no TLS context: " + openssl_error());
  SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
  // Idle connections, of which a server has many, keep no buffers.
  SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                          SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_verify(c, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_cert_verify_callback(c, accept_any_ed25519, nullptr);
  return context;
}

struct Address {
  std::string host, port;
};

Result<Address> split_address(const std::string& text) {
  const size_t colon = text.rfind(':');
  const std::string port = colon == std::string::npos ? "" : text.substr(colon + 1);
  const bool is_number = !port.empty() && port.size() <= 5 &&
                         port.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number || colon == 0 || std::stoi(port) > 65535) {
    return invalid_argument("'{}' is no address; expected host:port, e.g. 127.0.0.1:7143", text);
  }
  return Address{text.substr(0, colon), port};
}

Result<sockaddr_in> resolve(const std::string& text) {
  const Result<Address> address = split_address(text);
  if (!address.ok()) return address.status();
  const addrinfo wanted = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address->host.c_str(), address->port.c_str(), &wanted, &found);
  if (error != 0) {
    return not_found("{}: unknown host '{}' ({})", text, address->host, gai_strerror(error));
  }
  sockaddr_in result = {};
  std::memcpy(&result, found->ai_addr, sizeof(result));
  freeaddrinfo(found);
  return result;
}

std::string text_of(const sockaddr_in& address) {
  char text[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &address.sin_addr, text, sizeof(text));
  return fmt::format("{}:{}", text, ntohs(address.sin_port));
}

bool poll_for(int socket, short events, Clock::time_point deadline) {
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd wait = {socket, events, 0};
    const int ready = poll(&wait, 1, static_cast<int>(std::clamp<int64_t>(left + 1, 0, 1 << 30)));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

Clock::time_point deadline_in(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(std::min(seconds, 1e6)));
}

void prepare(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // A host that vanished without a word is noticed after a minute.
  const int idle_s = 30, interval_s = 10, count = 3;
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
}

}  // namespace

struct SecureChannel::State {
  int socket = -1;
  Ssl ssl;
  PublicKey peer;
  std::string address;

  ~State() {
    ssl.reset();
    if (socket >= 0) close(socket);
  }

  // Waits as an operation of OpenSSL that did not end wants it; false: it has failed, or the time
  // is up.
  bool wait_for(int result, Clock::time_point deadline, std::string& problem) {
    const int error = SSL_get_error(ssl.get(), result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
      if (poll_for(socket, error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, deadline)) return true;
      problem = "nothing came in time";
    } else if (error == SSL_ERROR_SYSCALL && ERR_peek_error() == 0) {
      problem = errno == 0 ? "the connection was closed" : std::strerror(errno);
    } else if (error == SSL_ERROR_ZERO_RETURN) {
      problem = "the connection was closed";
    } else {
      problem = openssl_error();
    }
    ERR_clear_error();
    return false;
  }

  // Unavailable if the time is up or the peer gone, InvalidArgument if it speaks no TLS.
  Status shake_hands(Clock::time_point deadline) {
    for (;;) {
      ERR_clear_error();
      errno = 0;
      const int done = SSL_do_handshake(ssl.get());
      if (done == 1) break;
      const int error = SSL_get_error(ssl.get(), done);
      const bool is_protocol = error == SSL_ERROR_SSL;
      std::string problem;
      if (wait_for(done, deadline, problem)) continue;
      return {is_protocol ? StatusCode::kInvalidArgument : StatusCode::kUnavailable,
              fmt::format("{}: no TLS 1.3 handshake: {}", address, problem)};
    }
    const std::optional<PublicKey> key = key_of(SSL_get0_peer_certificate(ssl.get()));
    GRADUS_CHECK(key.has_value(), "a handshake without a key");
    peer = *key;
    return {};
  }

  Status write_all(std::span<const char> bytes, double timeout_s) {
    for (size_t done = 0; done < bytes.size();) {
      ERR_clear_error();
      errno = 0;
      size_t count = 0;
      const int result = SSL_write_ex(ssl.get(), bytes.data() + done, bytes.size() - done, &count);
      if (result == 1) {
        done += count;
        continue;
      }
      std::string problem;
      // The time runs from the last byte that went.
      if (wait_for(result, deadline_in(timeout_s), problem)) continue;
      return unavailable("{}: {}", address, problem);
    }
    return {};
  }

  // Fills all of `bytes`; `what` is what is being read. `at_start`: an end before the first byte is
  // an orderly one.
  Status read_all(std::span<char> bytes, Clock::time_point deadline, bool at_start) {
    size_t done = 0;
    while (done < bytes.size()) {
      ERR_clear_error();
      errno = 0;
      size_t count = 0;
      const int result = SSL_read_ex(ssl.get(), bytes.data() + done, bytes.size() - done, &count);
      if (result == 1) {
        done += count;
        continue;
      }
      std::string problem;
      if (wait_for(result, deadline, problem)) continue;
      if (at_start && done == 0) return unavailable("{}: {}", address, problem);
      return data_loss("{}: a frame was cut off: {}", address, problem);
    }
    return {};
  }
};

SecureChannel::SecureChannel(std::unique_ptr<State> state) : state_(std::move(state)) {}

SecureChannel::~SecureChannel() {
  if (!state_->ssl) return;
  ERR_clear_error();
  SSL_shutdown(state_->ssl.get());  // says goodbye if the socket takes it
  ERR_clear_error();
}

const PublicKey& SecureChannel::peer() const { return state_->peer; }
const std::string& SecureChannel::peer_address() const { return state_->address; }

Status SecureChannel::send(std::span<const std::byte> frame, double timeout_s) {
  State& state = *state_;
  const auto size = static_cast<int64_t>(frame.size());
  if (size > kMaxFrameBytes) {
    return invalid_argument("a frame of {} bytes; at most {} are sent", size, kMaxFrameBytes);
  }
  char head[4];
  for (int i = 0; i < 4; ++i) head[i] = static_cast<char>(size >> (24 - 8 * i));
  if (size > kSmallFrame) {
    GRADUS_RETURN_IF_ERROR(state.write_all(head, timeout_s));
    return state.write_all({reinterpret_cast<const char*>(frame.data()), frame.size()}, timeout_s);
  }
  // In one record and one packet.
  std::string bytes(head, sizeof(head));
  bytes.append(reinterpret_cast<const char*>(frame.data()), frame.size());
  return state.write_all(bytes, timeout_s);
}

bool SecureChannel::wait(double timeout_s, int wake) {
  State& state = *state_;
  if (SSL_has_pending(state.ssl.get()) == 1) return true;
  if (wake < 0) return poll_for(state.socket, POLLIN, deadline_in(timeout_s));
  pollfd wait[2] = {{state.socket, POLLIN, 0}, {wake, POLLIN, 0}};
  poll(wait, 2, static_cast<int>(std::clamp(timeout_s * 1000, 0.0, 1e9)));
  return wait[0].revents != 0;
}

Status SecureChannel::receive(std::string& frame, double timeout_s) {
  State& state = *state_;
  const Clock::time_point deadline = deadline_in(timeout_s);
  char head[4];
  GRADUS_RETURN_IF_ERROR(state.read_all(head, deadline, true));
  int64_t size = 0;
  for (const char byte : head) size = (size << 8) | static_cast<uint8_t>(byte);
  if (size > kMaxFrameBytes) {
    return data_loss("{}: a frame of {} bytes; at most {} are taken", state.address, size,
                     kMaxFrameBytes);
  }
  frame.resize(static_cast<size_t>(size));
  return state.read_all(frame, deadline, false);
}

void SecureChannel::shut_down() { ::shutdown(state_->socket, SHUT_RDWR); }

Result<std::unique_ptr<SecureChannel>> connect_securely(const std::string& address,
                                                        const Identity& identity,
                                                        const PublicKey& server, double timeout_s) {
  const Result<sockaddr_in> resolved = resolve(address);
  if (!resolved.ok()) return resolved.status();
  const Clock::time_point deadline = deadline_in(timeout_s);
  auto state = std::make_unique<SecureChannel::State>();
  state->address = address;
  state->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (state->socket < 0) return unavailable("no socket: {}", std::strerror(errno));
  prepare(state->socket);
  if (connect(state->socket, reinterpret_cast<const sockaddr*>(&*resolved), sizeof(*resolved)) !=
      0) {
    int error = errno;
    if (error == EINPROGRESS) {
      error = ETIMEDOUT;
      socklen_t size = sizeof(error);
      if (poll_for(state->socket, POLLOUT, deadline)) {
        getsockopt(state->socket, SOL_SOCKET, SO_ERROR, &error, &size);
      }
    }
    if (error != 0) return unavailable("{}: {}", address, std::strerror(error));
  }
  const Context context = make_context(identity);
  state->ssl.reset(SSL_new(context.get()));  // holds the context
  SSL_set_fd(state->ssl.get(), state->socket);
  SSL_set_connect_state(state->ssl.get());
  GRADUS_RETURN_IF_ERROR(state->shake_hands(deadline));
  if (state->peer != server) {
    return invalid_argument(
        "{}: the server has the key {}, not {}; compare with what gradus federate serve prints at "
        "its start, and do not go on if they differ",
        address, to_text(state->peer), to_text(server));
  }
  return std::unique_ptr<SecureChannel>(new SecureChannel(std::move(state)));
}

struct SecureListener::State {
  int socket = -1;
  int port = 0;
  Context context;
  ~State() {
    if (socket >= 0) close(socket);
  }
};

SecureListener::SecureListener(std::unique_ptr<State> state) : state_(std::move(state)) {}
SecureListener::~SecureListener() = default;
int SecureListener::port() const { return state_->port; }

Result<std::unique_ptr<SecureListener>> SecureListener::listen(const std::string& address,
                                                               const Identity& identity) {
  Result<sockaddr_in> resolved = resolve(address);
  if (!resolved.ok()) return resolved.status();
  auto state = std::make_unique<State>();
  state->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (state->socket < 0) return unavailable("no socket: {}", std::strerror(errno));
  const int on = 1;
  setsockopt(state->socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  socklen_t size = sizeof(*resolved);
  auto* raw = reinterpret_cast<sockaddr*>(&*resolved);
  if (bind(state->socket, raw, size) != 0 || ::listen(state->socket, 1024) != 0) {
    const int error = errno;
    return unavailable(
        "cannot listen on {}: {}{}", address, std::strerror(error),
        error == EADDRINUSE ? "; stop what listens there, or take another port" : "");
  }
  getsockname(state->socket, raw, &size);
  state->port = ntohs(resolved->sin_port);
  state->context = make_context(identity);
  return std::unique_ptr<SecureListener>(new SecureListener(std::move(state)));
}

SecureListener::Handshake SecureListener::accept(double timeout_s) {
  if (!poll_for(state_->socket, POLLIN, deadline_in(timeout_s))) return {};
  sockaddr_in address = {};
  socklen_t size = sizeof(address);
  const int socket = accept4(state_->socket, reinterpret_cast<sockaddr*>(&address), &size,
                             SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) return {};
  prepare(socket);
  auto state = std::make_shared<std::unique_ptr<SecureChannel::State>>(
      std::make_unique<SecureChannel::State>());
  (*state)->socket = socket;
  (*state)->address = text_of(address);
  (*state)->ssl.reset(SSL_new(state_->context.get()));
  SSL_set_fd((*state)->ssl.get(), socket);
  SSL_set_accept_state((*state)->ssl.get());
  return [state](double limit_s) -> Result<std::unique_ptr<SecureChannel>> {
    GRADUS_RETURN_IF_ERROR((*state)->shake_hands(deadline_in(limit_s)));
    return std::unique_ptr<SecureChannel>(new SecureChannel(std::move(*state)));
  };
}

}  // namespace gradus::federated
