// SPDX-License-Identifier: Apache-2.0
#include "rollout/tool_box.h"

#include <algorithm>
#include <chrono>

#include "common/parallel.h"
#include "common/strings.h"

namespace gradus::rollout {
namespace {

constexpr std::string_view kNoCallLeft = "\nNo call is left. Answer now.";

}  // namespace

Result<std::unique_ptr<ToolBox>> ToolBox::create(const RolloutConfig& config,
                                                 const data::Tokenizer& tokenizer,
                                                 const Maker& maker) {
  if (config.tools.empty()) return std::unique_ptr<ToolBox>();
  ToolRegistry registry("tool");
  register_builtin_tools(registry);
  std::vector<Entry> entries;
  for (size_t i = 0; i < config.tools.size(); ++i) {
    const ToolConfig& tool = config.tools[i];
    std::unique_ptr<const Tool> made = maker ? maker(tool) : nullptr;
    if (made == nullptr) {
      Result<std::unique_ptr<Tool>> registered = registry.create(tool.name, tool);
      if (!registered.ok()) {
        return registered.status().with_prefix(fmt::format("rollout.tools[{}]", i));
      }
      made = std::move(*registered);
    }
    const std::string& tag = tool.tag.empty() ? tool.name : tool.tag;
    entries.push_back({tool.name, "<" + tag + ">", "</" + tag + ">", std::move(made)});
  }
  return create(std::move(entries),
                {config.max_tool_calls, config.max_observation_tokens, config.tool_seconds,
                 config.tool_threads, config.observation_tag},
                tokenizer);
}

Result<std::unique_ptr<ToolBox>> ToolBox::create(std::vector<Entry> entries, Limits limits,
                                                 const data::Tokenizer& tokenizer) {
  GRADUS_CHECK(
      limits.max_calls >= 1 && limits.max_observation_tokens >= 1 && limits.num_threads >= 1,
      "limits of tools");
  std::unique_ptr<ToolBox> box(new ToolBox(std::move(entries), std::move(limits), tokenizer));
  const std::string& tag = box->limits_.observation_tag;
  const std::string close = "</" + tag + ">\n\n";
  struct Part {
    std::vector<int32_t>& ids;
    std::string text;
  };
  for (const Part& part : {Part{box->open_ids_, "\n\n<" + tag + ">"}, Part{box->close_ids_, close},
                           Part{box->last_ids_, std::string(kNoCallLeft) + close}}) {
    Result<std::vector<int32_t>> ids = tokenizer.encode(part.text);
    if (!ids.ok()) return ids.status().with_prefix("rollout.observation_tag");
    part.ids = std::move(*ids);
  }
  return box;
}

ToolBox::ToolBox(std::vector<Entry> entries, Limits limits, const data::Tokenizer& tokenizer)
    : entries_(std::move(entries)), limits_(std::move(limits)), tokenizer_(tokenizer) {
  for (int64_t i = 0; i < limits_.num_threads; ++i) threads_.emplace_back([this] { work(); });
}

ToolBox::~ToolBox() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
    queue_.clear();
  }
  has_work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

int64_t ToolBox::max_tokens() const {
  const size_t tags = open_ids_.size() + std::max(close_ids_.size(), last_ids_.size());
  return limits_.max_calls * (limits_.max_observation_tokens + static_cast<int64_t>(tags));
}

Result<ToolBox::Words> ToolBox::words_of(std::string_view text, bool is_last) const {
  Result<std::vector<int32_t>> ids = tokenizer_.encode(text);
  if (!ids.ok()) return ids.status();
  Words words{open_ids_};
  const size_t most = static_cast<size_t>(limits_.max_observation_tokens);
  words.is_cut = ids->size() > most;
  if (words.is_cut) ids->resize(most);
  const std::vector<int32_t>& close = is_last ? last_ids_ : close_ids_;
  words.token_ids.insert(words.token_ids.end(), ids->begin(), ids->end());
  words.token_ids.insert(words.token_ids.end(), close.begin(), close.end());
  return words;
}

ToolReply ToolBox::reply_to(const ToolCall& call) const {
  const Entry& entry = entries_[call.tool];
  const std::string_view text = call.text ? trim(*call.text) : std::string_view();
  if (text.empty()) {
    return {data::ToolStatus::kInvalid,
            fmt::format("{}: {} {}; write {}...{}", entry.name,
                        call.text ? "nothing stands before" : "no " + entry.open + " stands before",
                        entry.close, entry.open, entry.close)};
  }
  ToolReply reply = entry.tool->call_in(call.context, text, limits_.call_seconds);
  if (first_invalid_utf8(reply.text)) {
    return {data::ToolStatus::kError, fmt::format("{}: the answer is not valid UTF-8", entry.name)};
  }
  return reply;
}

void ToolBox::work() {
  const SerialSection serial;  // the pool of compute threads is the engine's
  std::unique_lock lock(mutex_);
  for (;;) {
    has_work_.wait(lock, [&] { return is_stopping_ || !queue_.empty(); });
    if (is_stopping_) return;
    const Task task = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    ToolReply reply;
    try {
      reply = reply_to(task.call);
    } catch (const std::exception& error) {
      reply = {data::ToolStatus::kError,
               fmt::format("{}: {}", entries_[task.call.tool].name, error.what())};
    }
    lock.lock();
    if (task.run != run_) continue;
    finished_.push_back({task.ticket, task.call.tool, std::move(reply)});
    has_finished_.notify_all();
  }
}

void ToolBox::start(uint64_t ticket, ToolCall call) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back({run_, ticket, std::move(call)});
  }
  has_work_.notify_one();
}

std::vector<ToolBox::Finished> ToolBox::finished(int64_t milliseconds) {
  std::unique_lock lock(mutex_);
  if (milliseconds > 0) {
    has_finished_.wait_for(lock, std::chrono::milliseconds(milliseconds),
                           [&] { return !finished_.empty(); });
  }
  return std::exchange(finished_, {});
}

void ToolBox::forget() {
  const std::lock_guard lock(mutex_);
  ++run_;
  queue_.clear();
  finished_.clear();
}

}  // namespace gradus::rollout
