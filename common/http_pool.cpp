// SPDX-License-Identifier: Apache-2.0
#include "common/http_pool.h"

#include <curl/curl.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>

namespace gradus {

// Loaded when the first pool is made, so that gradus starts, and travels, without the two dozen
// libraries that libcurl brings.
struct CurlLibrary {
  decltype(&::curl_global_init) global_init = nullptr;
  decltype(&::curl_easy_init) easy_init = nullptr;
  decltype(&::curl_easy_cleanup) easy_cleanup = nullptr;
  decltype(&::curl_easy_reset) easy_reset = nullptr;
  decltype(&::curl_easy_setopt) easy_setopt = nullptr;
  decltype(&::curl_easy_getinfo) easy_getinfo = nullptr;
  decltype(&::curl_easy_strerror) easy_strerror = nullptr;
  decltype(&::curl_multi_init) multi_init = nullptr;
  decltype(&::curl_multi_cleanup) multi_cleanup = nullptr;
  decltype(&::curl_multi_setopt) multi_setopt = nullptr;
  decltype(&::curl_multi_add_handle) multi_add_handle = nullptr;
  decltype(&::curl_multi_remove_handle) multi_remove_handle = nullptr;
  decltype(&::curl_multi_perform) multi_perform = nullptr;
  decltype(&::curl_multi_poll) multi_poll = nullptr;
  decltype(&::curl_multi_wakeup) multi_wakeup = nullptr;
  decltype(&::curl_multi_info_read) multi_info_read = nullptr;
  decltype(&::curl_slist_append) slist_append = nullptr;
  decltype(&::curl_slist_free_all) slist_free_all = nullptr;

  bool is_loaded = false;

  CurlLibrary() {
    void* library = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = dlopen("libcurl-gnutls.so.4", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    is_loaded = true;
    const auto load = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      is_loaded = is_loaded && function != nullptr;
    };
    load(global_init, "curl_global_init");
    load(easy_init, "curl_easy_init");
    load(easy_cleanup, "curl_easy_cleanup");
    load(easy_reset, "curl_easy_reset");
    load(easy_setopt, "curl_easy_setopt");
    load(easy_getinfo, "curl_easy_getinfo");
    load(easy_strerror, "curl_easy_strerror");
    load(multi_init, "curl_multi_init");
    load(multi_cleanup, "curl_multi_cleanup");
    load(multi_setopt, "curl_multi_setopt");
    load(multi_add_handle, "curl_multi_add_handle");
    load(multi_remove_handle, "curl_multi_remove_handle");
    load(multi_perform, "curl_multi_perform");
    load(multi_poll, "curl_multi_poll");      // since 7.66
    load(multi_wakeup, "curl_multi_wakeup");  // since 7.68
    load(multi_info_read, "curl_multi_info_read");
    load(slist_append, "curl_slist_append");
    load(slist_free_all, "curl_slist_free_all");
    if (is_loaded) global_init(CURL_GLOBAL_DEFAULT);
  }
};

namespace {

constexpr size_t kMaxBodyBytes = 4 << 20;

const CurlLibrary& curl_library() {
  static const CurlLibrary library;
  return library;
}

}  // namespace

struct HttpPool::Transfer {
  HttpRequest request;
  Done done;
  HttpResponse response;
  curl_slist* headers = nullptr;
  bool is_too_long = false;

  static size_t receive(char* data, size_t size, size_t count, void* self) {
    auto* transfer = static_cast<Transfer*>(self);
    if (transfer->response.body.size() + size * count > kMaxBodyBytes) {
      transfer->is_too_long = true;
      return 0;
    }
    transfer->response.body.append(data, size * count);
    return size * count;
  }

  static size_t receive_header(char* data, size_t size, size_t count, void* self) {
    const std::string line(data, size * count);
    constexpr std::string_view kName = "retry-after:";
    if (line.size() > kName.size() &&
        std::equal(kName.begin(), kName.end(), line.begin(), [](char a, char b) {
          return a == (b >= 'A' && b <= 'Z' ? b - 'A' + 'a' : b);
        })) {
      const char* begin = line.c_str() + kName.size();
      char* end = nullptr;
      const double seconds = std::strtod(begin, &end);
      if (end != begin && seconds >= 0) {
        static_cast<Transfer*>(self)->response.retry_after_s = seconds;
      }
    }
    return size * count;
  }
};

Result<std::unique_ptr<HttpPool>> HttpPool::create(int max_active) {
  const CurlLibrary& curl = curl_library();
  if (!curl.is_loaded) {
    return unavailable(
        "libcurl.so.4 (7.68 or newer) is not there, which requests need; install libcurl4");
  }
  return std::unique_ptr<HttpPool>(new HttpPool(curl, max_active));
}

HttpPool::HttpPool(const CurlLibrary& curl, int max_active)
    : curl_(curl), max_active_(static_cast<size_t>(max_active)), multi_(curl.multi_init()) {
  GRADUS_CHECK(multi_ != nullptr, "curl_multi_init");
  curl_.multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(max_active));
  thread_ = std::thread([this] { run(); });
}

