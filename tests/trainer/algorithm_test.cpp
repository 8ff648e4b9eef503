// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "common/rng.h"
#include "tests/support/tolerances.h"
#include "trainer/algorithms/corrections.h"
#include "trainer/algorithms/kl.h"
#include "trainer/learner.h"

namespace gradus::trainer {
namespace {

using ::testing::HasSubstr;

AlgorithmConfig with(const std::string& name, const std::function<void(AlgorithmConfig&)>& change) {
  AlgorithmConfig config = preset(name);
  change(config);
  return config;
}

Algorithm made(const AlgorithmConfig& config) { return make_algorithm(config, 16).value(); }

// Responses of one token each in groups of `group_size`, with their rewards.
std::vector<ScoredSequence> scored(const std::vector<double>& rewards, size_t group_size) {
  std::vector<ScoredSequence> sequences(rewards.size());
  for (size_t s = 0; s < rewards.size(); ++s) {
    sequences[s].group = static_cast<int64_t>(s / group_size);
    sequences[s].reward = rewards[s];
    sequences[s].num_tokens = 1;
  }
  return sequences;
}

std::vector<double> advantages_of(const std::string& advantage, const std::vector<double>& rewards,
                                  const std::function<void(AlgorithmConfig&)>& change = {}) {
  AlgorithmConfig config = preset("grpo");
  config.advantage = advantage;
  if (change) change(config);
  return made(config).advantage->estimate(scored(rewards, rewards.size())).tokens;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want, double by) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], by) << i;
}

TEST(GroupAdvantage, EqualsTheHandComputedValues) {
  // Rewards 1 0 0 0: mean 1/4; deviation with n - 1: sqrt((9/16 + 3/16) / 3) = 1/2, with n:
  // sqrt(3)/4.
  const std::vector<double> rewards = {1, 0, 0, 0};
  const auto no_epsilon = [](AlgorithmConfig& config) { config.std_epsilon = 0; };
  expect_near(advantages_of("grpo", rewards, no_epsilon), {1.5, -0.5, -0.5, -0.5}, 1e-12);
  const double root = std::sqrt(3.0);
  expect_near(advantages_of("grpo", rewards,
                            [](AlgorithmConfig& config) {
                              config.std_epsilon = 0;
                              config.deviation = Deviation::kPopulation;
                            }),
              {root, -root / 3, -root / 3, -root / 3}, 1e-12);
  expect_near(advantages_of("dr_grpo", rewards), {0.75, -0.25, -0.25, -0.25}, 1e-12);
  expect_near(advantages_of("rloo", rewards), {1, -1.0 / 3, -1.0 / 3, -1.0 / 3}, 1e-12);
  expect_near(advantages_of("maxrl", rewards), {3, -1, -1, -1}, 1e-12);
  // The best leads the second by 1; deviation 1/2.
  expect_near(advantages_of("pass_at_k", rewards, no_epsilon), {2, 0, 0, 0}, 1e-12);
  // The default epsilon is verl's.
  expect_near(advantages_of("grpo", rewards),
              {0.75 / 0.500001, -0.25 / 0.500001, -0.25 / 0.500001, -0.25 / 0.500001}, 1e-12);
}

TEST(GroupAdvantage, OpoWeighsTheBaselineByLength) {
  // Lengths 1 and 3, rewards 1 and 0: baseline 1/4.
  std::vector<ScoredSequence> sequences = scored({1, 0}, 2);
  sequences[1].num_tokens = 3;
  expect_near(made(preset("opo")).advantage->estimate(sequences).tokens,
              {0.75, -0.25, -0.25, -0.25}, 1e-12);
}

TEST(GroupAdvantage, MaxrlOfAMeanThatIsNotPositiveIsZero) {
  EXPECT_EQ(advantages_of("maxrl", {-1, 0.5}), (std::vector<double>{0, 0}));
}

TEST(GroupAdvantage, GdpoGivesEachPartItsSayWhateverItsScale) {
  // Part 1 has scores 0 and 100, part 2 scores 1 and 0: after scaling each is +-1/sqrt(2), and they
  // cancel; with weights 1 and 3 the second wins.
  std::vector<ScoredSequence> sequences = scored({0, 0}, 2);
  sequences[0].reward_parts = {0, 1};
  sequences[1].reward_parts = {100, 0};
  AlgorithmConfig config = preset("grpo");
  config.advantage = "gdpo";
  config.scaling = Scaling::kNone;
  config.std_epsilon = 0;
  expect_near(made(config).advantage->estimate(sequences).tokens, {0, 0}, 1e-12);
  sequences[0].part_weights = sequences[1].part_weights = {1, 3};
  const double root = std::sqrt(2.0);
  expect_near(made(config).advantage->estimate(sequences).tokens, {root, -root}, 1e-12);
  // A part that does not apply to a response is left out of its statistics.
  sequences[0].reward_parts[1] = std::nan("");
  expect_near(made(config).advantage->estimate(sequences).tokens, {-1 / root, 1 / root}, 1e-12);
}

