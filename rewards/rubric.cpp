// SPDX-License-Identifier: Apache-2.0
#include "rewards/rubric.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "common/check.h"
#include "common/config/bind.h"
#include "common/config/rules.h"

namespace gradus::rewards {
namespace {

bool has_strata(const RubricConfig& config) {
  return config.schedule == RubricSchedule::kSigmoid || config.schedule == RubricSchedule::kLinear;
}

double weight_of(const RubricCriterion& criterion) { return criterion.weight.value_or(1); }

// What a criterion counts; nothing where it is left out.
std::optional<double> value_of(const RubricConfig& config, const CriterionScore& score) {
  if (score.score || config.not_applicable == NotApplicable::kExclude) return score.score;
  return config.not_applicable == NotApplicable::kPass ? 1 : 0;
}

// Weighted mean of the criteria that `takes` takes and that count.
template <class Takes>
std::optional<double> mean_of(const RubricConfig& config, std::span<const CriterionScore> scores,
                              const Takes& takes, double& weight) {
  double sum = 0;
  weight = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::optional<double> value = value_of(config, scores[i]);
    if (!value || !takes(config.criteria[i])) continue;
    const double own = has_strata(config) ? weight_of(config.criteria[i]) : 1;
    sum += own * *value;
    weight += own;
  }
  if (weight == 0) return std::nullopt;
  return sum / weight;
}

}  // namespace

void RubricCheck::visit(FieldVisitor& v) {
  v.field("check", check, "Name of the reward that checks it.", non_empty());
  v.field("options", options, "Options of that reward.");
}

void RubricCriterion::visit(FieldVisitor& v) {
  v.field("name", name, "Name, in metrics.", non_empty());
  check.visit(v);
  v.field("stratum", stratum, "Which of the two strata it belongs to.", one_of({"easy", "hard"}));
  v.field("weight", weight,
          "Share within its stratum; unset in all of a stratum: the same for each.",
          greater_than(0));
  v.field("retries", retries, "Further calls for a response on which it timed out or broke.",
          in_closed(0, 100));
}

void RubricConfig::visit(FieldVisitor& v) {
  v.field("name", name, "Name of the rubric.", non_empty());
  v.field("alpha", alpha, "Weight of the answer; the rubric has the rest.", in_closed(0, 1));
  v.field("schedule", schedule,
          "How weight moves from easy to hard: RuCL's ramp, a linear one, no strata at all, or no "
          "rubric at all.",
          one_of({"sigmoid", "linear", "uniform", "none"}));
  v.field("window", window, "Steps in a row that the easy mean must reach tau (w).", at_least(1));
  v.field("tau", tau, "Mean of the easy stratum that opens the ramp.", in_closed(0, 1));
  v.field("lambda_base", lambda_base, "Weight of the hard stratum where the ramp begins.",
          in_closed(0, 1));
  v.field("lambda_max", lambda_max, "Weight of the hard stratum where it ends.", in_closed(0, 1));
  v.field("ramp_steps", ramp_steps,
          "Steps of the ramp; 0 is a quarter of the run, at least the window.", at_least(0));
  v.field("steepness", steepness, "k of the sigmoid.", greater_than(0));
  v.field("not_applicable", not_applicable,
          "What a criterion counts that does not apply: nothing, 1 or 0.",
          one_of({"exclude", "pass", "fail"}));
  v.field("answer", answer, "The check of the answer against the ground truth.");
  v.field("criteria", criteria, "The criteria.", non_empty());
}

