// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <mutex>

#include "data/tokenizer.h"
#include "model/peft_adapter.h"
#include "model/sequence_scorer.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"

// `reward_model`: the score of a Bradley-Terry model (gradus reward-model) of prompt and response,
// held in [low, high].
namespace gradus::rewards {
namespace {

// No tokenizer has tokens so long that a text of more bytes a token of context would fit: such a
// text is not even read.
constexpr size_t kMostBytesPerToken = 256;

class ModelReward : public Reward {
 public:
  std::string path;
  model::ModelConfig config;
  double low = -10, high = 10;

  double lower_bound() const override { return low; }
  double upper_bound() const override { return high; }

  int64_t planned_bytes() const override {
    return model::parameter_layout(config).size * int64_t{sizeof(float)} +
           model::TrainingPass::planned_bytes(config, model::SequenceScorer::kPackTokens, false,
                                              false);
  }

  Status load() override {
    if (scorer_ != nullptr) return {};
    Result<std::unique_ptr<data::Tokenizer>> tokenizer = data::Tokenizer::load(path);
    if (!tokenizer.ok()) return tokenizer.status();
    Result<std::unique_ptr<model::Transformer>> transformer = model::Transformer::load(path);
    if (!transformer.ok()) return transformer.status();
    tokenizer_ = std::move(*tokenizer);
    transformer_ = std::move(*transformer);
    scorer_ = std::make_unique<model::SequenceScorer>(*transformer_);
    return {};
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    std::vector<std::vector<int32_t>> sequences;
    std::vector<size_t> scored;  // which parts they are
    for (const Group& group : groups) {
      for (const data::Trajectory& trajectory : group.trajectories) {
        RewardPart& part = parts.emplace_back();
        Result<std::vector<int32_t>> ids = ids_of(*group.prompt, trajectory);
        if (!ids.ok()) {
          part.status = RewardStatus::kError;
          part.detail = ids.status().message();
          continue;
        }
        scored.push_back(parts.size() - 1);
        sequences.push_back(std::move(*ids));
      }
    }
    const std::vector<float> scores = scores_of(sequences);
    for (size_t i = 0; i < scores.size(); ++i) {
      RewardPart& part = parts[scored[i]];
      // Of broken weights: the sum makes an error of a score that is not finite.
      part.score =
          std::isfinite(scores[i]) ? std::clamp(double{scores[i]}, low, high) : double{scores[i]};
    }
    return parts;
  }

 private:
  // Prompt and response as training has them, the end token behind a response that has ended.
  Result<std::vector<int32_t>> ids_of(const data::Prompt& prompt,
                                      const data::Trajectory& trajectory) const {
    GRADUS_CHECK(scorer_ != nullptr, "reward_model: load() comes before scoring");
    const size_t num_bytes = prompt.text.size() + trajectory.text.size();
    const size_t most = kMostBytesPerToken * static_cast<size_t>(config.max_position_embeddings);
    if (num_bytes > most) {
      return invalid_argument("prompt and response have {} bytes, the model's context {} tokens",
                              num_bytes, config.max_position_embeddings);
    }
    Result<std::vector<int32_t>> ids = tokenizer_->encode(prompt.text);
    if (!ids.ok()) return ids.status().with_prefix("prompt");
    const Result<std::vector<int32_t>> response = tokenizer_->encode(trajectory.text);
    if (!response.ok()) return response.status().with_prefix("response");
    ids->insert(ids->end(), response->begin(), response->end());
    const bool has_ended = trajectory.finish_reason == data::FinishReason::kStop;
    if (has_ended && !config.eos_ids.empty()) ids->push_back(config.eos_ids[0]);
    GRADUS_RETURN_IF_ERROR(scorer_->check(*ids));
    return ids;
  }

  std::vector<float> scores_of(std::span<const std::vector<int32_t>> sequences) const {
    const std::lock_guard lock(mutex_);
    return scorer_->score(sequences);
  }

  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<model::SequenceScorer> scorer_;
  mutable std::mutex mutex_;  // of the scorer
};

}  // namespace

Result<std::unique_ptr<Reward>> make_model_reward(const RewardOptions& options) {
  auto reward = std::make_unique<ModelReward>();
  OptionReader reader("reward_model", options);
  reader.text("path", reward->path);
  reader.number("low", -1e6, 1e6, reward->low);
  reader.number("high", -1e6, 1e6, reward->high);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  const auto named = [](const Status& status) {
    return status.with_prefix("reward reward_model: path");
  };
  if (reward->path.empty()) {
    return invalid_argument(
        "reward reward_model: path: is missing; expected the directory of a reward model, as "
        "gradus reward-model writes it");
  }
  if (reward->low >= reward->high) {
    return invalid_argument("reward reward_model: low ({}) must be below high ({})", reward->low,
                            reward->high);
  }
  GRADUS_RETURN_IF_ERROR(named(model::check_holds_model(reward->path)));
  const Result<model::ModelConfig> config = model::load_model_config(reward->path);
  GRADUS_RETURN_IF_ERROR(named(config.status()));
  GRADUS_RETURN_IF_ERROR(named(model::require_head(*config, model::Head::kScore, reward->path)));
  reward->config = *config;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
