// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/engine_bench.h"
#include "tests/support/run_gradus.h"

namespace gradus::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(CommandLine, NamesTheCommandNearestToAMistypedOne) {
  const Outcome outcome = run_gradus("trian configs/demo.yaml 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(
      outcome.output,
      StartsWith("gradus: error: unknown command 'trian'; did you mean 'train'?; known: train, "));
}

TEST(CommandLine, SaysItsVersionAndItsCommands) {
  EXPECT_THAT(run_gradus("--version").output, StartsWith("gradus 0."));
  EXPECT_THAT(run_gradus("--help").output, HasSubstr("generate"));
}

TEST(BenchEngine, NamesTheShapesItKnows) {
  const Outcome outcome = run_gradus("bench engine --shape gpt2 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output,
            "gradus: error: --shape gpt2: not a known shape; expected qwen3-0.6b, qwen2.5-0.5b or "
            "smollm2-135m\n");
}

TEST(BenchNccl, WithoutADeviceSaysWhatIsNeeded) {
  const Outcome outcome = run_gradus("bench nccl --library /nowhere/libgradus_cuda.so 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.output,
              StartsWith("gradus: error: cuda: cannot load /nowhere/libgradus_cuda.so: "));
}

TEST(BenchEngine, RoofReadsWeightsOnceAStepAndEveryKey) {
  model::ModelConfig config = cli::bench_shape("qwen3-0.6b").value();
  // 596,049,920 weights in bf16, 112 KiB of keys and values a token.
  EXPECT_DOUBLE_EQ(cli::bytes_of_decoding(config, 1, 0, 1), 2 * 596049920.0);
  EXPECT_DOUBLE_EQ(cli::bytes_of_decoding(config, 3, 10, 2),
                   4 * 596049920.0 + 3 * 21 * 112 * 1024.0);
  // Of an embedding that is not the head, only the batch's rows are read.
  config.tie_embeddings = false;
  EXPECT_DOUBLE_EQ(cli::bytes_of_decoding(config, 1, 0, 1), 2 * 596049920.0);
}

TEST(Device, ThatIsMissingOrUnknownIsSaid) {
  EXPECT_THAT(
      run_gradus("generate --model tests/golden/tiny_models/qwen2 --device tpu 2>&1").output,
      HasSubstr("--device"));
  const Outcome outcome = run_gradus(
      "generate --model tests/golden/tiny_models/qwen2 --prompts /dev/null --device cuda 2>&1");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.output, StartsWith("gradus: error: device cuda: head_dim is "));
}

}  // namespace
}  // namespace gradus::test
