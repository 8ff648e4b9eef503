// SPDX-License-Identifier: Apache-2.0
#include "trainer/critic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <set>

#include "tests/support/in_process_communicator.h"
#include "tests/support/model_rows.h"
#include "tests/support/tolerances.h"
#include "trainer/value_loss.h"

namespace gradus::trainer {
namespace {

using ::testing::HasSubstr;
using testing::random_tokens;
using testing::run_ranks;

TEST(ValueLoss, EqualsTheHandComputedValues) {
  // Return 1, value 0.2 before: within the band of 0.5 the loss is half the squared error.
  TokenValueLoss loss = value_loss(0.4, 0.2, 1.0, 0.5);
  EXPECT_NEAR(loss.loss, 0.18, 1e-15);
  EXPECT_NEAR(loss.slope, -0.6, 1e-15);
  EXPECT_FALSE(loss.is_clipped);
  // 0.9 lies beyond 0.2 + 0.5: the loss is that of 0.7 and pulls no more.
  loss = value_loss(0.9, 0.2, 1.0, 0.5);
  EXPECT_NEAR(loss.loss, 0.045, 1e-15);
  EXPECT_EQ(loss.slope, 0.0);
  EXPECT_TRUE(loss.is_clipped);
  // The same below the band.
  loss = value_loss(-0.9, 0.2, -1.0, 0.5);
  EXPECT_NEAR(loss.loss, 0.245, 1e-15);
  EXPECT_EQ(loss.slope, 0.0);
  // A value that has gone away from the return is pulled back, however far.
  loss = value_loss(-2.0, 0.2, 1.0, 0.5);
  EXPECT_NEAR(loss.loss, 4.5, 1e-15);
  EXPECT_NEAR(loss.slope, -3.0, 1e-15);
  EXPECT_FALSE(loss.is_clipped);
  // 0 is no clip.
  loss = value_loss(0.9, 0.2, 1.0, 0);
  EXPECT_NEAR(loss.loss, 0.005, 1e-15);
  EXPECT_NEAR(loss.slope, -0.1, 1e-15);
}

const std::vector<int64_t> kBegins = {0, 3, 4, 9};
const std::vector<double> kValues = {0.4, 0.9, -0.9, 2.0, -2.0, 0.1, 0.3, 1.2, 0.75};
const std::vector<double> kOld = {0.2, 0.2, 0.2, 0.1, 0.2, 0.0, 0.31, 0.5, -0.1};
const std::vector<double> kReturns = {1, 1, -1, 1, 1, 0.5, 0.3, -0.2, 0.2};

ValueLossTerms terms_of(Aggregation aggregation, const std::vector<double>& values,
                        std::vector<double>& slopes) {
  AlgorithmConfig config = preset("ppo");
  config.aggregation = aggregation;
  config.aggregation_length = 5;
  slopes.assign(values.size(), 0);
  return value_loss_terms(config, {.num_tokens = 9, .num_sequences = 3}, kBegins, values, kOld,
                          kReturns, 0.5, slopes);
}

constexpr Aggregation kAggregations[] = {
    Aggregation::kTokenMean, Aggregation::kTokenSum, Aggregation::kSeqMeanTokenSum,
    Aggregation::kSeqMeanTokenSumNorm, Aggregation::kSeqMeanTokenMean};

TEST(ValueLoss, SlopesAreThoseOfFiniteDifferences) {
  for (const Aggregation aggregation : kAggregations) {
    std::vector<double> slopes, unused;
    terms_of(aggregation, kValues, slopes);
    constexpr double kStep = 1e-6;
    for (size_t i = 0; i < kValues.size(); ++i) {
      std::vector<double> up = kValues, down = kValues;
      up[i] += kStep;
      down[i] -= kStep;
      const double slope =
          (terms_of(aggregation, up, unused).loss - terms_of(aggregation, down, unused).loss) /
          (2 * kStep);
      EXPECT_NEAR(slopes[i], slope, testing::kLossDifference) << i;
    }
  }
}

// Counts are those of the whole mini-batch, so its parts add up to it, token by token the same.
TEST(ValueLoss, DoesNotDependOnHowTheMiniBatchIsCut) {
  for (const Aggregation aggregation : kAggregations) {
    std::vector<double> whole;
    const ValueLossTerms expected = terms_of(aggregation, kValues, whole);
    EXPECT_EQ(expected.num_clipped, 2.0);
    AlgorithmConfig config = preset("ppo");
    config.aggregation = aggregation;
    config.aggregation_length = 5;
    double loss = 0, clipped = 0;
    for (size_t s = 0; s < 3; ++s) {
      const size_t begin = static_cast<size_t>(kBegins[s]);
      const size_t length = static_cast<size_t>(kBegins[s + 1]) - begin;
      std::vector<double> slopes(length);
      const ValueLossTerms terms = value_loss_terms(
          config, {.num_tokens = 9, .num_sequences = 3}, std::span(kBegins).subspan(s, 2),
          std::span(kValues).subspan(begin, length), std::span(kOld).subspan(begin, length),
          std::span(kReturns).subspan(begin, length), 0.5, slopes);
      loss += terms.loss;
      clipped += terms.num_clipped;
      for (size_t t = 0; t < length; ++t) EXPECT_EQ(slopes[t], whole[begin + t]);
    }
    EXPECT_NEAR(loss, expected.loss, 1e-15 * (1 + expected.loss));
    EXPECT_EQ(clipped, expected.num_clipped);
  }
}

TEST(ValueLoss, ExplainedVarianceIsOneForTheReturnsAndZeroForAConstant) {
  const std::vector<double> returns = {1, 2, 3, 6}, constant(4, 2.0);
  EXPECT_EQ(explained_variance(returns, returns), 1.0);
  EXPECT_NEAR(explained_variance(constant, returns), 0.0, 1e-5);
  // Errors 0 0 0 3 have the sample variance 2.25, returns 14 / 3.
  EXPECT_NEAR(explained_variance(std::vector<double>{1, 2, 3, 3}, returns), 1 - 2.25 * 3 / 14,
              1e-5);
  EXPECT_EQ(explained_variance({}, {}), 0.0);
}

Policy tiny_critic() {
  Policy policy;
  policy.transformer = model::Transformer::with_score_head(
      *model::Transformer::load(testing::tiny_model_dir("qwen2")).value(), 3);
  return policy;
}

TrainerConfig tiny_config() {
  TrainerConfig config;
  config.algorithm = preset("ppo");
  resolve(config, 16);
  config.num_steps = 10;
  config.critic->optimizer.learning_rate = 1e-2;
  return config;
}

// Eight groups of two responses, of which one in four has no score; rewards by length.
std::vector<ResponseGroup> tiny_groups(int64_t vocab_size) {
  std::vector<ResponseGroup> groups(8);
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int32_t sample = 0; sample < 2; ++sample) {
      records::RolloutRecord record;
      record.trajectory.id = {g, sample};
      record.trajectory.token_ids = random_tokens(static_cast<int64_t>(3 + g), vocab_size, g);
      record.trajectory.prompt_length = static_cast<int64_t>(3 + g);
      record.trajectory.finish_reason = data::FinishReason::kStop;
      const int64_t length =
          static_cast<int64_t>(1 + (3 * g + 5 * static_cast<size_t>(sample)) % 7);
      for (const int32_t token : random_tokens(length, vocab_size, 100 + g)) {
        data::append_token(record.trajectory, token, -1.0f, -1.0f);
      }
      const bool is_scored = (2 * g + static_cast<size_t>(sample)) % 4 != 3;
      record.reward = is_scored ? static_cast<double>(length) / 7 : std::nan("");
      groups[g].records.push_back(std::move(record));
    }
  }
  return groups;
}

