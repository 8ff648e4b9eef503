// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "common/status.h"

// Log of events, one line each:
//
//   2026-01-31T12:00:00.123 warn rank=0 rollout: the cache is full preempted=3 cache_mib=64
//
// Rank 0 writes to standard error, and every rank to logs/rank_<n>.log once a run folder is set.
// Line breaks in messages and values are escaped. All functions are thread-safe except
// configure_logging, which is called before other threads exist. Before it is called, info and
// above go to standard error as rank 0.
namespace gradus {

enum class LogLevel { kError, kWarn, kInfo, kDebug };

// `key=value` at the end of a line; any value that fmt prints.
struct LogField {
  std::string key;
  std::string value;

  template <class T>
  LogField(std::string_view name, const T& v) : key(name), value(fmt::format("{}", v)) {}
};
using LogFields = std::initializer_list<LogField>;

struct LogSettings {
  int rank = 0;
  LogLevel level = LogLevel::kInfo;
  std::string run_folder;  // empty: no files; else logs/ is made in it and appended to
};

// Replaces the settings; Unavailable if the log file cannot be made, and then logging stays as it
// was.
Status configure_logging(const LogSettings& settings);

void log_event(LogLevel level, std::string_view module, std::string_view message,
               LogFields fields = {});

inline void log_error(std::string_view module, std::string_view message, LogFields fields = {}) {
  log_event(LogLevel::kError, module, message, fields);
}
inline void log_warn(std::string_view module, std::string_view message, LogFields fields = {}) {
  log_event(LogLevel::kWarn, module, message, fields);
}
inline void log_info(std::string_view module, std::string_view message, LogFields fields = {}) {
  log_event(LogLevel::kInfo, module, message, fields);
}
inline void log_debug(std::string_view module, std::string_view message, LogFields fields = {}) {
  log_event(LogLevel::kDebug, module, message, fields);
}

// Warns the first time a `cause` of the module is named and is silent afterwards. Returns whether
// it warned.
bool warn_once(std::string_view module, std::string_view cause, std::string_view message,
               LogFields fields = {});

// Waits until all lines are with the operating system. Lines at warn and above are flushed at once.
void flush_logs();

}  // namespace gradus
