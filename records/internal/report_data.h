// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/status.h"
#include "records/rollout_dump.h"

// What a report shows, gathered from a run folder; report_html.h turns it into a page.
namespace gradus::records::internal {

// All metrics by step. Letters: N steps.
struct MetricTable {
  std::vector<int64_t> steps_N;  // ascending
  std::vector<double> times_N;   // seconds since 1970, NaN if unknown
  std::map<std::string, std::vector<double>>
      columns;                // [N] each; kAbsent where a step has no value
  int64_t steps_per_row = 1;  // more than 1 when rows are means of several steps
};

// Marks a value that was not written, unlike one that was written as NaN: a NaN with a payload of
// its own.
double absent_value();
bool is_absent(double value);

struct EvalPoint {
  int64_t step = 0;
  double value = 0;
  double low = 0, high = 0;  // 95 % interval; NaN if unknown
};

// One metric of one task over the evaluations of the run.
struct EvalSeries {
  std::string task;
  std::string metric;        // "mean@4", "best@4", "maj@4"
  int64_t num_problems = 0;  // 0 if unknown
  std::vector<EvalPoint> points;
};

// A response worth reading, and why.
struct PickedRollout {
  RolloutRecord record;
  bool is_best = false, is_worst = false;
  bool is_informative = false;  // of a group whose rewards differ most
};

struct CheckpointRow {
  int64_t step = 0;
  double metric = 0;  // NaN if there is none
  bool is_best = false;
};

struct ReportData {
  std::string name;
  std::string folder;
  std::string config;  // YAML
  MetricTable metrics;
  int64_t num_steps = 0;
  std::vector<EvalSeries> evals;
  std::vector<PickedRollout> rollouts;  // by step
  std::vector<CheckpointRow> checkpoints;
  std::vector<std::string> warnings;
};

Result<ReportData> gather_report(const std::string& run_folder);

// The parts of the above that have logic of their own.
MetricTable thin_out(MetricTable table, size_t max_rows);
std::vector<EvalSeries> find_evals(const MetricTable& table);
std::vector<PickedRollout> pick_rollouts(std::vector<RolloutRecord> records);

}  // namespace gradus::records::internal
