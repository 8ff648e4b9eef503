// SPDX-License-Identifier: Apache-2.0
#include "records/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string_view>

#include "common/strings.h"

namespace gradus::records {
namespace {

constexpr double kRepaintSeconds = 0.1;
constexpr double kPlainPhaseSeconds = 30;
constexpr size_t kHeaderEvery = 25;    // rows: about a screen
constexpr size_t kStepTimesKept = 20;  // steps that the time left is guessed from
constexpr int kColumnWidth = 8;        // format_metric never gives more

constexpr char kLossMetric[] = "actor/pg_loss";
constexpr char kLossNote[] =
    "note: a policy-gradient loss near 0 is as it should be: on the first update after a rollout "
    "every ratio "
    "is 1 and the advantages of a group add up to 0, so the value is about 0 while the gradient is "
    "not; watch "
    "the reward";

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

const double* find_value(const MetricRow& metrics, const std::string& name) {
  const auto found = metrics.find(name);
  return found == metrics.end() ? nullptr : &found->second;
}

// "[=====>    ]", `width` columns with the brackets.
std::string progress_bar(double fraction, int width) {
  const int inner = width - 2;
  const int done = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * inner);
  std::string bar(static_cast<size_t>(done), '=');
  if (done < inner) bar += '>';
  bar.resize(static_cast<size_t>(inner), ' ');
  return "[" + bar + "]";
}

}  // namespace

std::vector<TerminalColumn> rl_columns() {
  return {{"critic/rewards/mean", "reward"},
          {"response_length/mean", "length"},
          {kLossMetric, "loss"},
          {"actor/entropy", "entropy"},
          {"actor/grad_norm", "grad"},
          {"mismatch/max_abs_logprob", "mismatch"},
          {"perf/throughput", "tok/s"},
          {"timing_s/step", "s/step"}};
}

std::vector<TerminalColumn> sft_columns() {
  return {{"train/loss", "loss"},       {"val/loss", "val loss"},
          {"train/grad_norm", "grad"},  {"train/lr", "lr"},
          {"training/epoch", "epoch"},  {"perf/total_num_tokens", "tokens"},
          {"perf/throughput", "tok/s"}, {"timing_s/step", "s/step"}};
}

std::vector<TerminalColumn> preference_columns() {
  return {{"train/loss", "loss"},        {"rewards/accuracies", "accuracy"},
          {"rewards/margins", "margin"}, {"val/rewards/accuracies", "val acc"},
          {"train/grad_norm", "grad"},   {"train/lr", "lr"},
          {"perf/throughput", "tok/s"},  {"timing_s/step", "s/step"}};
}

std::vector<TerminalColumn> federated_columns() {
  return {{"federated/accuracy", "accuracy"},
          {"federated/test_loss", "val loss"},
          {"federated/train_loss", "loss"},
          {"federated/updates", "updates"},
          {"federated/weights/max", "max w"},
          {"federated/clock_s", "clock"},
          {"federated/client_rounds_per_s", "client/s"},
          {"timing_s/step", "s/round"}};
}

std::vector<TerminalColumn> harr_columns() {
  return {{"harr/reward", "reward"},         {"harr/em", "em"},
          {"harr/recall", "recall"},         {"val/harr/em", "val em"},
          {"val/harr/recall", "val recall"}, {"harr/effective_documents", "documents"},
          {"actor/grad_norm", "grad"},       {"timing_s/step", "s/step"}};
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto total = static_cast<int64_t>(std::llround(seconds));
  if (total < 60) return fmt::format("{} s", total);
  if (total < 600) return fmt::format("{} min {:02} s", total / 60, total % 60);
  if (total < 3600) return fmt::format("{} min", total / 60);
  if (total < 86400) return fmt::format("{} h {:02} min", total / 3600, total % 3600 / 60);
  return fmt::format("{} d {} h", total / 86400, total % 86400 / 3600);
}

std::string format_metric(double value) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  const double size = std::abs(value);
  if (value == 0) return "0";
  if (size < 1e-3) return fmt::format("{:.1e}", value);
  if (size < 10) return fmt::format("{:.4f}", value);
  if (size < 100) return fmt::format("{:.2f}", value);
  if (size < 9999.5) return fmt::format("{:.1f}", value);
  if (size < 999.95e3) return fmt::format("{:.1f}k", value / 1e3);
  if (size < 999.95e6) return fmt::format("{:.1f}M", value / 1e6);
  return fmt::format("{:.1e}", value);
}

