// SPDX-License-Identifier: Apache-2.0
#include "retriever/corpus_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/aligned_buffer.h"
#include "common/check.h"
#include "common/parallel.h"
#include "kernels/gemm.h"
#include "kernels/logprob.h"
#include "kernels/sampling.h"

namespace gradus::retriever {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Documents scored at once, a multiple of 128 for the noise; with D = 384 they are 384 KiB.
constexpr int64_t kBlock = 256;
// States that one thread takes through the corpus together: each block is read once for all.
constexpr int64_t kMostStates = 32;

Status check(const CorpusQueries& queries, int64_t k) {
  if (!(queries.temperature > 0 && queries.temperature < kInfinity)) {
    return invalid_argument("retrieval policy: temperature must be a positive number, got {}",
                            queries.temperature);
  }
  if (k < 1 || k > queries.num_documents) {
    return invalid_argument(
        "retrieval policy: k must be in [1, {}], the number of documents, got {}",
        queries.num_documents, k);
  }
  GRADUS_CHECK(queries.num_documents < int64_t{1} << 31 && queries.width >= 1,
               "corpus policy: sizes");
  return {};
}

int64_t states_at_once(int64_t num_states) {
  return std::clamp<int64_t>((num_states + num_threads() - 1) / num_threads(), 1, kMostStates);
}

// Scores of some states against one block of documents.
class BlockScores {
 public:
  BlockScores(const CorpusQueries& queries, int64_t first_state, int64_t num_states)
      : queries_(queries), first_(first_state), count_(num_states), scores_(num_states * kBlock) {}

  int64_t compute(int64_t begin) {
    const int64_t n = std::min(kBlock, queries_.num_documents - begin);
    kernels::gemm_forward({.x_MK = queries_.queries_SD + first_ * queries_.width,
                           .x_stride = queries_.width,
                           .w_packed = panels(begin),
                           .y_MN = scores_.data(),
                           .y_stride = kBlock,
                           .m = count_,
                           .n = n,
                           .k = queries_.width});
    return n;
  }
  float* row(int64_t state) { return scores_.data() + state * kBlock; }
  const float* panels(int64_t begin) const { return queries_.documents + begin * queries_.width; }

 private:
  const CorpusQueries& queries_;
  int64_t first_, count_;
  AlignedBuffer scores_;
};

// log of a running sum of exponentials, in double.
struct LogSum {
  double value = -std::numeric_limits<double>::infinity();
  void add(double term) {
    const double larger = std::max(value, term);
    if (larger == -std::numeric_limits<double>::infinity()) return;
    value = larger + std::log1p(std::exp(std::min(value, term) - larger));
  }
};

// One state's list: its logits, the log-sum-exps L_i, and that of all other documents.
struct ListState {
  std::span<const int32_t> places;
  std::vector<double> logits, log_sums;
  LogSum tail;
  bool is_finite = true;

  // Takes the list's scores out of the block, so that the rest is the tail.
  void take(float* scores, int64_t begin, int64_t n, double temperature) {
    for (size_t i = 0; i < places.size(); ++i) {
      const int64_t place = places[i] - begin;
      if (place < 0 || place >= n) continue;
      logits[i] = scores[place] / temperature;
      is_finite = is_finite && std::isfinite(scores[place]);
      scores[place] = -kInfinity;
    }
  }
  // Of scores without the list.
  void add_tail(const float* scores, int64_t n, float temperature) {
    const kernels::LogitStats stats = kernels::logit_stats(scores, n, temperature);
    if (stats.max == -kInfinity) return;  // the list alone stands in this block
    is_finite = is_finite && std::isfinite(stats.max) && std::isfinite(stats.sum);
    tail.add(double{stats.max} + double{stats.log_sum});
  }
  double finish() {
    LogSum sum = tail;
    double logprob = 0;
    log_sums.resize(places.size());
    for (size_t i = places.size(); i-- > 0;) {
      sum.add(logits[i]);
      log_sums[i] = sum.value;
      logprob += logits[i] - sum.value;
    }
    return logprob;
  }
};

// Turns a state's scores of one block into the weights of the documents in d log pi / d q.
void make_weights(const ListState& list, float* scores, int64_t begin, int64_t n,
                  double temperature) {
  double tail_mass = 0;
  for (const double sum : list.log_sums) tail_mass += std::exp(list.tail.value - sum);
  std::vector<std::pair<int64_t, double>> chosen;
  for (size_t i = 0; i < list.places.size(); ++i) {
    const int64_t place = list.places[i] - begin;
    if (place < 0 || place >= n) continue;
    double mass = 0;
    for (size_t step = 0; step <= i; ++step) mass += std::exp(list.logits[i] - list.log_sums[step]);
    chosen.emplace_back(place, (1 - mass) / temperature);
    scores[place] = -kInfinity;
  }
  const double first = std::exp(scores[0] / temperature - list.tail.value);
  // -tail_mass p_j / a for all documents, p the softmax over the tail; the token that this function
  // is for is the first one, which is set anew.
  kernels::logprob_backward({.logits_V = scores,
                             .v = n,
                             .padded_v = kernels::padded(n),
                             .stats = {.max = static_cast<float>(list.tail.value), .sum = 1},
                             .temperature = static_cast<float>(temperature),
                             .token = 0,
                             .dlogprob = static_cast<float>(tail_mass)});
  scores[0] = static_cast<float>(-tail_mass * first / temperature);
  for (const auto& [place, weight] : chosen) scores[place] = static_cast<float>(weight);
}

Status not_finite(int64_t state) {
  return {
      StatusCode::kDataLoss,
      fmt::format("retrieval policy: state {} has scores that are not finite; are the query and "
                  "the documents finite?",
                  state)};
}

}  // namespace

