// SPDX-License-Identifier: Apache-2.0
#include "cli/step_time.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>

#include "common/aligned_buffer.h"
#include "common/parallel.h"
#include "kernels/gemm.h"
#include "kernels/sampling.h"

namespace gradus::cli {
namespace {

constexpr double kFloat = sizeof(float), kBf16 = 2;
// Kernels of one layer's forward: two norms, four products, rotation, attention, activation, two
// sums.
constexpr double kKernelsPerLayer = 11;
// Bytes of a token in the message that ranks exchange: id, log-prob, framing.
constexpr double kMessageBytesPerToken = 12;
// Share of a data sheet's peaks that dense bf16 kernels and large copies reach in practice.
constexpr double kReachedFlops = 0.5, kReachedBandwidth = 0.85;
constexpr double kGpuKernelSeconds = 3e-6;

// Seconds of one call, the least of several.
double seconds_of(const std::function<void()>& body) {
  double best = 1e30;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const auto end = std::chrono::steady_clock::now();
    best = std::min(best, std::chrono::duration<double>(end - start).count());
    if (i >= 3 && std::chrono::duration<double>(end - begin).count() > 0.005) break;
  }
  return best;
}

// The model's arithmetic, by parts.
struct Counts {
  double layer_weights, head_weights, attention_width, kv_numbers, elementwise, layers, vocab;
};

Counts counts_of(const model::ModelConfig& model) {
  const double width = static_cast<double>(model.hidden_size);
  const double inner = static_cast<double>(model.intermediate_size);
  const double query = static_cast<double>(model.num_heads * model.head_dim);
  const double key = static_cast<double>(model.num_kv_heads * model.head_dim);
  Counts counts;
  counts.layers = static_cast<double>(model.num_layers);
  counts.vocab = static_cast<double>(model.vocab_size);
  counts.layer_weights = width * (2 * query + 2 * key) + 3 * width * inner;
  counts.head_weights = width * counts.vocab;
  counts.attention_width = query;
  counts.kv_numbers = 2 * key;
  // Floats read and written beside the products, for each token and layer.
  counts.elementwise = 10 * width + 4 * (query + key) + 5 * inner;
  return counts;
}

// Seconds of one forward pass over `rows` tokens that see `context` tokens each, of which `heads`
// get logits. Weights and the caches of `sequences` are read once.
double forward_seconds(const Counts& c, const Device& device, double rows, double context,
                       double sequences, double heads) {
  const double weights = c.layers * c.layer_weights + (heads > 0 ? c.head_weights : 0);
  const double flops = 2 * rows * c.layers * c.layer_weights + 2 * heads * c.head_weights +
                       4 * rows * c.layers * c.attention_width * context;
  const double bytes =
      (weights + sequences * context * c.layers * c.kv_numbers) * device.number_bytes +
      rows * c.layers * c.elementwise * kFloat;
  return std::max(flops / device.flops, bytes / device.bytes_per_s) +
         c.layers * kKernelsPerLayer * device.kernel_seconds +
         heads * c.vocab * device.logit_seconds;
}

double link_speed(const StepWork& work, const Links& links) {
  return work.num_ranks + work.rollout_ranks > links.ranks_per_host ? links.bytes_per_s
                                                                    : links.local_bytes_per_s;
}

// Half of a sum of `bytes` over the ranks: every rank in the end has its slice, or all slices.
double slices_seconds(double bytes, const StepWork& work, const Links& links) {
  if (work.num_ranks == 1) return 0;
  const double ranks = static_cast<double>(work.num_ranks);
  return (ranks - 1) / ranks * bytes / link_speed(work, links) +
         std::log2(ranks) * links.message_seconds;
}

}  // namespace

Result<Device> find_device(const std::string& name) {
  struct Sheet {
    const char* name;
    double tflops, tb_per_s, gib;
  };
  // Dense bf16 peaks and memory of the makers' data sheets (SXM cards).
  constexpr Sheet kSheets[] = {
      {"a100", 312, 2.04, 80}, {"h100", 989, 3.35, 80}, {"h200", 989, 4.8, 141}};
  std::string known;
  for (const Sheet& sheet : kSheets) {
    if (name == sheet.name) {
      return Device{name,
                    sheet.tflops * 1e12 * kReachedFlops,
                    sheet.tb_per_s * 1e12 * kReachedBandwidth,
                    sheet.gib * 1073741824.0,
                    kGpuKernelSeconds,
                    8 / (sheet.tb_per_s * 1e12),
                    kBf16};
    }
    known += fmt::format("{}, ", sheet.name);
  }
  return invalid_argument("--device {}: unknown device; known: {}cpu (this machine)", name, known);
}

