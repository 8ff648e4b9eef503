// SPDX-License-Identifier: Apache-2.0
#include "rollout/cpu_engine.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "common/parallel.h"
#include "kernels/sampling.h"
#include "rollout/internal/response.h"
#include "rollout/tool_box.h"

namespace gradus::rollout {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t pages_for(int64_t num_tokens) {
  return (num_tokens + kernels::kPageTokens - 1) / kernels::kPageTokens;
}

// Tokens of which a prefix has its keys and values in the cache.
struct Stream {
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;  // of positions [0, 64 pages)
  int64_t num_cached = 0;
  int64_t num_pending() const { return static_cast<int64_t>(tokens.size()) - num_cached; }
};

// Neighbouring requests with one prompt.
struct Group {
  Stream prompt;
  size_t first_request = 0, num_requests = 0;
  size_t num_started = 0;  // requests [first, first + started) have been started once
  size_t num_unfinished = 0;
  int64_t num_running = 0;
  std::vector<float> first_logits;  // of the token after the prompt; empty until it is computed
  bool is_ready() const { return !first_logits.empty(); }
};

struct Sequence {
  size_t request = 0;
  size_t group = 0;
  Stream stream = {};  // prompt and response
  Response response;
  double started_seconds = 0;
};

}  // namespace

// One run() of the engine.
class CpuEngine::Scheduler {
 public:
  Scheduler(CpuEngine& engine, std::span<const data::RolloutRequest> requests,
            uint64_t policy_version, uint64_t weights_hash, TrajectorySink& sink)
      : engine_(engine),
        model_(engine.transformer_),
        cache_(*engine.cache_),
        requests_(requests),
        policy_version_(policy_version),
        weights_hash_(weights_hash),
        sink_(sink) {}
  ~Scheduler() {
    if (engine_.tools_ != nullptr) engine_.tools_->forget();
  }
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  Status run(const std::atomic<bool>* cancel,
             const std::function<void(int64_t, int64_t)>& progress);

 private:
  // A stream's share of the pass: its next `num_rows` tokens from row `row_begin` on.
  struct PassEntry {
    Stream* stream;
    int64_t row_begin, num_rows;
  };

  void make_groups();
  Status start_sequences();
  Status start(size_t group_index, Sequence sequence);
  bool grow(Stream& stream, int64_t num_tokens);
  void make_room_for_decoding();
  bool drop_an_idle_prompt(const Group* keep);
  void preempt_youngest();
  void release(Stream& stream);
  Status pass();
  Status sample(Sequence& sequence, const float* logits, kernels::SampledToken& token) const;
  // Adds the token; true if it ends the trajectory.
  Result<bool> append(Sequence& sequence, const kernels::SampledToken& token);
  // Where a sequence goes after a token.
  void settle(Sequence sequence, bool has_ended, std::vector<Sequence>& going_on);
  // Takes the answers of tools that are there; waits a little for the first one if nothing else can
  // be done.
  Status take_observations(bool waits);
  bool drop_pages_of_a_caller();
  void finish(Sequence& sequence);
  void cancel_all();
  void account_slots(size_t num_running, double seconds);

  CpuEngine& engine_;
  model::Transformer& model_;
  model::KvCache& cache_;
  std::span<const data::RolloutRequest> requests_;
  uint64_t policy_version_, weights_hash_;
  TrajectorySink& sink_;
  std::vector<Group> groups_;
  size_t next_prefill_ = 0;        // groups before it are prefilled (or dropped again)
  std::vector<Sequence> running_;  // in the order in which they were started
  std::deque<Sequence> preempted_;
  // By request: those whose tool has not answered. Like `answered_`, which wait for a place in the
  // batch, they keep their pages until others need them.
  std::map<size_t, Sequence> calling_;
  std::deque<Sequence> answered_;
  int64_t num_finished_ = 0;
  EngineStats stats_;
  Clock::time_point start_ = Clock::now();
  AlignedBuffer hidden_, gathered_, logits_;

