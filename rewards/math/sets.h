// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "rewards/math/expression.h"

// Sets of real numbers and matrices, as far as answers need them.
namespace gradus::rewards::math {

bool is_set_kind(Kind kind);  // those that are sets by themselves; a pair in round brackets is not

// Whether two sets of real numbers (finite sets, intervals, R, their unions, intersections and
// differences) have the same members, by the order of all their end points. Nothing when a set has
// other members, or two end points cannot be ordered.
std::optional<bool> are_equal_sets(const Expression& a, const Expression& b);

// Whether the numbers that fulfil a relation, a chain or one of a list are those of the set:
// certain at the end points of the set, sampled between them (a relation that changes its truth
// elsewhere is found with the samples' density). Nothing when that cannot be told.
std::optional<bool> solves(const Expression& relation, const Expression& set);

// Sums, products, powers, transposes and determinants of matrices worked out; other parts as they
// are. Null when shapes do not fit or a determinant is larger than 5 x 5.
Expression with_matrices_evaluated(const Expression& a);

}  // namespace gradus::rewards::math
