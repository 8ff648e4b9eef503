// SPDX-License-Identifier: Apache-2.0
#include "federated/round.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/parallel.h"
#include "federated/internal/fixed_point.h"
#include "federated/internal/measurement.h"
#include "federated/internal/round_plan.h"
#include "federated/internal/secure_sum.h"

namespace gradus::federated {
namespace {

constexpr int64_t kTile = 2048;        // coordinates that a thread sums at a time: 16 KB of sums
constexpr int64_t kMessage = 1 << 20;  // sums of a rank that travel at a time

// A report as bytes, for other ranks.
struct ReportHead {
  int64_t client_id, base_version, num_samples, num_steps, num_labels;
  double loss, score, train_loss, squared_norm, max_abs;
  int32_t has_steps, has_loss, has_score, has_train_loss;
};

std::string bytes_of(std::span<const ModelDelta> deltas) {
  std::string bytes;
  for (const ModelDelta& delta : deltas) {
    const ClientReport& r = delta.report;
    const ReportHead head = {r.client_id,
                             r.base_version,
                             r.num_samples,
                             r.num_steps.value_or(0),
                             static_cast<int64_t>(r.label_counts.size()),
                             r.loss.value_or(0),
                             r.score.value_or(0),
                             r.train_loss.value_or(0),
                             r.squared_norm,
                             r.max_abs,
                             r.num_steps.has_value(),
                             r.loss.has_value(),
                             r.score.has_value(),
                             r.train_loss.has_value()};
    bytes.append(reinterpret_cast<const char*>(&head), sizeof(head));
    bytes.append(reinterpret_cast<const char*>(r.label_counts.data()),
                 r.label_counts.size() * sizeof(int64_t));
  }
  return bytes;
}

void append_reports(const std::string& bytes, std::vector<ClientReport>& reports) {
  for (size_t at = 0; at < bytes.size();) {
    ReportHead head;
    std::memcpy(&head, bytes.data() + at, sizeof(head));
    at += sizeof(head);
    ClientReport report = {.client_id = head.client_id,
                           .base_version = head.base_version,
                           .num_samples = head.num_samples,
                           .squared_norm = head.squared_norm,
                           .max_abs = head.max_abs};
    if (head.has_steps != 0) report.num_steps = head.num_steps;
    if (head.has_loss != 0) report.loss = head.loss;
    if (head.has_score != 0) report.score = head.score;
    if (head.has_train_loss != 0) report.train_loss = head.train_loss;
    report.label_counts.resize(static_cast<size_t>(head.num_labels));
    if (head.num_labels > 0) {
      std::memcpy(report.label_counts.data(), bytes.data() + at,
                  report.label_counts.size() * sizeof(int64_t));
      at += report.label_counts.size() * sizeof(int64_t);
    }
    reports.push_back(std::move(report));
  }
}

bool by_client(const ClientReport& a, const ClientReport& b) { return a.client_id < b.client_id; }

// The weight of each of this rank's updates in `vector` of the payload.
std::vector<double> local_weights(const RoundResult& result, std::span<const ModelDelta> deltas,
                                  int64_t vector) {
  std::vector<double> weights;
  for (const ModelDelta& delta : deltas) {
    const auto found =
        std::lower_bound(result.reports_K.begin(), result.reports_K.end(), delta.report, by_client);
    const auto k = static_cast<size_t>(found - result.reports_K.begin());
    weights.push_back(internal::weight_in(result, k, vector));
  }
  return weights;
}

// out[j] = sum_k w_k values_k[offset + j] over all ranks.
void weighted_sum(const RoundResult& result, std::span<const ModelDelta> deltas, int64_t vector,
                  int64_t offset, comm::Communicator* ranks, std::span<double> out) {
  // From the reports, which every rank has.
  const int exponent = internal::exponent_of(result, vector);
  const std::vector<double> weights = local_weights(result, deltas, vector);
  const bool is_alone = ranks == nullptr || ranks->size() == 1;
  std::vector<int64_t> sums(is_alone ? 0 : out.size(), 0);
  const auto sum_tile = [&](size_t begin, size_t size) {
    int64_t tile[kTile] = {};
    const std::span<int64_t> target =
        is_alone ? std::span(tile, size) : std::span(sums).subspan(begin, size);
    for (size_t k = 0; k < deltas.size(); ++k) {
      if (weights[k] == 0) continue;
      internal::add_fixed_point(weights[k],
                                deltas[k].values.subspan(static_cast<size_t>(offset) + begin, size),
                                exponent, target);
    }
    if (is_alone) internal::from_fixed_point(target, exponent, out.subspan(begin, size));
  };
  const auto count = static_cast<int64_t>(out.size());
  parallel_for(count, kTile, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; at += kTile) {
      sum_tile(static_cast<size_t>(at), static_cast<size_t>(std::min(kTile, last - at)));
    }
  });
  if (is_alone) return;
  for (size_t begin = 0; begin < sums.size(); begin += kMessage) {
    const size_t size = std::min<size_t>(kMessage, sums.size() - begin);
    const std::vector<int64_t> part(sums.begin() + static_cast<std::ptrdiff_t>(begin),
                                    sums.begin() + static_cast<std::ptrdiff_t>(begin + size));
    const std::vector<int64_t> all = comm::all_gather_values(*ranks, part);
    std::vector<int64_t> total(size, 0);
    for (size_t i = 0; i < all.size(); ++i) total[i % size] += all[i];
    internal::from_fixed_point(total, exponent, out.subspan(begin, size));
  }
}

