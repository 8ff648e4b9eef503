// SPDX-License-Identifier: Apache-2.0
#include "records/internal/report_html.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <map>
#include <numeric>

#include "common/metrics.h"
#include "common/strings.h"
#include "records/internal/json_text.h"
#include "records/terminal.h"

namespace gradus::records::internal {
namespace {

constexpr size_t kMaxTextBytes = 8000;  // of a prompt or response; the dump has the rest

// Without needless zeros: "1", "0.25", "12.3k".
std::string number(double value, int num_digits = 4) {
  if (std::isnan(value)) return "\xE2\x80\x93";
  const double size = std::abs(value);
  return size >= 1e-3 && size < 1e4 ? fmt::format("{:.{}g}", value, num_digits)
                                    : format_metric(value);
}

constexpr int kHeadlineDigits = 3;

std::string percent(double value) {
  return std::isnan(value) ? "\xE2\x80\x93" : fmt::format("{:.1f}&nbsp;%", 100 * value);
}

std::string format_time(double seconds) {
  if (!std::isfinite(seconds)) return "at an unknown time";
  const auto time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02} UTC", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min);
}

// The finite values of a metric, in order.
std::vector<double> finite_values(const MetricTable& table, const std::string& name) {
  std::vector<double> values;
  const auto column = table.columns.find(name);
  if (column == table.columns.end()) return values;
  std::copy_if(column->second.begin(), column->second.end(), std::back_inserter(values),
               [](double value) { return std::isfinite(value); });
  return values;
}

double mean_of(const std::vector<double>& values, size_t begin, size_t end) {
  return std::accumulate(values.begin() + static_cast<ptrdiff_t>(begin),
                         values.begin() + static_cast<ptrdiff_t>(end), 0.0) /
         static_cast<double>(end - begin);
}

double median_of(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void append_tile(std::string& out, const char* label, const std::string& value,
                 const std::string& detail, const char* kind = "") {
  out += fmt::format(
      "<div class=\"tile {}\"><div class=\"label\">{}</div><div class=\"value\">{}</div>"
      "<div class=\"detail\">{}</div></div>\n",
      kind, label, value, detail);
}

// "0.21 -> 0.83": means of the first and last tenth, since single steps are noisy.
void append_trend_tile(std::string& out, const MetricTable& table, const std::string& name,
                       const char* label) {
  const std::vector<double> values = finite_values(table, name);
  if (values.empty()) return;
  const size_t tenth = std::max<size_t>(1, values.size() / 10);
  const int64_t num_steps = static_cast<int64_t>(tenth) * table.steps_per_row;
  append_tile(
      out, label,
      fmt::format("{} <span class=\"arrow\">\xE2\x86\x92</span> {}",
                  number(mean_of(values, 0, tenth), kHeadlineDigits),
                  number(mean_of(values, values.size() - tenth, values.size()), kHeadlineDigits)),
      num_steps == 1 ? "first and last step"
                     : fmt::format("means of the first and last {} steps", num_steps));
}

void append_tiles(std::string& out, const ReportData& data) {
  out += "<section class=\"tiles\">\n";
  for (const EvalSeries& series : data.evals) {
    if (!series.metric.starts_with("mean@") || series.points.size() < 2) continue;
    const EvalPoint &first = series.points.front(), &last = series.points.back();
    append_tile(
        out,
        fmt::format("{} &middot; {}", escape_html(series.task), escape_html(series.metric)).c_str(),
        fmt::format("{} <span class=\"arrow\">\xE2\x86\x92</span> {}", percent(first.value),
                    percent(last.value)),
        std::isnan(last.low) ? fmt::format("steps {} and {}", first.step, last.step)
                             : fmt::format("95&nbsp;% interval at the end: {} to {}",
                                           percent(last.low), percent(last.high)),
        "strong");
    break;  // the table below has the other tasks
  }
  append_trend_tile(out, data.metrics, "critic/rewards/mean", "Reward");
  append_trend_tile(out, data.metrics, "train/loss", "Supervised loss");
  append_trend_tile(out, data.metrics, "response_length/mean", "Response length (tokens)");
  if (auto values = finite_values(data.metrics, "timing_s/step"); !values.empty()) {
    const double median = median_of(values);
    append_tile(out, "Time per step",
                median < 60 ? fmt::format("{:.3g} s", median) : format_duration(median), "median");
  }
  if (auto values = finite_values(data.metrics, "perf/throughput"); !values.empty()) {
    append_tile(out, "Throughput", number(median_of(values), kHeadlineDigits) + " tokens/s",
                "median, per rank");
  }
  const auto mismatch = data.metrics.columns.find("mismatch/max_abs_logprob");
  if (mismatch != data.metrics.columns.end()) {
    double largest = 0;
    for (const double value : mismatch->second) {
      if (!is_absent(value) && !(value <= largest)) largest = value;
    }
    const bool is_exact = largest == 0;
    append_tile(
        out, "Rollout/trainer mismatch", is_exact ? "0 \xE2\x9C\x93" : number(largest),
        is_exact ? "log-probs equal bit for bit" : "largest log-prob difference: should be 0",
        is_exact ? "good" : "bad");
  }
  out += "</section>\n";
}

// A dot with its interval on a line from 0 to 1, drawn here so that it needs no script.
std::string interval_drawing(const EvalPoint& first, const EvalPoint& last) {
  const auto x = [](double value) { return 4 + 192 * std::clamp(value, 0.0, 1.0); };
  const auto draw = [&](const EvalPoint& point, int y, const char* kind) {
    std::string text;
    if (std::isfinite(point.low) && std::isfinite(point.high)) {
      text = fmt::format("<line class=\"{}\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{}\" y2=\"{}\"/>",
                         kind, x(point.low), x(point.high), y, y);
    }
    if (!std::isfinite(point.value)) return text;
    return text + fmt::format("<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{}\" r=\"4\"/>", kind,
                              x(point.value), y);
  };
  return "<svg class=\"interval\" width=\"200\" height=\"26\" aria-hidden=\"true\">"
         "<line class=\"scale\" x1=\"4\" x2=\"196\" y1=\"13\" y2=\"13\"/>" +
         draw(first, 8, "before") + (last.step > first.step ? draw(last, 18, "after") : "") +
         "</svg>";
}

std::string value_with_interval(const EvalPoint& point) {
  std::string text = percent(point.value);
  if (std::isfinite(point.low) && std::isfinite(point.high)) {
    text += fmt::format(" <span class=\"muted\">[{:.1f}, {:.1f}]</span>", 100 * point.low,
                        100 * point.high);
  }
  return text;
}

void append_evals(std::string& out, const ReportData& data) {
  if (data.evals.empty()) return;
  out +=
      "<section><h2>Evaluation</h2>\n<p class=\"muted\">Accuracy before and after, with 95&nbsp;% "
      "confidence "
      "intervals in brackets. mean@n: mean over n responses to a problem; best@n: one of n is "
      "right; "
      "maj@n: the vote of n is right.</p>\n<div class=\"scroll\"><table class=\"evals\"><thead><tr>"
      "<th>Task</th><th>Metric</th><th class=\"n\">Problems</th><th class=\"n\">First</th>"
      "<th class=\"n\">Last</th><th class=\"n\">Change</th><th class=\"n\">Highest</th>"
      "<th>0 to 100&nbsp;%: <span class=\"key before\">first</span> <span class=\"key "
      "after\">last</span></th>"
      "</tr></thead><tbody>\n";
  for (const EvalSeries& series : data.evals) {
    const EvalPoint &first = series.points.front(), &last = series.points.back();
    const EvalPoint* highest = &first;
    for (const EvalPoint& point : series.points) {
      if (!(point.value <= highest->value) && !std::isnan(point.value)) highest = &point;
    }
    const bool has_change = series.points.size() > 1;
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\" title=\"step {}\">{}</td>"
        "<td class=\"n\" title=\"step {}\">{}</td><td class=\"n\">{}</td>"
        "<td class=\"n\">{} <span class=\"muted\">step {}</span></td><td>{}</td></tr>\n",
        escape_html(series.task), escape_html(series.metric),
        series.num_problems > 0 ? std::to_string(series.num_problems) : "\xE2\x80\x93", first.step,
        value_with_interval(first), last.step,
        has_change ? value_with_interval(last) : "\xE2\x80\x93",
        has_change ? fmt::format("{:+.1f} points", 100 * (last.value - first.value))
                   : "\xE2\x80\x93",
        percent(highest->value), highest->step, interval_drawing(first, last));
  }
  out += "</tbody></table></div></section>\n";
}

void append_charts(std::string& out, const ReportData& data) {
  if (data.metrics.steps_N.empty()) {
    out +=
        "<section><h2>Metrics</h2><p class=\"empty\">No step has been recorded "
        "yet.</p></section>\n";
    return;
  }
  out +=
      "<div class=\"toolbar\" id=\"toolbar\"><label>Smoothing <input type=\"range\" "
      "id=\"smoothing\" "
      "min=\"0\" max=\"0.98\" step=\"0.02\" value=\"0\"><output "
      "id=\"smoothing-value\">off</output></label>"
      "<label>Across <select id=\"across\"><option value=\"step\">step</option>"
      "<option value=\"time\">hours</option></select></label>"
      "<label>Find <input type=\"search\" id=\"find\" placeholder=\"metric name\"></label></div>\n"
      "<noscript><p class=\"empty\">The charts need JavaScript; the tables do not.</p></noscript>\n"
      "<div id=\"charts\"></div>\n";
  if (data.metrics.steps_per_row > 1) {
    out += fmt::format("<p class=\"muted\">Each point is the mean of {} steps.</p>\n",
                       data.metrics.steps_per_row);
  }
}

// Cut between characters.
std::string shortened(const std::string& text) {
  if (text.size() <= kMaxTextBytes) return escape_html(text);
  size_t end = kMaxTextBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return escape_html(text.substr(0, end)) +
         fmt::format("<span class=\"cut\">\xE2\x80\xA6 {} more bytes are in the dump</span>",
                     text.size() - end);
}

void append_parts(std::string& out, const RolloutRecord& record) {
  for (const RewardPartRecord& part : record.parts) {
    const bool is_ok = part.status == "ok";
    std::string text = escape_html(part.name) + " ";
    text += is_ok ? number(part.raw) : "<em>" + escape_html(part.status) + "</em>";
    if (is_ok && part.weight != 1) text += fmt::format(" \xC3\x97 {}", number(part.weight));
    out += fmt::format("<span class=\"chip{}\" title=\"{}\">{}</span>", is_ok ? "" : " failed",
                       escape_html(part.detail), text);
  }
}

void append_rollout(std::string& out, const PickedRollout& picked) {
  const RolloutRecord& record = picked.record;
  const data::Trajectory& trajectory = record.trajectory;
  std::string tags, badges;
  const auto tag = [&](bool is_set, const char* name, const char* label) {
    if (!is_set) return;
    tags += std::string(" ") + name;
    badges += fmt::format("<span class=\"badge {}\">{}</span>", name, label);
  };
  tag(picked.is_best, "best", "best");
  tag(picked.is_worst, "worst", "worst");
  tag(picked.is_informative, "informative", "informative");
  out += fmt::format(
      "<article class=\"rollout\" data-step=\"{}\" data-tags=\"{}\"><header>{}"
      "<b>reward {}</b><span>advantage {}</span><span>{} tokens, {}</span>"
      "<span class=\"muted\">step {} &middot; {} &middot; prompt {} &middot; sample "
      "{}</span></header>",
      record.step, trim(tags), badges, number(record.reward), number(record.advantage),
      static_cast<int64_t>(trajectory.token_ids.size()) - trajectory.prompt_length,
      data::finish_reason_name(trajectory.finish_reason), record.step, escape_html(record.task),
      trajectory.id.prompt_id, trajectory.id.sample_index);
  out += "<div class=\"parts\">";
  append_parts(out, record);
  if (!record.answer.empty()) {
    out += fmt::format("<span class=\"chip answer\">answer {}</span>", shortened(record.answer));
  }
  std::string response = trajectory.text;
  for (const data::Observation& observation : trajectory.observations) {
    response += fmt::format("\n\n[{} answered, {}]{}", observation.tool,
                            data::tool_status_name(observation.status), observation.text);
  }
  out += fmt::format(
      "</div><div class=\"texts\"><div><h4>Prompt</h4><pre dir=\"auto\">{}</pre></div>"
      "<div><h4>Response</h4><pre dir=\"auto\">{}</pre></div></div></article>\n",
      shortened(record.prompt), shortened(response));
}

void append_rollouts(std::string& out, const ReportData& data) {
  out += "<section id=\"rollouts\"><h2>Responses</h2>\n";
  if (data.rollouts.empty()) {
    out += "<p class=\"empty\">No rollouts were dumped (run.dump_rollouts).</p></section>\n";
    return;
  }
  std::map<int64_t, size_t> steps;
  for (const PickedRollout& picked : data.rollouts) ++steps[picked.record.step];
  out +=
      "<p class=\"muted\">Of some steps: the best and the worst responses, and, as informative, "
      "both ends of "
      "the groups whose rewards differ most.</p><div class=\"filters\"><label>Step <select "
      "id=\"rollout-step\">";
  for (const auto& [step, count] : steps) {
    out += fmt::format("<option value=\"{}\"{}>{}</option>", step,
                       step == steps.rbegin()->first ? " selected" : "", step);
  }
  out +=
      "<option value=\"\">all</option></select></label><label>Show <select id=\"rollout-tag\">"
      "<option value=\"\">all</option><option>best</option><option>worst</option>"
      "<option>informative</option></select></label><span class=\"muted\" "
      "id=\"rollout-count\"></span></div>\n";
  for (const PickedRollout& picked : data.rollouts) append_rollout(out, picked);
  out += "</section>\n";
}

void append_checkpoints(std::string& out, const ReportData& data) {
  if (data.checkpoints.empty()) return;
  out +=
      "<section><h2>Checkpoints</h2><div class=\"scroll\"><table><thead><tr><th>Folder</th>"
      "<th class=\"n\">Metric</th></tr></thead><tbody>\n";
  for (const CheckpointRow& row : data.checkpoints) {
    out += fmt::format("<tr><td>checkpoints/step_{}{}</td><td class=\"n\">{}</td></tr>\n", row.step,
                       row.is_best ? " <span class=\"badge best\">best</span>" : "",
                       number(row.metric));
  }
  out += "</tbody></table></div></section>\n";
}

void append_notes(std::string& out, const ReportData& data) {
  if (!data.config.empty()) {
    out +=
        "<section><h2>Configuration</h2><details><summary>config.resolved.yaml</summary><pre "
        "class=\"config\">" +
        escape_html(data.config) + "</pre></details></section>\n";
  }
  if (data.warnings.empty()) return;
  out += "<section class=\"notes\"><h2>Not everything could be read</h2><ul>\n";
  for (const std::string& warning : data.warnings) out += "<li>" + escape_html(warning) + "</li>\n";
  out += "</ul></section>\n";
}

void append_json_column(std::string& out, const std::vector<double>& values_N) {
  out += '[';
  for (size_t i = 0; i < values_N.size(); ++i) {
    if (i > 0) out += ',';
    if (is_absent(values_N[i])) {
      out += "null";
    } else {
      append_json_number(out, values_N[i]);
    }
  }
  out += ']';
}

void append_data(std::string& out, const MetricTable& table) {
  constexpr JsonContext kScript = JsonContext::kHtmlScript;
  out += "<script type=\"application/json\" id=\"data\">{\"steps\":[";
  out += fmt::format("{}", fmt::join(table.steps_N, ","));
  out += "],\"times\":";
  append_json_column(out, table.times_N);
  out += ",\"metrics\":{";
  const char* separator = "";
  for (const auto& [name, values_N] : table.columns) {
    out += separator;
    append_json_string(out, name, kScript);
    const MetricInfo* declared = find_metric(name);
    out += ":{\"unit\":";
    append_json_string(out, declared == nullptr || declared->unit == "1" ? "" : declared->unit,
                       kScript);
    out += ",\"about\":";
    append_json_string(out, declared == nullptr ? "" : declared->meaning, kScript);
    out += ",\"values\":";
    append_json_column(out, values_N);
    out += '}';
    separator = ",\n";
  }
  out += "}}</script>\n";
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  const auto append = [&](std::string_view valid) {
    for (const char c : valid) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '&') {
        out += "&amp;";
      } else if (c == '<') {
        out += "&lt;";
      } else if (c == '>') {
        out += "&gt;";
      } else if (c == '"') {
        out += "&quot;";
      } else if (c == '\'') {
        out += "&#39;";
      } else if (byte < 0x20 && c != '\n' && c != '\t') {
        out += "\xE2\x90";
        out += static_cast<char>(0x80 + byte);
      } else if (byte == 0x7F) {
        out += "\xE2\x90\xA1";
      } else {
        out += c;
      }
    }
  };
  while (const auto bad = first_invalid_utf8(text)) {
    append(text.substr(0, *bad));
    out += "\xEF\xBF\xBD";
    text.remove_prefix(*bad + 1);
  }
  append(text);
  return out;
}

