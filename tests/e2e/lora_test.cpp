// SPDX-License-Identifier: Apache-2.0
// LoRA as its users run it: training, resuming, ranks, evaluation and merging of an adapter, wrong
// settings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <regex>

#include "tests/support/checkpoint_state.h"
#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

const std::vector<std::string> kCommands = {"train", "sft"};

class Lora : public test::TinyRun {
 protected:
  // The base is the model of a run of supervised training.
  void SetUp() override {
    TinyRun::SetUp();
    // A reward that the base earns about every third time.
    std::string run = test::read_file(path("run.yaml"));
    run.replace(run.find("[A-Z]"), 5, "7");
    test::write_file(path("run.yaml"), run);
    TinyRun::train("sft", "base",
                   "--set sft.num_steps=60 --set sft.learning_rate=1e-2 "
                   "--set run.checkpoint_every=0");
    base_ = path("runs/base/checkpoints/step_60");
  }

  std::string on_base() const { return "--set model.init=null --set model.path=" + base_ + " "; }
  std::string lora() const { return on_base() + "--set lora.rank=4 --set lora.alpha=8 "; }
  std::string adapter(const std::string& name, const std::string& checkpoint = "latest") const {
    return path("runs/" + name + "/checkpoints/" + checkpoint);
  }
  std::string adapter_state(const std::string& name,
                            const std::string& checkpoint = "latest") const {
    return test::checkpoint_state(adapter(name, checkpoint));
  }
  // Standard output of a command that must end well.
  std::string output_of(const std::string& arguments) const {
    const test::RunOutcome outcome = call(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return test::read_file(path("output"));
  }
  std::string error_of(const std::string& arguments) const {
    const test::RunOutcome outcome = call(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    return outcome.messages;
  }

  std::string base_;
};

TEST_F(Lora, LearnsFromRewardsAndFromExamples) {
  // A seven in a response of four tokens: the base writes one in about every sixth.
  train("train", "rl",
        lora() +
            "--set trainer.num_steps=40 --set trainer.learning_rate=1e-2 "
            "--set trainer.mini_batches=1 --set rollout.max_new_tokens=4 "
            "--set rollout.num_samples=8 --set lora.rank=8 --set lora.alpha=32 "
            "--set eval.every_steps=0 --set run.checkpoint_every=0");
  const std::vector<json> rl = metrics("rl");
  double first = 0, last = 0;
  for (size_t i = 1; i <= 3; ++i) first += rl[i]["critic/rewards/mean"].get<double>() / 3;
  for (size_t i = 31; i <= 40; ++i) last += rl[i]["critic/rewards/mean"].get<double>() / 10;
  EXPECT_LT(first, 0.3);
  EXPECT_GT(last, 0.4);
  for (size_t i = 1; i < rl.size(); ++i) {
    EXPECT_EQ(rl[i]["mismatch/max_abs_logprob"], 0.0) << rl[i];
  }
  EXPECT_THAT(train("sft", "sft", lora() + "--set sft.num_steps=30 --set sft.learning_rate=1e-2"),
              HasSubstr(", its adapter in " + adapter("sft")));
  const std::vector<json> sft = metrics("sft");
  EXPECT_LT(sft.back()["train/loss"].get<double>(), sft[1]["train/loss"].get<double>() - 0.05);
}

TEST_F(Lora, CheckpointsHoldTheAdapterAlone) {
  train("sft", "run", lora());
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(adapter("run"))) {
    files.push_back(entry.path().filename());
  }
  EXPECT_THAT(files,
              ::testing::UnorderedElementsAre("adapter_config.json", "adapter_model.safetensors",
                                              "manifest.json", "optimizer.bin"));
  const json config = json::parse(test::read_file(adapter("run") + "/adapter_config.json"));
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["lora_alpha"], 8.0);
  EXPECT_EQ(config["base_model_name_or_path"], base_);
}

