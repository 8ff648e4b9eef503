// SPDX-License-Identifier: Apache-2.0
#include "retriever/query_trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/gemm.h"
#include "retriever/policy.h"
#include "retriever/rescore.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::retriever {
namespace {

using nlohmann::json;

constexpr const char* kModel = "tests/golden/retrieval/tiny_bert";

// A gradient by the names and layouts of the checkpoint.
std::vector<std::pair<std::string, std::vector<float>>> by_name(const model::BertWeights& g) {
  std::vector<std::pair<std::string, std::vector<float>>> all = {
      {"embeddings.word_embeddings.weight", g.words_VD},
      {"embeddings.position_embeddings.weight", g.positions_PD},
      {"embeddings.LayerNorm.weight", g.embedding_norm.weight},
      {"embeddings.LayerNorm.bias", g.embedding_norm.bias}};
  for (size_t i = 0; i < g.layers.size(); ++i) {
    const std::string layer = "encoder.layer." + std::to_string(i) + ".";
    const auto add = [&](const model::BertWeights::Linear& linear,
                         const std::vector<std::string>& names) {
      std::vector<float> rows(static_cast<size_t>(linear.outputs * linear.inputs));
      kernels::unpack_weight(linear.weight.data(), linear.outputs, linear.inputs, rows.data(),
                             linear.inputs);
      const int64_t outputs = linear.outputs / static_cast<int64_t>(names.size());
      for (size_t n = 0; n < names.size(); ++n) {
        const int64_t first = static_cast<int64_t>(n) * outputs;
        all.emplace_back(layer + names[n] + ".weight",
                         std::vector<float>(rows.begin() + first * linear.inputs,
                                            rows.begin() + (first + outputs) * linear.inputs));
        all.emplace_back(
            layer + names[n] + ".bias",
            std::vector<float>(linear.bias.data() + first, linear.bias.data() + first + outputs));
      }
    };
    const auto add_norm = [&](const model::BertWeights::Norm& norm, const std::string& name) {
      all.emplace_back(layer + name + ".weight", norm.weight);
      all.emplace_back(layer + name + ".bias", norm.bias);
    };
    add(g.layers[i].qkv, {"attention.self.query", "attention.self.key", "attention.self.value"});
    add(g.layers[i].attention, {"attention.output.dense"});
    add(g.layers[i].inner, {"intermediate.dense"});
    add(g.layers[i].outer, {"output.dense"});
    add_norm(g.layers[i].attention_norm, "attention.output.LayerNorm");
    add_norm(g.layers[i].outer_norm, "output.LayerNorm");
  }
  return all;
}

// Of the sum over texts of r . v with v their vectors and fixed r, against torch's autograd: of
// each tensor its length and its products with two fixed patterns.
TEST(EmbedderGradient, EqualsAutogradsForEveryTensor) {
  const json expected = json::parse(test::read_file(std::string(kModel) + "/expected.json"));
  const auto embedder = std::move(Embedder::load(kModel)).value();
  std::vector<std::vector<int32_t>> texts;
  for (const json& text : expected["gradient"]["texts"]) {
    texts.push_back(*embedder->tokenize(text.get<std::string>()));
  }
  std::vector<float> r(texts.size() * 32);
  for (size_t n = 0; n < texts.size(); ++n) {
    for (size_t c = 0; c < 32; ++c) {
      r[n * 32 + c] = (static_cast<float>((n * 7 + c * 13) % 11) - 5) / 5;
    }
  }
  std::vector<float> first;
  testing::for_each_setting([&] {
    model::BertWeights gradients = model::BertWeights::zeros(embedder->encoder().config());
    Embedder::TrainingPass pass;
    embedder->forward(texts, pass);
    embedder->backward(pass, r, gradients);
    std::vector<float> flat;
    size_t num_tensors = 0;
    for (const auto& [name, values] : by_name(gradients)) {
      const json& want = expected["gradient"]["tensors"][name];
      ASSERT_TRUE(want.is_array()) << name;
      double squares = 0, one = 0, two = 0;
      for (size_t k = 0; k < values.size(); ++k) {
        squares += double{values[k]} * values[k];
        one += values[k] * ((static_cast<double>(k * 31 % 17) - 8) / 8);
        two += values[k] * ((static_cast<double>(k * 29 % 23) - 11) / 11);
      }
      const double norm = want[0];
      EXPECT_NEAR(std::sqrt(squares), norm, 2e-5 * norm + 1e-7) << name;
      // A pattern has elements of size 1/2 at random: its product is off by its own length at most.
      const double slack =
          testing::kGradientOfNorm * norm * std::sqrt(static_cast<double>(values.size())) + 1e-6;
      EXPECT_NEAR(one, want[1].get<double>(), slack) << name;
      EXPECT_NEAR(two, want[2].get<double>(), slack) << name;
      flat.insert(flat.end(), values.begin(), values.end());
      ++num_tensors;
    }
    EXPECT_EQ(num_tensors, expected["gradient"]["tensors"].size());
    if (first.empty()) first = flat;
    EXPECT_TRUE(testing::same_bits(flat, first)) << "bits under threads and instruction sets";
  });
}

TEST(EmbedderGradient, VectorsAreThoseOfEmbedBitForBit) {
  const auto embedder = std::move(Embedder::load(kModel)).value();
  const std::vector<std::string> texts = {"one text", "and another that is longer", ""};
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& text : texts) ids.push_back(*embedder->tokenize(text));
  Embedder::TrainingPass pass;
  embedder->forward(ids, pass);
  EXPECT_TRUE(testing::same_bits(pass.vectors, *embedder->embed(texts)));
}