std::string report_page(const ReportData& data) {
  const std::string name = escape_html(data.name);
  std::string out;
  out.reserve(size_t{1} << 20);
  out +=
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'; script-src 'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>" +
      name + " \xC2\xB7 Gradus</title>\n<style>\n";
  out += kReportCss;
  out +=
      "</style></head><body>\n<header class=\"page\"><div><h1>" + name + "</h1><p class=\"muted\">";
  if (!data.metrics.steps_N.empty()) {
    const MetricTable& table = data.metrics;
    out += fmt::format("last recorded step {}, at {}", table.steps_N.back(),
                       format_time(table.times_N.back()));
    const double spent = table.times_N.back() - table.times_N.front();
    if (spent > 0) out += fmt::format(", {} after the first", format_duration(spent));
    out += " &middot; ";
  }
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  out += fmt::format(
      "report of {}</p></div><button id=\"theme\" type=\"button\">Dark</button></header>\n<main>\n",
      format_time(now));
  append_tiles(out, data);
  append_evals(out, data);
  append_charts(out, data);
  append_rollouts(out, data);
  append_checkpoints(out, data);
  append_notes(out, data);
  out += "</main>\n<div id=\"tip\" hidden></div>\n";
  append_data(out, data.metrics);
  out += "<script>\n";
  out += kReportJs;
  out += "</script></body></html>\n";
  return out;
}

}  // namespace gradus::records::internal