TEST_F(Lora, RanksAndResourcesChangeNeitherAdapterNorMetrics) {
  for (const std::string& command : kCommands) {
    train(command, command, lora());
    for (const int ranks : {2, 4}) {
      const std::string name = command + std::to_string(ranks);
      train(command, name, lora(), test::mpirun(ranks));
      EXPECT_EQ(adapter_state(name), adapter_state(command)) << name;
    }
  }
  train("train", "resources",
        lora() +
            "--set rollout.max_batch=3 --set rollout.prefill_chunk_tokens=2 "
            "--set trainer.micro_batch_tokens=2000 --set trainer.gradient_checkpointing=true");
  EXPECT_EQ(adapter_state("resources"), adapter_state("train"));
  EXPECT_EQ(metrics("resources"), metrics("train"));
  train("train", "seed", lora() + "--set lora.seed=9");
  EXPECT_NE(adapter_state("seed"), adapter_state("train"));
}

// With the running average of the factors, which is an adapter as well.
TEST_F(Lora, AResumedRunEndsInTheSameAdapter) {
  for (const std::string& command : kCommands) {
    const std::string section = command == "train" ? "trainer" : "sft";
    const std::string options = lora() + "--set " + section + ".ema_decay=0.9 ";
    const std::string average = adapter(command) + "/ema/adapter_model.safetensors";
    train(command, command, options);
    const std::string whole = adapter_state(command) + test::read_file(average);
    EXPECT_NE(test::read_file(average),
              test::read_file(adapter(command) + "/adapter_model.safetensors"));
    fs::remove_all(adapter(command, "step_6"));
    EXPECT_THAT(train(command, command, options + "--resume"), HasSubstr("after step 4"));
    EXPECT_EQ(adapter_state(command) + test::read_file(average), whole);
  }
}

TEST_F(Lora, MergedItIsTheModelThatWasTrained) {
  train("train", "run", lora());
  const std::string with_adapter = " --model " + base_ + " --adapter " + adapter("run");
  const std::string merged = path("merged");
  EXPECT_THAT(output_of("merge" + with_adapter + " " + merged + "/"),
              HasSubstr("{\"out\":\"" + merged + "\""));
  test::write_file(path("rows"), "{\"text\": \"1+2=\"}\n{\"ids\": [7, 70, 200, 3, 9]}\n");
  const std::string rows = " --input " + path("rows");
  const std::string scored = output_of("logprobs" + with_adapter + rows);
  EXPECT_EQ(output_of("logprobs --model " + merged + rows), scored);
  EXPECT_NE(output_of("logprobs --model " + base_ + rows), scored);
  EXPECT_EQ(output_of("generate" + with_adapter + rows + " --max-new-tokens 8"),
            output_of("generate --model " + merged + rows + " --max-new-tokens 8"));
  const std::string eval = "eval " + path("run.yaml") + " --model ";
  const std::string evaluated = output_of(eval + base_ + " --adapter " + adapter("run"));
  EXPECT_EQ(output_of(eval + merged), evaluated);
  // The evaluation of the run itself, at its end.
  const json last = metrics("run").back();
  char accuracy[16];
  std::snprintf(accuracy, sizeof(accuracy), "%.4f",
                last["val-core/chain_sum/acc/mean@2"].get<double>());
  EXPECT_THAT(evaluated, HasSubstr(accuracy));
  EXPECT_THAT(error_of("merge" + with_adapter + " " + merged), HasSubstr("exists already"));
}

const std::string kPairs =
    "--set data.train.task=chain_sum --set data.eval.task=chain_sum "
    "--set eval.before_training=false --set eval.every_steps=0 ";

TEST_F(Lora, DirectPreferencesTrainAnAdapter) {
  const std::string options = lora() + kPairs +
                              "--set dpo.num_steps=30 --set dpo.batch_pairs=16 "
                              "--set dpo.learning_rate=2e-2 ";
  train("dpo", "one", options);
  train("dpo", "two", options, test::mpirun(2));
  EXPECT_EQ(adapter_state("two"), adapter_state("one"));
  // The first loss is log 2: the adapter starts as the reference.
  const std::vector<json> rows = metrics("one");
  double last = 0;
  for (size_t i = 20; i < 30; ++i) last += rows[i]["train/loss"].get<double>() / 10;
  EXPECT_LT(last, rows.front()["train/loss"].get<double>() - 0.02);
}

