// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace gradus::rewards {

// A program that reads lines and answers each by a line, on one socket that is its standard input
// and output; its standard error is ours. It has a process group of its own, which dies with the
// object. Not thread-safe.
class ChildProcess {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  // Unavailable when the program cannot be started.
  static Result<std::unique_ptr<ChildProcess>> start(const std::vector<std::string>& arguments);
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  // Writes `line` with a line's end, unless it is empty, and reads the next line, without its end.
  // Unavailable: it took longer (is_late), or the program ended, and how; DataLoss: a line of
  // more than 64 MiB. After an error the process is of no more use.
  Result<std::string> exchange(std::string_view line, Deadline deadline);

  bool is_late() const { return is_late_; }  // the last error was the deadline

 private:
  ChildProcess(pid_t pid, int socket) : pid_(pid), socket_(socket) {}
  std::string how_it_ended();

  pid_t pid_;
  int socket_;
  std::string read_;  // beyond the last line
  bool is_late_ = false;
  bool is_reaped_ = false;
};

// Words between spaces; '...' and "..." are taken as they stand. InvalidArgument for a quote that
// does not end, or no word.
Result<std::vector<std::string>> split_command(std::string_view command);

// Appends a text as a JSON string; bytes that are not UTF-8 become U+FFFD.
void append_json_text(std::string_view text, std::string& json);

}  // namespace gradus::rewards