TEST(GroupAdvantage, AMaskedResponseStaysInTheMean) {
  std::vector<ScoredSequence> sequences = scored({1, 0, 0.5, 0}, 4);
  sequences[3].num_tokens = 0;
  const Advantages advantages = made(preset("dr_grpo")).advantage->estimate(sequences);
  expect_near(advantages.tokens, {0.625, -0.375, 0.125}, 1e-12);
  EXPECT_EQ(advantages.sequence_begin, (std::vector<int64_t>{0, 1, 2, 3, 3}));
}

TEST(ReturnAdvantage, WhitensAndDiscountsAsComputedByHand) {
  // Returns 1 2 3 whiten to -1 0 1: mean 2, unbiased variance 1.
  AlgorithmConfig config = preset("reinforce_pp");
  const std::vector<ScoredSequence> three = scored({1, 2, 3}, 1);
  expect_near(made(config).advantage->estimate(three).tokens, {-1, 0, 1}, 1e-7);
  // One response of three tokens, reward 8, gamma 1/2: returns 2 4 8; penalty 1 at the second: the
  // first loses half of it.
  std::vector<ScoredSequence> one = scored({8}, 1);
  one[0].num_tokens = 3;
  config.gamma = 0.5;
  config.scaling = Scaling::kNone;
  expect_near(made(config).advantage->estimate(one).tokens, {2, 4, 8}, 1e-12);
  const std::vector<double> penalties = {0, 1, 0};
  one[0].penalties = penalties;
  expect_near(made(config).advantage->estimate(one).tokens, {1.5, 3, 8}, 1e-12);
}

TEST(ReturnAdvantage, GaeEqualsTheHandComputedValues) {
  // Values 1 2, reward 4 at the end, gamma 1, lambda 1/2: delta_2 = 4 - 2 = 2, delta_1 = 2 - 1 = 1;
  // A_2 = 2, A_1 = 1 + 2 / 2 = 2; returns 3 4.
  std::vector<ScoredSequence> sequences = scored({4}, 1);
  sequences[0].num_tokens = 2;
  const std::vector<double> values = {1, 2};
  sequences[0].values = values;
  AlgorithmConfig config = preset("ppo");
  config.gae_lambda = 0.5;
  config.scaling = Scaling::kNone;
  const Advantages advantages = made(config).advantage->estimate(sequences);
  expect_near(advantages.tokens, {2, 2}, 1e-12);
  expect_near(advantages.returns, {3, 4}, 1e-12);
}

TEST(ReturnAdvantage, RemaxComparesWithTheGreedyResponse) {
  std::vector<ScoredSequence> sequences = scored({1, 0}, 2);
  for (ScoredSequence& sequence : sequences) sequence.greedy_reward = 0.75;
  expect_near(made(preset("remax")).advantage->estimate(sequences).tokens, {0.25, -0.75}, 1e-12);
}

class EveryAdvantage : public ::testing::TestWithParam<std::string> {
 protected:
  AlgorithmConfig config() const {
    AlgorithmConfig config = preset("grpo");
    config.advantage = GetParam();
    return config;
  }
  // Two groups of three responses of one to six tokens, with all that any estimator asks for.
  std::vector<ScoredSequence> sequences(const std::vector<double>& rewards) {
    std::vector<ScoredSequence> all = scored(rewards, 3);
    values_.assign(6, 0.0);
    for (size_t s = 0; s < all.size(); ++s) {
      all[s].num_tokens = static_cast<int64_t>(s + 1);
      all[s].values = std::span(values_).first(s + 1);
      all[s].reward_parts = {rewards[s], 2 * rewards[s]};
      all[s].greedy_reward = rewards[0];
    }
    return all;
  }
  std::vector<double> values_;
};

TEST_P(EveryAdvantage, OfEqualRewardsTeachesNothingWhereResponsesAreCompared) {
  // The mean of three 0.1 is not 0.1 in binary; divided by 1e-6 the difference would show.
  const auto algorithm = made(config());
  const auto equal = sequences({0.1, 0.1, 0.1, 0.1, 0.1, 0.1});
  for (const double advantage : algorithm.advantage->estimate(equal).tokens) {
    EXPECT_EQ(advantage, 0.0);
  }
}

TEST_P(EveryAdvantage, FollowsItsResponseWhateverTheOrder) {
  const auto algorithm = made(config());
  const std::vector<ScoredSequence> forward = sequences({1, 0, 0.25, 0.5, 2, -1});
  const std::vector<ScoredSequence> backward(forward.rbegin(), forward.rend());
  const Advantages a = algorithm.advantage->estimate(forward);
  const Advantages b = algorithm.advantage->estimate(backward);
  for (size_t s = 0; s < forward.size(); ++s) {
    const size_t other = forward.size() - 1 - s;
    for (int64_t t = 0; t < forward[s].num_tokens; ++t) {
      EXPECT_NEAR(a.tokens[static_cast<size_t>(a.sequence_begin[s] + t)],
                  b.tokens[static_cast<size_t>(b.sequence_begin[other] + t)], 1e-12)
          << s << ", " << t;
    }
  }
}

TEST_P(EveryAdvantage, RefusesRewardsThatAreNotFinite) {
  auto broken = sequences({1, 0, 0.25, 0.5, 2, -1});
  EXPECT_EQ(check_advantage_input(config(), broken).message(), "");
  broken[4].reward = std::nan("");
  EXPECT_EQ(check_advantage_input(config(), broken).message(),
            "sequence 4: the reward is nan; rewards must be finite numbers; repair the reward, or "
            "leave the response out");
}