  friend class CpuEngine;
};

CpuEngine::CpuEngine(model::Transformer& transformer, const data::Tokenizer* tokenizer,
                     EngineOptions options, ToolBox* tools)
    : transformer_(transformer),
      tokenizer_(tokenizer),
      options_(options),
      tools_(tools),
      cache_(std::make_unique<model::KvCache>(
          transformer.config(), num_cache_pages(transformer.config(), options.kv_cache_bytes))),
      stats_(std::make_unique<EngineStats>()) {
  GRADUS_CHECK(options.max_batch >= 1 && options.prefill_chunk_tokens >= 1, "engine options");
}

CpuEngine::~CpuEngine() = default;

const EngineStats& CpuEngine::stats() const { return *stats_; }

Status CpuEngine::run(std::span<const data::RolloutRequest> requests, uint64_t policy_version,
                      uint64_t weights_hash, TrajectorySink& sink, const std::atomic<bool>* cancel,
                      const std::function<void(int64_t, int64_t)>& progress) {
  cache_->clear();
  Scheduler scheduler(*this, requests, policy_version, weights_hash, sink);
  GRADUS_RETURN_IF_ERROR(validate_requests(requests, transformer_.config(), cache_->num_pages(),
                                           model::KvCache::bytes_per_page(transformer_.config()),
                                           tokenizer_ != nullptr, tools_));
  const Status status = scheduler.run(cancel, progress);
  *stats_ = scheduler.stats_;
  return status;
}

void CpuEngine::Scheduler::make_groups() {
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (i == 0 || requests_[i].id.prompt_id != requests_[i - 1].id.prompt_id ||
        requests_[i].token_ids != requests_[i - 1].token_ids) {
      Group group;
      group.prompt.tokens = requests_[i].token_ids;
      group.first_request = i;
      groups_.push_back(std::move(group));
    }
    ++groups_.back().num_requests;
    ++groups_.back().num_unfinished;
  }
}

void CpuEngine::Scheduler::release(Stream& stream) {
  for (const int32_t page : stream.pages) cache_.release_page(page);
  stream.pages.clear();
  stream.num_cached = 0;
}

// Takes pages until `num_tokens` positions have one; false, with what could be taken, if none is
// left.
bool CpuEngine::Scheduler::grow(Stream& stream, int64_t num_tokens) {
  while (static_cast<int64_t>(stream.pages.size()) < pages_for(num_tokens)) {
    if (cache_.num_free_pages() == 0) return false;
    stream.pages.push_back(cache_.take_page());
  }
  return true;
}

// Frees the prompt pages of the last prefilled group that nothing runs on.
bool CpuEngine::Scheduler::drop_an_idle_prompt(const Group* keep) {
  for (size_t i = groups_.size(); i-- > 0;) {
    Group& group = groups_[i];
    if (&group == keep || group.num_running > 0 || group.prompt.pages.empty()) continue;
    release(group.prompt);
    group.first_logits.clear();
    next_prefill_ = std::min(next_prefill_, i);
    return true;
  }
  return false;
}

// Frees the pages of a sequence that is not decoded, because its tool is at work or the batch is
// full.
bool CpuEngine::Scheduler::drop_pages_of_a_caller() {
  const auto drop = [this](Sequence& sequence) {
    if (sequence.stream.pages.empty()) return false;
    release(sequence.stream);
    --groups_[sequence.group].num_running;
    return true;
  };
  for (auto at = calling_.rbegin(); at != calling_.rend(); ++at) {
    if (drop(at->second)) return true;
  }
  if (answered_.empty()) return false;
  drop(answered_.back());
  preempted_.push_back(std::move(answered_.back()));
  answered_.pop_back();
  return true;
}

void CpuEngine::Scheduler::preempt_youngest() {
  GRADUS_CHECK(running_.size() > 1, "a single sequence fits, by validate_requests");
  Sequence sequence = std::move(running_.back());
  running_.pop_back();
  release(sequence.stream);
  --groups_[sequence.group].num_running;
  preempted_.push_front(std::move(sequence));
  ++stats_.num_preemptions;
}

