// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/tiny_run.h"

// Runs of HARR on 16 invented countries with five divisions each: 240 passages, an encoder of one
// layer with new weights, some milliseconds a search.
namespace gradus::test {

// A word of its own for each number below 4096.
inline std::string invented_word(int number) {
  const char *consonants = "bdfgklmnprstvwxz", *vowels = "aeio";
  std::string word;
  for (const int digit : {number % 16, number / 16 % 16, number / 256 % 16}) {
    word += consonants[digit];
    word += vowels[(digit + number) % 4];
  }
  return word;
}

inline std::string invented_facts(int num_countries = 16, int num_divisions = 5) {
  std::string text;
  const auto name = [](int number) {
    std::string word = invented_word(number);
    word[0] = static_cast<char>(std::toupper(word[0]));
    return word;
  };
  for (int i = 0; i < num_countries; ++i) {
    text += nlohmann::json{{"kind", "country"},
                           {"code", fmt::format("C{}", i)},
                           {"name", name(i)},
                           {"aliases", nlohmann::json::array()},
                           {"capital", name(100 + i)},
                           {"currency", name(200 + i)},
                           {"currency_code", fmt::format("K{}", i)},
                           {"language", name(300 + i)},
                           {"language_code", fmt::format("t{}", i)},
                           {"part", name(400 + i)},
                           {"population", 1000000 + 250000 * i}}
                .dump() +
            "\n";
  }
  for (int i = 0; i < num_countries; ++i) {
    for (int d = 0; d < num_divisions; ++d) {
      const int number = 500 + 2 * (i * num_divisions + d);
      text += nlohmann::json{{"kind", "division"},
                             {"country", fmt::format("C{}", i)},
                             {"type", "province"},
                             {"name", name(number)},
                             {"capital", name(number + 1)}}
                  .dump() +
              "\n";
    }
  }
  return text;
}

// Makes facts, questions, encoder and index in the test's folder, which run.yaml then uses.
class TinyRetriever : public TinyRun {
 protected:
  static constexpr const char* kConfig = R"(
run: {{name: run, dir: {0}/runs, seed: 3, checkpoint_every: 2, keep_checkpoints: 3}}
data:
  train: {{files: [{0}/multihop/train.jsonl]}}
  eval: {{files: [{0}/multihop/test.jsonl]}}
harr:
  index: {0}/index
  statements: {0}/multihop/statements.jsonl
  num_steps: 6
  questions_per_step: 8
  group_size: 8
  pool_size: 15
  learning_rate: 1e-3
eval: {{before_training: true, every_steps: 3}}
)";

  void SetUp() override { make("0.5", 160); }

  void make(const std::string& alias, int num_questions) {
    write_file(path("facts.jsonl"), invented_facts());
    for (const std::string& command :
         {fmt::format("data make multihop --facts {0}/facts.jsonl --num {1} --seed 1 --option "
                      "alias={2} --out {0}/multihop",
                      folder_.path(), num_questions, alias),
          fmt::format("index new-encoder --texts {0}/multihop/corpus.jsonl --texts "
                      "{0}/multihop/train.jsonl --seed 1 --out {0}/encoder",
                      folder_.path()),
          fmt::format("index build --corpus {0}/multihop/corpus.jsonl --model {0}/encoder --out "
                      "{0}/index",
                      folder_.path())}) {
      const RunOutcome outcome = call(command);
      ASSERT_EQ(outcome.exit_code, 0) << command << "\n" << outcome.messages;
    }
    write_file(path("run.yaml"), fmt::format(kConfig, folder_.path()));
  }
};

}  // namespace gradus::test