TEST_P(EveryAdvantage, RefusesGroupsThatCannotBeCompared) {
  auto uneven = sequences({1, 0, 0.25, 0.5, 2, -1});
  uneven.pop_back();
  const std::string message = check_advantage_input(config(), uneven).message();
  uneven.pop_back();
  const std::string of_one = check_advantage_input(config(), uneven).message();
  if (!compares_groups(GetParam())) {
    EXPECT_EQ(message + of_one, "");
    return;
  }
  EXPECT_EQ(message,
            "groups are of unequal size: group 0 has 3 sequences, group 1 has 2; the "
            "advantage " +
                GetParam() + " needs the same number everywhere");
  EXPECT_EQ(of_one, "group 1 has one sequence, but the advantage " + GetParam() +
                        " compares the responses of a group; give at least 2, or choose an "
                        "advantage without groups");
}

std::vector<std::string> advantage_names() {
  AdvantageRegistry registry("advantage");
  register_builtin_advantages(registry);
  return registry.names();
}
INSTANTIATE_TEST_SUITE_P(Builtin, EveryAdvantage, ::testing::ValuesIn(advantage_names()),
                         [](const auto& test_case) {
                           std::string name = test_case.param;
                           std::erase(name, '_');
                           return name;
                         });

TEST(AdvantageInput, NamesWhatAnEstimatorLacks) {
  const auto message = [](const std::string& advantage) {
    AlgorithmConfig config;
    config.advantage = advantage;
    return check_advantage_input(config, scored({1, 0}, 2)).message();
  };
  EXPECT_THAT(message("gae"), HasSubstr("sequence 0: 0 values for 1 loss tokens; the advantage gae "
                                        "needs the critic's value at each"));
  EXPECT_THAT(message("remax"), HasSubstr("sequence 0: no greedy_reward; the advantage remax"));
  EXPECT_THAT(message("gdpo"),
              HasSubstr("sequence 0: no reward_parts; the advantage gdpo compares each"));
}

// A mini-batch of responses and the log-probs of the policy now.
struct Tokens {
  MiniBatch batch;
  std::vector<double> logprobs, reference, entropies;
};

// One response per advantage with one token whose ratio to the old policy is given.
Tokens with_ratios(const std::vector<double>& advantages, const std::vector<double>& ratios) {
  Tokens tokens;
  for (size_t s = 0; s < ratios.size(); ++s) {
    tokens.batch.sequence_begin.push_back(static_cast<int64_t>(s + 1));
    tokens.batch.sequence_keys.push_back(s);
    tokens.batch.advantages.push_back(advantages[s]);
    tokens.batch.old_logprobs.push_back(-2.0);
    tokens.logprobs.push_back(-2.0 + std::log(ratios[s]));
    tokens.entropies.push_back(0.5);
  }
  tokens.batch.behavior_logprobs = tokens.batch.old_logprobs;
  tokens.batch.logprobs = tokens.logprobs;
  return tokens;
}

// Responses of 4, 1, 0 and 6 tokens with ratios from 0.4 to 2.5, advantages by token.
Tokens random_tokens(uint64_t seed) {
  RngSequence rng(seed, RngStream::kInit);
  Tokens tokens;
  tokens.batch.sequence_begin = {0, 4, 5, 5, 11};
  tokens.batch.sequence_keys = {seed, seed + 1, seed + 2, seed + 3};
  for (int i = 0; i < 11; ++i) {
    const double old = -2.0 + 1.5 * rng.uniform();
    tokens.batch.advantages.push_back(i < 4 ? 1.3 : (i < 5 ? -0.7 : rng.uniform() - 0.3));
    tokens.batch.old_logprobs.push_back(old);
    tokens.batch.behavior_logprobs.push_back(old + 0.8 * (rng.uniform() - 0.5));
    tokens.logprobs.push_back(old + 1.8 * (rng.uniform() - 0.5));
    tokens.reference.push_back(old + rng.uniform() - 0.5);
    tokens.entropies.push_back(rng.uniform());
  }
  tokens.batch.logprobs = tokens.logprobs;
  tokens.batch.entropies = tokens.entropies;
  return tokens;
}

LossTerms evaluate(const LossPlan& plan, const Tokens& tokens,
                   const std::vector<double>& logprobs) {
  return plan.terms({0, static_cast<int64_t>(tokens.batch.sequence_keys.size()), logprobs,
                     tokens.reference, tokens.entropies, tokens.logprobs});
}

LossTerms evaluate(const AlgorithmConfig& config, const Tokens& tokens) {
  const Algorithm algorithm = made(config);
  const LossPlan plan(algorithm.config, *algorithm.loss, 0.0, tokens.batch);
  return evaluate(plan, tokens, tokens.logprobs);
}

