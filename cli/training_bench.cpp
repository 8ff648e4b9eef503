// SPDX-License-Identifier: Apache-2.0
#include "cli/training_bench.h"

#include <cmath>

#include "cli/bench_numbers.h"
#include "cli/engine_bench.h"
#include "comm/device_communicator.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/cuda_check.h"
#include "kernels/device_product.h"
#include "model/device_training.h"
#include "model/transformer.h"

namespace gradus::cli {
namespace {

// Operations per second of a bf16 product of 8192 x 8192 x 8192.
Result<double> product_rate(const kernels::Cuda& cuda) {
  constexpr int64_t kSize = 8192;
  std::vector<kernels::CudaBuffer> buffers;
  for (int i = 0; i < 3; ++i) {
    Result<kernels::CudaBuffer> buffer = kernels::CudaBuffer::allocate(cuda, 2 * kSize * kSize);
    GRADUS_RETURN_IF_ERROR(buffer.status());
    GRADUS_RETURN_IF_ERROR(kernels::check_random_bf16(cuda, buffer->data(), kSize * kSize, 1,
                                                      1 + static_cast<uint64_t>(i)));
    buffers.push_back(std::move(*buffer));
  }
  Result<kernels::CudaTimer> timer = kernels::CudaTimer::create(cuda);
  GRADUS_RETURN_IF_ERROR(timer.status());
  std::vector<double> us;
  for (int i = 0; i < 20; ++i) {
    GRADUS_RETURN_IF_ERROR(timer->begin());
    GRADUS_RETURN_IF_ERROR(kernels::device_product(cuda, {.a = buffers[0].data(),
                                                          .b = buffers[1].data(),
                                                          .c = buffers[2].data(),
                                                          .m = kSize,
                                                          .n = kSize,
                                                          .k = kSize,
                                                          .b_transposed = true,
                                                          .c_bf16 = true}));
    const Result<double> elapsed = timer->end_us();
    GRADUS_RETURN_IF_ERROR(elapsed.status());
    us.push_back(*elapsed);
  }
  const double size = static_cast<double>(kSize);
  return 2 * size * size * size / median(us) * 1e6;
}

void fill_weights(model::Transformer& transformer) {
  for (const model::ParameterPlace& place : transformer.layout().places) {
    float* values = transformer.parameters() + place.offset;
    parallel_for(place.size, 1 << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t bits = hash64({static_cast<uint64_t>(place.offset + i)});
        const float unit = static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f;
        values[i] = place.columns > 0 ? 0.035f * unit : 1.0f;
      }
    });
  }
}

}  // namespace

double flops_of_training(const model::ModelConfig& config, int64_t sequences, int64_t length) {
  const int64_t looked_up =
      config.tie_embeddings ? 0 : config.vocab_size * config.hidden_size;  // a tied one multiplies
  const double tokens = static_cast<double>(sequences * length);
  const double weights = static_cast<double>(num_parameters(config) - looked_up);
  const double attention =
      static_cast<double>(config.num_layers * config.num_heads * config.head_dim * length);
  return 6 * tokens * (weights + attention);
}

