// SPDX-License-Identifier: Apache-2.0
#include "data/tasks/task.h"

#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "common/rng.h"
#include "common/strings.h"
#include "data/tasks/internal/generator.h"

namespace gradus::data {
namespace {

constexpr int kMaxTries = 10000;
constexpr uint64_t kHeldOutOneIn = 5;
constexpr int64_t kMaxExamples = 8;

const std::vector<Generator>& generators() {
  static const std::vector<Generator> all = [] {
    std::vector<Generator> list = arithmetic_generators();
    for (auto more : {number_list_generators(), word_generators(), {countdown_generator()}}) {
      list.insert(list.end(), more.begin(), more.end());
    }
    std::sort(list.begin(), list.end(), [](const Generator& a, const Generator& b) {
      return std::string_view(a.name) < b.name;
    });
    return list;
  }();
  return all;
}

std::vector<TaskOption> options_of(const Generator& generator) {
  std::vector<TaskOption> options;
  for (const Dial& dial : generator.dials) {
    options.push_back({dial.name, std::to_string(dial.default_value),
                       fmt::format("{}..{}", dial.low, dial.high), dial.help});
  }
  options.push_back({"style", "natural", "natural | compact",
                     "a question in words as a chat, or a bare text for a character model"});
  options.push_back(
      {"solution", "steps", "steps | answer | mixed",
       "whether the reference response shows worked steps; mixed: in a third of the rows"});
  options.push_back({"examples", "0", fmt::format("0..{}", kMaxExamples),
                     "solved turns before the question, with style natural"});
  options.push_back({"split", "all", "all | train | heldout",
                     "a fifth of all problems, by a hash of the problem, is held out"});
  return options;
}

Result<int64_t> read_integer(const std::string& where, const std::string& text, int64_t low,
                             int64_t high) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    return invalid_argument("{}: is '{}'; expected a whole number in [{}, {}]", where, text, low,
                            high);
  }
  return value;
}

Result<int> read_choice(const std::string& where, const std::string& text,
                        const std::vector<std::string>& choices) {
  for (size_t i = 0; i < choices.size(); ++i) {
    if (text == choices[i]) return static_cast<int>(i);
  }
  return invalid_argument("{}: is '{}'; expected one of: {}", where, text, join(choices, ", "));
}

std::string key_of(const Problem& problem) {
  return problem.key.empty() ? problem.compact : problem.key;
}

bool is_held_out(const Problem& problem) {
  return hash64(std::string_view(key_of(problem))) % kHeldOutOneIn == 0;
}

std::string request(const Generator& generator, const Problem& problem) {
  return fmt::format("{} Finish with a line of the form 'Answer: {}'.", problem.question,
                     generator.answer_form);
}

}  // namespace

int64_t power_of_10(int64_t exponent) {
  int64_t power = 1;
  for (int64_t i = 0; i < exponent; ++i) power *= 10;
  return power;
}

std::string join_numbers(std::span<const int64_t> numbers, const char* separator) {
  std::vector<std::string> texts;
  for (const int64_t number : numbers) texts.push_back(std::to_string(number));
  return join(texts, separator);
}

const std::vector<TaskInfo>& task_infos() {
  static const std::vector<TaskInfo> infos = [] {
    std::vector<TaskInfo> list;
    for (const Generator& generator : generators()) {
      list.push_back({generator.name, generator.summary, generator.reward, generator.reward_options,
                      options_of(generator)});
    }
    return list;
  }();
  return infos;
}

