// SPDX-License-Identifier: Apache-2.0
// Who holds what of a model's training state, over the host's memory (tests/kernels/host_cuda.h).
#include "model/device_training_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/rng.h"
#include "tests/kernels/head_case.h"
#include "tests/kernels/host_cuda.h"
#include "tests/support/device_model.h"
#include "tests/support/in_process_communicator.h"

namespace gradus::model {
namespace {

using gradus::testing::must;
using gradus::testing::qwen2_like;
using gradus::testing::qwen3_like;
using gradus::testing::rounded_to_bf16;

constexpr int64_t kSteps = 2, kPasses = 2;

kernels::Cuda host_cuda() { return kernels::Cuda::over_table(gradus::testing::host_cuda_table()); }

// A whole number, so that sums are exact in any order.
float gradient_of(int64_t step, int64_t pass, int rank, int64_t offset, int64_t number) {
  return static_cast<float>(
      static_cast<int64_t>(hash64({static_cast<uint64_t>(step), static_cast<uint64_t>(pass),
                                   static_cast<uint64_t>(rank), static_cast<uint64_t>(offset),
                                   static_cast<uint64_t>(number)}) %
                           17) -
      8);
}

// The gradient of a pass, in the order of a backward. Rank 1 has no rows in its second pass.
struct Passes {
  DeviceTransformer& transformer;
  DeviceTrainingState& state;
  int rank;

  void add(int64_t step, int64_t pass, int64_t offset, int64_t count) const {
    float* gradient = state.gradient_at(offset);
    for (int64_t i = 0; gradient != nullptr && i < count; ++i) {
      gradient[i] += gradient_of(step, pass, rank, offset, i);
    }
  }
  void run(int64_t step, int64_t pass) const {
    const ModelConfig& config = transformer.config();
    if (rank == 1 && pass == 1) {
      must(state.idle_forward());
      must(state.idle_backward());
      return;
    }
    std::map<int64_t, int64_t> sizes;  // by offset
    for (const DevicePart& part : transformer.parts()) {
      sizes[part.offset] += part.rows * std::max<int64_t>(part.columns, 1);
    }
    for (int64_t i = 0; i < config.num_layers; ++i) {
      must(state.before_forward(i));
      // What a pass reads is this layer's weights, whoever holds them.
      const DeviceTransformer::Layer& layer = transformer.layers()[static_cast<size_t>(i)];
      EXPECT_EQ(transformer.at<uint16_t>(layer.down)[5], weight_at(i));
    }
    must(state.wait());
    add(step, pass, transformer.head_offset(), sizes[transformer.head_offset()]);
    add(step, pass, transformer.final_norm_offset(), config.hidden_size);
    for (int64_t i = config.num_layers - 1; i >= 0; --i) {
      must(state.before_backward(i));
      const DeviceTransformer::Layer& layer = transformer.layers()[static_cast<size_t>(i)];
      for (const int64_t offset :
           {layer.down, layer.gate_up, layer.mlp_norm, layer.output, layer.q_norm, layer.k_norm,
            layer.qkv, layer.qkv_bias, layer.attention_norm}) {
        if (offset >= 0) add(step, pass, offset, sizes[offset]);
      }
      must(state.after_backward(i));
    }
    if (transformer.head_offset() != transformer.embedding_offset()) {
      add(step, pass, transformer.embedding_offset(), sizes[transformer.embedding_offset()]);
    }
    must(state.wait());
  }
  // Number 5 of a layer's down projection, from the masters.
  uint16_t weight_at(int64_t layer) const {
    const float value = down_of[static_cast<size_t>(layer)];
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded_to_bf16(value)) >> 16);
  }
  std::vector<float> down_of;
};

struct Course {
  std::vector<double> norms;
  std::vector<uint64_t> hashes;
  std::vector<std::vector<float>> gradients;  // by step
  std::vector<float> weights, m, v;
  std::vector<uint16_t> bf16;
  bool operator==(const Course&) const = default;
};

std::vector<float> down_of(const ParameterLayout& layout, const float* weights) {
  std::vector<float> found, values;
  for (size_t i = 0; i < layout.layers.size(); ++i) {
    const ParameterPlace& place =
        find_place(layout, fmt::format("model.layers.{}.mlp.down_proj.weight", i));
    values.resize(static_cast<size_t>(place.rows * place.columns));
    read_parameter(place, weights + place.offset, values.data());
    found.push_back(values[5]);
  }
  return found;
}

