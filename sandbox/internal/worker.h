// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "sandbox/internal/control_group.h"
#include "sandbox/internal/wire.h"
#include "sandbox/sandbox.h"

namespace gradus::sandbox {

// A launcher process and the socket to it. Not thread-safe.
class Worker {
 public:
  // `allowed_missing`: bits of layers.
  static Result<std::unique_ptr<Worker>> start(const SandboxOptions& options,
                                               uint32_t allowed_missing);
  ~Worker();  // ends the launcher and all that it runs, and waits for it
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  bool is_ready() const { return reply_.is_ready != 0; }
  const wire::StartReply& start_reply() const { return reply_; }
  // Whether a control group of its own holds it, and which, or why none does.
  Layer control_group() const;

  // A failure after which is_broken() holds is the worker's end.
  Result<RunResult> run(const Run& run);
  bool is_broken() const { return is_broken_; }

 private:
  Worker(pid_t pid, int socket) : pid_(pid), socket_(socket) {}
  void enter_control_group();
  Status exchange(const std::string& request, wire::RunReply& reply, RunResult& result,
                  int64_t timeout_ms);

  pid_t pid_;
  int socket_;
  wire::StartReply reply_;
  bool is_broken_ = false;
  std::unique_ptr<ControlGroup> group_;
  std::string no_group_;  // why there is none
};

}  // namespace gradus::sandbox
