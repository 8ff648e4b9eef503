// SPDX-License-Identifier: Apache-2.0
#include "federated/mlp.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/parallel.h"
#include "common/rng.h"
#include "federated/internal/mlp_pass.h"
#include "kernels/gemm.h"
#include "kernels/logprob.h"

namespace gradus::federated {
namespace {

constexpr int64_t kEvalBatch = 64;

using internal::MlpPass;

// Copies rows of a client into a batch.
void gather(const ClientRows& rows, int64_t width, std::span<const int32_t> which, float* out) {
  for (size_t i = 0; i < which.size(); ++i) {
    std::copy_n(rows.features_NF.data() + which[i] * width, width,
                out + static_cast<int64_t>(i) * width);
  }
}

// The score of a row, from its statistics where that is free.
double score_of(const FloodConfig& config, const float* logits, int64_t classes,
                const kernels::LogitStats& stats) {
  if (config.score == FloodScore::kEnergy && config.temperature == 1) {
    return static_cast<double>(stats.max + stats.log_sum);
  }
  return ood_score(config.score, config.temperature, {logits, static_cast<size_t>(classes)});
}

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  return sum;
}

// MOON's contrastive term of one row (Li et al. 2021, Eq. 3), -log(e^(s_g / T) / (e^(s_g / T) +
// e^(s_p / T))) with cosine similarities of z to the global and the client's previous
// representation; adds scale times its gradient by z.
void add_contrast(const float* z, const float* global, const float* previous, int64_t width,
                  double temperature, double scale, float* gradient) {
  const double zz = dot(z, z, width), gg = dot(global, global, width),
               pp = dot(previous, previous, width);
  if (zz == 0 || gg == 0 || pp == 0) return;  // no direction to compare
  const double norm_g = std::sqrt(zz * gg), norm_p = std::sqrt(zz * pp);
  const double s_g = dot(z, global, width) / norm_g, s_p = dot(z, previous, width) / norm_p;
  // d loss / d s_g = -(1 - q) / T, d loss / d s_p = (1 - q) / T, q the softmax of s_g.
  const double rest = 1 / (1 + std::exp((s_g - s_p) / temperature)) / temperature;
  for (int64_t j = 0; j < width; ++j) {
    const double zj = static_cast<double>(z[j]);
    const double ds_g = static_cast<double>(global[j]) / norm_g - s_g * zj / zz;
    const double ds_p = static_cast<double>(previous[j]) / norm_p - s_p * zj / zz;
    gradient[j] += static_cast<float>(scale * rest * (ds_p - ds_g));
  }
}

class MlpWorker final : public LocalWorker {
 public:
  explicit MlpWorker(const MlpTask& task)
      : task_(task),
        max_batch_(std::max(task.local().batch_size, kEvalBatch)),
        pass_(task.layers(), max_batch_),
        weights_(task.num_parameters()),
        gradient_(task.num_parameters()),
        velocity_(task.num_parameters()) {}

