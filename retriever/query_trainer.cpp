// SPDX-License-Identifier: Apache-2.0
#include "retriever/query_trainer.h"

#include <algorithm>
#include <cmath>

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
      gradients_(model::BertWeights::zeros(embedder.encoder().config())),
      m_(model::BertWeights::zeros(embedder.encoder().config())),
      v_(model::BertWeights::zeros(embedder.encoder().config())) {}

Result<QueryUpdate> QueryTrainer::update(std::span<const RetrievalStep> steps,
                                         const float* vectors_ND) {
  QueryUpdate update;
  if (steps.empty()) return update;
  gradients_.for_each([](float* values, int64_t count, bool) { std::fill_n(values, count, 0.0f); });
  for (size_t from = 0; from < steps.size();) {
    int64_t num_tokens = 0;
    size_t to = from;
    while (to < steps.size() &&
           (to == from ||
            num_tokens + static_cast<int64_t>(steps[to].token_ids.size()) <= kPassTokens)) {
      num_tokens += static_cast<int64_t>(steps[to++].token_ids.size());
    }
    GRADUS_RETURN_IF_ERROR(add_steps(steps.subspan(from, to - from), vectors_ND, update)
                               .with_prefix(fmt::format("steps from {}", from)));
    from = to;
  }
  update.clip_fraction /= static_cast<double>(steps.size());
  update.effective_documents /= static_cast<double>(steps.size());
  apply(update);
  return update;
}

Status QueryTrainer::add_steps(std::span<const RetrievalStep> steps, const float* vectors_ND,
                               QueryUpdate& update) {
  const int64_t d = embedder_.width();
  std::vector<std::vector<int32_t>> texts;
  for (const RetrievalStep& step : steps) texts.push_back(step.token_ids);
  Embedder::TrainingPass pass;
  embedder_.forward(texts, pass);
  std::vector<float> dvectors(pass.vectors.size());
  for (size_t n = 0; n < steps.size(); ++n) {
    const RetrievalStep& step = steps[n];
    std::vector<float> exact(step.pool.size());
    score_pool(pass.vectors.data() + n * static_cast<size_t>(d), vectors_ND, d, step.pool, exact);
    const std::vector<double> scores(exact.begin(), exact.end());
    std::vector<double> slopes(scores.size());
    const Result<double> logprob = ranking_logprob(scores, step.temperature, step.places, slopes);
    if (!logprob.ok()) return logprob.status();
    const double log_ratio = *logprob - step.logprob, ratio = std::exp(log_ratio);
    const double clipped = std::clamp(ratio, 1 - options_.clip_eps, 1 + options_.clip_eps);
    const bool is_clipped = clipped * step.advantage < ratio * step.advantage;
    update.objective += step.weight * std::min(ratio * step.advantage, clipped * step.advantage);
    update.max_abs_log_ratio = std::max(update.max_abs_log_ratio, std::fabs(log_ratio));
    update.clip_fraction += is_clipped ? 1 : 0;
    update.effective_documents += effective_documents(scores, step.temperature);
    const double slope = is_clipped ? 0 : step.weight * step.advantage * ratio;
    for (size_t j = 0; j < step.pool.size() && slope != 0; ++j) {
      const float* document = vectors_ND + step.pool[j] * d;
      const float weight = static_cast<float>(slope * slopes[j]);
      float* to = dvectors.data() + n * static_cast<size_t>(d);
      for (int64_t i = 0; i < d; ++i) to[i] += weight * document[i];
    }
  }
  embedder_.backward(pass, dvectors, gradients_);
  return {};
}

// Ascent: the gradients are of the objective, AdamW goes down.
void QueryTrainer::apply(QueryUpdate& update) {
  double squares = 0;
  gradients_.for_each([&](float* values, int64_t count, bool) {
    squares += kernels::sum_of_squares(values, count);
  });
  update.grad_norm = std::sqrt(squares);
  if (!std::isfinite(update.grad_norm)) {
    update.skipped = true;
    return;
  }
  ++num_updates_;
  const double scale = std::min(1.0, options_.max_grad_norm / (update.grad_norm + 1e-6));
  std::vector<std::pair<float*, bool>> weights;
  std::vector<float*> m, v;
  embedder_.encoder().weights().for_each(
      [&](float* values, int64_t, bool is_matrix) { weights.emplace_back(values, is_matrix); });
  m_.for_each([&](float* values, int64_t, bool) { m.push_back(values); });
  v_.for_each([&](float* values, int64_t, bool) { v.push_back(values); });
  size_t i = 0;
  gradients_.for_each([&](float* values, int64_t count, bool) {
    const auto [tensor, is_matrix] = weights[i];
    const double steps = static_cast<double>(num_updates_);
    kernels::adamw({.weights = tensor,
                    .gradients = values,
                    .m = m[i],
                    .v = v[i],
                    .count = count,
                    .gradient_scale = static_cast<float>(-scale),
                    .learning_rate = static_cast<float>(options_.learning_rate),
                    .beta1 = static_cast<float>(options_.adam_beta1),
                    .beta2 = static_cast<float>(options_.adam_beta2),
                    .eps = static_cast<float>(options_.adam_eps),
                    .weight_decay = is_matrix ? static_cast<float>(options_.weight_decay) : 0.0f,
                    .correction1 = static_cast<float>(1 - std::pow(options_.adam_beta1, steps)),
                    .correction2 = static_cast<float>(1 - std::pow(options_.adam_beta2, steps))});
    ++i;
  });
}

}  // namespace gradus::retriever
