// SPDX-License-Identifier: Apache-2.0
#include "rollout/device_engine.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/lm_head.h"
#include "rollout/internal/response.h"

namespace gradus::rollout {
namespace {

using kernels::CudaBuffer;
using kernels::PinnedBuffer;
using Clock = std::chrono::steady_clock;

constexpr size_t kInFlight = 2;  // pieces of work that the host has not read the results of

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t pages_for(int64_t num_tokens) {
  return (num_tokens + kernels::kDevicePageTokens - 1) / kernels::kDevicePageTokens;
}

// Sizes of the batch that have a graph: small ones finely, large ones by 32.
int64_t batch_size_for(int64_t slots) {
  for (const int64_t size : {1, 2, 4, 8, 16, 24, 32, 48, 64}) {
    if (slots <= size) return size;
  }
  return (slots + 31) / 32 * 32;
}

int64_t power_of_two_for(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

// Host memory that is filled piece by piece and copied to the same place on the device in one go.
class Upload {
 public:
  Upload(PinnedBuffer host, CudaBuffer device)
      : host_(std::move(host)), device_(std::move(device)) {}
  void clear() { used_ = 0; }
  // Where `count` numbers are on the device; *host is where to write them.
  template <class T>
  T* take(int64_t count, T** host) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    GRADUS_CHECK(used_ + bytes <= host_.bytes(), fmt::format("{} + {}", used_, bytes));
    *host = reinterpret_cast<T*>(host_.as<uint8_t>() + used_);
    T* device = reinterpret_cast<T*>(device_.as<uint8_t>() + used_);
    used_ += bytes;
    return device;
  }
  Status send(const kernels::CudaStream& stream) {
    return used_ == 0 ? Status() : stream.copy(device_.data(), host_.as<uint8_t>(), used_);
  }

 private:
  PinnedBuffer host_;
  CudaBuffer device_;
  size_t used_ = 0;
};

struct Sequence {
  size_t request = 0, group = 0;
  Response response;
  std::vector<int32_t> shared_pages;  // the full ones of its prompt
  std::vector<int32_t> pages;         // its own, after them
  int32_t slot = -1;                  // while it has a place in the batch
  int64_t num_left = 0;  // tokens that are still to be enqueued, the first one among them
  int64_t length = 0;    // prompt and tokens enqueued
  bool is_finished = false;
  double started_seconds = 0;
};

// Neighbouring requests with one prompt.
struct Group {
  size_t first_request = 0, num_requests = 0, num_started = 0;
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;  // until all have started
  int64_t num_cached = 0;
  int32_t hidden_row = -1;  // where the hidden state of the prompt's end is, once it is computed
  std::vector<Sequence*> planned;  // have pages, and start when the prompt is computed
  int64_t num_full_pages() const {
    return static_cast<int64_t>(tokens.size()) / kernels::kDevicePageTokens;
  }
};

// Work enqueued, whose sampled tokens the host has not read.
struct Work {
  std::vector<Sequence*> sequences;  // by result; null: none
  size_t buffer = 0;
};

}  // namespace

struct DeviceEngine::State {
  model::DeviceTransformer* transformer;
  const data::Tokenizer* tokenizer;
  EngineOptions options;
  EngineStats stats;
  std::optional<model::DeviceKvCache> cache;  // none between release_cache() and the next run
  int64_t num_pages;
  kernels::CudaStream stream;
  int64_t table_stride, max_chunks;

  // The places of the batch, and what a step writes. One buffer each, [max_batch].
  CudaBuffer tokens, positions, rows, tables, arrivals, partial, hidden, workspace, results;
  // Hidden states of prompts, of sequences that start, and how those draw.
  CudaBuffer held, start_hidden, start_results;
  std::vector<Upload> uploads;
  std::vector<PinnedBuffer> outcomes;
  std::vector<kernels::CudaEvent> events;
  std::map<std::tuple<int64_t, int64_t, bool>, kernels::CudaGraph> graphs;

  kernels::SlotState slots() const {
    return {tokens.as<int32_t>(), positions.as<int32_t>(), rows.as<kernels::LmHeadRow>()};
  }
  size_t result_bytes() const { return static_cast<size_t>(options.max_batch) * 12; }

