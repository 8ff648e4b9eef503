// SPDX-License-Identifier: Apache-2.0
// `trainer.federated`, as a user runs it: `gradus train`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/killed_run.h"

namespace gradus {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

const std::string kFederated =
    "--set 'reward.parts=[{name: format, options: {pattern: \"(?s).*[0-9].*\"}}]' "
    "--set eval.every_steps=0 --set eval.before_training=false --set trainer.num_steps=6 "
    "--set trainer.prompts_per_step=4 --set trainer.learning_rate=3e-3 "
    "--set run.checkpoint_every=2 --set trainer.federated.num_clients=4 "
    "--set trainer.federated.local_steps=2 --set trainer.federated.partition.kind=quantity "
    "--set trainer.federated.partition.beta=5 ";
const std::string kFlood =
    "--set trainer.federated.strategy.name=flood --set trainer.federated.strategy.base=fedavgm "
    "--set trainer.federated.strategy.mode=normalized "
    "--set trainer.federated.strategy.schedule=constant ";

class FederatedRl : public test::KilledRun {
 protected:
  std::string message(const std::string& options) const {
    const test::RunOutcome outcome = call(arguments("train", "bad", kFederated + options));
    EXPECT_EQ(outcome.exit_code, 2) << options << ": " << outcome.messages;
    return outcome.messages;
  }
};

TEST_F(FederatedRl, LearnsAndTellsOfEachClient) {
  train("train", "run", kFederated + "--set trainer.num_steps=12 ");
  const std::vector<json> rows = metrics("run");
  ASSERT_EQ(rows.size(), 12u);
  EXPECT_LT(rows.front()["critic/rewards/mean"].get<double>(), 0.7);
  EXPECT_GT(rows.back()["critic/rewards/mean"].get<double>(),
            rows.front()["critic/rewards/mean"].get<double>() + 0.15);
  for (const json& row : rows) {
    EXPECT_EQ(row["mismatch/max_abs_logprob"], 0.0) << "a client's step is the engine's usual one";
    double sum = 0;
    for (int k = 0; k < 4; ++k) {
      const std::string client = "federated/client/" + std::to_string(k);
      EXPECT_LT(row[client + "/score"].get<double>(), 0);
      EXPECT_TRUE(row.contains(client + "/reward"));
      if (row.contains(client + "/weight")) sum += row[client + "/weight"].get<double>();
    }
    EXPECT_NEAR(sum, 1, 1e-12);
  }
  ASSERT_EQ(call("report " + path("runs/run")).exit_code, 0);
  EXPECT_THAT(test::read_file(path("runs/run/report.html")),
              HasSubstr("federated/client/3/weight"));
}

// FLood over momentum: what the server and the clients' windows keep counts too.
TEST_F(FederatedRl, GivesTheSameBitsOnTwoRanksAndAfterAKill) {
  train("train", "one", kFederated + kFlood);
  EXPECT_GT(metrics("one").back()["federated/flagged_fraction"].get<double>(), 0);
  const std::string state_of_one =
      test::read_file(path("runs/one/checkpoints/step_6/federated.bin"));
  const std::string weights =
      test::read_file(path("runs/one/checkpoints/step_6/model.safetensors"));
  const std::string rank = std::string(GRADUS_BINARY) + " ";
  const test::CommandOutcome two = test::run_command(
      "mpirun -np 2 " + rank + arguments("train", "two", kFederated + kFlood) + " 2>&1");
  ASSERT_EQ(two.exit_code, 0) << two.output;
  EXPECT_EQ(test::read_file(path("runs/two/checkpoints/step_6/federated.bin")), state_of_one);
  const std::vector<json> of_one = metrics("one"), of_two = metrics("two");
  ASSERT_EQ(of_one.size(), of_two.size());
  for (size_t i = 0; i < of_one.size(); ++i) {
    for (const char* name :
         {"critic/rewards/mean", "federated/step_norm", "federated/client/1/score"}) {
      EXPECT_EQ(of_one[i][name], of_two[i][name]) << name << " of round " << i + 1;
    }
  }
  ASSERT_TRUE(kill_at(rank + arguments("train", "killed", kFederated + kFlood), [&] {
    return num_rows("killed") >= 3;
  })) << "the kill came too late";
  train("train", "killed", kFederated + kFlood + "--resume");
  EXPECT_EQ(test::read_file(path("runs/killed/checkpoints/step_6/federated.bin")), state_of_one);
  EXPECT_EQ(test::read_file(path("runs/killed/checkpoints/step_6/model.safetensors")), weights);
  EXPECT_EQ(metrics("killed"), of_one);
}

// A base that a file holds, and a LoRA adapter on it.
class FederatedLora : public FederatedRl {
 protected:
  void SetUp() override {
    FederatedRl::SetUp();
    train("sft", "base",
          "--set sft.num_steps=2 --set run.checkpoint_every=0 --set eval.every_steps=0 ");
    options_ = kFederated + "--set trainer.num_steps=4 --set model.init=null --set model.path=" +
               path("runs/base/checkpoints/step_2") + " --set lora.rank=4 --set lora.alpha=8 ";
  }
  std::string payload(const std::string& name) const {
    return options_ + "--set trainer.weight_decay=0 --set trainer.federated.payload=" + name + " ";
  }
  // Every file that says what the run came to.
  std::string state_of(const std::string& run) const {
    return state(run, "step_4") +
           test::read_file(path("runs/" + run + "/checkpoints/step_4/federated.bin"));
  }

