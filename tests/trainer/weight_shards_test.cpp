// SPDX-License-Identifier: Apache-2.0
#include "trainer/weight_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "common/aligned_buffer.h"
#include "common/residency.h"
#include "kernels/optimizer.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/model_rows.h"
#include "trainer/cpu_learner.h"

namespace gradus::trainer {
namespace {

using testing::random_tokens;
using testing::run_ranks;

// Many layers of equal size, as models that are worth sharing out have.
model::ModelConfig deep_model(int64_t num_layers) {
  model::ModelConfig config;
  config.family = model::Family::kQwen3;
  config.qk_norm = true;
  config.vocab_size = 64;
  config.hidden_size = 96;
  config.intermediate_size = 384;
  config.num_layers = num_layers;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 48;
  config.max_position_embeddings = 64;
  config.tie_embeddings = true;
  GRADUS_CHECK(model::validate(config).ok(), model::validate(config).message());
  return config;
}

// Bytes that this process holds: now, and at most since the last forget_peak().
int64_t status_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  ADD_FAILURE() << "no " << name;
  return 0;
}
void forget_peak() {
  std::ofstream refs("/proc/self/clear_refs");
  refs << "5";
  refs.close();
  ASSERT_TRUE(refs.good()) << "the peak of the resident memory cannot be reset";
}

TEST(Residency, PagesComeWithTheFirstTouchAndGoWithTheRelease) {
  AlignedBuffer buffer(int64_t{1} << 20);  // 1,024 pages
  const std::span<float> all(buffer.data(), static_cast<size_t>(buffer.size()));
  use_small_pages(all);
  EXPECT_EQ(resident_bytes(all), 0);
  all[5000] = 1;
  EXPECT_EQ(resident_bytes(all), 4096);
  buffer.fill_zero();
  EXPECT_EQ(resident_bytes(all), 4 << 20);
  for (float& value : all) value = 1;
  // Floats 1000 to 9000: of pages of 1,024 floats 1 to 7 lie inside, the edges are zeroed.
  release_pages(all.subspan(1000, 8000));
  EXPECT_EQ(resident_bytes(all), (4 << 20) - 7 * 4096);
  EXPECT_EQ(all[999], 1);
  EXPECT_EQ(all[1000], 0);
  EXPECT_EQ(all[5000], 0);
  EXPECT_EQ(all[8999], 0);
  EXPECT_EQ(all[9000], 1);
}

TEST(ResidencyDeathTest, LockedPagesAreNotReadAsZeros) {
  AlignedBuffer buffer(8192);
  const std::span<float> all(buffer.data(), 8192);
  release_and_lock_pages(all);
  EXPECT_DEATH({ all[100] = all[200] + 1; }, "");
  unlock_pages(all);
  EXPECT_EQ(all[200], 0);
}

// Slices of all ranks are the buffer, none twice; a sum over ranks and a gather are those of all.
TEST(WeightShards, SumAndGatherWhatTheRanksHold) {
  const model::ParameterLayout layout = model::parameter_layout(deep_model(3));
  for (const int num_ranks : {1, 2, 3, 4, 8}) {
    std::vector<std::vector<WeightPiece>> pieces(static_cast<size_t>(num_ranks));
    run_ranks(num_ranks, [&](comm::Communicator& communicator) {
      WeightShards shards(layout, communicator);
      pieces[static_cast<size_t>(communicator.rank())] = shards.own_pieces();
      AlignedBuffer values(layout.size), scratch(layout.size);
      for (int64_t i = 0; i < layout.size; ++i) {
        values.data()[i] = static_cast<float>(i % 977 * (communicator.rank() + 1));
      }
      for (int unit = 0; unit < shards.num_units(); ++unit) {
        shards.reduce_scatter(values.data(), unit,
                              {scratch.data(), static_cast<size_t>(layout.size)});
        shards.release_others(values.data(), unit);
      }
      // The sum of squares of a weight is that of the kernel over the whole.
      const std::vector<double> squares = shards.sums_of_squares(values.data());
      shards.gather(values.data());
      const int factor = num_ranks * (num_ranks + 1) / 2;
      int64_t num_wrong = 0;
      for (int64_t i = 0; i < layout.size; ++i) {
        num_wrong += values.data()[i] != static_cast<float>(i % 977 * factor) ? 1 : 0;
      }
      EXPECT_EQ(num_wrong, 0) << num_ranks;
      ASSERT_EQ(squares.size(), layout.places.size());
      for (size_t i = 0; i < squares.size(); ++i) {
        const model::ParameterPlace& place = layout.places[i];
        EXPECT_EQ(squares[i], kernels::sum_of_squares(values.data() + place.offset, place.size))
            << place.hf_name;
      }
    });
    std::vector<int> owners(static_cast<size_t>(layout.size), 0);
    std::vector<int64_t> sizes;
    for (const std::vector<WeightPiece>& of_rank : pieces) {
      sizes.push_back(0);
      for (const WeightPiece& piece : of_rank) {
        const int64_t offset = layout.places[piece.place].offset;
        for (int64_t i = offset + piece.first; i < offset + piece.end; ++i) {
          ++owners[static_cast<size_t>(i)];
        }
        sizes.back() += piece.end - piece.first;
      }
    }
    EXPECT_THAT(owners, ::testing::Each(1)) << num_ranks;
    // Half a block a unit, at most, beside an equal share.
    const int64_t slack = 5 * kernels::kSquaresBlock;
    for (const int64_t size : sizes) EXPECT_NEAR(size, layout.size / num_ranks, slack) << num_ranks;
  }
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMeasuresMemory = false;
#else
constexpr bool kMeasuresMemory = true;
#endif

// What the process holds at its peak in an update over weights, gradients and moments of one copy
// of the model, by rank. Activations, messages and threads are in it.
double peak_of_update(int num_ranks, int64_t zero_stage) {
  const model::ModelConfig config = deep_model(64);
  static const std::vector<float> weights = [&] {
    const model::ParameterLayout layout = model::parameter_layout(config);
    std::vector<float> values(static_cast<size_t>(layout.size));
    model::init_parameters(config, layout, 3, 0.02, values.data());
    return values;
  }();
  const int64_t before = status_bytes("VmRSS");
  int64_t peak = 0;
  int64_t all_bytes = 0;  // fp32 weights, gradient and two moments
  run_ranks(num_ranks, [&](comm::Communicator& communicator) {
    model::Transformer transformer(config);
    std::copy(weights.begin(), weights.end(), transformer.parameters());
    CpuLearner learner(transformer, {.learning_rate = 1e-4},
                       {.gradient_checkpointing = true, .zero_stage = zero_stage}, communicator);
    std::vector<data::PackGroup> groups;
    for (uint64_t g = 0; g < 8; ++g) {
      groups.push_back(
          {random_tokens(2, config.vocab_size, g), {random_tokens(3, config.vocab_size, 50 + g)}});
    }
    const auto update = [&] {
      const auto loss = [](int64_t, int64_t, std::span<const float>, std::span<const float>,
                           std::span<float> dlogprobs, std::span<float>) -> Status {
        std::fill(dlogprobs.begin(), dlogprobs.end(), -0.01f);
        return {};
      };
      const auto stats = learner.update(groups, std::vector<bool>(8, true), 1.0f, 1e-4, loss);
      GRADUS_CHECK(stats.ok(), stats.status().message());
    };
    update();
    communicator.barrier();
    if (communicator.rank() == 0) forget_peak();
    communicator.barrier();
    update();
    communicator.barrier();
    if (communicator.rank() == 0) {
      peak = status_bytes("VmHWM");
      all_bytes = 4 * transformer.layout().size * static_cast<int64_t>(sizeof(float));
    }
    communicator.barrier();
  });
  return static_cast<double>(peak - before) / num_ranks / static_cast<double>(all_bytes);
}

// The claim of ZeRO stage 3: 1/N of weights, gradients and optimizer state, and 5 % for what is
// being summed and gathered.
TEST(WeightShards, StageThreeHoldsAnNthOfWeightsGradientsAndMoments) {
  if (!kMeasuresMemory) GTEST_SKIP() << "a sanitizer's own memory would be measured";
  for (const int num_ranks : {2, 4, 8}) {
    const double held = peak_of_update(num_ranks, 3);
    RecordProperty(fmt::format("of_all_with_{}_ranks", num_ranks), fmt::format("{:.4f}", held));
    EXPECT_LT(held, 1.0 / num_ranks + 0.05) << num_ranks;
    EXPECT_GT(held, 1.0 / num_ranks) << num_ranks << ": less than there is to hold";
    fmt::print("{} ranks: {:.4f} of all, 1/N + {:.4f}\n", num_ranks, held, held - 1.0 / num_ranks);
  }
  // What the other stages hold says that the measure can tell: 2 all weights, 1 all weights and
  // more than one gradient.
  const double stage_two = peak_of_update(2, 2);
  EXPECT_GT(stage_two, 0.25 + 3.0 / 8);
  EXPECT_LT(stage_two, 0.25 + 3.0 / 8 + 0.05);
  EXPECT_GT(peak_of_update(2, 1), 0.25 + 0.25 + 2.0 / 8);
}

}  // namespace
}  // namespace gradus::trainer
