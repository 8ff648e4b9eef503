// SPDX-License-Identifier: Apache-2.0
// gradus reward explain, check, probe and rubric build: what a reward does to texts of the user's.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/reward_command.h"
#include "cli/reward_probes.h"
#include "cli/run_config.h"
#include "common/atomic_file.h"
#include "common/strings.h"
#include "rewards/reward.h"
#include "rewards/reward_sum.h"
#include "rewards/rubric_build.h"

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ToolOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string rubric;
  std::string input = "-";
  std::string output = "-";
  std::string id;
  double lambda = 0;
  double threshold = 0.5;
  double min_applicability = 0.99;
  double max_failed = 0.05;
  double split = -1;
};

struct LabelledRow {
  std::string id;
  int64_t line = 0;
  data::Prompt prompt;
  data::Trajectory trajectory;
  std::optional<bool> label;
};

std::string as_text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// Rows of one's own, lines of a run's rollouts, or what gradus generate writes.
Result<std::vector<LabelledRow>> read_rows(const std::string& path, bool needs_label,
                                           bool needs_response = true) {
  std::vector<LabelledRow> rows;
  const Status status = for_each_json_line(path, [&](const Json& row, int64_t line) -> Status {
    LabelledRow& one = rows.emplace_back();
    one.line = line;
    const auto text = [&](std::initializer_list<const char*> names, std::string& value) {
      for (const char* name : names) {
        const auto found = row.find(name);
        if (found == row.end() || found->is_null()) continue;
        value = as_text(*found);
        return;
      }
    };
    const bool is_generated = row.contains("prompt_index") && row.contains("text");
    const char* const response = is_generated ? "text" : "response";
    if (needs_response && (!row.contains(response) || !row[response].is_string())) {
      return invalid_argument(
          "no 'response'; expected {{\"response\", \"ground_truth\", \"prompt\", ...}}");
    }
    text({response}, one.trajectory.text);
    text({"ground_truth", "answer"}, one.prompt.answer);
    text({"prompt"}, one.prompt.text);
    text({"data_source", "task"}, one.prompt.task);
    one.id = std::to_string(line);
    if (row.contains("prompt_id") && row.contains("sample_index")) {
      one.id = as_text(row["prompt_id"]) + "/" + as_text(row["sample_index"]);
    }
    if (is_generated) {
      one.id = as_text(row["prompt_index"]) + "/" + as_text(row["sample_index"]);
    }
    text({"id"}, one.id);
    if (const auto extra = row.find("extra_info"); extra != row.end() && extra->is_object()) {
      for (const auto& [key, value] : extra->items()) one.prompt.metadata[key] = as_text(value);
    }
    if (const auto label = row.find("label"); label != row.end()) {
      if (!label->is_boolean() && *label != 0 && *label != 1) {
        return invalid_argument("label is {}; expected true or false, 1 or 0", label->dump());
      }
      one.label = label->is_boolean() ? label->get<bool>() : *label == 1;
    } else if (needs_label) {
      return invalid_argument("no 'label'; expected true for a response that is right, else false");
    }
    return {};
  });
  if (!status.ok()) return status;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].prompt.prompt_id = i;
    rows[i].trajectory.id = {i, 0};
  }
  if (rows.empty()) return invalid_argument("{}: has no rows", path);
  return rows;
}

// Rows side by side with one prompt and one ground truth are a group.
struct Groups {
  std::vector<std::vector<data::Trajectory>> trajectories;
  std::vector<rewards::Group> groups;

  explicit Groups(std::span<const LabelledRow> rows) {
    std::vector<const data::Prompt*> prompts;
    for (const LabelledRow& row : rows) {
      const bool continues = !prompts.empty() && prompts.back()->text == row.prompt.text &&
                             prompts.back()->answer == row.prompt.answer &&
                             prompts.back()->task == row.prompt.task;
      if (!continues) {
        prompts.push_back(&row.prompt);
        trajectories.emplace_back();
      }
      trajectories.back().push_back(row.trajectory);
    }
    for (size_t i = 0; i < prompts.size(); ++i) groups.push_back({prompts[i], trajectories[i]});
  }
};