namespace {

// One row: steps of one device, or of all ranks with their state shared out.
Status bench_sharing(const kernels::Cuda& cuda, const model::ModelConfig& config,
                     const TrainingBenchOptions& options, const model::DeviceSharing& sharing,
                     double product_rate,
                     const std::function<Status(const nlohmann::ordered_json&)>& write) {
  const Result<kernels::CudaMemory> before = kernels::device_memory(cuda);
  GRADUS_RETURN_IF_ERROR(before.status());
  const auto transformer =
      model::DeviceTransformer::create_random(cuda, config, 1, sharing.num_ranks());
  GRADUS_RETURN_IF_ERROR(transformer.status());
  std::unique_ptr<model::DeviceTrainingState> state;
  {
    model::Transformer host(config);
    fill_weights(host);
    auto created = model::DeviceTrainingState::create(**transformer, host, sharing);
    GRADUS_RETURN_IF_ERROR(created.status());
    state = std::move(*created);
  }
  GRADUS_RETURN_IF_ERROR(state->scatter_weights());
  std::vector<data::PackGroup> groups(static_cast<size_t>(options.sequences));
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i <= options.length; ++i) {
      tokens.push_back(static_cast<int32_t>(hash64({g, static_cast<uint64_t>(i)}) %
                                            static_cast<uint64_t>(config.vocab_size)));
    }
    groups[g].prompt = {tokens.front()};
    groups[g].responses = {{tokens.begin() + 1, tokens.end()}};
  }
  const data::Pack pack = data::make_pack(groups);
  model::DeviceTrainingPass pass(**transformer, state.get(), options.gradient_checkpointing);
  const std::vector<float> dlogprobs(pack.targets.size(),
                                     -1.0f / static_cast<float>(pack.targets.size()));
  const std::vector<float> dentropies(pack.targets.size(), 0.0f);
  std::vector<double> forward, backward, exchange, update, whole;
  for (int64_t i = 0; i < options.repeats + 2; ++i) {
    const BenchClock::time_point start = BenchClock::now();
    GRADUS_RETURN_IF_ERROR(state->scatter_weights());
    GRADUS_RETURN_IF_ERROR(state->clear_gradients());
    GRADUS_RETURN_IF_ERROR(pass.forward(pack, 1, true));
    GRADUS_RETURN_IF_ERROR(kernels::synchronize(cuda));
    const double after_forward = seconds_since(start);
    GRADUS_RETURN_IF_ERROR(pass.backward(dlogprobs, dentropies));
    GRADUS_RETURN_IF_ERROR(kernels::synchronize(cuda));
    const double after_backward = seconds_since(start);
    GRADUS_RETURN_IF_ERROR(state->sum_gradients());
    const double after_exchange = seconds_since(start);
    const Result<double> norm = state->gradient_norm();
    GRADUS_RETURN_IF_ERROR(norm.status());
    GRADUS_CHECK(std::isfinite(*norm), "the gradient of the benchmark is not finite");
    GRADUS_RETURN_IF_ERROR(state->apply({.learning_rate = 1e-5, .step = i + 1}));
    const double end = seconds_since(start);
    if (i < 2) continue;  // memory and cuBLAS' choices
    forward.push_back(after_forward);
    backward.push_back(after_backward - after_forward);
    exchange.push_back(after_exchange - after_backward);
    update.push_back(end - after_exchange);
    whole.push_back(end);
  }
  const Result<kernels::CudaMemory> after = kernels::device_memory(cuda);
  GRADUS_RETURN_IF_ERROR(after.status());
  const double seconds = median(whole);
  const double flops = flops_of_training(config, options.sequences, options.length);
  const int64_t num_devices = sharing.num_ranks();
  return write(
      {{"case", "train"},
       {"device", cuda.description()},
       {"devices", num_devices},
       {"zero_stage", sharing.stage()},
       {"shape", options.shape},
       {"sequences", options.sequences},
       {"length", options.length},
       {"gradient_checkpointing", options.gradient_checkpointing},
       {"step_ms", rounded(seconds * 1e3)},
       {"forward_ms", rounded(median(forward) * 1e3)},
       {"backward_ms", rounded(median(backward) * 1e3)},
       {"exchange_ms", rounded(median(exchange) * 1e3)},
       {"update_ms", rounded(median(update) * 1e3)},
       {"tokens_per_s",
        rounded(static_cast<double>(options.sequences * options.length * num_devices) / seconds)},
       {"model_tflops", rounded(flops / seconds / 1e12)},
       {"product_tflops", rounded(product_rate / 1e12)},
       {"percent_of_product", rounded(100 * flops / seconds / product_rate)},
       {"memory_gib", rounded(static_cast<double>(before->free - after->free) / (1 << 30))}});
}

}  // namespace

Status bench_training(const kernels::Cuda& cuda, comm::Communicator& ranks,
                      const TrainingBenchOptions& options,
                      const std::function<Status(const nlohmann::ordered_json&)>& write) {
  const Result<model::ModelConfig> config = bench_shape(options.shape);
  GRADUS_RETURN_IF_ERROR(config.status());
  const Result<double> rate = product_rate(cuda);
  GRADUS_RETURN_IF_ERROR(rate.status());
  Result<std::unique_ptr<comm::DeviceCommunicator>> devices =
      comm::DeviceCommunicator::create(cuda, ranks);
  GRADUS_RETURN_IF_ERROR(devices.status());
  const Status alone =
      ranks.rank() == 0 ? bench_sharing(cuda, *config, options, {}, *rate, write) : Status();
  GRADUS_RETURN_IF_ERROR(comm::agree(ranks, alone));
  if (ranks.size() == 1) return {};
  for (const int64_t stage : options.zero_stages) {
    GRADUS_RETURN_IF_ERROR(comm::agree(
        ranks, bench_sharing(cuda, *config, options, {.ranks = devices->get(), .zero_stage = stage},
                             *rate, write)));
  }
  return {};
}

}  // namespace gradus::cli
