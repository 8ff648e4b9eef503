// SPDX-License-Identifier: Apache-2.0
#include "model/device_training.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/device_product.h"
#include "kernels/lm_head.h"

namespace gradus::model {
namespace {

using kernels::CudaBuffer;

constexpr int64_t kBf16 = 2, kF32 = 4, kPage = kernels::kDevicePageTokens;

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t pages_for(int64_t num_tokens) { return (num_tokens + kPage - 1) / kPage; }

struct Columns {
  int64_t width, inner, q, kv, qkv;
  explicit Columns(const ModelConfig& config)
      : width(config.hidden_size),
        inner(config.intermediate_size),
        q(config.num_heads * config.head_dim),
        kv(config.num_kv_heads * config.head_dim),
        qkv(q + 2 * kv) {}
};

}  // namespace

// The rows of a pack in the device's order, prompts first and then responses, group by group, and
// everything that kernels are told about them, in one array of bytes.
struct DeviceTrainingPass::Order {
  int64_t num_rows = 0, num_first_rows = 0, num_targets = 0, num_pages = 0, longest = 0;
  int64_t table_stride = 0, num_copies = 0, num_tiles = 0, num_key_tiles = 0, num_tokens = 0;
  // Places in `bytes`.
  int64_t tokens = 0, positions = 0, table_rows = 0, tables = 0, copies = 0, tiles = 0;
  int64_t query_tiles = 0, key_tiles = 0, embed_tokens = 0, embed_begin = 0, embed_rows = 0;
  int64_t target_rows = 0, target_tokens = 0, temperatures = 0;
  std::vector<uint8_t> bytes;
  std::vector<int32_t> rows_of_targets, tokens_of_targets;

  Order(const data::Pack& pack, float temperature);
  template <class T>
  int64_t add(const std::vector<T>& values) {
    const size_t at = static_cast<size_t>(aligned(static_cast<int64_t>(bytes.size())));
    bytes.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes.data() + at, values.data(), values.size() * sizeof(T));
    return static_cast<int64_t>(at);
  }
};