Result<rewards::RewardSum> load_rewards(const ToolOptions& options) {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  if (options.config.empty() == options.rubric.empty()) {
    return invalid_argument("give one of --config and --rubric");
  }
  rewards::RewardConfig config;
  config.rubric = options.rubric;
  if (!options.config.empty()) {
    const auto loaded = read_run_config(options.config, options.overrides);
    if (!loaded.ok()) return loaded.status();
    config = loaded->value.reward;
    const Status status = rewards::validate(config);
    if (!status.ok()) return with_places(status, options.config, loaded->origins);
  }
  // What these commands are for is to look at failures.
  config.on_error = rewards::OnRewardError::kSkipSample;
  for (rewards::RewardPartConfig& part : config.parts) part.on_error.reset();
  Result<rewards::RewardSum> sum = rewards::RewardSum::create(config, registry);
  if (sum.ok()) GRADUS_RETURN_IF_ERROR(sum->load());
  return sum;
}

rewards::CriterionScore criterion_of(const data::WeightedPart& part) {
  if (part.status == data::RewardStatus::kOk) return {part.raw};
  return {std::nullopt, data::is_failure(part.status)};
}

// The weights of a rubric's parts at a lambda, put into the breakdown.
void apply_rubric(const rewards::RubricConfig& rubric, double lambda,
                  data::RewardBreakdown& breakdown) {
  if (!breakdown.is_scored) return;
  std::vector<rewards::CriterionScore> criteria;
  bool has_failed = false;
  for (size_t i = 1; i < breakdown.parts.size(); ++i) {
    criteria.push_back(criterion_of(breakdown.parts[i]));
    has_failed |= criteria.back().has_failed;
  }
  if (has_failed) return;  // the answer alone
  const rewards::RubricScore score =
      rewards::rubric_score(rubric, lambda, breakdown.parts[0].weighted, criteria);
  breakdown.total = score.total;
  breakdown.parts[0].weight = score.answer_weight;
  breakdown.parts[0].weighted *= score.answer_weight;
  for (size_t i = 0; i < score.weights.size(); ++i) {
    breakdown.parts[i + 1].weight = score.weights[i];
    breakdown.parts[i + 1].weighted = score.weights[i] * score.values[i];
  }
}

Result<std::vector<data::RewardBreakdown>> score_rows(const rewards::RewardSum& sum,
                                                      std::span<const LabelledRow> rows,
                                                      double lambda) {
  const Groups groups(rows);
  auto scored = sum.score(groups.groups);
  if (!scored.ok() || !sum.rubric()) return scored;
  for (data::RewardBreakdown& breakdown : *scored) apply_rubric(*sum.rubric(), lambda, breakdown);
  return scored;
}

std::string one_line(const std::string& text, size_t most) {
  std::string line;
  for (const char c : text.substr(0, most))
    line += c == '\n' ? std::string("\\n") : std::string(1, c);
  return text.size() > most ? line + " ..." : line;
}

Status explain(const ToolOptions& options) {
  const auto sum = load_rewards(options);
  GRADUS_RETURN_IF_ERROR(sum.status());
  const auto rows = read_rows(options.input, false);
  GRADUS_RETURN_IF_ERROR(rows.status());
  const auto scored = score_rows(*sum, *rows, options.lambda);
  GRADUS_RETURN_IF_ERROR(scored.status());
  bool is_found = options.id.empty();
  for (size_t i = 0; i < rows->size(); ++i) {
    const LabelledRow& row = (*rows)[i];
    if (!options.id.empty() && row.id != options.id) continue;
    is_found = true;
    const data::RewardBreakdown& breakdown = (*scored)[i];
    std::cout << fmt::format("sample {} (line {})\n", row.id, row.line);
    std::cout << fmt::format("  prompt        {}\n", one_line(row.prompt.text, 200));
    std::cout << fmt::format("  ground truth  {}\n", one_line(row.prompt.answer, 200));
    std::cout << fmt::format("  response      {}\n", one_line(row.trajectory.text, 400));
    if (breakdown.is_scored) {
      std::cout << fmt::format("  reward        {:.6g}\n", breakdown.total);
    } else {
      std::cout << fmt::format("  reward        none: {}\n", breakdown.reason);
    }
    if (sum->rubric()) {
      std::cout << fmt::format("  rubric        {}, lambda {:.6g}\n", sum->rubric()->name,
                               options.lambda);
    }
    std::cout << fmt::format("  {:<20} {:>8} {:>8} {:>9}  {:<14} {}\n", "part", "score", "weight",
                             "weighted", "status", "why");
    for (size_t j = 0; j < breakdown.parts.size(); ++j) {
      const data::WeightedPart& part = breakdown.parts[j];
      const bool is_ok = part.status == data::RewardStatus::kOk;
      std::string name = part.name;
      if (sum->rubric() && j > 0) {
        const bool is_easy = sum->rubric()->criteria[j - 1].stratum == rewards::Stratum::kEasy;
        name += is_easy ? " (easy)" : " (hard)";
      }
      std::cout << fmt::format("  {:<20} {:>8} {:>8.4g} {:>9.4g}  {:<14} {}\n", name,
                               is_ok ? fmt::format("{:.4g}", part.raw) : "-", part.weight,
                               part.weighted, data::reward_status_name(part.status),
                               one_line(part.detail, 300));
      std::string more = sum->rewards()[j].reward->explain(row.prompt, row.trajectory);
      if (more.empty() && !part.answer.empty()) {
        more = fmt::format("taken for the answer: {}", one_line(part.answer, 300));
      }
      if (!more.empty()) std::cout << fmt::format("  {:<20} {}\n", "", more);
    }
    std::cout << "\n";
  }
  if (is_found) return {};
  return not_found(
      "{}: has no sample '{}'; ids are prompt_id/sample_index, id, or the line's number",
      options.input, options.id);
}