// Four questions with one right document each among six; a trajectory is one retrieval, reward 1 if
// it brings the right one. Words are of the small vocabulary: others would all be unknown tokens.
class Bandit {
 public:
  Bandit() {
    const std::vector<std::string> documents = {"the pieces",       "read names into",
                                                "cost right range", "cuts class see",
                                                "each euros here",  "what for that"};
    vectors_ = *embedder_->embed(documents);
    for (const std::string text : {"what number ?", "main cost", "the right class", "see euros"}) {
      questions_.push_back(*embedder_->tokenize(text));
    }
  }

  // Draws G lists for each question under the weights of now; the mean reward goes to `reward`.
  std::vector<RetrievalStep> sample(uint64_t round, double& reward) {
    Embedder::TrainingPass pass;
    embedder_->forward(questions_, pass);
    std::vector<RetrievalStep> steps;
    reward = 0;
    for (size_t q = 0; q < kQuestions; ++q) {
      RetrievalStep step;
      step.temperature = 0.1;
      step.token_ids = questions_[q];
      for (int64_t i = 0; i < kDocuments; ++i) step.pool.push_back(i);
      std::vector<float> exact(step.pool.size());
      score_pool(pass.vectors.data() + q * 32, vectors_.data(), 32, step.pool, exact);
      const std::vector<double> scores(exact.begin(), exact.end());
      std::vector<double> rewards;
      for (uint64_t g = 0; g < kGroup; ++g) {
        const Ranking drawn = *draw_ranking({.scores_K = scores,
                                             .ids_K = step.pool,
                                             .temperature = step.temperature,
                                             .k = 1,
                                             .seed = round * 1000 + q * 100 + g});
        step.places = drawn.places;
        step.logprob = drawn.logprob;
        rewards.push_back(drawn.places[0] == static_cast<int32_t>(q + 1) ? 1 : 0);
        reward += rewards.back() / (kQuestions * kGroup);
        steps.push_back(step);
      }
      double mean = 0;
      for (const double one : rewards) mean += one / kGroup;
      for (uint64_t g = 0; g < kGroup; ++g) {  // leave-one-out
        RetrievalStep& of = steps[steps.size() - kGroup + g];
        of.advantage = (rewards[g] - mean) * kGroup / (kGroup - 1.0);
        of.weight = 1.0 / (kQuestions * kGroup);
      }
    }
    return steps;
  }

  static constexpr int64_t kDocuments = 6;
  static constexpr size_t kQuestions = 4;
  static constexpr uint64_t kGroup = 16;
  std::unique_ptr<Embedder> embedder_ = std::move(Embedder::load(kModel)).value();
  std::vector<float> vectors_;
  std::vector<std::vector<int32_t>> questions_;
};

TEST(QueryTrainer, LearnsWhichDocumentsEarnTheReward) {
  Bandit bandit;
  QueryTrainerOptions options;
  options.learning_rate = 2e-3;
  options.weight_decay = 0;
  QueryTrainer trainer(*bandit.embedder_, options);
  double first = 0, last = 0;
  for (uint64_t round = 0; round < 60; ++round) {
    double reward = 0;
    const std::vector<RetrievalStep> steps = bandit.sample(round, reward);
    if (round < 5) first += reward / 5;
    if (round >= 55) last += reward / 5;
    const Result<QueryUpdate> update = trainer.update(steps, bandit.vectors_.data());
    ASSERT_TRUE(update.ok()) << update.status().message();
    EXPECT_EQ(update->max_abs_log_ratio, 0) << "fresh steps have ratio 1, in round " << round;
    EXPECT_EQ(update->clip_fraction, 0);
  }
  // The same program in torch goes from 0.25 to 0.36 to 0.82 with three seeds.
  EXPECT_LT(first, 0.5);
  EXPECT_GT(last, 0.7);
}

