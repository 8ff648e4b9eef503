// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "retriever/index.h"

namespace gradus::retriever::internal {

Result<std::unique_ptr<VectorIndex>> make_flat_index(const IndexOptions& options);

}  // namespace gradus::retriever::internal