Status check(const ToolOptions& options) {
  const auto sum = load_rewards(options);
  GRADUS_RETURN_IF_ERROR(sum.status());
  const auto rows = read_rows(options.input, true);
  GRADUS_RETURN_IF_ERROR(rows.status());
  const auto start = std::chrono::steady_clock::now();
  const auto scored = score_rows(*sum, *rows, options.lambda);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  GRADUS_RETURN_IF_ERROR(scored.status());
  std::cout << fmt::format("{:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}\n", "part", "right+",
                           "right-", "wrong+", "wrong-", "n/a", "failed", "agree");
  const auto print = [&](const std::string& name, const auto& score_of) {
    int64_t counts[2][2] = {}, num_not_applicable = 0, num_failed = 0;
    for (size_t i = 0; i < rows->size(); ++i) {
      bool has_failed = false;
      const std::optional<double> score = score_of((*scored)[i], has_failed);
      if (!score) {
        ++(has_failed ? num_failed : num_not_applicable);
        continue;
      }
      ++counts[*(*rows)[i].label ? 0 : 1][*score >= options.threshold ? 0 : 1];
    }
    const int64_t num_scored = counts[0][0] + counts[0][1] + counts[1][0] + counts[1][1];
    const double agreed = num_scored == 0
                              ? 0
                              : 100.0 * static_cast<double>(counts[0][0] + counts[1][1]) /
                                    static_cast<double>(num_scored);
    std::cout << fmt::format("{:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7.2f} %\n", name,
                             counts[0][0], counts[0][1], counts[1][0], counts[1][1],
                             num_not_applicable, num_failed, agreed);
  };
  const std::vector<std::string> names = sum->names();
  for (size_t j = 0; j < names.size(); ++j) {
    print(names[j], [&](const data::RewardBreakdown& breakdown, bool& has_failed) {
      const rewards::CriterionScore score = criterion_of(breakdown.parts[j]);
      has_failed = score.has_failed;
      return score.score;
    });
  }
  print("total", [&](const data::RewardBreakdown& breakdown, bool& has_failed) {
    has_failed = !breakdown.is_scored;
    return breakdown.is_scored ? std::optional(breakdown.total) : std::nullopt;
  });
  std::cout << fmt::format(
      "\n{} rows in {:.3f} s, {:.0f} a second on one thread. right+: labelled right and scored at "
      "least {:g}.\n",
      rows->size(), seconds.count(), static_cast<double>(rows->size()) / seconds.count(),
      options.threshold);
  return {};
}

