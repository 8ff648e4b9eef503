// SPDX-License-Identifier: Apache-2.0
#include "rewards/judge/http_judge.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/http_pool.h"
#include "common/rng.h"
#include "common/strings.h"
#include "rewards/judge/verdict_cache.h"
#include "rewards/judge/verdict_text.h"

namespace gradus::rewards::judge {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMaxBackoffS = 30;
constexpr double kMaxRetryAfterS = 120;
// Changes with the wording of verdict_text.cpp, so that no cache answers for another question.
constexpr int kPromptVersion = 1;

bool is_same_request(const JudgeItem& a, const JudgeItem& b) {
  return a.prompt == b.prompt && a.response == b.response && a.reference == b.reference;
}

// What a server said, if it was a completed chat.
struct ChatAnswer {
  std::string content;
  int64_t num_tokens = 0;
};

Result<ChatAnswer> read_chat(const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object()) return invalid_argument("the answer is no JSON object");
  ChatAnswer answer;
  const Json usage = json.value("usage", Json::object());
  if (usage.is_object() && usage.value("total_tokens", Json()).is_number_integer()) {
    answer.num_tokens = std::max<int64_t>(0, usage["total_tokens"].get<int64_t>());
  }
  const Json choices = json.value("choices", Json::array());
  const Json choice = choices.is_array() && !choices.empty() ? choices[0] : Json();
  const Json message = choice.is_object() ? choice.value("message", Json()) : Json();
  const Json content = message.is_object() ? message.value("content", Json()) : Json();
  if (!content.is_string()) return invalid_argument("the answer has no message");
  answer.content = content.get<std::string>();
  return answer;
}

struct Failure {
  std::string reason;
  bool is_timeout = false;
  bool can_retry = true;
  double wait_s = 0;
};

Failure failure_of(const HttpResponse& response) {
  if (response.status == 0) {
    return {response.error, response.is_timeout, response.error != "cancelled", 0};
  }
  const bool can_retry = response.status == 408 || response.status == 429 || response.status >= 500;
  const std::string_view body = trim(response.body);
  return {
      fmt::format("status {}{}{}", response.status, body.empty() ? "" : ": ", body.substr(0, 120)),
      false, can_retry, std::min(response.retry_after_s.value_or(0), kMaxRetryAfterS)};
}

Result<std::string> read_key(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || trim(line).empty()) {
    return unavailable("judge: api_key_file {}: cannot be read; expected a key in its first line",
                       path);
  }
  return std::string(trim(line));
}

Status validate(const HttpJudgeOptions& options) {
  const bool is_url =
      options.endpoint.starts_with("http://") || options.endpoint.starts_with("https://");
  if (!is_url || options.endpoint.find_first_of(" \n\r") != std::string::npos) {
    return invalid_argument(
        "judge: endpoint is '{}'; expected the URL of an OpenAI-compatible server, such as "
        "http://127.0.0.1:8000/v1",
        options.endpoint);
  }
  if (options.model.empty()) {
    return invalid_argument("judge: model is missing; expected its name at the server");
  }
  return {};
}

// One call of judge().
struct Batch {
  std::mutex mutex;
  std::condition_variable is_done;
  size_t num_open = 0;
};

// The criteria of one response that are still to be judged.
struct Ask {
  Batch* batch = nullptr;
  std::span<const JudgeItem> items;  // of the whole call
  std::vector<JudgeVerdict>* verdicts = nullptr;
  std::vector<size_t> open;  // into both
  int attempt = 0;
  std::string nonce;
};

}  // namespace

struct HttpJudge::State {
  HttpJudgeOptions options;
  std::string url;
  std::vector<std::string> headers;
  uint64_t secret = 0;
  std::unique_ptr<VerdictCache> cache;
  std::atomic<int64_t> num_requests = 0, num_retries = 0, num_cache_hits = 0, num_tokens = 0;
  std::unique_ptr<HttpPool> pool;  // last: its thread ends before what it uses

