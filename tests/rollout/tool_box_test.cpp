// SPDX-License-Identifier: Apache-2.0
#include "rollout/tool_box.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>

#include "common/rng.h"
#include "model/training_pass.h"
#include "rollout/cpu_engine.h"
#include "tests/support/model_rows.h"

namespace gradus::rollout {
namespace {

using data::FinishReason;
using data::ToolStatus;
using ::testing::HasSubstr;
using testing::random_tokens;
using testing::tiny_model_dir;

class Collector : public TrajectorySink {
 public:
  explicit Collector(size_t count) : trajectories(count) {}
  void finished(size_t index, data::Trajectory trajectory) override {
    trajectories[index] = std::move(trajectory);
  }
  std::vector<data::Trajectory> trajectories;
};

// Says the call backwards, after a while that differs from call to call and from seed to seed.
class Echo : public Tool {
 public:
  explicit Echo(uint64_t delays) : delays_(delays) {}
  ToolReply call(std::string_view text, double) const override {
    if (delays_ > 0) {
      const uint64_t number = num_calls_++;
      std::this_thread::sleep_for(std::chrono::microseconds(hash64({delays_, number}) % 3000));
    }
    const ToolStatus status = text.size() % 2 == 0 ? ToolStatus::kOk : ToolStatus::kError;
    return {status, "echo " + std::to_string(std::hash<std::string_view>()(text) % 1000)};
  }

 private:
  uint64_t delays_;
  mutable std::atomic<uint64_t> num_calls_ = 0;
};

class ToolBoxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = model::Transformer::load(tiny_model_dir("qwen2"));
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    model_ = std::move(*loaded);
    auto tokenizer = data::Tokenizer::load(tiny_model_dir("qwen2"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    tokenizer_ = std::move(*tokenizer);
  }

  // Tags that a model of random weights writes by chance: from a "t", "e" or "h" to one of many
  // letters.
  template <class MakeTool>
  std::unique_ptr<ToolBox> box(const MakeTool& make_tool, ToolBox::Limits limits) {
    std::vector<ToolBox::Entry> entries;
    for (const char close : std::string_view("bcdfgjklmnpqrsuvwyz0123456789")) {
      const char open = "teh"[entries.size() % 3];
      entries.push_back({"echo", std::string(1, open), std::string(1, close), make_tool()});
    }
    auto made = ToolBox::create(std::move(entries), limits, *tokenizer_);
    EXPECT_TRUE(made.ok()) << made.status().message();
    return std::move(*made);
  }
  std::unique_ptr<ToolBox> echo_box(uint64_t delays, ToolBox::Limits limits) {
    return box([&] { return std::make_unique<Echo>(delays); }, limits);
  }

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
        request.rng_key = request_seed(1, 0, g, i);
        all.push_back(request);
      }
    }
    return all;
  }

  std::vector<data::Trajectory> run(const std::vector<data::RolloutRequest>& requests,
                                    EngineOptions options, ToolBox* tools,
                                    EngineStats* stats = nullptr) {
    CpuEngine engine(*model_, tokenizer_.get(), options, tools);
    Collector sink(requests.size());
    const Status status = engine.run(requests, 3, 99, sink);
    EXPECT_TRUE(status.ok()) << status.message();
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
    ASSERT_EQ(a[i].observations, b[i].observations) << what << ", request " << i;
    ASSERT_EQ(a[i].finish_reason, b[i].finish_reason) << what << ", request " << i;
    ASSERT_EQ(a[i].behavior_logprobs.size(), b[i].behavior_logprobs.size());
    ASSERT_EQ(std::memcmp(a[i].behavior_logprobs.data(), b[i].behavior_logprobs.data(),
                          a[i].behavior_logprobs.size() * sizeof(float)),
              0)
        << what << ", request " << i;
    ASSERT_EQ(a[i].text, b[i].text);
  }
}

constexpr ToolBox::Limits kSmall = {
    .max_calls = 3, .max_observation_tokens = 12, .num_threads = 1, .observation_tag = "i"};

size_t num_calls(const std::vector<data::Trajectory>& trajectories) {
  size_t count = 0;
  for (const data::Trajectory& trajectory : trajectories) count += trajectory.observations.size();
  return count;
}

