// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "records/metrics_log.h"

// What a person sees of a run, on standard error. On a terminal: a table with one row per step,
// below it a live line with the phase in progress, a bar and the time left. Elsewhere: the table
// alone, and a line for a long phase at most every 30 s.
namespace gradus::records {

// A column of the step table.
struct TerminalColumn {
  std::string metric;  // name in the MetricRow; a missing one shows as "-"
  std::string label;
};

// The eight of an RL run (reward, length, loss, entropy, gradient norm, mismatch, tokens/s,
// seconds), those of supervised fine-tuning, of training on preferences, of federated learning and
// of a retriever.
std::vector<TerminalColumn> rl_columns();
std::vector<TerminalColumn> sft_columns();
std::vector<TerminalColumn> preference_columns();
std::vector<TerminalColumn> federated_columns();
std::vector<TerminalColumn> harr_columns();

struct TerminalOptions {
  int descriptor = 2;
  int64_t num_steps = 0;   // of the whole run
  int64_t first_step = 1;  // number of the first step to come: more than 1 when resumed
  std::vector<TerminalColumn> columns = rl_columns();
  bool is_quiet = false;  // prints nothing: ranks other than 0

  // Asked of the descriptor and the clock unless a test says otherwise.
  std::optional<bool> is_terminal;
  int width = 0;                  // columns
  std::function<double()> now_s;  // seconds, never backwards
};

// Thread-safe. The live line is repainted at most 10 times a second, never reaches the last column
// (so no terminal wraps it) and is wiped by the destructor. The cursor is never hidden, so a killed
// run leaves the terminal as it was.
class RunDisplay {
 public:
  explicit RunDisplay(TerminalOptions options);
  ~RunDisplay();

  // A phase of the step begins: "rollout", of `total` units ("samples"); 0 if unknown.
  void begin_phase(const std::string& name, int64_t total, const std::string& unit);
  // `done` of the total so far. Cheap: may be called for each token.
  void advance_phase(int64_t done);
  void end_phase();

  // The step is over: prints its row. The first time that the policy-gradient loss is about 0 it
  // explains why that is as it should be.
  void finish_step(int64_t step, const MetricRow& metrics);

  // Prints lines above the live one: for messages and the sinks of logs.
  void print(const std::string& text);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// "41 s", "12 min", "3 h 05 min", "2 d 4 h": two leading units.
std::string format_duration(double seconds);
// "0.6250", "1.25e-07", "12.3k", "4.56M", "nan": at most 8 characters.
std::string format_metric(double value);

}  // namespace gradus::records
