// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/status.h"
#include "data/tokenizer.h"
#include "rollout/tool.h"

namespace gradus::rollout {

// A call as a response made it.
struct ToolCall {
  size_t tool = 0;                  // place in the tool box
  std::optional<std::string> text;  // none: the opening tag is missing
  CallContext context{};
};

// The tools of a run and the few threads that carry calls out while the engine decodes. One engine
// uses it at a time.
class ToolBox {
 public:
  struct Entry {
    std::string name;
    std::string open, close;  // "<search>", "</search>"
    std::unique_ptr<const Tool> tool;
  };
  struct Limits {
    int64_t max_calls = 4;                 // of a response
    int64_t max_observation_tokens = 512;  // between the tags of one observation
    double call_seconds = 30;
    int64_t num_threads = 2;
    std::string observation_tag = "information";
  };

  // Makes a tool of a configuration; null: the registry's is taken.
  using Maker = std::function<std::unique_ptr<const Tool>(const ToolConfig&)>;

  // The tools of `config`; null if it has none. The tokenizer outlives the box. `maker`, if given,
  // is asked first. InvalidArgument or Unavailable names the tool that cannot be made, e.g. an
  // index that is not there.
  static Result<std::unique_ptr<ToolBox>> create(const RolloutConfig& config,
                                                 const data::Tokenizer& tokenizer,
                                                 const Maker& maker = {});
  // The same of tools made elsewhere.
  static Result<std::unique_ptr<ToolBox>> create(std::vector<Entry> entries, Limits limits,
                                                 const data::Tokenizer& tokenizer);
  ~ToolBox();
  ToolBox(const ToolBox&) = delete;
  ToolBox& operator=(const ToolBox&) = delete;

  const std::vector<Entry>& entries() const { return entries_; }
  const Limits& limits() const { return limits_; }
  // The most tokens that all observations of a response take.
  int64_t max_tokens() const;

  // The ids of an observation, made once, each part for itself: the opening tag, as much of the
  // text as fits, the closing tag. `is_last`: after it no call is left, which it says.
  struct Words {
    std::vector<int32_t> token_ids;
    bool is_cut = false;
  };
  Result<Words> words_of(std::string_view text, bool is_last) const;

  // Hands a call to the threads; `ticket` comes back with the reply.
  void start(uint64_t ticket, ToolCall call);
  struct Finished {
    uint64_t ticket;
    size_t tool;
    ToolReply reply;
  };
  // The calls that have ended since the last time, in whatever order; waits `milliseconds` at most
  // for the first one.
  std::vector<Finished> finished(int64_t milliseconds);
  // Forgets every call that is out: its reply is never given. Returns at once.
  void forget();

 private:
  ToolBox(std::vector<Entry> entries, Limits limits, const data::Tokenizer& tokenizer);
  void work();
  ToolReply reply_to(const ToolCall& call) const;

  struct Task {
    uint64_t run, ticket;
    ToolCall call;
  };

  std::vector<Entry> entries_;
  Limits limits_;
  const data::Tokenizer& tokenizer_;
  std::vector<int32_t> open_ids_, close_ids_, last_ids_;

  std::mutex mutex_;
  std::condition_variable has_work_, has_finished_;
  std::deque<Task> queue_;
  std::vector<Finished> finished_;
  uint64_t run_ = 0;  // replies of earlier ones are dropped
  bool is_stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace gradus::rollout