TEST_F(ToolBoxTest, TrajectoriesDoNotDependOnWhichCallEndsFirst) {
  const std::vector<data::RolloutRequest> all = requests(6, 5, 60);
  const auto at_once = echo_box(0, kSmall);
  const std::vector<data::Trajectory> expected = run(all, pages(400), at_once.get());
  EXPECT_GT(num_calls(expected), 30u);
  for (const data::Trajectory& trajectory : expected) {
    EXPECT_TRUE(data::validate(trajectory).ok()) << data::validate(trajectory).message();
    EXPECT_LE(trajectory.observations.size(), 3u);
  }
  const std::vector<EngineOptions> options = {pages(400), pages(400, 1),      pages(400, 7, 5),
                                              pages(9),   pages(14, 64, 100), pages(30, 3)};
  for (size_t i = 0; i < options.size(); ++i) {
    ToolBox::Limits limits = kSmall;
    limits.num_threads = 4;
    const auto slow = echo_box(i + 1, limits);
    EngineStats stats;
    expect_same(expected, run(all, options[i], slow.get(), &stats), "options " + std::to_string(i));
    if (i == 3) {
      EXPECT_GT(stats.num_preemptions, 0);
    }
  }
}

// Without a tool box the same requests never call, and what they are up to the first call is equal.
TEST_F(ToolBoxTest, ResponsesBeginAsWithoutTools) {
  const std::vector<data::RolloutRequest> all = requests(4, 4, 60);
  const auto tools = echo_box(0, kSmall);
  const std::vector<data::Trajectory> without = run(all, pages(400), nullptr);
  const std::vector<data::Trajectory> with = run(all, pages(400), tools.get());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_TRUE(without[i].observations.empty());
    const size_t same =
        static_cast<size_t>(with[i].prompt_length) +
        (with[i].observations.empty() ? with[i].behavior_logprobs.size()
                                      : static_cast<size_t>(with[i].observations[0].begin));
    ASSERT_LE(same, without[i].token_ids.size());
    EXPECT_TRUE(std::equal(with[i].token_ids.begin(),
                           with[i].token_ids.begin() + static_cast<int64_t>(same),
                           without[i].token_ids.begin()));
  }
}

std::vector<data::PackGroup> packs_of(const std::vector<data::Trajectory>& trajectories,
                                      bool with_mask) {
  std::vector<data::PackGroup> groups;
  for (const data::Trajectory& trajectory : trajectories) {
    const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
    if (trajectory.id.sample_index == 0) {
      groups.push_back({{trajectory.token_ids.begin(), split}, {}});
    }
    groups.back().responses.emplace_back(split, trajectory.token_ids.end());
    if (with_mask) groups.back().observations.push_back(trajectory.observations);
  }
  return groups;
}

// Mismatch exactly 0, with what tools wrote between the sampled tokens.
TEST_F(ToolBoxTest, LogprobsEqualTheTrainersBitForBit) {
  std::vector<data::RolloutRequest> all = requests(5, 4, 40);
  for (data::RolloutRequest& request : all) request.sampling.temperature = 0.7;
  const auto tools = echo_box(1, kSmall);
  const std::vector<data::Trajectory> trajectories = run(all, pages(12, 6, 50), tools.get());
  ASSERT_GT(num_calls(trajectories), 10u);
  model::TrainingPass pass(*model_, false);
  const data::Pack pack = data::make_pack(packs_of(trajectories, true));
  pass.forward(pack, 0.7f, false);
  size_t target = 0;
  for (const data::Trajectory& trajectory : trajectories) {
    for (const float logprob : trajectory.behavior_logprobs) {
      ASSERT_EQ(std::memcmp(&logprob, &pass.logprobs()[target++], sizeof(float)), 0);
    }
  }
  EXPECT_EQ(target, pass.logprobs().size());
}

