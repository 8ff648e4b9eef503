// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"

namespace gradus {

struct HttpRequest {
  std::string url;
  std::string body;                  // posted
  std::vector<std::string> headers;  // "Name: value"
  int64_t timeout_ms = 60000;        // of the whole exchange, name look-up and connection included
};

struct HttpResponse {
  int status = 0;  // 0: there was none, see `error`
  std::string body;
  std::string error;
  bool is_timeout = false;
  std::optional<double> retry_after_s;  // the header of this name, if it is a number
};

struct CurlLibrary;  // functions of libcurl, loaded at run time

// Posts requests, so many at once at most, from one thread of its own over libcurl's multi
// interface. Connections are kept for the next request. Thread-safe.
class HttpPool {
 public:
  using Clock = std::chrono::steady_clock;
  using Done = std::function<void(HttpResponse)>;

  // Unavailable where libcurl is not installed.
  static Result<std::unique_ptr<HttpPool>> create(int max_active);
  // Requests that are not done end with the error "cancelled".
  ~HttpPool();
  HttpPool(const HttpPool&) = delete;
  HttpPool& operator=(const HttpPool&) = delete;

  // `done` is called once, from the pool's thread, and must not wait. Nothing is sent before
  // `not_before`.
  void post(HttpRequest request, Clock::time_point not_before, Done done);

 private:
  struct Transfer;

  HttpPool(const CurlLibrary& curl, int max_active);
  void run();
  // Takes from the queue what may start now; when the next may, if anything waits.
  std::optional<Clock::time_point> start_transfers();
  void start(std::unique_ptr<Transfer> transfer);
  void finish_transfers();
  void cancel_all();

  const CurlLibrary& curl_;
  const size_t max_active_;
  void* multi_ = nullptr;
  std::map<void*, std::unique_ptr<Transfer>> active_;  // by their easy handles; of the thread alone
  std::vector<void*> spare_;                           // easy handles

  std::mutex mutex_;
  std::multimap<Clock::time_point, std::unique_ptr<Transfer>> queue_;
  bool is_stopping_ = false;
  std::thread thread_;
};

}  // namespace gradus
