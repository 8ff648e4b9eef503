// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

// Data sets as JSON lines with verl's fields. One row:
//
//   {"data_source": "chain_sum", "prompt": [{"role": "user", "content": "What is 3 + 4?"}],
//    "ability": "math", "reward_model": {"style": "rule", "ground_truth": "7"}, "extra_info":
//    {"index": 0}}
//
// `prompt` may also be a string, which no chat template touches; `messages` is another name for it,
// and a last assistant turn there is the `response` that supervised training learns. The answer may
// stand flat as `ground_truth`, `answer` or `label`. Tokens are no matter of this file: the caller
// brings the tokenizer.
namespace gradus::data {

struct Message {
  std::string role;
  std::string content;
  bool operator==(const Message&) const = default;
};

// A row of a data set. Exactly one of `messages` and `text` is not empty.
struct Row {
  std::string data_source;        // names the task; picks rewards and groups the tables of eval
  std::vector<Message> messages;  // a chat, for the chat template
  std::string text;               // or a plain prompt
  std::string ability;            // may be empty
  std::string reward_style;       // `reward_model.style`, may be empty
  std::string ground_truth;       // a string as it is, any other JSON value as its text
  std::string response;           // reference solution for supervised training, may be empty
  std::string extra_info = "{}";  // JSON text of the object, keys in their order
  std::string other_keys = "{}";  // JSON text: the top-level keys that are none of the above
  std::string source_file;        // where it came from, for messages; empty for procedural rows
  int64_t line = 0;               // from 1; the number of a procedural row
  bool operator==(const Row&) const = default;
};

// "rows.jsonl:17", or "chain_sum row 17" for a row that was not read from a file.
std::string place_of(const Row& row);

// The row's members of `extra_info` and other keys by name, values as JSON text unless strings:
// what Prompt::metadata holds. `extra_info` wins where both have a key.
std::map<std::string, std::string> metadata_of(const Row& row);

// The row in verl's fields; reading it back gives the same row but for its place.
nlohmann::ordered_json row_to_json(const Row& row);

struct DatasetOptions {
  int64_t max_rows = 0;             // stop after this many rows; 0 reads all
  std::string default_data_source;  // for rows without `data_source`; empty: they are errors
  bool require_ground_truth = true;
  bool require_response = false;  // supervised training needs it
};

// Reads `files` in order; rows keep file and line. Blank lines are skipped. All bad rows are found
// before it returns; the message lists the first 10 as `file:line: field: seen; expected` and
// counts the rest. NotFound for a file that cannot be opened, InvalidArgument for bad rows and for
// no rows at all.
Result<std::vector<Row>> load_rows(std::span<const std::string> files,
                                   const DatasetOptions& options);

enum class OverlongPolicy { kFilter, kError };

struct OverlongSplit {
  std::vector<int64_t> kept;  // indices of the rows that fit, ascending
  int64_t num_dropped = 0;
  int64_t longest_tokens = 0;  // of all rows, dropped ones too
};

// Which rows have a prompt of at most `max_tokens` by `count_tokens`. With kError the first longer
// one is an InvalidArgument with its place; so is, with kFilter, dropping every row. An error of
// `count_tokens` gets the row's place. Calls `count_tokens` in order of rows, from this thread.
Result<OverlongSplit> split_overlong(std::span<const Row> rows,
                                     const std::function<Result<int64_t>(const Row&)>& count_tokens,
                                     int64_t max_tokens, OverlongPolicy policy);

// In which order rows are visited. The row at a position is a function of (num_rows, seed,
// position) alone, each epoch is a permutation of its own, so the whole state of a run's data is
// one number: the position. Keeps the permutation of one epoch (4 bytes a row), made on first use.
// Not thread-safe.
class DataOrder {
 public:
  // num_rows in [1, 2^32).
  DataOrder(int64_t num_rows, uint64_t seed, bool shuffle);

  // Row index in [0, num_rows) of `position`, counted from 0 through all epochs.
  int64_t row_at(uint64_t position);
  uint64_t epoch_of(uint64_t position) const { return position / num_rows_; }
  int64_t num_rows() const { return static_cast<int64_t>(num_rows_); }

 private:
  uint64_t num_rows_;
  uint64_t seed_;
  bool shuffle_;
  uint64_t cached_epoch_ = UINT64_MAX;
  std::vector<uint32_t> permutation_;
};

}  // namespace gradus::data
