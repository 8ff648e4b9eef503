// SPDX-License-Identifier: Apache-2.0
#include "rewards/judge/http_judge.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

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
  std::string content;  // empty: none
  std::string refusal;  // why the model or the server would not answer; empty: it did
  bool is_cut = false;  // at max_tokens
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
  if (!message.is_object()) return answer;
  const auto text = [&](const Json& object, const char* name) {
    const Json value = object.value(name, Json());
    return value.is_string() ? value.get<std::string>() : "";
  };
  answer.content = text(message, "content");
  const std::string refusal = text(message, "refusal");
  const std::string finish_reason = text(choice, "finish_reason");
  if (!refusal.empty()) {
    answer.refusal = fmt::format("the judge refused: {}", refusal.substr(0, 120));
  } else if (finish_reason == "content_filter") {
    answer.refusal = "the judge's server filtered the answer";
  }
  answer.is_cut = finish_reason == "length";
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
  if (options.votes < 1 || options.votes % 2 == 0) {
    return invalid_argument("judge: votes is {}; expected an odd number, so that most can agree",
                            options.votes);
  }
  if (options.votes > 1 && options.temperature == 0) {
    return invalid_argument(
        "judge: votes is {}, temperature 0; all votes would be the same: set temperature, such as "
        "to 0.7, or take one vote",
        options.votes);
  }
  return {};
}

// One call of judge().
struct Batch {
  std::mutex mutex;
  std::condition_variable is_done;
  size_t num_open = 0;
};

// The criteria of one response that one vote is still to judge.
struct Ask {
  Batch* batch = nullptr;
  std::span<const JudgeItem> items;  // of the whole call
  std::vector<JudgeVerdict>* verdicts = nullptr;
  std::vector<size_t> open;  // into both
  int vote = 0;
  int attempt = 0;
  std::string nonce;
};

// One verdict of the votes on a criterion, see HttpJudge.
JudgeVerdict combine_votes(std::span<JudgeVerdict> votes) {
  if (votes.size() == 1) return std::move(votes.front());
  std::vector<double> scores;
  std::string list, reason, objection;
  for (size_t i = 0; i < votes.size(); ++i) {
    JudgeVerdict& vote = votes[i];
    if (data::is_failure(vote.status)) {
      vote.detail = fmt::format("vote {} of {}: {}", i + 1, votes.size(), vote.detail);
      return std::move(vote);
    }
    const bool is_score = vote.status == data::RewardStatus::kOk;
    list += fmt::format("{}{}", i == 0 ? "" : ", ",
                        is_score ? fmt::format("{:g}", vote.score) : "not applicable");
    if (is_score) scores.push_back(vote.score);
    std::string& first = is_score ? reason : objection;
    if (first.empty()) first = vote.detail;
  }
  list = "votes: " + list;
  const auto with = [&](const std::string& why) { return why.empty() ? list : list + "; " + why; };
  if (2 * scores.size() < votes.size()) {
    return {0, data::RewardStatus::kNotApplicable, with(objection)};
  }
  std::sort(scores.begin(), scores.end());
  const size_t middle = scores.size() / 2;
  const double median =
      scores.size() % 2 == 1 ? scores[middle] : (scores[middle - 1] + scores[middle]) / 2;
  for (const JudgeVerdict& vote : votes) {
    const bool is_median = vote.status == data::RewardStatus::kOk && vote.score == median;
    if (is_median && !vote.detail.empty()) return {median, vote.status, with(vote.detail)};
  }
  return {median, data::RewardStatus::kOk, with(reason)};
}

}  // namespace

struct HttpJudge::State {
  HttpJudgeOptions options;
  std::string url;
  std::vector<std::string> headers;
  uint64_t secret = 0;
  std::unique_ptr<VerdictCache> cache;
  std::mutex mutex;
  JudgeStatistics taken;                  // by take_statistics(); under the mutex
  HttpPool::Clock::time_point free_from;  // when rpm allows the next request; under the mutex
  std::atomic<int64_t> num_requests = 0, num_retries = 0, num_cache_hits = 0, num_tokens = 0;
  std::unique_ptr<HttpPool> pool;  // last: its thread ends before what it uses

  std::string cache_key(const JudgeItem& item, int vote) const {
    std::string key =
        fmt::format("{} {} {} ", kPromptVersion, options.temperature, options.max_tokens);
    if (vote > 0) key += fmt::format("vote {} ", vote);
    for (const std::string& part :
         {options.model, item.prompt, item.response, item.reference, item.criterion}) {
      key += fmt::format("{}:", part.size()) + part;
    }
    return key;
  }

  std::optional<JudgeVerdict> find(const JudgeItem& item, int vote) {
    if (cache == nullptr) return std::nullopt;
    auto known = cache->find(cache_key(item, vote));
    if (known.has_value()) ++num_cache_hits;
    return known;
  }

