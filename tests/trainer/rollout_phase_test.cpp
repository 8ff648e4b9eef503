// SPDX-License-Identifier: Apache-2.0
// The rollout phase in its three modes, on threads; tests/e2e/cluster_test.cpp has it under mpirun.
#include "trainer/rollout_phase.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>

#include "comm/in_process.h"
#include "records/rollout_messages.h"
#include "rollout/cpu_engine.h"
#include "tests/support/model_rows.h"

namespace gradus::trainer {
namespace {

using ::testing::HasSubstr;
using testing::random_tokens;

constexpr int64_t kPrompts = 4;
constexpr int64_t kSamples = 2;
constexpr int64_t kTokens = 12;

struct Case {
  ClusterMode mode = ClusterMode::kColocated;
  int num_ranks = 1;
  int64_t rollout_ranks = 1;
  int64_t staleness = 1;
  int64_t first_step = 0;
  int64_t num_steps = 4;
  bool send_only_changed = false;
  // A rollout rank that dies when it has done so many works, and what it leaves undone.
  int dies = -1;
  int works_before_death = 1;
  std::string state{};  // of take_down(), to begin with
};

// What trainer 0 got, and what take_down() gave after the second step.
struct Outcome {
  std::vector<std::vector<records::RolloutRecord>> batches;
  std::string state;
  double num_lost = 0;
};

// Weights after `step` updates: every one changes a little, and only some.
void update(model::Transformer& transformer, int64_t step) {
  for (int64_t i = 0; i < transformer.layout().size; i += 7) {
    transformer.parameters()[i] *= 1.0f + 0.002f * static_cast<float>(step % 3);
  }
}

std::unique_ptr<model::Transformer> weights_after(int64_t num_updates) {
  auto loaded = model::Transformer::load(testing::tiny_model_dir("qwen2"));
  GRADUS_CHECK(loaded.ok(), loaded.status().message());
  for (int64_t step = 1; step <= num_updates; ++step) update(**loaded, step);
  return std::move(*loaded);
}

uint64_t hash_of(const model::Transformer& transformer) {
  return model::hash_parameters(transformer.parameters(), transformer.layout().size);
}

rewards::RewardSum make_rewards() {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  rewards::RewardConfig config;
  config.parts.push_back({.name = "format", .options = {{"pattern", "(?s).*[a-m].*"}}});
  return std::move(rewards::RewardSum::create(config, registry)).value();
}

// One rank's life.
void live(const Case& c, comm::Communicator& ranks, Outcome& outcome) {
  RolloutPhaseSetup setup;
  setup.work.rollout.num_samples = kSamples;
  setup.work.rollout.max_new_tokens = kTokens;
  setup.cluster = {.mode = c.mode,
                   .rollout_ranks = c.rollout_ranks,
                   .staleness = c.staleness,
                   .send_only_changed = c.send_only_changed};
  setup.prompts_per_step = kPrompts;
  setup.num_steps = c.num_steps;
  const int num_training = static_cast<int>(num_trainers(setup.cluster, ranks.size()));
  const bool is_trainer = ranks.rank() < num_training;
  Policy policy;
  // A resumed run loads the checkpoint on trainers alone.
  policy.transformer = weights_after(is_trainer ? c.first_step : 0);
  policy.tokenizer = std::move(data::Tokenizer::load(testing::tiny_model_dir("qwen2"))).value();
  std::vector<data::Prompt> prompts(11);
  for (uint64_t i = 0; i < prompts.size(); ++i) {
    prompts[i].prompt_id = 100 + 2 * i;
    prompts[i].token_ids =
        random_tokens(static_cast<int64_t>(3 + i), policy.transformer->config().vocab_size, i);
    prompts[i].task = "t";
  }
  rollout::CpuEngine engine(*policy.transformer, policy.tokenizer.get(), {8, 8 << 20, 64});
  const rewards::RewardSum rewards = make_rewards();
  RolloutWorker worker(setup.work, engine, rewards, prompts);
  const std::unique_ptr<comm::Communicator> trainers = ranks.subset(0, num_training);
  if (trainers == nullptr) {
    for (int i = 0; ranks.rank() == c.dies && i < c.works_before_death; ++i) {
      ASSERT_TRUE(ranks.wait(comm::Tag::kWork, 0).ok());
    }
    if (ranks.rank() == c.dies) throw comm::RankDied();
    const Status status = serve_rollouts(ranks, num_training, policy, worker);
    EXPECT_TRUE(status.ok()) << status.message();
    return;
  }
  std::unique_ptr<RolloutClient> client;
  if (c.mode != ClusterMode::kColocated) {
    std::vector<comm::TensorRange> tensors;
    for (const model::ParameterPlace& place : policy.transformer->layout().places) {
      tensors.push_back({place.offset, place.size});
    }
    client = std::make_unique<RolloutClient>(
        ranks, *trainers, tensors,
        comm::WeightChannelOptions{1 << 14, setup.cluster.send_only_changed});
  }
  data::DataOrder order(static_cast<int64_t>(prompts.size()), 5, true);
  RolloutPhase phase(setup, policy.transformer->config(), prompts, order, worker, *trainers,
                     client.get());
  ASSERT_TRUE(phase.take_up(c.state).ok());
  for (int64_t step = c.first_step; step < c.num_steps; ++step) {
    Metrics metrics;
    const std::span<const float> weights(policy.transformer->parameters(),
                                         static_cast<size_t>(policy.transformer->layout().size));
    const BlockRange share = {kPrompts * trainers->rank() / trainers->size(),
                              kPrompts * (trainers->rank() + 1) / trainers->size()};
    Result<std::vector<records::RolloutRecord>> batch =
        phase.batch(step, static_cast<uint64_t>(step * kPrompts), share, weights,
                    {static_cast<uint64_t>(step), hash_of(*policy.transformer)}, metrics, {});
    ASSERT_TRUE(batch.ok()) << batch.status().message();
    if (trainers->rank() == 0) {
      outcome.batches.push_back(std::move(*batch));
      if (metrics.contains("rollout/lost_ranks")) {
        outcome.num_lost = metrics.value("rollout/lost_ranks");
      }
    }
    update(*policy.transformer, step + 1);
    if (step == 1) {
      Result<std::string> state = phase.take_down();
      ASSERT_TRUE(state.ok()) << state.status().message();
      if (trainers->rank() == 0) outcome.state = *state;
    }
  }
  if (client != nullptr) client->end();
}

Outcome run(const Case& c) {
  Outcome outcome;
  comm::run_ranks(c.num_ranks, [&](comm::Communicator& ranks) { live(c, ranks, outcome); },
                  {.may_lose = [&](int rank) { return rank == c.dies; }});
  EXPECT_EQ(static_cast<int64_t>(outcome.batches.size()), c.num_steps - c.first_step);
  return outcome;
}

void expect_equal(const Outcome& got, const Outcome& expected, size_t first_batch = 0) {
  ASSERT_EQ(got.batches.size() + first_batch, expected.batches.size());
  for (size_t step = 0; step < got.batches.size(); ++step) {
    EXPECT_EQ(records::encode(got.batches[step]),
              records::encode(expected.batches[first_batch + step]))
        << "batch " << step;
  }
}

TEST(RolloutPhase, SplitGivesTheBatchesOfColocatedForAnyNumberOfRanks) {
  const Outcome expected = run({});
  for (const records::RolloutRecord& record : expected.batches[3]) {
    EXPECT_EQ(record.trajectory.policy_version, 3u);
    EXPECT_EQ(record.step, 4);
    EXPECT_FALSE(std::isnan(record.reward));
  }
  expect_equal(run({.num_ranks = 2}), expected);
  expect_equal(run({.mode = ClusterMode::kSplit, .num_ranks = 2}), expected);
  expect_equal(run({.mode = ClusterMode::kSplit, .num_ranks = 4, .rollout_ranks = 3}), expected);
  expect_equal(run({.mode = ClusterMode::kSplit,
                    .num_ranks = 4,
                    .rollout_ranks = 2,
                    .send_only_changed = true}),
               expected);
  // More rollout ranks than prompts: some have nothing to do.
  expect_equal(run({.mode = ClusterMode::kSplit, .num_ranks = 7, .rollout_ranks = 5}), expected);
}

TEST(RolloutPhase, AsyncOneStepOffSamplesByTheWeightsOfOneStepBefore) {
  const Outcome expected = run({.mode = ClusterMode::kAsync, .num_ranks = 2});
  for (uint64_t step = 0; step < 4; ++step) {
    for (const records::RolloutRecord& record : expected.batches[step]) {
      const uint64_t version = step == 0 ? 0 : step - 1;
      EXPECT_EQ(record.trajectory.policy_version, version) << "step " << step;
      EXPECT_EQ(record.trajectory.weights_hash,
                hash_of(*weights_after(static_cast<int64_t>(version))));
      EXPECT_TRUE(record.trajectory.segments.empty());
    }
  }
  expect_equal(run({.mode = ClusterMode::kAsync, .num_ranks = 2}), expected);
  expect_equal(run({.mode = ClusterMode::kAsync, .num_ranks = 5, .rollout_ranks = 3}), expected);
  // The first batch is that of synchronous training, the third is not.
  const Outcome synchronous = run({});
  EXPECT_EQ(records::encode(synchronous.batches[0]), records::encode(expected.batches[0]));
  EXPECT_NE(records::encode(synchronous.batches[2]), records::encode(expected.batches[2]));
}

TEST(RolloutPhase, AsyncContinuesInterruptedResponsesUnderNewerWeights) {
  const Case c = {.mode = ClusterMode::kAsync, .num_ranks = 2, .staleness = 3, .num_steps = 6};
  const Outcome expected = run(c);
  bool has_three_versions = false;
  for (uint64_t step = 0; step < 6; ++step) {
    for (const records::RolloutRecord& record : expected.batches[step]) {
      const data::Trajectory& trajectory = record.trajectory;
      EXPECT_NE(trajectory.finish_reason, data::FinishReason::kInterrupted);
      EXPECT_FALSE(std::isnan(record.reward)) << "scored when whole";
      EXPECT_EQ(record.step, static_cast<int64_t>(step) + 1);
      uint64_t oldest = trajectory.policy_version;
      for (const data::Segment& segment : trajectory.segments) {
        oldest = std::min(oldest, segment.policy_version);
        EXPECT_EQ(segment.weights_hash,
                  hash_of(*weights_after(static_cast<int64_t>(segment.policy_version))));
      }
      EXPECT_LE(step - oldest, 3u);
      has_three_versions |= trajectory.segments.size() == 3;
      // A third of the tokens by each version, the last ones by the newest.
      if (trajectory.segments.size() == 3) {
        EXPECT_EQ(trajectory.segments[0].end, 4);
        EXPECT_EQ(trajectory.segments[1].end, 8);
        EXPECT_EQ(trajectory.policy_version, step - 1);
        EXPECT_EQ(trajectory.segments[0].policy_version, step - 3);
      }
    }
  }
  EXPECT_TRUE(has_three_versions);
  expect_equal(run(c), expected);
  Case more = c;
  more.num_ranks = 4;
  more.rollout_ranks = 3;
  expect_equal(run(more), expected);
}

TEST(RolloutPhase, AResumedAsyncRunGoesOnWithWhatWasBegun) {
  for (const int64_t staleness : {1, 3}) {
    const Case c = {
        .mode = ClusterMode::kAsync, .num_ranks = 2, .staleness = staleness, .num_steps = 5};
    const Outcome expected = run(c);
    EXPECT_FALSE(expected.state.empty());
    Case resumed = c;
    resumed.first_step = 2;
    resumed.state = expected.state;
    expect_equal(run(resumed), expected, 2);
    // Without it, the batch would be sampled by newer weights: the comparison can fail.
    resumed.state.clear();
    EXPECT_NE(records::encode(run(resumed).batches[0]), records::encode(expected.batches[2]));
  }
}

TEST(RolloutPhase, ADeadRolloutRanksShareIsDoneByTheOthers) {
  const Outcome expected = run({});
  for (const int works : {1, 2}) {
    const Outcome outcome = run({.mode = ClusterMode::kSplit,
                                 .num_ranks = 4,
                                 .rollout_ranks = 3,
                                 .dies = 2,
                                 .works_before_death = works == 1 ? 0 : 1});
    expect_equal(outcome, expected);
    EXPECT_EQ(outcome.num_lost, 1);
  }
  const Case c = {.mode = ClusterMode::kAsync, .num_ranks = 3, .rollout_ranks = 2, .staleness = 2};
  Case with_death = c;
  with_death.dies = 1;
  expect_equal(run(with_death), run(c));
}

TEST(RolloutPhase, WithoutRolloutRanksTheStepIsAnError) {
  comm::run_ranks(
      2,
      [](comm::Communicator& ranks) {
        if (ranks.rank() == 1) throw comm::RankDied();
        const auto trainers = ranks.subset(0, 1);
        RolloutClient client(ranks, *trainers, {{0, 4}}, {});
        const std::vector<float> weights(4);
        client.publish(weights, {1, 2});
        client.ask(1, std::vector<data::RolloutRequest>(2), 2);
        Metrics metrics;
        EXPECT_EQ(client.collect(metrics).status().message(),
                  "all 1 rollout ranks have died; start the run again with --resume, on hosts that "
                  "stay");
      },
      {.may_lose = [](int rank) { return rank == 1; }});
}

TEST(RolloutPhase, AnErrorOfARolloutRankNamesIt) {
  comm::run_ranks(3, [](comm::Communicator& ranks) {
    const auto trainers = ranks.subset(0, 1);
    if (trainers == nullptr) {
      const auto work = decode_work(ranks.wait(comm::Tag::kWork, 0)->bytes);
      RolloutAnswer answer;
      answer.number = work->number;
      answer.share = work->share;
      answer.records.resize(work->requests.size());
      if (ranks.rank() == 2) {
        answer.error_code = static_cast<int64_t>(StatusCode::kDataLoss);
        answer.error = "prompt 4, sample 1: the logits are not finite";
      }
      for (records::RolloutRecord& record : answer.records) {
        record.trajectory.token_ids = {1};
        record.trajectory.prompt_length = 1;
      }
      ranks.post(encode(answer), 0, comm::Tag::kRollouts);
      return;
    }
    RolloutClient client(ranks, *trainers, {{0, 4}}, {});
    const std::vector<float> weights(4);
    client.publish(weights, {1, 2});
    client.ask(1, std::vector<data::RolloutRequest>(4), 2);
    Metrics metrics;
    const Status status = client.collect(metrics).status();
    EXPECT_EQ(status.message(), "rank 2: prompt 4, sample 1: the logits are not finite");
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  });
}

TEST(ClusterConfig, RefusesShapesThatCannotTrain) {
  ClusterConfig config{.mode = ClusterMode::kSplit, .rollout_ranks = 2};
  EXPECT_TRUE(validate(config, 3, true).ok());
  EXPECT_EQ(num_trainers(config, 3), 1);
  EXPECT_EQ(validate(config, 2, false).message(),
            "cluster.rollout_ranks is 2 of 2 ranks, and nobody is left to train; start at least 3 "
            "ranks (mpirun -np 3), or set cluster.mode to colocated");
  config.mode = ClusterMode::kAsync;
  EXPECT_THAT(validate(config, 3, true).message(),
              HasSubstr("trainer.dynamic_sampling is on and cluster.mode is async"));
  config.mode = ClusterMode::kColocated;
  EXPECT_TRUE(validate(config, 1, true).ok());
  EXPECT_EQ(num_trainers(config, 4), 4);
}

}  // namespace
}  // namespace gradus::trainer
