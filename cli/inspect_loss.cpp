// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_loss.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/json_input.h"
#include "common/config/bind.h"
#include "common/rng.h"
#include "common/strings.h"
#include "trainer/algorithm.h"
#include "trainer/algorithms/kl.h"
#include "trainer/update_sums.h"
#include "trainer/value_loss.h"

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;
using trainer::AlgorithmConfig;

// The `trainer` section alone, as a whole configuration.
struct InspectConfig {
  trainer::TrainerConfig trainer;

  void visit(FieldVisitor& v) { v.field("trainer", trainer, "Reinforcement learning."); }
};

// A response of the batch: arrays over all of its tokens.
struct InputSequence {
  int64_t group = 0;
  double reward = 0;
  std::vector<double> logprobs, old_logprobs, behavior_logprobs, reference_logprobs, entropies;
  std::vector<double> values, new_values, reward_parts;
  std::vector<bool> is_loss_token;
  std::optional<double> greedy_reward;
};

// Reads one object of "sequences".
class SequenceReader {
 public:
  SequenceReader(const Json& row, std::string where) : row_(row), where_(std::move(where)) {}

  Status check_keys() const {
    static const std::vector<std::string> known = {
        "group",     "reward",        "logprobs",  "old_logprobs", "behavior_logprobs",
        "mask",      "entropy",       "values",    "reward_parts", "reference_logprobs",
        "truncated", "greedy_reward", "new_values"};
    if (!row_.is_object()) return invalid_argument("{}: must be an object of keys", where_);
    for (const auto& [key, value] : row_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        return invalid_argument("{}: unknown key '{}'{}", where_, key, did_you_mean(key, known));
      }
    }
    for (const char* key : {"group", "reward", "logprobs", "old_logprobs", "mask"}) {
      if (!has(key)) return invalid_argument("{}: missing '{}'", where_, key);
    }
    return {};
  }

  bool has(const char* key) const { return row_.contains(key) && !row_.at(key).is_null(); }

  Status read(const char* key, double& value) const {
    const Result<double> read = finite_number(row_.at(key), fmt::format("{}.{}", where_, key));
    if (!read.ok()) return read.status();
    value = *read;
    return {};
  }

  // `length` values; any number if it is -1.
  Status read(const char* key, int64_t length, std::vector<double>& values) const {
    const Json& array = row_.at(key);
    if (!array.is_array()) {
      return invalid_argument("{}.{} is {}; it must be a list of numbers", where_, key,
                              shown(array));
    }
    if (length >= 0 && array.size() != static_cast<size_t>(length)) {
      return invalid_argument("{}.{} has {} values, logprobs has {}; they must be of equal length",
                              where_, key, array.size(), length);
    }
    for (size_t t = 0; t < array.size(); ++t) {
      const Result<double> read = finite_number(array[t], fmt::format("{}.{}[{}]", where_, key, t));
      if (!read.ok()) return read.status();
      values.push_back(*read);
    }
    return {};
  }

  Status read_mask(int64_t length, bool masks_truncated, std::vector<bool>& mask) const {
    std::vector<double> values;
    Json as_numbers = Json::array();
    const Json& array = row_.at("mask");
    if (array.is_array()) {
      for (const Json& value : array) {
        as_numbers.push_back(value.is_boolean() ? Json(value.get<bool>() ? 1 : 0) : value);
      }
    }
    const Json with_numbers = {{"mask", array.is_array() ? as_numbers : array}};
    GRADUS_RETURN_IF_ERROR(SequenceReader(with_numbers, where_).read("mask", length, values));
    const bool is_dropped = masks_truncated && has("truncated") &&
                            row_.at("truncated").is_boolean() && row_.at("truncated").get<bool>();
    for (size_t t = 0; t < values.size(); ++t) {
      if (values[t] != 0 && values[t] != 1) {
        return invalid_argument("{}.mask[{}] is {}; it must be 0 or 1", where_, t, values[t]);
      }
      mask.push_back(values[t] == 1 && !is_dropped);
    }
    return {};
  }

  // A list, or an object whose keys are taken in alphabetical order.
  Status read_parts(std::vector<double>& parts) const {
    const Json& value = row_.at("reward_parts");
    if (!value.is_object()) return read("reward_parts", -1, parts);
    std::map<std::string, Json> sorted;
    for (const auto& [name, part] : value.items()) sorted[name] = part;
    for (const auto& [name, part] : sorted) {
      const Result<double> read =
          finite_number(part, fmt::format("{}.reward_parts.{}", where_, name));
      if (!read.ok()) return read.status();
      parts.push_back(*read);
    }
    return {};
  }

  const Json& at(const char* key) const { return row_.at(key); }

 private:
  const Json& row_;
  std::string where_;
};