  JudgeVerdict& verdict_of(const Ask& ask, size_t item) const {
    return (
        *ask.verdicts)[item * static_cast<size_t>(options.votes) + static_cast<size_t>(ask.vote)];
  }

  // Secret, and the same for the same question, so that a run's requests repeat within it.
  std::string make_nonce(const Ask& ask) const {
    const std::string key = cache_key(ask.items[ask.open.front()], ask.vote);
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
                       {"seed", ask.vote * (options.retries + 1) + ask.attempt},
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

  // When a request that waits so long may be sent.
  HttpPool::Clock::time_point take_turn(double wait_s) {
    const auto seconds = [](double value) {
      return std::chrono::microseconds(static_cast<int64_t>(1e6 * value));
    };
    const auto now = HttpPool::Clock::now();
    if (options.rpm == 0) return now + seconds(wait_s);
    // One that waits for its server takes the next turn, and leaves those after it to others.
    const std::lock_guard lock(mutex);
    const auto turn = std::max(now, free_from);
    free_from = turn + seconds(60 / options.rpm);
    return std::max(now + seconds(wait_s), turn);
  }

  void send(std::shared_ptr<Ask> ask, double wait_s) {
    const std::string spent = spent_budget();
    if (!spent.empty()) return close(*ask, {spent, false, false, 0});
    ask->nonce = make_nonce(*ask);
    HttpRequest request{url, make_body(*ask), headers,
                        static_cast<int64_t>(std::ceil(1000 * options.timeout_s))};
    pool->post(std::move(request), take_turn(wait_s),
               [this, ask](HttpResponse response) { receive(ask, response); });
  }

  // From here on in the pool's thread.
  void receive(const std::shared_ptr<Ask>& ask, const HttpResponse& response) {
    if (response.status != 200) return retry(ask, failure_of(response));
    const auto answer = read_chat(response.body);
    if (!answer.ok()) return retry(ask, {answer.status().message()});
    num_tokens += answer->num_tokens;
    if (!answer->refusal.empty()) return retry(ask, {answer->refusal});
    if (answer->content.empty()) return retry(ask, {"the answer has no message"});
    const auto read = parse_verdicts(answer->content, ask->open.size(), ask->nonce);
    if (!read.ok() && answer->is_cut) {
      return retry(ask,
                   {fmt::format("the judge's answer was cut off after max_tokens, {}; raise it",
                                options.max_tokens)});
    }
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
      verdict_of(*ask, index) = verdict;
      if (cache != nullptr) cache->keep(cache_key(ask->items[index], ask->vote), verdict);
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
      verdict_of(ask, index) = {
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
  const HttpJudgeOptions& options = state_->options;
  const auto num_votes = static_cast<size_t>(options.votes);
  std::vector<JudgeVerdict> verdicts(items.size() * num_votes);  // item by item, by vote
  std::vector<std::shared_ptr<Ask>> asks;
  Batch batch;
  for (int vote = 0; vote < options.votes; ++vote) {
    for (size_t begin = 0, end = 0; begin < items.size(); begin = end) {
      auto ask = std::make_shared<Ask>();
      ask->batch = &batch;
      ask->items = items;
      ask->verdicts = &verdicts;
      ask->vote = vote;
      const auto has_room = [&] {
        return options.max_criteria == 0 ||
               static_cast<int64_t>(ask->open.size()) < options.max_criteria;
      };
      for (end = begin;
           end < items.size() && is_same_request(items[begin], items[end]) && has_room(); ++end) {
        auto known = state_->find(items[end], vote);
        if (known.has_value()) {
          state_->verdict_of(*ask, end) = std::move(*known);
        } else {
          ask->open.push_back(end);
        }
      }
      if (!ask->open.empty()) asks.push_back(std::move(ask));
    }
  }
  batch.num_open = asks.size();
  for (const auto& ask : asks) state_->send(ask, 0);
  std::unique_lock lock(batch.mutex);
  batch.is_done.wait(lock, [&] { return batch.num_open == 0; });
  std::vector<JudgeVerdict> combined;
  for (size_t i = 0; i < items.size(); ++i) {
    combined.push_back(combine_votes(std::span(verdicts).subspan(i * num_votes, num_votes)));
  }
  return combined;
}

JudgeStatistics HttpJudge::statistics() const {
  return {state_->num_requests, state_->num_retries, state_->num_cache_hits, state_->num_tokens};
}

JudgeStatistics HttpJudge::take_statistics() const {
  const std::lock_guard lock(state_->mutex);
  const JudgeStatistics now = statistics();
  const JudgeStatistics before = std::exchange(state_->taken, now);
  return {now.num_requests - before.num_requests, now.num_retries - before.num_retries,
          now.num_cache_hits - before.num_cache_hits, now.num_tokens - before.num_tokens};
}

}  // namespace gradus::rewards::judge