// What an observation's tokens would have been given as advantages changes nothing: they have no
// target. The gradient is that of all tokens predicted with slopes of 0 where a tool wrote, and
// slopes that are not 0 there would have been seen.
TEST_F(ToolBoxTest, TheGradientOfObservationsIsExactlyZero) {
  const auto tools = echo_box(0, kSmall);
  const std::vector<data::Trajectory> trajectories =
      run(requests(3, 3, 30), pages(400), tools.get());
  ASSERT_GT(num_calls(trajectories), 5u);
  const auto gradient = [&](bool with_mask, float of_observations) {
    const data::Pack pack = data::make_pack(packs_of(trajectories, with_mask));
    std::vector<float> slopes;
    for (const data::Trajectory& trajectory : trajectories) {
      size_t observation = 0;
      const int64_t length =
          static_cast<int64_t>(trajectory.token_ids.size()) - trajectory.prompt_length;
      for (int64_t i = 0; i < length; ++i) {
        const auto& all = trajectory.observations;
        while (observation < all.size() && i >= all[observation].end) ++observation;
        const bool is_observed = observation < all.size() && i >= all[observation].begin;
        if (is_observed && with_mask) continue;
        slopes.push_back(is_observed ? of_observations : 0.01f * static_cast<float>(1 + i % 7));
      }
    }
    EXPECT_EQ(slopes.size(), pack.targets.size());
    const std::vector<float> none(slopes.size(), 0.0f);
    model::TrainingPass pass(*model_, false);
    model::Gradients gradients(model_->layout());
    gradients.clear();
    pass.forward(pack, 1.0f, true);
    pass.backward(slopes, none, gradients);
    gradients.finish(model_->layout(), model_->config().hidden_size);
    return std::vector<float>(gradients.buffer.data(),
                              gradients.buffer.data() + model_->layout().size);
  };
  const std::vector<float> masked = gradient(true, 0);
  const auto equal_bits = [&](const std::vector<float>& other) {
    return std::memcmp(masked.data(), other.data(), masked.size() * sizeof(float)) == 0;
  };
  EXPECT_TRUE(equal_bits(gradient(true, 123.0f)));
  EXPECT_TRUE(equal_bits(gradient(false, 0)));
  EXPECT_FALSE(equal_bits(gradient(false, 1e-3f)));
}

TEST_F(ToolBoxTest, AnObservationIsEncodedOnceAndCutAtItsLimit) {
  const auto tools = echo_box(0, kSmall);
  const std::vector<int32_t> open = *tokenizer_->encode("\n\n<i>");
  const std::vector<int32_t> close = *tokenizer_->encode("</i>\n\n");
  const std::string text = "some words that a tool says, more of them than fit into twelve tokens";
  const std::vector<int32_t> body = *tokenizer_->encode(text);
  ASSERT_GT(body.size(), 12u);
  const Result<ToolBox::Words> words = tools->words_of(text, false);
  ASSERT_TRUE(words.ok());
  std::vector<int32_t> expected = open;
  expected.insert(expected.end(), body.begin(), body.begin() + 12);
  expected.insert(expected.end(), close.begin(), close.end());
  EXPECT_EQ(words->token_ids, expected);
  EXPECT_TRUE(words->is_cut);
  EXPECT_FALSE(tools->words_of("short", false)->is_cut);
  EXPECT_EQ(*tokenizer_->decode(tools->words_of("x", true)->token_ids),
            "\n\n<i>x\nNo call is left. Answer now.</i>\n\n");
  EXPECT_GE(tools->max_tokens(),
            3 * static_cast<int64_t>(tools->words_of(text, true)->token_ids.size()));
}

TEST_F(ToolBoxTest, ACallTooManyEndsTheResponse) {
  const std::vector<data::RolloutRequest> all = requests(6, 5, 80);
  const auto tools = echo_box(0, kSmall);
  size_t num_limited = 0, num_invalid = 0;
  for (const data::Trajectory& trajectory : run(all, pages(400), tools.get())) {
    for (const data::Observation& observation : trajectory.observations) {
      EXPECT_EQ(observation.tool, "echo");
      const auto begin =
          trajectory.token_ids.begin() + trajectory.prompt_length + observation.begin;
      const std::string said = *tokenizer_->decode(
          std::vector<int32_t>(begin, begin + observation.end - observation.begin));
      EXPECT_EQ(observation.text, said);
      if (observation.status != ToolStatus::kInvalid) {
        EXPECT_THAT(said, ::testing::StartsWith("\n\n<i>echo "));
        continue;
      }
      ++num_invalid;
      EXPECT_THAT(said, ::testing::StartsWith("\n\n<i>echo: no"));
    }
    // Rewards read the text: what the tool said is not in it.
    EXPECT_THAT(trajectory.text, ::testing::Not(::testing::HasSubstr("<i>")));
    const auto& observations = trajectory.observations;
    const bool says_last = !observations.empty() &&
                           observations.back().text.find("No call is left") != std::string::npos;
    EXPECT_EQ(says_last, trajectory.observations.size() == 3);
    if (trajectory.finish_reason != FinishReason::kToolLimit) continue;
    ++num_limited;
    EXPECT_EQ(trajectory.observations.size(), 3u);
  }
  EXPECT_GT(num_limited, 3u);
  EXPECT_GT(num_invalid, 3u);
}

