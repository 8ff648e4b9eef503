// SPDX-License-Identifier: Apache-2.0
#include "cli/engine_bench.h"

#include <algorithm>

#include "cli/bench_numbers.h"
#include "common/rng.h"
#include "kernels/cuda_check.h"
#include "model/device_transformer.h"
#include "rollout/device_engine.h"

namespace gradus::cli {
namespace {

// Counts tokens; nothing is kept.
class Counter : public rollout::TrajectorySink {
 public:
  void finished(size_t, data::Trajectory trajectory) override {
    num_tokens += static_cast<int64_t>(trajectory.behavior_logprobs.size());
  }
  int64_t num_tokens = 0;
};

// Bytes per second of reading memory once.
Result<double> read_rate(const kernels::Cuda& cuda) {
  constexpr size_t kBytes = size_t{1} << 30;
  Result<kernels::CudaBuffer> buffer = kernels::CudaBuffer::allocate(cuda, kBytes + 256);
  GRADUS_RETURN_IF_ERROR(buffer.status());
  Result<kernels::CudaTimer> timer = kernels::CudaTimer::create(cuda);
  GRADUS_RETURN_IF_ERROR(timer.status());
  GRADUS_RETURN_IF_ERROR(
      kernels::check_random_bf16(cuda, buffer->data(), static_cast<int64_t>(kBytes / 2), 1, 1));
  std::vector<double> us;
  for (int i = 0; i < 12; ++i) {
    GRADUS_RETURN_IF_ERROR(timer->begin());
    GRADUS_RETURN_IF_ERROR(kernels::check_read(
        cuda, buffer->data(), kBytes, reinterpret_cast<float*>(buffer->as<uint8_t>() + kBytes)));
    const Result<double> elapsed = timer->end_us();
    GRADUS_RETURN_IF_ERROR(elapsed.status());
    us.push_back(*elapsed);
  }
  return static_cast<double>(kBytes) / median(us) * 1e6;
}

std::vector<data::RolloutRequest> random_requests(const model::ModelConfig& config, int64_t batch,
                                                  const EngineBenchOptions& options) {
  std::vector<data::RolloutRequest> requests;
  for (int64_t i = 0; i < batch; ++i) {
    data::RolloutRequest request;
    request.id = {static_cast<uint64_t>(i), 0};
    for (int64_t j = 0; j < options.prompt_tokens; ++j) {
      request.token_ids.push_back(
          static_cast<int32_t>(hash64({static_cast<uint64_t>(i), static_cast<uint64_t>(j)}) %
                               static_cast<uint64_t>(config.vocab_size)));
    }
    request.sampling.top_k = options.top_k;
    request.sampling.max_new_tokens = options.new_tokens;
    request.rng_key = hash64({7, static_cast<uint64_t>(i)});
    requests.push_back(std::move(request));
  }
  return requests;
}

Status bench_batch(model::DeviceTransformer& transformer, const std::string& shape, int64_t batch,
                   double read_bytes_per_s, const EngineBenchOptions& options,
                   const std::function<Status(const nlohmann::ordered_json&)>& write) {
  const model::ModelConfig& config = transformer.config();
  const int64_t pages = (options.prompt_tokens + options.new_tokens + 127) / 64 + 1;
  const BenchClock::time_point start = BenchClock::now();
  const Result<std::unique_ptr<rollout::DeviceEngine>> engine = rollout::DeviceEngine::create(
      transformer, nullptr,
      {.max_batch = batch,
       .kv_cache_bytes = batch * pages * model::DeviceKvCache::bytes_per_page(config),
       .prefill_chunk_tokens = 8192});
  GRADUS_RETURN_IF_ERROR(engine.status());
  const std::vector<data::RolloutRequest> requests = random_requests(config, batch, options);
  double best = 0, first_token = 0, cold_first_token = 0;
  for (int64_t i = 0; i <= options.repeats; ++i) {  // the first run records the graphs
    Counter counter;
    const double before = seconds_since(start);
    GRADUS_RETURN_IF_ERROR((*engine)->run(requests, 0, 0, counter));
    const rollout::EngineStats& stats = (*engine)->stats();
    GRADUS_CHECK(counter.num_tokens == batch * options.new_tokens, "a response ended early");
    if (i == 0) {
      cold_first_token = before + stats.first_token_seconds;
    } else if (best == 0 || stats.seconds < best) {
      best = stats.seconds;
      first_token = stats.first_token_seconds;
    }
  }
  const double tokens = static_cast<double>(batch * options.new_tokens);
  const double roof_seconds =
      bytes_of_decoding(config, batch, options.prompt_tokens, options.new_tokens) /
      read_bytes_per_s;
  return write(
      {{"case", "engine"},
       {"shape", shape},
       {"b", batch},
       {"prompt", options.prompt_tokens},
       {"new", options.new_tokens},
       {"top_k", options.top_k},
       {"seconds", rounded(best)},
       {"tokens_per_s", rounded(tokens / best)},
       {"roof_tokens_per_s", rounded(tokens / roof_seconds)},
       {"percent_of_roof", rounded(100 * roof_seconds / best)},
       {"step_ms", rounded((best - first_token) * 1e3 /
                           static_cast<double>(std::max<int64_t>(1, options.new_tokens - 1)))},
       {"first_token_ms", rounded(first_token * 1e3)},
       {"cold_first_token_s", rounded(cold_first_token)}});
}

}  // namespace

Result<model::ModelConfig> bench_shape(const std::string& name) {
  model::ModelConfig config;
  if (name == "qwen3-0.6b") {
    config = {.family = model::Family::kQwen3,
              .vocab_size = 151936,
              .hidden_size = 1024,
              .intermediate_size = 3072,
              .num_layers = 28,
              .num_heads = 16,
              .num_kv_heads = 8,
              .head_dim = 128,
              .max_position_embeddings = 40960,
              .rope_theta = 1e6,
              .tie_embeddings = true,
              .qk_norm = true};
  } else if (name == "qwen2.5-0.5b") {
    config = {.family = model::Family::kQwen2,
              .vocab_size = 151936,
              .hidden_size = 896,
              .intermediate_size = 4864,
              .num_layers = 24,
              .num_heads = 14,
              .num_kv_heads = 2,
              .head_dim = 64,
              .max_position_embeddings = 32768,
              .rope_theta = 1e6,
              .tie_embeddings = true,
              .attention_bias = true};
  } else if (name == "smollm2-135m") {
    config = {.family = model::Family::kLlama,
              .vocab_size = 49152,
              .hidden_size = 576,
              .intermediate_size = 1536,
              .num_layers = 30,
              .num_heads = 9,
              .num_kv_heads = 3,
              .head_dim = 64,
              .max_position_embeddings = 8192,
              .rms_norm_eps = 1e-5,
              .rope_theta = 1e5,
              .tie_embeddings = true};
  } else {
    return invalid_argument(
        "--shape {}: not a known shape; expected qwen3-0.6b, qwen2.5-0.5b or smollm2-135m", name);
  }
  return config;
}

double bytes_of_decoding(const model::ModelConfig& config, int64_t batch, int64_t prompt_tokens,
                         int64_t new_tokens) {
  // Of an embedding of its own only the batch's rows are read.
  const int64_t rows_only = config.tie_embeddings ? 0 : config.vocab_size * config.hidden_size;
  const double weights = 2.0 * static_cast<double>(num_parameters(config) - rows_only);
  const double token =
      2.0 * 2.0 * static_cast<double>(config.num_layers * config.num_kv_heads * config.head_dim);
  const double positions =
      static_cast<double>(new_tokens) *
      (static_cast<double>(prompt_tokens) + static_cast<double>(new_tokens - 1) / 2);
  return weights * static_cast<double>(new_tokens) + token * static_cast<double>(batch) * positions;
}

Status bench_engine(const kernels::Cuda& cuda, const EngineBenchOptions& options,
                    const std::function<Status(const nlohmann::ordered_json&)>& write) {
  const Result<double> rate = read_rate(cuda);
  GRADUS_RETURN_IF_ERROR(rate.status());
  GRADUS_RETURN_IF_ERROR(write(
      {{"case", "read"}, {"device", cuda.description()}, {"gb_per_s", rounded(*rate / 1e9)}}));
  for (const std::string& shape : options.shapes) {
    const Result<model::ModelConfig> config = bench_shape(shape);
    GRADUS_RETURN_IF_ERROR(config.status());
    const Result<std::unique_ptr<model::DeviceTransformer>> transformer =
        model::DeviceTransformer::create_random(cuda, *config, 1);
    GRADUS_RETURN_IF_ERROR(transformer.status());
    for (const int64_t batch : options.batches) {
      GRADUS_RETURN_IF_ERROR(bench_batch(**transformer, shape, batch, *rate, options, write));
    }
  }
  return {};
}

}  // namespace gradus::cli