// What the configuration needs beyond the keys that are always there.
Status check_needs(const SequenceReader& reader, const trainer::TrainerConfig& config,
                   const std::string& where) {
  const AlgorithmConfig& algorithm = config.algorithm;
  if (algorithm.kl.coef != 0 && !reader.has("reference_logprobs")) {
    return invalid_argument(
        "{}: missing 'reference_logprobs', which trainer.algorithm.kl.coef ({}) needs; give them "
        "or "
        "set it to 0",
        where, algorithm.kl.coef);
  }
  if (algorithm.top_entropy_quantile < 1 && !reader.has("entropy")) {
    return invalid_argument(
        "{}: missing 'entropy', which trainer.algorithm.top_entropy_quantile ({}) needs; give it "
        "or "
        "set it to 1",
        where, algorithm.top_entropy_quantile);
  }
  if (config.entropy_coef != 0 && !reader.has("entropy")) {
    return invalid_argument("{}: missing 'entropy', which trainer.entropy_coef ({}) needs", where,
                            config.entropy_coef);
  }
  return {};
}

Result<InputSequence> read_sequence(const Json& row, const trainer::TrainerConfig& config,
                                    const std::string& where,
                                    std::map<std::string, int64_t>& groups) {
  const SequenceReader reader(row, where);
  GRADUS_RETURN_IF_ERROR(reader.check_keys());
  GRADUS_RETURN_IF_ERROR(check_needs(reader, config, where));
  InputSequence sequence;
  const Json& group = reader.at("group");
  const std::string name = group.dump();
  const int64_t next = static_cast<int64_t>(groups.size());
  sequence.group =
      groups.emplace(name, group.is_number_integer() ? group.get<int64_t>() : next).first->second;
  GRADUS_RETURN_IF_ERROR(reader.read("reward", sequence.reward));
  GRADUS_RETURN_IF_ERROR(reader.read("logprobs", -1, sequence.logprobs));
  const int64_t length = static_cast<int64_t>(sequence.logprobs.size());
  GRADUS_RETURN_IF_ERROR(reader.read("old_logprobs", length, sequence.old_logprobs));
  sequence.behavior_logprobs = sequence.old_logprobs;
  const std::pair<const char*, std::vector<double>*> optional[] = {
      {"behavior_logprobs", &sequence.behavior_logprobs},
      {"reference_logprobs", &sequence.reference_logprobs},
      {"entropy", &sequence.entropies},
      {"values", &sequence.values},
      {"new_values", &sequence.new_values}};
  for (const auto& [key, values] : optional) {
    if (!reader.has(key)) continue;
    values->clear();
    GRADUS_RETURN_IF_ERROR(reader.read(key, length, *values));
  }
  GRADUS_RETURN_IF_ERROR(
      reader.read_mask(length, config.algorithm.mask_truncated, sequence.is_loss_token));
  if (reader.has("reward_parts")) {
    GRADUS_RETURN_IF_ERROR(reader.read_parts(sequence.reward_parts));
  }
  if (reader.has("greedy_reward")) {
    double value = 0;
    GRADUS_RETURN_IF_ERROR(reader.read("greedy_reward", value));
    sequence.greedy_reward = value;
  }
  return sequence;
}

Result<std::vector<InputSequence>> read_batch(const trainer::TrainerConfig& config,
                                              const std::string& text, const std::string& where) {
  const Result<Json> parsed = parse_input(text, where);
  if (!parsed.ok()) return parsed.status();
  const Json& root = *parsed;
  if (!root.is_object() || !root.contains("sequences") || !root["sequences"].is_array() ||
      root["sequences"].empty()) {
    return invalid_argument(
        "{}: must be an object with \"sequences\", a list of at least one sequence", where);
  }
  std::vector<InputSequence> sequences;
  std::map<std::string, int64_t> groups;
  for (size_t s = 0; s < root["sequences"].size(); ++s) {
    Result<InputSequence> sequence = read_sequence(
        root["sequences"][s], config, fmt::format("{}: sequences[{}]", where, s), groups);
    if (!sequence.ok()) return sequence.status();
    sequences.push_back(std::move(*sequence));
  }
  return sequences;
}

// The values of loss tokens, one sequence after the other; empty where they are not given.
std::vector<double> compressed(const std::vector<InputSequence>& sequences,
                               std::vector<double> InputSequence::*member) {
  std::vector<double> values;
  for (const InputSequence& sequence : sequences) {
    const std::vector<double>& all = sequence.*member;
    for (size_t t = 0; t < all.size(); ++t) {
      if (sequence.is_loss_token[t]) values.push_back(all[t]);
    }
  }
  return values;
}

