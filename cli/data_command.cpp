// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/option_list.h"
#include "cli/partial_directory.h"
#include "common/atomic_file.h"
#include "data/dataset.h"
#include "data/multihop.h"
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
  std::string facts = ".deps/facts/facts.jsonl";
};

// One of "name=value" is given at the most: alias=0.5.
Result<double> alias_of(const std::vector<std::string>& task_options) {
  auto options = parse_option_list("--option", task_options);
  GRADUS_RETURN_IF_ERROR(options.status());
  double alias = data::MultihopOptions{}.alias;
  for (const auto& [name, value] : *options) {
    if (name != "alias") {
      return invalid_argument("task multihop: unknown option '{}'; known: alias", name);
    }
    size_t used = 0;
    try {
      alias = std::stod(value, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != value.size() || !(alias >= 0 && alias <= 1)) {
      return invalid_argument("task multihop: alias: is '{}'; expected a number in [0, 1]", value);
    }
  }
  return alias;
}

Status write_rows(const std::string& path, size_t count,
                  const std::function<nlohmann::ordered_json(size_t)>& row) {
  auto writer = JsonLinesWriter::open(path);
  GRADUS_RETURN_IF_ERROR(writer.status());
  for (size_t i = 0; i < count; ++i) GRADUS_RETURN_IF_ERROR((*writer)->write(row(i)));
  return (*writer)->finish();
}

// A folder: the corpus, the questions of each split, and what a retriever can reach on them.
Status make_multihop(const MakeOptions& options) {
  if (options.pairs) return invalid_argument("task multihop: has no --pairs");
  if (options.output == "-") {
    return invalid_argument("task multihop: writes several files; name a folder with --out");
  }
  const std::string folder = without_trailing_slashes(options.output);
  GRADUS_RETURN_IF_ERROR(check_new_directory(folder));
  const auto alias = alias_of(options.task_options);
  GRADUS_RETURN_IF_ERROR(alias.status());
  const auto facts = data::MultihopFacts::load(options.facts);
  if (facts.status().code() == StatusCode::kNotFound) {
    return not_found("{}; tools/fetch_facts makes the facts, or name a file with --facts",
                     facts.status().message());
  }
  GRADUS_RETURN_IF_ERROR(facts.status());
  const int64_t eighth = (options.num_rows + 7) / 8;
  const data::MultihopOptions multihop{.alias = *alias,
                                       .seed = options.seed,
                                       .num_train = options.num_rows,
                                       .num_dev = eighth,
                                       .num_test = eighth,
                                       .num_unseen = eighth};
  PartialDirectory partial(folder);
  std::error_code error;
  std::filesystem::create_directories(partial.path(), error);
  if (error) return unavailable("{}: cannot create: {}", partial.path(), error.message());
  const std::vector<data::Passage> passages = (*facts)->passages(options.seed);
  GRADUS_RETURN_IF_ERROR(
      write_rows(partial.path() + "/corpus.jsonl", passages.size(), [&](size_t i) {
        return nlohmann::ordered_json{
            {"id", passages[i].id}, {"title", passages[i].title}, {"text", passages[i].text}};
      }));
  const std::vector<data::MultihopStatement> statements = (*facts)->statements();
  GRADUS_RETURN_IF_ERROR(
      write_rows(partial.path() + "/statements.jsonl", statements.size(), [&](size_t i) {
        return nlohmann::ordered_json{{"passage", statements[i].passage_id},
                                      {"relation", statements[i].relation},
                                      {"subject", statements[i].subject},
                                      {"value", statements[i].value}};
      }));
  nlohmann::ordered_json summary = {
      {"alias", *alias}, {"seed", options.seed}, {"num_passages", passages.size()}};
  for (const data::MultihopSplit split : data::kMultihopSplits) {
    const auto questions = (*facts)->questions(multihop, split);
    GRADUS_RETURN_IF_ERROR(questions.status());
    const std::string name = data::multihop_split_name(split);
    GRADUS_RETURN_IF_ERROR(write_rows(
        partial.path() + "/" + name + ".jsonl", questions->size(),
        [&](size_t i) { return data::row_to_json(data::multihop_row((*questions)[i], split)); }));
    const data::MultihopCeilings ceilings = data::multihop_ceilings(*questions);
    summary["splits"][name] = {{"num_questions", questions->size()},
                               {"num_searches", ceilings.num_searches},
                               {"elliptical_fraction", ceilings.elliptical_fraction},
                               {"query_only_recall_at_1", ceilings.query_only_recall_at_1},
                               {"query_only_recall_at_3", ceilings.query_only_recall_at_3},
                               {"history_bits", ceilings.history_bits}};
  }
  GRADUS_RETURN_IF_ERROR(
      write_file_atomically(partial.path() + "/summary.json", summary.dump(2) + "\n"));
  return partial.commit();
}

Status make_data(const MakeOptions& options) {
  if (options.task == "multihop") return make_multihop(options);
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
  make->add_option("task", options->task,
                   "Name of the task; see gradus data list. multihop writes a folder")
      ->required();
  make->add_option("--num", options->num_rows,
                   "How many rows; of multihop: for training, and an eighth for each other split")
      ->required()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  make->add_option("--seed", options->seed, "Seed of the rows")->required();
  make->add_option("--first-index", options->first_index, "Index of the first row")
      ->capture_default_str();
  make->add_option("--option", options->task_options,
                   "name=value of a dial, style, solution, examples or split; may be repeated")
      ->allow_extra_args(false);
  make->add_option("--facts", options->facts, "What multihop asks about; see tools/fetch_facts")
      ->capture_default_str();
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
