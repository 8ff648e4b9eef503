// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "model/parameters.h"
#include "trainer/learner.h"

// What both learners do alike: cut a batch, look at its log-probs, search for what was not finite.
namespace gradus::trainer {

// As many neighbours from `first` on as fit into `micro_batch_tokens` that all need a gradient or
// all do not; adds their rows to `num_rows`. The end, past `first`.
int64_t micro_batch_end(std::span<const data::PackGroup> groups,
                        const std::vector<bool>& needs_gradient, int64_t micro_batch_tokens,
                        int64_t first, int64_t end, int64_t& num_rows);

// DataLoss if one is not a number; `num_updates` were made before.
Status check_logprobs(std::span<const float> logprobs, int64_t num_updates);

// The first weight whose sum of squares (one for each place) is not finite, or nothing.
std::string non_finite_weight(const model::WeightLayout& layout, std::span<const double> squares);
// The same of a gradient [layout.size].
std::string non_finite_weight(const model::WeightLayout& layout, const float* gradient);

// "update N: ... is not finite ...".
Status not_finite_status(const NonFinite& found, int64_t num_updates);

// A learner's pass over one pack, as the search asks for it.
struct PackPass {
  std::function<Status(const data::Pack& pack, float temperature, bool keep_for_backward)> forward;
  std::function<std::span<const float>()> logprobs, entropies;
  // After forward(): the first weight whose gradient of the pack alone is not finite, or nothing.
  std::function<Result<std::string>(std::span<const float> dlogprobs,
                                    std::span<const float> dentropies)>
      broken_weight;
};

// Looks at one group after the other of `mine`, this rank's, which computes the batch a second
// time: it is rare. `weight` is the one whose sum over the batch is not finite. Collective; the
// same on all ranks.
Result<NonFinite> locate_non_finite(std::span<const data::PackGroup> groups, BlockRange mine,
                                    const std::vector<bool>& needs_gradient, float temperature,
                                    const Learner::LossFunction& loss, const std::string& weight,
                                    const PackPass& pass, comm::Communicator& communicator);

}  // namespace gradus::trainer