struct Trained {
  uint64_t hash = 0;
  double first_loss = 0, last_loss = 0, max_abs_value = -1;
};

// Five steps on the same responses, two updates each.
Trained train(int num_ranks, int64_t micro_batch_tokens) {
  std::mutex mutex;
  std::vector<Trained> all;
  run_ranks(num_ranks, [&](comm::Communicator& communicator) {
    TrainerConfig config = tiny_config();
    config.backward.micro_batch_tokens = micro_batch_tokens;
    const Algorithm algorithm = make_algorithm(config.algorithm, 16).value();
    Critic critic(tiny_critic(), config, algorithm.config, communicator);
    Trained trained;
    RunPosition position;
    for (int step = 0; step < 5; ++step) {
      std::vector<ResponseGroup> groups =
          tiny_groups(critic.model().transformer->config().vocab_size);
      GRADUS_CHECK(critic.set_values(groups, step + 1).ok(), "values");
      set_advantages(algorithm, config, groups);
      Metrics metrics;
      for (const size_t half : {0, 1}) {
        const Status status = critic.update(std::span(groups).subspan(4 * half, 4), position,
                                            metrics, [](int64_t) {});
        GRADUS_CHECK(status.ok(), status.message());
        if (half == 1) continue;
        if (step == 0) trained.first_loss = metrics.value("critic/vf_loss");
        trained.last_loss = metrics.value("critic/vf_loss");
        trained.max_abs_value = metrics.value("mismatch/max_abs_value");
      }
    }
    trained.hash = model::hash_parameters(critic.model().transformer->parameters(),
                                          critic.model().transformer->layout().size);
    const std::lock_guard lock(mutex);
    all.push_back(trained);
  });
  for (const Trained& other : all) EXPECT_EQ(other.hash, all[0].hash) << "ranks differ";
  return all[0];
}

