// SPDX-License-Identifier: Apache-2.0
// Rewards of others: shared objects and processes, well-behaved and not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "rewards/internal/child_process.h"
#include "rewards/reward.h"
#include "rewards/reward_plugin.h"

namespace gradus::rewards {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// The layout of ABI 1 on machines of 64 bits: a change breaks plug-ins that are out there.
static_assert(RWP_ABI == 1);
static_assert(sizeof(rwp_str) == 16);
static_assert(sizeof(rwp_sample) == 120 && offsetof(rwp_sample, prompt_id) == 8 &&
              offsetof(rwp_sample, prompt) == 16 && offsetof(rwp_sample, response) == 32 &&
              offsetof(rwp_sample, gold) == 48 && offsetof(rwp_sample, data_source) == 64 &&
              offsetof(rwp_sample, extra_json) == 80 && offsetof(rwp_sample, token_ids) == 96 &&
              offsetof(rwp_sample, num_tokens) == 104 && offsetof(rwp_sample, group_size) == 112);
static_assert(sizeof(rwp_result) == 32 && offsetof(rwp_result, score) == 8 &&
              offsetof(rwp_result, detail) == 16);
static_assert(sizeof(rwp_host) == 24 && offsetof(rwp_host, alloc) == 16);

Result<std::unique_ptr<Reward>> make(const std::string& name, const RewardOptions& options) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  return registry.create(name, options);
}

std::vector<RewardPart> judge(const Reward& reward, const std::vector<std::string>& responses) {
  data::Prompt prompt;
  prompt.answer = "gold";
  std::vector<data::Trajectory> trajectories(responses.size());
  for (size_t i = 0; i < responses.size(); ++i) trajectories[i].text = responses[i];
  const Group group{&prompt, trajectories};
  return reward.score_batch({&group, 1});
}

TEST(PluginReward, ScoresWithTheExample) {
  const auto reward = make("plugin", {{"path", GRADUS_VOWELS_PLUGIN}});
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  const auto parts = judge(**reward, {"aeiou", "xaxa", "", "1 2"});
  EXPECT_EQ(parts[0].score, 1);
  EXPECT_EQ(parts[1].score, 0.5);
  EXPECT_EQ(parts[2].score, 0);
  EXPECT_EQ(parts[3].score, 0);
  EXPECT_TRUE((*reward)->is_deterministic());
  EXPECT_EQ(
      make("plugin", {{"path", GRADUS_VOWELS_PLUGIN}, {"config", "{\"a\": 1}"}}).status().message(),
      std::string("reward plugin: config: ") + GRADUS_VOWELS_PLUGIN +
          " refuses it: vowels has no settings; leave the option config out");
}

TEST(PluginReward, TakesWhatAPluginSaysAndNothingMore) {
  const auto reward = make("plugin", {{"path", GRADUS_FAULTY_PLUGIN}});
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  EXPECT_EQ((*reward)->lower_bound(), -1);
  EXPECT_EQ((*reward)->upper_bound(), 2);
  EXPECT_FALSE((*reward)->is_deterministic());
  EXPECT_TRUE((*reward)->compares_siblings());
  const auto three = judge(**reward, {"invalid", "odd", "x"});
  EXPECT_EQ(three[0].status, RewardStatus::kInvalidGold);
  EXPECT_EQ(three[1].status, RewardStatus::kError);
  EXPECT_EQ(three[2].score, 2) << "of a group of three";
  const auto two = judge(**reward, {"nan", "far"});
  for (const RewardPart& part : two) EXPECT_EQ(part.status, RewardStatus::kError);
  EXPECT_EQ(two[0].detail, "the score is nan; the plug-in says that it is in [-1, 2]");
  EXPECT_EQ(two[1].detail, "the score is 3; the plug-in says that it is in [-1, 2]");
  EXPECT_EQ(judge(**reward, {"echo"})[0].detail, "gold");
  EXPECT_EQ(judge(**reward, {"greedy"})[0].status, RewardStatus::kError) << "no memory without end";
  const auto failed = judge(**reward, {"x", "fail"});
  for (const RewardPart& part : failed) {
    EXPECT_EQ(part.status, RewardStatus::kError);
    EXPECT_EQ(part.detail, "rwp_score returned 7");
  }
}

TEST(PluginReward, SaysWhyALibraryIsNotTaken) {
  const auto message = [](const RewardOptions& options) {
    return make("plugin", options).status().message();
  };
  EXPECT_EQ(message({}),
            "reward plugin: path: is missing; expected a shared object, e.g. ./libmine.so");
  EXPECT_THAT(message({{"path", "/nowhere/libx.so"}}),
              StartsWith("reward plugin: path: cannot load the plug-in: /nowhere/libx.so: "));
  EXPECT_EQ(message({{"path", GRADUS_FUTURE_PLUGIN}}),
            std::string("reward plugin: path: ") + GRADUS_FUTURE_PLUGIN +
                " is built for ABI 2 of reward plug-ins; this Gradus has 1; build it against its "
                "rewards/reward_plugin.h");
  EXPECT_EQ(message({{"path", "libm.so.6"}}).find("reward plugin: path: cannot load"), 0u)
      << "a bare name is a file here, not a library of the system";
  EXPECT_EQ(message({{"path", GRADUS_FAULTY_PLUGIN}, {"config", "mute"}}),
            std::string("reward plugin: path: ") + GRADUS_FAULTY_PLUGIN +
                ": rwp_describe: is 'mute'; expected a JSON object");
}

RewardOptions faulty_process(const std::string& mode = "", const std::string& timeout = "0.3") {
  return {{"command", "python3 tests/rewards/faulty_process.py " + mode}, {"timeout_s", timeout}};
}

