// SPDX-License-Identifier: Apache-2.0
#include "rollout/device_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/rng.h"
#include "model/training_pass.h"
#include "model/transformer.h"
#include "tests/kernels/head_case.h"
#include "tests/support/device_model.h"

namespace gradus::rollout {
namespace {

using gradus::testing::DeviceModel;
using gradus::testing::qwen2_like;
using gradus::testing::qwen3_like;
using gradus::testing::random_ids;
using gradus::testing::rounded_to_bf16;
using ::testing::HasSubstr;

class Collector : public TrajectorySink {
 public:
  explicit Collector(size_t count) : trajectories(count), seen(count) {}
  void finished(size_t index, data::Trajectory trajectory) override {
    ++seen[index];
    trajectories[index] = std::move(trajectory);
  }
  std::vector<data::Trajectory> trajectories;
  std::vector<int> seen;
};

// Groups of several samples, prompts shorter and longer than a page and exactly one, all kinds of
// sampling, responses that end early.
std::vector<data::RolloutRequest> mixed_requests(const model::ModelConfig& config, uint64_t groups,
                                                 int64_t max_new) {
  std::vector<data::RolloutRequest> all;
  for (uint64_t g = 0; g < groups; ++g) {
    const int64_t lengths[] = {5, 64, 131, 520, 1, 63};
    for (int32_t i = 0; i < 3; ++i) {
      data::RolloutRequest request;
      request.id = {g, i};
      request.token_ids = random_ids(lengths[g % 6], config.vocab_size, g);
      request.sampling.max_new_tokens = i == 2 && g % 2 == 1 ? 1 : max_new;
      request.sampling.stop_ids = {7, 11};
      request.sampling.temperature = g % 3 == 1 ? 0.7 : 1.0;
      request.sampling.top_k = i == 1 ? 20 : 0;
      request.sampling.top_p = g % 4 == 2 ? 0.9 : 1.0;
      request.sampling.greedy = g % 5 == 4;
      request.rng_key = request_seed(1, 0, g, i);
      all.push_back(request);
    }
  }
  return all;
}

std::vector<data::Trajectory> run(model::DeviceTransformer& transformer,
                                  const std::vector<data::RolloutRequest>& requests,
                                  EngineOptions options) {
  auto engine = DeviceEngine::create(transformer, nullptr, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  std::vector<data::Trajectory> first;
  for (int again = 0; again < 2; ++again) {  // the second run finds what the first has left
    Collector sink(requests.size());
    const Status status = (*engine)->run(requests, 3, 99, sink);
    EXPECT_TRUE(status.ok()) << status.message();
    if (!status.ok()) return sink.trajectories;
    for (const int seen : sink.seen) EXPECT_EQ(seen, 1);
    if (again == 0) {
      first = std::move(sink.trajectories);
      continue;
    }
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(first[i].token_ids, sink.trajectories[i].token_ids) << i;
    }
  }
  return first;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

EngineOptions options_of(int64_t batch, int64_t chunk, int64_t pages,
                         const model::ModelConfig& config) {
  return {.max_batch = batch,
          .kv_cache_bytes = pages * model::DeviceKvCache::bytes_per_page(config),
          .prefill_chunk_tokens = chunk};
}

class DeviceEngineSmall : public ::testing::TestWithParam<int> {
 protected:
  model::ModelConfig config() const { return GetParam() == 0 ? qwen3_like() : qwen2_like(); }
};
INSTANTIATE_TEST_SUITE_P(Models, DeviceEngineSmall, ::testing::Values(0, 1));

TEST_P(DeviceEngineSmall, LogProbsOfDecodingAreThoseOfScoringBitForBit) {
  GRADUS_NEEDS_GPU(cuda);
  DeviceModel m(*cuda, config(), 5);
  const auto requests = mixed_requests(config(), 12, 90);
  const auto trajectories = run(*m.device, requests, options_of(16, 300, 400, config()));
  for (const double temperature : {1.0, 0.7}) {
    std::vector<std::vector<int32_t>> sequences;
    std::vector<size_t> owners;
    for (size_t i = 0; i < requests.size(); ++i) {
      const data::SamplingParams& sampling = requests[i].sampling;
      if ((sampling.greedy ? 1.0 : sampling.temperature) != temperature) continue;
      sequences.push_back(trajectories[i].token_ids);
      owners.push_back(i);
    }
    for (const int64_t rows : {int64_t{8192}, int64_t{100}}) {
      model::DeviceScorer scorer(*m.device, rows);
      const auto scored = scorer.score(sequences, static_cast<float>(temperature));
      ASSERT_TRUE(scored.ok()) << scored.status().message();
      int64_t num_tokens = 0;
      for (size_t i = 0; i < owners.size(); ++i) {
        const data::Trajectory& trajectory = trajectories[owners[i]];
        const std::vector<float> response((*scored)[i].begin() + trajectory.prompt_length - 1,
                                          (*scored)[i].end());
        EXPECT_TRUE(same(response, trajectory.behavior_logprobs))
            << "request " << owners[i] << ", prompt of " << trajectory.prompt_length;
        num_tokens += static_cast<int64_t>(response.size());
      }
      EXPECT_GT(num_tokens, 200);
    }
  }
}

TEST_P(DeviceEngineSmall, AWeightThatDiffersInItsLastBitIsSeenInTheLogProbs) {
  GRADUS_NEEDS_GPU(cuda);
  DeviceModel m(*cuda, config(), 5);
  const auto requests = mixed_requests(config(), 2, 40);
  const auto trajectories = run(*m.device, requests, options_of(8, 300, 60, config()));
  float& weight = m.cpu.parameters()[m.cpu.layout().layers[1].down + 5];
  weight = std::bit_cast<float>(std::bit_cast<uint32_t>(weight) ^ 0x10000u);
  const auto changed = m.upload(*cuda);
  model::DeviceScorer scorer(*changed, 4096);
  const auto scored =
      scorer.score(std::vector<std::vector<int32_t>>{trajectories[0].token_ids}, 1.0f);
  ASSERT_TRUE(scored.ok());
  const std::vector<float> response((*scored)[0].begin() + trajectories[0].prompt_length - 1,
                                    (*scored)[0].end());
  EXPECT_FALSE(same(response, trajectories[0].behavior_logprobs));
}

TEST_P(DeviceEngineSmall, NeitherBatchNorPlaceNorChunksNorMemoryChangeABit) {
  GRADUS_NEEDS_GPU(cuda);
  DeviceModel m(*cuda, config(), 6);
  const auto requests = mixed_requests(config(), 12, 70);
  const auto expected = run(*m.device, requests, options_of(64, 8192, 600, config()));
  const auto expect_same = [&](const EngineOptions& options, bool reversed) {
    auto order = requests;
    if (reversed) std::reverse(order.begin(), order.end());
    auto got = run(*m.device, order, options);
    if (reversed) std::reverse(got.begin(), got.end());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(got[i].token_ids, expected[i].token_ids)
          << "request " << i << ", batch " << options.max_batch;
      ASSERT_TRUE(same(got[i].behavior_logprobs, expected[i].behavior_logprobs)) << i;
      ASSERT_TRUE(same(got[i].sampling_logprobs, expected[i].sampling_logprobs)) << i;
      ASSERT_EQ(got[i].finish_reason, expected[i].finish_reason) << i;
    }
  };
  expect_same(options_of(1, 64, 30, config()), false);
  expect_same(options_of(5, 17, 40, config()), true);
  expect_same(options_of(24, 1000, 50, config()), false);
  // What the batch is made of: alone, with others before it.
  for (const size_t i : {size_t{0}, size_t{9}, size_t{20}}) {
    const auto alone = run(*m.device, {requests[i]}, options_of(4, 128, 40, config()));
    ASSERT_EQ(alone[0].token_ids, expected[i].token_ids) << i;
    ASSERT_TRUE(same(alone[0].behavior_logprobs, expected[i].behavior_logprobs)) << i;
  }
}

TEST_P(DeviceEngineSmall, AgreesWithTheCpuAsFarAsBf16Goes) {
  GRADUS_NEEDS_GPU(cuda);
  DeviceModel m(*cuda, config(), 7);
  auto requests = mixed_requests(config(), 6, 60);
  for (data::RolloutRequest& request : requests) request.sampling.temperature = 1;
  const auto trajectories = run(*m.device, requests, options_of(32, 512, 400, config()));
  // Mean and largest difference to what the CPU gives for the same tokens.
  const auto compare = [&] {
    model::TrainingPass pass(m.cpu, false);
    double sum = 0, worst = 0;
    int64_t count = 0;
    for (const data::Trajectory& trajectory : trajectories) {
      const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
      const std::vector<data::PackGroup> group = {
          {{trajectory.token_ids.begin(), split}, {{split, trajectory.token_ids.end()}}}};
      const data::Pack pack = data::make_pack(group);
      pass.forward(pack, 1.0f, false);
      for (size_t i = 0; i < trajectory.behavior_logprobs.size(); ++i) {
        const double difference = std::abs(pass.logprobs()[i] - trajectory.behavior_logprobs[i]);
        sum += difference;
        worst = std::max(worst, difference);
        ++count;
      }
    }
    return std::pair(sum / static_cast<double>(count), worst);
  };
  const auto [mean, worst] = compare();
  // Keys, values, attention and MLP rows are rounded to 8 bits on the way.
  EXPECT_LT(mean, 0.03);
  EXPECT_LT(worst, 0.2);
  // A part left out is far beyond that.
  const model::LayerPlaces& places = m.cpu.layout().layers[0];
  const int64_t part = config().qk_norm ? places.k_norm : places.qkv_bias;
  for (int64_t i = 0; i < 64; ++i) m.cpu.parameters()[part + i] *= -1;
  EXPECT_GT(compare().first, 0.1);
}

TEST(DeviceEngineSmallRun, GoesOnWithAnInterruptedResponseAsIfItHadNotBeen) {
  GRADUS_NEEDS_GPU(cuda);
  const model::ModelConfig config = qwen3_like();
  DeviceModel m(*cuda, config, 8);
  auto requests = mixed_requests(config, 4, 60);
  for (data::RolloutRequest& request : requests) request.sampling.stop_ids = {};
  const EngineOptions options = options_of(16, 200, 200, config);
  const auto whole = run(*m.device, requests, options);
  auto first = requests;
  for (data::RolloutRequest& request : first) request.token_budget = 25;
  const auto begun = run(*m.device, first, options);
  auto rest = requests;
  for (size_t i = 0; i < rest.size(); ++i) {
    if (begun[i].finish_reason == data::FinishReason::kInterrupted) rest[i].begun = begun[i];
  }
  const auto resumed = run(*m.device, rest, options);
  for (size_t i = 0; i < whole.size(); ++i) {
    if (whole[i].behavior_logprobs.size() > 25) {
      EXPECT_EQ(begun[i].finish_reason, data::FinishReason::kInterrupted);
      EXPECT_EQ(begun[i].behavior_logprobs.size(), 25u);
    }
    EXPECT_EQ(resumed[i].token_ids, whole[i].token_ids) << i;
    EXPECT_TRUE(same(resumed[i].behavior_logprobs, whole[i].behavior_logprobs)) << i;
  }
}

TEST(DeviceEngineSmallRun, CanBeCancelledAndRunsAgain) {
  GRADUS_NEEDS_GPU(cuda);
  const model::ModelConfig config = qwen2_like();
  DeviceModel m(*cuda, config, 9);
  auto requests = mixed_requests(config, 6, 400);
  for (data::RolloutRequest& request : requests) request.sampling.stop_ids = {};
  auto engine = DeviceEngine::create(*m.device, nullptr, options_of(4, 200, 60, config));
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  std::atomic<bool> cancel{false};
  Collector sink(requests.size());
  const Status status = (*engine)->run(requests, 0, 0, sink, &cancel,
                                       [&](int64_t, int64_t tokens) { cancel = tokens > 50; });
  ASSERT_TRUE(status.ok()) << status.message();
  int cancelled = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(sink.seen[i], 1);
    cancelled += sink.trajectories[i].finish_reason == data::FinishReason::kCancelled;
  }
  EXPECT_GT(cancelled, 10);
  for (data::RolloutRequest& request : requests) request.sampling.max_new_tokens = 20;
  Collector again(requests.size());
  ASSERT_TRUE((*engine)->run(requests, 0, 0, again).ok());
  const auto expected = run(*m.device, requests, options_of(32, 512, 400, config));
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(again.trajectories[i].token_ids, expected[i].token_ids) << i;
  }
}