// The score head is trained whole beside the factors and travels with them.
TEST_F(Lora, ARewardModelIsAnAdapterWithItsHead) {
  const std::string options = lora() + kPairs +
                              "--set reward_model.num_steps=30 --set reward_model.batch_pairs=16 "
                              "--set reward_model.learning_rate=2e-2 ";
  train("reward-model", "one", options);
  train("reward-model", "two", options, test::mpirun(2));
  EXPECT_EQ(adapter_state("two"), adapter_state("one"));
  const std::string whole = adapter_state("one");
  fs::remove_all(adapter("one", "step_30"));
  EXPECT_THAT(train("reward-model", "one", options + "--resume"), HasSubstr("after step 28"));
  EXPECT_EQ(adapter_state("one"), whole);
  const json config = json::parse(test::read_file(adapter("one") + "/adapter_config.json"));
  EXPECT_EQ(config["task_type"], "SEQ_CLS");
  EXPECT_EQ(config["modules_to_save"], json({"classifier", "score"}));
  const std::string with_adapter = " --model " + base_ + " --adapter " + adapter("one");
  test::write_file(path("rows"), "{\"ids\": [7, 70, 200, 3, 9]}\n{\"ids\": [9, 9, 8]}\n");
  const std::string rows_option = " --input " + path("rows");
  const std::string scores = output_of("score" + with_adapter + rows_option);
  output_of("merge" + with_adapter + " " + path("merged"));
  EXPECT_EQ(output_of("score --model " + path("merged") + rows_option), scores);
  EXPECT_THAT(error_of("logprobs" + with_adapter + rows_option), HasSubstr("score"));
}

TEST_F(Lora, AnAdapterIsTrainedOn) {
  train("sft", "first",
        lora() +
            "--set lora.targets=[q_proj,down_proj] --set sft.num_steps=20 "
            "--set sft.learning_rate=2e-2");
  const std::string on_first = on_base() + "--set model.adapter=" + adapter("first") + " ";
  train("sft", "second", on_first + "--set sft.num_steps=2");
  const json config = json::parse(test::read_file(adapter("second") + "/adapter_config.json"));
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["target_modules"], json({"q_proj", "down_proj"}));
  // It starts where the first one ended: on the same rows with a lower loss.
  EXPECT_LT(metrics("second")[1]["train/loss"].get<double>(),
            metrics("first")[1]["train/loss"].get<double>() - 0.02);
  EXPECT_NE(test::read_file(adapter("second") + "/adapter_model.safetensors"),
            test::read_file(adapter("first") + "/adapter_model.safetensors"));
}

TEST_F(Lora, TheDryRunPlansForTheAdapter) {
  for (const std::string& command : kCommands) {
    const std::string plan = output_of(arguments(command, "run", lora() + "--dry-run"));
    // 2 layers: q, o [32, 32], k, v [16, 32], gate, up [64, 32], down [32, 64], rank 4.
    EXPECT_THAT(plan, HasSubstr("adapter    rank 4, alpha 8, 0.00M weights on q_proj, k_proj, "
                                "v_proj, o_proj, gate_proj, up_proj, down_proj\n"));
    EXPECT_THAT(plan, HasSubstr("\n  matrices under the adapter "));
  }
}

TEST_F(Lora, TheMemoryPlanHolds) {
  const std::string big =
      "--set model.init.architecture.hidden_size=512 "
      "--set model.init.architecture.intermediate_size=1024 "
      "--set model.init.architecture.num_layers=6 --set model.init.architecture.num_heads=8 "
      "--set sft.num_steps=1 --set sft.batch_rows=1 --set sft.reduction_blocks=1 ";
  train("sft", "big", big);
  const std::string messages =
      train("sft", "run",
            "--set model.init=null --set lora.rank=8 --set sft.num_steps=1 --set model.path=" +
                path("runs/big/checkpoints/step_1"));
  std::smatch match;
  ASSERT_TRUE(std::regex_search(messages, match,
                                std::regex("peak memory (\\d+) MiB \\(planned (\\d+) MiB\\)")))
      << messages;
  const double peak = std::stod(match[1]), planned = std::stod(match[2]);
  // What is planned for the program, more than it takes, counts for more beside an adapter.
  EXPECT_GT(peak, 0.75 * planned) << match[0];
  EXPECT_LT(peak, 1.1 * planned) << match[0];
}