// The values of all ranks in the order of the reports; `storage` holds those of other ranks.
std::vector<const float*> gathered_values(const RoundResult& result,
                                          std::span<const ModelDelta> deltas,
                                          comm::Communicator* ranks,
                                          std::vector<std::string>& storage) {
  std::vector<std::pair<int64_t, const float*>> rows;
  if (ranks == nullptr || ranks->size() == 1) {
    for (const ModelDelta& delta : deltas) {
      rows.emplace_back(delta.report.client_id, delta.values.data());
    }
  } else {
    std::vector<int64_t> ids;
    std::string bytes;
    for (const ModelDelta& delta : deltas) {
      ids.push_back(delta.report.client_id);
      bytes.append(reinterpret_cast<const char*>(delta.values.data()), delta.values.size_bytes());
    }
    const std::vector<int64_t> all_ids = comm::all_gather_values(*ranks, ids);
    storage = ranks->all_gather(bytes);
    size_t next = 0;
    const size_t row = deltas.empty() ? 0 : deltas[0].values.size();
    size_t total = 0;
    for (const std::string& part : storage) total += part.size();
    const size_t row_bytes = row > 0 ? row * sizeof(float) : total / all_ids.size();
    for (const std::string& part : storage) {
      for (size_t at = 0; at < part.size(); at += row_bytes) {
        rows.emplace_back(all_ids[next++], reinterpret_cast<const float*>(part.data() + at));
      }
    }
  }
  std::sort(rows.begin(), rows.end());
  std::vector<const float*> values;
  for (const auto& [id, row] : rows) values.push_back(row);
  GRADUS_CHECK(values.size() == result.reports_K.size(), "updates and reports differ in number");
  return values;
}