TEST_F(ToolBoxTest, AnInterruptedResponseGoesOnAsIfNothingHadHappened) {
  std::vector<data::RolloutRequest> all = requests(4, 3, 30);
  const auto tools = echo_box(0, kSmall);
  const std::vector<data::Trajectory> whole = run(all, pages(400), tools.get());
  ASSERT_GT(num_calls(whole), 5u);
  std::vector<data::Trajectory> parts(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].token_budget = 4;
    for (;;) {
      parts[i] = run({all[i]}, pages(40), tools.get())[0];
      ASSERT_TRUE(data::validate(parts[i]).ok()) << data::validate(parts[i]).message();
      if (parts[i].finish_reason != FinishReason::kInterrupted) break;
      all[i].begun = parts[i];
    }
  }
  expect_same(whole, parts, "in parts");
}

// Answers when it is let go.
class Stuck : public Tool {
 public:
  explicit Stuck(std::shared_future<void> release) : release_(std::move(release)) {}
  ToolReply call(std::string_view, double) const override {
    release_.wait();
    return {ToolStatus::kOk, "late"};
  }

 private:
  std::shared_future<void> release_;
};

TEST_F(ToolBoxTest, ARunCanBeCancelledWhileToolsAreAtWork) {
  const std::vector<data::RolloutRequest> all = requests(3, 4, 60);
  std::promise<void> release;
  const auto tools =
      box([released = release.get_future().share()] { return std::make_unique<Stuck>(released); },
          kSmall);
  CpuEngine engine(*model_, tokenizer_.get(), pages(400), tools.get());
  Collector sink(all.size());
  std::atomic<bool> cancel = false;
  int64_t num_finished = -1, num_same = 0;
  const Status status =
      engine.run(all, 0, 0, sink, &cancel, [&](int64_t finished, int64_t sampled) {
        num_same = finished + sampled == num_finished ? num_same + 1 : 0;
        num_finished = finished + sampled;
        if (num_same == 3) cancel = true;  // nothing moves: all wait
      });
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_GT(engine.stats().tool_wait_seconds, 0);
  size_t num_cancelled = 0;
  for (const data::Trajectory& trajectory : sink.trajectories) {
    num_cancelled += trajectory.finish_reason == FinishReason::kCancelled ? 1 : 0;
  }
  EXPECT_GT(num_cancelled, 3u);
  release.set_value();
  // The late answers belong to nobody: the next run is sound.
  const auto at_once = echo_box(0, kSmall);
  run(all, pages(400), tools.get());
}

TEST_F(ToolBoxTest, ACacheWithoutRoomForObservationsIsAnError) {
  ToolBox::Limits limits = kSmall;
  limits.max_observation_tokens = 500;
  const auto tools = echo_box(0, limits);
  CpuEngine engine(*model_, tokenizer_.get(), pages(5), tools.get());
  Collector sink(1);
  EXPECT_THAT(engine.run(requests(1, 1, 10), 0, 0, sink).message(),
              HasSubstr("raise kv_cache_mib to at least"));
}

// --- the tools ---

ToolReply reply_of(const char* name, std::string_view text, double seconds = 10) {
  ToolRegistry registry("tool");
  register_builtin_tools(registry);
  const auto tool = registry.create(name, ToolConfig{.name = name});
  EXPECT_TRUE(tool.ok()) << tool.status().message();
  return (*tool)->call(text, seconds);
}