void CpuEngine::Scheduler::make_room_for_decoding() {
  for (size_t i = 0; i < running_.size(); ++i) {
    for (;;) {
      Stream& stream = running_[i].stream;
      if (grow(stream, static_cast<int64_t>(stream.tokens.size()))) break;
      if (drop_an_idle_prompt(nullptr) || drop_pages_of_a_caller()) continue;
      const bool is_itself = i + 1 == running_.size();
      preempt_youngest();
      if (is_itself) return;
    }
  }
}

// Gives a sequence its prompt's pages: the full ones shared, a copy of the one that the prompt ends
// in.
Status CpuEngine::Scheduler::start(size_t group_index, Sequence sequence) {
  Group& group = groups_[group_index];
  const int64_t full = static_cast<int64_t>(group.prompt.tokens.size()) / kernels::kPageTokens;
  for (int64_t i = 0; i < full; ++i) {
    cache_.share_page(group.prompt.pages[static_cast<size_t>(i)]);
    sequence.stream.pages.push_back(group.prompt.pages[static_cast<size_t>(i)]);
  }
  if (static_cast<int64_t>(group.prompt.pages.size()) > full) {
    const int32_t page = cache_.take_page();
    cache_.copy_page(group.prompt.pages[static_cast<size_t>(full)], page);
    sequence.stream.pages.push_back(page);
  }
  sequence.stream.num_cached = static_cast<int64_t>(group.prompt.tokens.size());
  ++group.num_running;
  if (sequence.stream.num_pending() == 0) {  // new: its first token comes from the prompt's logits
    sequence.started_seconds = seconds_since(start_);
    kernels::SampledToken token;
    GRADUS_RETURN_IF_ERROR(sample(sequence, group.first_logits.data(), token));
    Result<bool> ended = append(sequence, token);
    if (!ended.ok()) return ended.status();
    settle(std::move(sequence), *ended, running_);
    return {};
  }
  running_.push_back(std::move(sequence));
  return {};
}

Status CpuEngine::Scheduler::start_sequences() {
  // A new sequence may have to take a page at once; the first one always finds it.
  const auto has_room = [&](const Group& group) {
    if (static_cast<int64_t>(running_.size()) >= engine_.options_.max_batch) return false;
    while (cache_.num_free_pages() < 2) {
      if (!running_.empty()) return false;
      if (!drop_an_idle_prompt(&group) && !drop_pages_of_a_caller()) break;
    }
    return cache_.num_free_pages() >= 1 || group.prompt.tokens.size() % kernels::kPageTokens == 0;
  };
  while (!answered_.empty() && static_cast<int64_t>(running_.size()) < engine_.options_.max_batch) {
    running_.push_back(std::move(answered_.front()));
    answered_.pop_front();
  }
  while (!preempted_.empty()) {
    Group& group = groups_[preempted_.front().group];
    if (!group.is_ready() || !has_room(group)) break;
    Sequence sequence = std::move(preempted_.front());
    preempted_.pop_front();
    const size_t group_index = sequence.group;
    GRADUS_RETURN_IF_ERROR(start(group_index, std::move(sequence)));
  }
  if (!preempted_.empty()) return {};  // new ones would take the pages that the preempted wait for
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    while (group.is_ready() && group.num_started < group.num_requests && has_room(group)) {
      const size_t request = group.first_request + group.num_started++;
      Sequence sequence{
          .request = request,
          .group = g,
          .response = Response(requests_[request], engine_.tokenizer_, model_.config(),
                               policy_version_, weights_hash_, engine_.tools_)};
      // What an interrupted response has is computed anew, by the present weights, as after a
      // preemption.
      GRADUS_RETURN_IF_ERROR(sequence.response.begin());
      sequence.stream.tokens = sequence.response.trajectory().token_ids;
      GRADUS_RETURN_IF_ERROR(start(g, std::move(sequence)));
    }
  }
  return {};
}

