// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "records/run_folder.h"

// The numbers of a run, written while it goes: metrics.jsonl for programs, event files for
// TensorBoard.
namespace gradus::records {

// Metrics of one step by name: Metrics::values() of common/metrics.h.
using MetricRow = std::map<std::string, double>;

// One line of metrics.jsonl: {"step": 3, "time": 1767225600.25, "actor/pg_loss": 0.1, ...}.
// Non-finite values are the strings "NaN", "Infinity" and "-Infinity".
struct MetricLine {
  int64_t step = 0;
  double time = 0;  // seconds since 1970
  MetricRow metrics;
};

// Appends a run's numbers. Each line goes out in one write, so a killed run has whole lines. Not
// thread-safe; rank 0 has one.
class MetricsLog {
 public:
  // Opens the files of a run. When resuming, lines after `last_step` and a half-written last line
  // are cut, and TensorBoard is told to forget the later steps. nullopt is a fresh run.
  static Result<MetricsLog> open(const RunPaths& paths, std::optional<int64_t> last_step);
  MetricsLog(MetricsLog&&) noexcept;
  ~MetricsLog();

  // Unavailable when the disk is full; what was written before stays readable.
  Status write(int64_t step, const MetricRow& metrics);

  // Flushes all files to the disk, for a checkpoint.
  Status sync();

 private:
  struct State;
  explicit MetricsLog(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// All whole lines of a metrics file, in order; lines that are not JSON objects with a step are
// counted in `num_bad` and passed over. NotFound if there is no file.
Result<std::vector<MetricLine>> read_metrics(const std::string& path, int64_t* num_bad = nullptr);

}  // namespace gradus::records
