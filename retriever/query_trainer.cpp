// SPDX-License-Identifier: Apache-2.0
#include "retriever/query_trainer.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "comm/communicator.h"
#include "common/check.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "retriever/policy.h"
#include "retriever/rescore.h"

namespace gradus::retriever {
namespace {

// Tokens of one pass, which bounds the memory of its activations.
constexpr int64_t kPassTokens = 4096;

}  // namespace

QueryTrainer::QueryTrainer(Embedder& embedder, const QueryTrainerOptions& options)
    : embedder_(embedder),
      options_(options),
      gradients_(model::BertWeights::zeros(embedder.encoder().config())) {
  if (options.lora_rank > 0) {
    adapter_ = std::make_unique<QueryAdapter>(embedder.encoder(), options.lora_rank,
                                              options.lora_scale, options.lora_seed);
    return;
  }
  m_ = model::BertWeights::zeros(embedder.encoder().config());
  v_ = model::BertWeights::zeros(embedder.encoder().config());
}

// Sums over the steps of a block, sent between ranks as they are.
struct QueryTrainer::Partial {
  double num_steps = 0, objective = 0, max_abs_log_ratio = 0, num_clipped = 0, documents = 0;
};

Result<QueryUpdate> QueryTrainer::update(std::span<const RetrievalStep> steps,
                                         const float* vectors_ND, comm::Communicator* ranks) {
  const int64_t num_ranks = ranks == nullptr ? 1 : ranks->size();
  const int64_t share = kReductionBlocks / num_ranks;
  GRADUS_CHECK(share * num_ranks == kReductionBlocks, "QueryTrainer: ranks must be 1, 2, 4 or 8");
  const int64_t first = ranks == nullptr ? 0 : ranks->rank() * share;
  for (size_t i = 0; i < steps.size(); ++i) {
    GRADUS_CHECK(steps[i].block >= first && steps[i].block < first + share &&
                     (i == 0 || steps[i - 1].block <= steps[i].block),
                 "QueryTrainer: blocks of the steps");
  }
  std::vector<Partial> partials;
  Status status = add_blocks(steps, first, first + share, vectors_ND, gradients_, partials);
  if (ranks != nullptr) status = comm::agree(*ranks, status);
  GRADUS_RETURN_IF_ERROR(status);
  if (ranks != nullptr) partials = comm::all_gather_values(*ranks, partials);
  QueryUpdate update;
  double num_clipped = 0, documents = 0;
  for (const Partial& partial : partials) {
    update.num_steps += static_cast<int64_t>(partial.num_steps);
    update.objective += partial.objective;
    update.max_abs_log_ratio = std::max(update.max_abs_log_ratio, partial.max_abs_log_ratio);
    num_clipped += partial.num_clipped;
    documents += partial.documents;
  }
  if (update.num_steps == 0) return update;
  update.clip_fraction = num_clipped / static_cast<double>(update.num_steps);
  update.effective_documents = documents / static_cast<double>(update.num_steps);
  if (num_ranks > 1) {
    std::vector<float> scratch;
    gradients_.for_each([&](float* values, int64_t count, bool) {
      scratch.resize(static_cast<size_t>(count));
      comm::all_reduce_tree(*ranks, {values, static_cast<size_t>(count)}, scratch);
    });
  }
  apply(update);
  return update;
}

// Sums the gradients of blocks [first, end) along the tree over all blocks: end - first is a power
// of two.
Status QueryTrainer::add_blocks(std::span<const RetrievalStep> steps, int64_t first, int64_t end,
                                const float* vectors_ND, model::BertWeights& sum,
                                std::vector<Partial>& partials) {
  if (end - first == 1) {
    sum.for_each([](float* values, int64_t count, bool) { std::fill_n(values, count, 0.0f); });
    return add_steps(steps, vectors_ND, sum, partials.emplace_back());
  }
  const int64_t middle = (first + end) / 2;
  const auto split = std::ranges::partition_point(
      steps, [middle](const RetrievalStep& step) { return step.block < middle; });
  const auto count = static_cast<size_t>(split - steps.begin());
  GRADUS_RETURN_IF_ERROR(add_blocks(steps.first(count), first, middle, vectors_ND, sum, partials));
  model::BertWeights right = model::BertWeights::zeros(embedder_.encoder().config());
  GRADUS_RETURN_IF_ERROR(
      add_blocks(steps.subspan(count), middle, end, vectors_ND, right, partials));
  std::vector<float*> addends;
  right.for_each([&](float* values, int64_t, bool) { addends.push_back(values); });
  size_t i = 0;
  sum.for_each([&](float* values, int64_t size, bool) {
    kernels::add_in_place(values, addends[i++], size);
  });
  return {};
}

Status QueryTrainer::add_steps(std::span<const RetrievalStep> steps, const float* vectors_ND,
                               model::BertWeights& gradients, Partial& partial) {
  const int64_t d = embedder_.width();
  // Each text once, in the order of its first step.
  std::map<std::vector<int32_t>, size_t> place_of;
  std::vector<const std::vector<int32_t>*> texts;
  std::vector<std::vector<const RetrievalStep*>> steps_of;
  for (const RetrievalStep& step : steps) {
    const auto [place, is_new] = place_of.emplace(step.token_ids, texts.size());
    if (is_new) {
      texts.push_back(&place->first);
      steps_of.emplace_back();
    }
    steps_of[place->second].push_back(&step);
  }
  for (size_t from = 0; from < texts.size();) {
    std::vector<std::vector<int32_t>> pass_texts;
    int64_t num_tokens = 0;
    size_t to = from;
    while (to < texts.size() &&
           (to == from || num_tokens + static_cast<int64_t>(texts[to]->size()) <= kPassTokens)) {
      num_tokens += static_cast<int64_t>(texts[to]->size());
      pass_texts.push_back(*texts[to++]);
    }
    Embedder::TrainingPass pass;
    embedder_.forward(pass_texts, pass);
    std::vector<float> dvectors(pass.vectors.size());
    for (size_t n = from; n < to; ++n) {
      const size_t row = (n - from) * static_cast<size_t>(d);
      for (const RetrievalStep* step : steps_of[n]) {
        GRADUS_RETURN_IF_ERROR(add_step(*step, {pass.vectors.data() + row, static_cast<size_t>(d)},
                                        vectors_ND, dvectors.data() + row, partial)
                                   .with_prefix(fmt::format("a step of block {}", step->block)));
      }
    }
    embedder_.backward(pass, dvectors, gradients);
    from = to;
  }
  return {};
}

// Adds the derivative of the step's term by its query to dquery_D.
Status QueryTrainer::add_step(const RetrievalStep& step, std::span<const float> query_D,
                              const float* vectors_ND, float* dquery_D, Partial& partial) const {
  const auto d = static_cast<int64_t>(query_D.size());
  std::vector<float> exact(step.pool.size());
  score_pool(query_D.data(), vectors_ND, d, step.pool, exact);
  const std::vector<double> scores(exact.begin(), exact.end());
  std::vector<double> slopes(scores.size());
  const Result<double> logprob = ranking_logprob(scores, step.temperature, step.places, slopes);
  if (!logprob.ok()) return logprob.status();
  const double log_ratio = *logprob - step.logprob, ratio = std::exp(log_ratio);
  const double clipped = std::clamp(ratio, 1 - options_.clip_eps, 1 + options_.clip_eps);
  const bool is_clipped = clipped * step.advantage < ratio * step.advantage;
  partial.num_steps += 1;
  partial.objective += step.weight * std::min(ratio * step.advantage, clipped * step.advantage);
  partial.max_abs_log_ratio = std::max(partial.max_abs_log_ratio, std::fabs(log_ratio));
  partial.num_clipped += is_clipped ? 1 : 0;
  partial.documents += effective_documents(scores, step.temperature);
  const double slope = is_clipped ? 0 : step.weight * step.advantage * ratio;
  for (size_t j = 0; j < step.pool.size() && slope != 0; ++j) {
    const float* document = vectors_ND + step.pool[j] * d;
    const float weight = static_cast<float>(slope * slopes[j]);
    for (int64_t i = 0; i < d; ++i) dquery_D[i] += weight * document[i];
  }
  return {};
}

std::vector<QueryTrainer::Tensor> QueryTrainer::tensors() {
  std::vector<Tensor> all;
  if (adapter_ != nullptr) {
    for (QueryAdapter::Factor& factor : adapter_->factors()) {
      all.push_back({factor.values.data(), factor.gradients.data(), factor.m.data(),
                     factor.v.data(), static_cast<int64_t>(factor.values.size()), true});
    }
    return all;
  }
  embedder_.encoder().weights().for_each([&](float* values, int64_t count, bool is_matrix) {
    all.push_back({values, nullptr, nullptr, nullptr, count, is_matrix});
  });
  for (const auto& [from, field] : {std::pair(&gradients_, &Tensor::gradients),
                                    std::pair(&m_, &Tensor::m), std::pair(&v_, &Tensor::v)}) {
    size_t i = 0;
    from->for_each([&all, &i, to = field](float* values, int64_t, bool) { all[i++].*to = values; });
  }
  return all;
}

void QueryTrainer::for_each_state(
    const std::function<void(const std::string& name, std::span<float> values)>& body) {
  int i = 0;
  for (const Tensor& tensor : tensors()) {
    const auto count = static_cast<size_t>(tensor.count);
    if (adapter_ != nullptr) body(fmt::format("lora/{}", i), {tensor.values, count});
    body(fmt::format("adam/m/{}", i), {tensor.m, count});
    body(fmt::format("adam/v/{}", i++), {tensor.v, count});
  }
}

void QueryTrainer::state_was_set(int64_t num_updates) {
  num_updates_ = num_updates;
  if (adapter_ != nullptr) adapter_->merge();
}

// Ascent: the gradients are of the objective, AdamW goes down.
void QueryTrainer::apply(QueryUpdate& update) {
  if (adapter_ != nullptr) adapter_->take_gradients(gradients_);
  const std::vector<Tensor> all = tensors();
  double squares = 0;
  for (const Tensor& tensor : all) {
    squares += kernels::sum_of_squares(tensor.gradients, tensor.count);
  }
  update.grad_norm = std::sqrt(squares);
  if (!std::isfinite(update.grad_norm)) {
    update.skipped = true;
    return;
  }
  ++num_updates_;
  const double scale = std::min(1.0, options_.max_grad_norm / (update.grad_norm + 1e-6));
  const double steps = static_cast<double>(num_updates_);
  for (const Tensor& tensor : all) {
    kernels::adamw(
        {.weights = tensor.values,
         .gradients = tensor.gradients,
         .m = tensor.m,
         .v = tensor.v,
         .count = tensor.count,
         .gradient_scale = static_cast<float>(-scale),
         .learning_rate = static_cast<float>(options_.learning_rate),
         .beta1 = static_cast<float>(options_.adam_beta1),
         .beta2 = static_cast<float>(options_.adam_beta2),
         .eps = static_cast<float>(options_.adam_eps),
         .weight_decay = tensor.is_matrix ? static_cast<float>(options_.weight_decay) : 0.0f,
         .correction1 = static_cast<float>(1 - std::pow(options_.adam_beta1, steps)),
         .correction2 = static_cast<float>(1 - std::pow(options_.adam_beta2, steps))});
  }
  if (adapter_ != nullptr) adapter_->merge();
}

}  // namespace gradus::retriever