Status CpuEngine::Scheduler::sample(Sequence& sequence, const float* logits,
                                    kernels::SampledToken& token) const {
  const data::RolloutRequest& request = requests_[sequence.request];
  const data::SamplingParams& sampling = request.sampling;
  Result<kernels::SampledToken> sampled =
      kernels::sample_token({.logits_V = logits,
                             .v = model_.config().vocab_size,
                             .temperature = static_cast<float>(sampling.temperature),
                             .greedy = sampling.greedy,
                             .top_k = sampling.top_k,
                             .top_p = sampling.top_p,
                             .min_p = sampling.min_p,
                             .seed = request.rng_key,
                             .position = static_cast<uint32_t>(sequence.stream.tokens.size())});
  if (!sampled.ok()) return sampled.status().with_prefix(name_of(request.id));
  token = *sampled;
  return {};
}

Result<bool> CpuEngine::Scheduler::append(Sequence& sequence, const kernels::SampledToken& token) {
  sequence.stream.tokens.push_back(token.token);
  if (stats_.num_sampled_tokens++ == 0) stats_.first_token_seconds = stats_.seconds;
  return sequence.response.append(token.token, token.logprob, token.sampling_logprob);
}

void CpuEngine::Scheduler::settle(Sequence sequence, bool has_ended,
                                  std::vector<Sequence>& going_on) {
  if (has_ended) {
    finish(sequence);
  } else if (std::optional<ToolCall> call = sequence.response.take_call()) {
    const size_t request = sequence.request;
    calling_.emplace(request, std::move(sequence));
    engine_.tools_->start(request, std::move(*call));
  } else {
    going_on.push_back(std::move(sequence));
  }
}

Status CpuEngine::Scheduler::take_observations(bool waits) {
  const Clock::time_point start = Clock::now();
  constexpr int64_t kPatienceMs = 50;  // cancel is looked at in between
  for (ToolBox::Finished& answer : engine_.tools_->finished(waits ? kPatienceMs : 0)) {
    auto node = calling_.extract(static_cast<size_t>(answer.ticket));
    GRADUS_CHECK(!node.empty(), "an answer to a call");
    Sequence& sequence = node.mapped();
    Result<bool> ended = sequence.response.append_observation(answer.tool, answer.reply);
    if (!ended.ok()) return ended.status();
    const std::vector<int32_t>& token_ids = sequence.response.trajectory().token_ids;
    sequence.stream.tokens.insert(
        sequence.stream.tokens.end(),
        token_ids.begin() + static_cast<int64_t>(sequence.stream.tokens.size()), token_ids.end());
    if (*ended) {
      if (sequence.stream.pages.empty()) ++groups_[sequence.group].num_running;
      finish(sequence);
    } else if (sequence.stream.pages.empty()) {
      preempted_.push_back(std::move(sequence));
    } else {
      answered_.push_back(std::move(sequence));
    }
  }
  if (waits) stats_.tool_wait_seconds += seconds_since(start);
  return {};
}

void CpuEngine::Scheduler::finish(Sequence& sequence) {
  const int64_t length = sequence.response.num_tokens();
  if (length > stats_.longest_tokens) {
    stats_.longest_tokens = length;
    stats_.longest_seconds = seconds_since(start_) - sequence.started_seconds;
  }
  release(sequence.stream);
  Group& group = groups_[sequence.group];
  --group.num_running;
  if (--group.num_unfinished == 0) {
    release(group.prompt);
    group.first_logits = {};
  }
  ++num_finished_;
  sink_.finished(sequence.request, sequence.response.finish());
}

