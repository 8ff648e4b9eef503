// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"
#include "rewards/judge.h"

namespace gradus::rewards::judge {

struct HttpJudgeOptions {
  std::string endpoint;      // of an OpenAI-compatible server: "http://127.0.0.1:8000/v1"
  std::string model;         // as the server names it
  std::string api_key_file;  // its first line is sent as bearer token; empty: none
  int64_t max_tokens = 512;  // of an answer
  double temperature = 0;
  int64_t max_criteria = 0;  // of a request, 0: no bound
  int concurrency = 64;      // requests at once, over all threads
  double rpm = 0;            // requests a minute, evenly spaced, retries included; 0: no bound
  double timeout_s = 60;     // of one request
  int retries = 3;  // after failed connections, timeouts, 408, 429, 5xx and unreadable verdicts
  double backoff_s = 0.5;  // before the first retry; doubles, at most 30 s; Retry-After goes before
  int64_t max_requests = 0;      // that may be sent in all, 0: no bound
  int64_t max_total_tokens = 0;  // that the server may report in all, 0: no bound
  int votes = 1;      // verdicts of a criterion, odd; above 1 the temperature must be above 0
  std::string cache;  // SQLite file of verdicts; empty: none

  bool operator==(const HttpJudgeOptions&) const = default;
};

struct JudgeStatistics {
  int64_t num_requests = 0;
  int64_t num_retries = 0;
  int64_t num_cache_hits = 0;
  int64_t num_tokens = 0;
};

// A model behind a server's chat completions. Neighbours with equal prompt, response and reference
// share a request, and a retry asks only for what is missing.
//
// With several votes a criterion is asked for so many times, by other seeds. It does not apply if
// most say so, else its score is the median of those that gave one; a vote that is not to be had is
// a failure of the criterion, so that all verdicts rest on as many.
class HttpJudge : public Judge {
 public:
  // InvalidArgument for a missing or impossible option, Unavailable where libcurl, the key's or the
  // cache's file cannot be had. The server is not asked.
  static Result<std::unique_ptr<HttpJudge>> create(const HttpJudgeOptions& options);
  ~HttpJudge() override;

  std::vector<JudgeVerdict> judge(std::span<const JudgeItem> items) const override;
  JudgeStatistics statistics() const;       // since it was made
  JudgeStatistics take_statistics() const;  // since the last call of this

 private:
  struct State;
  explicit HttpJudge(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gradus::rewards::judge
