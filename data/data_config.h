// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// Which problems a run trains and is evaluated on, and how they become prompts: the `data` section
// of a run's YAML.
namespace gradus::data {

// Rows come from files or from a built-in procedural task, never from both.
struct SourceConfig {
  std::vector<std::string> files = {};  // JSON lines, relative to the working folder
  std::string task = "";                // one of data/tasks/task.h
  std::map<std::string, std::string> task_options = {};  // its dials, style and split
  int64_t num_rows = 0;  // rows to generate, or of the files to use; 0: all
  int64_t seed = 0;      // of the generated rows

  bool is_given() const { return !files.empty() || !task.empty(); }
  void visit(FieldVisitor& v);
};

enum class OverlongPrompts { kFilter, kError };
enum class PromptFormat { kChat, kText };

// A solved problem put before each prompt.
struct FewShotExample {
  std::string question;
  std::string answer;

  void visit(FieldVisitor& v);
};

struct DataConfig {
  SourceConfig train;
  SourceConfig eval{.seed = 1};  // other rows than those of train
  bool shuffle = true;
  int64_t seed = 0;  // of the order of the rows
  int64_t max_prompt_tokens = 1024;
  OverlongPrompts overlong_prompts = OverlongPrompts::kFilter;
  PromptFormat prompt_format = PromptFormat::kChat;
  std::string system_prompt;
  std::vector<FewShotExample> few_shot;

  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const DataConfig& config);

}  // namespace gradus::data
