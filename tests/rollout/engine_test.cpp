// SPDX-License-Identifier: Apache-2.0
#include "rollout/cpu_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "model/training_pass.h"
#include "tests/support/model_rows.h"

namespace gradus::rollout {
namespace {

using ::testing::HasSubstr;
using testing::random_tokens;
using testing::tiny_model_dir;

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

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = model::Transformer::load(tiny_model_dir("qwen2"));
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    model_ = std::move(*loaded);
    auto tokenizer = data::Tokenizer::load(tiny_model_dir("qwen2"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    tokenizer_ = std::move(*tokenizer);
  }

  // `groups` prompts of different lengths (one a multiple of a page) with `samples` responses each.
  std::vector<data::RolloutRequest> requests(uint64_t groups, int32_t samples,
                                             int64_t max_new_tokens) {
    std::vector<data::RolloutRequest> all;
    for (uint64_t g = 0; g < groups; ++g) {
      const int64_t length = g == 1 ? 128 : static_cast<int64_t>(3 + 29 * g);
      for (int32_t i = 0; i < samples; ++i) {
        data::RolloutRequest request;
        request.id = {g, i};
        request.token_ids = random_tokens(length, model_->config().vocab_size, g);
        request.sampling.max_new_tokens = max_new_tokens;
        request.sampling.stop_ids = {7};
        request.rng_key = request_seed(1, 0, g, i);
        all.push_back(request);
      }
    }
    return all;
  }

  std::vector<data::Trajectory> run(const std::vector<data::RolloutRequest>& requests,
                                    EngineOptions options, EngineStats* stats = nullptr) {
    CpuEngine engine(*model_, tokenizer_.get(), options);
    Collector sink(requests.size());
    const Status status = engine.run(requests, 3, 99, sink);
    EXPECT_TRUE(status.ok()) << status.message();
    for (const int seen : sink.seen) EXPECT_EQ(seen, 1);
    if (stats != nullptr) *stats = engine.stats();
    return std::move(sink.trajectories);
  }

  EngineOptions pages(int64_t count, int64_t max_batch = 64, int64_t chunk = 512) const {
    return {max_batch, count * model::KvCache::bytes_per_page(model_->config()), chunk};
  }

  std::unique_ptr<model::Transformer> model_;
  std::unique_ptr<data::Tokenizer> tokenizer_;
};

void expect_same(const std::vector<data::Trajectory>& a, const std::vector<data::Trajectory>& b,
                 const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].token_ids, b[i].token_ids) << what << ", request " << i;
    ASSERT_EQ(a[i].finish_reason, b[i].finish_reason) << what << ", request " << i;
    ASSERT_EQ(a[i].behavior_logprobs.size(), b[i].behavior_logprobs.size());
    ASSERT_EQ(std::memcmp(a[i].behavior_logprobs.data(), b[i].behavior_logprobs.data(),
                          a[i].behavior_logprobs.size() * sizeof(float)),
              0)
        << what << ", request " << i;
    ASSERT_EQ(a[i].text, b[i].text);
  }
}

TEST_F(EngineTest, TrajectoriesDoNotDependOnBatchCacheChunkOrOrder) {
  const std::vector<data::RolloutRequest> all = requests(6, 5, 90);
  EngineStats stats;
  const std::vector<data::Trajectory> expected = run(all, pages(400), &stats);
  EXPECT_EQ(stats.num_preemptions, 0);
  expect_same(expected, run(all, pages(400, 1)), "one at a time");
  expect_same(expected, run(all, pages(400, 7, 5)), "batch of 7, prompts in chunks of 5");
  for (const int64_t count : {6, 9, 14, 30}) {
    expect_same(expected, run(all, pages(count, 64, 100), &stats),
                std::to_string(count) + " pages");
    if (count < 14) {
      EXPECT_GT(stats.num_preemptions, 0) << count << " pages";
    }
  }
  std::vector<data::RolloutRequest> reversed(all.rbegin(), all.rend());
  std::vector<data::Trajectory> backwards = run(reversed, pages(20, 11, 33));
  std::reverse(backwards.begin(), backwards.end());
  expect_same(expected, backwards, "reversed");
}

