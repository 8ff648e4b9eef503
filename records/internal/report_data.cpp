// SPDX-License-Identifier: Apache-2.0
#include "records/internal/report_data.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "records/checkpoint_store.h"
#include "records/internal/durable_file.h"
#include "records/metrics_log.h"
#include "records/run_folder.h"

namespace fs = std::filesystem;

namespace gradus::records::internal {
namespace {

constexpr uint64_t kAbsentBits = 0x7FF8000000000A85ull;  // a quiet NaN
constexpr size_t kMaxRows = 3000;  // more points than a chart has pixels only cost time
constexpr size_t kMaxRolloutSteps = 16;
constexpr size_t kBestPerStep = 3;
constexpr size_t kInformativeGroups = 2;

// Of several lines for one step the last value of each metric counts.
MetricTable make_table(const std::vector<MetricLine>& lines) {
  std::map<int64_t, size_t> row_of;
  for (const MetricLine& line : lines) row_of.emplace(line.step, 0);
  MetricTable table;
  for (auto& [step, row] : row_of) {
    row = table.steps_N.size();
    table.steps_N.push_back(step);
  }
  table.times_N.assign(row_of.size(), std::numeric_limits<double>::quiet_NaN());
  for (const MetricLine& line : lines) {
    const size_t row = row_of.at(line.step);
    table.times_N[row] = line.time;
    for (const auto& [name, value] : line.metrics) {
      auto [column, is_new] = table.columns.try_emplace(name);
      if (is_new) column->second.assign(row_of.size(), absent_value());
      column->second[row] = std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
    }
  }
  return table;
}

// At most `count` of `all`, the first and the last among them.
std::vector<int64_t> spread_over(const std::vector<int64_t>& all, size_t count) {
  if (all.size() <= count) return all;
  std::vector<int64_t> picked;
  for (size_t i = 0; i < count; ++i) picked.push_back(all[i * (all.size() - 1) / (count - 1)]);
  return picked;
}

void gather_rollouts(const RunPaths& paths, ReportData& data) {
  const std::vector<int64_t> steps = rollout_steps(paths.rollouts());
  for (const int64_t step : spread_over(steps, kMaxRolloutSteps)) {
    const std::string path = paths.rollouts(step);
    const Result<std::string> text = read_file(path);
    if (!text.ok()) {
      data.warnings.push_back(text.status().message());
      continue;
    }
    std::vector<RolloutRecord> records;
    size_t num_bad = 0;
    for (size_t begin = 0; begin < text->size();) {
      const size_t end = std::min(text->find('\n', begin), text->size());
      if (end > begin) {
        Result<RolloutRecord> record = parse_rollout_line(text->substr(begin, end - begin));
        if (record.ok()) {
          records.push_back(std::move(*record));
        } else {
          ++num_bad;
        }
      }
      begin = end + 1;
    }
    if (num_bad > 0) data.warnings.push_back(fmt::format("{}: {} unreadable lines", path, num_bad));
    for (PickedRollout& picked : pick_rollouts(std::move(records))) {
      data.rollouts.push_back(std::move(picked));
    }
  }
}

void gather_checkpoints(const RunPaths& paths, ReportData& data) {
  const CheckpointStore store(paths.checkpoints(), {}, [&](const std::string& warning) {
    data.warnings.push_back(warning);
  });
  std::error_code error;
  const std::string best = fs::read_symlink(paths.checkpoints() + "/best", error);
  for (const Checkpoint& checkpoint : store.list()) {
    data.checkpoints.push_back(
        {checkpoint.step, checkpoint.metric.value_or(std::numeric_limits<double>::quiet_NaN()),
         fs::path(checkpoint.folder).filename() == best});
  }
}

}  // namespace

double absent_value() { return std::bit_cast<double>(kAbsentBits); }
bool is_absent(double value) { return std::bit_cast<uint64_t>(value) == kAbsentBits; }

MetricTable thin_out(MetricTable table, size_t max_rows) {
  const size_t num_rows = table.steps_N.size();
  if (num_rows <= max_rows) return table;
  const size_t group = (num_rows + max_rows - 1) / max_rows;
  MetricTable thin;
  thin.steps_per_row = static_cast<int64_t>(group);
  for (size_t begin = 0; begin < num_rows; begin += group) {
    const size_t last = std::min(begin + group, num_rows) - 1;
    thin.steps_N.push_back(table.steps_N[last]);
    thin.times_N.push_back(table.times_N[last]);
  }
  for (const auto& [name, values_N] : table.columns) {
    std::vector<double>& means = thin.columns[name];
    for (size_t begin = 0; begin < num_rows; begin += group) {
      double sum = 0;
      size_t count = 0;
      for (size_t i = begin; i < std::min(begin + group, num_rows); ++i) {
        if (is_absent(values_N[i])) continue;
        sum += values_N[i];
        ++count;
      }
      means.push_back(count == 0 ? absent_value() : sum / static_cast<double>(count));
    }
  }
  return thin;
}

std::vector<EvalSeries> find_evals(const MetricTable& table) {
  constexpr std::string_view kPrefix = "val-core/", kMiddle = "/acc/";
  const auto value_at = [&](const std::string& name, size_t row) {
    const auto column = table.columns.find(name);
    return column == table.columns.end() || is_absent(column->second[row])
               ? std::numeric_limits<double>::quiet_NaN()
               : column->second[row];
  };
  std::vector<EvalSeries> all;
  for (const auto& [name, values_N] : table.columns) {
    const size_t middle = name.rfind(kMiddle);
    if (!name.starts_with(kPrefix) || middle == std::string::npos || middle < kPrefix.size())
      continue;
    EvalSeries series;
    series.task = name.substr(kPrefix.size(), middle - kPrefix.size());
    series.metric = name.substr(middle + kMiddle.size());
    if (series.metric.find('/') != std::string::npos) continue;  // an end of an interval
    for (size_t row = 0; row < values_N.size(); ++row) {
      if (is_absent(values_N[row])) continue;
      series.points.push_back({table.steps_N[row], values_N[row], value_at(name + "/low", row),
                               value_at(name + "/high", row)});
      const double problems = value_at("val-aux/" + series.task + "/num_problems", row);
      if (problems >= 1) series.num_problems = std::llround(problems);
    }
    if (!series.points.empty()) all.push_back(std::move(series));
  }
  // By task; "mean" before "best" and "maj", since it is what training improves.
  std::stable_sort(all.begin(), all.end(), [](const EvalSeries& a, const EvalSeries& b) {
    if (a.task != b.task) return a.task < b.task;
    return a.metric.starts_with("mean") && !b.metric.starts_with("mean");
  });
  return all;
}

std::vector<PickedRollout> pick_rollouts(std::vector<RolloutRecord> records) {
  const size_t count = records.size();
  std::vector<size_t> order;
  for (size_t i = 0; i < count; ++i) {
    if (!std::isnan(records[i].reward)) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return records[a].reward > records[b].reward; });
  std::map<size_t, PickedRollout> picked;  // by place in the file
  for (size_t i = 0; i < std::min(kBestPerStep, order.size()); ++i) {
    picked[order[i]].is_best = true;
    picked[order[order.size() - 1 - i]].is_worst = true;
  }
  // The extremes of the groups with the widest rewards: there the gradient comes from.
  std::map<uint64_t, std::pair<size_t, size_t>> groups;  // prompt -> its best and worst
  for (const size_t i : order) {
    groups.try_emplace(records[i].trajectory.id.prompt_id, i, i).first->second.second = i;
  }
  std::vector<std::pair<double, std::pair<size_t, size_t>>> spreads;
  for (const auto& [prompt_id, ends] : groups) {
    const double spread = records[ends.first].reward - records[ends.second].reward;
    if (spread > 0) spreads.emplace_back(spread, ends);
  }
  std::stable_sort(spreads.begin(), spreads.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; i < std::min(kInformativeGroups, spreads.size()); ++i) {
    picked[spreads[i].second.first].is_informative = true;
    picked[spreads[i].second.second].is_informative = true;
  }
  if (order.empty()) {  // nothing was scored: show what there is
    for (size_t i = 0; i < std::min(kBestPerStep, count); ++i) picked[i];
  }
  std::vector<PickedRollout> result;
  for (auto& [i, rollout] : picked) {
    rollout.record = std::move(records[i]);
    result.push_back(std::move(rollout));
  }
  // Best first, then by prompt, so that the two ends of a group stand together.
  std::stable_sort(result.begin(), result.end(),
                   [](const PickedRollout& a, const PickedRollout& b) {
                     const data::RequestId &x = a.record.trajectory.id, &y = b.record.trajectory.id;
                     if (a.is_best != b.is_best) return a.is_best;
                     if (a.is_informative != b.is_informative) return a.is_informative;
                     if (x.prompt_id != y.prompt_id) return x.prompt_id < y.prompt_id;
                     return x.sample_index < y.sample_index;
                   });
  return result;
}