Device measure_cpu(const model::ModelConfig& model) {
  Device device{.name = "cpu"};
  const int64_t width = model.hidden_size, inner = 2 * model.intermediate_size;
  constexpr int64_t kRows = 64;
  // As many copies of the largest matrix as the model has weights, so that a row finds them in the
  // cache or does not as it will in the model; more than 64 MiB are in no cache.
  const int64_t size = kernels::packed_size(inner, width);
  const int64_t wanted = std::min(model::num_parameters(model), int64_t{16} << 20);
  const int64_t copies = std::max<int64_t>(1, wanted / size);
  AlignedBuffer weights(size * copies), x(kRows * width), y(kRows * kernels::padded(inner));
  const auto product = [&](int64_t rows, int64_t copy) {
    kernels::gemm_forward({.x_MK = x.data(),
                           .x_stride = width,
                           .w_packed = weights.data() + copy * size,
                           .y_MN = y.data(),
                           .y_stride = kernels::padded(inner),
                           .m = rows,
                           .n = inner,
                           .k = width});
  };
  weights.fill_zero();
  device.flops =
      2.0 * kRows * static_cast<double>(width * inner) / seconds_of([&] { product(kRows, 0); });
  device.bytes_per_s = static_cast<double>(size * copies) * kFloat / seconds_of([&] {
                         for (int64_t i = 0; i < copies; ++i) product(1, i);
                       });
  device.kernel_seconds = seconds_of([] {
                            for (int i = 0; i < 10; ++i)
                              parallel_for(num_threads(), 1, [](int64_t, int64_t) {});
                          }) /
                          10;
  const int64_t vocab = model.vocab_size;
  AlignedBuffer logits(kernels::padded(vocab));
  const double row_seconds = seconds_of([&] {
    static_cast<void>(kernels::sample_token({.logits_V = logits.data(), .v = vocab}).ok());
  });
  device.logit_seconds =
      row_seconds / static_cast<double>(vocab) / static_cast<double>(num_threads());
  return device;
}

StepWork step_work(const RunConfig& config, int64_t world_size) {
  const int64_t num_ranks = trainer::num_trainers(config.cluster, world_size);
  return {.num_ranks = num_ranks,
          .rollout_ranks = world_size - num_ranks,
          .is_async = config.cluster.mode == trainer::ClusterMode::kAsync,
          .num_prompts = config.trainer.prompts_per_step,
          .num_samples = config.rollout.num_samples,
          .response_tokens = static_cast<double>(config.rollout.max_new_tokens),
          .longest_response = static_cast<double>(config.rollout.max_new_tokens),
          .max_batch = config.rollout.max_batch,
          .mini_batches = config.trainer.mini_batches,
          .has_reference = config.trainer.algorithm.kl.coef != 0,
          .has_critic = config.trainer.critic.has_value(),
          .backward = config.trainer.backward};
}

