// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <deque>
#include <iostream>
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
  trajectory.finish_reason = data::FinishReason::kStop;
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
  GRADUS_RETURN_IF_ERROR((*reward)->load());
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

struct ServeOptions {
  std::string reward;
  std::vector<std::string> reward_options;
};

// The other side of the reward `process`: any reward as a process of its own, so that a plug-in
// that crashes takes nothing along.
Status serve(const ServeOptions& options) {
  const auto reward_options = parse_option_list("--option", options.reward_options);
  GRADUS_RETURN_IF_ERROR(reward_options.status());
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  const auto made = registry.create(options.reward, *reward_options);
  GRADUS_RETURN_IF_ERROR(made.status());
  GRADUS_RETURN_IF_ERROR((*made)->load());
  const rewards::Reward& reward = **made;
  std::cout << Json{{"gradus_reward", 1},
                    {"name", options.reward},
                    {"deterministic", reward.is_deterministic()},
                    {"compares_siblings", reward.compares_siblings()},
                    {"low", reward.lower_bound()},
                    {"high", reward.upper_bound()}}
                   .dump()
            << std::endl;
  return for_each_json_line("-", [&](const Json& batch, int64_t) -> Status {
    if (!batch.contains("samples") || !batch["samples"].is_array()) {
      return invalid_argument("no 'samples'; expected a batch of the reward process");
    }
    std::deque<data::Prompt> prompts;
    std::deque<std::vector<data::Trajectory>> trajectories;
    for (const Json& sample : batch["samples"]) {
      data::Prompt prompt;
      data::Trajectory trajectory;
      trajectory.finish_reason = data::FinishReason::kStop;
      prompt.prompt_id = sample.value("prompt_id", uint64_t{0});
      trajectory.id = {prompt.prompt_id, sample.value("sample_index", 0)};
      GRADUS_RETURN_IF_ERROR(read_field(sample, "response", true, false, trajectory.text));
      GRADUS_RETURN_IF_ERROR(read_field(sample, "ground_truth", false, true, prompt.answer));
      GRADUS_RETURN_IF_ERROR(read_field(sample, "prompt", false, true, prompt.text));
      GRADUS_RETURN_IF_ERROR(read_field(sample, "data_source", false, false, prompt.task));
      if (const auto extra = sample.find("extra_info"); extra != sample.end()) {
        for (const auto& [key, value] : extra->items()) {
          prompt.metadata[key] = value.is_string() ? value.get<std::string>() : value.dump();
        }
      }
      const bool continues = !prompts.empty() && prompts.back().prompt_id == prompt.prompt_id &&
                             prompts.back().text == prompt.text;
      if (!continues) {
        prompts.push_back(std::move(prompt));
        trajectories.emplace_back();
      }
      trajectories.back().push_back(std::move(trajectory));
    }
    std::vector<rewards::Group> groups;
    for (size_t i = 0; i < prompts.size(); ++i) groups.push_back({&prompts[i], trajectories[i]});
    Json results = Json::array();
    for (const rewards::RewardPart& part : reward.score_batch(groups)) {
      results.push_back({{"score", part.score},
                         {"status", data::reward_status_name(part.status)},
                         {"detail", part.detail}});
    }
    std::cout << Json{{"id", batch.value("id", Json())}, {"results", results}}.dump(
                     -1, ' ', false, Json::error_handler_t::replace)
              << std::endl;
    return {};
  });
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
  CLI::App* command = app.add_subcommand("reward", "Score responses");
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
  CLI::App* server = command->add_subcommand(
      "serve", "Speak the JSON lines of the reward process: a plug-in in a process of its own");
  auto served = std::make_shared<ServeOptions>();
  server->add_option("--reward", served->reward, "Name of the reward; see gradus reward list")
      ->required();
  server->add_option("--option", served->reward_options, "name=value of an option; may be repeated")
      ->allow_extra_args(false);
  server->callback([served, &action] { action = [served] { return serve(*served); }; });
  add_math_command(*command, action);
  add_reward_tool_commands(*command, action);
  command->add_subcommand("list", "List the rewards as JSON lines")->callback([&action] {
    action = list_rewards;
  });
}

}  // namespace gradus::cli