TEST(DeviceEngineSmallRun, SaysWhatIsWrong) {
  GRADUS_NEEDS_GPU(cuda);
  const model::ModelConfig config = qwen2_like();
  DeviceModel m(*cuda, config, 10);
  auto engine = DeviceEngine::create(*m.device, nullptr, options_of(4, 200, 2, config));
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  data::RolloutRequest request;
  request.token_ids = random_ids(200, config.vocab_size, 1);
  Collector sink(1);
  EXPECT_EQ((*engine)->run(std::vector{request}, 0, 0, sink).message(),
            "prompt 0, sample 0: up to 328 tokens need 7 pages of the key-value cache, which has "
            "2; raise kv_cache_mib to at least 1");
  const auto huge =
      DeviceEngine::create(*m.device, nullptr, options_of(4, 200, int64_t{1} << 32, config));
  ASSERT_FALSE(huge.ok());
  EXPECT_THAT(huge.status().message(), HasSubstr("the key-value cache: cuda: cudaMalloc"));
  EXPECT_THAT(huge.status().message(), HasSubstr("GiB were asked for on NVIDIA"));
  float* norm = m.cpu.parameters() + m.cpu.layout().final_norm;
  norm[3] = std::numeric_limits<float>::quiet_NaN();
  const auto broken = m.upload(*cuda);
  auto other = DeviceEngine::create(*broken, nullptr, options_of(4, 200, 20, config));
  ASSERT_TRUE(other.ok());
  EXPECT_EQ((*other)->run(std::vector{request}, 0, 0, sink).message(),
            "prompt 0, sample 0: the model's logits are not finite; its weights are broken");
}

}  // namespace
}  // namespace gradus::rollout