Status probe(const ToolOptions& options) {
  const auto sum = load_rewards(options);
  GRADUS_RETURN_IF_ERROR(sum.status());
  const auto rows = read_rows(options.input, false, /*needs_response=*/false);
  GRADUS_RETURN_IF_ERROR(rows.status());
  int64_t num_probes = 0, num_passed = 0;
  std::map<std::string, std::pair<int64_t, std::string>> holes;  // by probe: how often, an example
  for (const LabelledRow& row : *rows) {
    for (const RewardProbe& one : reward_probes(row.prompt)) {
      data::Trajectory trajectory;
      trajectory.text = one.response;
      const rewards::Group group{&row.prompt, {&trajectory, 1}};
      const auto scored = sum->score({&group, 1});
      GRADUS_RETURN_IF_ERROR(scored.status());
      // The first part that applies says what is right; the others shape.
      const auto& parts = (*scored)[0].parts;
      const auto part = std::find_if(parts.begin(), parts.end(), [](const auto& candidate) {
        return candidate.status != data::RewardStatus::kNotApplicable;
      });
      ++num_probes;
      const bool is_rewarded =
          part != parts.end() && part->status == data::RewardStatus::kOk && part->raw > 0;
      if (!is_rewarded) {
        ++num_passed;
        continue;
      }
      auto& [count, example] = holes[one.name];
      ++count;
      if (example.empty()) {
        example = fmt::format("line {}: '{}' scores {:g} ({})", row.line,
                              one_line(one.response, 80), part->raw, one_line(part->detail, 80));
      }
    }
  }
  for (const auto& [name, hole] : holes) {
    std::cout << fmt::format("{}: rewarded on {} of {} rows, e.g. {}\n", name, hole.first,
                             rows->size(), hole.second);
  }
  std::cout << fmt::format("{} of {} probes score 0\n", num_passed, num_probes);
  if (holes.empty()) return {};
  return invalid_argument(
      "{} kinds of empty responses are rewarded; a policy will find them: choose a stricter check",
      holes.size());
}

std::string without_default_marks(std::string yaml) {
  constexpr std::string_view kMark = "  # default\n";
  for (size_t at = 0; (at = yaml.find(kMark, at)) != std::string::npos;) {
    yaml.replace(at, kMark.size(), "\n");
  }
  return yaml;
}

Status build(const ToolOptions& options) {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  const auto candidates = rewards::load_rubric_candidates(options.rubric, registry);
  GRADUS_RETURN_IF_ERROR(candidates.status());
  // The criteria alone, each for itself: what the answer is worth is not asked.
  rewards::RewardConfig measured;
  for (const rewards::RubricCriterion& one : candidates->criteria) {
    measured.parts.push_back({.name = one.check.check,
                              .label = one.name,
                              .weight = 0,
                              .retries = one.retries,
                              .options = one.check.options});
  }
  auto sum = rewards::RewardSum::create(measured, registry);
  GRADUS_RETURN_IF_ERROR(sum.status());
  GRADUS_RETURN_IF_ERROR(sum->load());
  const auto rows = read_rows(options.input, false);
  GRADUS_RETURN_IF_ERROR(rows.status());
  const Groups groups(*rows);
  const auto scored = sum->score(groups.groups);
  GRADUS_RETURN_IF_ERROR(scored.status());
  std::vector<rewards::CriterionStatistics> statistics(candidates->criteria.size());
  std::vector<std::string> failures(statistics.size());  // the first of each
  for (const data::RewardBreakdown& breakdown : *scored) {
    for (size_t i = 0; i < statistics.size(); ++i) {
      const rewards::CriterionScore score = criterion_of(breakdown.parts[i]);
      if (score.has_failed) {
        if (statistics[i].num_failed++ == 0) failures[i] = breakdown.parts[i].detail;
        continue;
      }
      ++statistics[i].num_judged;
      if (!score.score) continue;
      ++statistics[i].num_applicable;
      statistics[i].sum += *score.score;
    }
  }
  rewards::RubricBuildOptions settings;
  settings.min_applicability = options.min_applicability;
  if (options.split >= 0) settings.threshold = options.split;
  Result<rewards::RubricConfig> rubric = rewards::build_rubric(*candidates, statistics, settings);
  std::cerr << fmt::format("{:<20} {:>11} {:>9} {:>7}  {}\n", "candidate", "applicable", "passed",
                           "failed", "stratum");
  ConfigOrigins origins;
  for (size_t i = 0; i < statistics.size(); ++i) {
    const std::string& name = candidates->criteria[i].name;
    std::string stratum = "left out";
    for (size_t k = 0; rubric.ok() && k < rubric->criteria.size(); ++k) {
      if (rubric->criteria[k].name != name) continue;
      stratum = rubric->criteria[k].stratum == rewards::Stratum::kEasy ? "easy" : "hard";
      origins[fmt::format("criteria[{}].stratum", k)] =
          fmt::format("passed {:.1f} % of {} responses, applicable to {:.1f} %",
                      100 * statistics[i].pass_rate(), statistics[i].num_judged,
                      100 * statistics[i].applicability());
    }
    std::cerr << fmt::format("{:<20} {:>9.1f} % {:>7.1f} % {:>7}  {}\n", name,
                             100 * statistics[i].applicability(), 100 * statistics[i].pass_rate(),
                             statistics[i].num_failed, stratum);
  }
  for (size_t i = 0; i < statistics.size(); ++i) {
    const auto num_failed = static_cast<double>(statistics[i].num_failed);
    if (num_failed <= options.max_failed * static_cast<double>(scored->size())) continue;
    return unavailable(
        "candidate '{}': its check failed on {} of {} responses, the first time with '{}'; more "
        "than {:g} % say nothing sound of it: repair the check, leave the candidate out, or raise "
        "--max-failed",
        candidates->criteria[i].name, statistics[i].num_failed, scored->size(),
        one_line(failures[i], 200), 100 * options.max_failed);
  }
  GRADUS_RETURN_IF_ERROR(rubric.status());
  // Only strata have an origin worth a comment: the rest is what the candidates said.
  const std::string text =
      without_default_marks(config_yaml([&](FieldVisitor& v) { rubric->visit(v); }, origins));
  if (options.output == "-") {
    std::cout << text;
    return {};
  }
  return write_file_atomically(options.output, text);
}

