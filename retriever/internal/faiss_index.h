// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "retriever/index.h"

namespace gradus::retriever::internal {

// FAISS 1.7.3 behind the interface: faiss_flat, hnsw, ivf_flat and ivf_pq.
void register_faiss_indexes(IndexRegistry& registry);

}  // namespace gradus::retriever::internal
