// SPDX-License-Identifier: Apache-2.0
// `--dry-run`, and every shipped configuration through it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>

#include "tests/support/tiny_retriever.h"

namespace gradus {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

double children_cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::vector<std::string> configurations() {
  std::vector<std::string> files;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(std::string(GRADUS_SOURCE_DIR) + "/configs")) {
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().stem());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// An index with questions stands for those that a configuration's commands make.
class SmallIndex : public test::TinyRetriever {
 public:
  void TestBody() override {}
  std::string make() {
    SetUp();
    return fmt::format(
        " --set harr.index={0}/index --set harr.encoder={0}/encoder "
        "--set harr.statements={0}/multihop/statements.jsonl "
        "--set data.train.files=[{0}/multihop/train.jsonl] "
        "--set data.eval.files=[{0}/multihop/test.jsonl]",
        folder_.path());
  }
};

class ShippedConfiguration : public ::testing::TestWithParam<std::string> {};

TEST_P(ShippedConfiguration, PassesItsDryRunInASecond) {
  const std::string file = std::string(GRADUS_SOURCE_DIR) + "/configs/" + GetParam() + ".yaml";
  const std::string text = "\n" + test::read_file(file);
  const test::Outcome resolved = test::run_gradus("config print " + file);
  ASSERT_EQ(resolved.exit_code, 0);
  // A model that another run makes is not there yet: a golden one stands for it.
  std::string options;
  if (resolved.output.find("path: runs/") != std::string::npos ||
      resolved.output.find("path: \"runs/") != std::string::npos) {
    options = " --set model.path=tests/golden/tiny_models/qwen2";
  }
  // Nor need data be that is fetched.
  if (text.find("data: {kind: digits}") != std::string::npos) {
    options += " --set federated.task.data.kind=mnist1d";
  }
  if (text.find("\nharr:") != std::string::npos) {
    SmallIndex index;
    const test::Outcome outcome =
        test::run_gradus("train " + file + index.make() + " --dry-run 2>&1");
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_THAT(outcome.output,
                HasSubstr("the configuration is sound; nothing was trained (--dry-run)\n"));
    return;
  }
  int num_kinds = 0;
  for (const auto& [section, command] :
       {std::pair("trainer", "train"), std::pair("sft", "sft"), std::pair("dpo", "dpo"),
        std::pair("reward_model", "reward-model"), std::pair("federated", "federate")}) {
    if (text.find(std::string("\n") + section + ":") == std::string::npos) continue;
    ++num_kinds;
    const double before = children_cpu_seconds();
    const test::Outcome outcome =
        test::run_gradus(std::string(command) + " " + file + options + " --dry-run 2>&1");
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(" MiB at the peak, per rank\n"));
    EXPECT_THAT(outcome.output,
                HasSubstr("the configuration is sound; nothing was trained (--dry-run)\n"));
    EXPECT_LT(children_cpu_seconds() - before, 1.0) << "of processor time";
  }
  EXPECT_GE(num_kinds, 1) << file << " has no section of a command that trains";
}

INSTANTIATE_TEST_SUITE_P(Configs, ShippedConfiguration, ::testing::ValuesIn(configurations()),
                         [](const auto& test_case) { return test_case.param; });

class DryRun : public test::TinyRun {};

