// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "federated/aggregator.h"

// What rules against bad updates are made of. Results do not depend on the number of threads.
namespace gradus::federated::internal {

// |D_i - D_j|^2, [K * K], by differences (the expansion by dot products cancels when updates are
// alike).
std::vector<double> squared_distances(const Updates& updates);

// Krum's score of each update in `members`: the sum of its distances to the members.size() - f - 2
// nearest others (at least none).
std::vector<double> krum_scores(std::span<const double> distances_KK, size_t num_updates,
                                std::span<const size_t> members, int64_t num_byzantine);

// Coordinates in groups of kColumns, each sorted over the given updates: `use(first_coordinate,
// sorted)` with sorted[i * kColumns + lane], i the rank. Columns beyond P are zero. From several
// threads.
inline constexpr size_t kColumns = 16;
void for_sorted_columns(const Updates& updates, std::span<const size_t> members,
                        const std::function<void(int64_t first, const float* sorted)>& use);

// sum_k w_k D_k in double, in the order of the updates.
void weighted_mean(const Updates& updates, std::span<const double> weights_K,
                   std::span<double> delta_P);
// |D_k - center|^2 of each update.
std::vector<double> squared_distances_to(const Updates& updates, std::span<const double> center_P);

}  // namespace gradus::federated::internal
