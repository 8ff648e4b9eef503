// SPDX-License-Identifier: Apache-2.0
#include "trainer/joint_retriever.h"

#include <algorithm>
#include <filesystem>

#include "comm/communicator.h"
#include "common/config/rules.h"
#include "records/state_shards.h"
#include "retriever/policy.h"
#include "rollout/passages.h"
#include "trainer/internal/query_training.h"
#include "trainer/learner.h"

namespace gradus::trainer {
namespace {

constexpr char kFolder[] = "/retriever";
constexpr char kStem[] = "optimizer";

}  // namespace

void JointConfig::visit(FieldVisitor& v) {
  v.field("train", train,
          "Which side learns; the other stays as it is. Lists are drawn in each case.",
          one_of({"both", "policy", "retriever"}));
  v.field("history", history,
          "Whether the state is the query with the prompt and what the model wrote after each "
          "observation, or the query alone.");
  v.field("pool_size", pool_size, "Nearest passages that a list is drawn from.", at_least(1));
  v.field("temperature", temperature, "Divides the scores when a list is drawn.", greater_than(0));
  v.field("clip_eps", clip_eps, "Half-width of the clip of a list's probability ratio.",
          in_open(0, 1));
  optimizer.visit(v);
}

Status validate(const JointConfig& config, const TrainerConfig& trainer,
                const rollout::RolloutConfig& rollout, int64_t world_size) {
  ConfigRules rules;
  add_query_optimizer_rules(rules, config.optimizer, trainer.num_steps, "joint",
                            "trainer.num_steps");
  add_query_ranks_rule(rules, "joint", world_size);
  rules.require(
      trainer.prompts_per_step % retriever::kReductionBlocks == 0 &&
          trainer.backward.reduction_blocks == retriever::kReductionBlocks,
      "trainer.prompts_per_step is {} and trainer.reduction_blocks is {}; with joint the first "
      "must be a multiple of 8 and the second 8, so that a rank trains on its own searches",
      trainer.prompts_per_step, trainer.backward.reduction_blocks);
  rules.require(!trainer.dynamic_sampling,
                "trainer.dynamic_sampling is set with joint; searches of dropped groups would be "
                "lost: set it to false");
  rules.require(!trainer.federated,
                "trainer.federated is set with joint; leave one of the two out");
  int64_t num_searches = 0;
  for (const rollout::ToolConfig& tool : rollout.tools) {
    if (tool.name != "search") continue;
    ++num_searches;
    rules.require(!tool.index.empty(),
                  "rollout.tools: search has no index, but with joint its encoder is trained; name "
                  "the folder instead of a url");
    rules.require(tool.top <= config.pool_size,
                  "rollout.tools: top of search ({}) must be at most joint.pool_size ({})",
                  tool.top, config.pool_size);
  }
  rules.require(num_searches == 1, "rollout.tools has {} tools search; joint needs exactly one",
                num_searches);
  return rules.status();
}

class JointRetriever::SearchTool : public rollout::Tool {
 public:
  explicit SearchTool(JointRetriever& retriever) : retriever_(retriever) {}

  rollout::ToolReply call(std::string_view text, double seconds) const override {
    return call_in({}, text, seconds);
  }
  rollout::ToolReply call_in(const rollout::CallContext& context, std::string_view text,
                             double) const override {
    const Result<std::string> found = retriever_.search(context, std::string(text));
    if (found.ok()) return {data::ToolStatus::kOk, *found};
    return {data::ToolStatus::kError, "search: " + found.status().message()};
  }

