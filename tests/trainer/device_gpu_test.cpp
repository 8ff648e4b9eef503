// SPDX-License-Identifier: Apache-2.0
// Training on the device, from rewards to weights: needs one (tools/gpu_check).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "comm/communicator.h"
#include "records/checkpoint_store.h"
#include "tests/kernels/head_case.h"
#include "tests/support/files.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/cpu_learner.h"
#include "trainer/device_parts.h"
#include "trainer/rl_trainer.h"
#include "trainer/sft_trainer.h"

namespace gradus::trainer {
namespace {

constexpr int64_t kSteps = 20;

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

rewards::RewardSum low_tokens() {
  rewards::RewardRegistry registry("reward");
  registry.add("low_tokens",
               [](const rewards::RewardOptions&) -> Result<std::unique_ptr<rewards::Reward>> {
                 return std::unique_ptr<rewards::Reward>(new LowTokens());
               });
  rewards::RewardConfig config;
  config.parts = {{.name = "low_tokens"}};
  return rewards::RewardSum::create(config, registry).value();
}

Policy tiny_policy() {
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
  return load_policy(source, 11).value();
}

RlSetup tiny_setup(bool has_kl) {
  RlSetup setup;
  setup.trainer.algorithm = preset("grpo");
  setup.trainer.algorithm.kl.coef = has_kl ? 0.01 : 0;
  resolve(setup.trainer, 24);
  setup.trainer.num_steps = kSteps;
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

struct Course {
  uint64_t weights = 0;  // hash, at the end
  std::vector<double> rewards, mismatches, gradient_norms, kls;
};

struct Options {
  bool has_kl = false;
  std::string folder;  // of checkpoints; empty: none
  int64_t checkpoint_every = 0;
  int64_t killed_at_step = 0;  // 0: never
  std::string resume_from;
  int64_t micro_batch_tokens = 512;
  bool gradient_checkpointing = false;
};

Course train(const kernels::Cuda& cuda, const Options& options) {
  Course course;
  Policy policy = tiny_policy();
  const rewards::RewardSum rewards = low_tokens();
  const std::unique_ptr<comm::Communicator> alone = comm::make_communicator().value();
  RlSetup setup = tiny_setup(options.has_kl);
  setup.run.checkpoint_every = options.checkpoint_every;
  setup.trainer.backward.micro_batch_tokens = options.micro_batch_tokens;
  setup.trainer.backward.gradient_checkpointing = options.gradient_checkpointing;
  const Algorithm algorithm = make_algorithm(setup.trainer.algorithm, 24).value();
  Result<ComputeParts> parts = make_device_parts(cuda, policy,
                                                 {.optimizer = setup.trainer.optimizer,
                                                  .backward = setup.trainer.backward,
                                                  .has_reference = options.has_kl,
                                                  .rollout = &setup.rollout},
                                                 *alone);
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
    store = std::make_unique<records::CheckpointStore>(
        options.folder, records::CheckpointPolicy{.keep_last = 2}, [](const std::string&) {});
    saver = std::make_unique<CheckpointSaver>(store.get(), *alone);
  }
  records::RunDisplay display({.is_quiet = true});
  RlTrainer trainer(std::move(setup), policy, rewards, algorithm, *alone, {.saver = saver.get()},
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

double mean(const std::vector<double>& values, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += values[i];
  return sum / static_cast<double>(end - begin);
}

TEST(DeviceTraining, GrpoLearnsWithoutAnyMismatchAndRepeatsBitForBit) {
  GRADUS_NEEDS_GPU(cuda);
  const Course first = train(*cuda, {});
  ASSERT_EQ(first.rewards.size(), static_cast<size_t>(kSteps));
  for (size_t step = 0; step < first.mismatches.size(); ++step) {
    EXPECT_EQ(first.mismatches[step], 0) << "step " << step + 1;
    EXPECT_GT(first.gradient_norms[step], 0) << "step " << step + 1;
  }
  EXPECT_GT(mean(first.rewards, 15, 20), mean(first.rewards, 0, 5) + 0.15);
  const Course second = train(*cuda, {});
  EXPECT_EQ(second.weights, first.weights);
  EXPECT_EQ(second.rewards, first.rewards);
}

TEST(DeviceTraining, AKilledRunGoesOnFromItsCheckpointAsIfItHadNotStopped) {
  GRADUS_NEEDS_GPU(cuda);
  const Course whole = train(*cuda, {});
  const test::TemporaryFolder folder;
  Options options = {
      .folder = folder.path() + "/checkpoints", .checkpoint_every = 5, .killed_at_step = 13};
  EXPECT_THROW(train(*cuda, options), Killed);
  records::CheckpointStore store(options.folder, records::CheckpointPolicy{.keep_last = 2},
                                 [](const std::string&) {});
  const auto latest = store.latest();
  ASSERT_TRUE(latest.has_value());
  EXPECT_EQ(latest->step, 10);
  const Course rest = train(*cuda, {.resume_from = latest->folder});
  EXPECT_EQ(rest.rewards.size(), 10u);
  EXPECT_EQ(rest.weights, whole.weights);
}

// The reference is a model of its own, which updates leave alone: the first step's KL is exactly 0.
TEST(DeviceTraining, KlToTheInitialModelIsZeroAtFirstAndGrows) {
  GRADUS_NEEDS_GPU(cuda);
  const Course course = train(*cuda, {.has_kl = true});
  ASSERT_EQ(course.kls.size(), static_cast<size_t>(kSteps));
  EXPECT_EQ(course.kls[0], 0);
  EXPECT_GT(course.kls.back(), 1e-4);
  for (const double mismatch : course.mismatches) EXPECT_EQ(mismatch, 0);
}

TEST(DeviceTraining, CheckpointedLayersAndOtherMicroBatchesKeepLogProbsExact) {
  GRADUS_NEEDS_GPU(cuda);
  const Course plain = train(*cuda, {});
  const Course checkpointed = train(*cuda, {.gradient_checkpointing = true});
  EXPECT_EQ(checkpointed.weights, plain.weights) << "the layers' forward is the same again";
  const Course small = train(*cuda, {.micro_batch_tokens = 64});
  for (const double mismatch : small.mismatches) EXPECT_EQ(mismatch, 0);
  EXPECT_NEAR(small.rewards.back(), plain.rewards.back(), 0.3);
}

TEST(DeviceTraining, SupervisedLossFallsAndItsCheckpointIsReadByTheCpu) {
  GRADUS_NEEDS_GPU(cuda);
  Policy policy = tiny_policy(), on_cpu = tiny_policy();
  const std::unique_ptr<comm::Communicator> alone = comm::make_communicator().value();
  SftConfig config;
  config.num_steps = 30;
  config.batch_rows = 8;
  config.optimizer.learning_rate = 3e-3;
  std::vector<SftExample> examples;
  for (int32_t i = 0; i < 32; ++i) {
    examples.push_back({{i, 7, 9}, {65, 66 + i % 4, 67, 68, 256}});
  }
  Result<ComputeParts> parts = make_device_parts(
      *cuda, policy, {.optimizer = config.optimizer, .backward = config.backward}, *alone);
  ASSERT_TRUE(parts.ok()) << parts.status().message();
  const test::TemporaryFolder folder;
  records::CheckpointStore store(folder.path() + "/checkpoints",
                                 records::CheckpointPolicy{.keep_last = 1},
                                 [](const std::string&) {});
  CheckpointSaver saver(&store, *alone);
  records::RunDisplay display({.is_quiet = true});
  const auto loss_of = [&](Learner& learner) {
    double sum = 0;
    std::vector<data::PackGroup> groups;
    for (const SftExample& example : examples) {
      groups.push_back({example.prompt, {example.response}});
    }
    EXPECT_TRUE(learner
                    .forward(groups, 1.0f,
                             [&](int64_t, int64_t, std::span<const float> logprobs,
                                 std::span<const float>) {
                               for (const float logprob : logprobs) sum -= logprob;
                             })
                    .ok());
    return sum / (5.0 * static_cast<double>(examples.size()));
  };
  Learner* const learner = parts->learner.get();
  const double before = loss_of(*learner);
  RunSettings run;
  run.checkpoint_every = 0;
  SftTrainer trainer({.sft = config, .run = run, .examples = examples, .parts = std::move(*parts)},
                     policy, *alone, {.saver = &saver}, display);
  const Status status = trainer.run();
  ASSERT_TRUE(status.ok()) << status.message();
  const double after = loss_of(*learner);
  EXPECT_LT(after, before / 3);

  CpuLearner cpu(*on_cpu.transformer, config.optimizer, {}, *alone);
  RunPosition position;
  const Status loaded = load_checkpoint(store.latest()->folder, on_cpu, cpu, position);
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  EXPECT_EQ(cpu.num_updates(), 30);
  EXPECT_NEAR(loss_of(cpu), after, 0.02) << "fp32 weights that the device rounds to bf16";
}

}  // namespace
}  // namespace gradus::trainer
