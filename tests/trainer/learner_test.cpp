// SPDX-License-Identifier: Apache-2.0
#include "trainer/cpu_learner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "common/parallel.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/model_rows.h"
#include "tests/support/tolerances.h"

namespace gradus::trainer {
namespace {

using ::testing::HasSubstr;
using testing::random_tokens;
using testing::run_ranks;

constexpr double kRate = 1e-3;

uint64_t hash(const model::Transformer& transformer) {
  return model::hash_parameters(transformer.parameters(), transformer.layout().size);
}

// Ten groups, so that eight blocks get one or two each; two responses a group, one of them a single
// token in some.
std::vector<data::PackGroup> make_groups(int64_t vocab_size) {
  std::vector<data::PackGroup> groups;
  for (uint64_t g = 0; g < 10; ++g) {
    groups.push_back({random_tokens(static_cast<int64_t>(2 + 9 * g), vocab_size, g),
                      {random_tokens(static_cast<int64_t>(1 + g), vocab_size, 50 + g),
                       random_tokens(static_cast<int64_t>(1 + 5 * (g % 3)), vocab_size, 90 + g)}});
  }
  return groups;
}

int64_t num_targets(const data::PackGroup& group) {
  int64_t count = 0;
  for (const auto& response : group.responses) count += static_cast<int64_t>(response.size());
  return count;
}

// A loss whose gradient depends on group, place and present log-prob: weight(g, t) exp(logprob).
struct Loss {
  const std::vector<data::PackGroup>& groups;
  float scale = 1;
  float poison = 0;  // added to the first token of group 3