  std::string options_;
};

TEST_F(FederatedLora, EveryPayloadHasTheSameBitsOnTwoRanksAndAfterAKill) {
  const std::string rank = std::string(GRADUS_BINARY) + " ";
  for (const std::string name : {"fedit", "ffa", "stacking", "fedex"}) {
    train("train", name, payload(name));
    const std::string whole = state_of(name);
    EXPECT_GT(metrics(name).back()["federated/upload_bytes"].get<double>(), 0);
    const test::CommandOutcome two = test::run_command(
        "mpirun -np 2 " + rank + arguments("train", name + "_two", payload(name)) + " 2>&1");
    ASSERT_EQ(two.exit_code, 0) << two.output;
    EXPECT_EQ(state_of(name + "_two"), whole) << name;
    ASSERT_TRUE(kill_at(rank + arguments("train", name + "_killed", payload(name)), [&] {
      return num_rows(name + "_killed") >= 2;
    })) << "the kill came too late";
    train("train", name + "_killed", payload(name) + "--resume");
    EXPECT_EQ(state_of(name + "_killed"), whole) << name;
    EXPECT_EQ(metrics(name + "_killed"), metrics(name)) << name;
  }
  // W moves under stacking and fedex, so their checkpoints are whole models, which eval takes.
  EXPECT_FALSE(std::filesystem::exists(path("runs/fedit/checkpoints/step_4/model.safetensors")));
  for (const char* name : {"stacking", "fedex"}) {
    const std::string checkpoint = path("runs/") + name + "/checkpoints/step_4";
    const test::RunOutcome outcome =
        call("eval " + path("run.yaml") + " --set model.init=null --set model.path=" + checkpoint);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
  }
  EXPECT_THAT(message(payload("fedex") + "--set trainer.federated.payload=full "),
              HasSubstr("trainer.federated.payload is full, but the run trains an adapter"));
  EXPECT_THAT(message("--set trainer.weight_decay=0.1 --set trainer.federated.payload=ffa "),
              HasSubstr("trainer.weight_decay is 0.1 with trainer.federated.payload ffa"));
  EXPECT_THAT(message("--set trainer.weight_decay=0 --set trainer.federated.payload=ffa "),
              HasSubstr("trainer.federated.payload is ffa, but the run trains all weights"));
  const test::RunOutcome other =
      call(arguments("train", "fedex", payload("stacking") + "--set trainer.num_steps=6 --resume"));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.messages, HasSubstr("written by trainer.federated.payload fedex"));
}

TEST_F(FederatedRl, SaysWhatDoesNotGoTogether) {
  EXPECT_THAT(message("--set trainer.federated.strategy.name=fedavgg"),
              HasSubstr("did you mean 'fedavg'?"));
  EXPECT_THAT(
      message("--set trainer.federated.strategy.name=scaffold"),
      HasSubstr("trainer.federated.strategy.name: scaffold needs clients that keep a vector "
                "from round to round, which clients of reinforcement learning do not give; "
                "take one that acts on the server"));
  EXPECT_THAT(message("--set trainer.federated.strategy.name=fedprox"),
              HasSubstr("fedprox needs a term in the clients' gradient"));
  EXPECT_THAT(message("--set trainer.federated.strategy.name=qfedavg"),
              HasSubstr("qfedavg needs the clients' loss before training"));
  EXPECT_THAT(message("--set trainer.federated.strategy.name=feddisco"),
              HasSubstr("feddisco needs counts of the clients' labels"));
  EXPECT_THAT(message("--set trainer.federated.num_clients=4000000"),
              HasSubstr("trainer.federated.num_clients is 4000000, but data.train has "));
  EXPECT_THAT(
      message("--set trainer.federated.per_round=9"),
      HasSubstr("trainer.federated.per_round (9) exceeds trainer.federated.num_clients (4)"));
  EXPECT_THAT(message("--set trainer.dynamic_sampling=true"),
              HasSubstr("trainer.dynamic_sampling is on with trainer.federated"));
  EXPECT_THAT(message("--set trainer.ema_decay=0.9"),
              HasSubstr("trainer.ema_decay is 0.9 with trainer.federated"));
  EXPECT_THAT(message("--set trainer.algorithm=ppo"),
              HasSubstr("trainer.critic is set with trainer.federated"));
  EXPECT_THAT(message("--set trainer.federated.partition.kind=natural"),
              HasSubstr("trainer.federated.partition.kind is of rows of numbers"));
  EXPECT_THAT(message("--dump-rollouts " + path("dump")),
              HasSubstr("--dump-rollouts with trainer.federated"));
}

}  // namespace
}  // namespace gradus