  ClientReport train(const ClientJob& job, std::span<float> update,
                     std::span<float> state) override {
    const ClientTerms& terms = *job.terms;
    task_.data().load(job.client_id, rows_);
    const auto count = static_cast<int64_t>(rows_.labels_N.size());
    ClientReport report{.client_id = job.client_id, .num_samples = count};
    start(job, state);
    if (terms.report_loss) report.loss = mean_over_data(job.model_P.data(), nullptr);
    if (terms.report_labels) {
      report.label_counts.assign(static_cast<size_t>(task_.layers().back().outputs), 0);
      for (const int32_t label : rows_.labels_N) ++report.label_counts[static_cast<size_t>(label)];
    }
    std::vector<int32_t>& order = order_;
    order.resize(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    RngSequence random(job.seed, RngStream::kShuffle);
    int64_t steps = 0;
    double loss = 0;
    for (int64_t epoch = 0; epoch < task_.local().num_epochs; ++epoch) {
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
      for (int64_t begin = 0; begin < count; begin += task_.local().batch_size) {
        const int64_t batch = std::min(task_.local().batch_size, count - begin);
        loss += take_step(
            job, state,
            std::span(order).subspan(static_cast<size_t>(begin), static_cast<size_t>(batch)),
            steps++);
      }
    }
    report.num_steps = steps;
    report.train_loss = loss / static_cast<double>(std::max<int64_t>(steps, 1));
    if (terms.flood.is_on && terms.flood.config.alpha > 0) {
      report.score = mean_over_data(weights_.data(), &terms.flood.config);
    }
    finish(job, steps, update, state);
    return report;
  }

 private:
  int64_t num_parameters() const { return weights_.size(); }
  int64_t width() const { return task_.layers()[0].inputs; }
  int64_t classes() const { return task_.layers().back().outputs; }

  // The last float of a state says whether it has been used before.
  static bool is_used(std::span<const float> state) { return state.back() != 0; }

  void start(const ClientJob& job, std::span<float> state) {
    std::copy(job.model_P.begin(), job.model_P.end(), weights_.data());
    std::fill_n(velocity_.data(), num_parameters(), 0.0f);
    if (state.empty() || !is_used(state)) return;
    for (const TensorSlice& slice : job.terms->personal) {
      std::copy_n(state.begin() + slice.begin, slice.size, weights_.data() + slice.begin);
    }
  }

  // Mean loss of the client's rows, or mean score if `score` is given.
  double mean_over_data(const float* model, const FloodConfig* score) {
    const auto count = static_cast<int64_t>(rows_.labels_N.size());
    double sum = 0;
    for (int64_t begin = 0; begin < count; begin += kEvalBatch) {
      const int64_t batch = std::min(kEvalBatch, count - begin);
      std::copy_n(rows_.features_NF.data() + begin * width(), batch * width(), pass_.input());
      pass_.forward(model, batch);
      for (int64_t i = 0; i < batch; ++i) {
        const float* logits = pass_.logits() + i * pass_.logits_stride();
        const kernels::LogitStats stats = kernels::logit_stats(logits, classes(), 1);
        const auto label = static_cast<size_t>(rows_.labels_N[static_cast<size_t>(begin + i)]);
        sum += score != nullptr
                   ? score_of(*score, logits, classes(), stats)
                   : -static_cast<double>(kernels::token_logprob(stats, logits[label], 1));
      }
    }
    return sum / static_cast<double>(count);
  }

  // One step of SGD on the rows `which`; returns their mean loss before it.
  double take_step(const ClientJob& job, std::span<const float> state,
                   std::span<const int32_t> which, int64_t step) {
    const ClientTerms& terms = *job.terms;
    const auto batch = static_cast<int64_t>(which.size());
    gather(rows_, width(), which, pass_.input());
    pass_.forward(weights_.data(), batch);
    stats_.clear();
    scores_.clear();
    for (int64_t i = 0; i < batch; ++i) {
      const float* logits = pass_.logits() + i * pass_.logits_stride();
      stats_.push_back(kernels::logit_stats(logits, classes(), 1));
      if (terms.flood.is_on) {
        scores_.push_back(score_of(terms.flood.config, logits, classes(), stats_.back()));
      }
    }
    const uint64_t flag_seed =
        terms.flood.is_on ? hash64({job.seed, static_cast<uint64_t>(step)}) : 0;
    const std::vector<double> sample_weights =
        terms.flood.is_on ? flood_sample_weights(terms.flood, scores_, flag_seed)
                          : std::vector<double>();
    double loss = 0;
    for (int64_t i = 0; i < batch; ++i) {
      const auto row = static_cast<size_t>(i);
      float* logits = pass_.logits() + i * pass_.logits_stride();
      const int32_t label = rows_.labels_N[static_cast<size_t>(which[row])];
      loss -= static_cast<double>(kernels::token_logprob(stats_[row], logits[label], 1));
      const double weight = terms.flood.is_on ? sample_weights[row] : 1.0;
      kernels::logprob_backward(
          {.logits_V = logits,
           .v = classes(),
           .padded_v = pass_.logits_stride(),
           .stats = stats_[row],
           .token = label,
           .dlogprob = static_cast<float>(-weight / static_cast<double>(batch))});
    }
    const float* extra = nullptr;
    if (terms.moon_mu > 0) extra = contrast(job, state, which);
    pass_.backward(weights_.data(), batch, extra, gradient_.data());
    add_terms(job, state);
    update_weights(job.lr);
    return loss / static_cast<double>(batch);
  }

  // Gradient of MOON's term by the representation.
  const float* contrast(const ClientJob& job, std::span<const float> state,
                        std::span<const int32_t> which) {
    const auto batch = static_cast<int64_t>(which.size());
    if (!other_) other_ = std::make_unique<MlpPass>(task_.layers(), max_batch_);
    const int64_t size = pass_.representation_width();
    global_.resize(static_cast<size_t>(batch * size));
    extra_.assign(static_cast<size_t>(batch * size), 0.0f);
    const auto represent = [&](const float* model) {
      gather(rows_, width(), which, other_->input());
      other_->forward(model, batch);
    };
    represent(job.model_P.data());
    for (int64_t i = 0; i < batch; ++i) {
      std::copy_n(other_->representation() + i * other_->representation_stride(), size,
                  global_.data() + i * size);
    }
    if (is_used(state)) represent(state.data());  // else the previous model is the global one
    for (int64_t i = 0; i < batch; ++i) {
      add_contrast(pass_.representation() + i * pass_.representation_stride(),
                   global_.data() + i * size,
                   other_->representation() + i * other_->representation_stride(), size,
                   job.terms->moon_temperature, job.terms->moon_mu / static_cast<double>(batch),
                   extra_.data() + i * size);
    }
    return extra_.data();
  }

  void add_terms(const ClientJob& job, std::span<const float> state) {
    const ClientTerms& terms = *job.terms;
    float* g = gradient_.data();
    const float* y = weights_.data();
    const float* x = job.model_P.data();
    const int64_t p = num_parameters();
    const auto pull = static_cast<float>(terms.prox_mu + terms.dyn_alpha);
    if (pull > 0) {
      for (int64_t j = 0; j < p; ++j) g[j] += pull * (y[j] - x[j]);
    }
    if (terms.use_control && !job.broadcast_P.empty()) {
      for (int64_t j = 0; j < p; ++j) g[j] += job.broadcast_P[static_cast<size_t>(j)];
    }
    if (terms.use_control || terms.dyn_alpha > 0) {
      for (int64_t j = 0; j < p; ++j) g[j] -= state[static_cast<size_t>(j)];
    }
  }

  void update_weights(double lr) {
    const auto rate = static_cast<float>(lr);
    const auto momentum = static_cast<float>(task_.local().momentum);
    const auto decay = static_cast<float>(task_.local().weight_decay);
    float* w = weights_.data();
    float* v = velocity_.data();
    const float* g = gradient_.data();
    const int64_t p = num_parameters();
    for (int64_t j = 0; j < p; ++j) {
      v[j] = momentum * v[j] + (g[j] + decay * w[j]);
      w[j] -= rate * v[j];
    }
  }

  void finish(const ClientJob& job, int64_t steps, std::span<float> update,
              std::span<float> state) {
    const ClientTerms& terms = *job.terms;
    const auto p = static_cast<size_t>(num_parameters());
    const float* y = weights_.data();
    for (size_t j = 0; j < p; ++j) update[j] = y[j] - job.model_P[j];
    if (terms.use_control) {  // option II: c_i+ = c_i - c + (x - y) / (K lr)
      const auto scale = static_cast<float>(1 / (static_cast<double>(steps) * job.lr));
      for (size_t j = 0; j < p; ++j) {
        const float c = job.broadcast_P.empty() ? 0 : job.broadcast_P[j];
        const float next = state[j] - c - update[j] * scale;
        update[p + j] = next - state[j];
        state[j] = next;
      }
    }
    if (terms.dyn_alpha > 0) {
      const auto alpha = static_cast<float>(terms.dyn_alpha);
      for (size_t j = 0; j < p; ++j) state[j] -= alpha * update[j];
    }
    if (terms.moon_mu > 0) std::copy_n(y, p, state.begin());
    for (const TensorSlice& slice : terms.personal) {
      std::copy_n(y + slice.begin, slice.size, state.begin() + slice.begin);
      std::fill_n(update.begin() + slice.begin, slice.size, 0.0f);  // it does not leave the client
    }
    if (!state.empty()) state.back() = 1;
  }

  const MlpTask& task_;
  int64_t max_batch_;
  MlpPass pass_;
  std::unique_ptr<MlpPass> other_;
  AlignedBuffer weights_, gradient_, velocity_;
  ClientRows rows_;
  std::vector<int32_t> order_;
  std::vector<kernels::LogitStats> stats_;
  std::vector<double> scores_;
  std::vector<float> global_, extra_;
};

}  // namespace

MlpTask::MlpTask(std::vector<int64_t> hidden, LocalTrainingConfig local,
                 std::unique_ptr<ClientData> data)
    : local_(local), data_(std::move(data)) {
  int64_t inputs = data_->test_rows().num_features;
  hidden.push_back(data_->test_rows().num_classes);
  for (const int64_t outputs : hidden) {
    Layer layer{.inputs = inputs, .outputs = outputs, .weight = num_parameters_};
    layer.bias = layer.weight + kernels::packed_size(outputs, inputs);
    num_parameters_ = layer.bias + kernels::padded(outputs);
    layers_.push_back(layer);
    inputs = outputs;
  }
}

int64_t MlpTask::num_parameters() const { return num_parameters_; }

std::vector<TensorSlice> MlpTask::tensors() const {
  std::vector<TensorSlice> slices;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    slices.push_back({fmt::format("layer{}.weight", l), layer.weight, layer.bias - layer.weight});
    slices.push_back({fmt::format("layer{}.bias", l), layer.bias, kernels::padded(layer.outputs)});
  }
  return slices;
}

