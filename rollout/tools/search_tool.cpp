// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>

#include "common/http_pool.h"
#include "common/strings.h"
#include "retriever/index_folder.h"
#include "rollout/passages.h"
#include "rollout/tools/builtin.h"

// `search`: the passages nearest to a query, from an index in this process or from a retrieval
// server with Search-R1's interface (docs/tools.md). The answer is Search-R1's text: a line
// "Doc 1(Title: ...) text" for each passage.
namespace gradus::rollout {
namespace {

using data::ToolStatus;

std::string excerpt(std::string_view text) {
  constexpr size_t kLongest = 200;
  return std::string(text.substr(0, kLongest)) + (text.size() > kLongest ? "..." : "");
}

class IndexSearch : public Tool {
 public:
  IndexSearch(retriever::IndexFolder folder, std::unique_ptr<retriever::Embedder> embedder,
              int64_t top)
      : folder_(std::move(folder)), embedder_(std::move(embedder)), top_(top) {}

  ToolReply call(std::string_view text, double) const override {
    const Result<std::string> found = find(std::string(text));
    if (found.ok()) return {ToolStatus::kOk, *found};
    return {ToolStatus::kError, "search: " + found.status().message()};
  }

 private:
  Result<std::string> find(const std::string& query) const {
    Result<std::vector<float>> vector = [&] {
      const std::lock_guard lock(mutex_);
      return embedder_->embed({&query, 1});
    }();
    if (!vector.ok()) return vector.status();
    const Result<retriever::Hits> hits = folder_.search(*vector, top_);
    if (!hits.ok()) return hits.status();
    int64_t count = 0;
    while (count < hits->top && hits->ids[static_cast<size_t>(count)] >= 0) ++count;
    return passages_text(folder_.corpus(), std::span(hits->ids).first(static_cast<size_t>(count)));
  }

  retriever::IndexFolder folder_;
  std::unique_ptr<retriever::Embedder> embedder_;
  int64_t top_;
  mutable std::mutex mutex_;  // of the embedder
};

// Contents are "title"\ntext; without the title's line all is text.
std::string line_of_contents(int64_t number, std::string_view contents) {
  const size_t end = contents.find("\"\n");
  if (!contents.starts_with('"') || end == std::string_view::npos || end == 0) {
    return passage_line(number, "", contents);
  }
  return passage_line(number, contents.substr(1, end - 1), contents.substr(end + 2));
}

// {"result": [[{"document": {"contents"}, "score"}, ...]]}, or without scores the documents alone.
Result<std::string> text_of_reply(const std::string& body) {
  const auto reply = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  const auto wrong = [&] {
    return data_loss(
        "the server's reply is '{}'; expected {{\"result\": [[{{\"document\": {{\"contents\": "
        "...}}}}]]}}",
        excerpt(body));
  };
  if (!reply.is_object() || !reply.contains("result")) return wrong();
  const nlohmann::json& result = reply["result"];
  if (!result.is_array() || result.size() != 1 || !result[0].is_array()) return wrong();
  std::string text;
  int64_t number = 0;
  for (const nlohmann::json& entry : result[0]) {
    if (!entry.is_object()) return wrong();
    const nlohmann::json& document = entry.contains("document") ? entry["document"] : entry;
    if (!document.is_object() || !document.contains("contents") ||
        !document["contents"].is_string()) {
      return wrong();
    }
    text += line_of_contents(++number, document["contents"].get<std::string>());
  }
  return text;
}

class ServerSearch : public Tool {
 public:
  ServerSearch(std::unique_ptr<HttpPool> pool, const ToolConfig& config)
      : pool_(std::move(pool)), url_(config.url), top_(config.top), retries_(config.retries) {}

  ToolReply call(std::string_view text, double seconds) const override {
    using Clock = HttpPool::Clock;
    const Clock::time_point end =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(std::min(seconds, 1e6)));
    const std::string body = nlohmann::json{
        {"queries", {std::string(text)}},
        {"topk", top_},
        {"return_scores", true}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    std::string problem;
    for (int64_t attempt = 0; attempt <= retries_; ++attempt) {
      const auto wait = std::chrono::milliseconds(
          attempt == 0 ? 0
                       : std::min<int64_t>(30000, int64_t{100} << std::min<int64_t>(attempt, 20)));
      const Clock::time_point begin = Clock::now() + wait;
      const int64_t left_ms =
          std::chrono::duration_cast<std::chrono::milliseconds>(end - begin).count();
      if (left_ms <= 0) break;
      std::promise<HttpResponse> promise;
      std::future<HttpResponse> future = promise.get_future();
      pool_->post({url_, body, {"Content-Type: application/json"}, left_ms}, begin,
                  [&](HttpResponse response) { promise.set_value(std::move(response)); });
      const HttpResponse response = future.get();
      if (response.status == 200) {
        const Result<std::string> found = text_of_reply(response.body);
        if (found.ok()) return {ToolStatus::kOk, *found};
        problem = found.status().message();
        continue;
      }
      problem = response.status == 0 ? response.error
                                     : fmt::format("the server answered {}: {}", response.status,
                                                   excerpt(response.body));
      const bool may_pass = response.status == 0 || response.status == 408 ||
                            response.status == 429 || response.status >= 500;
      if (!may_pass) return {ToolStatus::kError, "search: " + problem};
    }
    if (Clock::now() >= end || problem.empty()) {
      return {ToolStatus::kTimeout, fmt::format("search: no answer within {} s", seconds)};
    }
    return {ToolStatus::kError, "search: " + problem};
  }

 private:
  std::unique_ptr<HttpPool> pool_;
  std::string url_;
  int64_t top_, retries_;
};

}  // namespace

Result<std::unique_ptr<Tool>> make_search(const ToolConfig& config) {
  if (!config.url.empty()) {
    Result<std::unique_ptr<HttpPool>> pool = HttpPool::create(256);
    if (!pool.ok()) return pool.status().with_prefix("tool search");
    return std::unique_ptr<Tool>(std::make_unique<ServerSearch>(std::move(*pool), config));
  }
  Result<retriever::IndexFolder> folder = retriever::IndexFolder::open(config.index);
  if (!folder.ok()) return folder.status().with_prefix("tool search");
  const std::string model = config.model.empty() ? folder->info().model_dir : config.model;
  Result<std::unique_ptr<retriever::Embedder>> embedder = retriever::Embedder::load(model);
  if (!embedder.ok()) return embedder.status().with_prefix("tool search");
  if ((*embedder)->hash() != folder->info().encoder_hash) {
    return invalid_argument(
        "tool search: {} was built by another encoder than {}; give the tool's model its "
        "directory, or build the index again",
        config.index, model);
  }
  return std::unique_ptr<Tool>(
      std::make_unique<IndexSearch>(std::move(*folder), std::move(*embedder), config.top));
}

}  // namespace gradus::rollout
