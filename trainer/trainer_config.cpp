// SPDX-License-Identifier: Apache-2.0
#include "trainer/trainer_config.h"

#include "common/config/rules.h"
#include "common/metrics.h"
#include "data/statistics.h"

namespace gradus::trainer {

void OptimizerConfig::visit(FieldVisitor& v) {
  v.field("optimizer", optimizer,
          "How a gradient becomes an update: adamw, or muon for the matrices of the layers with "
          "AdamW for embeddings, head, norms and biases.",
          one_of({"adamw", "muon"}));
  v.field("learning_rate", learning_rate, "Peak learning rate of AdamW.", greater_than(0));
  v.field("lr_schedule", lr_schedule, "Course of the learning rate after the warm-up.",
          one_of({"constant", "linear", "cosine"}));
  v.field("warmup_steps", warmup_steps, "Updates over which the learning rate rises from 0.",
          at_least(0));
  v.field("min_lr_ratio", min_lr_ratio, "Last learning rate as a fraction of the peak.",
          in_closed(0, 1));
  v.field("weight_decay", weight_decay, "Decoupled weight decay.", at_least(0));
  v.field("adam_beta1", adam_beta1, "Decay of the first moment.", in_half_open(0, 1));
  v.field("adam_beta2", adam_beta2, "Decay of the second moment.", in_half_open(0, 1));
  v.field("adam_eps", adam_eps, "Added to the root of the second moment.", greater_than(0));
  v.field("max_grad_norm", max_grad_norm, "Gradients are scaled down to this norm; 0 never scales.",
          at_least(0));
  v.field("muon_learning_rate", muon_learning_rate,
          "Peak learning rate of the matrices that Muon updates; follows the same schedule.",
          greater_than(0));
  v.field("muon_momentum", muon_momentum, "Decay of Muon's momentum (Nesterov).",
          in_half_open(0, 1));
  v.field(
      "muon_scale", muon_scale,
      "Size of Muon's update of a matrix: spectral is sqrt(max(1, rows / columns)); match_adamw "
      "is 0.2 sqrt(max(rows, columns)), for learning rates that suit AdamW.",
      one_of({"spectral", "match_adamw"}));
  v.field(
      "ema_decay", ema_decay,
      "Decay of the running average of the weights, min(ema_decay, (1 + t) / (10 + t)) at update "
      "t; the average is what evaluation uses and checkpoints hold in ema/; 0 keeps none.",
      in_half_open(0, 1));
}

void BackwardConfig::visit(FieldVisitor& v) {
  v.field("micro_batch_tokens", micro_batch_tokens,
          "Most packed tokens in one forward and backward pass; sets the memory needed.",
          at_least(1));
  v.field("gradient_checkpointing", gradient_checkpointing,
          "Whether activations are computed again in the backward pass instead of kept.");
  v.field("reduction_blocks", reduction_blocks,
          "Parts in which a batch's gradient is summed, in one fixed order whatever the number of "
          "ranks; a multiple of it.",
          at_least(1));
  v.field(
      "zero_stage", zero_stage,
      "What the ranks that train share out instead of each holding all of it (ZeRO): 0 nothing, "
      "1 the optimizer's state, 2 gradients too, 3 weights too while an update is made. Changes "
      "no bit, save that on GPUs 2 and 3 sum over ranks after each micro-batch. On CPUs a rank "
      "then goes through the model layer by layer with its whole share of the batch: "
      "micro_batch_tokens bounds a pass alone.",
      in_closed(0, 3));
}

void NumericsConfig::visit(FieldVisitor& v) {
  v.field(
      "layout_invariant", layout_invariant,
      "Whether gradients are summed in one tree whatever the number of ranks, so that weights do "
      "not depend on it; false sums a rank's share as one and then around the ring of ranks.");
}

void CriticConfig::visit(FieldVisitor& v) {
  v.field("path", path,
          "Reward model, or language model, that the critic starts from; empty: the policy's "
          "initial model under a new head.");
  optimizer.visit(v);
  v.field("value_clip", value_clip,
          "The value loss clips a value to so much around that of the start of the step; 0 is off.",
          at_least(0));
  v.field("frozen_policy_steps", frozen_policy_steps,
          "Steps at the start in which the critic alone learns.", at_least(0));
}

void TrainerConfig::visit(FieldVisitor& v) {
  v.field("algorithm", algorithm, "How rewards become a loss.", shorthand_for("name"));
  v.field("num_steps", num_steps, "Rollout batches to train on.", at_least(1));
  v.field("prompts_per_step", prompts_per_step, "Prompts in a rollout batch, over all ranks.",
          at_least(1));
  v.field("mini_batches", mini_batches, "Updates made from each rollout batch.", at_least(1));
  optimizer.visit(v);
  backward.visit(v);
  v.field("critic", critic, "The critic of the advantage gae, which has one whether set or not.");
  v.field("entropy_coef", entropy_coef, "Weight of the entropy bonus; 0 is off.", at_least(0));
  v.field("dynamic_sampling", dynamic_sampling,
          "Whether groups with equal rewards are replaced by further prompts (DAPO).");
  v.field("max_sampling_rounds", max_sampling_rounds,
          "Rollout rounds after which dynamic sampling goes on with what it has.", at_least(1));
  v.field("overlong_buffer_tokens", overlong_buffer_tokens,
          "The reward falls over the last so many tokens before rollout.max_new_tokens (DAPO); 0 "
          "is off.",
          at_least(0));
  v.field("overlong_penalty", overlong_penalty, "Fall of the reward at the full length.",
          at_least(0));
  v.field("allow_mismatch", allow_mismatch,
          "Whether a step goes on when the trainer's log-probs differ from the rollout's.");
  v.field("federated", federated,
          "Clients with prompts of their own train, and a server averages: a step of the run is "
          "then a round (docs/federated.md).");
}

void SftConfig::visit(FieldVisitor& v) {
  v.field("num_steps", num_steps, "Updates that `gradus sft` makes.", at_least(0));
  v.field("batch_rows", batch_rows, "Rows in an update, over all ranks.", at_least(1));
  optimizer.visit(v);
  backward.visit(v);
}

void EvalConfig::visit(FieldVisitor& v) {
  v.field("every_steps", every_steps,
          "Steps between evaluations; 0 never evaluates while training.", at_least(0));
  v.field("num_samples", num_samples, "Responses per problem.",
          in_closed(1, data::kMaxVotingSamples));
  v.field("temperature", temperature, "Divides the logits; 0 is greedy.", at_least(0));
  v.field("max_rows", max_rows, "Problems of data.eval to use; unset: all.", at_least(1));
  v.field("before_training", before_training, "Whether to evaluate the initial model as well.");
}

void RunSettings::visit(FieldVisitor& v) {
  v.field("name", name, "Name of the run and of its folder.", non_empty());
  v.field("dir", dir, "Folder that holds run folders, relative to the working folder.",
          non_empty());
  v.field("seed", seed, "Seed of initial weights and of all sampling.", at_least(0));
  v.field("device", device,
          "Where models compute: cpu, or cuda for one GPU of a rank (docs/gpu.md), for `gradus "
          "train`, `sft` and `eval`. On a GPU weights depend in their last bits on "
          "micro_batch_tokens and the number of ranks, whatever numerics.layout_invariant says.",
          one_of({"cpu", "cuda"}));
  v.field("checkpoint_every", checkpoint_every,
          "Steps between checkpoints; 0 saves only at the end.", at_least(0));
  v.field("keep_checkpoints", keep_checkpoints, "Newest checkpoints that are kept.", at_least(1));
  v.field("save_best_metric", save_best_metric,
          "Metric whose largest value is kept as a checkpoint of its own; none if empty.");
  v.field("dump_rollouts", dump_rollouts, "Whether every response is written to the run folder.");
  v.field("log_level", log_level, "Least important events that are logged.",
          one_of({"error", "warn", "info", "debug"}));
}

void apply_preset(const std::string& name, int64_t max_new_tokens, TrainerConfig& config) {
  config.algorithm = preset(name);
  if (name != "dapo") return;
  config.dynamic_sampling = true;
  config.overlong_buffer_tokens = max_new_tokens / 5;
}

void resolve(TrainerConfig& config, int64_t max_new_tokens) {
  resolve(config.algorithm, max_new_tokens);
  if (config.algorithm.advantage == "gae" && !config.critic) config.critic.emplace();
}

int64_t num_policy_updates(const TrainerConfig& config) {
  const int64_t frozen = config.critic ? config.critic->frozen_policy_steps : 0;
  const int64_t local_steps = config.federated ? config.federated->local_steps : 1;
  return (config.num_steps - frozen) * config.mini_batches * local_steps;
}

Status validate(const OptimizerConfig& config, int64_t num_updates, const std::string& section,
                const std::string& counted) {
  ConfigRules rules;
  rules.require(config.warmup_steps < num_updates || config.warmup_steps == 0,
                "{}.warmup_steps ({}) must be less than the {} updates of the run ({}), or the "
                "peak is never reached",
                section, config.warmup_steps, num_updates, counted);
  rules.require(config.lr_schedule != LrSchedule::kConstant || config.min_lr_ratio == 0,
                "{0}.min_lr_ratio is {1} but {0}.lr_schedule is constant, which ignores it; choose "
                "linear or cosine",
                section, config.min_lr_ratio);
  const OptimizerConfig defaults;
  const bool sets_muon = config.muon_learning_rate != defaults.muon_learning_rate ||
                         config.muon_momentum != defaults.muon_momentum ||
                         config.muon_scale != defaults.muon_scale;
  rules.require(config.optimizer == OptimizerKind::kMuon || !sets_muon,
                "{0}.muon_learning_rate, {0}.muon_momentum or {0}.muon_scale is set but "
                "{0}.optimizer is adamw, which ignores them; set {0}.optimizer to muon",
                section);
  return rules.status();
}

Status validate(const BackwardConfig& backward, int64_t world_size, const std::string& section) {
  if (!backward.layout_invariant) return {};
  ConfigRules rules;
  rules.require(backward.reduction_blocks % world_size == 0,
                "{}.reduction_blocks ({}) must be a multiple of the number of ranks ({})", section,
                backward.reduction_blocks, world_size);
  // Only whole subtrees of a power of two of blocks meet over ranks as they do on one rank.
  const int64_t share = backward.reduction_blocks / world_size;
  rules.require(
      backward.reduction_blocks % world_size != 0 || world_size == 1 || (share & (share - 1)) == 0,
      "{}.reduction_blocks ({}) must be the number of ranks ({}) times a power of two, or "
      "the weights would depend on the number of ranks",
      section, backward.reduction_blocks, world_size);
  return rules.status();
}

namespace {

constexpr char kCountedUpdates[] = "trainer.num_steps times trainer.mini_batches";

void check_critic(const TrainerConfig& config, ConfigRules& rules) {
  const bool needs_critic = config.algorithm.advantage == "gae";
  rules.require(needs_critic || !config.critic,
                "trainer.critic is set but trainer.algorithm.advantage is {}, which has no use for "
                "one; leave it out, or set trainer.algorithm to ppo",
                config.algorithm.advantage);
  if (!needs_critic || !config.critic) return;
  const CriticConfig& critic = *config.critic;
  rules.add(validate(critic.optimizer, config.num_steps * config.mini_batches, "trainer.critic",
                     kCountedUpdates));
  rules.require(critic.optimizer.ema_decay == 0,
                "trainer.critic.ema_decay is {}, but nothing is evaluated by an average of the "
                "critic; leave it out",
                critic.optimizer.ema_decay);
  rules.require(
      config.backward.zero_stage == 0 || critic.optimizer.optimizer == OptimizerKind::kAdamW,
      "trainer.zero_stage is {} but trainer.critic.optimizer is muon, which needs whole matrices "
      "where ranks hold slices; set trainer.zero_stage to 0, or trainer.critic.optimizer to adamw",
      config.backward.zero_stage);
  rules.require(critic.frozen_policy_steps < config.num_steps,
                "trainer.critic.frozen_policy_steps ({}) must be less than trainer.num_steps ({}), "
                "or the policy never learns",
                critic.frozen_policy_steps, config.num_steps);
}

}  // namespace

Status validate(const TrainerConfig& config, int64_t world_size) {
  ConfigRules rules;
  const bool counts_all = num_policy_updates(config) == config.num_steps * config.mini_batches;
  rules.add(validate(config.optimizer, num_policy_updates(config), "trainer",
                     config.federated ? "trainer.num_steps times trainer.federated.local_steps "
                                        "times trainer.mini_batches"
                     : counts_all
                         ? kCountedUpdates
                         : "trainer.num_steps less trainer.critic.frozen_policy_steps, times "
                           "trainer.mini_batches"));
  check_critic(config, rules);
  // A client trains on one rank: its ranks are 1, however many there are.
  if (config.federated) {
    rules.add(validate(*config.federated, config));
    world_size = 1;
  }
  rules.add(validate(config.backward, world_size, "trainer"));
  rules.require(config.prompts_per_step % world_size == 0,
                "trainer.prompts_per_step ({}) must be a multiple of the number of ranks ({})",
                config.prompts_per_step, world_size);
  rules.require(config.prompts_per_step % config.mini_batches == 0,
                "trainer.prompts_per_step ({}) must be a multiple of trainer.mini_batches ({}); a "
                "group is never split between updates",
                config.prompts_per_step, config.mini_batches);
  rules.add(validate(config.algorithm));
  return rules.status();
}

Status validate(const SftConfig& config, int64_t world_size) {
  ConfigRules rules;
  rules.add(validate(config.optimizer, config.num_steps, "sft", "sft.num_steps"));
  rules.add(validate(config.backward, world_size, "sft"));
  rules.require(config.num_steps > 0, "sft.num_steps is 0; say how many updates to make");
  rules.require(config.batch_rows % world_size == 0,
                "sft.batch_rows ({}) must be a multiple of the number of ranks ({})",
                config.batch_rows, world_size);
  return rules.status();
}

Status validate(const RunSettings& config) {
  ConfigRules rules;
  rules.require(config.name.find('/') == std::string::npos && config.name != "..",
                "run.name ('{}') must be a folder name without '/'; put the place into run.dir",
                config.name);
  rules.require(config.save_best_metric.empty() || find_metric(config.save_best_metric) != nullptr,
                "run.save_best_metric: unknown metric '{}'{}", config.save_best_metric,
                did_you_mean(config.save_best_metric, metric_names()));
  return rules.status();
}

}  // namespace gradus::trainer