Course train(const ModelConfig& config, int64_t zero_stage, comm::Communicator& ranks) {
  gradus::testing::host_cuda_ranks = &ranks;
  const kernels::Cuda cuda = host_cuda();
  Transformer host(config);
  init_parameters(config, host.layout(), 5, 0.08, host.parameters());
  auto devices = comm::DeviceCommunicator::create(cuda, ranks);
  EXPECT_TRUE(devices.ok()) << devices.status().message();
  auto transformer = DeviceTransformer::create(
      cuda, config,
      [&](const WeightSpec& spec, float* out) {
        return read_parameter(host.layout(), host.parameters(), spec, out);
      },
      ranks.size());
  EXPECT_TRUE(transformer.ok()) << transformer.status().message();
  auto state = DeviceTrainingState::create(**transformer, host,
                                           {.ranks = devices->get(), .zero_stage = zero_stage});
  EXPECT_TRUE(state.ok()) << state.status().message();
  EXPECT_EQ((*state)->is_lockstep(), zero_stage >= 2 && ranks.size() > 1);

  const size_t size = static_cast<size_t>(host.layout().size);
  Course course;
  course.weights.resize(size);
  course.m.resize(size);
  course.v.resize(size);
  must((*state)->download(course.weights.data()));
  EXPECT_EQ(std::memcmp(course.weights.data(), host.parameters(), size * sizeof(float)), 0);
  course.hashes.push_back((*state)->hash().value());
  for (int64_t step = 1; step <= kSteps; ++step) {
    must((*state)->scatter_weights());
    must((*state)->clear_gradients());
    const Passes passes = {**transformer, **state, ranks.rank(),
                           down_of(host.layout(), course.weights.data())};
    for (int64_t pass = 0; pass < kPasses; ++pass) passes.run(step, pass);
    must((*state)->sum_gradients());
    course.norms.push_back((*state)->gradient_norm().value());
    must((*state)->gradients_to_host(course.gradients.emplace_back(size).data()));
    must((*state)->apply({.learning_rate = 0.01, .weight_decay = 0.1, .step = step, .scale = 0.5}));
    must((*state)->download(course.weights.data()));
    course.hashes.push_back((*state)->hash().value());
  }
  must((*state)->moments_to_host(course.m.data(), course.v.data()));
  // What was taken away and brought back is what was there.
  must((*state)->upload(course.weights.data()));
  must((*state)->moments_from_host(course.m.data(), course.v.data()));
  std::vector<float> again(size), again_m(size), again_v(size);
  must((*state)->download(again.data()));
  must((*state)->moments_to_host(again_m.data(), again_v.data()));
  EXPECT_EQ(again, course.weights);
  EXPECT_EQ(again_m, course.m);
  EXPECT_EQ(again_v, course.v);
  // An engine reads all of the bf16 weights.
  must((*state)->gather_weights());
  for (const DevicePart& part : (*transformer)->parts()) {
    if (part.columns == 0) continue;
    const uint16_t* bf16 = (*transformer)->at<uint16_t>(part.offset);
    for (int64_t row = 0; row < part.rows; ++row) {
      for (int64_t c = 0; c < part.columns; ++c) {
        course.bf16.push_back(bf16[part.row_of(row) * part.columns + c]);
      }
    }
  }
  return course;
}

// Untied, with biases; tied, with norms of heads.
const std::vector<ModelConfig>& shapes() {
  static const std::vector<ModelConfig> all = {qwen2_like(), qwen3_like()};
  return all;
}

TEST(DeviceTrainingState, WhateverIsSharedOutChangesNoBit) {
  for (const ModelConfig& config : shapes()) {
    for (const int num_ranks : {2, 3}) {
      std::vector<Course> by_stage;
      for (const int64_t stage : {0, 1, 2, 3}) {
        std::mutex mutex;
        std::vector<Course> courses;
        testing::run_ranks(num_ranks, [&](comm::Communicator& ranks) {
          Course course = train(config, stage, ranks);
          const std::lock_guard lock(mutex);
          courses.push_back(std::move(course));
        });
        for (const Course& course : courses) EXPECT_TRUE(course == courses[0]) << "ranks differ";
        by_stage.push_back(std::move(courses[0]));
        const Course& first = by_stage.front();
        const Course& here = by_stage.back();
        EXPECT_EQ(here.norms, first.norms) << "stage " << stage;
        EXPECT_EQ(here.hashes, first.hashes) << "stage " << stage;
        EXPECT_TRUE(here == first) << "stage " << stage << " of " << num_ranks << " ranks";
      }
    }
  }
}

