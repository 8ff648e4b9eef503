// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "data/data_config.h"
#include "data/dataset.h"

namespace gradus::data {

// The rows that a `train` or `eval` section names: those of its files, or `num_rows` of its task,
// rows 0, 1, ... of its seed. At most `max_rows` of them (0: all): a dry run looks at the first
// 1,000. Errors as load_rows and Task::create. `options.max_rows` is not looked at.
Result<std::vector<Row>> load_source(const SourceConfig& source, DatasetOptions options,
                                     int64_t max_rows = 0);

}  // namespace gradus::data
