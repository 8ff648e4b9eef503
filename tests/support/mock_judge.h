// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

namespace gradus::test {

// A server of chat completions on a local port, as good or as bad as a test wants it: a thread for
// each connection, which stays open for further requests.
class MockJudge {
 public:
  struct Reply {
    int status = 200;
    std::string body;
    std::string headers;  // whole lines
    int delay_ms = 0;
    bool hangs = false;  // no answer until the client goes
  };
  // `number` counts requests from 0. Called from many threads.
  using Answer = std::function<Reply(const nlohmann::json& request, int number)>;

  explicit MockJudge(Answer answer) : answer_(std::move(answer)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        listen(listener_, 1024) != 0) {
      std::abort();
    }
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~MockJudge() {
    is_stopping_ = true;
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
    close(listener_);
  }
  MockJudge(const MockJudge&) = delete;
  MockJudge& operator=(const MockJudge&) = delete;

  std::string endpoint() const { return fmt::format("http://127.0.0.1:{}/v1", port_); }
  int num_requests() const { return num_requests_; }
  int max_at_once() const { return max_at_once_; }

  // A sound completion with this content.
  static Reply chat(const std::string& content) {
    const nlohmann::json body = {
        {"choices", {{{"message", {{"role", "assistant"}, {"content", content}}}}}},
        {"usage", {{"total_tokens", 10}}}};
    return {.body = body.dump()};
  }
  // The text of the request's last message.
  static std::string user_text(const nlohmann::json& request) {
    return request["messages"].back()["content"].get<std::string>();
  }
  static std::string nonce_of(const nlohmann::json& request) {
    const std::string text = user_text(request);
    constexpr std::string_view kMark = "The secret code is ";
    const size_t at = text.rfind(kMark) + kMark.size();
    return text.substr(at, text.size() - at - 1);
  }
  // A verdict for every criterion of the request, with this score.
  static std::string verdict(const nlohmann::json& request, double score) {
    const std::string text = user_text(request);
    const std::string criteria = text.substr(text.rfind("\nCriteria:\n") + 11);
    nlohmann::json list = nlohmann::json::array();
    for (int id = 1; criteria.find(fmt::format("{}. ", id)) != std::string::npos; ++id) {
      list.push_back({{"id", id}, {"applicable", 1}, {"score", score}, {"why", "because"}});
    }
    return nlohmann::json{{"nonce", nonce_of(request)}, {"c", list}}.dump();
  }

 private:
  void accept_all() {
    while (!is_stopping_) {
      pollfd wait = {listener_, POLLIN, 0};
      if (poll(&wait, 1, 20) <= 0) continue;
      const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (connection >= 0) threads_.emplace_back([this, connection] { serve(connection); });
    }
  }

  // False: the client has gone or the server ends.
  bool receive(int connection, std::string& buffer) const {
    for (;;) {
      pollfd wait = {connection, POLLIN, 0};
      if (is_stopping_) return false;
      if (poll(&wait, 1, 20) <= 0) continue;
      char data[65536];
      const ssize_t size = recv(connection, data, sizeof data, 0);
      if (size <= 0) return false;
      buffer.append(data, static_cast<size_t>(size));
      return true;
    }
  }

  void serve(int connection) {
    std::string buffer;
    bool is_open = true;
    while (is_open) {
      size_t head = std::string::npos;
      while (is_open && (head = buffer.find("\r\n\r\n")) == std::string::npos) {
        is_open = receive(connection, buffer);
      }
      if (!is_open) break;
      const size_t at = buffer.find("Content-Length: ");
      const size_t length = std::stoul(buffer.substr(at + 16));
      while (is_open && buffer.size() < head + 4 + length) is_open = receive(connection, buffer);
      if (!is_open) break;
      const auto request = nlohmann::json::parse(buffer.substr(head + 4, length), nullptr, false);
      buffer.erase(0, head + 4 + length);
      is_open = answer(connection, request, buffer);
    }
    close(connection);
  }

  bool answer(int connection, const nlohmann::json& request, std::string& buffer) {
    const int now = ++active_;
    for (int seen = max_at_once_; seen < now && !max_at_once_.compare_exchange_weak(seen, now);) {
    }
    const Reply reply = answer_(request, num_requests_++);
    if (reply.hangs) {
      while (receive(connection, buffer)) {
      }
      --active_;
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(reply.delay_ms));
    --active_;
    const std::string text =
        fmt::format("HTTP/1.1 {} Mock\r\nContent-Length: {}\r\n{}\r\n{}", reply.status,
                    reply.body.size(), reply.headers, reply.body);
    return send(connection, text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size());
  }

  Answer answer_;
  int listener_ = -1, port_ = 0;
  std::atomic<bool> is_stopping_ = false;
  std::atomic<int> num_requests_ = 0, active_ = 0, max_at_once_ = 0;
  std::thread acceptor_;
  std::list<std::thread> threads_;  // of the acceptor until it has ended
};

}  // namespace gradus::test
