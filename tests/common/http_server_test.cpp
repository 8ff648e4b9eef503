// SPDX-License-Identifier: Apache-2.0
#include "common/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "common/http_pool.h"

namespace gradus {
namespace {

using ::testing::HasSubstr;

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = HttpServer::listen("127.0.0.1", 0);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(*server);
    thread_ = std::thread([this] {
      server_->serve(
          [](const HttpServer::Request& request) -> HttpServer::Reply {
            if (request.path == "/throw") throw std::runtime_error("secret");
            return {request.path == "/echo" ? 200 : 404, request.method + " " + request.body};
          },
          [this] { return stop_.load(); }, 2);
    });
    auto pool = HttpPool::create(8);
    ASSERT_TRUE(pool.ok()) << pool.status().message();
    pool_ = std::move(*pool);
  }
  void TearDown() override {
    pool_.reset();
    stop_ = true;
    thread_.join();
  }
  std::future<HttpResponse> post(const std::string& path, const std::string& body,
                                 std::vector<std::string> headers = {}) {
    auto promise = std::make_shared<std::promise<HttpResponse>>();
    pool_->post({"http://127.0.0.1:" + std::to_string(server_->port()) + path, body,
                 std::move(headers), 10000},
                HttpPool::Clock::now(),
                [promise](HttpResponse response) { promise->set_value(std::move(response)); });
    return promise->get_future();
  }

  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<HttpPool> pool_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

TEST_F(HttpServerTest, AnswersManyRequestsOverFewConnections) {
  std::vector<std::future<HttpResponse>> answers;
  for (int i = 0; i < 40; ++i) answers.push_back(post("/echo?x=1", std::string(1000 * i, 'b')));
  for (int i = 0; i < 40; ++i) {
    const HttpResponse response = answers[i].get();
    ASSERT_EQ(response.status, 200) << response.error;
    EXPECT_EQ(response.body, "POST " + std::string(1000 * i, 'b'));
  }
  // Large enough for libcurl to ask first (Expect: 100-continue).
  const std::string large(3 << 20, 'c');
  EXPECT_EQ(post("/echo", large).get().body, "POST " + large);
  EXPECT_EQ(post("/other", "").get().status, 404);
}

TEST_F(HttpServerTest, WhatItDoesNotTakeIsSaid) {
  const HttpResponse chunked = post("/echo", "x", {"Transfer-Encoding: chunked"}).get();
  EXPECT_EQ(chunked.status, 411);
  EXPECT_THAT(chunked.body, HasSubstr("the body has no Content-Length"));
  EXPECT_EQ(post("/echo", "x", {"X-Long: " + std::string(70000, 'a')}).get().status, 431);
  const HttpResponse thrown = post("/throw", "x").get();
  EXPECT_EQ(thrown.status, 500);
  EXPECT_EQ(thrown.body, R"({"error": "internal error"})");
  EXPECT_EQ(post("/echo", "still there").get().body, "POST still there");
}

TEST_F(HttpServerTest, APortInUseIsAnError) {
  const auto second = HttpServer::listen("127.0.0.1", server_->port());
  EXPECT_EQ(second.status().message(),
            "cannot listen on 127.0.0.1:" + std::to_string(server_->port()) +
                ": Address already in use; stop what listens there, or take another port");
  EXPECT_EQ(HttpServer::listen("localhost", 0).status().message(),
            "'localhost' is not an IPv4 address; expected e.g. 127.0.0.1 or 0.0.0.0");
}

}  // namespace
}  // namespace gradus
