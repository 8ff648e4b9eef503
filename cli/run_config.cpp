// SPDX-License-Identifier: Apache-2.0
#include "cli/run_config.h"

#include <algorithm>
#include <sstream>

#include "common/config/rules.h"
#include "kernels/lm_head_params.h"
#include "rewards/reward.h"
#include "rewards/rubric.h"
#include "trainer/algorithm.h"
#include "trainer/federated_payload.h"

namespace gradus::cli {

void RunConfig::visit(FieldVisitor& v) {
  v.field("run", run, "The run and its folder.");
  v.field("model", model, "The model that the run starts from.");
  v.field("lora", lora, "A low-rank adapter that is trained instead of all weights.");
  v.field("data", data, "Problems and how they become prompts.");
  v.field("rollout", rollout, "Sampling of responses.");
  v.field("reward", reward, "What a response earns.");
  v.field("trainer", trainer, "Reinforcement learning.");
  v.field(
      "harr", harr,
      "Reinforcement learning of a retriever's query encoder: where it is given, `gradus train` "
      "trains that (docs/retrieval.md).");
  v.field(
      "joint", joint,
      "The query encoder of rollout.tools' search as a second policy: where it is given, `gradus "
      "train` draws lists of passages in the rollouts and trains it (docs/retrieval.md).");
  v.field("sft", sft, "Supervised fine-tuning.");
  v.field("dpo", dpo, "Direct preference optimisation: `gradus dpo`.");
  v.field("reward_model", reward_model, "Training of a reward model: `gradus reward-model`.");
  v.field("eval", eval, "Evaluation on data.eval.");
  v.field("federated", federated, "Federated learning, simulated: `gradus federate`.");
  v.field("cluster", cluster, "The ranks of a run (docs/cluster.md).");
  v.field("numerics", numerics, "What may change a bit of the weights (docs/exactness.md).");
}

namespace {

void check_rewards(const rewards::RewardConfig& config, ConfigRules& rules) {
  rewards::RewardRegistry registry("reward");
  rewards::register_builtin_rewards(registry);
  const std::vector<std::string> known = registry.names();
  for (size_t i = 0; i < config.parts.size(); ++i) {
    const rewards::RewardPartConfig& part = config.parts[i];
    const bool is_known = std::find(known.begin(), known.end(), part.name) != known.end();
    rules.add(
        registry.create(part.name, part.options)
            .status()
            .with_prefix(fmt::format("reward.parts[{}].{}", i, is_known ? "options" : "name")));
  }
  if (config.rubric.empty()) return;
  const Status status = rewards::load_rubric(config.rubric, registry).status();
  std::istringstream lines(status.message());
  for (std::string line; std::getline(lines, line);)
    rules.require(false, "reward.rubric: {}", line);
}

void check_optimizer_of_adapter(const RunConfig& config, const trainer::OptimizerConfig& optimizer,
                                const std::string& section, ConfigRules& rules) {
  const bool has_adapter = config.lora.rank > 0 || !config.model.adapter.empty();
  rules.require(!has_adapter || optimizer.optimizer == trainer::OptimizerKind::kAdamW,
                "{}.optimizer is muon but {} is set; Muon makes the updates of whole matrices "
                "orthogonal and is not offered for an adapter's factors: set it to adamw",
                section, config.lora.rank > 0 ? "lora.rank" : "model.adapter");
}

void check_adapter(const RunConfig& config, const trainer::OptimizerConfig& optimizer,
                   const std::string& section, ConfigRules& rules) {
  rules.add(model::validate(config.lora));
  rules.require(config.lora.rank == 0 || !config.model.init,
                "lora.rank is {} but model.init makes a new model, which no file holds for the "
                "adapter to be loaded onto; train it whole, or set model.path",
                config.lora.rank);
  rules.require(config.lora.rank == 0 || config.model.adapter.empty(),
                "both lora.rank and model.adapter are set; the adapter that is trained on brings "
                "its own rank, alpha and targets: drop one of them");
  check_optimizer_of_adapter(config, optimizer, section, rules);
}

void check_zero(const RunConfig& config, const trainer::OptimizerConfig& optimizer,
                const trainer::BackwardConfig& backward, const std::string& section,
                ConfigRules& rules) {
  if (backward.zero_stage == 0) return;
  rules.require(optimizer.optimizer == trainer::OptimizerKind::kAdamW,
                "{0}.zero_stage is {1} but {0}.optimizer is muon, which needs whole matrices where "
                "ranks hold slices; set {0}.zero_stage to 0, or {0}.optimizer to adamw",
                section, backward.zero_stage);
  const bool has_adapter = config.lora.rank > 0 || !config.model.adapter.empty();
  rules.require(!has_adapter,
                "{0}.zero_stage is {1} but {2} is set: of an adapter the gradients and moments are "
                "small, and the model under it is not shared out; set {0}.zero_stage to 0",
                section, backward.zero_stage, config.lora.rank > 0 ? "lora.rank" : "model.adapter");
}

// What the GPU does not do yet, each by its key.
void check_device(const RunConfig& config, RunKind kind, ConfigRules& rules) {
  if (config.run.device == trainer::RunDevice::kCpu) return;
  const auto refuse = [&](bool is_asked_for, const std::string& seen, const std::string& remedy) {
    rules.require(!is_asked_for, "run.device is cuda but {}, which runs on the CPU alone; {}", seen,
                  remedy);
  };
  const std::string or_cpu = ", or run.device to cpu";
  if (kind != RunKind::kTrain && kind != RunKind::kSft && kind != RunKind::kEval) {
    return refuse(true, "this command is not train, sft or eval", "set run.device to cpu");
  }
  const bool is_sft = kind == RunKind::kSft;
  if (!is_sft) {
    refuse(!config.rollout.tools.empty(), "rollout.tools is not empty",
           "leave the tools out, or set run.device to cpu");
    rules.require(config.rollout.max_batch <= kernels::kLmHeadMaxRows,
                  "rollout.max_batch is {} but run.device is cuda, whose sampler takes at most {} "
                  "rows; lower it",
                  config.rollout.max_batch, kernels::kLmHeadMaxRows);
  }
  if (kind == RunKind::kEval) return;
  const std::string section = is_sft ? "sft" : "trainer";
  const trainer::OptimizerConfig& optimizer =
      is_sft ? config.sft.optimizer : config.trainer.optimizer;
  refuse(config.lora.rank > 0, fmt::format("lora.rank is {}", config.lora.rank),
         "set lora.rank to 0 to train all weights" + or_cpu);
  refuse(!config.model.adapter.empty(), "model.adapter is set",
         "make one model of the two (gradus merge), or set run.device to cpu");
  refuse(optimizer.optimizer == trainer::OptimizerKind::kMuon,
         fmt::format("{}.optimizer is muon", section),
         fmt::format("set {}.optimizer to adamw", section) + or_cpu);
  refuse(optimizer.ema_decay > 0, fmt::format("{}.ema_decay is {}", section, optimizer.ema_decay),
         fmt::format("set {}.ema_decay to 0", section) + or_cpu);
  if (is_sft) return;
  refuse(config.trainer.critic.has_value(),
         "trainer.algorithm.advantage is gae, whose critic has a score head",
         "choose another advantage, e.g. grpo, or set run.device to cpu");
  refuse(config.trainer.federated.has_value(), "trainer.federated is set",
         "leave it out, or set run.device to cpu");
  refuse(config.cluster.mode != trainer::ClusterMode::kColocated, "cluster.mode is not colocated",
         "set cluster.mode to colocated" + or_cpu);
}

void check_training(const RunConfig& config, int64_t world_size, ConfigRules& rules) {
  rules.add(trainer::validate(config.cluster, world_size, config.trainer.dynamic_sampling));
  rules.add(trainer::validate(
      config.trainer, std::max<int64_t>(1, trainer::num_trainers(config.cluster, world_size))));
  if (config.trainer.federated) {
    rules.require(config.cluster.mode == trainer::ClusterMode::kColocated,
                  "cluster.mode is not colocated with trainer.federated, where every rank samples "
                  "for its own clients; set it to colocated");
    rules.add(trainer::resolved_payload(config.trainer.federated->payload,
                                        config.lora.rank > 0 || !config.model.adapter.empty())
                  .status());
    rules.require(config.reward.rubric.empty(),
                  "reward.rubric is set with trainer.federated; the state of its criteria would "
                  "lie between clients: use reward.parts");
  }
  rules.require(!config.reward.parts.empty() || !config.reward.rubric.empty(),
                "reward.parts is empty; name at least one reward, e.g. {{name: exact}}");
  const trainer::AlgorithmConfig& algorithm = config.trainer.algorithm;
  rules.require(!trainer::compares_groups(algorithm.advantage) || config.rollout.num_samples >= 2,
                "rollout.num_samples is {} but trainer.algorithm.advantage is {}, which compares "
                "the responses of a group; use at least 2",
                config.rollout.num_samples, algorithm.advantage);
  rules.require(
      !config.trainer.critic || config.model.adapter.empty(),
      "model.adapter is set but trainer.algorithm.advantage is gae, whose critic does not "
      "start from an adapter; make one model of the two (gradus merge) and name it as "
      "model.path, with lora.rank for a new adapter");
  rules.require(
      algorithm.advantage != "remax" || config.reward.rubric.empty(),
      "trainer.algorithm.advantage is remax and reward.rubric is set; the baseline of the "
      "greedy response has no rubric: choose another, e.g. rloo");
  rules.require(
      !config.trainer.dynamic_sampling || config.rollout.num_samples >= 2,
      "rollout.num_samples is {} but trainer.dynamic_sampling is on: a group of one never "
      "varies; use at least 2",
      config.rollout.num_samples);
  rules.require(config.trainer.overlong_buffer_tokens < config.rollout.max_new_tokens,
                "trainer.overlong_buffer_tokens ({}) must be less than rollout.max_new_tokens ({})",
                config.trainer.overlong_buffer_tokens, config.rollout.max_new_tokens);
}

}  // namespace

Status validate(const RunConfig& config, RunKind kind, int64_t world_size) {
  ConfigRules rules;
  rules.add(trainer::validate(config.run));
  if (kind == RunKind::kFederate) {
    check_device(config, kind, rules);
    rules.add(federated::validate(config.federated));
    return rules.status();
  }
  if (kind == RunKind::kHarr) {
    check_device(config, kind, rules);
    rules.add(trainer::validate(*config.harr, world_size));
    rules.require(!config.joint,
                  "harr and joint are both given; a run trains a retriever alone "
                  "(harr) or beside a language model (joint)");
    rules.require(config.lora.targets == std::vector<std::string>{"all"},
                  "lora.targets is set, but an encoder's adapter is on all matrices of its layers; "
                  "leave it out");
    rules.add(data::validate(config.data));
    rules.require(config.data.train.is_given(),
                  "data.train.files is not set; name the questions to train on");
    rules.require(config.data.eval.is_given() || !config.eval.is_asked_for(),
                  "eval.every_steps or eval.before_training asks for evaluation, but "
                  "data.eval.files is not set");
    return rules.status();
  }
  check_device(config, kind, rules);
  rules.add(model::validate(config.model));
  rules.add(data::validate(config.data));
  rules.add(rewards::validate(config.reward));
  rules.add(rollout::validate(config.rollout));
  check_rewards(config.reward, rules);
  switch (kind) {
    case RunKind::kTrain:
      check_training(config, world_size, rules);
      if (config.joint) {
        rules.add(trainer::validate(*config.joint, config.trainer, config.rollout, world_size));
        rules.require(config.cluster.mode == trainer::ClusterMode::kColocated &&
                          config.run.device == trainer::RunDevice::kCpu,
                      "cluster.mode or run.device does not go with joint, where every rank samples "
                      "on the CPU with the encoder that it trains; set them to colocated and cpu");
      }
      check_adapter(config, config.trainer.optimizer, "trainer", rules);
      check_zero(config, config.trainer.optimizer, config.trainer.backward, "trainer", rules);
      if (config.trainer.critic) {
        check_optimizer_of_adapter(config, config.trainer.critic->optimizer, "trainer.critic",
                                   rules);
      }
      break;
    case RunKind::kSft:
      rules.add(trainer::validate(config.sft, world_size));
      check_adapter(config, config.sft.optimizer, "sft", rules);
      check_zero(config, config.sft.optimizer, config.sft.backward, "sft", rules);
      break;
    case RunKind::kDpo:
      rules.add(trainer::validate(config.dpo, world_size));
      check_adapter(config, config.dpo.loop.optimizer, "dpo", rules);
      check_zero(config, config.dpo.loop.optimizer, config.dpo.loop.backward, "dpo", rules);
      break;
    case RunKind::kRewardModel:
      rules.add(trainer::validate(config.reward_model, world_size));
      check_adapter(config, config.reward_model.loop.optimizer, "reward_model", rules);
      check_zero(config, config.reward_model.loop.optimizer, config.reward_model.loop.backward,
                 "reward_model", rules);
      break;
    case RunKind::kFederate:  // above
    case RunKind::kHarr:
      break;
    case RunKind::kEval:
      rules.require(config.data.eval.is_given(),
                    "neither data.eval.files nor data.eval.task is set; name the problems to "
                    "evaluate on");
      rules.require(!config.reward.parts.empty() || !config.reward.rubric.empty(),
                    "reward.parts is empty; name at least one reward, e.g. {{name: exact}}");
      break;
  }
  rules.require(
      kind == RunKind::kEval || config.data.train.is_given(),
      "neither data.train.files nor data.train.task is set; name the problems to train on");
  rules.require(config.data.eval.is_given() || !config.eval.is_asked_for(),
                "eval.every_steps or eval.before_training asks for evaluation, but neither "
                "data.eval.files nor data.eval.task is set");
  const bool is_on_pairs = kind == RunKind::kDpo || kind == RunKind::kRewardModel;
  if (config.model.init && !is_on_pairs) {
    const int64_t longest = config.model.init->architecture.max_position_embeddings;
    rules.require(config.data.max_prompt_tokens + config.rollout.max_new_tokens <= longest,
                  "data.max_prompt_tokens ({}) + rollout.max_new_tokens ({}) exceed "
                  "model.init.architecture.max_position_embeddings ({})",
                  config.data.max_prompt_tokens, config.rollout.max_new_tokens, longest);
  }
  return rules.status();
}

Result<LoadedConfig<RunConfig>> read_run_config(const std::string& path,
                                                std::span<const std::string> overrides) {
  Result<LoadedConfig<RunConfig>> loaded = load_config<RunConfig>(path, overrides);
  if (!loaded.ok()) return loaded;
  // Whatever source names the preset, written keys hold against it: read again on top of it.
  RunConfig defaults;
  trainer::apply_preset(loaded->value.trainer.algorithm.name, loaded->value.rollout.max_new_tokens,
                        defaults.trainer);
  defaults.federated.strategy = federated::strategy_preset(loaded->value.federated.strategy.name,
                                                           loaded->value.federated.strategy.base);
  if (const auto& federated = loaded->value.trainer.federated) {
    defaults.trainer.federated.emplace().strategy =
        federated::strategy_preset(federated->strategy.name, federated->strategy.base);
  }
  loaded = load_config<RunConfig>(path, overrides, std::move(defaults));
  if (!loaded.ok()) return loaded;
  trainer::resolve(loaded->value.trainer, loaded->value.rollout.max_new_tokens);
  return loaded;
}

Result<LoadedConfig<RunConfig>> load_run_config(const std::string& path,
                                                std::span<const std::string> overrides,
                                                RunKind kind, int64_t world_size) {
  Result<LoadedConfig<RunConfig>> loaded = read_run_config(path, overrides);
  if (!loaded.ok()) return loaded;
  for (trainer::BackwardConfig* backward :
       {&loaded->value.trainer.backward, &loaded->value.sft.backward,
        &loaded->value.dpo.loop.backward, &loaded->value.reward_model.loop.backward}) {
    backward->layout_invariant = loaded->value.numerics.layout_invariant;
  }
  if (kind == RunKind::kTrain && loaded->value.harr) kind = RunKind::kHarr;
  const Status status = validate(loaded->value, kind, world_size);
  if (!status.ok()) return with_places(status, path, loaded->origins);
  return loaded;
}

std::string resolved_yaml(const LoadedConfig<RunConfig>& config) {
  RunConfig copy = config.value;
  const VisitFields visit = [&](FieldVisitor& v) { copy.visit(v); };
  ConfigOrigins origins = config.origins;
  const std::string preset = "preset " + copy.trainer.algorithm.name;
  trainer::TrainerConfig of_preset, of_defaults;
  trainer::apply_preset(copy.trainer.algorithm.name, copy.rollout.max_new_tokens, of_preset);
  if (of_preset.dynamic_sampling != of_defaults.dynamic_sampling) {
    origins.emplace("trainer.dynamic_sampling", preset);
  }
  if (of_preset.overlong_buffer_tokens != of_defaults.overlong_buffer_tokens) {
    origins.emplace("trainer.overlong_buffer_tokens", preset);
  }
  for (const std::string& path : config_paths(visit)) {
    if (path.starts_with("trainer.algorithm.")) origins.emplace(path, preset);
  }
  return config_yaml(visit, origins);
}

std::string run_config_markdown() {
  RunConfig defaults;
  return "<!-- Printed by `gradus config docs` from the field lists of the structs; do not edit. "
         "-->\n"
         "# Configuration\n\n"
         "A run is described by one YAML file. `base: other.yaml` (a path relative to the file) "
         "takes over\nanother file's values; sections are merged key by key, lists and maps are "
         "replaced whole.\n`--set trainer.num_steps=10` on the command line goes last, its value "
         "is "
         "YAML, and\n`--set reward.parts.0.weight=2` reaches into a list. `gradus config print "
         "FILE` "
         "shows every value and\nwhere it came from. Numbers are decimal and finite, booleans are "
         "true "
         "or false; anchors, aliases and\ntags are refused. All problems of a configuration are "
         "reported at once.\n" +
         config_markdown([&](FieldVisitor& v) { defaults.visit(v); });
}

}  // namespace gradus::cli