namespace {

// Whether any key of this name has no value, of the rubric or of a criterion.
bool lacks(const UnreadKeys& unread, std::string_view name) {
  return std::any_of(unread.begin(), unread.end(), [&](const std::string& key) {
    return key == name || key.ends_with("." + std::string(name));
  });
}

void check_names(const RubricConfig& config, const UnreadKeys& unread, ConfigRules& rules) {
  std::set<std::string> names = {"answer"};
  for (size_t i = 0; i < config.criteria.size(); ++i) {
    const std::string key = fmt::format("criteria[{}].name", i);
    if (is_unread(unread, key)) continue;
    rules.require(names.insert(config.criteria[i].name).second,
                  "{}: '{}' is taken; give each criterion a name of its own", key,
                  config.criteria[i].name);
  }
}

void check_stratum(const RubricConfig& config, Stratum stratum, const UnreadKeys& unread,
                   ConfigRules& rules) {
  const char* word = stratum == Stratum::kEasy ? "easy" : "hard";
  double sum = 0;
  int64_t num_criteria = 0, num_weights = 0, last = 0;
  for (size_t i = 0; i < config.criteria.size(); ++i) {
    const RubricCriterion& criterion = config.criteria[i];
    if (criterion.stratum != stratum) continue;
    ++num_criteria;
    num_weights += criterion.weight ? 1 : 0;
    sum += criterion.weight.value_or(0);
    last = static_cast<int64_t>(i);
  }
  rules.require(!has_strata(config) || num_criteria > 0 || lacks(unread, "schedule"),
                "criteria has none with stratum {}, which a ramp needs; add one, or set schedule "
                "to uniform",
                word);
  if (num_weights == 0 || lacks(unread, "weight")) return;
  if (num_weights < num_criteria) {
    rules.require(false,
                  "criteria[{}].weight: {} of the {} criteria of stratum {} have a weight; give "
                  "one to all, or to none",
                  last, num_weights, num_criteria, word);
  } else {
    rules.require(std::abs(sum - 1) < 1e-6,
                  "criteria[{}].weight: the weights of stratum {} sum to {:.6g}; expected 1", last,
                  word, sum);
  }
}

// The rules between those fields that could be read.
void check_rules(const RubricConfig& config, const UnreadKeys& unread, ConfigRules& rules) {
  rules.require(config.lambda_base <= config.lambda_max || lacks(unread, "lambda_base") ||
                    lacks(unread, "lambda_max"),
                "lambda_base ({}) exceeds lambda_max ({})", config.lambda_base, config.lambda_max);
  check_names(config, unread, rules);
  if (lacks(unread, "criteria") || lacks(unread, "stratum")) return;
  check_stratum(config, Stratum::kEasy, unread, rules);
  check_stratum(config, Stratum::kHard, unread, rules);
}

Result<RubricConfig> load(const std::string& path, const RewardRegistry& registry,
                          bool has_known_strata) {
  ReadConfig<RubricConfig> read = read_config<RubricConfig>(path);
  if (is_unread(read.unread, "")) return read.status;
  ConfigRules rules;
  RubricConfig rubric = read.loaded.value;
  if (!has_known_strata) {
    rubric.schedule = RubricSchedule::kUniform;
    for (RubricCriterion& criterion : rubric.criteria) criterion.weight.reset();
  }
  check_rules(rubric, read.unread, rules);
  const std::vector<std::string> known = registry.names();
  const auto check = [&](const RubricCheck& one, const std::string& where) {
    if (one.check.empty() || is_unread(read.unread, where + ".options")) return;
    const bool is_known = std::find(known.begin(), known.end(), one.check) != known.end();
    rules.add(registry.create(one.check, one.options)
                  .status()
                  .with_prefix(where + (is_known ? ".options" : ".check")));
  };
  check(rubric.answer, "answer");
  for (size_t i = 0; i < rubric.criteria.size(); ++i) {
    check(rubric.criteria[i].check, fmt::format("criteria[{}]", i));
  }
  GRADUS_RETURN_IF_ERROR(
      in_order_of_lines(read.status, with_places(rules.status(), path, read.loaded.origins)));
  return std::move(read.loaded.value);
}

}  // namespace

Status validate(const RubricConfig& config) {
  ConfigRules rules;
  check_rules(config, {}, rules);
  return rules.status();
}

Result<RubricConfig> load_rubric(const std::string& path, const RewardRegistry& registry) {
  return load(path, registry, true);
}

Result<RubricConfig> load_rubric_candidates(const std::string& path,
                                            const RewardRegistry& registry) {
  return load(path, registry, false);
}

RubricScore rubric_score(const RubricConfig& config, double lambda, double answer,
                         std::span<const CriterionScore> criteria) {
  GRADUS_CHECK(criteria.size() == config.criteria.size(), "a score for each criterion");
  RubricScore score;
  double easy_weight = 0, hard_weight = 0, weight = 0;
  const auto is_easy = [](const auto& one) { return one.stratum == Stratum::kEasy; };
  score.easy = mean_of(config, criteria, is_easy, easy_weight);
  score.hard = mean_of(
      config, criteria, [&](const auto& one) { return !is_easy(one); }, hard_weight);
  const auto all = mean_of(
      config, criteria, [](const auto&) { return true; }, weight);
  std::optional<double> rubric;
  // The share of a stratum: the other's too where that has no value.
  double easy_share = 0, hard_share = 0;
  if (config.schedule == RubricSchedule::kUniform) {
    rubric = all;
  } else if (has_strata(config) && all) {
    easy_share = score.easy ? (score.hard ? 1 - lambda : 1) : 0;
    hard_share = score.hard ? (score.easy ? lambda : 1) : 0;
    rubric = easy_share * score.easy.value_or(0) + hard_share * score.hard.value_or(0);
  }
  score.total = rubric ? config.alpha * answer + (1 - config.alpha) * *rubric : answer;
  score.answer_weight = rubric ? config.alpha : 1;
  for (size_t i = 0; i < criteria.size(); ++i) {
    const std::optional<double> value = value_of(config, criteria[i]);
    const RubricCriterion& one = config.criteria[i];
    double share = 0;
    if (rubric && value) {
      share = config.schedule == RubricSchedule::kUniform ? 1 / weight
              : is_easy(one) ? easy_share * weight_of(one) / easy_weight
                             : hard_share * weight_of(one) / hard_weight;
    }
    score.weights.push_back((1 - config.alpha) * share);
    score.values.push_back(value.value_or(0));
  }
  return score;
}