  Status operator()(int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
                    std::span<const float>, std::span<float> dlogprobs,
                    std::span<float> dentropies) const {
    size_t i = 0;
    for (int64_t g = first_group; g < first_group + num_groups; ++g) {
      const int64_t count = num_targets(groups[static_cast<size_t>(g)]);
      for (int64_t t = 0; t < count; ++t, ++i) {
        const float weight = static_cast<float>((7 * g + 3 * t) % 11 - 5) / 50;
        dlogprobs[i] = scale * weight * (1 + std::exp(logprobs[i]));
        dentropies[i] = scale * weight / 100;
        if (g == 3 && t == 0 && poison != 0) dlogprobs[i] = poison;
      }
    }
    GRADUS_CHECK(i == logprobs.size(), "the loss got other targets than those of its groups");
    return {};
  }
};

struct Settings {
  int64_t micro_batch_tokens = 4096;
  bool checkpointing = false;
  int num_ranks = 1;
  int64_t reduction_blocks = 8;
  OptimizerConfig optimizer = {};
  bool layout_invariant = true;
  int64_t zero_stage = 0;
  const char* model = "qwen2";
};

// The hash of the weights after three updates, the same on every rank.
uint64_t train(const Settings& settings) {
  std::mutex mutex;
  std::vector<uint64_t> hashes;
  run_ranks(settings.num_ranks, [&](comm::Communicator& communicator) {
    const std::unique_ptr<model::Transformer> transformer = testing::tiny_model(settings.model);
    const auto groups = make_groups(transformer->config().vocab_size);
    CpuLearner learner(*transformer, settings.optimizer,
                       {.micro_batch_tokens = settings.micro_batch_tokens,
                        .gradient_checkpointing = settings.checkpointing,
                        .reduction_blocks = settings.reduction_blocks,
                        .zero_stage = settings.zero_stage,
                        .layout_invariant = settings.layout_invariant},
                       communicator);
    std::vector<bool> needs_gradient(10, true);
    needs_gradient[6] = false;
    for (int step = 0; step < 3; ++step) {
      const auto stats = learner.update(groups, needs_gradient, 0.9f, kRate, Loss{groups});
      GRADUS_CHECK(stats.ok(), stats.status().message());
    }
    ASSERT_TRUE(learner.whole_weights().ok());
    uint64_t of_run = hash(*transformer);
    if (learner.average() != nullptr) {
      GRADUS_CHECK(learner
                       .with_average([&]() -> Status {
                         of_run = hash64({of_run, hash(*transformer)});
                         return {};
                       })
                       .ok(),
                   "with_average");
    }
    GRADUS_CHECK(hash(*transformer) == of_run || learner.average() != nullptr, "weights changed");
    const std::lock_guard lock(mutex);
    hashes.push_back(of_run);
  });
  for (const uint64_t other : hashes) EXPECT_EQ(other, hashes[0]) << "ranks have unequal weights";
  return hashes[0];
}

TEST(Learner, WeightsDoNotDependOnMicroBatchesCheckpointingOrRanks) {
  const uint64_t expected = train({});
  EXPECT_EQ(train({.micro_batch_tokens = 1}), expected);
  EXPECT_EQ(train({.micro_batch_tokens = 64}), expected);
  EXPECT_EQ(train({.micro_batch_tokens = 100000}), expected);
  EXPECT_EQ(train({.checkpointing = true}), expected);
  EXPECT_EQ(train({.num_ranks = 2}), expected);
  EXPECT_EQ(train({.micro_batch_tokens = 64, .checkpointing = true, .num_ranks = 4}), expected);
  EXPECT_EQ(train({.num_ranks = 8}), expected);
  EXPECT_EQ(train({.num_ranks = 3, .reduction_blocks = 6}), train({.reduction_blocks = 6}));
  // Sums in another tree have other bits, so the comparison can fail.
  EXPECT_NE(train({.reduction_blocks = 1}), expected);
}

TEST(Learner, MuonGivesTheSameWeightsOnAnyRanksAndThreads) {
  const OptimizerConfig muon{.optimizer = OptimizerKind::kMuon};
  const uint64_t expected = train({.optimizer = muon});
  EXPECT_EQ(train({.micro_batch_tokens = 64, .num_ranks = 4, .optimizer = muon}), expected);
  const int threads = num_threads();
  set_num_threads(3);
  EXPECT_EQ(train({.optimizer = muon}), expected);
  set_num_threads(threads);
  EXPECT_NE(train({}), expected);
}

// Summed round a ring, the ranks still have equal weights and reruns repeat them, for any number
// of ranks; but another number of ranks gives other bits, which the tree does not.
TEST(Learner, WithoutTheFixedTreeWeightsDependOnTheNumberOfRanks) {
  const Settings plain = {.num_ranks = 2, .layout_invariant = false};
  EXPECT_EQ(train(plain), train(plain));
  EXPECT_NE(train(plain), train({.num_ranks = 4, .layout_invariant = false}));
  EXPECT_NE(train({.num_ranks = 3, .layout_invariant = false}), train(plain));
  EXPECT_EQ(train({.micro_batch_tokens = 64, .layout_invariant = false}),
            train({.layout_invariant = false}))
      << "micro-batches never show";
  EXPECT_EQ(train({.layout_invariant = false}), train({.reduction_blocks = 1}));
}

// Stage 1 shares out the optimizer, 2 gradients too (summed layer by layer), 3 weights too. qwen2
// has a tied head, qwen3 a head of its own and norms of q and k.
TEST(Learner, ZeroStagesChangeNoBit) {
  for (const char* name : {"qwen2", "qwen3"}) {
    const uint64_t expected = train({.model = name});
    for (const int64_t stage : {1, 2, 3}) {
      for (const int ranks : {1, 2, 4, 8}) {
        const bool is_odd = (stage + ranks) % 2 == 1;
        EXPECT_EQ(train({.micro_batch_tokens = is_odd ? 4096 : 32,
                         .checkpointing = ranks == 4,
                         .num_ranks = ranks,
                         .zero_stage = stage,
                         .model = name}),
                  expected)
            << name << ", stage " << stage << ", ranks " << ranks;
      }
    }
  }
  const OptimizerConfig average{.max_grad_norm = 0.1, .ema_decay = 0.9};
  const uint64_t expected = train({.optimizer = average});
  for (const int64_t stage : {1, 2, 3}) {
    EXPECT_EQ(train({.num_ranks = 2, .optimizer = average, .zero_stage = stage}), expected);
    EXPECT_EQ(train({.num_ranks = 3, .reduction_blocks = 6, .zero_stage = stage}),
              train({.reduction_blocks = 6}))
        << stage;
  }
  // Without the fixed tree, ranks still have equal weights and reruns repeat them.
  const Settings plain = {.num_ranks = 2, .layout_invariant = false, .zero_stage = 3};
  EXPECT_EQ(train(plain), train(plain));
}

// Regression: 6 blocks on 2 ranks were taken, though 3 blocks a rank are no subtree of the tree
// of 6.
TEST(Learner, BlocksThatRanksWouldSumInAnotherOrderAreRefused) {
  EXPECT_NE(train({.num_ranks = 2, .reduction_blocks = 6}), train({.reduction_blocks = 6}));
  TrainerConfig config;
  const auto message = [&](int64_t num_blocks, int64_t num_ranks) {
    config.backward.reduction_blocks = num_blocks;
    config.prompts_per_step = 24;
    return validate(config, num_ranks).message();
  };
  EXPECT_EQ(message(6, 2),
            "trainer.reduction_blocks (6) must be the number of ranks (2) times a power of two, or "
            "the weights would depend on the number of ranks");
  EXPECT_THAT(message(6, 4), HasSubstr("trainer.reduction_blocks (6) must be a multiple of"));
  for (const int64_t num_ranks : {1, 3, 6}) EXPECT_EQ(message(6, num_ranks), "");
  for (const int64_t num_ranks : {1, 2, 4, 8}) EXPECT_EQ(message(8, num_ranks), "");
}

// The rest runs on one rank.
struct Training {
  std::unique_ptr<comm::Communicator> communicator = comm::make_communicator().value();
  std::unique_ptr<model::Transformer> transformer = testing::tiny_model("qwen2");
  std::vector<data::PackGroup> groups = make_groups(transformer->config().vocab_size);
  CpuLearner learner;