DeviceTrainingPass::Order::Order(const data::Pack& pack, float temperature) {
  const size_t num_runs = pack.runs.size();
  num_rows = pack.num_rows();
  num_targets = static_cast<int64_t>(pack.targets.size());
  std::vector<int64_t> begin(num_runs);  // device row of each run
  int64_t next_row = 0;
  for (const bool is_prompt : {true, false}) {
    for (size_t r = 0; r < num_runs; ++r) {
      if ((pack.runs[r].prompt_run < 0) != is_prompt) continue;
      begin[r] = next_row;
      next_row += pack.runs[r].num_rows;
    }
    if (is_prompt) num_first_rows = next_row;
  }
  GRADUS_CHECK(next_row == num_rows, "runs cover all rows");
  for (const data::PackRun& run : pack.runs) {
    longest = std::max(longest, run.first_position + run.num_rows);
  }
  table_stride = pages_for(longest);
  const size_t stride = static_cast<size_t>(table_stride);

  std::vector<int32_t> token_ids(static_cast<size_t>(num_rows)), places(token_ids.size()),
      rows_table(token_ids.size()), page_tables(num_runs * stride, 0);
  std::vector<int32_t> device_row(token_ids.size());
  std::vector<kernels::PageCopy> page_copies;
  std::vector<kernels::AttentionTile> forward_tiles;
  std::vector<kernels::AttentionBackwardTile> backward_queries, backward_keys;
  int64_t prompt_of_group = -1;
  for (size_t r = 0; r < num_runs; ++r) {
    const data::PackRun& run = pack.runs[r];
    const int64_t end = begin[r] + run.num_rows;
    for (int64_t i = 0; i < run.num_rows; ++i) {
      const size_t from = static_cast<size_t>(run.row_begin + i);
      const size_t to = static_cast<size_t>(begin[r] + i);
      device_row[from] = static_cast<int32_t>(to);
      token_ids[to] = pack.token_ids[from];
      places[to] = pack.positions[from];
      rows_table[to] = static_cast<int32_t>(r);
    }
    int32_t* table = page_tables.data() + r * stride;
    const int64_t num_run_pages = pages_for(run.first_position + run.num_rows);
    int64_t shared = 0;
    kernels::AttentionBackwardTile tile = {.own_begin = static_cast<int32_t>(begin[r]),
                                           .own_end = static_cast<int32_t>(end)};
    if (run.prompt_run >= 0) {
      const size_t prompt = static_cast<size_t>(run.prompt_run);
      const int32_t* prompt_table = page_tables.data() + prompt * stride;
      shared = run.first_position / kPage;
      std::copy_n(prompt_table, shared, table);
      if (run.first_position % kPage != 0) {
        page_copies.push_back({prompt_table[shared], static_cast<int32_t>(num_pages)});
      }
      tile.other_begin = static_cast<int32_t>(begin[prompt]);
      tile.other_end = static_cast<int32_t>(begin[prompt] + pack.runs[prompt].num_rows);
    }
    for (int64_t page = shared; page < num_run_pages; ++page) {
      table[page] = static_cast<int32_t>(num_pages++);
    }
    add_tiles(forward_tiles, begin[r], run.num_rows, run.first_position, static_cast<int64_t>(r));
    kernels::AttentionBackwardTile key_tile = tile;
    key_tile.other_begin = key_tile.other_end = 0;
    if (run.prompt_run < 0) {
      prompt_of_group = static_cast<int64_t>(r);
      for (size_t other = r + 1; other < num_runs && pack.runs[other].prompt_run >= 0; ++other) {
        if (other == r + 1) key_tile.other_begin = static_cast<int32_t>(begin[other]);
        key_tile.other_end = static_cast<int32_t>(begin[other] + pack.runs[other].num_rows);
      }
    }
    GRADUS_CHECK(run.prompt_run < 0 || run.prompt_run == prompt_of_group,
                 "a group's responses follow its prompt");
    for (int64_t row = begin[r]; row < end; row += kPage) {
      for (auto* tiles_of : {&tile, &key_tile}) {
        tiles_of->row_begin = static_cast<int32_t>(row);
        tiles_of->num_rows = static_cast<int32_t>(std::min(kPage, end - row));
      }
      backward_queries.push_back(tile);
      backward_keys.push_back(key_tile);
    }
  }
  num_copies = static_cast<int64_t>(page_copies.size());
  num_tiles = static_cast<int64_t>(forward_tiles.size());
  num_key_tiles = static_cast<int64_t>(backward_keys.size());

  // Rows of each token, in order.
  std::vector<int32_t> by_token(token_ids.size()), distinct, first_of;
  std::iota(by_token.begin(), by_token.end(), 0);
  std::stable_sort(by_token.begin(), by_token.end(), [&](int32_t a, int32_t b) {
    return token_ids[static_cast<size_t>(a)] < token_ids[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < by_token.size(); ++i) {
    const int32_t token = token_ids[static_cast<size_t>(by_token[i])];
    if (!distinct.empty() && distinct.back() == token) continue;
    distinct.push_back(token);
    first_of.push_back(static_cast<int32_t>(i));
  }
  first_of.push_back(static_cast<int32_t>(by_token.size()));
  num_tokens = static_cast<int64_t>(distinct.size());
  for (const data::PackTarget& target : pack.targets) {
    rows_of_targets.push_back(device_row[static_cast<size_t>(target.row)]);
    tokens_of_targets.push_back(target.token);
  }
  tokens = add(token_ids);
  positions = add(places);
  table_rows = add(rows_table);
  tables = add(page_tables);
  copies = add(page_copies);
  tiles = add(forward_tiles);
  query_tiles = add(backward_queries);
  key_tiles = add(backward_keys);
  embed_tokens = add(distinct);
  embed_begin = add(first_of);
  embed_rows = add(by_token);
  target_rows = add(rows_of_targets);
  target_tokens = add(tokens_of_targets);
  temperatures = add(std::vector<float>(pack.targets.size(), temperature));
}

// Where things are in the memory of a pass, bytes.
struct DeviceTrainingPass::Places {
  // Of one layer, from its beginning.
  int64_t raw_qkv = 0, attention = 0, lse = 0, middle = 0, gate_up = 0, layer_size = 0;
  int64_t inputs = 0, input_size = 0, layers = 0, num_kept_layers = 0;
  int64_t final_stream = 0, normed = 0, qkv = 0, inner = 0, pages = 0;
  int64_t hidden = 0, scores = 0, score_workspace = 0;
  // Of the backward.
  int64_t dx = 0, dy = 0, dqkv = 0, dnormed = 0, dattention = 0, delta = 0, partial = 0;
  int64_t dhidden = 0, active = 0, head_workspace = 0;
  int64_t size = 0;

  Places(const ModelConfig& config, int64_t rows, int64_t targets, int64_t num_pages,
         bool checkpointing, bool keep, int64_t score_workspace_bytes,
         int64_t head_workspace_bytes) {
    const Columns columns(config);
    const auto take = [](int64_t& next, int64_t bytes) {
      return std::exchange(next, next + aligned(bytes));
    };
    raw_qkv = take(layer_size, rows * columns.qkv * kBf16);
    attention = take(layer_size, rows * columns.q * kBf16);
    lse = take(layer_size, rows * config.num_heads * kF32);
    middle = take(layer_size, rows * columns.width * kF32);
    gate_up = take(layer_size, 2 * rows * columns.inner * kBf16);
    input_size = aligned(rows * columns.width * kF32);
    num_kept_layers = keep && !checkpointing ? config.num_layers : 1;
    inputs = take(size, (keep ? config.num_layers : 1) * input_size);
    layers = take(size, num_kept_layers * layer_size);
    final_stream = take(size, input_size);
    normed = take(size, rows * columns.width * kBf16);
    qkv = take(size, rows * columns.qkv * kBf16);
    inner = take(size, rows * columns.inner * kBf16);
    pages = take(size, num_pages * 2 * columns.kv * kPage * kBf16);
    hidden = take(size, targets * columns.width * kBf16);
    scores = take(size, 3 * targets * kF32);
    score_workspace = take(size, score_workspace_bytes);
    if (!keep) return;
    dx = take(size, rows * columns.width * kF32);
    dy = take(size, rows * columns.width * kBf16);
    dqkv = take(size, rows * columns.qkv * kBf16);
    dnormed = take(size, rows * columns.width * kBf16);
    dattention = take(size, rows * columns.q * kBf16);
    delta = take(size, rows * config.num_heads * kF32);
    const int64_t widest = std::max({columns.width, columns.qkv, 2 * columns.inner});
    partial =
        take(size, kF32 * std::max({kernels::column_sums_partial_floats(widest),
                                    kernels::norm_backward_partial_floats(columns.width),
                                    kernels::rotate_backward_partial_floats(config.head_dim)}));
    dhidden = take(size, targets * columns.width * kF32);
    active = take(size, 8 * aligned((targets + 1) * kF32));
    head_workspace = take(size, head_workspace_bytes);
  }
};

struct DeviceTrainingPass::Memory {
  std::optional<CudaBuffer> rows, order;
  std::optional<Places> places;
  template <class T = uint8_t>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(rows->as<uint8_t>() + offset);
  }
  template <class T>
  const T* in_order(int64_t offset) const {
    return reinterpret_cast<const T*>(order->as<uint8_t>() + offset);
  }
};

DeviceTrainingPass::DeviceTrainingPass(DeviceTransformer& transformer, DeviceTrainingState* state,
                                       bool gradient_checkpointing)
    : transformer_(transformer),
      state_(state),
      gradient_checkpointing_(gradient_checkpointing),
      memory_(std::make_unique<Memory>()) {}
DeviceTrainingPass::~DeviceTrainingPass() = default;

void DeviceTrainingPass::release() { memory_ = std::make_unique<Memory>(); }

int64_t DeviceTrainingPass::planned_bytes(const ModelConfig& config, int64_t num_rows,
                                          bool gradient_checkpointing, bool keep_for_backward) {
  constexpr int64_t kWorkspaces = 320ll << 20;
  return Places(config, num_rows, num_rows, 2 * pages_for(num_rows), gradient_checkpointing,
                keep_for_backward, 0, keep_for_backward ? kWorkspaces : kWorkspaces / 8)
      .size;
}

Status DeviceTrainingPass::reserve(const Order& order, int64_t num_targets) {
  const kernels::Cuda& cuda = transformer_.cuda();
  const ModelConfig& config = transformer_.config();
  GRADUS_RETURN_IF_ERROR(transformer_.reserve(0, order.longest));
  const int64_t targets = std::max<int64_t>(num_targets, 1);
  const Places places(
      config, order.num_rows, targets, order.num_pages, gradient_checkpointing_, keep_for_backward_,
      static_cast<int64_t>(
          kernels::lm_head_score_workspace_bytes(cuda, targets, config.vocab_size)),
      keep_for_backward_ ? static_cast<int64_t>(kernels::lm_head_backward_workspace_bytes(
                               cuda, targets, config.vocab_size, config.hidden_size))
                         : 0);
  const auto grow = [&](std::optional<CudaBuffer>& buffer, int64_t bytes,
                        const char* what) -> Status {
    if (buffer && static_cast<int64_t>(buffer->bytes()) >= bytes) return {};
    GRADUS_RETURN_IF_ERROR(kernels::synchronize(cuda));
    buffer.reset();
    Result<CudaBuffer> made = CudaBuffer::allocate(cuda, static_cast<size_t>(bytes));
    if (!made.ok()) return made.status().with_prefix(what);
    buffer.emplace(std::move(*made));
    return {};
  };
  GRADUS_RETURN_IF_ERROR(grow(memory_->rows, places.size,
                              "activations of a training pass; a smaller "
                              "backward.micro_batch_tokens or gradient_checkpointing needs less"));
  GRADUS_RETURN_IF_ERROR(
      grow(memory_->order, static_cast<int64_t>(order.bytes.size()), "places of rows"));
  memory_->places = places;
  // Keys that no row has written are read, masked, and must be numbers.
  return kernels::device_zero(cuda, memory_->at(places.pages), places.hidden - places.pages,
                              nullptr);
}

Status DeviceTrainingPass::forward(const data::Pack& pack, float temperature,
                                   bool keep_for_backward) {
  GRADUS_CHECK(!keep_for_backward || state_ != nullptr, "a backward needs a state");
  keep_for_backward_ = keep_for_backward;
  temperature_ = temperature;
  order_ = std::make_unique<Order>(pack, temperature);
  GRADUS_RETURN_IF_ERROR(reserve(*order_, order_->num_targets));
  GRADUS_RETURN_IF_ERROR(
      memory_->order->copy_from_host(order_->bytes.data(), order_->bytes.size()));
  const Places& places = *memory_->places;
  const int64_t num_layers = transformer_.config().num_layers;
  const auto input_of = [&](int64_t layer) {
    return memory_->at<float>(places.inputs + (keep_for_backward_ ? layer : 0) * places.input_size);
  };
  GRADUS_RETURN_IF_ERROR(transformer_.embed(
      {.num_rows = order_->num_rows, .token_ids = memory_->in_order<int32_t>(order_->tokens)},
      num_layers > 0 ? input_of(0) : memory_->at<float>(places.final_stream), nullptr));
  for (int64_t i = 0; i < num_layers; ++i) {
    const bool is_last = i + 1 == num_layers;
    if (state_ != nullptr) GRADUS_RETURN_IF_ERROR(state_->before_forward(i));
    GRADUS_RETURN_IF_ERROR(
        layer_forward(i, is_last ? memory_->at<float>(places.final_stream) : input_of(i + 1)));
  }
  return head_forward();
}

Status DeviceTrainingPass::layer_forward(int64_t layer, float* output) {
  const Places& places = *memory_->places;
  const int64_t kept = places.layers + (keeps_layers() ? layer : 0) * places.layer_size;
  const DevicePass pass = {
      .num_rows = order_->num_rows,
      .token_ids = memory_->in_order<int32_t>(order_->tokens),
      .positions = memory_->in_order<int32_t>(order_->positions),
      .table_rows = memory_->in_order<int32_t>(order_->table_rows),
      .tables = memory_->in_order<int32_t>(order_->tables),
      .table_stride = order_->table_stride,
      .tiles = memory_->in_order<kernels::AttentionTile>(order_->tiles),
      .num_tiles = order_->num_tiles,
      .num_first_rows = order_->num_first_rows,
      .copies = memory_->in_order<kernels::PageCopy>(order_->copies),
      .num_copies = order_->num_copies,
  };
  const ModelConfig& config = transformer_.config();
  const DeviceLayerRows rows = {
      .input_TD =
          memory_->at<float>(places.inputs + (keep_for_backward_ ? layer : 0) * places.input_size),
      .middle_TD = memory_->at<float>(kept + places.middle),
      .output_TD = output,
      .normed_TD = memory_->at(places.normed),
      .raw_qkv = keep_for_backward_ ? memory_->at(kept + places.raw_qkv) : nullptr,
      .qkv = memory_->at(places.qkv),
      .attention = memory_->at(kept + places.attention),
      .lse_TH = keep_for_backward_ ? memory_->at<float>(kept + places.lse) : nullptr,
      .gate_up = keep_for_backward_ ? memory_->at(kept + places.gate_up) : nullptr,
      .inner = memory_->at(places.inner)};
  return transformer_.layer_forward(layer, pass,
                                    {.pages = memory_->at(places.pages),
                                     .num_kv_heads = config.num_kv_heads,
                                     .head_width = config.head_dim},
                                    rows, nullptr);
}

Status DeviceTrainingPass::head_forward() {
  const kernels::Cuda& cuda = transformer_.cuda();
  const ModelConfig& config = transformer_.config();
  const Places& places = *memory_->places;
  const int64_t count = order_->num_targets;
  const size_t size = static_cast<size_t>(count);
  logprobs_.resize(size);
  entropies_.resize(size);
  lse_.resize(size);
  if (state_ != nullptr) GRADUS_RETURN_IF_ERROR(state_->wait());
  if (count == 0) return {};
  const int32_t* rows = memory_->in_order<int32_t>(order_->target_rows);
  GRADUS_RETURN_IF_ERROR(transformer_.final_norm(memory_->at<float>(places.final_stream), rows,
                                                 count, memory_->at(places.hidden), nullptr));
  const size_t workspace_bytes =
      kernels::lm_head_score_workspace_bytes(cuda, count, config.vocab_size);
  GRADUS_RETURN_IF_ERROR(kernels::device_zero(cuda, memory_->at(places.score_workspace),
                                              static_cast<int64_t>(workspace_bytes), nullptr));
  float* scores = memory_->at<float>(places.scores);
  GRADUS_RETURN_IF_ERROR(
      kernels::lm_head_score(cuda, {.w_VD = transformer_.head(),
                                    .h_BD = memory_->at(places.hidden),
                                    .temperature_B = memory_->in_order<float>(order_->temperatures),
                                    .token_B = memory_->in_order<int32_t>(order_->target_tokens),
                                    .b = count,
                                    .v = config.vocab_size,
                                    .d = config.hidden_size,
                                    .logprob_B = scores,
                                    .lse_B = scores + count,
                                    .entropy_B = scores + 2 * count,
                                    .workspace = memory_->at(places.score_workspace),
                                    .workspace_bytes = workspace_bytes}));
  std::vector<float> all(3 * size);
  GRADUS_RETURN_IF_ERROR(kernels::copy_to_host(cuda, all.data(), scores, all.size() * kF32));
  std::copy_n(all.begin(), size, logprobs_.begin());
  std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(size), size, lse_.begin());
  std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(2 * size), size, entropies_.begin());
  return {};
}

