// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

namespace gradus::model {

// A tensor that a file has, or should have, by the file's own name for it.
struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};

std::string shape_text(std::span<const int64_t> shape);  // "[3, 2]"

// DataLoss listing the tensors of `found` that `expected` lacks, the other way round, and those
// that differ in shape: the number of each kind and the first. `source` is where the expectation
// comes from.
Status compare_tensors(const std::vector<NamedShape>& expected,
                       const std::vector<NamedShape>& found, const std::string& source);

}  // namespace gradus::model