TEST_F(DryRun, PrintsThePlanAndLeavesNothing) {
  const test::RunOutcome outcome = call(arguments("train", "run", "--dry-run"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  EXPECT_EQ(outcome.messages, "");
  const std::string plan = test::read_file(path("output"));
  for (const std::string part :
       {"model      new: llama of 0.03M weights, 2 layers of width 32, vocabulary 257\n",
        "data       40 rows looked at, 0 too long, longest prompt 6 tokens\n",
        "step       8 prompts x 4 responses of up to 12 tokens on 1 rank, 2 updates\n",
        "run        6 steps of grpo into ", "\n  weights ", "\n  AdamW moments ", "\n  gradients ",
        "\n  activations of ", "\n  key-value cache in use ", "\n  all "}) {
    EXPECT_THAT(plan, HasSubstr(part));
  }
  EXPECT_FALSE(fs::exists(path("runs")));
  EXPECT_EQ(call(arguments("sft", "run", "--dry-run")).exit_code, 0);
  EXPECT_THAT(test::read_file(path("output")),
              HasSubstr("data       40 examples looked at, 12 held out\n"));
  EXPECT_FALSE(fs::exists(path("runs")));
}

TEST_F(DryRun, CountsTheInitialModelOfAKlTerm) {
  EXPECT_EQ(
      call(arguments("train", "run", "--dry-run --set trainer.algorithm.kl.coef=0.1")).exit_code,
      0);
  EXPECT_THAT(test::read_file(path("output")), HasSubstr("\n  initial model "));
  EXPECT_THAT(test::read_file(path("output")), HasSubstr("\n  its activations "));
}

// run.device: cuda. A machine without a GPU checks all but whether it fits.
TEST_F(DryRun, PlansTheMemoryOfTheGpuAndRefusesShapesThatItsKernelsLack) {
  const std::string on_gpu = "--dry-run --set run.device=cuda";
  const test::RunOutcome refused = call(arguments("train", "run", on_gpu));
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.messages, HasSubstr("device cuda: head_dim is "));
  const std::string of_64 = on_gpu + " --set model.init.architecture.head_dim=64";
  for (const char* command : {"train", "sft"}) {
    const test::RunOutcome outcome = call(arguments(command, "run", of_64));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    const std::string plan = test::read_file(path("output"));
    for (const std::string part :
         {"\nGPU memory\n", "\n  weights, bf16 ", "\n  weights, gradients and moments, fp32 ",
          " tokens, updating ", "\n  checkpoint being written "}) {
      EXPECT_THAT(plan, HasSubstr(part)) << command;
    }
    EXPECT_EQ(plan.find("\n  key-value cache, sampling ") != std::string::npos,
              std::string(command) == "train");
  }
  EXPECT_FALSE(fs::exists(path("runs")));
}

// The same plan, of other machines.
TEST_F(DryRun, GradusPlanCountsGpusThatShareOut) {
  const auto plan = [&](const std::string& options) {
    const test::RunOutcome outcome =
        call("plan " + path("run.yaml") +
             " --set run.device=cuda --set model.init.architecture.head_dim=64 " + options);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return test::read_file(path("output"));
  };
  const std::string one = plan("--world 2");
  for (const std::string part : {"x h100: ", "\nmemory of the host\n", "\nGPU memory\n",
                                 "\n  fits the 80 GiB of a h100\n", "\nstep time\n"}) {
    EXPECT_THAT(one, HasSubstr(part));
  }
  EXPECT_THAT(one, Not(HasSubstr("slices of weights")));
  EXPECT_THAT(plan("--world 2 --set trainer.zero_stage=3"), HasSubstr("\n  slices of weights "));
  const test::RunOutcome refused =
      call("plan " + path("run.yaml") + " --set run.device=cuda --device cpu " +
           "--set model.init.architecture.head_dim=64");
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.messages, HasSubstr("--device is cpu but run.device is cuda"));
}

TEST_F(DryRun, WithoutAGpuARunSaysSoAndLeavesNothing) {
  const test::RunOutcome outcome = call(
      arguments("train", "run", "--set run.device=cuda --set model.init.architecture.head_dim=64"));
  if (outcome.exit_code == 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("run.device is cuda: cuda: "));
  EXPECT_FALSE(fs::exists(path("runs")));
}

// Regression: only the first step found it. 1 MiB holds 16 pages of this model; 1500 positions need
// 24, and one more for the prompt's last page.
TEST_F(DryRun, FindsACacheThatIsTooSmallForOneRequest) {
  const std::string options =
      "--set model.init.architecture.max_position_embeddings=2048 "
      "--set model.init.architecture.num_layers=8 --set rollout.kv_cache_mib=1 "
      "--set rollout.max_new_tokens=1500 ";
  for (const char* more : {"--dry-run", ""}) {
    const test::RunOutcome outcome = call(arguments("train", "run", options + more));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.messages, ContainsRegex("a prompt of [56] tokens with "
                                                "rollout.max_new_tokens \\(1500\\) needs 25 pages "
                                                "of the key-value cache, which has 16; raise "
                                                "rollout.kv_cache_mib \\(1\\) to at least 2\n"));
    EXPECT_FALSE(fs::exists(path("runs")));
  }
}

TEST_F(DryRun, PlansLessMemoryWithCheckpointing) {
  const auto peak = [&](const std::string& more) {
    EXPECT_EQ(call(arguments("train", "run",
                             "--dry-run --set model.init.architecture.num_layers=32 "
                             "--set model.init.architecture.intermediate_size=2048 " +
                                 more))
                  .exit_code,
              0);
    const std::string plan = test::read_file(path("output"));
    const size_t end = plan.find(" MiB at the peak");
    return std::stoi(plan.substr(plan.rfind(' ', end - 1) + 1));
  };
  EXPECT_LT(peak("--set trainer.gradient_checkpointing=true"), peak(""));
}

TEST_F(DryRun, CountsMuonAndTheAverageOfTheWeights) {
  EXPECT_EQ(call(arguments("train", "run",
                           "--dry-run --set trainer.optimizer=muon --set trainer.ema_decay=0.99"))
                .exit_code,
            0);
  EXPECT_THAT(test::read_file(path("output")), HasSubstr("\n  Muon and AdamW moments "));
  EXPECT_THAT(test::read_file(path("output")), HasSubstr("\n  average of the weights "));
}

TEST_F(DryRun, ChecksDivisibilityOnTheGivenRanks) {
  const test::RunOutcome outcome = call(arguments("train", "run",
                                                  "--dry-run --set trainer.prompts_per_step=10 "
                                                  "--set trainer.reduction_blocks=6"),
                                        test::mpirun(4));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("trainer.prompts_per_step (10) must be a multiple of "
                                          "the number of ranks (4)"));
  EXPECT_THAT(outcome.messages, HasSubstr("trainer.reduction_blocks (6) must be a multiple of "
                                          "the number of ranks (4)"));
}

}  // namespace
}  // namespace gradus