// Leaves the gradient of the residual stream after the last layer in dx.
Status DeviceTrainingPass::head_backward(std::span<const float> dlogprobs,
                                         std::span<const float> dentropies, bool* is_any) {
  const kernels::Cuda& cuda = transformer_.cuda();
  const ModelConfig& config = transformer_.config();
  const Places& places = *memory_->places;
  // Targets with a gradient by row, since the last row of a prompt predicts several.
  std::vector<size_t> active;
  for (size_t i = 0; i < dlogprobs.size(); ++i) {
    if (dlogprobs[i] != 0 || dentropies[i] != 0) active.push_back(i);
  }
  *is_any = !active.empty();
  if (active.empty()) return {};
  std::stable_sort(active.begin(), active.end(), [&](size_t a, size_t b) {
    return order_->rows_of_targets[a] < order_->rows_of_targets[b];
  });
  std::vector<int32_t> rows, tokens, distinct, begin;
  std::vector<float> lse, entropy, dlogprob, dentropy;
  for (size_t i = 0; i < active.size(); ++i) {
    const size_t target = active[i];
    rows.push_back(order_->rows_of_targets[target]);
    tokens.push_back(order_->tokens_of_targets[target]);
    lse.push_back(lse_[target]);
    entropy.push_back(entropies_[target]);
    dlogprob.push_back(dlogprobs[target]);
    dentropy.push_back(dentropies[target]);
    if (!distinct.empty() && distinct.back() == rows.back()) continue;
    distinct.push_back(rows.back());
    begin.push_back(static_cast<int32_t>(i));
  }
  begin.push_back(static_cast<int32_t>(active.size()));
  const int64_t count = static_cast<int64_t>(active.size());
  const int64_t slot = aligned((order_->num_targets + 1) * kF32);
  std::vector<uint8_t> bytes(static_cast<size_t>(8 * slot));
  int64_t next = 0;
  const auto put = [&](const auto& values) {
    std::memcpy(bytes.data() + next, values.data(), values.size() * sizeof(values[0]));
    return std::exchange(next, next + slot) + places.active;
  };
  const int64_t rows_at = put(rows), tokens_at = put(tokens), lse_at = put(lse);
  const int64_t entropy_at = put(entropy), dlogprob_at = put(dlogprob);
  const int64_t dentropy_at = put(dentropy), distinct_at = put(distinct), begin_at = put(begin);
  GRADUS_RETURN_IF_ERROR(
      kernels::copy_to_device(cuda, memory_->at(places.active), bytes.data(), bytes.size()));

  const float* final_stream = memory_->at<float>(places.final_stream);
  GRADUS_RETURN_IF_ERROR(transformer_.final_norm(final_stream, memory_->at<int32_t>(rows_at), count,
                                                 memory_->at(places.hidden), nullptr));
  const size_t workspace_bytes =
      kernels::lm_head_backward_workspace_bytes(cuda, count, config.vocab_size, config.hidden_size);
  GRADUS_RETURN_IF_ERROR(
      kernels::lm_head_backward(cuda, {.w_VD = transformer_.head(),
                                       .h_BD = memory_->at(places.hidden),
                                       .token_B = memory_->at<int32_t>(tokens_at),
                                       .lse_B = memory_->at<float>(lse_at),
                                       .entropy_B = memory_->at<float>(entropy_at),
                                       .dlogprob_B = memory_->at<float>(dlogprob_at),
                                       .dentropy_B = memory_->at<float>(dentropy_at),
                                       .temperature = temperature_,
                                       .b = count,
                                       .v = config.vocab_size,
                                       .d = config.hidden_size,
                                       .dh_BD = memory_->at<float>(places.dhidden),
                                       .dw_VD = state_->gradient_at(transformer_.head_offset()),
                                       .workspace = memory_->at(places.head_workspace),
                                       .workspace_bytes = workspace_bytes}));
  // Rows without a target have no gradient yet.
  for (const auto& [place, width] : {std::pair{places.dx, kF32}, {places.dy, kBf16}}) {
    GRADUS_RETURN_IF_ERROR(kernels::device_zero(
        cuda, memory_->at(place), order_->num_rows * config.hidden_size * width, nullptr));
  }
  const kernels::GradientRows dy = {.f32_ND = memory_->at<float>(places.dhidden),
                                    .begin_R = memory_->at<int32_t>(begin_at)};
  return norm_backward(final_stream, transformer_.final_norm_offset(),
                       memory_->at<int32_t>(distinct_at), dy,
                       static_cast<int64_t>(distinct.size()));
}