StepTime predict_step(const model::ModelConfig& model, const StepWork& work, const Device& device,
                      const Links& links) {
  const Counts c = counts_of(model);
  const double ranks = static_cast<double>(work.num_ranks);
  StepTime time;
  time.is_overlapped = work.is_async;
  // Of a rank that samples; of one that trains below.
  const double samplers = work.rollout_ranks > 0 ? static_cast<double>(work.rollout_ranks) : ranks;
  const double prompts = static_cast<double>(work.num_prompts) / samplers;
  const double responses = prompts * static_cast<double>(work.num_samples);
  const double sampled = responses * work.response_tokens;

  // Rollout: a prompt is computed once for its group; then a token of each running response a pass.
  const double prompt_rows = prompts * work.prompt_tokens;
  time.prefill = forward_seconds(c, device, prompt_rows, work.prompt_tokens / 2, prompts, prompts);
  const double places = std::min(responses, static_cast<double>(work.max_batch));
  const double passes = std::max(work.longest_response, sampled / std::max(places, 1.0));
  const double rows = passes > 0 ? sampled / passes : 0;
  const double context = work.prompt_tokens + work.response_tokens / 2;
  time.decode = passes * forward_seconds(c, device, rows, context, rows, rows);

  // Update: forward, and backward with twice its products; logits are scored and differentiated.
  const double share = samplers / ranks;
  const double train_rows = share * (prompt_rows + sampled - responses);
  const double train_context = (work.prompt_tokens + work.response_tokens) / 2;
  const double micro_batches =
      std::ceil(std::max(1.0, train_rows / static_cast<double>(work.backward.micro_batch_tokens)));
  const double forward =
      micro_batches * forward_seconds(c, device, train_rows / micro_batches, train_context, 0,
                                      share * sampled / micro_batches);
  time.forward_backward =
      (3 + (work.backward.gradient_checkpointing ? 1 : 0) + (work.has_reference ? 1 : 0)) * forward;
  if (work.has_critic) {  // values at the start of the step, and its update; its head is one row
    time.forward_backward +=
        (4 + (work.backward.gradient_checkpointing ? 1 : 0)) * micro_batches *
        forward_seconds(c, device, train_rows / micro_batches, train_context, 0, 0);
  }
  const double weights = static_cast<double>(model::num_parameters(model)) * kFloat;
  const double updates = static_cast<double>(work.mini_batches * (work.has_critic ? 2 : 1));
  const bool is_gpu = device.number_bytes == kBf16;  // gradients are summed in one array there
  // Each block's gradient is cleared and added to its neighbour; AdamW reads weights, gradient and
  // moments and writes all but the gradient; norm and hash read once more.
  const double blocks =
      work.backward.layout_invariant && !is_gpu
          ? std::max(1.0, static_cast<double>(work.backward.reduction_blocks) / ranks)
          : 1;
  const int64_t stage = work.num_ranks > 1 ? work.backward.zero_stage : 0;
  const double held = stage > 0 ? 1 / ranks : 1;
  time.optimizer = updates * (blocks * 4 + held * 7 + 2) * weights / device.bytes_per_s;
  // Reduce-scatter, and all-gather of gradients or (stages 1 and 2) of weights; with stage 3
  // weights come for the forward pass, for the backward pass and once a step for whoever reads them
  // as a whole.
  const double slices = slices_seconds(weights, work, links);
  time.reduce_gradients = updates * (stage == 0 ? 2 : 1) * slices;
  // On GPUs bf16 weights travel, and with stages 2 and 3 once for each pass.
  const double gathered = slices_seconds(weights * device.number_bytes / kFloat, work, links);
  const double passes_of_update = is_gpu ? std::max(1.0, micro_batches / updates) : 1;
  if (is_gpu && stage >= 2) time.reduce_gradients *= passes_of_update;
  if (stage == 1 || stage == 2) time.gather_weights = updates * gathered;
  if (stage == 3) time.gather_weights = (2 * updates * passes_of_update + 1) * gathered;
  if (work.rollout_ranks > 0) {
    const double receivers = std::ceil(samplers / ranks);
    time.send_weights = receivers * weights / link_speed(work, links) + links.message_seconds;
  }
  if (work.num_ranks + work.rollout_ranks > 1) {
    const double tokens = samplers * (responses * work.prompt_tokens + sampled);
    time.exchange =
        kMessageBytesPerToken * tokens / link_speed(work, links) +
        std::log2(ranks + static_cast<double>(work.rollout_ranks)) * links.message_seconds;
  }
  return time;
}

std::string compare_with_measured(const model::ModelConfig& model, StepWork work,
                                  const Device& device, const Links& links,
                                  const trainer::StepTotals& measured) {
  if (measured.num_steps == 0 || measured.num_responses == 0) return {};
  const double steps = static_cast<double>(measured.num_steps);
  work.prompt_tokens = measured.prompt_tokens / measured.num_responses;
  work.response_tokens = measured.response_tokens / measured.num_responses;
  work.longest_response = measured.longest_response / steps;
  // With dynamic sampling more prompts are sampled than trained on; the prediction counts the
  // former.
  work.num_prompts = std::max<int64_t>(
      1, std::llround(measured.num_responses / steps / static_cast<double>(work.num_samples)));
  const StepTime time = predict_step(model, work, device, links);
  const double seconds =
      (measured.rollout_seconds + measured.update_seconds + measured.exchange_seconds) / steps;
  return fmt::format(
      "step time: predicted {:.3g} s, measured {:.3g} s (error {:+.0f} %): rollout {:.3g} / "
      "{:.3g}, "
      "update {:.3g} / {:.3g}",
      time.total(), seconds, 100 * (time.total() / seconds - 1), time.rollout(),
      measured.rollout_seconds / steps, time.update(), measured.update_seconds / steps);
}

}  // namespace gradus::cli
