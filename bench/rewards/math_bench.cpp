// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "rewards/math/math_check.h"

// bench_rewards_math PAIRS.jsonl strict|compat SECONDS
//
// Checks the pairs {"gold", "answer"} of a file round and round on one core and prints one JSON
// line: checks per second, mean, median, p99 and maximum of one check in microseconds (each pair's
// fastest of all rounds, so that other processes of the machine are not counted), and how many were
// accepted. bench/rewards/math_peer.py makes the pairs and times math-verify on the same ones.
namespace gradus::rewards::math {
namespace {

struct Pair {
  std::string gold, answer;
  double microseconds = 1e30;  // fastest
};

std::vector<Pair> read_pairs(const char* path) {
  std::vector<Pair> pairs;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto row = nlohmann::json::parse(line);
    pairs.push_back({row.at("gold"), row.at("answer")});
  }
  return pairs;
}

int run(const char* path, const std::string& mode, double seconds) {
  using Clock = std::chrono::steady_clock;
  std::vector<Pair> pairs = read_pairs(path);
  MathOptions options;
  options.mode = mode == "compat" ? MathMode::kCompat : MathMode::kStrict;
  size_t num_checks = 0, num_accepted = 0;
  const auto start = Clock::now();
  const auto elapsed = [&](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  size_t num_rounds = 0;
  while (num_rounds == 0 || elapsed(start) < seconds) {
    for (Pair& pair : pairs) {
      const auto begin = Clock::now();
      const MathVerdict verdict = check_math(pair.gold, pair.answer, options);
      pair.microseconds = std::min(pair.microseconds, elapsed(begin) * 1e6);
      num_accepted += num_rounds == 0 && verdict.score == 1 ? 1 : 0;
      ++num_checks;
    }
    ++num_rounds;
  }
  const double total = elapsed(start);
  std::vector<double> times;
  for (const Pair& pair : pairs) times.push_back(pair.microseconds);
  std::sort(times.begin(), times.end());
  const auto quantile = [&](double q) {
    return times[std::min(times.size() - 1,
                          static_cast<size_t>(q * static_cast<double>(times.size())))];
  };
  double sum = 0;
  for (const double time : times) sum += time;
  const nlohmann::ordered_json result = {{"pairs", pairs.size()},
                                         {"rounds", num_rounds},
                                         {"accepted", num_accepted},
                                         {"checks_per_s", static_cast<double>(num_checks) / total},
                                         {"mean_us", sum / static_cast<double>(times.size())},
                                         {"median_us", quantile(0.5)},
                                         {"p99_us", quantile(0.99)},
                                         {"max_us", times.back()}};
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace gradus::rewards::math

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: bench_rewards_math PAIRS.jsonl strict|compat SECONDS\n");
    return 2;
  }
  return gradus::rewards::math::run(argv[1], argv[2], std::stod(argv[3]));
}
