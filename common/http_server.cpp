// SPDX-License-Identifier: Apache-2.0
#include "common/http_server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <list>
#include <optional>
#include <thread>

namespace gradus {
namespace {

constexpr size_t kLongestHead = 64 << 10;
constexpr size_t kLongestBody = 64 << 20;
constexpr int kPollMs = 100;
constexpr int kFullMs = 10;
constexpr int kPatienceMs = 30000;  // for the rest of a request, and for taking a reply

const char* reason_of(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 411:
      return "Length Required";
    case 413:
      return "Payload Too Large";
    case 431:
      return "Request Header Fields Too Large";
    default:
      return status < 500 ? "Error" : "Internal Server Error";
  }
}

// A head without the empty line behind it.
struct Head {
  HttpServer::Request request;
  std::optional<size_t> body_size;
  bool is_chunked = false;
  bool stays_open = true;
  bool wants_continue = false;
};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Nothing if it is no head of HTTP/1.
std::optional<Head> parse_head(std::string_view text) {
  Head head;
  size_t line_end = std::min(text.find("\r\n"), text.size());
  const std::string_view first = text.substr(0, line_end);
  const size_t space = first.find(' '), last_space = first.rfind(' ');
  if (space == std::string_view::npos || last_space <= space + 1) return std::nullopt;
  const std::string_view version = first.substr(last_space + 1);
  if (!version.starts_with("HTTP/1.")) return std::nullopt;
  head.stays_open = version != "HTTP/1.0";
  head.request.method = first.substr(0, space);
  const std::string_view path = first.substr(space + 1, last_space - space - 1);
  head.request.path = path.substr(0, path.find('?'));
  while (line_end < text.size()) {
    text.remove_prefix(std::min(line_end + 2, text.size()));
    line_end = std::min(text.find("\r\n"), text.size());
    const std::string_view line = text.substr(0, line_end);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) return std::nullopt;
    const std::string name = lower(line.substr(0, colon));
    const std::string_view value = trimmed(line.substr(colon + 1));
    if (name == "content-length") {
      size_t size = 0;
      const auto parsed = std::from_chars(value.data(), value.data() + value.size(), size);
      if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size()) {
        return std::nullopt;
      }
      head.body_size = size;
    } else if (name == "transfer-encoding") {
      head.is_chunked = true;
    } else if (name == "connection") {
      head.stays_open = lower(value) != "close";
    } else if (name == "expect") {
      head.wants_continue = lower(value) == "100-continue";
    }
  }
  return head;
}

class Connection {
 public:
  // `gives_way`: others wait for a connection, or the server stops; this one ends between requests.
  Connection(int socket, const HttpServer::Handler& handler, const std::atomic<bool>& gives_way)
      : socket_(socket), handler_(handler), gives_way_(gives_way) {}
  ~Connection() { close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void serve() {
    while (serve_one()) {
    }
  }

 private:
  // False when the connection is done with.
  bool serve_one() {
    size_t end = std::string::npos;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (buffer_.size() > kLongestHead) return refuse(431, "the head is too long");
      // Between requests the connection may give way; within one it waits for the rest.
      if (!receive(buffer_.empty())) return false;
    }
    if (end > kLongestHead) return refuse(431, "the head is too long");
    std::optional<Head> head = parse_head(std::string_view(buffer_).substr(0, end));
    buffer_.erase(0, end + 4);
    if (!head) return refuse(400, "not a request of HTTP/1.1");
    if (head->is_chunked || (!head->body_size && head->request.method == "POST")) {
      return refuse(411, "the body has no Content-Length");
    }
    const size_t size = head->body_size.value_or(0);
    if (size > kLongestBody) return refuse(413, "the body is longer than 64 MiB");
    if (head->wants_continue && !send_all("HTTP/1.1 100 Continue\r\n\r\n")) return false;
    while (buffer_.size() < size) {
      if (!receive(false)) return false;
    }
    head->request.body = buffer_.substr(0, size);
    buffer_.erase(0, size);
    HttpServer::Reply reply;
    try {
      reply = handler_(head->request);
    } catch (const std::exception& error) {
      reply = {500, R"({"error": "internal error"})"};
    }
    const bool stays_open = head->stays_open && !gives_way_;
    return answer(reply, stays_open) && stays_open;
  }