struct RunDisplay::State {
  TerminalOptions options;
  bool is_terminal = false;
  std::mutex mutex;

  int64_t step = 1;  // in progress
  double step_start_s = 0;
  std::deque<double> step_times_s;
  size_t num_rows = 0;
  bool has_explained_loss = false;

  std::string phase, unit;
  int64_t total = 0;
  double phase_start_s = 0;
  std::atomic<int64_t> done{0};
  std::atomic<bool> is_in_phase{false};
  std::atomic<double> last_paint_s{-1e9};
  bool is_painted = false;  // the live line is on the screen

  double now() const { return options.now_s ? options.now_s() : steady_seconds(); }

  int width() const {
    if (options.width > 0) return options.width;
    struct winsize size {};
    const bool known = ::ioctl(options.descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? size.ws_col : 80;
  }

  // A display that cannot be written to must not stop a run: errors are ignored.
  void write(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t written = ::write(options.descriptor, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return;
      text.remove_prefix(static_cast<size_t>(written));
    }
  }

  // The step table's text goes above the live line: wipe it, print, and let the next repaint bring
  // it back.
  void write_above(const std::string& text) {
    write(is_painted ? "\r\x1b[K" + text : text);
    is_painted = false;
    if (is_terminal && is_in_phase) paint();
  }

  double seconds_left() const {
    if (step_times_s.empty() || options.num_steps <= 0) return NAN;
    double sum = 0;
    for (const double time : step_times_s) sum += time;
    const double mean = sum / static_cast<double>(step_times_s.size());
    const double spent = std::min(now() - step_start_s, mean);
    return std::max(0.0, mean * static_cast<double>(options.num_steps - step + 1) - spent);
  }

  std::string step_text() const {
    return options.num_steps > 0 ? fmt::format("{}/{}", step, options.num_steps)
                                 : std::to_string(step);
  }

  std::string phase_text() const {
    return total > 0 ? fmt::format("{}/{} {}", done.load(), total, unit)
                     : fmt::format("{} {}", done.load(), unit);
  }

  void paint();
  void print_phase_line();
  std::string table_row(const std::vector<std::string>& cells) const;
  void print_table_row(const MetricRow& metrics);
  void print_plain_row(const MetricRow& metrics);
  void explain_loss(const MetricRow& metrics);
};

void RunDisplay::State::paint() {
  const double time = now();
  last_paint_s = time;
  const std::string head = fmt::format("step {}  {} ", step_text(), phase);
  std::string tail = fmt::format(" {}  {}", phase_text(), format_duration(time - phase_start_s));
  const double left = seconds_left();
  if (std::isfinite(left)) tail += fmt::format("  left {}", format_duration(left));
  const int columns = width() - 1;
  const int room = columns - static_cast<int>(head.size() + tail.size());
  std::string line = head;
  if (total > 0 && room >= 8) {
    line +=
        progress_bar(static_cast<double>(done) / static_cast<double>(total), std::min(room, 32));
  }
  line += tail;
  if (static_cast<int>(line.size()) > columns)
    line.resize(static_cast<size_t>(std::max(columns, 0)));
  write("\r" + line + "\x1b[K");
  is_painted = true;
}

void RunDisplay::State::print_phase_line() {
  const double time = now();
  last_paint_s = time;
  write(fmt::format("step {}: {} {}, {}\n", step_text(), phase, phase_text(),
                    format_duration(time - phase_start_s)));
}

std::string RunDisplay::State::table_row(const std::vector<std::string>& cells) const {
  const size_t step_width = std::max<size_t>(7, 2 * std::to_string(options.num_steps).size() + 1);
  std::string row = fmt::format("{:>{}}", cells[0], step_width);
  const auto columns = static_cast<size_t>(std::max(width() - 1, 0));
  for (size_t i = 1; i < cells.size() && row.size() + kColumnWidth + 1 <= columns; ++i) {
    row += fmt::format(" {:>{}}", cells[i], kColumnWidth);
  }
  return row + "\n";
}

void RunDisplay::State::print_table_row(const MetricRow& metrics) {
  std::vector<std::string> labels = {"step"}, cells = {step_text()};
  for (const TerminalColumn& column : options.columns) {
    labels.push_back(column.label);
    const double* value = find_value(metrics, column.metric);
    cells.push_back(value == nullptr ? "-" : format_metric(*value));
  }
  std::string text;
  if (num_rows++ % kHeaderEvery == 0) text = "\x1b[1m" + table_row(labels) + "\x1b[0m";
  write_above(text + table_row(cells));
}

void RunDisplay::State::print_plain_row(const MetricRow& metrics) {
  std::string line = fmt::format("step {}", step_text());
  for (const TerminalColumn& column : options.columns) {
    const double* value = find_value(metrics, column.metric);
    line += fmt::format("  {} {}", column.label, value == nullptr ? "-" : format_metric(*value));
  }
  ++step;  // the time left is that of the steps after this one
  step_start_s = now();
  const double left = seconds_left();
  --step;
  if (std::isfinite(left)) line += fmt::format("  left {}", format_duration(left));
  write(line + "\n");
}

void RunDisplay::State::explain_loss(const MetricRow& metrics) {
  const double* loss = find_value(metrics, kLossMetric);
  if (has_explained_loss || loss == nullptr || !(std::abs(*loss) < 1e-2)) return;
  has_explained_loss = true;
  write_above(std::string(kLossNote) + "\n");
}

RunDisplay::RunDisplay(TerminalOptions options) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.options = std::move(options);
  const char* kind = std::getenv("TERM");
  const bool is_dumb = kind == nullptr || std::string_view(kind) == "dumb";
  state.is_terminal =
      state.options.is_terminal.value_or(::isatty(state.options.descriptor) == 1 && !is_dumb);
  state.step = state.options.first_step;
  state.step_start_s = state.now();
}

