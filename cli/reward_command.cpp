// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <memory>
#include <vector>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/option_list.h"
#include "cli/reward_command.h"
#include "rewards/math/math_check.h"
#include "rewards/reward.h"

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ScoreOptions {
  std::string reward;
  std::vector<std::string> reward_options;
  std::string input = "-";
  std::string output = "-";
};

// Puts `row[key]` into `text`: a string as it is, other values as their JSON text.
Status read_field(const Json& row, const char* key, bool is_required, bool takes_any,
                  std::string& text) {
  const auto found = row.find(key);
  if (found == row.end() || found->is_null()) {
    if (!is_required) return {};
    return invalid_argument("{}: is missing; expected {{\"response\", \"ground_truth\"}}", key);
  }
  if (!found->is_string() && !takes_any) {
    return invalid_argument("{}: is {}; expected a string", key, found->type_name());
  }
  text = found->is_string() ? found->get<std::string>() : found->dump();
  return {};
}

Status score_row(const rewards::Reward& reward, const Json& row, JsonLinesWriter& writer) {
  data::Prompt prompt;
  data::Trajectory trajectory;
  GRADUS_RETURN_IF_ERROR(read_field(row, "response", true, false, trajectory.text));
  // A reward that looks at the response alone needs no ground truth.
  GRADUS_RETURN_IF_ERROR(read_field(row, "ground_truth", false, true, prompt.answer));
  GRADUS_RETURN_IF_ERROR(read_field(row, "prompt", false, true, prompt.text));
  GRADUS_RETURN_IF_ERROR(read_field(row, "data_source", false, false, prompt.task));
  const rewards::Group group{&prompt, std::span(&trajectory, 1)};
  const rewards::RewardPart part = reward.score_batch(std::span(&group, 1)).at(0);
  const bool is_scored = part.status == data::RewardStatus::kOk;
  return writer.write({{"score", is_scored ? Json(part.score) : Json(nullptr)},
                       {"status", data::reward_status_name(part.status)},
                       {"detail", part.detail}});
}

Status score(const ScoreOptions& options) {
  const auto reward_options = parse_option_list("--option", options.reward_options);
  GRADUS_RETURN_IF_ERROR(reward_options.status());
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  const auto reward = registry.create(options.reward, *reward_options);
  GRADUS_RETURN_IF_ERROR(reward.status());
  auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  const Status status = for_each_json_line(
      options.input, [&](const Json& row, int64_t) { return score_row(**reward, row, **writer); });
  const Status finished = (*writer)->finish();  // the rows before a bad one are kept
  return status.ok() ? finished : status;
}

struct MathCommandOptions {
  std::string mode = "strict";
  std::string input = "-";
  std::string output = "-";
};

Status check_row(const rewards::math::MathOptions& options, const Json& row,
                 JsonLinesWriter& writer) {
  std::string texts[2];
  for (size_t i = 0; i < 2; ++i) {
    const char* key = i == 0 ? "gold" : "answer";
    const auto found = row.find(key);
    if (found == row.end() || !found->is_string()) {
      return invalid_argument("no '{}'; expected {{\"gold\": \"...\", \"answer\": \"...\"}}", key);
    }
    texts[i] = found->get<std::string>();
  }
  const rewards::math::MathVerdict verdict = rewards::math::check_math(texts[0], texts[1], options);
  const bool is_scored = verdict.status == data::RewardStatus::kOk;
  return writer.write({{"score", is_scored ? Json(verdict.score) : Json(nullptr)},
                       {"status", data::reward_status_name(verdict.status)},
                       {"rule", verdict.rule},
                       {"gold_parsed", verdict.gold_parsed},
                       {"answer_parsed", verdict.answer_parsed}});
}

Status check_math_rows(const MathCommandOptions& options) {
  rewards::math::MathOptions settings;
  settings.mode = options.mode == "compat" ? rewards::math::MathMode::kCompat
                                           : rewards::math::MathMode::kStrict;
  auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  const Status status = for_each_json_line(
      options.input, [&](const Json& row, int64_t) { return check_row(settings, row, **writer); });
  const Status finished = (*writer)->finish();  // the rows before a bad one are kept
  return status.ok() ? finished : status;
}

void add_math_command(CLI::App& parent, Action& action) {
  CLI::App* command = parent.add_subcommand(
      "math",
      "Read {\"gold\", \"answer\"}, texts as a model writes them; print {\"score\", \"status\", "
      "\"rule\", \"gold_parsed\", \"answer_parsed\"}");
  auto options = std::make_shared<MathCommandOptions>();
  command
      ->add_option("--mode", options->mode,
                   "strict: by what the texts mean; compat: as math-verify 0.9.0 judges")
      ->check(CLI::IsMember({"strict", "compat"}))
      ->capture_default_str();
  command->add_option("--input", options->input, "JSON lines to read; - is standard input")
      ->capture_default_str();
  command->add_option("--out", options->output, "Where to write; - is standard output")
      ->capture_default_str();
  command->callback(
      [options, &action] { action = [options] { return check_math_rows(*options); }; });
}

Status list_rewards() {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  auto writer = JsonLinesWriter::open("-");
  GRADUS_RETURN_IF_ERROR(writer.status());
  for (const std::string& name : registry.names()) {
    GRADUS_RETURN_IF_ERROR((*writer)->write({{"reward", name}}));
  }
  return (*writer)->finish();
}

}  // namespace

void add_reward_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("reward", "Score responses without a model");
  command->require_subcommand(1);
  CLI::App* scorer = command->add_subcommand(
      "score", "Read {\"response\", \"ground_truth\"}, print {\"score\", \"status\", \"detail\"}");
  auto options = std::make_shared<ScoreOptions>();
  scorer->add_option("--reward", options->reward, "Name of the reward; see gradus reward list")
      ->required();
  scorer
      ->add_option("--option", options->reward_options,
                   "name=value of an option, such as marker=Answer:; may be repeated")
      ->allow_extra_args(false);
  scorer->add_option("--input", options->input, "JSON lines to read; - is standard input")
      ->capture_default_str();
  scorer->add_option("--out", options->output, "Where to write; - is standard output")
      ->capture_default_str();
  scorer->callback([options, &action] { action = [options] { return score(*options); }; });
  add_math_command(*command, action);
  add_reward_tool_commands(*command, action);
  command->add_subcommand("list", "List the rewards as JSON lines")->callback([&action] {
    action = list_rewards;
  });
}

}  // namespace gradus::cli