TEST_F(Lora, WrongSettingsAreNamedWithTheirRemedy) {
  for (const std::string& command : kCommands) {
    const auto error = [&](const std::string& more) {
      return error_of(arguments(command, "run", more + " --dry-run"));
    };
    EXPECT_THAT(error("--set lora.rank=4"),
                HasSubstr("lora.rank is 4 but model.init makes a new model, which no file holds "
                          "for the adapter to be loaded onto; train it whole, or set model.path"));
    EXPECT_THAT(error(lora() + "--set lora.targets=[q_prj]"),
                HasSubstr("--set lora.targets=[q_prj]: 'lora.targets[0]' must be one of q_proj, "));
    EXPECT_THAT(error(lora() + "--set lora.targets=[q_prj]"), HasSubstr("did you mean 'q_proj'?"));
    EXPECT_THAT(error(lora() + "--set lora.rank=17"),
                HasSubstr("lora.rank (17) is larger than the smaller side of k_proj [16, 32]; use "
                          "at most 16"));
    EXPECT_THAT(error(lora() + "--set model.adapter=somewhere"),
                HasSubstr("both lora.rank and model.adapter are set"));
    const std::string section = command == "train" ? "trainer" : "sft";
    EXPECT_THAT(error(lora() + "--set " + section + ".optimizer=muon"),
                HasSubstr(section + ".optimizer is muon but lora.rank is set; "));
    EXPECT_THAT(error(on_base() + "--set model.adapter=nowhere"),
                HasSubstr("nowhere/adapter_config.json"));
  }
  train("sft", "lora", lora());
  EXPECT_THAT(
      error_of(arguments("sft", "lora", lora() + "--set lora.alpha=3 --resume")),
      HasSubstr("the checkpoint's adapter (rank 4, alpha 8, targets q_proj, k_proj, v_proj, "
                "o_proj, gate_proj, up_proj, down_proj) differs from that of this run "
                "(rank 4, alpha 3,"));
  EXPECT_THAT(error_of(arguments("sft", "lora", on_base() + "--resume")),
              HasSubstr("the checkpoint holds an adapter, this run trains all weights"));
  train("sft", "whole", on_base());
  EXPECT_THAT(error_of(arguments("sft", "whole", lora() + "--resume")),
              HasSubstr("the checkpoint holds all weights, this run trains an adapter"));
  EXPECT_THAT(error_of("logprobs --model " + adapter("lora")),
              HasSubstr("holds an adapter, not a model; give it as --adapter or model.adapter, and "
                        "its base ('" +
                        base_ + "') as the model"));
  // Of another base: by its weights, and by its shapes.
  EXPECT_THAT(
      error_of("logprobs --model " + adapter("whole") + " --adapter " + adapter("lora")),
      HasSubstr("the adapter was trained on other weights than those of " + adapter("whole")));
  EXPECT_THAT(
      error_of("logprobs --model tests/golden/tiny_models/qwen2 --adapter " + adapter("lora")),
      HasSubstr("the weights do not belong to the base tests/golden/tiny_models/qwen2 with "
                "rank 4"));
  // A dry run loads no weights, and says so all the same.
  EXPECT_THAT(error_of(arguments("sft", "other",
                                 "--set model.init=null --set model.path=tests/golden/tiny_models/"
                                 "qwen2 --set data.prompt_format=text --dry-run --set "
                                 "model.adapter=" +
                                     adapter("lora"))),
              HasSubstr("the weights do not belong to the base tests/golden/tiny_models/qwen2"));
}

}  // namespace
}  // namespace gradus