  Status draw(int64_t count, const void* h, const kernels::LmHeadRow* draws, bool filters,
              const CudaBuffer& out) const;
  Status enqueue_step(int64_t batch, int64_t chunks, bool filters);
  Status step(int64_t batch, int64_t chunks, bool filters);
};

// Tokens of `count` hidden rows, and their log-probs, to `out`: [3, max_batch].
Status DeviceEngine::State::draw(int64_t count, const void* h, const kernels::LmHeadRow* draws,
                                 bool filters, const CudaBuffer& out) const {
  const model::ModelConfig& config = transformer->config();
  auto* numbers = out.as<float>();
  return kernels::lm_head_sample(transformer->cuda(),
                                 {.w_VD = transformer->head(),
                                  .h_BD = h,
                                  .rows_B = draws,
                                  .b = count,
                                  .v = config.vocab_size,
                                  .d = config.hidden_size,
                                  .filters = filters,
                                  .token_B = out.as<int32_t>(),
                                  .logprob_B = numbers + options.max_batch,
                                  .sampling_logprob_B = numbers + 2 * options.max_batch,
                                  .workspace = workspace.data(),
                                  .workspace_bytes = workspace.bytes(),
                                  .workspace_rows = options.max_batch,
                                  .stream = stream.get()});
}

Status DeviceEngine::State::enqueue_step(int64_t batch, int64_t chunks, bool filters) {
  const kernels::SlotState state = slots();
  GRADUS_RETURN_IF_ERROR(transformer->forward({.num_rows = batch,
                                               .token_ids = state.tokens,
                                               .positions = state.positions,
                                               .tables = tables.as<int32_t>(),
                                               .table_stride = table_stride,
                                               .max_chunks = chunks,
                                               .arrivals = arrivals.as<uint32_t>(),
                                               .partial = partial.as<float>()},
                                              *cache, stream.get()));
  GRADUS_RETURN_IF_ERROR(transformer->final_norm(nullptr, batch, hidden.data(), stream.get()));
  GRADUS_RETURN_IF_ERROR(draw(batch, hidden.data(), state.rows, filters, results));
  return kernels::device_advance_slots(transformer->cuda(), state, results.as<int32_t>(), batch,
                                       stream.get());
}

Status DeviceEngine::State::step(int64_t batch, int64_t chunks, bool filters) {
  const auto key = std::tuple(batch, chunks, filters);
  auto found = graphs.find(key);
  if (found == graphs.end()) {
    Result<kernels::CudaGraph> graph = kernels::CudaGraph::record(
        transformer->cuda(), stream, [&] { return enqueue_step(batch, chunks, filters); });
    if (!graph.ok()) return graph.status();
    found = graphs.emplace(key, std::move(*graph)).first;
  }
  return found->second.launch(stream);
}

DeviceEngine::DeviceEngine(std::unique_ptr<State> state) : state_(std::move(state)) {}
DeviceEngine::~DeviceEngine() = default;

const EngineStats& DeviceEngine::stats() const { return state_->stats; }

void DeviceEngine::release_cache() {
  // An error of the device comes back from whatever is asked of it next.
  static_cast<void>(state_->stream.synchronize());
  state_->graphs.clear();
  state_->cache.reset();
}

Result<std::unique_ptr<DeviceEngine>> DeviceEngine::create(model::DeviceTransformer& transformer,
                                                           const data::Tokenizer* tokenizer,
                                                           EngineOptions options) {
  const kernels::Cuda& cuda = transformer.cuda();
  const model::ModelConfig& config = transformer.config();
  GRADUS_CHECK(options.max_batch >= 1 && options.prefill_chunk_tokens >= 1, "engine options");
  if (options.max_batch > kernels::kLmHeadMaxRows) {
    return invalid_argument("device cuda: max_batch must be at most {}, got {}",
                            kernels::kLmHeadMaxRows, options.max_batch);
  }
  options.max_batch = batch_size_for(options.max_batch);  // the largest graph serves all
  const int64_t batch = options.max_batch;
  const int64_t num_pages =
      std::max<int64_t>(1, options.kv_cache_bytes / model::DeviceKvCache::bytes_per_page(config));
  Result<model::DeviceKvCache> cache = model::DeviceKvCache::create(cuda, config, num_pages);
  if (!cache.ok()) return cache.status();
  Result<kernels::CudaStream> stream = kernels::CudaStream::create(cuda);
  if (!stream.ok()) return stream.status();
  const int64_t table_stride = std::min(pages_for(config.max_position_embeddings), num_pages);
  const int64_t max_tokens = table_stride * kernels::kDevicePageTokens;
  const int64_t max_chunks = power_of_two_for((max_tokens + kernels::kDeviceChunkTokens - 1) /
                                              kernels::kDeviceChunkTokens);
  const int64_t rows = std::max(batch, options.prefill_chunk_tokens);
  GRADUS_RETURN_IF_ERROR(transformer.reserve(rows, max_tokens));

  Status status;
  const auto take = [&](int64_t bytes, uint8_t byte = 0) {
    Result<CudaBuffer> buffer = CudaBuffer::allocate(cuda, static_cast<size_t>(bytes));
    if (buffer.ok() && status.ok()) status = buffer->fill(byte);
    if (!buffer.ok() && status.ok()) status = buffer.status().with_prefix("the engine");
    return buffer;
  };
  const int64_t width_bytes = config.hidden_size * 2;
  const int64_t workspace_bytes =
      static_cast<int64_t>(kernels::lm_head_sample_workspace_bytes(cuda, batch, config.vocab_size));
  const int64_t partial_bytes = max_chunks == 1
                                    ? 0
                                    : 4 * kernels::attention_partial_floats(
                                              batch, config.num_heads, config.head_dim, max_chunks);
  const int64_t row_bytes = batch * static_cast<int64_t>(sizeof(kernels::LmHeadRow));
  auto tokens = take(batch * 4), positions = take(batch * 4, 0xFF), draws = take(row_bytes),
       tables = take(batch * table_stride * 4), arrivals = take(batch * config.num_kv_heads * 4),
       partial = take(partial_bytes), hidden = take(batch * width_bytes),
       workspace = take(workspace_bytes), results = take(batch * 12),
       held = take(2 * batch * width_bytes), start_hidden = take(batch * width_bytes),
       start_results = take(batch * 12);
  GRADUS_RETURN_IF_ERROR(status);
  std::unique_ptr<State> state(new State{.transformer = &transformer,
                                         .tokenizer = tokenizer,
                                         .options = options,
                                         .stats = {},
                                         .cache = std::move(*cache),
                                         .num_pages = num_pages,
                                         .stream = std::move(*stream),
                                         .table_stride = table_stride,
                                         .max_chunks = max_chunks,
                                         .tokens = std::move(*tokens),
                                         .positions = std::move(*positions),
                                         .rows = std::move(*draws),
                                         .tables = std::move(*tables),
                                         .arrivals = std::move(*arrivals),
                                         .partial = std::move(*partial),
                                         .hidden = std::move(*hidden),
                                         .workspace = std::move(*workspace),
                                         .results = std::move(*results),
                                         .held = std::move(*held),
                                         .start_hidden = std::move(*start_hidden),
                                         .start_results = std::move(*start_results),
                                         .uploads = {},
                                         .outcomes = {},
                                         .events = {},
                                         .graphs = {}});
  // A piece of work: prefill rows, tables of their prompts and of the places that start, the rest.
  const int64_t upload_bytes =
      rows * (12 + static_cast<int64_t>(sizeof(kernels::AttentionTile))) +
      2 * batch * table_stride * 4 +
      3 * batch *
          static_cast<int64_t>(sizeof(kernels::SlotStart) + sizeof(kernels::LmHeadRow) +
                               sizeof(kernels::PageCopy) + 16) +
      32 * 256;
  for (size_t i = 0; i < kInFlight + 1; ++i) {
    Result<PinnedBuffer> host = PinnedBuffer::allocate(cuda, static_cast<size_t>(upload_bytes));
    if (!host.ok()) return host.status();
    Result<CudaBuffer> device = CudaBuffer::allocate(cuda, static_cast<size_t>(upload_bytes));
    if (!device.ok()) return device.status();
    Result<PinnedBuffer> outcome = PinnedBuffer::allocate(cuda, state->result_bytes());
    if (!outcome.ok()) return outcome.status();
    Result<kernels::CudaEvent> event = kernels::CudaEvent::create(cuda);
    if (!event.ok()) return event.status();
    state->uploads.emplace_back(std::move(*host), std::move(*device));
    state->outcomes.push_back(std::move(*outcome));
    state->events.push_back(std::move(*event));
  }
  return std::unique_ptr<DeviceEngine>(new DeviceEngine(std::move(state)));
}

// One run() of the engine.
class DeviceEngine::Scheduler {
 public:
  Scheduler(State& state, std::span<const data::RolloutRequest> requests, uint64_t policy_version,
            uint64_t weights_hash, TrajectorySink& sink)
      : s_(state),
        config_(state.transformer->config()),
        pool_(state.cache->pool()),
        requests_(requests),
        policy_version_(policy_version),
        weights_hash_(weights_hash),
        sink_(sink),
        slots_(static_cast<size_t>(state.options.max_batch)) {}