// The behaviour log-probs have the bits of the trainer's forward: mismatch exactly 0.
TEST_F(EngineTest, LogprobsEqualTheTrainersBitForBit) {
  std::vector<data::RolloutRequest> all = requests(5, 4, 40);
  for (data::RolloutRequest& request : all) {
    request.sampling.temperature = 0.7;
    request.sampling.top_k = 50;
  }
  const std::vector<data::Trajectory> trajectories = run(all, pages(12, 6, 50));
  std::vector<data::PackGroup> groups;
  for (const data::Trajectory& trajectory : trajectories) {
    const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
    if (trajectory.id.sample_index == 0)
      groups.push_back({{trajectory.token_ids.begin(), split}, {}});
    groups.back().responses.emplace_back(split, trajectory.token_ids.end());
  }
  model::TrainingPass pass(*model_, false);
  const data::Pack pack = data::make_pack(groups);
  pass.forward(pack, 0.7f, false);
  size_t target = 0;
  for (const data::Trajectory& trajectory : trajectories) {
    for (const float logprob : trajectory.behavior_logprobs) {
      ASSERT_EQ(std::memcmp(&logprob, &pass.logprobs()[target++], sizeof(float)), 0);
    }
  }
  EXPECT_EQ(target, pass.logprobs().size());
}

TEST_F(EngineTest, StopsAtIdsTextsAndLengths) {
  std::vector<data::RolloutRequest> one = requests(1, 1, 12);
  const data::Trajectory free = run(one, pages(40))[0];
  ASSERT_EQ(free.behavior_logprobs.size(), 12u)
      << "the seed must not meet the stop id for this test";
  EXPECT_EQ(free.finish_reason, data::FinishReason::kLength);
  EXPECT_EQ(free.policy_version, 3u);
  EXPECT_EQ(free.weights_hash, 99u);

  one[0].sampling.stop_ids = {free.token_ids[static_cast<size_t>(free.prompt_length + 4)]};
  const data::Trajectory by_id = run(one, pages(40))[0];
  EXPECT_EQ(by_id.finish_reason, data::FinishReason::kStop);
  EXPECT_LE(by_id.behavior_logprobs.size(), 5u);
  EXPECT_EQ(by_id.token_ids.back(), one[0].sampling.stop_ids[0])
      << "the stop id is part of the response";

  one[0].sampling.stop_ids = {};
  const std::string stop = free.text.substr(free.text.size() / 2, 2);
  one[0].sampling.stop_texts = {stop};
  const data::Trajectory by_text = run(one, pages(40))[0];
  EXPECT_EQ(by_text.finish_reason, data::FinishReason::kStop);
  EXPECT_EQ(by_text.text, free.text.substr(0, free.text.find(stop)))
      << "the text ends before the stop text";
}

TEST_F(EngineTest, GreedyTakesTheLargestLogitAndTopKOneAgrees) {
  std::vector<data::RolloutRequest> greedy = requests(3, 1, 20), top_one = greedy;
  for (auto& request : greedy) request.sampling.greedy = true;
  for (auto& request : top_one) request.sampling.top_k = 1;
  const auto a = run(greedy, pages(40)), b = run(top_one, pages(40));
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].token_ids, b[i].token_ids);
  for (const float logprob : b[0].sampling_logprobs) EXPECT_EQ(logprob, 0.0f);
}

TEST_F(EngineTest, CancelKeepsWhatWasSampled) {
  const std::vector<data::RolloutRequest> all = requests(4, 3, 50);
  CpuEngine engine(*model_, tokenizer_.get(), pages(60, 4));
  Collector sink(all.size());
  std::atomic<bool> cancel{false};
  ASSERT_TRUE(engine
                  .run(all, 0, 0, sink, &cancel,
                       [&](int64_t, int64_t sampled) {
                         if (sampled > 20) cancel = true;
                       })
                  .ok());
  size_t sampled = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(sink.seen[i], 1);
    EXPECT_TRUE(data::validate(sink.trajectories[i]).ok());
    sampled += sink.trajectories[i].behavior_logprobs.size();
  }
  EXPECT_GT(sampled, 20u);
  EXPECT_EQ(sink.trajectories.back().finish_reason, data::FinishReason::kCancelled);
}

