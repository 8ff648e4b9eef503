// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "sandbox/launcher/run.h"

namespace gradus::sandbox {

// The warm Python interpreter of a worker: started when first needed, again if it ends.
class ZygoteProcess {
 public:
  explicit ZygoteProcess(const char* python) : python_(python) {}

  bool is_running() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }
  // Null, or why there is none.
  const char* start();
  // The run's init, or below 0 an error number.
  pid_t start_run(const int fds[kNumRunFds]);
  // When the run is over. False: the zygote has ended.
  bool wait_run();
  // Kills it and every other process of the worker.
  void stop();

 private:
  const char* python_;
  pid_t pid_ = 0;
  int socket_ = -1;
  char failure_[180] = {};
};

}  // namespace gradus::sandbox
