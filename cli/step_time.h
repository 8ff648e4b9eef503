// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/run_config.h"
#include "common/status.h"
#include "model/model_config.h"
#include "trainer/rl_trainer.h"
#include "trainer/trainer_config.h"

// The time of a step of reinforcement learning, predicted from multiply-adds, bytes and link speed:
// what `gradus plan` prints and what every run compares itself with. Each part is the larger of its
// arithmetic and its memory traffic at the speeds of the device, plus the time to start kernels;
// docs/exactness.md has how far it was from measured runs.
namespace gradus::cli {

// Speeds that programs reach, not those of a data sheet.
struct Device {
  std::string name;
  double flops = 0;           // of matrix products, a multiply-add counts two, per second
  double bytes_per_s = 0;     // of memory
  double memory_bytes = 0;    // 0: unknown
  double kernel_seconds = 0;  // to start a kernel, or to share a loop out over threads
  double logit_seconds = 0;   // for each logit that is sampled from or scored
  double number_bytes = 4;    // of a weight, key or value where passes read it
};

// h100, h200, a100: the maker's peaks times what dense kernels usually reach. InvalidArgument lists
// the known names.
Result<Device> find_device(const std::string& name);
// This process's threads, on matrices of the model's sizes; takes some 20 ms.
Device measure_cpu(const model::ModelConfig& model);

// How ranks are joined; bytes per second and direction.
struct Links {
  double bytes_per_s = 0;        // between hosts
  double local_bytes_per_s = 0;  // within a host
  int64_t ranks_per_host = 1;
  double message_seconds = 5e-6;
};

// What a step does, over all ranks.
struct StepWork {
  int64_t num_ranks = 1;      // that train
  int64_t rollout_ranks = 0;  // that only sample; 0: those that train sample
  bool is_async = false;      // sampling and training at the same time
  int64_t num_prompts = 0, num_samples = 0;
  double prompt_tokens = 0;     // of a prompt, mean
  double response_tokens = 0;   // of a response, mean
  double longest_response = 0;  // tokens
  int64_t max_batch = 1;        // of the engine, a rank
  int64_t mini_batches = 1;
  bool has_reference = false;
  bool has_critic = false;  // of the policy's size
  trainer::BackwardConfig backward;
};

// Seconds of a rank.
struct StepTime {
  double prefill = 0, decode = 0;               // rollout
  double forward_backward = 0, optimizer = 0;   // update
  double reduce_gradients = 0, exchange = 0;    // between ranks
  double gather_weights = 0, send_weights = 0;  // slices of zero_stage; to ranks that only sample
  bool is_overlapped = false;                   // rollout and update are at the same time
  double rollout() const { return prefill + decode; }
  double update() const { return forward_backward + optimizer + reduce_gradients + gather_weights; }
  double total() const {
    const double both = is_overlapped ? std::max(rollout(), update()) : rollout() + update();
    return both + exchange + send_weights;
  }
};

// A step of a run on so many ranks, of which cluster.mode says who trains; prompts of no and
// responses of the largest length.
StepWork step_work(const RunConfig& config, int64_t world_size);

StepTime predict_step(const model::ModelConfig& model, const StepWork& work, const Device& device,
                      const Links& links);

// "step time: predicted ... s, measured ... s (error ... %): ..." of a run that has sampled steps,
// else nothing.
std::string compare_with_measured(const model::ModelConfig& model, StepWork work,
                                  const Device& device, const Links& links,
                                  const trainer::StepTotals& measured);

}  // namespace gradus::cli
