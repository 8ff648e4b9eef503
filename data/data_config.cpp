// SPDX-License-Identifier: Apache-2.0
#include "data/data_config.h"

#include <algorithm>

#include "common/config/rules.h"
#include "data/tasks/task.h"

namespace gradus::data {

void SourceConfig::visit(FieldVisitor& v) {
  v.field("files", files, "JSON lines files, relative to the working folder.");
  v.field("task", task, "Built-in procedural task, instead of files (see `gradus data make`).");
  v.field("task_options", task_options, "Options of the task, by name (see `gradus data list`).");
  v.field("num_rows", num_rows,
          "Rows to generate, or of the files to use; 0 uses all of the files.", at_least(0));
  v.field("seed", seed, "Seed of the generated rows.", at_least(0));
}

void FewShotExample::visit(FieldVisitor& v) {
  v.field("question", question, "What the user asks.", non_empty());
  v.field("answer", answer, "What the model should have answered.", non_empty());
}

void DataConfig::visit(FieldVisitor& v) {
  v.field("train", train, "Problems to train on.");
  v.field("eval", eval, "Problems to evaluate on; none by default.");
  v.field("shuffle", shuffle, "Whether each pass over the rows has an order of its own.");
  v.field("seed", seed, "Seed of the order of the rows.", at_least(0));
  v.field("max_prompt_tokens", max_prompt_tokens, "Longest prompt, template and examples included.",
          at_least(1));
  v.field("overlong_prompts", overlong_prompts,
          "What happens to a longer prompt: left out with a count in the log, or the run stops.",
          one_of({"filter", "error"}));
  v.field("prompt_format", prompt_format,
          "chat: the model's chat template; text: the bare text, few-shot examples before it.",
          one_of({"chat", "text"}));
  v.field("system_prompt", system_prompt, "System message before each chat; none if empty.");
  v.field("few_shot", few_shot, "Solved problems put before each prompt, as turns of the chat.");
}

namespace {

void check_source(const std::string& key, const SourceConfig& source, ConfigRules& rules) {
  rules.require(source.files.empty() || source.task.empty(),
                "both {0}.files and {0}.task are set; keep one", key);
  rules.require(source.task.empty() || source.num_rows > 0,
                "{0}.task is '{1}' but {0}.num_rows is 0; say how many rows to generate", key,
                source.task);
  rules.require(source.task_options.empty() || !source.task.empty(),
                "{0}.task_options are set but {0}.task is not; they would be ignored", key);
  if (source.task.empty()) return;
  const std::vector<TaskInfo>& tasks = task_infos();
  const bool is_known = std::any_of(tasks.begin(), tasks.end(),
                                    [&](const TaskInfo& task) { return task.name == source.task; });
  rules.add(Task::create(source.task, source.task_options)
                .status()
                .with_prefix(key + (is_known ? ".task_options" : ".task")));
}

}  // namespace

Status validate(const DataConfig& config) {
  ConfigRules rules;
  check_source("data.train", config.train, rules);
  check_source("data.eval", config.eval, rules);
  const bool repeats_the_problems = !config.train.task.empty() &&
                                    config.train.task == config.eval.task &&
                                    config.train.task_options == config.eval.task_options &&
                                    config.train.seed == config.eval.seed;
  rules.require(
      !repeats_the_problems,
      "data.train.seed and data.eval.seed are both {} for the task '{}': evaluation would "
      "repeat the training problems; change one",
      config.train.seed, config.train.task);
  rules.require(config.system_prompt.empty() || config.prompt_format == PromptFormat::kChat,
                "data.system_prompt is set but data.prompt_format is text, which has no system "
                "message; use chat, or put the text into data.few_shot");
  return rules.status();
}

}  // namespace gradus::data