// The same back as arrays over all tokens, 0 where masked.
Json expanded(const std::vector<InputSequence>& sequences, const std::vector<double>& values) {
  Json all = Json::array();
  size_t next = 0;
  for (const InputSequence& sequence : sequences) {
    Json row = Json::array();
    for (const bool is_loss_token : sequence.is_loss_token) {
      row.push_back(is_loss_token ? values[next++] : 0.0);
    }
    all.push_back(std::move(row));
  }
  return all;
}

Result<trainer::Advantages> advantages_of(const trainer::Algorithm& algorithm,
                                          const std::vector<InputSequence>& sequences,
                                          const std::string& where) {
  const trainer::KlConfig& kl = algorithm.config.kl;
  std::vector<std::vector<double>> penalties(sequences.size()), values(sequences.size());
  std::vector<trainer::ScoredSequence> scored(sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) {
    const InputSequence& sequence = sequences[s];
    for (size_t t = 0; t < sequence.logprobs.size(); ++t) {
      if (!sequence.is_loss_token[t]) continue;
      ++scored[s].num_tokens;
      if (!sequence.values.empty()) values[s].push_back(sequence.values[t]);
      if (kl.coef == 0 || kl.place != trainer::KlPlace::kReward) continue;
      const double old = sequence.old_logprobs[t];
      penalties[s].push_back(
          kl.coef * trainer::kl_term(kl.kind, old, old, old, sequence.reference_logprobs[t]).value);
    }
    scored[s].group = sequence.group;
    scored[s].reward = sequence.reward;
    scored[s].penalties = penalties[s];
    scored[s].values = values[s];
    scored[s].reward_parts = sequence.reward_parts;
    scored[s].greedy_reward = sequence.greedy_reward;
  }
  GRADUS_RETURN_IF_ERROR(
      trainer::check_advantage_input(algorithm.config, scored).with_prefix(where));
  return algorithm.advantage->estimate(scored);
}

struct ValueLoss {
  trainer::ValueLossTerms terms;
  std::vector<double> slopes;
};

// What a critic would learn from "new_values"; nothing unless they are given.
Result<std::optional<ValueLoss>> value_loss_of(const trainer::TrainerConfig& config,
                                               const AlgorithmConfig& algorithm,
                                               const std::vector<InputSequence>& sequences,
                                               const trainer::Advantages& advantages,
                                               const std::string& where) {
  const std::vector<double> now = compressed(sequences, &InputSequence::new_values);
  if (now.empty()) return std::optional<ValueLoss>();
  if (now.size() != advantages.returns.size()) {
    return invalid_argument(
        "{}: some sequences have 'new_values' and some have none; give them to all, or to none",
        where);
  }
  trainer::BatchCounts counts{.num_tokens = static_cast<double>(now.size())};
  for (size_t s = 0; s + 1 < advantages.sequence_begin.size(); ++s) {
    const bool has_tokens = advantages.sequence_begin[s] < advantages.sequence_begin[s + 1];
    counts.num_sequences += has_tokens ? 1 : 0;
  }
  ValueLoss loss;
  loss.slopes.assign(now.size(), 0.0);
  const trainer::CriticConfig critic = config.critic.value_or(trainer::CriticConfig());
  loss.terms = trainer::value_loss_terms(algorithm, counts, advantages.sequence_begin, now,
                                         compressed(sequences, &InputSequence::values),
                                         advantages.returns, critic.value_clip, loss.slopes);
  return std::optional(std::move(loss));
}

}  // namespace

Result<trainer::TrainerConfig> inspected_config(const std::string& algorithm,
                                                std::span<const std::string> overrides) {
  const std::vector<std::string> known = trainer::preset_names();
  if (std::find(known.begin(), known.end(), algorithm) == known.end()) {
    return invalid_argument("--algorithm {}: unknown algorithm{}; known: {}", algorithm,
                            did_you_mean(algorithm, known), join(known, ", "));
  }
  std::vector<std::string> full;
  for (const std::string& text : overrides) {
    full.push_back(text.starts_with("trainer.") ? text : "trainer.algorithm." + text);
  }
  InspectConfig defaults;
  defaults.trainer.algorithm = trainer::preset(algorithm);
  Result<LoadedConfig<InspectConfig>> loaded = load_config<InspectConfig>("", full, defaults);
  if (!loaded.ok()) return loaded.status();
  const std::string& name = loaded->value.trainer.algorithm.name;
  if (name != algorithm) {  // a --set has named another preset
    defaults.trainer.algorithm = trainer::preset(name);
    loaded = load_config<InspectConfig>("", full, defaults);
    if (!loaded.ok()) return loaded.status();
  }
  const Status status = trainer::validate(loaded->value.trainer.algorithm);
  if (!status.ok()) return with_places(status, "", loaded->origins);
  return loaded->value.trainer;
}

