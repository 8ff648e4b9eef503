// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <memory>
#include <vector>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/option_list.h"
#include "data/dataset.h"
#include "data/preferences.h"
#include "data/tasks/task.h"

namespace gradus::cli {
namespace {

struct MakeOptions {
  bool pairs = false;
  std::string task;
  int64_t num_rows = 0;
  uint64_t seed = 0;
  uint64_t first_index = 0;
  std::vector<std::string> task_options;
  std::string output = "-";
};

Status make_data(const MakeOptions& options) {
  const auto task_options = parse_option_list("--option", options.task_options);
  GRADUS_RETURN_IF_ERROR(task_options.status());
  const auto task = data::Task::create(options.task, *task_options);
  GRADUS_RETURN_IF_ERROR(task.status());
  auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  for (int64_t i = 0; i < options.num_rows; ++i) {
    const uint64_t index = options.first_index + static_cast<uint64_t>(i);
    if (options.pairs) {
      const auto pair = data::make_preference(*task, options.seed, index);
      GRADUS_RETURN_IF_ERROR(pair.status());
      GRADUS_RETURN_IF_ERROR((*writer)->write(data::preference_to_json(*pair)));
      continue;
    }
    const auto row = task->row(options.seed, index);
    GRADUS_RETURN_IF_ERROR(row.status());
    GRADUS_RETURN_IF_ERROR((*writer)->write(data::row_to_json(*row)));
  }
  return (*writer)->finish();
}

Status list_tasks() {
  auto writer = JsonLinesWriter::open("-");
  GRADUS_RETURN_IF_ERROR(writer.status());
  for (const data::TaskInfo& info : data::task_infos()) {
    nlohmann::ordered_json row = {{"task", info.name},
                                  {"summary", info.summary},
                                  {"reward", info.reward},
                                  {"reward_options", info.reward_options}};
    for (const data::TaskOption& option : info.options) {
      row["options"].push_back({{"name", option.name},
                                {"default", option.default_value},
                                {"values", option.values},
                                {"help", option.help}});
    }
    GRADUS_RETURN_IF_ERROR((*writer)->write(row));
  }
  return (*writer)->finish();
}

struct CheckOptions {
  std::vector<std::string> files;
  bool for_training_on_responses = false;
};

// One line a data source: how many rows, how many with a reference response, how long the texts
// are.
Status check_data(const CheckOptions& options) {
  data::DatasetOptions dataset;
  dataset.require_ground_truth = !options.for_training_on_responses;
  dataset.require_response = options.for_training_on_responses;
  const auto rows = data::load_rows(options.files, dataset);
  GRADUS_RETURN_IF_ERROR(rows.status());
  struct Count {
    int64_t num_rows = 0, num_responses = 0, num_chats = 0;
    size_t longest_prompt_bytes = 0;
  };
  std::map<std::string, Count> counts;
  for (const data::Row& row : *rows) {
    Count& count = counts[row.data_source];
    ++count.num_rows;
    count.num_responses += row.response.empty() ? 0 : 1;
    count.num_chats += row.messages.empty() ? 0 : 1;
    size_t num_bytes = row.text.size();
    for (const data::Message& message : row.messages) num_bytes += message.content.size();
    count.longest_prompt_bytes = std::max(count.longest_prompt_bytes, num_bytes);
  }
  auto writer = JsonLinesWriter::open("-");
  GRADUS_RETURN_IF_ERROR(writer.status());
  for (const auto& [data_source, count] : counts) {
    GRADUS_RETURN_IF_ERROR(
        (*writer)->write({{"data_source", data_source},
                          {"num_rows", count.num_rows},
                          {"num_chats", count.num_chats},
                          {"num_responses", count.num_responses},
                          {"longest_prompt_bytes", count.longest_prompt_bytes}}));
  }
  return (*writer)->finish();
}

}  // namespace

void add_data_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("data", "Make, list and check data sets");
  command->require_subcommand(1);

  CLI::App* make = command->add_subcommand("make", "Write rows of a procedural task as JSON lines");
  auto options = std::make_shared<MakeOptions>();
  make->add_option("task", options->task, "Name of the task; see gradus data list")->required();
  make->add_option("--num", options->num_rows, "How many rows")
      ->required()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  make->add_option("--seed", options->seed, "Seed of the rows")->required();
  make->add_option("--first-index", options->first_index, "Index of the first row")
      ->capture_default_str();
  make->add_option("--option", options->task_options,
                   "name=value of a dial, style, solution, examples or split; may be repeated")
      ->allow_extra_args(false);
  make->add_flag("--pairs", options->pairs,
                 "Preference rows: the reference response against that of another row");
  make->add_option("--out", options->output, "Where to write; - is standard output")
      ->capture_default_str();
  make->callback([options, &action] { action = [options] { return make_data(*options); }; });

  command->add_subcommand("list", "List the procedural tasks with their options as JSON lines")
      ->callback([&action] { action = list_tasks; });

  CLI::App* check = command->add_subcommand("check", "Read data sets whole and name each bad row");
  auto check_options = std::make_shared<CheckOptions>();
  check->add_option("files", check_options->files, "JSON lines files")->required();
  check->add_flag("--sft", check_options->for_training_on_responses,
                  "Rows are for supervised training: they need a response and no ground truth");
  check->callback([check_options, &action] {
    action = [check_options] { return check_data(*check_options); };
  });
}

}  // namespace gradus::cli