// Steps of equal texts share a pass; blocks are summed along one tree, wherever they are.
TEST(QueryTrainer, RanksMakeTheUpdateOfOneProcessToTheBit) {
  std::set<uint64_t> hashes;
  for (const int num_ranks : {1, 2, 4, 8}) {
    std::vector<uint64_t> of_rank(static_cast<size_t>(num_ranks));
    testing::run_ranks(num_ranks, [&](comm::Communicator& ranks) {
      Bandit bandit;
      double reward = 0;
      std::vector<RetrievalStep> steps = bandit.sample(1, reward), mine;
      const int64_t share = kReductionBlocks / num_ranks, first = ranks.rank() * share;
      for (size_t i = 0; i < steps.size(); ++i) {
        // Blocks 0, 2 .. 7: of unequal sizes, and one without any.
        steps[i].block = std::max<int64_t>(0, static_cast<int64_t>(i) / 7 - 1);
        steps[i].block += steps[i].block > 0 && steps[i].block < 7 ? 1 : 0;
        steps[i].block = std::min<int64_t>(steps[i].block, kReductionBlocks - 1);
        if (steps[i].block >= first && steps[i].block < first + share) mine.push_back(steps[i]);
      }
      QueryTrainer trainer(*bandit.embedder_, {});
      for (int round = 0; round < 2; ++round) {
        const QueryUpdate update = *trainer.update(mine, bandit.vectors_.data(), &ranks);
        EXPECT_EQ(update.num_steps, 64);
      }
      of_rank[static_cast<size_t>(ranks.rank())] = bandit.embedder_->encoder().weights_hash();
    });
    hashes.insert(of_rank.begin(), of_rank.end());
  }
  EXPECT_EQ(hashes.size(), 1u);
}

// Values that no two places share.
void fill(std::span<float> values, float from) {
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = from + 0.01f * static_cast<float>((i * 37) % 101) - 0.5f;
  }
}

// W + s B A and the derivatives s B^T dW and s dW A^T, in double by name and place.
TEST(QueryAdapter, MergesAndDerivesByTheFormulas) {
  const auto embedder = std::move(Embedder::load(kModel)).value();
  const auto matrices = [](const model::BertWeights& weights) {
    std::vector<std::vector<float>> all;
    for (auto& [name, values] : by_name(weights)) {
      if (name.find("encoder.layer") == 0 && name.ends_with("weight") &&
          name.find("LayerNorm") == std::string::npos) {
        all.push_back(std::move(values));
      }
    }
    return all;
  };
  model::BertEncoder& encoder = embedder->encoder();
  const std::vector<std::vector<float>> base = matrices(encoder.weights());
  ASSERT_EQ(base.size(), 12u);
  const uint64_t before = encoder.weights_hash();
  constexpr size_t kRank = 3;
  constexpr double kScale = 0.75;
  QueryAdapter adapter(encoder, kRank, kScale, 7);
  ASSERT_EQ(adapter.factors().size(), 24u);
  adapter.merge();
  EXPECT_EQ(encoder.weights_hash(), before) << "B is 0";
  for (size_t i = 0; i < 24; ++i) fill(adapter.factors()[i].values, static_cast<float>(i) / 24);
  model::BertWeights gradients = model::BertWeights::zeros(encoder.config());
  gradients.for_each([](float* values, int64_t count, bool) {
    fill({values, static_cast<size_t>(count)}, static_cast<float>(count % 7) / 7);
  });
  adapter.merge();
  adapter.take_gradients(gradients);
  const std::vector<std::vector<float>> merged = matrices(encoder.weights());
  const std::vector<std::vector<float>> dw = matrices(gradients);
  for (size_t p = 0; p < 12; ++p) {
    const QueryAdapter::Factor &a = adapter.factors()[2 * p], &b = adapter.factors()[2 * p + 1];
    const size_t k = a.values.size() / kRank, n = b.values.size() / kRank;
    ASSERT_EQ(n * k, base[p].size());
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < k; ++j) {
        double sum = 0;
        for (size_t r = 0; r < kRank; ++r) {
          sum += double{b.values[i * kRank + r]} * a.values[r * k + j];
        }
        EXPECT_NEAR(merged[p][i * k + j], base[p][i * k + j] + kScale * sum, 1e-5) << p;
      }
    }
    for (size_t r = 0; r < kRank; ++r) {
      for (size_t j = 0; j < k; ++j) {
        double sum = 0;
        for (size_t i = 0; i < n; ++i) sum += double{b.values[i * kRank + r]} * dw[p][i * k + j];
        EXPECT_NEAR(a.gradients[r * k + j], kScale * sum, 1e-4) << p;
      }
      for (size_t i = 0; i < n; ++i) {
        double sum = 0;
        for (size_t j = 0; j < k; ++j) sum += double{dw[p][i * k + j]} * a.values[r * k + j];
        EXPECT_NEAR(b.gradients[i * kRank + r], kScale * sum, 1e-4) << p;
      }
    }
  }
}