// Interrupted after every fourth token and gone on with, each time under another version's name.
TEST_F(EngineTest, AnInterruptedResponseGoesOnAsIfNothingHadHappened) {
  std::vector<data::RolloutRequest> all = requests(4, 3, 30);
  for (data::RolloutRequest& request : all) request.sampling.stop_texts = {"never said"};
  const std::vector<data::Trajectory> whole = run(all, pages(400));
  std::vector<data::Trajectory> parts(all.size());
  std::vector<size_t> rest(all.size());
  for (size_t i = 0; i < rest.size(); ++i) rest[i] = i;
  for (data::RolloutRequest& request : all) request.token_budget = 4;
  CpuEngine engine(*model_, tokenizer_.get(), pages(40));
  uint64_t version = 10;
  for (; !rest.empty(); ++version) {
    std::vector<data::RolloutRequest> now;
    for (const size_t i : rest) now.push_back(all[i]);
    Collector sink(now.size());
    const Status status = engine.run(now, version, 100 + version, sink);
    ASSERT_TRUE(status.ok()) << status.message();
    std::vector<size_t> left;
    for (size_t i = 0; i < rest.size(); ++i) {
      data::Trajectory& part = sink.trajectories[i];
      ASSERT_TRUE(data::validate(part).ok()) << data::validate(part).message();
      if (part.finish_reason == data::FinishReason::kInterrupted) {
        EXPECT_EQ(part.behavior_logprobs.size(), 4 * (version - 9));
        all[rest[i]].begun = part;
        left.push_back(rest[i]);
      }
      parts[rest[i]] = std::move(part);
    }
    rest = left;
  }
  EXPECT_EQ(version, 18u) << "30 tokens, 4 a time";
  expect_same(whole, parts, "in parts");
  size_t num_long = 0;
  for (const data::Trajectory& part : parts) {
    const int64_t length = static_cast<int64_t>(part.behavior_logprobs.size());
    if (length <= 4) {
      EXPECT_TRUE(part.segments.empty()) << "one version sampled all";
      EXPECT_EQ(part.policy_version, 10u);
      continue;
    }
    ++num_long;
    ASSERT_EQ(static_cast<int64_t>(part.segments.size()), (length + 3) / 4);
    for (size_t s = 0; s < part.segments.size(); ++s) {
      const int64_t begin = static_cast<int64_t>(4 * s);
      EXPECT_EQ(part.segments[s],
                (data::Segment{begin, std::min(begin + 4, length), 10 + s, 110 + s}));
    }
    EXPECT_EQ(part.policy_version, part.segments.back().policy_version);
  }
  EXPECT_GT(num_long, 3u);
}

TEST_F(EngineTest, AResponseThatCannotBeGoneOnWithIsAnError) {
  data::RolloutRequest request = requests(1, 1, 10)[0];
  const data::Trajectory whole = run({request}, pages(10))[0];
  const auto message_of = [&](const data::Trajectory& begun) {
    request.begun = begun;
    CpuEngine engine(*model_, tokenizer_.get(), pages(10));
    Collector sink(1);
    return engine.run({&request, 1}, 0, 0, sink).message();
  };
  data::Trajectory other = whole;
  ++other.token_ids[0];
  EXPECT_EQ(message_of(other), "prompt 0, sample 0: the response to go on with has another prompt");
  request.sampling.max_new_tokens = static_cast<int64_t>(whole.behavior_logprobs.size());
  EXPECT_THAT(message_of(whole), HasSubstr("tokens, expected at least 1 and fewer than"));
}

TEST_F(EngineTest, NamesTheRequestThatCannotRun) {
  const auto message_of = [&](const data::RolloutRequest& request, EngineOptions options) {
    CpuEngine engine(*model_, tokenizer_.get(), options);
    Collector sink(1);
    return engine.run({&request, 1}, 0, 0, sink).message();
  };
  data::RolloutRequest request = requests(1, 1, 10)[0];
  request.id = {41, 2};
  request.token_ids[1] = 100000;
  EXPECT_THAT(
      message_of(request, pages(10)),
      HasSubstr("prompt 41, sample 2: token id 100000 is not in the model's vocabulary [0, "));
  request.token_ids = {};
  EXPECT_THAT(message_of(request, pages(10)), HasSubstr("the prompt has no tokens"));
  request.token_ids.assign(static_cast<size_t>(model_->config().max_position_embeddings), 1);
  EXPECT_THAT(message_of(request, pages(1000)), HasSubstr("leaves no room for a response"));
  request.token_ids.assign(100, 1);
  EXPECT_THAT(message_of(request, pages(2)), HasSubstr("raise kv_cache_mib to at least"));
}

TEST_F(EngineTest, WeightsThatAreNotANumberAreAnError) {
  model_->parameters()[model_->layout().final_norm] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<data::RolloutRequest> one = requests(1, 1, 5);
  CpuEngine engine(*model_, tokenizer_.get(), pages(10));
  Collector sink(1);
  const Status status = engine.run(one, 0, 0, sink);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("prompt 0, sample 0"));
}

}  // namespace
}  // namespace gradus::rollout