 private:
  JointRetriever& retriever_;
};

Result<std::unique_ptr<JointRetriever>> JointRetriever::create(const JointConfig& config,
                                                               const rollout::ToolConfig& tool) {
  Result<retriever::IndexFolder> index = retriever::IndexFolder::open(tool.index);
  if (!index.ok()) return index.status().with_prefix("joint");
  const std::string model = tool.model.empty() ? index->info().model_dir : tool.model;
  Result<std::unique_ptr<retriever::Embedder>> embedder = retriever::Embedder::load(model);
  if (!embedder.ok()) return embedder.status().with_prefix("joint");
  if ((*embedder)->hash() != index->info().encoder_hash) {
    return invalid_argument(
        "joint: {} was built by another encoder than {}; give the tool's model its directory, or "
        "build the index again",
        tool.index, model);
  }
  return std::unique_ptr<JointRetriever>(
      new JointRetriever(config, std::move(*index), std::move(*embedder), tool.top));
}

JointRetriever::JointRetriever(const JointConfig& config, retriever::IndexFolder index,
                               std::unique_ptr<retriever::Embedder> embedder, int64_t list_length)
    : config_(config),
      index_(std::move(index)),
      embedder_(std::move(embedder)),
      list_length_(list_length),
      trainer_(*embedder_, query_trainer_options(config.optimizer, config.clip_eps)) {}

std::unique_ptr<const rollout::Tool> JointRetriever::tool() {
  return std::make_unique<SearchTool>(*this);
}

void JointRetriever::begin_sampling() {
  const std::lock_guard lock(mutex_);
  steps_.clear();
  is_sampling_ = true;
}

void JointRetriever::end_sampling() {
  const std::lock_guard lock(mutex_);
  is_sampling_ = false;
}

Result<std::string> JointRetriever::search(const rollout::CallContext& context,
                                           const std::string& query) {
  const std::lock_guard lock(mutex_);
  std::vector<retriever::SearchTurn> turns;
  for (const std::string& note : context.notes) turns.emplace_back().answer = note;
  retriever::RetrievalStep step;
  Result<std::vector<int32_t>> state =
      retriever::state_tokens(*embedder_, query, turns, context.prompt, config_.history);
  if (!state.ok()) return state.status();
  step.token_ids = std::move(*state);
  step.temperature = config_.temperature;
  const std::vector<float> vector = embedder_->embed_tokens({&step.token_ids, 1});
  const Result<retriever::Hits> hits =
      index_.search(vector, is_sampling_ ? config_.pool_size : list_length_);
  if (!hits.ok()) return hits.status();
  std::vector<double> scores;
  for (size_t t = 0; t < hits->ids.size() && hits->ids[t] >= 0; ++t) {
    step.pool.push_back(hits->ids[t]);
    scores.push_back(hits->scores[t]);
  }
  const Result<retriever::Ranking> drawn =
      retriever::draw_ranking({.scores_K = scores,
                               .ids_K = step.pool,
                               .temperature = config_.temperature,
                               .k = list_length_,
                               .greedy = !is_sampling_,
                               .seed = context.key,
                               .hop = static_cast<uint32_t>(context.number)});
  if (!drawn.ok()) return drawn.status();
  step.places = drawn->places;
  step.logprob = drawn->logprob;
  std::vector<int64_t> passages;
  for (const int32_t place : step.places) passages.push_back(step.pool[static_cast<size_t>(place)]);
  if (is_sampling_) steps_[context.key].insert_or_assign(context.number, std::move(step));
  return rollout::passages_text(index_.corpus(), passages);
}

Status JointRetriever::update(std::span<const Earned> responses, int64_t num_responses,
                              int64_t num_steps, comm::Communicator& ranks, Metrics& metrics) {
  std::vector<retriever::RetrievalStep> steps;
  for (const Earned& response : responses) {
    // A response that never searched has no step and is not given one.
    const auto found = steps_.find(response.key);
    if (found == steps_.end() || response.advantage == 0) continue;
    const double weight =
        1.0 / (static_cast<double>(num_responses) * static_cast<double>(found->second.size()));
    for (const auto& [number, recorded] : found->second) {
      steps.push_back(recorded);
      steps.back().advantage = response.advantage;
      steps.back().weight = weight;
      steps.back().block = response.block;
    }
  }
  trainer_.set_learning_rate(
      learning_rate_at(config_.optimizer, trainer_.num_updates(), num_steps));
  const Result<retriever::QueryUpdate> update = trainer_.update(steps, index_.vectors(), &ranks);
  if (!update.ok()) return update.status().with_prefix("joint");
  metrics.set("harr/steps", static_cast<double>(update->num_steps));
  metrics.set("harr/temperature", config_.temperature);
  if (update->skipped || update->num_steps == 0) {
    metrics.add("training/skipped_updates", 1);
    return {};
  }
  metrics.set("harr/objective", update->objective);
  metrics.set("harr/max_abs_log_ratio", update->max_abs_log_ratio);
  metrics.set("harr/clip_fraction", update->clip_fraction);
  metrics.set("harr/effective_documents", update->effective_documents);
  metrics.set("harr/grad_norm", update->grad_norm);
  return {};
}

Status JointRetriever::save(const std::string& checkpoint_folder) {
  const std::string folder = checkpoint_folder + kFolder;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return unavailable("{}: cannot be made: {}", folder, error.message());
  records::StateSnapshot state;
  add_query_state(trainer_, state);
  state.add("run/num_updates", trainer_.num_updates());
  GRADUS_RETURN_IF_ERROR(embedder_->save(folder));
  return state.write(records::state_shard_path(folder, kStem, 0, 1));
}

Status JointRetriever::load(const std::string& checkpoint_folder) {
  const std::string folder = checkpoint_folder + kFolder;
  auto saved = retriever::Embedder::load(folder);
  if (!saved.ok()) {
    return saved.status().with_prefix(
        "joint: the checkpoint has no encoder that can be read; resume with the configuration that "
        "the run was started with");
  }
  if (!have_one_shape((*saved)->encoder().config(), embedder_->encoder().config())) {
    return invalid_argument("{}: an encoder of another shape than that of the index", folder);
  }
  const Result<records::StateShards> state = records::StateShards::open(folder, kStem);
  if (!state.ok()) return state.status();
  std::swap((*saved)->encoder().weights(), embedder_->encoder().weights());
  GRADUS_RETURN_IF_ERROR(read_query_state(*state, trainer_));
  const Result<int64_t> num_updates = state->read_i64("run/num_updates");
  if (!num_updates.ok()) return num_updates.status();
  trainer_.state_was_set(*num_updates);
  return {};
}

}  // namespace gradus::trainer