// Through the norm of `count` rows of x (null: all, in order): adds to their dx, of which dy is the
// rounded copy, and to the gradient of the norm's weight.
Status DeviceTrainingPass::norm_backward(const float* x_TD, int64_t weight, const int32_t* rows_R,
                                         const kernels::GradientRows& dy, int64_t count) {
  const ModelConfig& config = transformer_.config();
  const Places& places = *memory_->places;
  return kernels::device_rms_norm_backward(transformer_.cuda(),
                                           {.x_TD = x_TD,
                                            .weight_D = transformer_.at<float>(weight),
                                            .rows_R = rows_R,
                                            .dy = dy,
                                            .r = count,
                                            .d = config.hidden_size,
                                            .eps = static_cast<float>(config.rms_norm_eps),
                                            .dx_TD = memory_->at<float>(places.dx),
                                            .rounded_TD = memory_->at(places.dy),
                                            .partial = memory_->at<float>(places.partial),
                                            .dweight_D = state_->gradient_at(weight)});
}

Status DeviceTrainingPass::layer_backward(int64_t index) {
  const kernels::Cuda& cuda = transformer_.cuda();
  const ModelConfig& config = transformer_.config();
  const Columns columns(config);
  const Places& places = *memory_->places;
  const DeviceTransformer::Layer& layer = transformer_.layers()[static_cast<size_t>(index)];
  const int64_t rows = order_->num_rows;
  const int64_t kept = places.layers + (keeps_layers() ? index : 0) * places.layer_size;
  const float* input = memory_->at<float>(places.inputs + index * places.input_size);
  const float* middle = memory_->at<float>(kept + places.middle);
  uint8_t* gate_up = memory_->at(kept + places.gate_up);
  uint8_t* normed = memory_->at(places.normed);
  uint8_t* dnormed = memory_->at(places.dnormed);
  uint8_t* inner = memory_->at(places.inner);
  uint8_t* dy = memory_->at(places.dy);
  float* partial = memory_->at<float>(places.partial);
  const float eps = static_cast<float>(config.rms_norm_eps);

  // Of y = x w^T + bias: dw += dy^T x, dbias += sums of dy.
  const auto weight_gradient = [&](const void* dy_TN, int64_t n, const void* x_TK, int64_t k,
                                   int64_t weight, int64_t bias) -> Status {
    GRADUS_RETURN_IF_ERROR(kernels::device_product(cuda, {.a = dy_TN,
                                                          .b = x_TK,
                                                          .c = state_->gradient_at(weight),
                                                          .m = n,
                                                          .n = k,
                                                          .k = rows,
                                                          .a_transposed = true,
                                                          .accumulate = true}));
    if (bias < 0) return {};
    return kernels::device_column_sums(cuda, {.dy_RD = dy_TN,
                                              .r = rows,
                                              .d = n,
                                              .partial = partial,
                                              .sum_D = state_->gradient_at(bias)});
  };
  // dx = dy w.
  const auto input_gradient = [&](const void* dy_TN, int64_t n, int64_t weight, int64_t k,
                                  void* dx_TK) {
    return kernels::device_product(cuda, {.a = dy_TN,
                                          .b = transformer_.at<uint8_t>(weight),
                                          .c = dx_TK,
                                          .m = rows,
                                          .n = k,
                                          .k = n,
                                          .c_bf16 = true});
  };
  const auto norm_again = [&](const float* x, int64_t weight) {
    return kernels::device_rms_norm(cuda, {.x_TD = x,
                                           .weight_D = transformer_.at<float>(weight),
                                           .r = rows,
                                           .d = columns.width,
                                           .eps = eps,
                                           .y_RD = normed});
  };
  const auto norm_gradient = [&](const float* x, int64_t weight) {
    return norm_backward(x, weight, nullptr, {.bf16_RD = dnormed}, rows);
  };

  // The layer's second half.
  GRADUS_RETURN_IF_ERROR(input_gradient(dy, columns.width, layer.down, columns.inner, inner));
  GRADUS_RETURN_IF_ERROR(kernels::device_swiglu_backward(
      cuda, {.gate_up_T = gate_up, .inner_TF = inner, .t = rows, .f = columns.inner}));
  GRADUS_RETURN_IF_ERROR(
      weight_gradient(dy, columns.width, inner, columns.inner, layer.down, layer.down_bias));
  GRADUS_RETURN_IF_ERROR(norm_again(middle, layer.mlp_norm));
  GRADUS_RETURN_IF_ERROR(weight_gradient(gate_up, 2 * columns.inner, normed, columns.width,
                                         layer.gate_up, layer.gate_up_bias));
  GRADUS_RETURN_IF_ERROR(
      input_gradient(gate_up, 2 * columns.inner, layer.gate_up, columns.width, dnormed));
  GRADUS_RETURN_IF_ERROR(norm_gradient(middle, layer.mlp_norm));

  // Its first half.
  const void* raw_qkv = memory_->at(kept + places.raw_qkv);
  const void* attention = memory_->at(kept + places.attention);
  void* qkv = memory_->at(places.qkv);
  void* dqkv = memory_->at(places.dqkv);
  void* dattention = memory_->at(places.dattention);
  const int32_t* positions = memory_->in_order<int32_t>(order_->positions);
  GRADUS_RETURN_IF_ERROR(
      weight_gradient(dy, columns.width, attention, columns.q, layer.output, layer.output_bias));
  GRADUS_RETURN_IF_ERROR(input_gradient(dy, columns.width, layer.output, columns.q, dattention));
  GRADUS_RETURN_IF_ERROR(
      kernels::device_rotate_rows(cuda, {.raw_T = raw_qkv,
                                         .qkv_T = qkv,
                                         .t = rows,
                                         .num_heads = config.num_heads,
                                         .num_kv_heads = config.num_kv_heads,
                                         .head_width = config.head_dim,
                                         .rotation = transformer_.rotation(index),
                                         .positions_T = positions}));
  GRADUS_RETURN_IF_ERROR(kernels::device_attention_backward(
      cuda, {.qkv_T = qkv,
             .out_T = attention,
             .dout_T = dattention,
             .lse_TH = memory_->at<float>(kept + places.lse),
             .delta_TH = memory_->at<float>(places.delta),
             .dqkv_T = dqkv,
             .t = rows,
             .num_heads = config.num_heads,
             .num_kv_heads = config.num_kv_heads,
             .head_width = config.head_dim,
             .scale = transformer_.attention_scale(),
             .query_tiles = memory_->in_order<kernels::AttentionBackwardTile>(order_->query_tiles),
             .key_tiles = memory_->in_order<kernels::AttentionBackwardTile>(order_->key_tiles),
             .num_query_tiles = order_->num_key_tiles,
             .num_key_tiles = order_->num_key_tiles}));
  GRADUS_RETURN_IF_ERROR(
      kernels::device_rotate_backward(cuda, {.raw_T = raw_qkv,
                                             .dqkv_T = dqkv,
                                             .t = rows,
                                             .num_heads = config.num_heads,
                                             .num_kv_heads = config.num_kv_heads,
                                             .head_width = config.head_dim,
                                             .rotation = transformer_.rotation(index),
                                             .positions_T = positions,
                                             .partial = partial,
                                             .dq_norm_K = state_->gradient_at(layer.q_norm),
                                             .dk_norm_K = state_->gradient_at(layer.k_norm)}));
  GRADUS_RETURN_IF_ERROR(norm_again(input, layer.attention_norm));
  GRADUS_RETURN_IF_ERROR(
      weight_gradient(dqkv, columns.qkv, normed, columns.width, layer.qkv, layer.qkv_bias));
  GRADUS_RETURN_IF_ERROR(input_gradient(dqkv, columns.qkv, layer.qkv, columns.width, dnormed));
  return norm_gradient(input, layer.attention_norm);
}