TEST(Tools, TheCalculatorCounts) {
  struct Case {
    const char *text, *value;
  };
  for (const Case& one :
       {Case{"2+3*4", "14"}, Case{"(2 + 3) * 4", "20"}, Case{"7/2", "3.5"}, Case{"2^10", "1024"},
        Case{"-2^2", "-4"}, Case{"2^3^2", "512"}, Case{"2^-1", "0.5"}, Case{"7 % 4", "3"},
        Case{"1/3", "0.3333333333333333"}, Case{"0.1+0.2", "0.30000000000000004"},
        Case{"9007199254740991", "9007199254740991"}, Case{"10^20", "1e+20"},
        Case{"1-2-3", "-4"}}) {
    const ToolReply reply = reply_of("calculator", one.text);
    EXPECT_EQ(reply.text, one.value) << one.text;
    EXPECT_EQ(reply.status, ToolStatus::kOk) << one.text;
  }
  const std::string deep(200, '(');
  for (const Case& one :
       {Case{"1/0", "calculator: division by zero"},
        Case{"2 plus 3", "calculator: 'p' at 3; expected an operator"},
        Case{"(1+2", "calculator: the expression ends at 4; expected ')'"},
        Case{"3*", "calculator: the expression ends at 2; expected a number or '('"},
        Case{"2\xC3\x97"
             "3",
             "calculator: '\xC3\x97' at 2; expected an operator"},
        Case{"2^0.5", "calculator: the exponent is 0.5; expected a whole number of at most 1024"},
        Case{deep.c_str(), "calculator: more than 100 brackets and signs in one another"}}) {
    const ToolReply reply = reply_of("calculator", one.text);
    EXPECT_EQ(reply.text, one.value) << one.text;
    EXPECT_EQ(reply.status, ToolStatus::kInvalid) << one.text;
  }
  EXPECT_EQ(reply_of("calculator", std::string(1001, '1')).text,
            "calculator: the expression has 1001 bytes; at most 1000 are read");
  EXPECT_EQ(reply_of("calculator", "10^1000*10^1000").status, ToolStatus::kError);
}

TEST(Tools, PythonRunsInTheSandbox) {
  EXPECT_EQ(reply_of("python", "print(sum(range(10)))").text, "45");
  EXPECT_EQ(reply_of("python", "x = 1").text, "python: the program printed nothing");
  const ToolReply broken = reply_of("python", "print('so far')\nprint(1 / 0)");
  EXPECT_EQ(broken.text, "so far\npython: ZeroDivisionError: division by zero");
  EXPECT_EQ(broken.status, ToolStatus::kError);
  const ToolReply endless = reply_of("python", "while True: pass", 0.3);
  EXPECT_EQ(endless.text, "python: the program did not end within 0.3 s");
  EXPECT_EQ(endless.status, ToolStatus::kTimeout);
}

TEST(Tools, AConfigurationThatContradictsItselfNamesItsKeys) {
  RolloutConfig config;
  config.tools = {{.name = "serach"},
                  {.name = "search", .index = "a", .url = "http://b"},
                  {.name = "search", .tag = "look"},
                  {.name = "calculator", .tag = "information", .index = "a"},
                  {.name = "search", .tag = "find", .model = "m", .url = "http://b"}};
  config.stop_texts = {"</find>"};
  EXPECT_EQ(
      validate(config).message(),
      "rollout.tools[0].name: unknown tool 'serach'; did you mean 'search'?; known: calculator, "
      "python, search\n"
      "both rollout.tools[1].index and rollout.tools[1].url are set; a search asks one of them: "
      "drop the other\n"
      "neither rollout.tools[2].index nor rollout.tools[2].url is set; name the folder of gradus "
      "index build, or a retrieval server\n"
      "rollout.tools[3].index is set but rollout.tools[3].name is calculator; it is an option of "
      "search\n"
      "rollout.tools[3].tag: 'information' is the tag of another tool or rollout.observation_tag; "
      "give each its own\n"
      "both rollout.tools[4].model and rollout.tools[4].url are set; the server has the encoder: "
      "drop rollout.tools[4].model\n"
      "rollout.stop_texts has '</find>', which ends a call of rollout.tools[4]; drop it there, or "
      "the response ends before the tool is asked");
}

}  // namespace
}  // namespace gradus::rollout