// Against the definition: sums over ranks and passes, AdamW of the host, rounded weights.
TEST(DeviceTrainingState, SumsAndUpdatesAreThoseOfOnePlainArray) {
  const ModelConfig config = qwen2_like();
  Transformer host(config);
  const ParameterLayout& layout = host.layout();
  init_parameters(config, layout, 5, 0.08, host.parameters());
  uint64_t hash_of_one = 0;
  {
    const auto one = comm::make_communicator().value();
    hash_of_one = train(config, 3, *one).hashes[0];
  }
  Course course;
  testing::run_ranks(2, [&](comm::Communicator& ranks) {
    Course mine = train(config, 3, ranks);
    if (ranks.rank() == 0) course = std::move(mine);
  });
  EXPECT_EQ(course.hashes[0], hash_of_one);
  EXPECT_NE(course.hashes[1], course.hashes[0]);

  const auto parts = DeviceTransformer::create(
                         host_cuda(), config, [](const WeightSpec&, float*) { return Status(); }, 2)
                         .value()
                         ->parts();
  AlignedBuffer weights(layout.size), m(layout.size), v(layout.size);
  std::copy_n(host.parameters(), layout.size, weights.data());
  for (int64_t step = 1; step <= kSteps; ++step) {
    const std::vector<float>& gradient = course.gradients[static_cast<size_t>(step - 1)];
    double squares = 0;
    int64_t wrong = 0;
    std::vector<float> values;
    for (const DevicePart& part : parts) {
      const ParameterPlace& place = find_place(layout, part.hf_name);
      const int64_t columns = std::max<int64_t>(part.columns, 1);
      values.resize(static_cast<size_t>(part.rows * columns));
      read_parameter(place, gradient.data() + place.offset, values.data());
      for (int64_t i = 0; i < part.rows * columns; ++i) {
        const int64_t number = part.row_of(i / columns) * columns + i % columns;
        const float expected = gradient_of(step, 0, 0, part.offset, number) +
                               gradient_of(step, 1, 0, part.offset, number) +
                               gradient_of(step, 0, 1, part.offset, number);
        wrong += values[static_cast<size_t>(i)] != expected;
        squares += double{expected} * expected;
      }
    }
    EXPECT_EQ(wrong, 0) << "step " << step;
    EXPECT_EQ(course.norms[static_cast<size_t>(step - 1)], std::sqrt(squares));
    testing::adamw_on_host(layout, step, gradient.data(), weights.data(), m.data(), v.data());
  }
  const auto same = [&](const std::vector<float>& got, const AlignedBuffer& expected) {
    return std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0;
  };
  EXPECT_TRUE(same(course.weights, weights));
  EXPECT_TRUE(same(course.m, m));
  EXPECT_TRUE(same(course.v, v));
  std::vector<float> values;
  size_t next = 0;
  int64_t wrong = 0;
  for (const DevicePart& part : parts) {
    if (part.columns == 0) continue;
    const ParameterPlace& place = find_place(layout, part.hf_name);
    values.resize(static_cast<size_t>(part.rows * part.columns));
    read_parameter(place, weights.data() + place.offset, values.data());
    for (const float value : values) {
      wrong += course.bf16[next++] !=
               static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded_to_bf16(value)) >> 16);
    }
  }
  EXPECT_EQ(next, course.bf16.size());
  EXPECT_EQ(wrong, 0);
}

// What the plan promises is what is allocated.
TEST(DeviceTrainingState, EachStageTakesLessMemory) {
  ModelConfig config = qwen3_like();
  config.num_layers = 40;
  const double weights = static_cast<double>(num_parameters(config));
  const auto all = [&](int64_t stage, int64_t ranks) {
    const DeviceStateBytes bytes = DeviceTrainingState::bytes(config, stage, ranks);
    return static_cast<double>(bytes.state + bytes.weights_training) / weights;
  };
  // Bytes a weight: bf16, gradient, and master and moments, of which a rank has its share; a layer
  // and the embedding are whole on top of it.
  EXPECT_NEAR(all(0, 1), 2 + 4 + 12, 0.2);
  EXPECT_NEAR(all(3, 1), 2 + 4 + 12, 0.2) << "one rank has nothing to share out";
  EXPECT_NEAR(all(0, 8), 2 + 4 + 12, 0.2);
  EXPECT_NEAR(all(1, 8), 2 + 4 + 12.0 / 8, 0.2);
  EXPECT_NEAR(all(2, 8), 2 + 16.0 / 8, 0.3);
  EXPECT_NEAR(all(3, 8), 18.0 / 8, 0.5);
}

}  // namespace
}  // namespace gradus::model