Result<std::vector<Ranking>> draw_from_corpus(const CorpusQueries& queries,
                                              std::span<const DrawKey> keys_S, int64_t k) {
  GRADUS_RETURN_IF_ERROR(check(queries, k));
  GRADUS_CHECK(static_cast<int64_t>(keys_S.size()) == queries.num_queries,
               "draw_from_corpus: one key per query");
  std::vector<std::vector<kernels::NoisyScore>> best(keys_S.size());
  const int64_t at_once = states_at_once(queries.num_queries);
  parallel_for(queries.num_queries, at_once, [&](int64_t from, int64_t to) {
    for (int64_t first = from; first < to; first += at_once) {
      const int64_t count = std::min(at_once, to - first);
      BlockScores block(queries, first, count);
      std::vector<int64_t> filled(static_cast<size_t>(count));
      for (int64_t s = 0; s < count; ++s) best[first + s].resize(static_cast<size_t>(k));
      for (int64_t begin = 0; begin < queries.num_documents; begin += kBlock) {
        const int64_t n = block.compute(begin);
        for (int64_t s = 0; s < count; ++s) {
          const DrawKey& key = keys_S[first + s];
          filled[s] = kernels::gumbel_top_k({.logits_V = block.row(s),
                                             .v = n,
                                             .first_id = begin,
                                             .temperature = queries.temperature,
                                             .seed = retrieval_noise_seed(key.seed),
                                             .position = key.hop,
                                             .k = k},
                                            best[first + s].data(), filled[s]);
        }
      }
      for (int64_t s = 0; s < count; ++s) best[first + s].resize(static_cast<size_t>(filled[s]));
    }
  });
  std::vector<Ranking> rankings(keys_S.size());
  std::vector<int32_t> places;
  for (size_t s = 0; s < best.size(); ++s) {
    if (static_cast<int64_t>(best[s].size()) < k) return not_finite(static_cast<int64_t>(s));
    for (const kernels::NoisyScore& one : best[s]) {
      rankings[s].places.push_back(static_cast<int32_t>(one.id));
    }
    places.insert(places.end(), rankings[s].places.begin(), rankings[s].places.end());
  }
  std::vector<double> logprobs(keys_S.size());
  GRADUS_RETURN_IF_ERROR(corpus_logprobs(queries, places, k, logprobs, nullptr));
  for (size_t s = 0; s < logprobs.size(); ++s) rankings[s].logprob = logprobs[s];
  return rankings;
}

Status corpus_logprobs(const CorpusQueries& queries, std::span<const int32_t> places_Sk, int64_t k,
                       std::span<double> logprobs_S, float* dqueries_SD) {
  GRADUS_RETURN_IF_ERROR(check(queries, k));
  const int64_t num_states = queries.num_queries, width = queries.width;
  GRADUS_CHECK(static_cast<int64_t>(places_Sk.size()) == num_states * k &&
                   static_cast<int64_t>(logprobs_S.size()) == num_states,
               "corpus_logprobs: one list and one log-prob per query");
  std::vector<ListState> lists(static_cast<size_t>(num_states));
  for (int64_t s = 0; s < num_states; ++s) {
    lists[s].places = places_Sk.subspan(static_cast<size_t>(s * k), static_cast<size_t>(k));
    lists[s].logits.resize(static_cast<size_t>(k));
    for (const int32_t place : lists[s].places) {
      if (place < 0 || place >= queries.num_documents) {
        return invalid_argument(
            "retrieval policy: the list of state {} has document {}, but there are {}; expected "
            "numbers in [0, {})",
            s, place, queries.num_documents, queries.num_documents);
      }
      if (std::count(lists[s].places.begin(), lists[s].places.end(), place) > 1) {
        return invalid_argument(
            "retrieval policy: the list of state {} has document {} twice; a list is drawn without "
            "replacement",
            s, place);
      }
    }
  }
  const double temperature = queries.temperature;
  const int64_t at_once = states_at_once(num_states);
  parallel_for(num_states, at_once, [&](int64_t from, int64_t to) {
    for (int64_t first = from; first < to; first += at_once) {
      const int64_t count = std::min(at_once, to - first);
      BlockScores block(queries, first, count);
      for (int64_t begin = 0; begin < queries.num_documents; begin += kBlock) {
        const int64_t n = block.compute(begin);
        for (int64_t s = 0; s < count; ++s) {
          lists[first + s].take(block.row(s), begin, n, temperature);
          lists[first + s].add_tail(block.row(s), n, static_cast<float>(temperature));
        }
      }
      for (int64_t s = 0; s < count; ++s) logprobs_S[first + s] = lists[first + s].finish();
      if (dqueries_SD == nullptr) continue;
      for (int64_t begin = 0; begin < queries.num_documents; begin += kBlock) {
        const int64_t n = block.compute(begin);
        for (int64_t s = 0; s < count; ++s) {
          make_weights(lists[first + s], block.row(s), begin, n, temperature);
        }
        kernels::gemm_backward_input({.dy_MN = block.row(0),
                                      .dy_stride = kBlock,
                                      .w_packed = block.panels(begin),
                                      .dx_MK = dqueries_SD + first * width,
                                      .dx_stride = width,
                                      .m = count,
                                      .n = n,
                                      .k = width,
                                      .accumulate = begin > 0});
      }
    }
  });
  for (int64_t s = 0; s < num_states; ++s) {
    if (!lists[s].is_finite || !std::isfinite(logprobs_S[s])) return not_finite(s);
  }
  return {};
}

}  // namespace gradus::retriever