TEST(ProcessReward, ScoresWithTheExample) {
  const auto reward =
      make("process", {{"command", "python3 examples/reward_process_python/contains.py"}});
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  const auto parts = judge(**reward, {"a gold ring", "golden", "", "\xff gold \n\t\"\\\x01"});
  EXPECT_EQ(parts[0].score, 1);
  EXPECT_EQ(parts[1].score, 0);
  EXPECT_EQ(parts[2].score, 0);
  EXPECT_EQ(parts[3].score, 1);
}

// Whoever stands beside the one that breaks the process keeps its score.
TEST(ProcessReward, IsolatesCrashesHangsAndGarbage) {
  const auto reward = make("process", faulty_process());
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  const struct {
    std::string text;
    RewardStatus status;
    std::string detail;
  } faults[] = {
      {"crash", RewardStatus::kError, "the process ended by signal 11 (Segmentation fault)"},
      {"exit", RewardStatus::kError, "the process ended with exit code 5"},
      {"hang", RewardStatus::kTimeout, "the process gave no answer in time"},
      {"garbage", RewardStatus::kError,
       "the process wrote 'Traceback: garbage'; expected {\"id\": ..., \"results\": [...]}"},
      {"short", RewardStatus::kError, "the process gave 0 results for 1 responses"},
      {"wrong id", RewardStatus::kError, "the process answered to id 0; expected "},
      {"odd status", RewardStatus::kError, "a result: unknown status 'fine'"},
      {"far", RewardStatus::kError, "the score is 99; the process says that it is in [0, 10]"},
      {"n/a", RewardStatus::kNotApplicable, "not mine"}};
  for (const auto& fault : faults) {
    const auto parts = judge(**reward, {"one", fault.text, "three", "four5"});
    ASSERT_EQ(parts.size(), 4u);
    EXPECT_EQ(parts[0].score, 3) << fault.text;
    EXPECT_EQ(parts[1].status, fault.status) << fault.text;
    EXPECT_THAT(parts[1].detail, StartsWith(fault.detail)) << fault.text;
    EXPECT_EQ(parts[2].score, 5) << fault.text;
    EXPECT_EQ(parts[3].score, 5) << fault.text;
  }
}

TEST(ProcessReward, SurvivesOneFaultAfterAnother) {
  const auto reward = make("process", faulty_process());
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  const auto start = std::chrono::steady_clock::now();
  const std::string kinds[] = {"crash", "exit", "garbage"};
  for (int i = 0; i < 9; ++i) {
    const auto parts = judge(**reward, {kinds[i % 3]});
    EXPECT_EQ(parts[0].status, RewardStatus::kError);
    EXPECT_EQ(judge(**reward, {"fine"})[0].score, 4);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count() / 9, 1) << "seconds to restart";
}

// A plug-in behind `gradus reward serve` crashes alone.
TEST(ProcessReward, IsolatesAPluginThatCrashes) {
  const auto reward = make(
      "process",
      {{"command", std::string(GRADUS_BINARY) +
                       " reward serve --reward plugin --option path=" + GRADUS_FAULTY_PLUGIN}});
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  EXPECT_EQ((*reward)->lower_bound(), -1);
  EXPECT_TRUE((*reward)->compares_siblings());
  EXPECT_EQ(judge(**reward, {"x", "echo"})[1].score, 1) << "of a group of two";
  EXPECT_EQ(judge(**reward, {"echo"})[0].detail, "gold");
  EXPECT_EQ(judge(**reward, {"crash"})[0].detail, "the process ended by signal 6 (Aborted)");
  EXPECT_EQ(judge(**reward, {"x"})[0].score, 0);
}

TEST(ProcessReward, SaysWhyAProgramIsNotTaken) {
  const auto message = [](const RewardOptions& options) {
    return make("process", options).status().message();
  };
  EXPECT_EQ(message({}), "reward process: command: is empty; expected a program and its arguments");
  EXPECT_EQ(message({{"command", "a 'b"}}), "reward process: command: a ' has no end");
  EXPECT_EQ(message({{"command", "/nowhere/prog"}}),
            "reward process: '/nowhere/prog': cannot start '/nowhere/prog': No such file or "
            "directory");
  EXPECT_THAT(
      message(faulty_process("dies")),
      HasSubstr("before its first line, which is expected to be {\"gradus_reward\": 1}: the "
                "process ended with exit code 3"));
  EXPECT_THAT(message(faulty_process("chatty")),
              HasSubstr("its first line is 'Loading model ...'; expected {\"gradus_reward\": 1}"));
  EXPECT_THAT(message(faulty_process("new")),
              HasSubstr("speaks version 2 of the protocol; this Gradus speaks 1"));
}

TEST(ProcessReward, ScoresTheSameFromManyThreads) {
  RewardOptions options = {{"command", "python3 examples/reward_process_python/contains.py"},
                           {"workers", "2"}};
  const auto reward = make("process", options);
  ASSERT_TRUE(reward.ok()) << reward.status().message();
  std::vector<std::thread> threads;
  std::atomic<int> num_right = 0;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const auto parts = judge(**reward, {"gold", "tin", std::to_string(t)});
        num_right += parts[0].score == 1 && parts[1].score == 0 && parts[2].score == 0 ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_right, 80);
}

TEST(ChildProcess, EscapesTextsAsJson) {
  std::string json;
  append_json_text("a\"\\\n\x01\xc3\xa9\xff", json);
  EXPECT_EQ(json, "\"a\\\"\\\\\\n\\u0001\xc3\xa9\xef\xbf\xbd\"");
}

}  // namespace
}  // namespace gradus::rewards
