// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

// `gradus report`: a run folder as one HTML file that needs nothing else, neither network nor other
// files. It works on what is there: a run that is going on or was killed, missing files, unreadable
// lines, metrics that are not finite, and responses that look like HTML.
namespace gradus::records {

struct ReportSummary {
  std::string path;
  int64_t num_steps = 0;              // steps with metrics
  int64_t num_rollouts = 0;           // responses shown
  std::vector<std::string> warnings;  // what was missing or unreadable; also on the page
};

// Reads `run_folder` and writes `path`, atomically. NotFound if the folder is not there,
// InvalidArgument if it is not a run's, Unavailable if `path` cannot be written.
Result<ReportSummary> write_report(const std::string& run_folder, const std::string& path);

}  // namespace gradus::records