  bool refuse(int status, const char* why) {
    answer({status, fmt::format("{{\"error\": \"{}\"}}", why)}, false);
    return false;
  }

  bool answer(const HttpServer::Reply& reply, bool stays_open) {
    return send_all(
        fmt::format("HTTP/1.1 {} {}\r\nContent-Type: application/json\r\n"
                    "Content-Length: {}\r\nConnection: {}\r\n\r\n{}",
                    reply.status, reason_of(reply.status), reply.body.size(),
                    stays_open ? "keep-alive" : "close", reply.body));
  }

  bool receive(bool is_idle) {
    for (int waited = 0; waited < kPatienceMs || is_idle; waited += kPollMs) {
      pollfd wait = {socket_, POLLIN, 0};
      const int ready = poll(&wait, 1, kPollMs);
      if (ready < 0 && errno != EINTR) return false;
      // After the look: what the client has sent by now is answered.
      if (ready <= 0 && is_idle && gives_way_) return false;
      if (ready <= 0) continue;
      char data[16384];
      const ssize_t size = recv(socket_, data, sizeof data, 0);
      if (size <= 0) return false;
      buffer_.append(data, static_cast<size_t>(size));
      return true;
    }
    return false;
  }

  bool send_all(std::string_view text) {
    while (!text.empty()) {
      const ssize_t size = send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
      if (size < 0 && errno == EINTR) continue;
      if (size <= 0) return false;
      text.remove_prefix(static_cast<size_t>(size));
    }
    return true;
  }

  int socket_;
  const HttpServer::Handler& handler_;
  const std::atomic<bool>& gives_way_;
  std::string buffer_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::listen(const std::string& host, int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    return invalid_argument("'{}' is not an IPv4 address; expected e.g. 127.0.0.1 or 0.0.0.0",
                            host);
  }
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return unavailable("no socket: {}", std::strerror(errno));
  const int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  socklen_t size = sizeof address;
  const bool is_bound = bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                        ::listen(listener, 1024) == 0;
  if (!is_bound) {
    const int error = errno;
    close(listener);
    return unavailable(
        "cannot listen on {}:{}: {}{}", host, port, std::strerror(error),
        error == EADDRINUSE ? "; stop what listens there, or take another port" : "");
  }
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  return std::unique_ptr<HttpServer>(new HttpServer(listener, ntohs(address.sin_port)));
}

HttpServer::~HttpServer() { close(listener_); }

void HttpServer::serve(const Handler& handler, const std::function<bool()>& stop,
                       int max_connections) {
  struct Thread {
    std::thread thread;
    std::atomic<bool> is_done = false;
  };
  std::list<Thread> threads;
  std::atomic<bool> give_way = false;
  while (!stop()) {
    for (auto at = threads.begin(); at != threads.end();) {
      if (!at->is_done) {
        ++at;
        continue;
      }
      at->thread.join();
      at = threads.erase(at);
    }
    const bool is_full = threads.size() >= static_cast<size_t>(max_connections);
    pollfd wait = {listener_, POLLIN, 0};
    const bool someone_waits = poll(&wait, 1, is_full ? 0 : kPollMs) > 0;
    give_way = is_full && someone_waits;
    if (is_full) std::this_thread::sleep_for(std::chrono::milliseconds(kFullMs));
    if (is_full || !someone_waits) continue;
    const int socket = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) continue;
    const timeval patience = {kPatienceMs / 1000, 0};
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Thread& one = threads.emplace_back();
    one.thread = std::thread([&one, socket, &handler, &give_way] {
      Connection(socket, handler, give_way).serve();
      one.is_done = true;
    });
  }
  give_way = true;
  for (Thread& one : threads) one.thread.join();
}

}  // namespace gradus