TEST(PpoLoss, ClipsAsTheHandComputedCases) {
  // clip 0.2 / 0.28, dual clip 3; -A r and -A clip(r):
  //   A =  1, r = 1.5: -1.5, -1.28 -> -1.28, no slope
  //   A =  1, r = 0.5: -0.5, -0.8  -> -0.5, slope -0.5
  //   A = -1, r = 0.5:  0.5,  0.8  ->  0.8, no slope
  //   A = -1, r = 1.5:  1.5,  1.28 ->  1.5, slope 1.5
  //   A = -1, r = 10:  10 -> dual clip 3, no slope
  const Tokens tokens = with_ratios({1, 1, -1, -1, -1}, {1.5, 0.5, 0.5, 1.5, 10});
  const LossTerms terms = evaluate(preset("grpo"), tokens);
  expect_near(terms.token_loss, {-1.28, -0.5, 0.8, 1.5, 3}, 1e-12);
  expect_near(terms.dlogprobs, {0, -0.5 / 5, 0, 1.5 / 5, 0}, 1e-12);
  EXPECT_NEAR(terms.policy_loss, (-1.28 - 0.5 + 0.8 + 1.5 + 3) / 5, 1e-12);
  EXPECT_EQ(terms.counts.clipped_high, 1);
  EXPECT_EQ(terms.counts.clipped_low, 1);
  EXPECT_EQ(terms.counts.dual_clipped, 1);
  EXPECT_NEAR(terms.max_ratio, 10, 1e-12);
  EXPECT_NEAR(terms.min_ratio, 0.5, 1e-12);
}

TEST(PpoLoss, TheTwoSidedClipHoldsTheRatioOfBadTokens) {
  const AlgorithmConfig config = with("grpo", [](AlgorithmConfig& c) {
    c.clip_dual = 0;
    c.delta = 4;
  });
  // A = -1: r = 10 counts as 4, without slope; r = 2 as it is.
  const LossTerms terms = evaluate(config, with_ratios({-1, -1}, {10, 2}));
  expect_near(terms.token_loss, {4, 2}, 1e-12);
  expect_near(terms.dlogprobs, {0, 1}, 1e-12);
}

TEST(Losses, EqualTheHandComputedValues) {
  // CISPO: A = 1, r = 2, high 0.2: -1.2 lp.
  Tokens one = with_ratios({1}, {2});
  LossTerms terms = evaluate(preset("cispo"), one);
  EXPECT_NEAR(terms.token_loss[0], -1.2 * one.logprobs[0], 1e-12);
  EXPECT_NEAR(terms.dlogprobs[0], -1.2, 1e-12);
  // SAPO at r = 1: -A 2 / tau with the slope of plain policy gradient.
  terms = evaluate(preset("sapo"), with_ratios({1, -1}, {1, 1}));
  expect_near(terms.token_loss, {-2, 2 / 1.05}, 1e-12);
  expect_near(terms.dlogprobs, {-0.5, 0.5}, 1e-12);
  // VESPO at w = 1: the factor is 1.
  terms = evaluate(preset("vespo"), with_ratios({1, -1}, {1, 1}));
  expect_near(terms.dlogprobs, {-0.5, 0.5}, 1e-12);
  // GPG: one of two responses has an advantage: twice its gradient.
  terms = evaluate(preset("gpg"), with_ratios({1, 0}, {1, 1}));
  expect_near(terms.dlogprobs, {-1, 0}, 1e-12);
  // DPPO: probability e^-2 = 0.135 doubled moves 0.135 < 0.2; four times 0.406 > 0.2.
  terms = evaluate(preset("dppo_tv"), with_ratios({1, 1}, {2, 4}));
  expect_near(terms.dlogprobs, {-1, 0}, 1e-12);
}

// A response of two tokens with lp - lo = 0.1 and 0.3, A = 1, ratio s = e^0.2 = 1.2214.
Tokens two_steps() {
  Tokens tokens = with_ratios({1, 1}, {std::exp(0.1), std::exp(0.3)});
  tokens.batch.sequence_begin = {0, 2};
  tokens.batch.sequence_keys = {1};
  return tokens;
}

TEST(Losses, OfWholeResponsesEqualTheHandComputedValues) {
  const double s = std::exp(0.2);
  const auto wide = [](AlgorithmConfig& config) { config.clip_low = config.clip_high = 0.5; };
  LossTerms terms = evaluate(with("gspo", wide), two_steps());
  expect_near(terms.token_loss, {-s, -s}, 1e-12);
  expect_near(terms.dlogprobs, {-s / 2, -s / 2}, 1e-12);
  EXPECT_NEAR(terms.policy_loss, -s, 1e-12);
  // LUSPO: times the length of 2.
  terms = evaluate(with("luspo", wide), two_steps());
  EXPECT_NEAR(terms.policy_loss, -2 * s, 1e-12);
  // GMPO with the log-ratio held at 0.2: exp((0.1 + 0.2) / 2), and only the first token moves it.
  terms = evaluate(with("gmpo", [](AlgorithmConfig& c) { c.clip_high = 0.2; }), two_steps());
  EXPECT_NEAR(terms.policy_loss, -std::exp(0.15), 1e-12);
  expect_near(terms.dlogprobs, {-std::exp(0.15) / 2, 0}, 1e-12);
}