TEST(QueryTrainer, AdapterLearnsAndLeavesTheRest) {
  Bandit bandit;
  const auto rest = [&] {
    const model::BertWeights& weights = bandit.embedder_->encoder().weights();
    std::vector<float> all = weights.words_VD;
    const AlignedBuffer& bias = weights.layers[0].inner.bias;
    all.insert(all.end(), bias.data(), bias.data() + weights.layers[0].inner.outputs);
    return all;
  };
  const std::vector<float> before = rest();
  QueryTrainer trainer(
      *bandit.embedder_,
      {.learning_rate = 5e-3, .weight_decay = 0, .lora_rank = 8, .lora_scale = 2, .lora_seed = 1});
  double first = 0, last = 0;
  for (uint64_t round = 0; round < 60; ++round) {
    double reward = 0;
    const std::vector<RetrievalStep> steps = bandit.sample(round, reward);
    (round < 5 ? first : last) += round < 5 || round >= 55 ? reward / 5 : 0;
    const QueryUpdate update = *trainer.update(steps, bandit.vectors_.data());
    EXPECT_EQ(update.max_abs_log_ratio, 0) << "the merged weights draw and train";
  }
  EXPECT_LT(first, 0.5);
  EXPECT_GT(last, 0.6);
  EXPECT_EQ(rest(), before);
}

TEST(QueryTrainer, ZeroAdvantageMovesNothingButDecay) {
  Bandit bandit;
  QueryTrainerOptions options;
  options.weight_decay = 0;
  QueryTrainer trainer(*bandit.embedder_, options);
  const uint64_t before = bandit.embedder_->encoder().weights_hash();
  double reward = 0;
  std::vector<RetrievalStep> steps = bandit.sample(1, reward);
  for (RetrievalStep& step : steps) step.advantage = 0;
  EXPECT_EQ(trainer.update(steps, bandit.vectors_.data())->grad_norm, 0);
  EXPECT_EQ(bandit.embedder_->encoder().weights_hash(), before);
  EXPECT_EQ(trainer.update({}, bandit.vectors_.data())->grad_norm, 0);
}

TEST(QueryTrainer, ClipsTheRatioWhereItWouldGoTooFar) {
  Bandit bandit;
  double reward = 0;
  std::vector<RetrievalStep> steps = bandit.sample(1, reward);
  steps.resize(4);
  // Ratios e^0.5 and e^-0.5 with advantages of both signs: min(rho A, clip(rho) A) is
  // 1.2, -e^0.5, e^-0.5, -0.8; the first and the last are clipped.
  for (size_t i = 0; i < 4; ++i) {
    steps[i].logprob += i < 2 ? -0.5 : 0.5;
    steps[i].advantage = i % 2 == 0 ? 1 : -1;
    steps[i].weight = 1;
  }
  QueryTrainer trainer(*bandit.embedder_, {});
  const QueryUpdate update = *trainer.update(steps, bandit.vectors_.data());
  EXPECT_NEAR(update.objective, 1.2 - std::exp(0.5) + std::exp(-0.5) - 0.8, 1e-9);
  EXPECT_EQ(update.clip_fraction, 0.5);
  EXPECT_NEAR(update.max_abs_log_ratio, 0.5, 1e-12);
}

TEST(QueryTrainer, NamesABadStepAndSkipsAGradientThatIsNotFinite) {
  Bandit bandit;
  double reward = 0;
  std::vector<RetrievalStep> steps = bandit.sample(1, reward);
  QueryTrainer trainer(*bandit.embedder_, {});
  std::vector<RetrievalStep> bad = steps;
  bad[3].places = {99};
  EXPECT_EQ(
      trainer.update(bad, bandit.vectors_.data()).status().message(),
      "a step of block 0: retrieval policy: entry 0 of the list is place 99, but the pool has 6 "
      "documents; expected a place in [0, 6)");
  const uint64_t before = bandit.embedder_->encoder().weights_hash();
  bad = steps;
  bad[0].weight = testing::kInfinity;
  bad[0].advantage = 1;
  EXPECT_TRUE(trainer.update(bad, bandit.vectors_.data())->skipped);
  EXPECT_EQ(bandit.embedder_->encoder().weights_hash(), before);
}

}  // namespace
}  // namespace gradus::retriever
