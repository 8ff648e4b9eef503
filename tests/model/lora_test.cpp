// SPDX-License-Identifier: Apache-2.0
#include "model/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "common/parallel.h"
#include "kernels/isa.h"
#include "model/training_pass.h"
#include "tests/support/lora_weights.h"
#include "tests/support/tolerances.h"
#include "tests/support/training_batch.h"

namespace gradus::model {
namespace {

using testing::attach_adapter;
using testing::matrix_at;
using testing::random_batch;
using testing::random_tokens;
using testing::tiny_model;
using testing::TrainingBatch;

std::vector<float> copy_of(const Transformer& transformer) {
  return {transformer.parameters(), transformer.parameters() + transformer.layout().size};
}

bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

// Adapters that differ in what the layout and the products depend on.
std::vector<LoraConfig> configs() {
  return {{.rank = 16, .alpha = 32},
          {.rank = 3, .alpha = 2, .targets = {"v_proj", "q_proj", "down_proj"}},
          {.rank = 5, .alpha = 4, .targets = {"o_proj", "up_proj"}, .rslora = true}};
}

TEST(LoraConfig, ScaleIsAlphaOverTheRankOrItsRoot) {
  EXPECT_EQ((LoraConfig{.rank = 16, .alpha = 32}).scale(), 2);
  EXPECT_EQ((LoraConfig{.rank = 16, .alpha = 32, .rslora = true}).scale(), 8);
}

TEST(LoraConfig, TargetsAreResolvedInTheOrderOfTheLayer) {
  EXPECT_EQ(resolved_targets({"down_proj", "k_proj", "k_proj"}),
            (std::vector<std::string>{"k_proj", "down_proj"}));
  EXPECT_EQ(resolved_targets({"v_proj", "all"}), lora_target_names());
  EXPECT_EQ(validate(LoraConfig{.rank = 4, .targets = {}}).message(),
            "lora.targets is empty but lora.rank is 4; name the matrices to adapt, or all");
  EXPECT_TRUE(validate(LoraConfig{.rank = 0, .targets = {}}).ok());
}

TEST(LoraLayout, ARankBeyondASideIsAnErrorThatNamesTheMatrix) {
  // qwen2: k_proj is [2 heads of 8, 48].
  const ModelConfig config = tiny_model("qwen2")->config();
  EXPECT_EQ(lora_layout(config, {.rank = 17}).status().message(),
            "lora.rank (17) is larger than the smaller side of k_proj [16, 48]; use at most 16");
  EXPECT_TRUE(lora_layout(config, {.rank = 16}).ok());
  EXPECT_TRUE(lora_layout(config, {.rank = 48, .targets = {"q_proj"}}).ok());
}

// Sizes by hand: 2 layers of q [48, 48] and down [48, 96] with rank 4 (A padded to 16 rows).
TEST(LoraLayout, HoldsTheFactorsOfItsTargetsAlone) {
  const LoraLayout layout =
      lora_layout(tiny_model("qwen2")->config(), {.rank = 4, .targets = {"down_proj", "q_proj"}})
          .value();
  ASSERT_EQ(layout.places.size(), 8u);
  EXPECT_EQ(layout.places[0].hf_name,
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  EXPECT_EQ(layout.places[3].hf_name,
            "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight");
  EXPECT_EQ(layout.size, 2 * (16 * 48 + 48 * 4 + 16 * 96 + 48 * 4));
  EXPECT_EQ(layout.base_size, 2 * (48 * 48 + 48 * 96));
}

TEST(LoraAdapter, AFreshOneLeavesEveryBit) {
  for (const std::string& name : testing::tiny_models()) {
    const auto transformer = tiny_model(name);
    // The sign of a zero is a bit as well.
    transformer->parameters()[transformer->layout().layers[0].qkv] = -0.0f;
    const std::vector<float> before = copy_of(*transformer);
    transformer->set_adapter(
        LoraAdapter::create(transformer->config(), {.rank = 4}, transformer->parameters(), 1)
            .value());
    EXPECT_TRUE(same_bits(before.data(), transformer->parameters(), transformer->layout().size))
        << name;
    const float* values = transformer->adapter()->values();
    for (const ParameterPlace& place : transformer->adapter()->layout().places) {
      double squares = 0, largest = 0;
      for (const float value : matrix_at(values, place.offset, place.rows, place.columns)) {
        squares += double{value} * value;
        largest = std::max(largest, std::fabs(double{value}));
      }
      if (place.hf_name.find("lora_B") != std::string::npos) {
        EXPECT_EQ(largest, 0) << place.hf_name;
        continue;
      }
      // Uniform in +-1 / sqrt(K): variance 1 / 3K; of at least 128 draws, five deviations wide.
      const double k = static_cast<double>(place.columns);
      const double variance = squares / static_cast<double>(place.rows * place.columns);
      EXPECT_LE(largest, 1 / std::sqrt(k)) << place.hf_name;
      EXPECT_NEAR(variance * 3 * k, 1, 5 * std::sqrt(0.8 / 128)) << place.hf_name;
    }
  }
}

TEST(LoraAdapter, InitialValuesAreAFunctionOfSeedAndMatrix) {
  const auto transformer = tiny_model("qwen3");
  const auto values = [&](const LoraConfig& config, uint64_t seed, size_t place) {
    const auto adapter =
        LoraAdapter::create(transformer->config(), config, transformer->parameters(), seed).value();
    const ParameterPlace& at = adapter->layout().places[place];
    return matrix_at(adapter->values(), at.offset, at.rows, at.columns);
  };
  const LoraConfig all{.rank = 4}, only_q{.rank = 4, .targets = {"q_proj"}};
  EXPECT_EQ(values(all, 1, 0), values(only_q, 1, 0));
  EXPECT_NE(values(all, 1, 0), values(all, 2, 0));
  EXPECT_NE(values(all, 1, 0), values(all, 1, 1)) << "q and k";
}

// W + s B A in double, and every weight that is not adapted untouched.
TEST(LoraAdapter, MergesTheProductOfTheFactors) {
  for (const std::string& name : testing::tiny_models()) {
    for (const LoraConfig& config : configs()) {
      const auto transformer = tiny_model(name);
      if (!lora_layout(transformer->config(), config).ok()) continue;  // rank 16, 8 wide
      const std::vector<float> before = copy_of(*transformer);
      attach_adapter(*transformer, config);
      std::vector<float> expected = before;
      for (const LoraGroup& group : transformer->adapter()->layout().groups) {
        for (const LoraPart& part : group.parts) {
          const float* values = transformer->adapter()->values();
          const auto a = matrix_at(values, part.a, config.rank, part.k);
          const auto b = matrix_at(values, part.b, part.n, config.rank);
          const auto w = matrix_at(before.data(), part.weight, part.n, part.k);
          auto merged = matrix_at(transformer->parameters(), part.weight, part.n, part.k);
          double moved = 0;
          for (int64_t n = 0; n < part.n; ++n) {
            for (int64_t k = 0; k < part.k; ++k) {
              const size_t at = static_cast<size_t>(n * part.k + k);
              double sum = w[at], size = std::fabs(sum);
              for (int64_t i = 0; i < config.rank; ++i) {
                const double term = config.scale() *
                                    double{b[static_cast<size_t>(n * config.rank + i)]} *
                                    double{a[static_cast<size_t>(i * part.k + k)]};
                sum += term;
                size += std::fabs(term);
              }
              moved = std::max(moved, std::fabs(sum - w[at]));
              ASSERT_NEAR(merged[at], sum,
                          testing::rounding_bound(static_cast<double>(config.rank) + 2, size))
                  << name << " " << part.module << " [" << n << ", " << k << "]";
            }
          }
          EXPECT_GT(moved, 1e-3);
          kernels::pack_weight(merged.data(), part.k, part.n, part.k,
                               expected.data() + part.weight);
        }
      }
      EXPECT_TRUE(same_bits(expected.data(), transformer->parameters(), transformer->layout().size))
          << name << ": a weight that is not adapted has changed";
    }
  }
}

TEST(LoraAdapter, MergingAgainGivesTheSameBits) {
  const auto transformer = tiny_model("llama3_rope");
  attach_adapter(*transformer, {.rank = 4});
  const std::vector<float> once = copy_of(*transformer);
  transformer->trainable_changed();
  EXPECT_TRUE(same_bits(once.data(), transformer->parameters(), transformer->layout().size));
}

AlignedBuffer adapter_gradient(Transformer& transformer, const TrainingBatch& batch,
                               int64_t max_rows = 100000, bool checkpointing = false) {
  Gradients gradients(*transformer.adapter());
  testing::accumulate_gradient(transformer, batch, max_rows, checkpointing, gradients);
  return std::move(gradients.buffer);
}

// Against the gradient of the merged weights G, which training_pass_test.cpp holds against torch:
// dA = s B^T G and dB = s G A^T, in double.
TEST(LoraGradient, IsThatOfTheMergedWeightsSeenThroughTheFactors) {
  for (const std::string& name : testing::tiny_models()) {
    for (const LoraConfig& config : configs()) {
      const auto adapted = tiny_model(name), whole = tiny_model(name);
      if (!lora_layout(adapted->config(), config).ok()) continue;
      attach_adapter(*adapted, config);
      std::copy_n(adapted->parameters(), adapted->layout().size, whole->parameters());
      const TrainingBatch batch = random_batch(adapted->config().vocab_size);
      const AlignedBuffer gradient = adapter_gradient(*adapted, batch);
      Gradients full(whole->layout());
      testing::accumulate_gradient(*whole, batch, 100000, false, full);
      const int64_t r = config.rank;
      for (const LoraGroup& group : adapted->adapter()->layout().groups) {
        for (const LoraPart& part : group.parts) {
          const auto g = matrix_at(full.buffer.data(), part.weight, part.n, part.k);
          const auto a = matrix_at(adapted->adapter()->values(), part.a, r, part.k);
          const auto b = matrix_at(adapted->adapter()->values(), part.b, part.n, r);
          const auto da = matrix_at(gradient.data(), part.a, r, part.k);
          const auto db = matrix_at(gradient.data(), part.b, part.n, r);
          std::vector<double> want_a(da.size()), want_b(db.size());
          for (int64_t n = 0; n < part.n; ++n) {
            for (int64_t k = 0; k < part.k; ++k) {
              for (int64_t i = 0; i < r; ++i) {
                const double slope =
                    config.scale() * double{g[static_cast<size_t>(n * part.k + k)]};
                const size_t at_a = static_cast<size_t>(i * part.k + k);
                const size_t at_b = static_cast<size_t>(n * r + i);
                want_a[at_a] += slope * double{b[at_b]};
                want_b[at_b] += slope * double{a[at_a]};
              }
            }
          }
          const auto distance = [](const std::vector<float>& got, const std::vector<double>& want) {
            double squares = 0, norm = 0;
            for (size_t i = 0; i < got.size(); ++i) {
              squares += (got[i] - want[i]) * (got[i] - want[i]);
              norm += want[i] * want[i];
            }
            EXPECT_GT(norm, 0);
            return std::sqrt(squares / norm);
          };
          EXPECT_LT(distance(da, want_a), testing::kGradientOfNorm) << name << " " << part.module;
          EXPECT_LT(distance(db, want_b), testing::kGradientOfNorm) << name << " " << part.module;
        }
      }
    }
  }
}

// Along random directions of all factors at once.
// FFA-LoRA: the gradient of B has the bits that it always has, that of A is 0.
TEST(LoraGradient, LeavesAFrozenAOut) {
  const auto free = tiny_model("qwen2"), frozen = tiny_model("qwen2");
  const LoraConfig config = {.rank = 3, .alpha = 6};
  attach_adapter(*free, config);
  attach_adapter(*frozen, config);
  frozen->adapter()->freeze_a(true);
  const TrainingBatch batch = random_batch(free->config().vocab_size);
  const AlignedBuffer want = adapter_gradient(*free, batch);
  const AlignedBuffer got = adapter_gradient(*frozen, batch);
  for (const ParameterPlace& place : free->adapter()->layout().places) {
    if (place.hf_name.find(".lora_A.") == std::string::npos) {
      EXPECT_TRUE(same_bits(got.data() + place.offset, want.data() + place.offset, place.size));
      continue;
    }
    double size_free = 0, size_frozen = 0;
    for (int64_t i = 0; i < place.size; ++i) {
      size_free += std::fabs(want.data()[place.offset + i]);
      size_frozen += std::fabs(got.data()[place.offset + i]);
    }
    EXPECT_GT(size_free, 0) << place.hf_name;
    EXPECT_EQ(size_frozen, 0) << place.hf_name;
  }
}

TEST(LoraAdapter, ItsProductIsWhatMergingAddsAndARestartBeginsAtTheBase) {
  const auto transformer = tiny_model("qwen2");
  const std::vector<float> before = copy_of(*transformer);
  attach_adapter(*transformer, {.rank = 3, .alpha = 6});
  LoraAdapter& adapter = *transformer->adapter();
  std::vector<float> product(static_cast<size_t>(adapter.layout().base_size));
  adapter.product(product);
  size_t at = 0;
  for (const LoraGroup& group : adapter.layout().groups) {
    for (const LoraPart& part : group.parts) {
      for (int64_t i = 0; i < kernels::packed_size(part.n, part.k); ++i, ++at) {
        const auto place = static_cast<size_t>(part.weight + i);
        EXPECT_EQ(adapter.base()[at], before[place]);
        EXPECT_NEAR(transformer->parameters()[place], before[place] + product[at], 1e-6);
      }
    }
  }
  EXPECT_EQ(at, product.size());
  adapter.restart(9);
  transformer->trainable_changed();
  EXPECT_EQ(copy_of(*transformer), before);
}

TEST(LoraGradient, IsTheSlopeOfTheLoss) {
  for (const std::string& name : testing::tiny_models()) {
    const auto transformer = tiny_model(name);
    attach_adapter(*transformer, {.rank = 3, .alpha = 6});
    const TrainingBatch batch = random_batch(transformer->config().vocab_size);
    const data::Pack pack = data::make_pack(batch.groups);
    const int64_t size = transformer->adapter()->layout().size;
    float* values = transformer->adapter()->values();
    const std::vector<float> start(values, values + size);
    const AlignedBuffer gradient = adapter_gradient(*transformer, batch);
    double norm = 0;
    for (int64_t i = 0; i < size; ++i) norm += double{gradient.data()[i]} * gradient.data()[i];
    norm = std::sqrt(norm);
    TrainingPass pass(*transformer, false);
    const auto loss_at = [&](double step) {
      for (int64_t i = 0; i < size; ++i) {
        const double direction = double{gradient.data()[i]} / norm;
        values[i] = static_cast<float>(start[static_cast<size_t>(i)] + step * direction);
      }
      transformer->trainable_changed();
      pass.forward(pack, 1.0f, false);
      double loss = 0;
      for (size_t i = 0; i < batch.dlogprobs.size(); ++i) {
        loss += double{batch.dlogprobs[i]} * pass.logprobs()[i] +
                double{batch.dentropies[i]} * pass.entropies()[i];
      }
      return loss;
    };
    constexpr double kStep = 0.02;
    EXPECT_NEAR((loss_at(kStep) - loss_at(-kStep)) / (2 * kStep) / norm, 1,
                testing::kFiniteDifference)
        << name;
  }
}

TEST(LoraGradient, BitsDoNotDependOnMicroBatchCheckpointingThreadsOrInstructionSet) {
  for (const std::string& name : testing::tiny_models()) {
    const auto transformer = tiny_model(name);
    attach_adapter(*transformer, {.rank = 6, .alpha = 5});
    const TrainingBatch batch = random_batch(transformer->config().vocab_size);
    const AlignedBuffer whole = adapter_gradient(*transformer, batch);
    const auto expect_equal = [&](int64_t max_rows, bool checkpointing, const std::string& what) {
      const AlignedBuffer other = adapter_gradient(*transformer, batch, max_rows, checkpointing);
      EXPECT_TRUE(same_bits(whole.data(), other.data(), whole.size())) << name << ", " << what;
    };
    expect_equal(1, false, "one group a micro-batch");
    expect_equal(120, false, "micro-batches of 120 rows");
    expect_equal(100000, true, "checkpointing");
    set_num_threads(3);
    expect_equal(120, true, "three threads");
    set_num_threads(2);
    if (kernels::has_avx512()) {
      kernels::set_isa(kernels::Isa::kAvx2);
      expect_equal(120, false, "AVX2");
      kernels::set_isa(kernels::Isa::kAvx512);
    }
  }
}

// What fills up the panels of A and B must not start to move.
TEST(LoraGradient, IsZeroWhereThePanelsAreFilledUp) {
  const auto transformer = tiny_model("llama_linear_rope");
  attach_adapter(*transformer, {.rank = 3});
  const TrainingBatch batch = random_batch(transformer->config().vocab_size);
  AlignedBuffer gradient = adapter_gradient(*transformer, batch);
  adapter_gradient(*transformer, batch, 60);  // another width of scratch
  gradient = adapter_gradient(*transformer, batch);
  for (const ParameterPlace& place : transformer->adapter()->layout().places) {
    const auto values = matrix_at(gradient.data(), place.offset, place.rows, place.columns);
    std::vector<float> packed(static_cast<size_t>(place.size));
    kernels::pack_weight(values.data(), place.columns, place.rows, place.columns, packed.data());
    for (int64_t i = 0; i < place.size; ++i) {
      ASSERT_EQ(packed[static_cast<size_t>(i)], gradient.data()[place.offset + i]) << place.hf_name;
    }
  }
}

}  // namespace
}  // namespace gradus::model