Status DeviceTrainingPass::backward(std::span<const float> dlogprobs,
                                    std::span<const float> dentropies) {
  GRADUS_CHECK(order_ != nullptr && keep_for_backward_, "a backward follows its forward");
  GRADUS_CHECK(dlogprobs.size() == logprobs_.size() && dentropies.size() == logprobs_.size(),
               fmt::format("{} and {} gradients for {} targets", dlogprobs.size(),
                           dentropies.size(), logprobs_.size()));
  bool is_any = false;
  GRADUS_RETURN_IF_ERROR(head_backward(dlogprobs, dentropies, &is_any));
  if (!is_any) return state_->idle_backward();
  const Places& places = *memory_->places;
  for (int64_t i = transformer_.config().num_layers - 1; i >= 0; --i) {
    GRADUS_RETURN_IF_ERROR(state_->before_backward(i));
    if (!keeps_layers()) {
      // What it leaves is not read again: the stream after the last layer has served.
      GRADUS_RETURN_IF_ERROR(layer_forward(i, memory_->at<float>(places.final_stream)));
    }
    GRADUS_RETURN_IF_ERROR(layer_backward(i));
    GRADUS_RETURN_IF_ERROR(state_->after_backward(i));
  }
  GRADUS_RETURN_IF_ERROR(kernels::device_embed_backward(
      transformer_.cuda(),
      {.dx_TD = memory_->at<float>(places.dx),
       .tokens_N = memory_->in_order<int32_t>(order_->embed_tokens),
       .begin_N = memory_->in_order<int32_t>(order_->embed_begin),
       .rows_M = memory_->in_order<int32_t>(order_->embed_rows),
       .n = order_->num_tokens,
       .d = transformer_.config().hidden_size,
       .dembedding_VD = state_->gradient_at(transformer_.embedding_offset())}));
  return state_->wait();
}

}  // namespace gradus::model