// Options that the commands share; what is asked for only.
std::shared_ptr<ToolOptions> add_options(CLI::App& command, bool takes_config) {
  auto options = std::make_shared<ToolOptions>();
  if (takes_config) {
    command.add_option("--config", options->config, "YAML of a run, whose reward section is used");
    command
        .add_option("--set", options->overrides,
                    "key=value of the run's YAML, such as reward.rubric=mine.yaml")
        ->allow_extra_args(false);
    command.add_option("--rubric", options->rubric, "A rubric, instead of a run's YAML");
    command
        .add_option("--lambda", options->lambda,
                    "Weight of the hard stratum, where the reward is a rubric")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str();
  }
  command
      .add_option(
          "--input,--data", options->input,
          "JSON lines {\"response\", \"ground_truth\", \"prompt\", \"data_source\", "
          "\"extra_info\", \"id\"}, a run's rollouts or what generate wrote; - is standard input")
      ->capture_default_str();
  return options;
}

}  // namespace

void add_reward_tool_commands(CLI::App& parent, Action& action) {
  CLI::App* command = parent.add_subcommand(
      "explain", "Say how each response earns its reward: span, parsed forms, rule, weights");
  auto options = add_options(*command, true);
  command->add_option("--id", options->id, "One sample: its id, prompt_id/sample_index or line");
  command->callback([options, &action] { action = [options] { return explain(*options); }; });

  command = parent.add_subcommand(
      "check", "Compare scores with the \"label\" of each row: confusion table and throughput");
  options = add_options(*command, true);
  command
      ->add_option("--threshold", options->threshold,
                   "Score from which on a response counts as right")
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return check(*options); }; });

  command = parent.add_subcommand(
      "probe",
      "Try responses that deserve nothing on each row; ends with an error if one is rewarded");
  // The rows are prompts; a response of theirs is not looked at.
  options = add_options(*command, true);
  command->callback([options, &action] { action = [options] { return probe(*options); }; });

  CLI::App* rubric = parent.add_subcommand("rubric", "Make rubrics");
  rubric->require_subcommand(1);
  command = rubric->add_subcommand(
      "build", "Measure candidate criteria on responses; keep those that apply, easy and hard");
  options = add_options(*command, false);
  command->add_option("--candidates", options->rubric, "A rubric whose strata do not matter yet")
      ->required();
  command->add_option("--out", options->output, "Where to write; - is standard output")
      ->capture_default_str();
  command
      ->add_option("--max-failed", options->max_failed,
                   "Share of the responses on which a candidate's check may fail")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--min-applicability", options->min_applicability,
                   "Share of the responses that a criterion must apply to")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command
      ->add_option(
          "--threshold", options->split,
          "Pass rate from which on a criterion is easy; without it the largest gap divides")
      ->check(CLI::Range(0.0, 1.0));
  command->callback([options, &action] { action = [options] { return build(*options); }; });
}

}  // namespace gradus::cli