  Status run(const std::atomic<bool>* cancel,
             const std::function<void(int64_t, int64_t)>& progress);
  const EngineStats& stats() const { return stats_; }

 private:
  struct PrefillEntry {
    Group* group;
    int64_t num_tokens;
  };

  void make_groups();
  kernels::LmHeadRow draw_of(const Sequence& sequence, int64_t position) const;
  int64_t num_free_slots() const { return static_cast<int64_t>(slots_.size()) - num_taken_; }
  // One whose prompt is not complete has a place, but is not there yet for the device.
  bool is_running(const Sequence& sequence) const {
    return sequence.length > static_cast<int64_t>(groups_[sequence.group].tokens.size());
  }
  Status plan(size_t group_index);
  Status admit(bool& did_something);
  Status enqueue_step(bool& did_something);
  void free_slot(Sequence& sequence);
  void move_to_front(std::vector<kernels::SlotStart>& changes);
  Status read_oldest();
  Status finish(Sequence& sequence);
  Status cancel_all();
  size_t next_buffer();
  Status send_outcome(const CudaBuffer& results, Work work);
  void account(double seconds);

  State& s_;
  const model::ModelConfig& config_;
  model::PagePool& pool_;
  std::span<const data::RolloutRequest> requests_;
  uint64_t policy_version_, weights_hash_;
  TrajectorySink& sink_;
  std::vector<Sequence*> slots_;
  int64_t num_taken_ = 0;
  std::set<int32_t> emptied_;  // places that the device still takes for occupied
  std::deque<Group> groups_;
  std::deque<Sequence> sequences_;
  size_t next_group_ = 0;  // groups before it have started all their requests
  std::deque<Work> in_flight_;
  size_t num_buffers_used_ = 0;
  int64_t num_held_ = 0;  // passes that left hidden rows of prompts
  bool filters_ = false;
  int64_t num_finished_ = 0;
  EngineStats stats_;
  Clock::time_point start_ = Clock::now();
};

void DeviceEngine::Scheduler::make_groups() {
  for (size_t i = 0; i < requests_.size(); ++i) {
    const data::RolloutRequest& request = requests_[i];
    const data::SamplingParams& sampling = request.sampling;
    filters_ = filters_ || (!sampling.greedy &&
                            (sampling.top_k > 0 || sampling.top_p < 1 || sampling.min_p > 0));
    // A response that goes on has tokens of its own, which are computed like a prompt.
    const bool goes_on = !request.begun.token_ids.empty();
    if (i == 0 || goes_on || request.id.prompt_id != requests_[i - 1].id.prompt_id ||
        request.token_ids != groups_.back().tokens) {
      groups_.emplace_back();
      groups_.back().first_request = i;
      groups_.back().tokens = goes_on ? request.begun.token_ids : request.token_ids;
    }
    ++groups_.back().num_requests;
  }
}

kernels::LmHeadRow DeviceEngine::Scheduler::draw_of(const Sequence& sequence,
                                                    int64_t position) const {
  const data::RolloutRequest& request = requests_[sequence.request];
  const data::SamplingParams& sampling = request.sampling;
  return {.top_p = sampling.top_p,
          .min_p = sampling.min_p,
          .seed = request.rng_key,
          .temperature = sampling.greedy ? 0.0f : static_cast<float>(sampling.temperature),
          .position = static_cast<uint32_t>(position),
          .top_k = static_cast<int32_t>(std::min<int64_t>(sampling.top_k, config_.vocab_size))};
}

// The oldest buffers are free: work is read in order, and no more of it is in flight than there are
// buffers.
size_t DeviceEngine::Scheduler::next_buffer() {
  const size_t buffer = num_buffers_used_++ % s_.uploads.size();
  s_.uploads[buffer].clear();
  return buffer;
}

// Takes places and pages for requests of the group that have none, as many as there are.
Status DeviceEngine::Scheduler::plan(size_t group_index) {
  Group& group = groups_[group_index];
  const int64_t prompt = static_cast<int64_t>(group.tokens.size());
  while (group.num_started < group.num_requests && num_free_slots() > 0) {
    const size_t request = group.first_request + group.num_started;
    Response response(requests_[request], s_.tokenizer, config_, policy_version_, weights_hash_,
                      nullptr);
    GRADUS_RETURN_IF_ERROR(response.begin());
    const int64_t num_left = response.num_left();
    // The last token is never computed.
    const int64_t own_pages =
        num_left == 1 ? 0 : pages_for(prompt + num_left - 1) - group.num_full_pages();
    const int64_t prompt_pages = group.pages.empty() ? pages_for(prompt) : 0;
    if (own_pages + prompt_pages > pool_.num_free()) break;
    for (int64_t i = 0; i < prompt_pages; ++i) group.pages.push_back(pool_.take());
    sequences_.push_back(
        {.request = request, .group = group_index, .response = std::move(response)});
    Sequence& sequence = sequences_.back();
    sequence.num_left = num_left;
    sequence.length = prompt;
    for (int64_t i = 0; i < own_pages; ++i) sequence.pages.push_back(pool_.take());
    for (int64_t i = 0; own_pages > 0 && i < group.num_full_pages(); ++i) {
      sequence.shared_pages.push_back(group.pages[static_cast<size_t>(i)]);
      pool_.share(sequence.shared_pages.back());
    }
    const auto free_place = std::find(slots_.begin(), slots_.end(), nullptr);
    sequence.slot = static_cast<int32_t>(free_place - slots_.begin());
    *free_place = &sequence;
    ++num_taken_;
    ++group.num_started;
    group.planned.push_back(&sequence);
  }
  return {};
}

// Plans what there is room for and enqueues one pass of prompts, with the first tokens of those
// that are then complete.
Status DeviceEngine::Scheduler::admit(bool& did_something) {
  std::vector<PrefillEntry> entries;
  std::vector<Group*> ready;
  int64_t budget = s_.options.prefill_chunk_tokens;
  for (size_t g = next_group_; g < groups_.size() && budget > 0; ++g) {
    Group& group = groups_[g];
    GRADUS_RETURN_IF_ERROR(plan(g));
    if (group.planned.empty()) break;
    const int64_t pending = static_cast<int64_t>(group.tokens.size()) - group.num_cached;
    const int64_t count = std::min(pending, budget);
    if (count > 0) entries.push_back({&group, count});
    budget -= count;
    group.num_cached += count;
    if (count < pending) break;
    ready.push_back(&group);
    if (group.num_started < group.num_requests) break;
    next_group_ = g + 1;
  }
  if (entries.empty() && ready.empty()) return {};
  did_something = true;
  const size_t buffer = next_buffer();
  Upload& upload = s_.uploads[buffer];
  int64_t num_rows = 0;
  for (const PrefillEntry& entry : entries) num_rows += entry.num_tokens;
  const int64_t num_entries = static_cast<int64_t>(entries.size());

  // Prompts.
  int32_t *tokens = nullptr, *positions = nullptr, *table_rows = nullptr, *tables = nullptr,
          *ends = nullptr;
  kernels::AttentionTile* tiles = nullptr;
  std::vector<kernels::AttentionTile> tile_list;
  const int32_t* tokens_at = upload.take(num_rows, &tokens);
  const int32_t* positions_at = upload.take(num_rows, &positions);
  const int32_t* table_rows_at = upload.take(num_rows, &table_rows);
  int64_t row = 0, stride = 1;
  for (const PrefillEntry& entry : entries) {
    stride = std::max(stride, static_cast<int64_t>(entry.group->pages.size()));
  }
  const int32_t* tables_at = upload.take(num_entries * stride, &tables);
  // A group that began in an earlier pass may still start from its hidden row, so halves alternate.
  const int64_t held_half = num_held_ % 2;
  std::vector<int32_t> end_rows;
  for (int64_t i = 0; i < num_entries; ++i) {
    Group& group = *entries[static_cast<size_t>(i)].group;
    const int64_t count = entries[static_cast<size_t>(i)].num_tokens;
    const int64_t first = group.num_cached - count;
    model::add_tiles(tile_list, row, count, first, i);
    std::copy(group.pages.begin(), group.pages.end(), tables + i * stride);
    std::fill(tables + i * stride + group.pages.size(), tables + (i + 1) * stride,
              group.pages.front());
    for (int64_t j = 0; j < count; ++j, ++row) {
      tokens[row] = group.tokens[static_cast<size_t>(first + j)];
      positions[row] = static_cast<int32_t>(first + j);
      table_rows[row] = static_cast<int32_t>(i);
    }
    if (group.num_cached == static_cast<int64_t>(group.tokens.size())) {
      group.hidden_row = static_cast<int32_t>(held_half * s_.options.max_batch) +
                         static_cast<int32_t>(end_rows.size());
      end_rows.push_back(static_cast<int32_t>(row - 1));
      stats_.num_prompt_tokens += static_cast<int64_t>(group.tokens.size());
    }
  }
  const int64_t num_tiles = static_cast<int64_t>(tile_list.size());
  const kernels::AttentionTile* tiles_at = upload.take(num_tiles, &tiles);
  std::copy(tile_list.begin(), tile_list.end(), tiles);
  const int64_t num_ends = static_cast<int64_t>(end_rows.size());
  const int32_t* ends_at = upload.take(num_ends, &ends);
  std::copy(end_rows.begin(), end_rows.end(), ends);

  // First tokens. Places that were emptied are told first: one of them may be taken again.
  std::vector<Sequence*> starting;
  std::vector<kernels::PageCopy> copies;
  for (Group* group : ready) {
    for (Sequence* sequence : group->planned) starting.push_back(sequence);
  }
  const int64_t num_starting = static_cast<int64_t>(starting.size());
  int32_t* hidden_rows = nullptr;
  kernels::LmHeadRow* draws = nullptr;
  const int32_t* hidden_rows_at = upload.take(num_starting, &hidden_rows);
  const kernels::LmHeadRow* draws_at = upload.take(num_starting, &draws);
  std::vector<kernels::SlotStart> changes;
  for (const int32_t slot : emptied_)
    changes.push_back({.slot = slot, .token = -1, .position = -1});
  const int64_t num_changes_before = static_cast<int64_t>(changes.size());
  emptied_.clear();
  for (int64_t i = 0; i < num_starting; ++i) {
    Sequence& sequence = *starting[static_cast<size_t>(i)];
    Group& group = groups_[sequence.group];
    hidden_rows[i] = group.hidden_row;
    draws[i] = draw_of(sequence, sequence.length);
    const bool goes_on = --sequence.num_left > 0;
    ++sequence.length;
    sequence.started_seconds = seconds_since(start_);
    if (!goes_on) continue;
    if (static_cast<int64_t>(group.pages.size()) > group.num_full_pages()) {
      copies.push_back({group.pages.back(), sequence.pages.front()});
    }
    changes.push_back({.slot = sequence.slot,
                       .token = static_cast<int32_t>(i),
                       .position = static_cast<int32_t>(sequence.length - 1),
                       .row = draw_of(sequence, sequence.length)});
  }
  const int64_t num_changes = static_cast<int64_t>(changes.size());
  kernels::SlotStart* change_list = nullptr;
  int32_t* new_tables = nullptr;
  kernels::PageCopy* copy_list = nullptr;
  const kernels::SlotStart* changes_at = upload.take(num_changes, &change_list);
  std::copy(changes.begin(), changes.end(), change_list);
  // Row i of the new tables belongs to change i; those of emptied places are not read.
  const int32_t* new_tables_at =
      upload.take((num_changes - num_changes_before) * s_.table_stride, &new_tables);
  for (int64_t i = num_changes_before; i < num_changes; ++i) {
    const Sequence& sequence =
        *starting[static_cast<size_t>(changes[static_cast<size_t>(i)].token)];
    int32_t* table = new_tables + (i - num_changes_before) * s_.table_stride;
    int32_t* end = std::copy(sequence.shared_pages.begin(), sequence.shared_pages.end(), table);
    end = std::copy(sequence.pages.begin(), sequence.pages.end(), end);
    std::fill(end, table + s_.table_stride, sequence.pages.back());
  }
  const kernels::PageCopy* copies_at = upload.take(static_cast<int64_t>(copies.size()), &copy_list);
  std::copy(copies.begin(), copies.end(), copy_list);

  const kernels::Cuda& cuda = s_.transformer->cuda();
  GRADUS_RETURN_IF_ERROR(upload.send(s_.stream));
  if (num_rows > 0) {
    GRADUS_RETURN_IF_ERROR(s_.transformer->forward({.num_rows = num_rows,
                                                    .token_ids = tokens_at,
                                                    .positions = positions_at,
                                                    .table_rows = table_rows_at,
                                                    .tables = tables_at,
                                                    .table_stride = stride,
                                                    .tiles = tiles_at,
                                                    .num_tiles = num_tiles},
                                                   *s_.cache, s_.stream.get()));
    ++stats_.num_passes;
  }
  if (num_ends > 0) {
    ++num_held_;
    uint8_t* held =
        s_.held.as<uint8_t>() + held_half * s_.options.max_batch * config_.hidden_size * 2;
    GRADUS_RETURN_IF_ERROR(s_.transformer->final_norm(ends_at, num_ends, held, s_.stream.get()));
  }
  if (num_starting > 0) {
    GRADUS_RETURN_IF_ERROR(kernels::device_copy_rows(cuda, s_.held.data(), hidden_rows_at,
                                                     s_.start_hidden.data(), num_starting,
                                                     config_.hidden_size * 2, s_.stream.get()));
    GRADUS_RETURN_IF_ERROR(
        s_.draw(num_starting, s_.start_hidden.data(), draws_at, filters_, s_.start_results));
    GRADUS_RETURN_IF_ERROR(kernels::device_copy_pages(
        cuda, s_.cache->data(), copies_at, static_cast<int64_t>(copies.size()),
        s_.cache->page_bytes(), config_.num_layers, s_.cache->layer_bytes(), s_.stream.get()));
  }
  GRADUS_RETURN_IF_ERROR(kernels::device_start_slots(
      cuda, s_.slots(), changes_at, num_changes, s_.start_results.as<int32_t>(),
      s_.tables.as<int32_t>(), new_tables_at - num_changes_before * s_.table_stride,
      s_.table_stride, s_.stream.get()));
  GRADUS_RETURN_IF_ERROR(send_outcome(s_.start_results, {starting, buffer}));
  for (Group* group : ready) {
    group->planned.clear();
    if (group->num_started < group->num_requests) continue;
    for (const int32_t page : group->pages) pool_.release(page);
    group->pages.clear();
  }
  for (Sequence* sequence : starting) {
    if (sequence->num_left == 0) free_slot(*sequence);
  }
  return {};
}

Status DeviceEngine::Scheduler::send_outcome(const CudaBuffer& results, Work work) {
  GRADUS_RETURN_IF_ERROR(
      s_.stream.copy(s_.outcomes[work.buffer].as<uint8_t>(), results.data(), s_.result_bytes()));
  GRADUS_RETURN_IF_ERROR(s_.events[work.buffer].record(s_.stream));
  in_flight_.push_back(std::move(work));
  return {};
}

// The sequence leaves its place and its pages. What was enqueued before still runs on them, and
// whoever gets them next is enqueued after.
void DeviceEngine::Scheduler::free_slot(Sequence& sequence) {
  if (sequence.slot < 0) return;
  slots_[static_cast<size_t>(sequence.slot)] = nullptr;
  emptied_.insert(sequence.slot);
  sequence.slot = -1;
  --num_taken_;
}

// Moves the last places into gaps if a smaller graph then serves.
void DeviceEngine::Scheduler::move_to_front(std::vector<kernels::SlotStart>& changes) {
  int64_t end = static_cast<int64_t>(slots_.size());
  while (end > 0 && slots_[static_cast<size_t>(end - 1)] == nullptr) --end;
  if (batch_size_for(num_taken_) >= batch_size_for(end)) return;
  for (int64_t gap = 0; end > num_taken_;) {
    while (slots_[static_cast<size_t>(gap)] != nullptr) ++gap;
    Sequence* last = slots_[static_cast<size_t>(--end)];
    if (last == nullptr) continue;
    slots_[static_cast<size_t>(gap)] = last;
    slots_[static_cast<size_t>(end)] = nullptr;
    last->slot = static_cast<int32_t>(gap);
    changes.push_back(
        {.slot = last->slot, .token = -1, .position = 0, .from = static_cast<int32_t>(end)});
  }
}

Status DeviceEngine::Scheduler::enqueue_step(bool& did_something) {
  const auto runs_here = [&](const Sequence* sequence) {
    return sequence != nullptr && is_running(*sequence);
  };
  if (std::none_of(slots_.begin(), slots_.end(), runs_here)) return {};
  std::vector<Sequence*> stepped;
  std::vector<kernels::SlotStart> changes;
  for (const int32_t slot : emptied_)
    changes.push_back({.slot = slot, .token = -1, .position = -1});
  emptied_.clear();
  move_to_front(changes);
  int64_t end = 0, longest = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    Sequence* sequence = slots_[i];
    stepped.push_back(runs_here(sequence) ? sequence : nullptr);
    if (stepped.back() == nullptr) continue;
    end = static_cast<int64_t>(i) + 1;
    longest = std::max(longest, sequence->length);
  }
  const size_t buffer = next_buffer();
  Upload& upload = s_.uploads[buffer];
  if (!changes.empty()) {
    kernels::SlotStart* list = nullptr;
    const kernels::SlotStart* changes_at = upload.take(static_cast<int64_t>(changes.size()), &list);
    std::copy(changes.begin(), changes.end(), list);
    GRADUS_RETURN_IF_ERROR(upload.send(s_.stream));
    GRADUS_RETURN_IF_ERROR(kernels::device_start_slots(
        s_.transformer->cuda(), s_.slots(), changes_at, static_cast<int64_t>(changes.size()),
        nullptr, s_.tables.as<int32_t>(), nullptr, s_.table_stride, s_.stream.get()));
  }
  did_something = true;
  const int64_t chunks = std::min(
      s_.max_chunks,
      power_of_two_for((longest + kernels::kDeviceChunkTokens - 1) / kernels::kDeviceChunkTokens));
  GRADUS_RETURN_IF_ERROR(s_.step(batch_size_for(end), chunks, filters_));
  ++stats_.num_passes;
  stepped.resize(static_cast<size_t>(end));
  GRADUS_RETURN_IF_ERROR(send_outcome(s_.results, {stepped, buffer}));
  for (Sequence* sequence : stepped) {
    if (sequence == nullptr) continue;
    ++sequence->length;
    if (--sequence->num_left == 0) free_slot(*sequence);
  }
  return {};
}

