// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/status.h"

namespace gradus {

// A small HTTP/1.1 server for programs of one's own network: bodies with a Content-Length,
// connections that stay open, a thread for each; no TLS, no chunked bodies (411), heads of 64 KiB
// and bodies of 64 MiB at most (431, 413).
class HttpServer {
 public:
  struct Request {
    std::string method, path;  // "POST", "/retrieve"; a query behind ? is left out
    std::string body;
  };
  struct Reply {
    int status = 200;
    std::string body;  // JSON
  };
  // Called from many threads.
  using Handler = std::function<Reply(const Request&)>;

  // Listens. `host` is an IPv4 address, e.g. 127.0.0.1 or 0.0.0.0; port 0 takes a free one.
  // Unavailable if the port cannot be had, e.g. since another program listens on it.
  static Result<std::unique_ptr<HttpServer>> listen(const std::string& host, int port);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const { return port_; }

  // Answers until `stop` (looked at ten times a second) says so; requests that are being answered
  // then are answered. At most `max_connections` at once: where more wait, connections give way
  // between their requests.
  void serve(const Handler& handler, const std::function<bool()>& stop, int max_connections = 256);

 private:
  HttpServer(int listener, int port) : listener_(listener), port_(port) {}
  int listener_, port_;
};

}  // namespace gradus