TEST(Aggregations, DivideByTokensOrByResponses) {
  // Two responses of 1 and 3 tokens, loss -1 at each token (A = 1, r = 1); L = 10.
  Tokens tokens = with_ratios({1, 1, 1, 1}, {1, 1, 1, 1});
  tokens.batch.sequence_begin = {0, 1, 4};
  tokens.batch.sequence_keys = {0, 1};
  const std::vector<std::pair<Aggregation, std::vector<double>>> cases = {
      {Aggregation::kTokenMean, {-1, -0.25, -0.25}},
      {Aggregation::kTokenSum, {-4, -1, -1}},
      {Aggregation::kSeqMeanTokenSum, {-2, -0.5, -0.5}},
      {Aggregation::kSeqMeanTokenSumNorm, {-0.2, -0.05, -0.05}},
      {Aggregation::kSeqMeanTokenMean, {-1, -0.5, -1.0 / 6}}};
  for (const auto& [aggregation, want] : cases) {
    AlgorithmConfig config = preset("grpo");
    config.aggregation = aggregation;
    if (aggregation == Aggregation::kSeqMeanTokenSumNorm) config.aggregation_length = 10;
    const LossTerms terms = evaluate(config, tokens);
    expect_near({terms.policy_loss, terms.dlogprobs[0], terms.dlogprobs[3]}, want, 1e-12);
  }
}

TEST(Kl, EqualsTheHandComputedValues) {
  // d = lf - lp = 0.5.
  EXPECT_NEAR(kl_term(KlKind::kK1, -1, -1, -1, -0.5).value, -0.5, 1e-12);
  EXPECT_NEAR(kl_term(KlKind::kAbs, -1, -1, -1, -0.5).value, 0.5, 1e-12);
  EXPECT_NEAR(kl_term(KlKind::kK2, -1, -1, -1, -0.5).value, 0.125, 1e-12);
  EXPECT_NEAR(kl_term(KlKind::kK3, -1, -1, -1, -0.5).value, 0.1487212707, 1e-9);
  // Weighed by exp(lp - lo) = 2.
  EXPECT_NEAR(kl_term(KlKind::kK3Corrected, -1, -1, -1 - std::log(2.0), -0.5).value, 0.2974425414,
              1e-9);
  EXPECT_NEAR(kl_term(KlKind::kK1Straight, -1, -1, -1, -0.5).slope, -0.5, 1e-12);
  EXPECT_NEAR(kl_term(KlKind::kK3Straight, -1, -1, -1, -0.5).value, 0.1487212707, 1e-9);
  // verl's bound: the value is held at 10.
  EXPECT_EQ(kl_term(KlKind::kK3, -9, -9, -9, -1).value, 10);
  EXPECT_EQ(kl_term(KlKind::kK3, -9, -9, -9, -1).slope, 0);
}

TEST(Kl, TheControllerStepsByAFifthAtMost) {
  KlConfig config;
  config.target = 0.1;
  config.horizon = 1000;
  // kl / target - 1 = 0.1, n / horizon = 0.05; then held at 0.2 and -0.2.
  EXPECT_NEAR(adapted_kl_coef(config, 2.0, 0.11, 50), 2.0 * 1.005, 1e-12);
  EXPECT_NEAR(adapted_kl_coef(config, 2.0, 9.0, 50), 2.0 * 1.01, 1e-12);
  EXPECT_NEAR(adapted_kl_coef(config, 2.0, 0.0, 50), 2.0 * 0.99, 1e-12);
}

// Weights of one response whose tokens have the ratios rho = pi_old / pi_behaviour.
std::vector<double> weights_for(const std::vector<double>& rhos,
                                const std::function<void(AlgorithmConfig&)>& change) {
  AlgorithmConfig config = preset("grpo");
  change(config);
  MiniBatch batch;
  for (const double rho : rhos) {
    batch.old_logprobs.push_back(-1);
    batch.behavior_logprobs.push_back(-1 - std::log(rho));
  }
  batch.sequence_begin = {0, static_cast<int64_t>(rhos.size())};
  return correction_weights(config, batch);
}

TEST(Corrections, EqualTheHandComputedWeights) {
  const std::vector<double> rhos = {0.25, 1, 3, 8};  // product 6, geometric mean 6^(1/4) = 1.565
  using Kind = CorrectionKind;
  const auto kind = [](Kind value) {
    return [value](AlgorithmConfig& config) { config.correction.kind = value; };
  };
  expect_near(weights_for(rhos, kind(Kind::kNone)), {1, 1, 1, 1}, 1e-12);
  expect_near(weights_for(rhos, kind(Kind::kTisToken)), {0.25, 1, 2, 2}, 1e-12);
  expect_near(weights_for(rhos, kind(Kind::kTisSequence)), {2, 2, 2, 2}, 1e-12);
  expect_near(weights_for(rhos, kind(Kind::kIcepop)), {0, 1, 3, 0}, 1e-12);
  expect_near(weights_for(rhos, kind(Kind::kGeometric)), {0, 0, 0, 0}, 1e-12);
  expect_near(weights_for(rhos, kind(Kind::kReject)), {0, 1, 0, 0}, 1e-12);
  expect_near(weights_for(rhos, kind(Kind::kBypass)), {1, 1, 1, 1}, 1e-12);
  expect_near(weights_for(rhos,
                          [](AlgorithmConfig& config) {
                            config.correction.kind = Kind::kGeometric;
                            config.correction.low = 1;
                            config.correction.high = 2;
                            config.correction.weighs_kept = true;
                          }),
              rhos, 1e-12);
  expect_near(weights_for(rhos,
                          [](AlgorithmConfig& config) {
                            config.correction.kind = Kind::kTisToken;
                            config.correction.is_normalized = true;  // by 5.25 / 4
                          }),
              {0.25 / 1.3125, 1 / 1.3125, 2 / 1.3125, 2 / 1.3125}, 1e-12);
  expect_near(weights_for(rhos,
                          [](AlgorithmConfig& config) {
                            config.correction.kind = Kind::kTisToken;
                            config.correction.veto = 0.3;
                          }),
              {0, 0, 0, 0}, 1e-12);
  expect_near(weights_for(rhos, [](AlgorithmConfig& config) { config.loss = "decoupled_ppo"; }),
              {0.25, 1, 3, 0}, 1e-12);
}