void CpuEngine::Scheduler::cancel_all() {
  std::vector<Sequence> rest = std::move(running_);
  for (Sequence& sequence : preempted_) {
    ++groups_[sequence.group].num_running;
    rest.push_back(std::move(sequence));
  }
  for (auto& [request, sequence] : calling_) {
    if (sequence.stream.pages.empty()) ++groups_[sequence.group].num_running;
    rest.push_back(std::move(sequence));
  }
  for (Sequence& sequence : answered_) rest.push_back(std::move(sequence));
  for (Sequence& sequence : rest) {
    sequence.response.cancel();
    finish(sequence);
  }
  for (Group& group : groups_) {
    for (; group.num_started < group.num_requests; ++group.num_started) {
      const size_t request = group.first_request + group.num_started;
      Response response(requests_[request], nullptr, model_.config(), policy_version_,
                        weights_hash_, nullptr);
      response.cancel();
      ++num_finished_;
      sink_.finished(request, response.finish());
    }
  }
}

Status CpuEngine::Scheduler::pass() {
  make_room_for_decoding();
  std::vector<PassEntry> entries;
  int64_t num_rows = 0;
  int64_t budget = engine_.options_.prefill_chunk_tokens;
  for (Sequence& sequence : running_) {
    // One token, or after a preemption what has to be computed again.
    const int64_t pending = sequence.stream.num_pending();
    const int64_t rows = pending == 1 ? 1 : std::min(pending, std::max<int64_t>(1, budget));
    if (pending > 1) budget -= rows;
    entries.push_back({&sequence.stream, num_rows, rows});
    num_rows += rows;
  }
  // Prompts are filled in order, ahead of need only while the batch is not full.
  std::vector<size_t> filled_groups;
  const auto fill = [&](size_t g) {
    Group& group = groups_[g];
    Stream& prompt = group.prompt;
    const int64_t wanted = std::min(prompt.num_pending(), budget);
    if (wanted <= 0) return false;
    while (!grow(prompt, prompt.num_cached + wanted)) {
      // A prompt of this very pass must keep its pages.
      if (filled_groups.empty() && drop_an_idle_prompt(&group)) continue;
      if (num_rows == 0 && drop_pages_of_a_caller()) continue;
      GRADUS_CHECK(num_rows > 0, "a single prompt fits, by validate_requests");
      return false;
    }
    entries.push_back({&prompt, num_rows, wanted});
    filled_groups.push_back(g);
    num_rows += wanted;
    budget -= wanted;
    return prompt.num_pending() == wanted;
  };
  if (!preempted_.empty()) {
    const size_t g = preempted_.front().group;
    if (!groups_[g].is_ready()) fill(g);
  } else {
    int64_t places = engine_.options_.max_batch - static_cast<int64_t>(running_.size());
    for (size_t g = next_prefill_; g < groups_.size() && places > 0 && budget > 0; ++g) {
      Group& group = groups_[g];
      const int64_t unstarted = static_cast<int64_t>(group.num_requests - group.num_started);
      if (unstarted > 0 && !group.is_ready() && !fill(g)) break;
      places -= unstarted;
    }
  }
  if (num_rows == 0 && !calling_.empty()) return take_observations(true);
  GRADUS_CHECK(num_rows > 0, "a pass without rows");

  std::vector<int32_t> token_ids, positions;
  std::vector<kernels::AttentionRun> runs;
  for (const PassEntry& entry : entries) {
    const Stream& stream = *entry.stream;
    for (int64_t i = 0; i < entry.num_rows; ++i) {
      token_ids.push_back(stream.tokens[static_cast<size_t>(stream.num_cached + i)]);
      positions.push_back(static_cast<int32_t>(stream.num_cached + i));
    }
    runs.push_back({entry.row_begin, entry.num_rows, stream.num_cached, stream.pages.data()});
  }
  const int64_t width = model_.config().hidden_size;
  hidden_.reserve(num_rows * width);
  model_.forward({token_ids, positions, runs, {}}, cache_, hidden_.data());
  ++stats_.num_passes;

  // Rows whose next token is wanted: the last of each stream that has no token left to compute.
  std::vector<Stream*> ends;
  std::vector<int64_t> end_rows;
  for (const PassEntry& entry : entries) {
    entry.stream->num_cached += entry.num_rows;
    if (entry.stream->num_pending() == 0) {
      ends.push_back(entry.stream);
      end_rows.push_back(entry.row_begin + entry.num_rows - 1);
    }
  }
  const int64_t num_ends = static_cast<int64_t>(ends.size());
  const int64_t padded_vocab = model_.padded_vocab_size();
  gathered_.reserve(num_ends * width);
  logits_.reserve(num_ends * padded_vocab);
  for (int64_t i = 0; i < num_ends; ++i) {
    std::copy_n(hidden_.data() + end_rows[static_cast<size_t>(i)] * width, width,
                gathered_.data() + i * width);
  }
  model_.head(gathered_.data(), num_ends, logits_.data());

  std::vector<size_t> sampled;  // of running_, in the order of `ends`
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i].stream.num_pending() == 0) sampled.push_back(i);
  }
  std::vector<kernels::SampledToken> tokens(sampled.size());
  std::vector<Status> statuses(sampled.size());
  parallel_for(static_cast<int64_t>(sampled.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const size_t index = static_cast<size_t>(i);
      statuses[index] =
          sample(running_[sampled[index]], logits_.data() + i * padded_vocab, tokens[index]);
    }
  });
  for (const Status& status : statuses) GRADUS_RETURN_IF_ERROR(status);
  int64_t prompt_row = static_cast<int64_t>(sampled.size());
  for (const size_t g : filled_groups) {
    Group& group = groups_[g];
    if (group.prompt.num_pending() > 0) continue;
    const float* row = logits_.data() + prompt_row++ * padded_vocab;
    group.first_logits.assign(row, row + padded_vocab);
    stats_.num_prompt_tokens += static_cast<int64_t>(group.prompt.tokens.size());
  }
  while (next_prefill_ < groups_.size() && groups_[next_prefill_].is_ready()) ++next_prefill_;

  std::vector<Sequence> going_on;
  size_t next = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = running_[i];
    if (next < sampled.size() && sampled[next] == i) {
      Result<bool> ended = append(sequence, tokens[next++]);
      if (!ended.ok()) return ended.status();
      settle(std::move(sequence), *ended, going_on);
    } else {
      going_on.push_back(std::move(sequence));
    }
  }
  running_ = std::move(going_on);
  return {};
}