int64_t MlpTask::state_size(const ClientTerms& terms) const {
  return terms.needs_state() ? num_parameters_ + 1 : 0;
}

void MlpTask::initialize(uint64_t seed, std::span<float> model) const {
  std::fill(model.begin(), model.end(), 0.0f);
  RngSequence random(seed, RngStream::kInit);
  for (const Layer& layer : layers_) {  // He et al. 2015, uniform
    const double bound = std::sqrt(6.0 / static_cast<double>(layer.inputs));
    std::vector<float> weight(static_cast<size_t>(layer.outputs * layer.inputs));
    for (float& w : weight) w = static_cast<float>(bound * (2 * random.uniform() - 1));
    kernels::pack_weight(weight.data(), layer.inputs, layer.outputs, layer.inputs,
                         model.data() + layer.weight);
  }
}

std::unique_ptr<LocalWorker> MlpTask::make_worker() const {
  return std::make_unique<MlpWorker>(*this);
}

bool MlpTask::evaluate(std::span<const float> model, Evaluation& evaluation) const {
  const LabelledRows& test = data_->test_rows();
  const int64_t blocks = (test.num_rows() + kEvalBatch - 1) / kEvalBatch;
  AlignedBuffer aligned(num_parameters_);
  std::copy(model.begin(), model.end(), aligned.data());
  std::vector<double> losses(static_cast<size_t>(blocks), 0.0);
  std::vector<int64_t> hits(static_cast<size_t>(blocks), 0);
  parallel_for(blocks, 4, [&](int64_t first, int64_t last) {
    MlpPass pass(layers_, kEvalBatch);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kEvalBatch;
      const int64_t batch = std::min(kEvalBatch, test.num_rows() - begin);
      std::copy_n(test.features_MF.data() + begin * test.num_features, batch * test.num_features,
                  pass.input());
      pass.forward(aligned.data(), batch);
      for (int64_t i = 0; i < batch; ++i) {
        const float* logits = pass.logits() + i * pass.logits_stride();
        const int32_t label = test.labels_M[static_cast<size_t>(begin + i)];
        const kernels::LogitStats stats = kernels::logit_stats(logits, test.num_classes, 1);
        losses[static_cast<size_t>(block)] -=
            static_cast<double>(kernels::token_logprob(stats, logits[label], 1));
        hits[static_cast<size_t>(block)] +=
            std::max_element(logits, logits + test.num_classes) - logits == label;
      }
    }
  });
  const auto count = static_cast<double>(test.num_rows());
  evaluation.loss = std::accumulate(losses.begin(), losses.end(), 0.0) / count;
  evaluation.accuracy =
      static_cast<double>(std::accumulate(hits.begin(), hits.end(), int64_t{0})) / count;
  return true;
}

}  // namespace gradus::federated
