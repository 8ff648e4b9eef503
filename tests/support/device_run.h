// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/cuda.h"
#include "records/checkpoint_store.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/device_parts.h"
#include "trainer/rl_trainer.h"

// A small run of reinforcement learning on the devices of some ranks.
namespace gradus::testing {

// The share of a response's tokens below 128: a half to begin with, since weights are random.
class LowTokens : public rewards::Reward {
 public:
  std::vector<rewards::RewardPart> score_batch(
      std::span<const rewards::Group> groups) const override {
    std::vector<rewards::RewardPart> parts;
    for (const rewards::Group& group : groups) {
      for (const data::Trajectory& trajectory : group.trajectories) {
        double low = 0, all = 0;
        for (size_t i = static_cast<size_t>(trajectory.prompt_length);
             i < trajectory.token_ids.size(); ++i) {
          low += trajectory.token_ids[i] < 128 ? 1 : 0;
          all += 1;
        }
        parts.push_back({.score = all > 0 ? low / all : 0});
      }
    }
    return parts;
  }
};

inline rewards::RewardSum low_tokens() {
  rewards::RewardRegistry registry("reward");
  registry.add("low_tokens",
               [](const rewards::RewardOptions&) -> Result<std::unique_ptr<rewards::Reward>> {
                 return std::unique_ptr<rewards::Reward>(new LowTokens());
               });
  rewards::RewardConfig config;
  config.parts = {{.name = "low_tokens"}};
  return rewards::RewardSum::create(config, registry).value();
}

inline trainer::Policy tiny_device_policy() {
  model::NewModelConfig init;
  init.architecture = {.family = model::Family::kQwen3,
                       .hidden_size = 128,
                       .intermediate_size = 256,
                       .num_layers = 2,
                       .num_heads = 4,
                       .num_kv_heads = 2,
                       .head_dim = 64,
                       .max_position_embeddings = 256};
  init.initializer_range = 0.05;
  model::ModelSourceConfig source;
  source.init = init;
  return trainer::load_policy(source, 11).value();
}

inline trainer::RlSetup tiny_device_setup(bool has_kl) {
  trainer::RlSetup setup;
  setup.trainer.algorithm = trainer::preset("grpo");
  setup.trainer.algorithm.kl.coef = has_kl ? 0.01 : 0;
  trainer::resolve(setup.trainer, 24);
  setup.trainer.prompts_per_step = 8;
  setup.trainer.optimizer.learning_rate = 3e-3;
  setup.trainer.backward.micro_batch_tokens = 512;
  setup.rollout.num_samples = 8;
  setup.rollout.max_new_tokens = 24;
  setup.rollout.max_batch = 32;
  setup.rollout.kv_cache_mib = 16;
  setup.run.checkpoint_every = 0;
  setup.run.dump_rollouts = false;
  for (uint64_t i = 0; i < 32; ++i) {
    data::Prompt prompt;
    prompt.prompt_id = i;
    // Of several lengths, beyond a page of the cache.
    for (uint64_t t = 0; t < 3 + 5 * i; ++t) {
      prompt.token_ids.push_back(static_cast<int32_t>((31 * t + 7 * i) % 256));
    }
    setup.train_prompts.push_back(std::move(prompt));
  }
  return setup;
}

// A process that dies in the middle of a step.
struct Killed : std::runtime_error {
  Killed() : std::runtime_error("killed") {}
};

struct DeviceCourse {
  uint64_t weights = 0;  // hash, at the end
  std::vector<double> rewards, mismatches, gradient_norms, kls;
};

struct DeviceRunOptions {
  bool has_kl = false;
  std::string folder;  // of checkpoints; empty: none
  int64_t checkpoint_every = 0;
  int64_t killed_at_step = 0;  // 0: never
  int64_t num_steps = 20;
  std::string resume_from;
  int64_t micro_batch_tokens = 512;
  bool gradient_checkpointing = false;
  int64_t zero_stage = 0;
};

// A course of GRPO on the devices of the ranks.
inline DeviceCourse train_on_device(const kernels::Cuda& cuda, comm::Communicator& ranks,
                                    const DeviceRunOptions& options) {
  using namespace trainer;
  DeviceCourse course;
  Policy policy = tiny_device_policy();
  const rewards::RewardSum rewards = low_tokens();
  RlSetup setup = tiny_device_setup(options.has_kl);
  setup.trainer.num_steps = options.num_steps;
  setup.run.checkpoint_every = options.checkpoint_every;
  setup.trainer.backward.micro_batch_tokens = options.micro_batch_tokens;
  setup.trainer.backward.gradient_checkpointing = options.gradient_checkpointing;
  setup.trainer.backward.zero_stage = options.zero_stage;
  const Algorithm algorithm = make_algorithm(setup.trainer.algorithm, 24).value();
  Result<ComputeParts> parts = make_device_parts(cuda, policy,
                                                 {.optimizer = setup.trainer.optimizer,
                                                  .backward = setup.trainer.backward,
                                                  .has_reference = options.has_kl,
                                                  .rollout = &setup.rollout},
                                                 ranks);
  EXPECT_TRUE(parts.ok()) << parts.status().message();
  if (!parts.ok()) return course;
  setup.parts = std::move(*parts);
  Learner* const learner = setup.parts.learner.get();
  setup.on_step = [&](const Metrics& metrics) {
    course.rewards.push_back(metrics.value("critic/rewards/mean"));
    course.mismatches.push_back(metrics.value("mismatch/max_abs_logprob"));
    course.gradient_norms.push_back(metrics.value("actor/grad_norm"));
    if (options.has_kl) course.kls.push_back(metrics.value("actor/kl_loss"));
    if (static_cast<int64_t>(course.rewards.size()) == options.killed_at_step) throw Killed();
  };
  std::unique_ptr<records::CheckpointStore> store;
  std::unique_ptr<CheckpointSaver> saver;
  if (!options.folder.empty()) {
    if (ranks.rank() == 0) {  // the one that begins and commits
      store = std::make_unique<records::CheckpointStore>(
          options.folder, records::CheckpointPolicy{.keep_last = 2}, [](const std::string&) {});
    }
    saver = std::make_unique<CheckpointSaver>(store.get(), ranks);
  }
  records::RunDisplay display({.is_quiet = true});
  RlTrainer trainer(std::move(setup), policy, rewards, algorithm, ranks, {.saver = saver.get()},
                    display);
  if (!options.resume_from.empty()) {
    const Status resumed = trainer.resume(options.resume_from);
    EXPECT_TRUE(resumed.ok()) << resumed.message();
  }
  const Status status = trainer.run();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(learner->whole_weights().ok());
  course.weights =
      model::hash_parameters(policy.transformer->parameters(), policy.transformer->layout().size);
  return course;
}

}  // namespace gradus::testing