// The same sum by secure aggregation. The updates of all ranks come together on rank 0, which plays
// all its clients.
Status secure_sum(const SecureSum& plan, int64_t round, const RoundResult& result,
                  std::span<const ModelDelta> deltas, int64_t vector, int64_t offset,
                  comm::Communicator* ranks, std::span<double> out) {
  std::vector<std::string> storage;
  const std::vector<const float*> values = gathered_values(result, deltas, ranks, storage);
  const bool is_alone = ranks == nullptr || ranks->size() == 1;
  std::vector<int64_t> sums(out.size(), 0);
  Status status;
  if (is_alone || ranks->rank() == 0) {
    std::vector<internal::SecureTerm> terms;
    for (size_t k = 0; k < values.size(); ++k) {
      terms.push_back({result.reports_K[k].client_id,
                       internal::weight_in(result, k, vector),
                       {values[k] + offset, out.size()}});
    }
    status = internal::add_securely(plan, round, terms, sums);
  }
  if (!is_alone) {
    GRADUS_RETURN_IF_ERROR(comm::agree(*ranks, status));
    std::string bytes;
    if (ranks->rank() == 0) {
      bytes.assign(reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(int64_t));
    }
    const std::vector<std::string> all = ranks->all_gather(bytes);
    std::memcpy(sums.data(), all[0].data(), all[0].size());
  }
  GRADUS_RETURN_IF_ERROR(status);
  internal::from_fixed_point(sums, internal::kSecureExponent, out);
  return {};
}

}  // namespace

void measure(ModelDelta& delta) {
  internal::Measurement measurement;
  measurement.add(delta.values);
  delta.report.squared_norm = measurement.squared_norm();
  delta.report.max_abs = measurement.max_abs();
  // The squares of floats cannot overflow a double: not finite means that a value was not.
  delta.report.is_finite = std::isfinite(delta.report.squared_norm);
}

Status Round::add(ModelDelta delta, bool is_measured) {
  const int64_t length = aggregator_.context().num_parameters * aggregator_.num_vectors();
  if (static_cast<int64_t>(delta.values.size()) != length) {
    refusals_.add(Refusal::kShape);
    return invalid_argument("client {}: its update has {} values; the model has {}",
                            delta.report.client_id, delta.values.size(), length);
  }
  if (!is_measured) measure(delta);
  Refusal cause = Refusal::kReport;
  const Status checked =
      internal::check_report(aggregator_, version_, options_, delta.report, cause);
  if (!checked.ok()) {
    refusals_.add(cause);
    return checked;
  }
  deltas_.push_back(std::move(delta));
  return {};
}

Result<RoundResult> Round::finish(comm::Communicator* ranks) {
  const bool is_alone = ranks == nullptr || ranks->size() == 1;
  RoundResult result;
  if (is_alone) {
    for (const ModelDelta& delta : deltas_) result.reports_K.push_back(delta.report);
  } else {
    for (const std::string& bytes : ranks->all_gather(bytes_of(deltas_))) {
      append_reports(bytes, result.reports_K);
    }
  }
  GRADUS_RETURN_IF_ERROR(internal::weigh(aggregator_, version_, options_, result));
  const std::vector<ClientReport>& reports = result.reports_K;

  const int64_t p = aggregator_.context().num_parameters;
  const int64_t vectors = aggregator_.num_vectors();
  result.delta_P.assign(static_cast<size_t>(p * vectors), 0.0);
  const std::span<double> first = std::span(result.delta_P).subspan(0, static_cast<size_t>(p));
  if (aggregator_.needs_all_updates()) {
    std::vector<std::string> storage;
    aggregator_.combine({reports, gathered_values(result, deltas_, ranks, storage), p},
                        result.weights_K, first);
  } else {
    for (int64_t v = 0; v < vectors && !reports.empty(); ++v) {
      const std::span<double> out =
          std::span(result.delta_P).subspan(static_cast<size_t>(v * p), static_cast<size_t>(p));
      if (options_.secure_sum) {
        GRADUS_RETURN_IF_ERROR(
            secure_sum(*options_.secure_sum, version_, result, deltas_, v, v * p, ranks, out));
      } else {
        weighted_sum(result, deltas_, v, v * p, ranks, out);
      }
    }
  }
  if (options_.private_sum) {
    options_.private_sum->noise.add(options_.private_sum->stddev, version_, 0, first);
  }
  aggregator_.step(reports, result.weights_K, result.delta_P);
  result.delta_P.resize(static_cast<size_t>(p));
  return result;
}

}  // namespace gradus::federated
