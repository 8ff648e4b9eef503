// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/dataset.h"

// Procedural tasks with known answers: endless data without a download. A row is a function of
// (task, options, seed, index) alone, so a run resumes from the index. Answers are spread so that
// no constant answer does well (the tests bound it).
//
// Every task understands, beside its own dials:
//
//   style     natural | compact      a question in words, as a chat, ending in "Answer: N"; or a
//                                    bare text such as "12+34=" for a small character model
//   solution  steps | answer         what Row::response holds: worked steps and the answer, or the
//                                    answer; compact steps are parted by ";": "9-3=6;6+6=12"
//   examples  0..8                   solved turns put before the question, with style natural
//   split     all | train | heldout  a fifth of all problems, by a hash of the problem itself, is
//                                    held out: no seed makes a train row of one
namespace gradus::data {

struct TaskOption {
  std::string name;
  std::string default_value;
  std::string values;  // "2..12" or "natural | compact"
  std::string help;
};

struct TaskInfo {
  std::string name;
  std::string summary;
  std::string reward;               // the built-in reward that judges it
  std::string reward_options;       // its options with the natural style, e.g. "marker=Answer:"
  std::vector<TaskOption> options;  // the dials of the task and the common options
};

using TaskOptions = std::map<std::string, std::string>;

// All tasks, by name.
const std::vector<TaskInfo>& task_infos();

struct Generator;
struct Problem;

// A task with its options read. Cheap to copy; thread-safe.
class Task {
 public:
  // InvalidArgument: unknown task or option (with the nearest name), value out of range, dials that
  // contradict each other.
  static Result<Task> create(std::string_view name, const TaskOptions& options);

  // InvalidArgument when the split holds no problem of these dials (found after 10,000 tries).
  Result<Row> row(uint64_t seed, uint64_t index) const;

 private:
  enum class Split { kAll, kTrain, kHeldOut };
  enum class Solution { kSteps, kAnswer, kMixed };

  Task() = default;
  // Problem of the question (turn 0) or of an example; its key is none of `taken`.
  Result<Problem> draw(uint64_t seed, uint64_t index, uint64_t turn,
                       const std::vector<std::string>& taken) const;

  const Generator* generator_ = nullptr;
  std::vector<int64_t> dials_;  // in the order of the generator's
  bool is_compact_ = false;
  Solution solution_ = Solution::kSteps;
  int64_t num_examples_ = 0;
  Split split_ = Split::kAll;
};

// Task::create and Task::row in one, for single rows.
Result<Row> make_row(std::string_view task, const TaskOptions& options, uint64_t seed,
                     uint64_t index);

}  // namespace gradus::data
