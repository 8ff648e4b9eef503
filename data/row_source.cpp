// SPDX-License-Identifier: Apache-2.0
#include "data/row_source.h"

#include <algorithm>

#include "common/parallel.h"
#include "data/tasks/task.h"

namespace gradus::data {

Result<std::vector<Row>> load_source(const SourceConfig& source, DatasetOptions options,
                                     int64_t max_rows) {
  int64_t num_rows = source.num_rows;
  if (max_rows > 0) num_rows = num_rows > 0 ? std::min(num_rows, max_rows) : max_rows;
  if (source.task.empty()) {
    options.max_rows = num_rows;
    return load_rows(source.files, options);
  }
  const auto task = Task::create(source.task, source.task_options);
  if (!task.ok()) return task.status();
  std::vector<Row> rows(static_cast<size_t>(num_rows));
  std::vector<Status> statuses(rows.size());
  parallel_for(num_rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto row = task->row(static_cast<uint64_t>(source.seed), static_cast<uint64_t>(i));
      if (row.ok()) {
        rows[i] = std::move(*row);
        rows[i].line = i + 1;
      } else {
        statuses[i] = row.status();
      }
    }
  });
  for (const Status& status : statuses) GRADUS_RETURN_IF_ERROR(status);
  return rows;
}

}  // namespace gradus::data