TEST(Corrections, M2poDropsTheLargestSecondMoments) {
  // (log rho)^2 = 0.01, 0.04, 0.09: means of the smallest 1, 2, 3: 0.01, 0.025, 0.0467.
  const std::vector<double> rhos = {std::exp(0.1), std::exp(-0.2), std::exp(0.3)};
  const auto at = [](double threshold) {
    return [threshold](AlgorithmConfig& config) {
      config.loss = "m2po";
      config.m2_threshold = threshold;
    };
  };
  expect_near(weights_for(rhos, at(0.04)), {1, 1, 0}, 1e-12);
  expect_near(weights_for(rhos, at(0.05)), {1, 1, 1}, 1e-12);
  expect_near(weights_for(rhos, at(0.005)), {0, 0, 0}, 1e-12);
}

TEST(Corrections, RejectedTokensStayInTheDenominator) {
  Tokens tokens = with_ratios({1, 1}, {1, 1});
  tokens.batch.behavior_logprobs[1] = tokens.batch.old_logprobs[1] - std::log(9.0);
  const AlgorithmConfig config =
      with("grpo", [](AlgorithmConfig& c) { c.correction.kind = CorrectionKind::kIcepop; });
  const LossTerms terms = evaluate(config, tokens);
  expect_near(terms.dlogprobs, {-0.5, 0}, 1e-12);
}

TEST(Masks, OpsmLeavesOutBadResponsesThatThePolicyHasLeft) {
  // lb - lp = log 2 for both; only A < 0 goes.
  const Tokens tokens = with_ratios({-1, 1}, {0.5, 0.5});
  const AlgorithmConfig config = with("grpo", [](AlgorithmConfig& c) { c.opsm_threshold = 0.1; });
  expect_near(evaluate(config, tokens).token_loss, {0, -0.5}, 1e-12);
}

TEST(Masks, TopEntropyKeepsTheQuantileOfTheWholeMiniBatch) {
  Tokens tokens = with_ratios({1, 1, 1, 1, 1}, {1, 1, 1, 1, 1});
  tokens.batch.entropies = {0.1, 0.9, 0.3, 0.5, 0.7};
  // The upper two fifths begin at the quantile 0.6 of the five: 0.5 + 0.4 * 0.2 = 0.58.
  const AlgorithmConfig config =
      with("grpo", [](AlgorithmConfig& c) { c.top_entropy_quantile = 0.4; });
  expect_near(evaluate(config, tokens).token_loss, {0, -1, 0, 0, -1}, 1e-12);
}

TEST(Covariances, MarkTheTokensThatDriveTheEntropyDown) {
  // A = 1 1 -1 -1 (mean 0), lp = -1 -3 -1 -3 (mean -2): cov = 1 -1 -1 1.
  Tokens tokens = with_ratios({1, 1, -1, -1}, {1, 1, 1, 1});
  tokens.logprobs = tokens.batch.logprobs = tokens.batch.old_logprobs = {-1, -3, -1, -3};
  tokens.batch.behavior_logprobs = tokens.batch.old_logprobs;
  const auto change = [](double fraction) {
    return [fraction](AlgorithmConfig& config) {
      config.loss = "clip_cov";
      config.covariance.low = 0.5;
      config.covariance.fraction = fraction;
    };
  };
  expect_near(evaluate(with("grpo", change(1)), tokens).token_loss, {0, -1, 1, 0}, 1e-12);
  // One of the two candidates at random; which one depends on the ids alone.
  std::set<size_t> chosen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (size_t s = 0; s < 4; ++s) tokens.batch.sequence_keys[s] = hash64({seed, s});
    const LossTerms terms = evaluate(with("grpo", change(0.25)), tokens);
    EXPECT_EQ((terms.token_loss[0] == 0) + (terms.token_loss[3] == 0), 1) << seed;
    EXPECT_EQ(terms.token_loss, evaluate(with("grpo", change(0.25)), tokens).token_loss);
    chosen.insert(terms.token_loss[0] == 0 ? 0 : 3);
  }
  EXPECT_EQ(chosen.size(), 2u);
}