Result<std::string> inspect_loss(const trainer::TrainerConfig& config, const std::string& batch,
                                 const std::string& where) {
  const Result<std::vector<InputSequence>> sequences = read_batch(config, batch, where);
  if (!sequences.ok()) return sequences.status();
  size_t longest = 1;
  for (const InputSequence& sequence : *sequences) {
    longest = std::max(longest, sequence.logprobs.size());
  }
  const Result<trainer::Algorithm> algorithm =
      trainer::make_algorithm(config.algorithm, static_cast<int64_t>(longest));
  if (!algorithm.ok()) return algorithm.status();
  const Result<trainer::Advantages> advantages = advantages_of(*algorithm, *sequences, where);
  if (!advantages.ok()) return advantages.status();
  if (advantages->tokens.empty()) {
    return invalid_argument(
        "{}: every token of every sequence is masked, so there is no loss; set mask to 1 at the "
        "tokens that the policy sampled",
        where);
  }
  trainer::MiniBatch mini_batch;
  mini_batch.sequence_begin = advantages->sequence_begin;
  mini_batch.advantages = advantages->tokens;
  mini_batch.logprobs = compressed(*sequences, &InputSequence::logprobs);
  mini_batch.old_logprobs = compressed(*sequences, &InputSequence::old_logprobs);
  mini_batch.behavior_logprobs = compressed(*sequences, &InputSequence::behavior_logprobs);
  mini_batch.entropies = compressed(*sequences, &InputSequence::entropies);
  for (size_t s = 0; s < sequences->size(); ++s) mini_batch.sequence_keys.push_back(hash64({s}));
  const std::vector<double> logprobs = mini_batch.logprobs;
  const std::vector<double> reference = compressed(*sequences, &InputSequence::reference_logprobs);
  const bool has_entropies = mini_batch.entropies.size() == logprobs.size();
  const std::vector<double> entropies =
      has_entropies ? mini_batch.entropies : std::vector<double>(logprobs.size(), 0.0);
  const trainer::LossPlan plan(algorithm->config, *algorithm->loss, config.entropy_coef,
                               std::move(mini_batch));
  const trainer::LossTerms terms =
      plan.terms({0, static_cast<int64_t>(sequences->size()), logprobs, reference, entropies, {}});
  trainer::UpdateSums sums;
  sums.add(terms, plan.counts().num_tokens);
  sums.reduce();
  Metrics metrics;
  sums.write(algorithm->config, config.entropy_coef, metrics);
  plan.add_correction_metrics(metrics);
  for (const double advantage : advantages->tokens) {
    for (const char* name : {"mean", "max", "min"}) {
      metrics.add(fmt::format("critic/advantages/{}", name), advantage);
    }
  }
  std::optional<ValueLoss> value_loss;
  if (algorithm->config.advantage == "gae") {
    Result<std::optional<ValueLoss>> of_critic =
        value_loss_of(config, algorithm->config, *sequences, *advantages, where);
    if (!of_critic.ok()) return of_critic.status();
    value_loss = std::move(*of_critic);
    const std::vector<double> values = compressed(*sequences, &InputSequence::values);
    metrics.set("critic/vf_explained_var",
                trainer::explained_variance(values, advantages->returns));
    if (value_loss) {
      metrics.set("critic/vf_loss", value_loss->terms.loss);
      metrics.set("critic/vf_clipfrac", value_loss->terms.num_clipped / plan.counts().num_tokens);
    }
  }
  Json answer;
  answer["advantages"] = expanded(*sequences, advantages->tokens);
  answer["token_loss"] = expanded(*sequences, terms.token_loss);
  answer["loss"] = sums.loss(algorithm->config, config.entropy_coef);
  answer["grad"] = expanded(*sequences, terms.dlogprobs);
  if (!advantages->returns.empty()) {
    answer["returns"] = expanded(*sequences, advantages->returns);
  }
  if (value_loss) {
    answer["value_loss"] = value_loss->terms.loss;
    answer["value_grad"] = expanded(*sequences, value_loss->slopes);
  }
  answer["metrics"] = metrics.values();
  if (!has_entropies) answer["metrics"].erase("actor/entropy");
  return answer.dump();
}

}  // namespace gradus::cli