TEST(Critic, LearnsTheSameBitsOnAnyRanksAndMicroBatches) {
  const Trained one = train(1, 4096);
  EXPECT_LT(one.last_loss, one.first_loss);
  EXPECT_EQ(one.max_abs_value, 0.0);
  for (const auto& [ranks, tokens] : {std::pair(2, 4096), std::pair(4, 1), std::pair(1, 20)}) {
    const Trained other = train(ranks, tokens);
    EXPECT_EQ(other.hash, one.hash) << ranks << " ranks, " << tokens << " tokens";
    EXPECT_NEAR(other.last_loss, one.last_loss, 1e-12);
  }
}

TEST(Critic, ValuesGoToTheResponsesThatTakePart) {
  run_ranks(2, [&](comm::Communicator& communicator) {
    const TrainerConfig config = tiny_config();
    Critic critic(tiny_critic(), config, config.algorithm, communicator);
    std::vector<ResponseGroup> groups =
        tiny_groups(critic.model().transformer->config().vocab_size);
    ASSERT_TRUE(critic.set_values(groups, 1).ok());
    std::set<float> different;
    for (const ResponseGroup& group : groups) {
      for (size_t i = 0; i < group.records.size(); ++i) {
        const records::RolloutRecord& record = group.records[i];
        const bool is_in = takes_part(record, config.algorithm);
        EXPECT_EQ(record.values.size(), is_in ? record.trajectory.behavior_logprobs.size() : 0u);
        EXPECT_EQ(group.values[i].size(), record.values.size());
        different.insert(record.values.begin(), record.values.end());
      }
    }
    EXPECT_GT(different.size(), 20u);
    // What the records have is what a step goes on with from its middle.
    std::vector<ResponseGroup> again = groups;
    for (ResponseGroup& group : again) group.values.clear();
    ASSERT_TRUE(critic.keep_values(again, 1).ok());
    EXPECT_EQ(again[2].values, groups[2].values);
    again[5].records[0].values.clear();
    EXPECT_EQ(critic.keep_values(again, 4).message(),
              "step 4, prompt 5, sample 0: the rollouts lack the critic's values at the start of "
              "the step, in whose middle the state lies; replay the rollouts that were written "
              "with that state");
  });
}

TEST(Critic, ValuesThatAreNotNumbersOrNotThoseOfTheForwardEndTheStep) {
  run_ranks(1, [&](comm::Communicator& communicator) {
    TrainerConfig config = tiny_config();
    const Algorithm algorithm = make_algorithm(config.algorithm, 16).value();
    Critic critic(tiny_critic(), config, algorithm.config, communicator);
    const int64_t vocab_size = critic.model().transformer->config().vocab_size;
    std::vector<ResponseGroup> groups = tiny_groups(vocab_size);
    ASSERT_TRUE(critic.set_values(groups, 1).ok());
    set_advantages(algorithm, config, groups);
    RunPosition position;
    position.step = 6;
    Metrics metrics;
    groups[1].records[0].values[2] += 1e-6f;
    const Status status = critic.update(groups, position, metrics, [](int64_t) {});
    EXPECT_THAT(status.message(),
                HasSubstr("step 7, prompt 1, sample 0, response token 2: the critic's value is "));
    EXPECT_THAT(status.message(),
                HasSubstr(" before it; they must be equal to the last bit; set "
                          "trainer.allow_mismatch to go on all the same, and please report it"));
    critic.model().transformer->parameters()[critic.model().transformer->layout().head] = INFINITY;
    EXPECT_THAT(critic.set_values(groups, 7).message(),
                ::testing::MatchesRegex(
                    "step 7, prompt 0, sample 0, response token 0: the critic's value is -?[a-z]+: "
                    "its weights have left the range of floats; lower "
                    "trainer.critic.learning_rate"));
  });
}

}  // namespace
}  // namespace gradus::trainer