Result<ReportData> gather_report(const std::string& run_folder) {
  std::error_code error;
  if (!fs::is_directory(run_folder, error)) {
    return not_found("{}: no such folder; give the folder of a run, e.g. runs/NAME", run_folder);
  }
  const RunPaths paths(run_folder);
  if (!fs::exists(paths.metrics(), error) && !fs::exists(paths.config(), error) &&
      !fs::exists(paths.rollouts(), error)) {
    return invalid_argument(
        "{}: not a run folder: no metrics.jsonl, config.resolved.yaml or rollouts in it",
        run_folder);
  }
  ReportData data;
  data.folder = run_folder;
  data.name = fs::weakly_canonical(run_folder, error).filename();
  int64_t num_bad = 0;
  const auto lines = read_metrics(paths.metrics(), &num_bad);
  if (!lines.ok()) {
    data.warnings.push_back(lines.status().message());
  } else {
    MetricTable table = make_table(*lines);
    data.num_steps = static_cast<int64_t>(table.steps_N.size());
    data.evals = find_evals(table);
    data.metrics = thin_out(std::move(table), kMaxRows);
  }
  if (num_bad > 0) {
    data.warnings.push_back(fmt::format("{}: {} unreadable lines", paths.metrics(), num_bad));
  }
  Result<std::string> config = read_file(paths.config());
  if (config.ok()) {
    data.config = std::move(*config);
  } else {
    data.warnings.push_back(config.status().message());
  }
  gather_rollouts(paths, data);
  gather_checkpoints(paths, data);
  return data;
}

}  // namespace gradus::records::internal
