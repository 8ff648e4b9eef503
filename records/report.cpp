// SPDX-License-Identifier: Apache-2.0
#include "records/report.h"

#include "common/atomic_file.h"
#include "records/internal/report_data.h"
#include "records/internal/report_html.h"

namespace gradus::records {

Result<ReportSummary> write_report(const std::string& run_folder, const std::string& path) {
  Result<internal::ReportData> data = internal::gather_report(run_folder);
  GRADUS_RETURN_IF_ERROR(data.status());
  GRADUS_RETURN_IF_ERROR(write_file_atomically(path, internal::report_page(*data)));
  return ReportSummary{path, data->num_steps, static_cast<int64_t>(data->rollouts.size()),
                       std::move(data->warnings)};
}

}  // namespace gradus::records
