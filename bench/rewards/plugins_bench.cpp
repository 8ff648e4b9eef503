// SPDX-License-Identifier: Apache-2.0
// What a plug-in costs per sample, and what hostile text costs per MiB in each built-in reward. Run
// from the root of the tree, after example_vowels is built.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <ctime>

#include "common/check.h"
#include "rewards/reward.h"

namespace gradus::rewards {
namespace {

std::unique_ptr<Reward> make(const std::string& name, const RewardOptions& options) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  auto reward = registry.create(name, options);
  GRADUS_CHECK(reward.ok(), reward.status().message());
  return std::move(*reward);
}

// Groups of 8 responses of `num_bytes` each.
struct Batch {
  std::vector<data::Prompt> prompts;
  std::vector<std::vector<data::Trajectory>> trajectories;
  std::vector<Group> groups;

  Batch(size_t num_samples, size_t num_bytes)
      : prompts(num_samples / 8), trajectories(num_samples / 8) {
    std::string words;
    while (words.size() < num_bytes) words += "the answer is 42 and ";
    words.resize(num_bytes);
    for (size_t i = 0; i < prompts.size(); ++i) {
      prompts[i].text = "What is 6 * 7?";
      prompts[i].answer = "42";
      prompts[i].task = "sums";
      trajectories[i].resize(8);
      for (data::Trajectory& one : trajectories[i]) one.text = words;
      groups.push_back({&prompts[i], trajectories[i]});
    }
  }
};

void score(benchmark::State& state, const Reward& reward, size_t num_samples, size_t num_bytes) {
  const Batch batch(num_samples, num_bytes);
  for (auto _ : state) benchmark::DoNotOptimize(reward.score_batch(batch.groups));
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(num_samples));
}

// 16 bytes of response: what is measured is the way there and back, not the counting of vowels.
void BM_Plugin(benchmark::State& state) {
  score(state, *make("plugin", {{"path", "build/libexample_vowels.so"}}),
        static_cast<size_t>(state.range(0)), 16);
}
BENCHMARK(BM_Plugin)->Arg(8)->Arg(64)->Arg(1024);

void BM_Process(benchmark::State& state) {
  score(state,
        *make("process", {{"command", "python3 examples/reward_process_python/contains.py"}}),
        static_cast<size_t>(state.range(0)), static_cast<size_t>(state.range(1)));
}
BENCHMARK(BM_Process)->Args({64, 1000})->Args({256, 1000})->Args({4096, 1000})->UseRealTime();

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The slowest of the texts that break naive checks, in ms per MiB.
void BM_Hostile(benchmark::State& state, const std::string& name, const RewardOptions& options,
                const std::string& gold) {
  const auto reward = make(name, options);
  std::vector<std::string> texts;
  for (const char* unit :
       {"7",          "1,",       "1,234",      "(",        ")",        "{",           "[",
        "\\[",        "\\boxed{", "\\boxed{1}", "$",        "Answer: ", "Answer: 1\n", " ",
        "-1.5e3/7% ", "\xff",     "e\xcc\x81",  "<answer>", "<think>",  "</think>",    "\n",
        "\n\n",       "1+",       "*a*",        "**",       "<<a>>",    "[a]",         "a. ",
        "******",     "- a\n",    "{\"a\":",    "\\frac",   "^",        "\"",          "a"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    texts.push_back(text);
    texts.push_back("Answer: " + text);
  }
  data::Prompt prompt;
  prompt.answer = gold;
  double longest = 0;
  for (auto _ : state) {
    longest = 0;
    for (const std::string& text : texts) {
      data::Trajectory trajectory;
      trajectory.text = text;
      const Group group{&prompt, {&trajectory, 1}};
      double fastest = 1e30;  // of three: the machine's other work is not the check's
      for (int i = 0; i < 3; ++i) {
        const double start = thread_seconds();
        benchmark::DoNotOptimize(reward->score_batch({&group, 1}));
        fastest = std::min(fastest, thread_seconds() - start);
      }
      longest = std::max(longest, fastest);
    }
  }
  state.counters["worst_ms_per_MiB"] = longest * 1e3;
}

const std::string kAllInstructions =
    R"({"instruction_id_list": ["keywords:existence", "keywords:frequency", "keywords:forbidden_words",
"keywords:letter_frequency", "language:response_language", "length_constraints:number_sentences",
"length_constraints:number_paragraphs", "length_constraints:number_words",
"length_constraints:nth_paragraph_first_word", "detectable_content:number_placeholders",
"detectable_format:number_bullet_lists", "detectable_format:number_highlighted_sections",
"detectable_format:multiple_sections", "detectable_format:json_format", "detectable_format:title",
"combination:two_responses", "startend:end_checker", "change_case:capital_word_frequency"],
"kwargs": [{"keywords": ["cat"]}, {"keyword": "a", "frequency": 2, "relation": "at least"},
{"forbidden_words": ["a"]}, {"letter": "e", "let_frequency": 2, "let_relation": "at least"},
{"language": "en"}, {"num_sentences": 3, "relation": "at least"}, {"num_paragraphs": 2},
{"num_words": 3, "relation": "at least"},
{"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"}, {"num_placeholders": 2},
{"num_bullets": 2}, {"num_highlights": 2}, {"section_spliter": "a", "num_sections": 2}, {}, {}, {},
{"end_phrase": "a"}, {"capital_frequency": 2, "capital_relation": "at least"}]})";

BENCHMARK_CAPTURE(BM_Hostile, exact, "exact", {}, "6");
BENCHMARK_CAPTURE(BM_Hostile, match, "match", {}, "6");
BENCHMARK_CAPTURE(BM_Hostile, match_f1, "match", {{"metric", "f1"}}, "the cat");
BENCHMARK_CAPTURE(BM_Hostile, number, "number", {}, "6");
BENCHMARK_CAPTURE(BM_Hostile, quantity, "quantity", {}, "6 m");
BENCHMARK_CAPTURE(BM_Hostile, math, "math", {}, "x^2+1");
BENCHMARK_CAPTURE(BM_Hostile, math_compat, "math", {{"mode", "compat"}}, "$x^2+1$");
BENCHMARK_CAPTURE(BM_Hostile, choice, "choice", {}, "B");
BENCHMARK_CAPTURE(BM_Hostile, format, "format", {{"pattern", "(a|b)*.*[0-9]+"}}, "");
BENCHMARK_CAPTURE(BM_Hostile, regex, "regex", {}, "(a|b)*.*[0-9]+");
BENCHMARK_CAPTURE(BM_Hostile, json_schema, "json_schema", {}, R"({"items": {"type": "number"}})");
BENCHMARK_CAPTURE(BM_Hostile, ifeval, "ifeval", {}, kAllInstructions);
BENCHMARK_CAPTURE(BM_Hostile, tags, "tags", {}, "");
BENCHMARK_CAPTURE(BM_Hostile, countdown, "countdown", {}, R"({"target": 6, "numbers": [2, 3]})");
BENCHMARK_CAPTURE(BM_Hostile, repetition, "repetition", {}, "");

}  // namespace
}  // namespace gradus::rewards

BENCHMARK_MAIN();