  explicit Training(const OptimizerConfig& optimizer = {}, const BackwardConfig& backward = {})
      : learner(*transformer, optimizer, backward, *communicator) {}
  Result<UpdateStats> update(const Learner::LossFunction& loss,
                             const std::vector<bool>& needs_gradient = std::vector<bool>(10,
                                                                                         true)) {
    return learner.update(groups, needs_gradient, 1.0f, kRate, loss);
  }
  Result<UpdateStats> update() { return update(Loss{groups}); }
  std::vector<float> weights() const {
    return {transformer->parameters(), transformer->parameters() + transformer->layout().size};
  }
  // First moments, from what save() writes.
  std::vector<float> first_moments() const {
    const test::TemporaryFolder folder;
    records::StateSnapshot snapshot;
    EXPECT_TRUE(learner.save(snapshot).ok());
    EXPECT_TRUE(snapshot.write(folder.path() + "/state.bin").ok());
    const auto shards = records::StateShards::open(folder.path(), "state").value();
    std::vector<float> m(static_cast<size_t>(transformer->layout().size));
    for (const model::ParameterPlace& place : transformer->layout().places) {
      EXPECT_TRUE(shards
                      .read("adam/m/" + place.hf_name,
                            std::span(m).subspan(static_cast<size_t>(place.offset),
                                                 static_cast<size_t>(place.size)))
                      .ok());
    }
    return m;
  }
};

// The first update against the pass's own gradient and torch's formula in double: clip the whole
// gradient to max_grad_norm, decay matrices alone, then lr m^ / (sqrt(v^) + eps).
TEST(Learner, FirstUpdateIsThePublishedFormula) {
  const OptimizerConfig optimizer{.weight_decay = 0.1, .max_grad_norm = 0.5};
  Training run(optimizer, {.reduction_blocks = 1});
  const std::vector<float> before = run.weights();
  const model::ParameterLayout& layout = run.transformer->layout();
  model::TrainingPass pass(*run.transformer, false);
  const data::Pack pack = data::make_pack(run.groups);
  pass.forward(pack, 1.0f, true);
  std::vector<float> dlogprobs(pack.targets.size()), dentropies(pack.targets.size());
  ASSERT_TRUE(
      Loss{run.groups}(0, 10, pass.logprobs(), pass.entropies(), dlogprobs, dentropies).ok());
  model::Gradients gradients(layout);
  gradients.clear();
  pass.backward(dlogprobs, dentropies, gradients);
  gradients.finish(layout, run.transformer->config().hidden_size);
  double squares = 0;
  for (int64_t i = 0; i < layout.size; ++i) {
    squares += double{gradients.buffer.data()[i]} * gradients.buffer.data()[i];
  }
  const auto stats = run.update();
  ASSERT_TRUE(stats.ok()) << stats.status().message();
  ASSERT_GT(std::sqrt(squares), 0.5) << "the test means to clip";
  EXPECT_NEAR(stats->grad_norm, std::sqrt(squares), testing::rounding_bound(260, stats->grad_norm));
  EXPECT_EQ(stats->num_rows, pack.num_rows());
  const double scale = 0.5 / std::sqrt(squares);
  const std::vector<float> after = run.weights();
  int64_t num_changed = 0;
  double without_decay = 0;
  for (const model::ParameterPlace& place : layout.places) {
    for (int64_t i = place.offset; i < place.offset + place.size; ++i) {
      const size_t at = static_cast<size_t>(i);
      const double g = scale * gradients.buffer.data()[i], w = before[at];
      const double m = 0.1 * g, v = 0.001 * g * g;
      const double moved = kRate * (m / 0.1) / (std::sqrt(v / 0.001) + 1e-8);
      const double decay = place.columns > 0 ? kRate * 0.1 : 0;
      const double bound = testing::rounding_bound(4, std::abs(w)) + testing::kAdamWStep * kRate;
      ASSERT_NEAR(after[at], w - decay * w - moved, bound) << place.hf_name << " " << i;
      num_changed += after[at] != before[at] ? 1 : 0;
      without_decay = std::max(without_decay, std::abs(after[at] - (w - moved)) - bound);
    }
  }
  EXPECT_GT(num_changed, layout.size / 10);
  EXPECT_GT(without_decay, 0) << "the bound lets a forgotten decay pass";
}

// m after one step is (1 - beta1) times the clipped gradient, whose norm is max_grad_norm.
TEST(Learner, ClipsTheNormOfTheWholeGradient) {
  const auto moment_norm = [](double max_grad_norm, float scale, double& grad_norm) {
    Training run({.max_grad_norm = max_grad_norm});
    grad_norm = run.update(Loss{run.groups, scale}).value().grad_norm;
    double squares = 0;
    for (const float m : run.first_moments()) squares += double{m} * m;
    return std::sqrt(squares) / 0.1;
  };
  double plain, clipped, doubled;
  const double whole = moment_norm(0, 1, plain);
  EXPECT_NEAR(whole, plain, 1e-5 * plain);
  EXPECT_NEAR(moment_norm(0.25, 1, clipped), 0.25, 1e-5);
  EXPECT_EQ(clipped, plain) << "the reported norm is that before clipping";
  EXPECT_NEAR(moment_norm(1000, 2, doubled), 2 * whole, 1e-5 * whole) << "below the bound";
  EXPECT_NEAR(doubled, 2 * plain, 1e-5 * plain);
}

TEST(Learner, AGradientThatIsNotFiniteIsNamedAndChangesNothing) {
  Training clean, run;
  for (const float poison : {std::nanf(""), INFINITY, 1e30f}) {
    const uint64_t before = hash(*run.transformer);
    const auto stats = run.update(Loss{run.groups, 1, poison});
    ASSERT_FALSE(stats.ok()) << poison;
    EXPECT_EQ(stats.status().code(), StatusCode::kDataLoss);
    EXPECT_THAT(stats.status().message(),
                HasSubstr(" is not finite (group 3, response 0 of the batch); the weights were not "
                          "changed; lower the learning rate"));
    ASSERT_TRUE(run.learner.non_finite().has_value());
    EXPECT_EQ(run.learner.non_finite()->group, 3);
    EXPECT_EQ(run.learner.non_finite()->response, 0);
    // A finite loss can still be too much for the backward pass: then a weight is named.
    EXPECT_THAT(run.learner.non_finite()->what, std::isfinite(poison)
                                                    ? HasSubstr("the gradient of 'model.")
                                                    : HasSubstr("the loss of response token 0"));
    EXPECT_EQ(hash(*run.transformer), before);
    EXPECT_EQ(run.learner.num_updates(), 0);
  }
  // Nothing of it is left behind: what follows is what a run without it does.
  ASSERT_TRUE(clean.update().ok());
  ASSERT_TRUE(run.update().ok());
  EXPECT_FALSE(run.learner.non_finite().has_value());
  EXPECT_EQ(hash(*run.transformer), hash(*clean.transformer));
}

// Regression: a loss whose comparisons a NaN fails gave it a gradient of 0, and the run went on.
TEST(Learner, ALogprobThatIsNotANumberIsAnErrorAndChangesNothing) {
  Training run;
  run.transformer->parameters()[run.transformer->layout().final_norm] = std::nanf("");
  const uint64_t before = hash(*run.transformer);
  const auto silent = [](int64_t, int64_t, std::span<const float>, std::span<const float>,
                         std::span<float>, std::span<float>) -> Status { return {}; };
  EXPECT_EQ(run.update(silent).status().message(),
            "update 1: a log-prob of the model is not a number: its weights have left the range of "
            "floats; the update was not made; lower the learning rate");
  EXPECT_EQ(hash(*run.transformer), before);
  EXPECT_EQ(run.learner.num_updates(), 0);
}

TEST(Learner, AllRanksLearnWhatWasNotFinite) {
  const uint64_t expected = train({});
  for (const int64_t stage : {0, 1, 2, 3}) {
    run_ranks(4, [&](comm::Communicator& communicator) {
      const std::unique_ptr<model::Transformer> transformer = testing::tiny_model("qwen2");
      const auto groups = make_groups(transformer->config().vocab_size);
      CpuLearner learner(*transformer, {}, {.zero_stage = stage}, communicator);
      for (const float poison : {std::nanf(""), 1e30f}) {
        const auto stats = learner.update(groups, std::vector<bool>(10, true), 1.0f, kRate,
                                          Loss{groups, 1, poison});
        ASSERT_FALSE(stats.ok());
        ASSERT_EQ(learner.non_finite().value_or(NonFinite{}).group, 3);
      }
      // Nothing of it is left behind.
      for (int step = 0; step < 3; ++step) {
        std::vector<bool> needs_gradient(10, true);
        needs_gradient[6] = false;
        ASSERT_TRUE(learner.update(groups, needs_gradient, 0.9f, kRate, Loss{groups}).ok());
      }
      ASSERT_TRUE(learner.whole_weights().ok());
      EXPECT_EQ(hash(*transformer), expected) << stage;
    });
  }
}

TEST(Learner, AnErrorOfTheLossOnOneRankEndsTheUpdateOnAll) {
  const auto end_an_update = [](comm::Communicator& communicator, int64_t stage) {
    const std::unique_ptr<model::Transformer> transformer = testing::tiny_model("qwen2");
    const auto groups = make_groups(transformer->config().vocab_size);
    CpuLearner learner(*transformer, {}, {.zero_stage = stage}, communicator);
    const uint64_t before = hash(*transformer);
    const Loss loss{groups};
    const auto failing = [&](int64_t first, int64_t count, std::span<const float> logprobs,
                             std::span<const float> entropies, std::span<float> dlogprobs,
                             std::span<float> dentropies) -> Status {
      if (first <= 4 && first + count > 4) return invalid_argument("group 4 is broken");
      return loss(first, count, logprobs, entropies, dlogprobs, dentropies);
    };
    const auto stats = learner.update(groups, std::vector<bool>(10, true), 1.0f, kRate, failing);
    ASSERT_FALSE(stats.ok());
    // Group 4 of 10 is in block 3 of 8 ([3, 5)), which rank 1 of 4 has.
    EXPECT_EQ(stats.status().message(), "rank 1: group 4 is broken");
    ASSERT_TRUE(learner.whole_weights().ok());
    EXPECT_EQ(hash(*transformer), before);
    EXPECT_EQ(learner.num_updates(), 0);
  };
  for (const int64_t stage : {0, 3}) {
    run_ranks(4, [&](comm::Communicator& communicator) { end_an_update(communicator, stage); });
  }
}

// Groups that promise to have no gradient are only run forward, and give the bits of a gradient of
// zeros.
TEST(Learner, GroupsWithoutGradientGiveTheBitsOfZeroGradients) {
  const std::vector<bool> needs = {true, false, false, true, true, false, true, true, false, true};
  Training zeros, skipped;
  const auto masked = [&](const Training& run) {
    return [&needs, &run](int64_t first, int64_t count, std::span<const float> logprobs,
                          std::span<const float> entropies, std::span<float> dlogprobs,
                          std::span<float> dentropies) -> Status {
      GRADUS_RETURN_IF_ERROR(
          Loss{run.groups}(first, count, logprobs, entropies, dlogprobs, dentropies));
      size_t i = 0;
      for (int64_t g = first; g < first + count; ++g) {
        for (int64_t t = 0; t < num_targets(run.groups[static_cast<size_t>(g)]); ++t, ++i) {
          if (!needs[static_cast<size_t>(g)]) dlogprobs[i] = dentropies[i] = 0;
        }
      }
      return {};
    };
  };
  ASSERT_TRUE(zeros.update(masked(zeros)).ok());
  ASSERT_TRUE(skipped.update(masked(skipped), needs).ok());
  EXPECT_EQ(hash(*skipped.transformer), hash(*zeros.transformer));
}

TEST(Learner, WithoutAnyGradientOnlyMatricesDecay) {
  Training run({.weight_decay = 0.5});
  const std::vector<float> before = run.weights();
  const auto stats = run.update(Loss{run.groups}, std::vector<bool>(10, false));
  ASSERT_TRUE(stats.ok()) << stats.status().message();
  EXPECT_EQ(stats->grad_norm, 0);
  const std::vector<float> after = run.weights();
  for (const model::ParameterPlace& place : run.transformer->layout().places) {
    const float kept = place.columns > 0 ? 1.0f - 0.5f * static_cast<float>(kRate) : 1.0f;
    for (int64_t i = place.offset; i < place.offset + place.size; ++i) {
      const size_t at = static_cast<size_t>(i);
      ASSERT_NEAR(after[at], kept * before[at], testing::rounding_bound(3, std::abs(before[at])))
          << place.hf_name;
    }
  }
}

TEST(Learner, SavedAndLoadedItGoesOnAsIfNeverStopped) {
  Training whole;
  for (int step = 0; step < 6; ++step) ASSERT_TRUE(whole.update().ok());
  const test::TemporaryFolder folder;
  Training first, second, without_state;
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(first.update().ok());
  records::StateSnapshot snapshot;
  ASSERT_TRUE(first.learner.save(snapshot).ok());
  ASSERT_TRUE(snapshot.write(folder.path() + "/optimizer.bin").ok());
  for (Training* run : {&second, &without_state}) {
    const std::vector<float> weights = first.weights();
    std::copy(weights.begin(), weights.end(), run->transformer->parameters());
  }
  const auto shards = records::StateShards::open(folder.path(), "optimizer");
  ASSERT_TRUE(shards.ok()) << shards.status().message();
  ASSERT_TRUE(second.learner.load(*shards).ok());
  EXPECT_EQ(second.learner.num_updates(), 3);
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(second.update().ok());
    ASSERT_TRUE(without_state.update().ok());
  }
  EXPECT_EQ(hash(*second.transformer), hash(*whole.transformer));
  EXPECT_NE(hash(*without_state.transformer), hash(*whole.transformer));
}

// Muon moves the matrices of the layers by lr scale o, whose Frobenius norm is about the root of
// the number of singular values; what it does not move, AdamW moves as it does without Muon.
TEST(Learner, MuonMovesTheMatricesOfTheLayersAndAdamWTheRest) {
  for (const MuonScale scale : {MuonScale::kSpectral, MuonScale::kMatchAdamW}) {
    Training muon({.optimizer = OptimizerKind::kMuon,
                   .learning_rate = 2 * kRate,  // the update is at half of the peak
                   .weight_decay = 0,
                   .muon_learning_rate = 0.5,
                   .muon_scale = scale});
    Training adamw({.weight_decay = 0});
    const std::vector<float> before = muon.weights();
    ASSERT_TRUE(muon.update().ok());
    ASSERT_TRUE(adamw.update().ok());
    const std::vector<float> after = muon.weights(), expected = adamw.weights();
    int num_matrices = 0;
    for (const model::ParameterPlace& place : muon.transformer->layout().places) {
      const bool is_muon = place.columns > 0 && place.hf_name.find("_proj") != std::string::npos;
      double squares = 0;
      for (int64_t i = place.offset; i < place.offset + place.size; ++i) {
        const size_t at = static_cast<size_t>(i);
        squares += std::pow(double{after[at]} - double{before[at]}, 2);
        if (!is_muon) {
          ASSERT_EQ(after[at], expected[at]) << place.hf_name;
        }
      }
      if (!is_muon) continue;
      ++num_matrices;
      const double rows = static_cast<double>(place.rows);
      const double columns = static_cast<double>(place.columns);
      const double factor = scale == MuonScale::kSpectral
                                ? std::sqrt(std::max(1.0, rows / columns))
                                : 0.2 * std::sqrt(std::max(rows, columns));
      const double size = std::sqrt(squares / std::min(rows, columns)) / (0.25 * factor);
      EXPECT_GT(size, 0.6) << place.hf_name;
      EXPECT_LT(size, 1.25) << place.hf_name;
    }
    EXPECT_EQ(num_matrices, 7 * muon.transformer->config().num_layers) << "q, k, v apart";
  }
}

TEST(Learner, MuonSavedAndLoadedGoesOnAsIfNeverStoppedAndIsNotTakenForAdamW) {
  const OptimizerConfig muon{.optimizer = OptimizerKind::kMuon};
  Training whole(muon), second(muon), adamw;
  const test::TemporaryFolder folder;
  for (int step = 0; step < 2; ++step) ASSERT_TRUE(whole.update().ok());
  records::StateSnapshot snapshot;
  ASSERT_TRUE(whole.learner.save(snapshot).ok());
  ASSERT_TRUE(snapshot.write(folder.path() + "/optimizer.bin").ok());
  const std::vector<float> weights = whole.weights();
  std::copy(weights.begin(), weights.end(), second.transformer->parameters());
  const auto shards = records::StateShards::open(folder.path(), "optimizer");
  ASSERT_TRUE(shards.ok());
  ASSERT_TRUE(second.learner.load(*shards).ok());
  ASSERT_TRUE(whole.update().ok() && second.update().ok());
  EXPECT_EQ(hash(*second.transformer), hash(*whole.transformer));
  EXPECT_EQ(adamw.learner.load(*shards).message(),
            "the checkpoint has the state of optimizer: muon, this run asks for adamw; resume with "
            "the optimizer that the run was started with");
}

// ema_decay 0.25: after update t the decay is min(0.25, (1 + t) / (10 + t)) = 2/11, 3/12, 0.25.
TEST(Learner, AveragesTheWeightsWithTheDecayOfTheStart) {
  Training run({.ema_decay = 0.25}), without;
  EXPECT_EQ(without.learner.average(), nullptr);
  std::vector<float> initial = run.weights();
  std::vector<double> expected(initial.begin(), initial.end());
  for (const double decay : {2.0 / 11, 3.0 / 12, 0.25}) {
    ASSERT_TRUE(run.update().ok());
    ASSERT_TRUE(without.update().ok());
    const std::vector<float> weights = run.weights();
    for (size_t i = 0; i < expected.size(); ++i) {
      expected[i] = decay * expected[i] + (1 - decay) * double{weights[i]};
      ASSERT_NEAR(run.learner.average()[i], expected[i],
                  testing::rounding_bound(12, std::abs(expected[i]) + kRate));
    }
  }
  EXPECT_EQ(hash(*run.transformer), hash(*without.transformer)) << "training does not see it";
  const uint64_t weights = hash(*run.transformer);
  const uint64_t average =
      model::hash_parameters(run.learner.average(), run.transformer->layout().size);
  EXPECT_NE(weights, average);
  const Status status = run.learner.with_average([&]() -> Status {
    EXPECT_EQ(hash(*run.transformer), average);
    return invalid_argument("an error in between");
  });
  EXPECT_EQ(status.message(), "an error in between");
  EXPECT_EQ(hash(*run.transformer), weights) << "the weights are back, after an error too";
}

// Shares written by four ranks are read by one and by two, and the moments are those of one rank.
TEST(Learner, StateOfFourRanksIsReadByAnyNumber) {
  const test::TemporaryFolder folder;
  run_ranks(4, [&](comm::Communicator& communicator) {
    const std::unique_ptr<model::Transformer> transformer = testing::tiny_model("qwen2");
    const auto groups = make_groups(transformer->config().vocab_size);
    CpuLearner learner(*transformer, {}, {}, communicator);
    ASSERT_TRUE(
        learner.update(groups, std::vector<bool>(10, true), 1.0f, kRate, Loss{groups}).ok());
    records::StateSnapshot snapshot;
    ASSERT_TRUE(learner.save(snapshot).ok());
    // A quarter of both moments, but for the rounding to vectors.
    EXPECT_NEAR(static_cast<double>(snapshot.num_bytes()),
                2.0 * static_cast<double>(transformer->layout().size), 1024);
    ASSERT_TRUE(
        snapshot.write(records::state_shard_path(folder.path(), "state", communicator.rank(), 4))
            .ok());
  });
  Training one, loaded;
  ASSERT_TRUE(one.update().ok());
  const auto shards = records::StateShards::open(folder.path(), "state");
  ASSERT_TRUE(shards.ok()) << shards.status().message();
  ASSERT_TRUE(loaded.learner.load(*shards).ok());
  EXPECT_EQ(loaded.first_moments(), one.first_moments());
  EXPECT_EQ(loaded.learner.num_updates(), 1);
}

// forward() visits this rank's groups in order with the log-probs that update() sees.
TEST(Learner, ForwardGivesTheLogprobsOfTheUpdateBitForBit) {
  Training run;
  std::vector<float> seen, forward;
  int64_t next = 0;
  const Status status = run.learner.forward(
      run.groups, 1.0f,
      [&](int64_t first, int64_t count, std::span<const float> logprobs, std::span<const float>) {
        EXPECT_EQ(first, next);
        next += count;
        forward.insert(forward.end(), logprobs.begin(), logprobs.end());
      });
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(next, 10);
  const Loss loss{run.groups};
  ASSERT_TRUE(run.update([&](int64_t first, int64_t count, std::span<const float> logprobs,
                             std::span<const float> entropies, std::span<float> dlogprobs,
                             std::span<float> dentropies) {
                   seen.insert(seen.end(), logprobs.begin(), logprobs.end());
                   return loss(first, count, logprobs, entropies, dlogprobs, dentropies);
                 })
                  .ok());
  ASSERT_EQ(seen.size(), forward.size());
  EXPECT_EQ(std::memcmp(seen.data(), forward.data(), seen.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace gradus::trainer