double ramp_shape(RubricSchedule schedule, double steepness, double u) {
  u = std::clamp(u, 0.0, 1.0);
  if (schedule != RubricSchedule::kSigmoid || u == 0 || u == 1) return u;
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const double low = sigmoid(-steepness / 2), high = sigmoid(steepness / 2);
  return (sigmoid(steepness * (u - 0.5)) - low) / (high - low);
}

Curriculum::Curriculum(RubricConfig config, int64_t num_steps)
    : config_(std::move(config)),
      ramp_steps_(config_.ramp_steps > 0 ? config_.ramp_steps
                                         : std::max(config_.window, (num_steps + 3) / 4)) {}

std::vector<RubricScore> Curriculum::score(std::span<const double> answers,
                                           std::span<const std::vector<CriterionScore>> criteria) {
  bool falls_back = false;
  for (const auto& scores : criteria) {
    for (const CriterionScore& one : scores) falls_back |= one.has_failed;
  }
  std::vector<RubricScore> scores;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (falls_back) {
      scores.push_back({.total = answers[i],
                        .weights = std::vector<double>(config_.criteria.size(), 0.0),
                        .values = std::vector<double>(config_.criteria.size(), 0.0)});
      continue;
    }
    scores.push_back(rubric_score(config_, lambda_, answers[i], criteria[i]));
    for (const auto& [mean, value] :
         {std::pair(&easy_, scores.back().easy), std::pair(&hard_, scores.back().hard)}) {
      if (!value) continue;
      mean->sum += *value;
      ++mean->count;
    }
  }
  num_fallbacks_ += falls_back ? 1 : 0;
  return scores;
}

void Curriculum::finish_step() {
  finish_step(easy_.mean());
  easy_ = hard_ = {};
  num_fallbacks_ = 0;
}

void Curriculum::finish_step(std::optional<double> easy_mean) {
  ++step_;
  if (easy_mean && std::isfinite(*easy_mean)) {
    window_.push_back(*easy_mean);
    if (static_cast<int64_t>(window_.size()) > config_.window) window_.pop_front();
  }
  const bool is_met =
      static_cast<int64_t>(window_.size()) == config_.window &&
      std::all_of(window_.begin(), window_.end(), [&](double mean) { return mean >= config_.tau; });
  if (start_step_ < 0 && is_met && easy_mean) start_step_ = step_;
  if (start_step_ < 0 || !has_strata(config_)) return;
  const double u = static_cast<double>(step_ + 1 - start_step_) / static_cast<double>(ramp_steps_);
  lambda_ = config_.lambda_base + (config_.lambda_max - config_.lambda_base) *
                                      ramp_shape(config_.schedule, config_.steepness, u);
}

// What must not change while a run goes on: whatever enters lambda or the strata.
std::string Curriculum::identity() const {
  nlohmann::json all = {config_.name,        static_cast<int>(config_.schedule),
                        config_.window,      config_.tau,
                        config_.lambda_base, config_.lambda_max,
                        config_.ramp_steps,  config_.steepness};
  for (const RubricCriterion& one : config_.criteria) {
    all.push_back(one.name + (one.stratum == Stratum::kEasy ? ":easy" : ":hard"));
  }
  return all.dump();
}

std::string Curriculum::state() const {
  return nlohmann::json{{"rubric", identity()}, {"ramp_steps", ramp_steps_}, {"step", step_},
                        {"window", window_},    {"start_step", start_step_}, {"lambda", lambda_}}
      .dump();
}

Status Curriculum::restore(std::string_view state) {
  const nlohmann::json all = nlohmann::json::parse(state, nullptr, /*allow_exceptions=*/false);
  try {
    if (all.is_object() && all.at("rubric").get<std::string>() != identity()) {
      return invalid_argument(
          "reward.rubric: the checkpoint was made with another rubric or another ramp ({}; now "
          "{}); "
          "resume with the same, or start a new run from its weights",
          all.at("rubric").get<std::string>(), identity());
    }
    ramp_steps_ = all.at("ramp_steps").get<int64_t>();  // the run may be longer now
    step_ = all.at("step").get<int64_t>();
    window_ = all.at("window").get<std::deque<double>>();
    start_step_ = all.at("start_step").get<int64_t>();
    lambda_ = all.at("lambda").get<double>();
  } catch (const nlohmann::json::exception&) {
    return data_loss("the checkpoint's state of the rubric cannot be read");
  }
  return {};
}

}  // namespace gradus::rewards
