// SPDX-License-Identifier: Apache-2.0
#include "cli/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "common/metrics.h"

namespace gradus::cli {
namespace {

using ::testing::HasSubstr;

constexpr const char* kFixture = "tests/golden/config/chain_sum.yaml";

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Path of a file with `text`, of this process alone.
std::string write_temporary(const std::string& text) {
  const std::string path =
      ::testing::TempDir() + "gradus_run_config_" + std::to_string(getpid()) + ".yaml";
  std::ofstream(path) << text;
  return path;
}

std::string message_of(const std::vector<std::string>& overrides, RunKind kind = RunKind::kTrain,
                       int64_t world_size = 1) {
  return load_run_config(kFixture, overrides, kind, world_size).status().message();
}

TEST(RunConfig, TheFixtureIsValidOnOneTwoAndFourRanks) {
  for (const int64_t world_size : {1, 2, 4}) {
    EXPECT_EQ(message_of({}, RunKind::kTrain, world_size), "");
    EXPECT_EQ(message_of({}, RunKind::kSft, world_size), "");
  }
}

TEST(RunConfig, ShippedDefaultsAreInRange) {
  // A default outside its own range could not be written into a file: dump and read them back.
  const LoadedConfig<RunConfig> defaults;
  const auto loaded = load_config<RunConfig>(write_temporary(resolved_yaml(defaults)));
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(resolved_yaml({loaded->value, {}}), resolved_yaml(defaults));
}

TEST(RunConfig, ResolvedYamlReadsBack) {
  const auto loaded = load_run_config(kFixture, {}, RunKind::kTrain);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const std::string path = write_temporary(resolved_yaml(*loaded));
  const auto again = load_run_config(path, {}, RunKind::kTrain);
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(resolved_yaml({again->value, {}}), resolved_yaml({loaded->value, {}}));
}

struct Case {
  std::vector<std::string> overrides;
  std::string message;  // without the place
  RunKind kind = RunKind::kTrain;
  int64_t world_size = 1;
};
// CTest takes this into the test's name: a few plain words.
std::ostream& operator<<(std::ostream& out, const Case& c) {
  for (const char letter : c.message.substr(0, 50)) {
    out << (std::isalnum(static_cast<unsigned char>(letter)) ? letter : ' ');
  }
  return out;
}

class RunRules : public ::testing::TestWithParam<Case> {};

TEST_P(RunRules, NameTheirKeys) {
  const Case& rule = GetParam();
  const std::string message = message_of(rule.overrides, rule.kind, rule.world_size);
  EXPECT_THAT(message, HasSubstr(": " + rule.message));
  EXPECT_EQ(message.find('\n'), std::string::npos) << "one problem alone";
}

INSTANTIATE_TEST_SUITE_P(
    All, RunRules,
    ::testing::Values(
        Case{{"model.init=~"},
             "neither model.path nor model.init is set; give the folder of a checkpoint, or "
             "model.init for a model from scratch"},
        Case{{"model.path=m"},
             "both model.path and model.init are set; keep one: model.path loads a checkpoint, "
             "model.init starts from scratch"},
        Case{{"run.device=cuda", "trainer.optimizer=muon"},
             "run.device is cuda but trainer.optimizer is muon, which runs on the CPU alone; set "
             "trainer.optimizer to adamw, or run.device to cpu"},
        Case{{"run.device=cuda", "sft.ema_decay=0.9"},
             "run.device is cuda but sft.ema_decay is 0.9, which runs on the CPU alone; set "
             "sft.ema_decay to 0, or run.device to cpu",
             RunKind::kSft},
        Case{{"run.device=cuda", "model.init=~", "model.path=m", "lora.rank=8"},
             "run.device is cuda but lora.rank is 8, which runs on the CPU alone; set lora.rank to "
             "0 to train all weights, or run.device to cpu"},
        Case{{"run.device=cuda", "model.init=~", "model.path=m", "model.adapter=a"},
             "run.device is cuda but model.adapter is set, which runs on the CPU alone; make one "
             "model of the two (gradus merge), or set run.device to cpu"},
        Case{{"run.device=cuda", "trainer.algorithm.advantage=gae"},
             "run.device is cuda but trainer.algorithm.advantage is gae, whose critic has a score "
             "head, which runs on the CPU alone; choose another advantage, e.g. grpo, or "
             "set run.device to cpu"},
        Case{{"run.device=cuda", "rollout.tools=[{name: calculator}]"},
             "run.device is cuda but rollout.tools is not empty, which runs on the CPU alone; "
             "leave the tools out, or set run.device to cpu"},
        Case{{"run.device=cuda", "cluster.mode=split"},
             "run.device is cuda but cluster.mode is not colocated, which runs on the CPU alone; "
             "set cluster.mode to colocated, or run.device to cpu",
             RunKind::kTrain,
             2},
        Case{{"run.device=cuda", "rollout.max_batch=4097"},
             "rollout.max_batch is 4097 but run.device is cuda, whose sampler takes at most 4096 "
             "rows; lower it"},
        Case{{"run.device=cuda", "data.eval.task=chain_sum", "rollout.tools=[{name: calculator}]"},
             "run.device is cuda but rollout.tools is not empty, which runs on the CPU alone; "
             "leave the tools out, or set run.device to cpu",
             RunKind::kEval},
        Case{{"run.device=cuda"},
             "run.device is cuda but this command is not train, sft or eval, which runs on the CPU "
             "alone; set run.device to cpu",
             RunKind::kFederate},
        Case{{"trainer.zero_stage=2", "trainer.optimizer=muon"},
             "trainer.zero_stage is 2 but trainer.optimizer is muon, which needs whole matrices "
             "where ranks hold slices; set trainer.zero_stage to 0, or trainer.optimizer to adamw"},
        Case{{"sft.zero_stage=3", "model.init=~", "model.path=m", "model.adapter=a"},
             "sft.zero_stage is 3 but model.adapter is set: of an adapter the gradients and "
             "moments are small, and the model under it is not shared out; set sft.zero_stage to "
             "0",
             RunKind::kSft},
        Case{{"model.init.architecture.num_kv_heads=3"},
             "model.init.architecture.num_heads (4) must be a multiple of "
             "model.init.architecture.num_kv_heads (3)"},
        Case{{"model.init.architecture.hidden_size=68"},
             "model.init.architecture.hidden_size (68) must be a multiple of twice "
             "model.init.architecture.num_heads (4); or set model.init.architecture.head_dim"},
        Case{{"model.init.architecture.head_dim=5"},
             "model.init.architecture.head_dim (5) must be even, rotary embedding turns pairs"},
        Case{{"rollout.max_new_tokens=100"},
             "data.max_prompt_tokens (64) + rollout.max_new_tokens (100) exceed "
             "model.init.architecture.max_position_embeddings (128)"},
        Case{{"data.train.task="
              "\"\"",
              "data.train.task_options={}"},
             "neither data.train.files nor data.train.task is set; name the problems to train on"},
        Case{{"data.train.files=[a.jsonl]"},
             "both data.train.files and data.train.task are set; keep one"},
        Case{{"data.eval.num_rows=0"},
             "data.eval.task is 'chain_sum' but data.eval.num_rows is 0; say how many rows to "
             "generate"},
        Case{{"data.eval={files: [a], task: \"\"}"},
             "data.eval.task_options are set but data.eval.task is not; they would be ignored"},
        Case{{"data.train.task=chain_sun"},
             "data.train.task: unknown task 'chain_sun'; did you mean 'chain_sum'?; known: "
             "addition, "},
        Case{{"data.train.task_options.term=4"},
             "data.train.task_options: task chain_sum: unknown option 'term'; did you mean "
             "'terms'?"},
        Case{{"reward.parts.0.name=exat"},
             "reward.parts[0].name: unknown reward 'exat'; did you mean 'exact'?; known: "
             "choice, code, countdown, "},
        Case{{"reward.parts.0.options={mark: x}"},
             "reward.parts[0].options: reward exact: unknown option 'mark'"},
        Case{{"data.eval.seed=0"},
             "data.train.seed and data.eval.seed are both 0 for the task 'chain_sum': evaluation "
             "would "
             "repeat the training problems; change one"},
        Case{{"data.system_prompt=hi"},
             "data.system_prompt is set but data.prompt_format is text, which has no system "
             "message; use chat, or put the text into data.few_shot"},
        Case{{"data.eval.task=\"\"", "data.eval.task_options={}", "eval.every_steps=5"},
             "eval.every_steps or eval.before_training asks for evaluation, but neither "
             "data.eval.files nor data.eval.task is set"},
        Case{{"reward.parts=[]"},
             "reward.parts is empty; name at least one reward, e.g. {name: exact}"},
        Case{{"reward.parts.0.weight=0"},
             "every reward.parts entry has weight 0, so nothing can be learned; give one a weight"},
        Case{{"rollout.num_samples=1"},
             "rollout.num_samples is 1 but trainer.algorithm.advantage is grpo, which compares the "
             "responses of a group; use at least 2"},
        Case{{"rollout.num_samples=1", "trainer.algorithm=reinforce",
              "trainer.dynamic_sampling=true"},
             "rollout.num_samples is 1 but trainer.dynamic_sampling is on: a group of one never "
             "varies; use at least 2"},
        Case{{"trainer.overlong_buffer_tokens=32"},
             "trainer.overlong_buffer_tokens (32) must be less than rollout.max_new_tokens (32)"},
        Case{{"trainer.prompts_per_step=30"},
             "trainer.prompts_per_step (30) must be a multiple of the number of ranks (4)",
             RunKind::kTrain,
             4},
        Case{
            {"trainer.mini_batches=3"},
            "trainer.prompts_per_step (32) must be a multiple of trainer.mini_batches (3); a group "
            "is never split between updates"},
        Case{{"trainer.muon_scale=match_adamw"},
             "trainer.muon_learning_rate, trainer.muon_momentum or trainer.muon_scale is set but "
             "trainer.optimizer is adamw, which ignores them; set trainer.optimizer to muon"},
        Case{{"trainer.reduction_blocks=6"},
             "trainer.reduction_blocks (6) must be a multiple of the number of ranks (4)",
             RunKind::kTrain,
             4},
        Case{{"trainer.algorithm.clip_dual=1.28"},
             "trainer.algorithm.clip_dual (1.28) must be greater than 1 + "
             "trainer.algorithm.clip_high (1.28); use 0 to disable"},
        Case{{"trainer.algorithm=grpoo"},
             "'trainer.algorithm.name' must be one of cispo, dapo, dppo_tv, dr_grpo, gmpo, gpg, "
             "grpo, gspo, luspo, m2po, maxrl, opo, ppo, reinforce, reinforce_pp, "
             "reinforce_pp_baseline, remax, rloo, sapo, vespo, got 'grpoo'; did you mean 'grpo'?"},
        Case{{"trainer.algorithm={name: grpo, los: ppo}"},
             "unknown key 'los' in 'trainer.algorithm'; did you mean 'loss'?"},
        Case{{"trainer.algorithm.loss=gsop"},
             "must be one of cispo, clip_cov, decoupled_ppo, dppo_tv, gmpo, gpg, gspo, kl_cov, "
             "luspo, m2po, ppo, reinforce, sapo, vespo; did you mean 'gspo'?"},
        Case{{"trainer.algorithm.delta=1.2"},
             "trainer.algorithm.delta (1.2) must be greater than 1 + trainer.algorithm.clip_high "
             "(1.28); use 0 to disable"},
        Case{{"trainer.algorithm.scaling=group", "trainer.algorithm.advantage=opo"},
             "trainer.algorithm.scaling is group but trainer.algorithm.advantage is opo, which "
             "knows none; leave scaling out, or choose another advantage"},
        Case{{"trainer.algorithm.aggregation_length=4"},
             "trainer.algorithm.aggregation_length is set but trainer.algorithm.aggregation is not "
             "seq_mean_token_sum_norm, which alone has it; leave one out"},
        Case{{"trainer.algorithm.correction.high=4"},
             "trainer.algorithm.correction.high is set but trainer.algorithm.correction.kind is "
             "none, which ignores it; choose a kind"},
        Case{{"trainer.algorithm.correction={kind: icepop, low: 3, high: 2}"},
             "trainer.algorithm.correction.low (3) must not be above "
             "trainer.algorithm.correction.high (2)"},
        Case{{"trainer.algorithm.correction={kind: tis_token, weigh_kept: true}"},
             "trainer.algorithm.correction.weigh_kept is for the kinds geometric and reject, but "
             "trainer.algorithm.correction.kind is tis_token; leave it out"},
        Case{{"trainer.algorithm.correction={kind: geometric, level: sequence}"},
             "trainer.algorithm.correction.level is for the kinds icepop and reject, but "
             "trainer.algorithm.correction.kind is geometric; leave it out"},
        Case{{"trainer.algorithm={loss: decoupled_ppo, correction: {kind: icepop}}"},
             "trainer.algorithm.loss is decoupled_ppo, which weighs by rho itself, but "
             "trainer.algorithm.correction.kind is icepop; set one of them back"},
        Case{{"trainer.algorithm.kl={controller: adaptive, coef: 0.1}"},
             "trainer.algorithm.kl.controller is adaptive but trainer.algorithm.kl.place is loss"},
        Case{{"trainer.algorithm.kl={controller: adaptive, place: reward}"},
             "trainer.algorithm.kl.controller is adaptive but trainer.algorithm.kl.coef is 0"},
        Case{{"trainer.algorithm.kl={kind: k3_corrected, place: reward}"},
             "trainer.algorithm.kl.kind is k3_corrected, which weighs by the ratio of the update"},
        Case{{"trainer.algorithm={advantage: gdpo, kl: {coef: 0.1, place: reward}}"},
             "trainer.algorithm.advantage is gdpo, which scales each part of the reward, but "
             "trainer.algorithm.kl.place is reward; set it to loss"},
        Case{{"trainer.critic={learning_rate: 1e-4}"},
             "trainer.critic is set but trainer.algorithm.advantage is grpo, which has no use for "
             "one; leave it out, or set trainer.algorithm to ppo"},
        Case{{"trainer.algorithm=ppo", "model={init: null, adapter: a, path: b}"},
             "model.adapter is set but trainer.algorithm.advantage is gae, whose critic does not "
             "start from an adapter; make one model of the two (gradus merge) and name it as "
             "model.path, with lora.rank for a new adapter"},
        Case{{"trainer.algorithm=ppo", "trainer.critic.frozen_policy_steps=10"},
             "trainer.critic.frozen_policy_steps (10) must be less than trainer.num_steps (10), or "
             "the policy never learns"},
        Case{{"trainer.algorithm=ppo", "trainer.critic.ema_decay=0.9"},
             "trainer.critic.ema_decay is 0.9, but nothing is evaluated by an average of the "
             "critic; leave it out"},
        Case{{"trainer.algorithm=ppo", "trainer.critic.warmup_steps=20"},
             "trainer.critic.warmup_steps (20) must be less than the 10 updates of the run "
             "(trainer.num_steps times trainer.mini_batches), or the peak is never reached"},
        Case{{"trainer.algorithm=ppo", "trainer.critic.frozen_policy_steps=8",
              "trainer.warmup_steps=2"},
             "trainer.warmup_steps (2) must be less than the 2 updates of the run "
             "(trainer.num_steps less trainer.critic.frozen_policy_steps, times "
             "trainer.mini_batches), or the peak is never reached"},
        Case{{"trainer.algorithm=ppo", "lora.rank=4", "model={init: null, path: b}",
              "trainer.critic.optimizer=muon"},
             "trainer.critic.optimizer is muon but lora.rank is set; Muon makes the updates of "
             "whole matrices orthogonal"},
        Case{{"trainer.algorithm=ppo", "trainer.zero_stage=2", "trainer.critic.optimizer=muon"},
             "trainer.zero_stage is 2 but trainer.critic.optimizer is muon, which needs whole "
             "matrices where ranks hold slices"},
        Case{{"trainer.algorithm=ppo", "trainer.critic.value_clip=-1"}, "must be at least 0"},
        Case{{"trainer.algorithm=rloo", "rollout.num_samples=1"},
             "rollout.num_samples is 1 but trainer.algorithm.advantage is rloo, which compares the "
             "responses of a group; use at least 2"},
        Case{{"trainer.clip_low=0.1"},
             "unknown key 'clip_low' in 'trainer'; did you mean 'trainer.algorithm.clip_low'?"},
        Case{{"trainer.warmup_steps=20", "trainer.mini_batches=2"},
             "trainer.warmup_steps (20) must be less than the 20 updates of the run "
             "(trainer.num_steps times trainer.mini_batches), or the peak is never reached"},
        Case{{"trainer.min_lr_ratio=0.1"},
             "trainer.min_lr_ratio is 0.1 but trainer.lr_schedule is constant, which ignores it; "
             "choose linear or cosine"},
        Case{
            {"sft.num_steps=0"}, "sft.num_steps is 0; say how many updates to make", RunKind::kSft},
        Case{{"sft.batch_rows=6"},
             "sft.batch_rows (6) must be a multiple of the number of ranks (4)",
             RunKind::kSft,
             4},
        Case{{"sft.warmup_steps=5"},
             "sft.warmup_steps (5) must be less than the 5 updates of the run (sft.num_steps), or "
             "the peak is never reached",
             RunKind::kSft},
        Case{{"run.name=a/b"},
             "run.name ('a/b') must be a folder name without '/'; put the place into run.dir"},
        Case{{"run.save_best_metric=critic/score/mea"},
             "run.save_best_metric: unknown metric 'critic/score/mea'; did you mean "
             "'critic/score/mean'?"}));

TEST(RunConfig, ABrokenRuleHasThePlaceOfItsKey) {
  EXPECT_THAT(message_of({"trainer.mini_batches=3"}),
              HasSubstr("--set trainer.mini_batches=3: trainer.prompts_per_step (32) must "));
  EXPECT_THAT(
      message_of({}, RunKind::kTrain, 3),
      HasSubstr("tests/golden/config/chain_sum.yaml:28:21: trainer.prompts_per_step (32) must "));
}

TEST(RunConfig, AllBrokenRulesAreReported) {
  EXPECT_EQ(
      message_of({"trainer.mini_batches=2", "rollout.num_samples=1"}, RunKind::kTrain, 5),
      "tests/golden/config/chain_sum.yaml: trainer.reduction_blocks (8) must be a multiple of the "
      "number of ranks (5)\n"
      "tests/golden/config/chain_sum.yaml:28:21: trainer.prompts_per_step (32) must be a multiple "
      "of the number of ranks (5)\n"
      "--set rollout.num_samples=1: rollout.num_samples is 1 but trainer.algorithm.advantage is "
      "grpo, which compares the responses of a group; use at least 2");
}

TEST(RunConfig, WrittenKeysHoldAgainstThePresetWhicheverSourceNamesIt) {
  // The fixture's own line is `algorithm: grpo`.
  const auto loaded = load_run_config(
      kFixture,
      std::vector<std::string>{"trainer.algorithm.clip_low=0.1", "trainer.algorithm=reinforce"},
      RunKind::kTrain);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const trainer::AlgorithmConfig& algorithm = loaded->value.trainer.algorithm;
  EXPECT_EQ(algorithm.name, "reinforce");
  EXPECT_EQ(algorithm.loss, "reinforce");
  EXPECT_EQ(algorithm.clip_low, 0.1);
  const std::string yaml = resolved_yaml(*loaded);
  EXPECT_THAT(yaml, HasSubstr("    name: reinforce  # --set trainer.algorithm=reinforce\n"));
  EXPECT_THAT(yaml, HasSubstr("    loss: reinforce  # preset reinforce\n"));
  EXPECT_THAT(yaml, HasSubstr("    clip_low: 0.1  # --set trainer.algorithm.clip_low=0.1\n"));
}

TEST(RunConfig, ResolvedYamlShowsTheValueThatHolds) {
  const auto loaded = load_run_config(
      kFixture,
      std::vector<std::string>{"trainer.algorithm={name: dr_grpo, correction: {kind: icepop}}"},
      RunKind::kTrain);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const std::string yaml = resolved_yaml(*loaded);
  EXPECT_THAT(yaml, HasSubstr("    aggregation_length: 32  # preset dr_grpo\n"));
  EXPECT_THAT(yaml, HasSubstr("    scaling: none  # preset dr_grpo\n"));
  EXPECT_THAT(yaml, HasSubstr("      low: 0.5  # preset dr_grpo\n"));
}

TEST(RunConfig, ThePresetDapoReplacesFlatGroupsAndShapesTheLength) {
  const auto loaded = load_run_config(kFixture, std::vector<std::string>{"trainer.algorithm=dapo"},
                                      RunKind::kTrain);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const std::string yaml = resolved_yaml(*loaded);
  EXPECT_THAT(yaml, HasSubstr("  dynamic_sampling: true  # preset dapo\n"));
  EXPECT_THAT(yaml, HasSubstr("  overlong_buffer_tokens: 6  # preset dapo\n"));
  const auto off = load_run_config(
      kFixture,
      std::vector<std::string>{"trainer.algorithm=dapo", "trainer.dynamic_sampling=false"},
      RunKind::kTrain);
  ASSERT_TRUE(off.ok()) << off.status().message();
  EXPECT_FALSE(off->value.trainer.dynamic_sampling);
}

TEST(Documents, ConfigReferenceIsUpToDate) {
  EXPECT_TRUE(read("docs/config.md") == run_config_markdown())
      << "run: build/gradus config docs > docs/config.md";
}

TEST(Documents, MetricTableIsUpToDate) {
  EXPECT_TRUE(read("docs/metrics.md") == metrics_markdown())
      << "run: build/gradus config metrics > docs/metrics.md";
}

TEST(NewModel, FollowsItsFamily) {
  model::NewArchitectureConfig config{.family = model::Family::kQwen3, .head_dim = 64};
  const model::ModelConfig qwen3 = model::to_model_config(config, 100);
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.attention_bias);
  EXPECT_EQ(qwen3.head_dim, 64);
  EXPECT_EQ(qwen3.vocab_size, 100);
  config.family = model::Family::kQwen2;
  config.head_dim.reset();
  const model::ModelConfig qwen2 = model::to_model_config(config, 100);
  EXPECT_TRUE(qwen2.attention_bias);
  EXPECT_EQ(qwen2.head_dim, 32) << "hidden_size 128 over 4 heads";
  for (const model::ModelConfig& made : {qwen3, qwen2}) {
    EXPECT_EQ(model::validate(made).message(), "");
  }
}

}  // namespace
}  // namespace gradus::cli