  std::string cache_key(const JudgeItem& item) const {
    std::string key =
        fmt::format("{} {} {} ", kPromptVersion, options.temperature, options.max_tokens);
    for (const std::string& part :
         {options.model, item.prompt, item.response, item.reference, item.criterion}) {
      key += fmt::format("{}:", part.size()) + part;
    }
    return key;
  }

  // Secret, and the same for the same question, so that a run's requests repeat within it.
  std::string make_nonce(const Ask& ask) const {
    const std::string key = cache_key(ask.items[ask.open.front()]);
    const uint64_t hash = hash64(key);
    return fmt::format("{:016x}{:016x}", hash64({secret, hash, static_cast<uint64_t>(ask.attempt)}),
                       hash64({secret + 1, hash, static_cast<uint64_t>(ask.attempt)}));
  }

  std::string make_body(const Ask& ask) const {
    std::vector<JudgeItem> asked;
    for (const size_t index : ask.open) asked.push_back(ask.items[index]);
    const Json body = {{"model", options.model},
                       {"temperature", options.temperature},
                       {"max_tokens", options.max_tokens},
                       {"seed", ask.attempt},
                       {"response_format", {{"type", "json_object"}}},
                       {"messages", Json::parse(verdict_messages(asked, ask.nonce))}};
    return body.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  // Empty while there is some left.
  std::string spent_budget() {
    if (options.max_total_tokens > 0 && num_tokens >= options.max_total_tokens) {
      return fmt::format("the budget of {} tokens is spent", options.max_total_tokens);
    }
    if (num_requests++ < options.max_requests || options.max_requests == 0) return "";
    --num_requests;
    return fmt::format("the budget of {} requests is spent", options.max_requests);
  }

  void send(std::shared_ptr<Ask> ask, double wait_s) {
    const std::string spent = spent_budget();
    if (!spent.empty()) return close(*ask, {spent, false, false, 0});
    ask->nonce = make_nonce(*ask);
    HttpRequest request{url, make_body(*ask), headers,
                        static_cast<int64_t>(std::ceil(1000 * options.timeout_s))};
    const auto not_before =
        HttpPool::Clock::now() + std::chrono::microseconds(static_cast<int64_t>(1e6 * wait_s));
    pool->post(std::move(request), not_before,
               [this, ask](HttpResponse response) { receive(ask, response); });
  }

  // From here on in the pool's thread.
  void receive(const std::shared_ptr<Ask>& ask, const HttpResponse& response) {
    if (response.status != 200) return retry(ask, failure_of(response));
    const auto answer = read_chat(response.body);
    if (!answer.ok()) return retry(ask, {answer.status().message()});
    num_tokens += answer->num_tokens;
    const auto read = parse_verdicts(answer->content, ask->open.size(), ask->nonce);
    if (!read.ok()) return retry(ask, {read.status().message()});
    std::vector<size_t> still_open;
    std::string reason;
    for (size_t i = 0; i < ask->open.size(); ++i) {
      const JudgeVerdict& verdict = read.value()[i];
      const size_t index = ask->open[i];
      if (data::is_failure(verdict.status)) {
        still_open.push_back(index);
        reason = verdict.detail;
        continue;
      }
      (*ask->verdicts)[index] = verdict;
      if (cache != nullptr) cache->keep(cache_key(ask->items[index]), verdict);
    }
    ask->open = std::move(still_open);
    if (ask->open.empty()) return close(*ask, {});
    retry(ask, {reason});
  }

  void retry(const std::shared_ptr<Ask>& ask, const Failure& failure) {
    if (!failure.can_retry || ask->attempt >= options.retries) return close(*ask, failure);
    // From half of the wait to all of it, so that those who failed together do not return together.
    const double spread =
        0.5 + 0.5 * static_cast<double>(hash64(ask->nonce) >> 11) / 9007199254740992.0;
    const double backoff =
        std::min(kMaxBackoffS, options.backoff_s * std::exp2(ask->attempt)) * spread;
    ++ask->attempt;
    ++num_retries;
    send(ask, std::max(failure.wait_s, backoff));
  }

  // What is still open has no verdict.
  void close(Ask& ask, const Failure& failure) const {
    for (const size_t index : ask.open) {
      (*ask.verdicts)[index] = {
          0, failure.is_timeout ? data::RewardStatus::kTimeout : data::RewardStatus::kError,
          fmt::format("judge {}: {} (attempt {} of {})", options.endpoint, failure.reason,
                      ask.attempt + 1, options.retries + 1)};
    }
    Batch& batch = *ask.batch;
    // Under the lock: the waiting thread destroys the batch as soon as it sees that all is done.
    const std::lock_guard lock(batch.mutex);
    if (--batch.num_open == 0) batch.is_done.notify_all();
  }
};

HttpJudge::HttpJudge(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpJudge::~HttpJudge() = default;

Result<std::unique_ptr<HttpJudge>> HttpJudge::create(const HttpJudgeOptions& options) {
  GRADUS_RETURN_IF_ERROR(validate(options));
  auto state = std::make_unique<State>();
  state->options = options;
  state->url = options.endpoint;
  while (state->url.ends_with('/')) state->url.pop_back();
  state->url += "/chat/completions";
  const auto key = read_key(options.api_key_file);
  GRADUS_RETURN_IF_ERROR(key.status());
  state->headers = {"Content-Type: application/json", "Expect:"};
  if (!key->empty()) state->headers.push_back("Authorization: Bearer " + *key);
  if (getrandom(&state->secret, sizeof state->secret, 0) != sizeof state->secret) {
    return unavailable("judge: the system gives no random bytes");
  }
  if (!options.cache.empty()) {
    auto cache = VerdictCache::open(options.cache);
    GRADUS_RETURN_IF_ERROR(cache.status());
    state->cache = std::move(*cache);
  }
  auto pool = HttpPool::create(options.concurrency);
  if (!pool.ok()) return pool.status().with_prefix("judge");
  state->pool = std::move(*pool);
  return std::unique_ptr<HttpJudge>(new HttpJudge(std::move(state)));
}

std::vector<JudgeVerdict> HttpJudge::judge(std::span<const JudgeItem> items) const {
  std::vector<JudgeVerdict> verdicts(items.size());
  std::vector<std::shared_ptr<Ask>> asks;
  Batch batch;
  for (size_t begin = 0, end = 0; begin < items.size(); begin = end) {
    auto ask = std::make_shared<Ask>();
    ask->batch = &batch;
    ask->items = items;
    ask->verdicts = &verdicts;
    const auto has_room = [&] {
      return state_->options.max_criteria == 0 ||
             static_cast<int64_t>(ask->open.size()) < state_->options.max_criteria;
    };
    for (end = begin; end < items.size() && is_same_request(items[begin], items[end]) && has_room();
         ++end) {
      auto known = state_->cache == nullptr ? std::nullopt
                                            : state_->cache->find(state_->cache_key(items[end]));
      if (known.has_value()) {
        verdicts[end] = std::move(*known);
        ++state_->num_cache_hits;
      } else {
        ask->open.push_back(end);
      }
    }
    if (!ask->open.empty()) asks.push_back(std::move(ask));
  }
  batch.num_open = asks.size();
  for (const auto& ask : asks) state_->send(ask, 0);
  std::unique_lock lock(batch.mutex);
  batch.is_done.wait(lock, [&] { return batch.num_open == 0; });
  return verdicts;
}

JudgeStatistics HttpJudge::statistics() const {
  return {state_->num_requests, state_->num_retries, state_->num_cache_hits, state_->num_tokens};
}

}  // namespace gradus::rewards::judge