HttpPool::~HttpPool() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  curl_.multi_wakeup(multi_);
  thread_.join();
  for (void* easy : spare_) curl_.easy_cleanup(easy);
  curl_.multi_cleanup(multi_);
}

void HttpPool::post(HttpRequest request, Clock::time_point not_before, Done done) {
  auto transfer = std::make_unique<Transfer>();
  transfer->request = std::move(request);
  transfer->done = std::move(done);
  {
    const std::lock_guard lock(mutex_);
    queue_.emplace(not_before, std::move(transfer));
  }
  curl_.multi_wakeup(multi_);
}

void HttpPool::run() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (is_stopping_) break;
    }
    const auto next = start_transfers();
    int num_running = 0;
    curl_.multi_perform(multi_, &num_running);
    finish_transfers();
    int64_t wait_ms = 1000;
    if (next.has_value() && active_.size() < max_active_) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(*next - Clock::now()).count() + 1;
      wait_ms = std::clamp<int64_t>(left, 0, wait_ms);
    }
    curl_.multi_poll(multi_, nullptr, 0, static_cast<int>(wait_ms), nullptr);
  }
  cancel_all();
}

std::optional<HttpPool::Clock::time_point> HttpPool::start_transfers() {
  for (;;) {
    std::unique_ptr<Transfer> transfer;
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty()) return std::nullopt;
      const auto first = queue_.begin();
      if (active_.size() >= max_active_ || first->first > Clock::now()) return first->first;
      transfer = std::move(first->second);
      queue_.erase(first);
    }
    start(std::move(transfer));
  }
}

void HttpPool::start(std::unique_ptr<Transfer> transfer) {
  void* easy = nullptr;
  if (spare_.empty()) {
    easy = curl_.easy_init();
    GRADUS_CHECK(easy != nullptr, "curl_easy_init");
  } else {
    easy = spare_.back();
    spare_.pop_back();
  }
  for (const std::string& header : transfer->request.headers) {
    transfer->headers = curl_.slist_append(transfer->headers, header.c_str());
  }
  const auto set = curl_.easy_setopt;
  set(easy, CURLOPT_URL, transfer->request.url.c_str());
  set(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(transfer->request.body.size()));
  set(easy, CURLOPT_POSTFIELDS, transfer->request.body.data());
  set(easy, CURLOPT_HTTPHEADER, transfer->headers);
  set(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(transfer->request.timeout_ms));
  set(easy, CURLOPT_NOSIGNAL, 1L);  // no SIGALRM in a process of many threads
  set(easy, CURLOPT_WRITEFUNCTION, &Transfer::receive);
  set(easy, CURLOPT_WRITEDATA, transfer.get());
  set(easy, CURLOPT_HEADERFUNCTION, &Transfer::receive_header);
  set(easy, CURLOPT_HEADERDATA, transfer.get());
  curl_.multi_add_handle(multi_, easy);
  active_.emplace(easy, std::move(transfer));
}

void HttpPool::finish_transfers() {
  int num_left = 0;
  while (CURLMsg* message = curl_.multi_info_read(multi_, &num_left)) {
    if (message->msg != CURLMSG_DONE) continue;
    void* easy = message->easy_handle;
    const CURLcode code = message->data.result;
    std::unique_ptr<Transfer> transfer = std::move(active_.at(easy));
    active_.erase(easy);
    if (code == CURLE_OK) {
      long status = 0;
      curl_.easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
      transfer->response.status = static_cast<int>(status);
    } else {
      transfer->response.error = transfer->is_too_long ? "the response is longer than 4 MiB"
                                                       : std::string(curl_.easy_strerror(code));
      transfer->response.is_timeout = code == CURLE_OPERATION_TIMEDOUT;
    }
    curl_.multi_remove_handle(multi_, easy);
    curl_.easy_reset(easy);
    spare_.push_back(easy);
    curl_.slist_free_all(transfer->headers);
    transfer->done(std::move(transfer->response));
  }
}

void HttpPool::cancel_all() {
  for (auto& [easy, transfer] : active_) {
    curl_.multi_remove_handle(multi_, easy);
    curl_.easy_cleanup(easy);
    curl_.slist_free_all(transfer->headers);
    transfer->done({.error = "cancelled"});
  }
  active_.clear();
  const std::lock_guard lock(mutex_);
  for (auto& [time, transfer] : queue_) transfer->done({.error = "cancelled"});
  queue_.clear();
}

}  // namespace gradus