Result<Task> Task::create(std::string_view name, const TaskOptions& options) {
  Task task;
  std::vector<std::string> names;
  for (const Generator& generator : generators()) {
    names.emplace_back(generator.name);
    if (name == generator.name) task.generator_ = &generator;
  }
  if (task.generator_ == nullptr) {
    return invalid_argument("unknown task '{}'{}; known: {}", name, did_you_mean(name, names),
                            join(names, ", "));
  }
  const std::vector<Dial>& dials = task.generator_->dials;
  for (const Dial& dial : dials) task.dials_.push_back(dial.default_value);
  for (const auto& [key, text] : options) {
    const std::string where = fmt::format("task {}: {}", name, key);
    size_t dial = 0;
    while (dial < dials.size() && key != dials[dial].name) ++dial;
    if (dial < dials.size()) {
      const auto value = read_integer(where, text, dials[dial].low, dials[dial].high);
      if (!value.ok()) return value.status();
      task.dials_[dial] = *value;
    } else if (key == "style") {
      const auto choice = read_choice(where, text, {"natural", "compact"});
      if (!choice.ok()) return choice.status();
      task.is_compact_ = *choice == 1;
    } else if (key == "solution") {
      const auto choice = read_choice(where, text, {"steps", "answer", "mixed"});
      if (!choice.ok()) return choice.status();
      task.solution_ = static_cast<Solution>(*choice);
    } else if (key == "examples") {
      const auto value = read_integer(where, text, 0, kMaxExamples);
      if (!value.ok()) return value.status();
      task.num_examples_ = *value;
    } else if (key == "split") {
      const auto choice = read_choice(where, text, {"all", "train", "heldout"});
      if (!choice.ok()) return choice.status();
      task.split_ = static_cast<Split>(*choice);
    } else {
      std::vector<std::string> known;
      for (const TaskOption& option : options_of(*task.generator_)) known.push_back(option.name);
      return invalid_argument("task {}: unknown option '{}'{}; known: {}", name, key,
                              did_you_mean(key, known), join(known, ", "));
    }
  }
  if (task.is_compact_ && task.num_examples_ > 0) {
    return invalid_argument("task {}: examples: is {}; only style natural has solved turns", name,
                            task.num_examples_);
  }
  if (task.generator_->contradiction != nullptr) {
    const std::string problem = task.generator_->contradiction(task.dials_);
    if (!problem.empty()) return invalid_argument("task {}: {}", name, problem);
  }
  return task;
}

Result<Problem> Task::draw(uint64_t seed, uint64_t index, uint64_t turn,
                           const std::vector<std::string>& taken) const {
  const Split split = turn > 0 && split_ == Split::kHeldOut ? Split::kTrain : split_;
  const uint64_t name = hash64(std::string_view(generator_->name));
  for (uint64_t attempt = 0; attempt < kMaxTries; ++attempt) {
    RngSequence random(hash64({name, seed, index, turn, attempt}), RngStream::kTask);
    std::optional<Problem> problem = generator_->make(dials_, random);
    if (!problem.has_value()) continue;
    if (split != Split::kAll && is_held_out(*problem) != (split == Split::kHeldOut)) continue;
    if (std::find(taken.begin(), taken.end(), key_of(*problem)) != taken.end()) continue;
    return std::move(*problem);
  }
  return invalid_argument(
      "task {}: no problem found in {} tries (seed {}, index {}); the dials leave too few problems "
      "for "
      "this split and number of examples: widen them",
      generator_->name, kMaxTries, seed, index);
}

Result<Row> Task::row(uint64_t seed, uint64_t index) const {
  auto drawn = draw(seed, index, 0, {});
  if (!drawn.ok()) return drawn.status();
  const Problem& problem = *drawn;
  const bool wants_steps =
      solution_ == Solution::kSteps ||
      (solution_ == Solution::kMixed &&
       hash64({seed, index, static_cast<uint64_t>(Solution::kMixed)}) % 3 == 0);
  Row row;
  row.data_source = generator_->name;
  row.ability = generator_->ability;
  row.reward_style = "rule";
  row.ground_truth = problem.ground_truth.empty() ? problem.answer : problem.ground_truth;
  if (is_compact_) {
    row.text = problem.compact;
    row.response = wants_steps ? problem.compact_steps : problem.answer;
  } else {
    std::vector<std::string> taken = {key_of(problem)};
    for (int64_t i = 1; i <= num_examples_; ++i) {
      auto example = draw(seed, index, static_cast<uint64_t>(i), taken);
      if (!example.ok()) return example.status();
      taken.push_back(key_of(*example));
      row.messages.push_back({"user", request(*generator_, *example)});
      row.messages.push_back({"assistant", "Answer: " + example->answer});
    }
    row.messages.push_back({"user", request(*generator_, problem)});
    const bool with_steps = wants_steps && !problem.steps.empty();
    row.response = (with_steps ? problem.steps + "\n" : "") + "Answer: " + problem.answer;
  }
  nlohmann::ordered_json extra = {{"index", index}, {"seed", seed}};
  if (split_ != Split::kAll) extra["split"] = split_ == Split::kTrain ? "train" : "heldout";
  for (size_t i = 0; i < dials_.size(); ++i) extra[generator_->dials[i].name] = dials_[i];
  row.extra_info = extra.dump();
  return row;
}

Result<Row> make_row(std::string_view task, const TaskOptions& options, uint64_t seed,
                     uint64_t index) {
  const auto created = Task::create(task, options);
  if (!created.ok()) return created.status();
  return created->row(seed, index);
}

}  // namespace gradus::data