RunDisplay::~RunDisplay() {
  if (state_->is_painted) state_->write("\r\x1b[K");
}

void RunDisplay::begin_phase(const std::string& name, int64_t total, const std::string& unit) {
  State& state = *state_;
  if (state.options.is_quiet) return;
  const std::lock_guard lock(state.mutex);
  state.phase = name;
  state.unit = unit;
  state.total = total;
  state.done = 0;
  state.phase_start_s = state.now();
  state.is_in_phase = true;
  if (!state.is_terminal) {
    state.last_paint_s = state.phase_start_s;
  } else if (state.phase_start_s - state.last_paint_s >= kRepaintSeconds) {
    state.paint();
  }
}

void RunDisplay::advance_phase(int64_t done) {
  State& state = *state_;
  if (state.options.is_quiet || !state.is_in_phase) return;
  state.done = done;
  const double period = state.is_terminal ? kRepaintSeconds : kPlainPhaseSeconds;
  if (state.now() - state.last_paint_s < period) return;
  const std::lock_guard lock(state.mutex);
  // Another thread may have painted, or ended the phase, while this one waited.
  if (!state.is_in_phase || state.now() - state.last_paint_s < period) return;
  if (state.is_terminal) {
    state.paint();
  } else {
    state.print_phase_line();
  }
}

void RunDisplay::end_phase() { state_->is_in_phase = false; }

void RunDisplay::finish_step(int64_t step, const MetricRow& metrics) {
  State& state = *state_;
  if (state.options.is_quiet) return;
  const std::lock_guard lock(state.mutex);
  state.is_in_phase = false;
  state.step_times_s.push_back(state.now() - state.step_start_s);
  if (state.step_times_s.size() > kStepTimesKept) state.step_times_s.pop_front();
  state.step = step;
  if (state.is_terminal) {
    state.print_table_row(metrics);
  } else {
    state.print_plain_row(metrics);
  }
  state.explain_loss(metrics);
  state.step = step + 1;
  state.step_start_s = state.now();
}

void RunDisplay::print(const std::string& text) {
  State& state = *state_;
  if (state.options.is_quiet) return;
  const std::lock_guard lock(state.mutex);
  state.write_above(text.ends_with('\n') ? text : text + "\n");
}

}  // namespace gradus::records