Status DeviceEngine::Scheduler::finish(Sequence& sequence) {
  sequence.is_finished = true;
  free_slot(sequence);
  for (const int32_t page : sequence.pages) pool_.release(page);
  for (const int32_t page : sequence.shared_pages) pool_.release(page);
  const int64_t length = sequence.response.num_tokens();
  if (length > stats_.longest_tokens) {
    stats_.longest_tokens = length;
    stats_.longest_seconds = seconds_since(start_) - sequence.started_seconds;
  }
  ++num_finished_;
  sink_.finished(sequence.request, sequence.response.finish());
  return {};
}

Status DeviceEngine::Scheduler::read_oldest() {
  const Work work = std::move(in_flight_.front());
  in_flight_.pop_front();
  GRADUS_RETURN_IF_ERROR(s_.events[work.buffer].wait());
  const int64_t batch = s_.options.max_batch;
  const auto* tokens = s_.outcomes[work.buffer].as<int32_t>();
  const auto* numbers = s_.outcomes[work.buffer].as<float>();
  for (size_t i = 0; i < work.sequences.size(); ++i) {
    Sequence* sequence = work.sequences[i];
    if (sequence == nullptr || sequence->is_finished) continue;
    if (tokens[i] < 0) {
      return data_loss("{}: the model's logits are not finite; its weights are broken",
                       name_of(sequence->response.request().id));
    }
    if (stats_.num_sampled_tokens++ == 0) stats_.first_token_seconds = seconds_since(start_);
    const Result<bool> ended =
        sequence->response.append(tokens[i], numbers[batch + static_cast<int64_t>(i)],
                                  numbers[2 * batch + static_cast<int64_t>(i)]);
    if (!ended.ok()) return ended.status();
    if (*ended) GRADUS_RETURN_IF_ERROR(finish(*sequence));
  }
  return {};
}

