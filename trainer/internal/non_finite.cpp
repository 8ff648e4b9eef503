// SPDX-License-Identifier: Apache-2.0
#include "trainer/internal/non_finite.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>

#include "kernels/optimizer.h"

namespace gradus::trainer {

int64_t micro_batch_end(std::span<const data::PackGroup> groups,
                        const std::vector<bool>& needs_gradient, int64_t micro_batch_tokens,
                        int64_t first, int64_t end, int64_t& num_rows) {
  const bool with_gradient = needs_gradient[static_cast<size_t>(first)];
  int64_t at = first, rows = 0;
  while (at < end && needs_gradient[static_cast<size_t>(at)] == with_gradient) {
    const int64_t group_rows = data::num_pack_rows(groups[static_cast<size_t>(at)]);
    if (at > first && rows + group_rows > micro_batch_tokens) break;
    rows += group_rows;
    ++at;
  }
  num_rows += rows;
  return at;
}

Status check_logprobs(std::span<const float> logprobs, int64_t num_updates) {
  for (const float logprob : logprobs) {
    // Comparisons in a loss would turn it into a gradient of 0.
    if (!std::isnan(logprob)) continue;
    return data_loss(
        "update {}: a log-prob of the model is not a number: its weights have left the range of "
        "floats; the update was not made; lower the learning rate",
        num_updates + 1);
  }
  return {};
}

std::string non_finite_weight(const model::WeightLayout& layout, std::span<const double> squares) {
  for (size_t i = 0; i < layout.places.size(); ++i) {
    if (!std::isfinite(squares[i])) return layout.places[i].hf_name;
  }
  return {};
}

std::string non_finite_weight(const model::WeightLayout& layout, const float* gradient) {
  std::vector<double> squares;
  for (const model::ParameterPlace& place : layout.places) {
    squares.push_back(kernels::sum_of_squares(gradient + place.offset, place.size));
  }
  return non_finite_weight(layout, squares);
}

Status not_finite_status(const NonFinite& found, int64_t num_updates) {
  return data_loss(
      "update {}: {} is not finite (group {}, response {} of the batch); the weights were not "
      "changed; lower the learning rate or look for broken rewards",
      num_updates + 1, found.what, found.group, found.response);
}

namespace {

Result<std::optional<NonFinite>> locate_in_group(std::span<const data::PackGroup> groups,
                                                 int64_t group, bool needs_gradient,
                                                 float temperature,
                                                 const Learner::LossFunction& loss,
                                                 const PackPass& pass) {
  using Found = std::optional<NonFinite>;
  const data::PackGroup& one = groups[static_cast<size_t>(group)];
  const data::Pack pack = data::make_pack({&one, 1});
  std::vector<float> dlogprobs(pack.targets.size()), dentropies(pack.targets.size());
  GRADUS_RETURN_IF_ERROR(pass.forward(pack, temperature, needs_gradient));
  const std::span<const float> logprobs = pass.logprobs(), entropies = pass.entropies();
  if (!loss(group, 1, logprobs, entropies, dlogprobs, dentropies).ok()) return Found();
  size_t target = 0;
  for (size_t r = 0; r < one.responses.size(); ++r) {
    const int64_t num_targets = data::num_pack_targets(one, r);
    for (int64_t t = 0; t < num_targets; ++t, ++target) {
      const bool is_known = std::isfinite(logprobs[target]) && std::isfinite(entropies[target]);
      if (is_known && std::isfinite(dlogprobs[target]) && std::isfinite(dentropies[target]))
        continue;
      return Found(
          NonFinite{group, static_cast<int64_t>(r),
                    fmt::format("the {} of response token {}", is_known ? "loss" : "log-prob", t)});
    }
  }
  if (!needs_gradient) return Found();
  // Log-probs and loss are sound: the backward pass of some response is not.
  size_t begin = 0;
  for (size_t r = 0; r < one.responses.size(); ++r) {
    const size_t end = begin + static_cast<size_t>(data::num_pack_targets(one, r));
    std::vector<float> alone(dlogprobs.size()), alone_entropies(dlogprobs.size());
    std::copy(dlogprobs.begin() + static_cast<std::ptrdiff_t>(begin),
              dlogprobs.begin() + static_cast<std::ptrdiff_t>(end),
              alone.begin() + static_cast<std::ptrdiff_t>(begin));
    std::copy(dentropies.begin() + static_cast<std::ptrdiff_t>(begin),
              dentropies.begin() + static_cast<std::ptrdiff_t>(end),
              alone_entropies.begin() + static_cast<std::ptrdiff_t>(begin));
    GRADUS_RETURN_IF_ERROR(pass.forward(pack, temperature, true));
    const Result<std::string> weight = pass.broken_weight(alone, alone_entropies);
    if (!weight.ok()) return weight.status();
    if (!weight->empty()) {
      return Found(
          NonFinite{group, static_cast<int64_t>(r), fmt::format("the gradient of '{}'", *weight)});
    }
    begin = end;
  }
  return Found();
}

}  // namespace

Result<NonFinite> locate_non_finite(std::span<const data::PackGroup> groups, BlockRange mine,
                                    const std::vector<bool>& needs_gradient, float temperature,
                                    const Learner::LossFunction& loss, const std::string& weight,
                                    const PackPass& pass, comm::Communicator& communicator) {
  std::string found;
  Status status;
  for (int64_t g = mine.first_group; g < mine.end_group && found.empty() && status.ok(); ++g) {
    const Result<std::optional<NonFinite>> here =
        locate_in_group(groups, g, needs_gradient[static_cast<size_t>(g)], temperature, loss, pass);
    status = here.status();
    if (here.ok() && *here) {
      found = fmt::format("{} {} {}", (*here)->group, (*here)->response, (*here)->what);
    }
  }
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator, status));
  for (const std::string& text : communicator.all_gather(found)) {
    if (text.empty()) continue;
    NonFinite result;
    std::istringstream stream(text);
    stream >> result.group >> result.response >> std::ws;
    std::getline(stream, result.what);
    return result;
  }
  return NonFinite{-1, -1, fmt::format("the gradient of '{}'", weight)};
}

}  // namespace gradus::trainer
