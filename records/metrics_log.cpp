// SPDX-License-Identifier: Apache-2.0
#include "records/metrics_log.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/atomic_file.h"
#include "records/internal/durable_file.h"
#include "records/internal/event_file.h"
#include "records/internal/json_text.h"

namespace gradus::records {
namespace {

using Json = nlohmann::ordered_json;

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::optional<double> as_number(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (value == "Infinity") return std::numeric_limits<double>::infinity();
  if (value == "-Infinity") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

double number_at(const Json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end()) return std::numeric_limits<double>::quiet_NaN();
  return as_number(*found).value_or(std::numeric_limits<double>::quiet_NaN());
}

// Calls `handle(row, line)` for each line that is an object with an integer step; returns how many
// are not.
template <class Handle>
int64_t for_each_step_line(std::string_view text, const Handle& handle) {
  int64_t num_bad = 0;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.is_object() && row.contains("step") && row["step"].is_number_integer()) {
      handle(row, line);
    } else if (!line.empty()) {
      ++num_bad;
    }
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return num_bad;
}

// Drops the lines after `last_step` and the unreadable ones.
Status cut_lines(const std::string& path, int64_t last_step) {
  const Result<std::string> text = internal::read_file(path);
  if (!text.ok() && text.status().code() == StatusCode::kNotFound) return {};
  GRADUS_RETURN_IF_ERROR(text.status());
  std::string kept;
  for_each_step_line(*text, [&](const Json& row, std::string_view line) {
    if (row["step"].get<int64_t>() > last_step) return;
    kept += line;
    kept += '\n';
  });
  if (kept == *text) return {};
  return write_file_atomically(path, kept);
}

void append_field(std::string& line, std::string_view name, double value) {
  line += ", ";
  internal::append_json_string(line, name);
  line += ": ";
  internal::append_json_number(line, value);
}

}  // namespace

struct MetricsLog::State {
  internal::OutputFile metrics;
  internal::EventFile events;
};

MetricsLog::MetricsLog(std::unique_ptr<State> state) : state_(std::move(state)) {}
MetricsLog::MetricsLog(MetricsLog&&) noexcept = default;
MetricsLog::~MetricsLog() = default;

Result<MetricsLog> MetricsLog::open(const RunPaths& paths, std::optional<int64_t> last_step) {
  if (last_step.has_value()) {
    GRADUS_RETURN_IF_ERROR(cut_lines(paths.metrics(), *last_step));
  }
  using internal::OutputFile;
  Result<OutputFile> metrics = OutputFile::open(paths.metrics(), OutputFile::Mode::kAppend);
  GRADUS_RETURN_IF_ERROR(metrics.status());
  const double time = seconds_since_1970();
  Result<internal::EventFile> events = internal::EventFile::create(paths.folder(), time);
  GRADUS_RETURN_IF_ERROR(events.status());
  if (last_step.has_value()) {
    GRADUS_RETURN_IF_ERROR(events->write_restart(time, *last_step + 1));
  }
  return MetricsLog(std::unique_ptr<State>(new State{std::move(*metrics), std::move(*events)}));
}

Status MetricsLog::write(int64_t step, const MetricRow& metrics) {
  const double time = std::round(seconds_since_1970() * 1e3) / 1e3;
  std::string line = fmt::format("{{\"step\": {}", step);
  append_field(line, "time", time);
  for (const auto& [name, value] : metrics) append_field(line, name, value);
  line += "}\n";
  GRADUS_RETURN_IF_ERROR(state_->metrics.write(line));
  return state_->events.write_scalars(time, step, metrics);
}

Status MetricsLog::sync() {
  GRADUS_RETURN_IF_ERROR(state_->metrics.sync());
  return state_->events.sync();
}

Result<std::vector<MetricLine>> read_metrics(const std::string& path, int64_t* num_bad) {
  const Result<std::string> text = internal::read_file(path);
  GRADUS_RETURN_IF_ERROR(text.status());
  std::vector<MetricLine> lines;
  const int64_t bad = for_each_step_line(*text, [&](const Json& row, std::string_view) {
    MetricLine line{row["step"].get<int64_t>(), number_at(row, "time"), {}};
    for (const auto& [name, value] : row.items()) {
      if (name == "step" || name == "time") continue;
      if (const auto number = as_number(value)) line.metrics.emplace(name, *number);
    }
    lines.push_back(std::move(line));
  });
  if (num_bad != nullptr) *num_bad = bad;
  return lines;
}

}  // namespace gradus::records