Status DeviceEngine::Scheduler::cancel_all() {
  GRADUS_RETURN_IF_ERROR(s_.stream.synchronize());
  in_flight_.clear();
  for (Sequence& sequence : sequences_) {
    if (sequence.is_finished) continue;
    sequence.response.cancel();
    GRADUS_RETURN_IF_ERROR(finish(sequence));
  }
  for (Group& group : groups_) {
    for (; group.num_started < group.num_requests; ++group.num_started) {
      const size_t request = group.first_request + group.num_started;
      Response response(requests_[request], nullptr, config_, policy_version_, weights_hash_,
                        nullptr);
      response.cancel();
      ++num_finished_;
      sink_.finished(request, response.finish());
    }
  }
  return {};
}

void DeviceEngine::Scheduler::account(double seconds) {
  const int64_t num_slots =
      std::min(static_cast<int64_t>(requests_.size()), static_cast<int64_t>(slots_.size()));
  stats_.slot_seconds += static_cast<double>(num_slots) * seconds;
  if (next_group_ < groups_.size()) return;
  stats_.tail_idle_seconds +=
      static_cast<double>(std::max<int64_t>(0, num_slots - num_taken_)) * seconds;
}

Status DeviceEngine::Scheduler::run(const std::atomic<bool>* cancel,
                                    const std::function<void(int64_t, int64_t)>& progress) {
  make_groups();
  for (size_t i = 0; i < slots_.size(); ++i) emptied_.insert(static_cast<int32_t>(i));
  const int64_t num_requests = static_cast<int64_t>(requests_.size());
  while (num_finished_ < num_requests) {
    if (cancel != nullptr && cancel->load()) {
      GRADUS_RETURN_IF_ERROR(cancel_all());
      break;
    }
    const double before = seconds_since(start_);
    bool did_something = false;
    GRADUS_RETURN_IF_ERROR(admit(did_something));
    // While prompts wait that there is room for, they come first: a fuller batch costs no more.
    if (!did_something) GRADUS_RETURN_IF_ERROR(enqueue_step(did_something));
    GRADUS_CHECK(did_something || !in_flight_.empty(), "nothing runs and nothing can start");
    while (in_flight_.size() >= kInFlight || (!did_something && !in_flight_.empty())) {
      GRADUS_RETURN_IF_ERROR(read_oldest());
      did_something = true;
    }
    account(seconds_since(start_) - before);
    if (progress) progress(num_finished_, stats_.num_sampled_tokens);
  }
  GRADUS_RETURN_IF_ERROR(s_.stream.synchronize());
  stats_.seconds = seconds_since(start_);
  return {};
}

Status DeviceEngine::run(std::span<const data::RolloutRequest> requests, uint64_t policy_version,
                         uint64_t weights_hash, TrajectorySink& sink,
                         const std::atomic<bool>* cancel,
                         const std::function<void(int64_t, int64_t)>& progress) {
  State& state = *state_;
  GRADUS_RETURN_IF_ERROR(
      validate_requests(requests, state.transformer->config(), state.num_pages,
                        model::DeviceKvCache::bytes_per_page(state.transformer->config()),
                        state.tokenizer != nullptr, nullptr));
  if (!state.cache) {
    Result<model::DeviceKvCache> cache = model::DeviceKvCache::create(
        state.transformer->cuda(), state.transformer->config(), state.num_pages);
    if (!cache.ok()) return cache.status();
    state.cache = std::move(*cache);
  }
  state.cache->pool().clear();
  Scheduler scheduler(state, requests, policy_version, weights_hash, sink);
  const Status status = scheduler.run(cancel, progress);
  // Nothing may run on memory that is about to be released, nor into the next run.
  if (!status.ok()) static_cast<void>(state.stream.synchronize());
  state.stats = scheduler.stats();
  return status;
}

}  // namespace gradus::rollout
