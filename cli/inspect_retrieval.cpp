// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_retrieval.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "common/strings.h"
#include "retriever/policy.h"

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;

struct RetrievalCase {
  std::vector<double> scores;
  int64_t k = 0;
  double temperature = 0;
  std::optional<std::vector<int32_t>> selected;
  int64_t num_draws = 0;
  uint64_t seed = 0;
};

Status wrong(const std::string& where, const std::string& key, const Json& value,
             const std::string& expected) {
  return invalid_argument("{}: {} is {}; it must be {}", where, key, value.dump(), expected);
}

Status read_integer(const Json& root, const char* key, int64_t least, int64_t most,
                    const std::string& where, int64_t& result) {
  const Json& value = root.at(key);
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
  if (!fits || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    return wrong(where, key, value, fmt::format("an integer in [{}, {}]", least, most));
  }
  result = value.get<int64_t>();
  return {};
}

Status read_case(const Json& root, const std::string& where, RetrievalCase& result) {
  static const std::vector<std::string> known = {"scores",   "k",         "temperature",
                                                 "selected", "num_draws", "seed"};
  for (const auto& [key, value] : root.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return invalid_argument("{}: unknown key '{}'{}", where, key, did_you_mean(key, known));
    }
  }
  for (const char* key : {"scores", "k", "temperature"}) {
    if (!root.contains(key)) return invalid_argument("{}: missing '{}'", where, key);
  }
  const Json& scores = root["scores"];
  if (!scores.is_array() || scores.empty()) {
    return wrong(where, "scores", scores, "a list of at least one number");
  }
  for (size_t j = 0; j < scores.size(); ++j) {
    if (!scores[j].is_number()) {
      return wrong(where, fmt::format("scores[{}]", j), scores[j], "a finite number");
    }
    result.scores.push_back(scores[j].get<double>());
  }
  const int64_t pool_size = static_cast<int64_t>(scores.size());
  GRADUS_RETURN_IF_ERROR(read_integer(root, "k", 1, pool_size, where, result.k));
  if (!root["temperature"].is_number()) {
    return wrong(where, "temperature", root["temperature"], "a positive number");
  }
  result.temperature = root["temperature"].get<double>();
  if (root.contains("selected") && !root["selected"].is_null()) {
    const Json& selected = root["selected"];
    if (!selected.is_array() || static_cast<int64_t>(selected.size()) != result.k) {
      return wrong(where, "selected", selected, fmt::format("a list of k = {} places", result.k));
    }
    result.selected.emplace();
    for (const Json& place : selected) {
      if (!place.is_number_integer()) return wrong(where, "selected", selected, "a list of places");
      // What is outside the pool is named by the policy.
      result.selected->push_back(
          static_cast<int32_t>(std::clamp<int64_t>(place.get<int64_t>(), INT32_MIN, INT32_MAX)));
    }
  }
  if (root.contains("num_draws") && !root["num_draws"].is_null()) {
    GRADUS_RETURN_IF_ERROR(
        read_integer(root, "num_draws", 0, int64_t{1} << 40, where, result.num_draws));
  }
  if (root.contains("seed") && !root["seed"].is_null()) {
    int64_t seed = 0;
    GRADUS_RETURN_IF_ERROR(read_integer(root, "seed", 0, INT64_MAX, where, seed));
    result.seed = static_cast<uint64_t>(seed);
  }
  if (!result.selected && result.num_draws == 0) {
    return invalid_argument(
        "{}: neither 'selected' nor 'num_draws' is given; give an ordered list to weigh, or a "
        "number "
        "of lists to draw",
        where);
  }
  return {};
}

// Draw i is hop i % 2^32 of trajectory i / 2^32.
Result<Json> count_draws(const RetrievalCase& one) {
  std::vector<int64_t> ids(one.scores.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::map<std::vector<int32_t>, int64_t> counts;
  for (int64_t i = 0; i < one.num_draws; ++i) {
    const Result<retriever::Ranking> drawn =
        retriever::draw_ranking({.scores_K = one.scores,
                                 .ids_K = ids,
                                 .temperature = one.temperature,
                                 .k = one.k,
                                 .seed = one.seed + static_cast<uint64_t>(i >> 32),
                                 .hop = static_cast<uint32_t>(i)});
    if (!drawn.ok()) return drawn.status();
    ++counts[drawn->places];
  }
  Json result = Json::object();
  for (const auto& [places, count] : counts) {
    result[fmt::format("{}", fmt::join(places, ","))] = count;
  }
  return result;
}

}  // namespace

Result<std::string> inspect_retrieval(const std::string& text, const std::string& where) {
  Json root;
  try {
    root = Json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    return invalid_argument("{}: not JSON: {}", where, error.what());
  }
  if (!root.is_object()) {
    return invalid_argument("{}: must be an object with \"scores\", \"k\" and \"temperature\"",
                            where);
  }
  RetrievalCase one;
  GRADUS_RETURN_IF_ERROR(read_case(root, where, one));
  Json answer = Json::object();
  if (one.selected) {
    std::vector<double> slopes(one.scores.size());
    const Result<double> logprob =
        retriever::ranking_logprob(one.scores, one.temperature, *one.selected, slopes);
    if (!logprob.ok()) return logprob.status().with_prefix(where);
    answer["logprob"] = *logprob;
    answer["grad"] = slopes;
  }
  if (one.num_draws > 0) {
    const Result<Json> counts = count_draws(one);
    if (!counts.ok()) return counts.status().with_prefix(where);
    answer["counts"] = *counts;
  }
  return answer.dump();
}

}  // namespace gradus::cli