TEST(CorrectionMetrics, EqualTheHandComputedValues) {
  // One response, rho = 2 and 1/2: kl 0, chi2 (4 + 1/4) / 2 - 1, weights of TIS 2 and 1/2: mean
  // 1.25, effective share 2.5^2 / (2 * 4.25).
  Tokens tokens = with_ratios({1, 1}, {1, 1});
  tokens.batch.sequence_begin = {0, 2};
  tokens.batch.sequence_keys = {0};
  tokens.batch.behavior_logprobs = {-2 - std::log(2.0), -2 + std::log(2.0)};
  const Algorithm algorithm =
      made(with("grpo", [](AlgorithmConfig& c) { c.correction.kind = CorrectionKind::kTisToken; }));
  const LossPlan plan(algorithm.config, *algorithm.loss, 0.0, tokens.batch);
  EXPECT_TRUE(plan.has_foreign_tokens());
  Metrics metrics;
  plan.add_correction_metrics(metrics);
  EXPECT_NEAR(metrics.value("rollout_corr/kl"), 0, 1e-12);
  EXPECT_NEAR(metrics.value("rollout_corr/k3_kl"), (2.5 - 2) / 2, 1e-12);
  EXPECT_NEAR(metrics.value("rollout_corr/training_ppl"), std::exp(2.0), 1e-12);
  EXPECT_NEAR(metrics.value("rollout_corr/chi2_token"), 1.125, 1e-12);
  EXPECT_NEAR(metrics.value("rollout_corr/chi2_seq"), 0, 1e-12);
  EXPECT_NEAR(metrics.value("rollout_corr/rollout_is_mean"), 1.25, 1e-12);
  EXPECT_NEAR(metrics.value("rollout_corr/rollout_is_eff_sample_size"), 6.25 / 8.5, 1e-12);
  EXPECT_EQ(metrics.value("rollout_corr/rollout_rs_masked_fraction"), 0);
}

// Contract of every registered loss, under every aggregation, KL and correction.
class EveryLoss : public ::testing::TestWithParam<std::string> {
 protected:
  static std::vector<AlgorithmConfig> configs(bool with_kl) {
    std::vector<AlgorithmConfig> all;
    for (int aggregation = 0; aggregation < 5; ++aggregation) {
      for (int kl = with_kl ? 0 : 7; kl < 8; ++kl) {
        for (int correction = 0; correction < 7; ++correction) {
          AlgorithmConfig config = preset("grpo");
          config.loss = GetParam();
          config.aggregation = static_cast<Aggregation>(aggregation);
          config.kl.coef = kl < 7 ? 0.3 : 0;
          if (kl < 7) config.kl.kind = static_cast<KlKind>(kl);
          config.kl.is_weighted = kl % 2 == 1;
          config.correction.kind = static_cast<CorrectionKind>(correction);
          config.correction.is_normalized = correction > 0 && aggregation % 2 == 1;
          config.covariance = {.fraction = 0.3, .low = 0.05};
          if (aggregation == 2) config.top_entropy_quantile = 0.6;
          if (aggregation == 3) config.opsm_threshold = 0.05;
          if (aggregation == 4) config.delta = 1.6;
          if (GetParam() == "decoupled_ppo" && correction > 0) continue;
          all.push_back(config);
        }
      }
    }
    return all;
  }

  static double whole(const LossTerms& terms, const AlgorithmConfig& config) {
    return terms.policy_loss + config.kl.coef * terms.kl_loss;
  }
};

TEST_P(EveryLoss, GradientIsTheSlopeOfTheLoss) {
  const Tokens tokens = random_tokens(5);
  const double step = 1e-6;
  for (const AlgorithmConfig& config : configs(true)) {
    const Algorithm algorithm = made(config);
    const LossPlan plan(algorithm.config, *algorithm.loss, 0.0, tokens.batch);
    const LossTerms terms = evaluate(plan, tokens, tokens.logprobs);
    for (size_t i = 0; i < tokens.logprobs.size(); ++i) {
      std::vector<double> above = tokens.logprobs, below = tokens.logprobs;
      above[i] += step;
      below[i] -= step;
      const double slope = (whole(evaluate(plan, tokens, above), config) -
                            whole(evaluate(plan, tokens, below), config)) /
                           (above[i] - below[i]);
      ASSERT_NEAR(terms.dlogprobs[i], slope, testing::kLossDifference * (1 + std::fabs(slope)))
          << "token " << i << ", aggregation " << static_cast<int>(config.aggregation) << ", kl "
          << static_cast<int>(config.kl.kind) << ", correction "
          << static_cast<int>(config.correction.kind);
    }
  }
}

TEST_P(EveryLoss, DoesNotDependOnHowTheBatchIsCut) {
  const Tokens tokens = random_tokens(6);
  for (const AlgorithmConfig& config : configs(true)) {
    const Algorithm algorithm = made(config);
    const LossPlan plan(algorithm.config, *algorithm.loss, 0.01, tokens.batch);
    const LossTerms all = evaluate(plan, tokens, tokens.logprobs);
    double loss = 0;
    std::vector<double> dlogprobs, dentropies;
    for (int64_t s = 0; s < 4; ++s) {
      const size_t begin = static_cast<size_t>(tokens.batch.sequence_begin[static_cast<size_t>(s)]);
      const size_t count =
          static_cast<size_t>(tokens.batch.sequence_begin[static_cast<size_t>(s) + 1]) - begin;
      const LossTerms part = plan.terms({s,
                                         1,
                                         std::span(tokens.logprobs).subspan(begin, count),
                                         std::span(tokens.reference).subspan(begin, count),
                                         std::span(tokens.entropies).subspan(begin, count),
                                         {}});
      loss += whole(part, config);
      dlogprobs.insert(dlogprobs.end(), part.dlogprobs.begin(), part.dlogprobs.end());
      dentropies.insert(dentropies.end(), part.dentropies.begin(), part.dentropies.end());
    }
    ASSERT_NEAR(loss, whole(all, config), 1e-11 * (1 + std::fabs(loss)));
    ASSERT_EQ(dlogprobs, all.dlogprobs);
    ASSERT_EQ(dentropies, std::vector<double>(11, -0.01 / 11));
  }
}

