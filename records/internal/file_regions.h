// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "records/checkpoint_manifest.h"

// The parts of a file that a message can name: the tensors of a safetensors file, the entries of a
// state file.
namespace gradus::records::internal {

// Regions that cover the file in order, hashed. A file of unknown or broken form is one region.
// NotFound or Unavailable when it cannot be read.
Result<std::vector<FileRegion>> hash_regions(const std::string& path, int64_t num_bytes);

}  // namespace gradus::records::internal