Status CpuEngine::Scheduler::run(const std::atomic<bool>* cancel,
                                 const std::function<void(int64_t, int64_t)>& progress) {
  start_ = Clock::now();
  make_groups();
  const int64_t num_requests = static_cast<int64_t>(requests_.size());
  while (num_finished_ < num_requests) {
    if (cancel != nullptr && cancel->load()) {
      cancel_all();
      break;
    }
    stats_.seconds = seconds_since(start_);
    if (!calling_.empty()) GRADUS_RETURN_IF_ERROR(take_observations(false));
    GRADUS_RETURN_IF_ERROR(start_sequences());
    const size_t num_running = running_.size();
    if (num_finished_ < num_requests) GRADUS_RETURN_IF_ERROR(pass());
    account_slots(num_running, seconds_since(start_) - stats_.seconds);
    if (progress) progress(num_finished_, stats_.num_sampled_tokens);
  }
  stats_.seconds = seconds_since(start_);
  return {};
}

void CpuEngine::Scheduler::account_slots(size_t num_running, double seconds) {
  const size_t num_slots =
      std::min(requests_.size(), static_cast<size_t>(engine_.options_.max_batch));
  stats_.slot_seconds += static_cast<double>(num_slots) * seconds;
  // Groups are started in order, so the last one tells.
  const Group& last = groups_.back();
  if (last.num_started < last.num_requests || !preempted_.empty()) return;
  stats_.tail_idle_seconds += static_cast<double>(num_slots - num_running) * seconds;
}

}  // namespace gradus::rollout