TEST_P(EveryLoss, ZeroAdvantageGivesZeroGradient) {
  Tokens tokens = random_tokens(7);
  tokens.batch.advantages.assign(11, 0.0);
  for (const AlgorithmConfig& config : configs(false)) {
    const LossTerms terms = evaluate(config, tokens);
    EXPECT_EQ(terms.policy_loss, 0);
    for (const double slope : terms.dlogprobs) EXPECT_EQ(slope, 0);
  }
}

TEST_P(EveryLoss, OnAFreshRolloutFollowsThePolicyGradient) {
  // At lp = lo = lb a step of -A d(lp) is taken, whatever the loss does further away.
  Tokens tokens = random_tokens(8);
  tokens.batch.behavior_logprobs = tokens.batch.logprobs = tokens.batch.old_logprobs;
  tokens.logprobs = tokens.batch.old_logprobs;
  for (size_t i = 5; i < 11; ++i) tokens.batch.advantages[i] = 0.4;
  AlgorithmConfig config = preset("grpo");
  config.loss = GetParam();
  config.covariance.low = 1e6, config.covariance.high = 2e6;
  const LossTerms terms = evaluate(config, tokens);
  const double factor = GetParam() == "luspo" ? 0 : 1;  // luspo weighs by length
  for (size_t i = 0; i < 11; ++i) {
    const double length = i < 4 ? 4 : (i < 5 ? 1 : 6);
    EXPECT_NEAR(terms.dlogprobs[i], -tokens.batch.advantages[i] / 11 * (factor == 1 ? 1 : length),
                1e-12)
        << i;
  }
}

std::vector<std::string> loss_names() {
  LossRegistry registry("loss");
  register_builtin_losses(registry);
  return registry.names();
}
INSTANTIATE_TEST_SUITE_P(Builtin, EveryLoss, ::testing::ValuesIn(loss_names()),
                         [](const auto& test_case) {
                           std::string name = test_case.param;
                           std::erase(name, '_');
                           return name;
                         });

TEST(Presets, AreTheNamesPromisedAndEachIsSound) {
  EXPECT_EQ(preset_names(),
            (std::vector<std::string>{"cispo", "dapo",      "dppo_tv",      "dr_grpo",
                                      "gmpo",  "gpg",       "grpo",         "gspo",
                                      "luspo", "m2po",      "maxrl",        "opo",
                                      "ppo",   "reinforce", "reinforce_pp", "reinforce_pp_baseline",
                                      "remax", "rloo",      "sapo",         "vespo"}));
  for (const std::string& name : preset_names()) {
    AlgorithmConfig config = preset(name);
    EXPECT_EQ(validate(config).message(), "") << name;
    resolve(config, 32);
    EXPECT_EQ(validate(config).message(), "") << name << ", resolved";
    EXPECT_EQ(config.name, name);
  }
}

TEST(LearningRate, FollowsWarmUpAndSchedule) {
  OptimizerConfig config{.learning_rate = 1.0, .warmup_steps = 4, .min_lr_ratio = 0.1};
  // Warm-up: (step + 1) / 4. Then 8 steps down to a tenth.
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0, 12), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 3, 12), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 11, 12), 1.0);
  config.lr_schedule = LrSchedule::kLinear;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 4, 12), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 8, 12), 0.1 + 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 12, 12), 0.1);
  config.lr_schedule = LrSchedule::kCosine;
  // Half way the cosine is 0, a quarter of the way sqrt(1/2).
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 8, 12), 0.1 + 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 6, 12), 0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5)));
}

TEST(ReductionBlocks, CoverEachGroupOnceAndGiveRanksWholeSubtrees) {
  for (const int64_t num_groups : {1, 7, 8, 9, 64}) {
    int64_t next = 0;
    for (const BlockRange& block : block_ranges(num_groups, 8)) {
      EXPECT_EQ(block.first_group, next) << num_groups;
      next = block.end_group;
    }
    EXPECT_EQ(next, num_groups);
  }
  for (const int num_ranks : {1, 2, 4, 8}) {
    int64_t next = 0;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const BlockRange blocks = blocks_of_rank(8, rank, num_ranks);
      EXPECT_EQ(blocks.first_group, next) << num_ranks;
      EXPECT_EQ(blocks.end_group - blocks.first_group, 8 / num_ranks);
      next = blocks.end_group;
    }
    EXPECT_EQ(next, 8);
  }
}

}  // namespace
}  // namespace gradus::trainer
