// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "rewards/math/math_check.h"
#include "tests/support/files.h"
#include "tests/support/json_rows.h"

namespace gradus::rewards::math {
namespace {

// Alone in its file, which tools/sanitize tsan runs: the others measure time.
TEST(MathThreads, GiveTheVerdictsOfOne) {
  const auto rows = test::json_rows(test::read_file("tests/golden/math/pairs.jsonl"));
  constexpr MathOptions kStrict{};
  constexpr MathOptions kCompat{.mode = MathMode::kCompat};
  const auto verdict_of = [&](size_t i, const MathOptions& options) {
    const MathVerdict verdict = check_math(rows[i]["gold"].get<std::string>(),
                                           rows[i]["answer"].get<std::string>(), options);
    return verdict.rule + verdict.gold_parsed + verdict.answer_parsed +
           std::to_string(verdict.score);
  };
  std::vector<std::string> strict, compat;
  for (size_t i = 0; i < rows.size(); ++i) {
    strict.push_back(verdict_of(i, kStrict));
    compat.push_back(verdict_of(i, kCompat));
  }
  constexpr size_t kNumThreads = 64;
  std::vector<size_t> num_differing(kNumThreads, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kNumThreads; ++t) {
    // Four threads share each pair.
    threads.emplace_back([&, t] {
      for (size_t i = t % 16; i < rows.size(); i += 16) {
        num_differing[t] += verdict_of(i, kStrict) != strict[i];
        num_differing[t] += verdict_of(i, kCompat) != compat[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_differing, std::vector<size_t>(kNumThreads, 0));
}

}  // namespace
}  // namespace gradus::rewards::math
