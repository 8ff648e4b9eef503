// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "cli/command.h"
#include "cli/engine_bench.h"
#include "cli/json_lines.h"
#include "cli/kernel_bench.h"
#include "cli/nccl_bench.h"
#include "cli/training_bench.h"

namespace gradus::cli {
namespace {

struct BenchOptions {
  std::string library;
  std::string output = "-";
  int32_t device = 0;
  int64_t repeats = 40;
  bool quick = false;
  std::string only;
};

Status bench_kernels(const BenchOptions& options) {
  const auto cuda = kernels::Cuda::open(options.library, options.device);
  GRADUS_RETURN_IF_ERROR(cuda.status());
  const auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  KernelBench bench(*cuda, options.repeats,
                    [&](const nlohmann::ordered_json& row) { return (*writer)->write(row); });
  GRADUS_RETURN_IF_ERROR(bench.run(options.quick, options.only));
  return (*writer)->finish();
}

struct EngineBenchArguments {
  BenchOptions common;
  EngineBenchOptions engine = {.shapes = {"qwen3-0.6b", "qwen2.5-0.5b"}, .batches = {1, 64, 256}};
};

Status bench_engine_command(const EngineBenchArguments& arguments) {
  for (const std::string& shape : arguments.engine.shapes) {
    GRADUS_RETURN_IF_ERROR(bench_shape(shape).status());
  }
  const auto cuda = kernels::Cuda::open(arguments.common.library, arguments.common.device);
  GRADUS_RETURN_IF_ERROR(cuda.status());
  const auto writer = JsonLinesWriter::open(arguments.common.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  GRADUS_RETURN_IF_ERROR(
      bench_engine(*cuda, arguments.engine,
                   [&](const nlohmann::ordered_json& row) { return (*writer)->write(row); }));
  return (*writer)->finish();
}

// Device --device + r for rank r; rank 0 writes.
Status bench_nccl_command(const BenchOptions& common, const NcclBenchOptions& options) {
  const auto world = comm::make_communicator();
  GRADUS_RETURN_IF_ERROR(world.status());
  comm::Communicator& ranks = **world;
  const auto cuda = kernels::Cuda::open(common.library, common.device + ranks.rank());
  GRADUS_RETURN_IF_ERROR(agree(ranks, cuda.status()));
  const auto writer = JsonLinesWriter::open(ranks.rank() == 0 ? common.output : "/dev/null");
  GRADUS_RETURN_IF_ERROR(agree(ranks, writer.status()));
  GRADUS_RETURN_IF_ERROR(bench_nccl(*cuda, ranks, options, [&](const nlohmann::ordered_json& row) {
    return (*writer)->write(row);
  }));
  return (*writer)->finish();
}

struct TrainingBenchArguments {
  BenchOptions common;
  TrainingBenchOptions training;
};

Status bench_training_command(const TrainingBenchArguments& arguments) {
  GRADUS_RETURN_IF_ERROR(bench_shape(arguments.training.shape).status());
  const auto world = comm::make_communicator();
  GRADUS_RETURN_IF_ERROR(world.status());
  comm::Communicator& ranks = **world;
  const auto cuda =
      kernels::Cuda::open(arguments.common.library, arguments.common.device + ranks.rank());
  GRADUS_RETURN_IF_ERROR(agree(ranks, cuda.status()));
  const auto writer =
      JsonLinesWriter::open(ranks.rank() == 0 ? arguments.common.output : "/dev/null");
  GRADUS_RETURN_IF_ERROR(agree(ranks, writer.status()));
  GRADUS_RETURN_IF_ERROR(
      bench_training(*cuda, ranks, arguments.training,
                     [&](const nlohmann::ordered_json& row) { return (*writer)->write(row); }));
  return (*writer)->finish();
}

void add_common_options(CLI::App& command, BenchOptions& options) {
  command.add_option("--library", options.library,
                     "libgradus_cuda.so (default: beside the binary)");
  command.add_option("--output", options.output, "Where the rows go; - is standard output");
  command.add_option("--device", options.device, "Number of the device");
}

}  // namespace

void add_bench_command(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this machine's kernels");
  bench->require_subcommand(1);
  CLI::App* kernels =
      bench->add_subcommand("kernels",
                            "Measure the GPU's language-model head, its training and the "
                            "forward's products beside cuBLAS' "
                            "matrix product alone, in the same call; "
                            "one JSON row a case");
  const auto options = std::make_shared<BenchOptions>();
  add_common_options(*kernels, *options);
  kernels->add_option("--repeats", options->repeats, "Timed runs of each case")
      ->check(CLI::Range(int64_t{3}, int64_t{10000}));
  kernels->add_flag("--quick", options->quick, "One shape alone");
  kernels->add_option("--only", options->only, "One kind of case alone")
      ->check(CLI::IsMember({"linear", "sample", "score", "head_training"}));
  kernels->callback([options, &action] { action = [options] { return bench_kernels(*options); }; });

  CLI::App* engine = bench->add_subcommand(
      "engine",
      "Measure the GPU's engine with random weights beside the roof of what it must read; one JSON "
      "row a case");
  const auto arguments = std::make_shared<EngineBenchArguments>();
  add_common_options(*engine, arguments->common);
  engine->add_option("--shape", arguments->engine.shapes,
                     "Shapes of models: qwen3-0.6b, qwen2.5-0.5b, smollm2-135m");
  const CLI::Range positive(int64_t{1}, int64_t{1} << 20);
  engine->add_option("--batch", arguments->engine.batches, "Sequences decoded together")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  engine->add_option("--prompt", arguments->engine.prompt_tokens, "Tokens of a prompt")
      ->check(positive);
  engine->add_option("--new", arguments->engine.new_tokens, "Tokens of a response")
      ->check(positive);
  engine->add_option("--top-k", arguments->engine.top_k, "Keep the k most likely; 0 keeps all");
  engine->add_option("--repeats", arguments->engine.repeats, "Timed runs of each case")
      ->check(positive);
  engine->callback(
      [arguments, &action] { action = [arguments] { return bench_engine_command(*arguments); }; });

  CLI::App* nccl = bench->add_subcommand(
      "nccl",
      "Measure what the devices of all ranks say to each other, under mpirun: a broadcast at once "
      "and in buckets, sums, slices; one JSON row a case");
  const auto nccl_common = std::make_shared<BenchOptions>();
  const auto nccl_options = std::make_shared<NcclBenchOptions>();
  add_common_options(*nccl, *nccl_common);
  nccl->add_option("--mib", nccl_options->mib, "Memory that is moved, in MiB")->check(positive);
  nccl->add_option("--bucket-mib", nccl_options->bucket_mib, "A bucket, in MiB")->check(positive);
  nccl->add_option("--repeats", nccl_options->repeats, "Samples of each case")->check(positive);
  nccl->callback([nccl_common, nccl_options, &action] {
    action = [nccl_common, nccl_options] {
      return bench_nccl_command(*nccl_common, *nccl_options);
    };
  });

  CLI::App* train = bench->add_subcommand(
      "train",
      "Measure a training step on the GPU with random weights beside the rate of one large matrix "
      "product; under mpirun also on all devices; one JSON row each");
  const auto training = std::make_shared<TrainingBenchArguments>();
  add_common_options(*train, training->common);
  train->add_option("--shape", training->training.shape,
                    "Shape of the model: qwen3-0.6b, qwen2.5-0.5b or smollm2-135m");
  train->add_option("--sequences", training->training.sequences, "Sequences in a step")
      ->check(positive);
  train->add_option("--length", training->training.length, "Tokens of a sequence")->check(positive);
  train->add_flag("--gradient-checkpointing", training->training.gradient_checkpointing,
                  "Keep the input of each layer alone");
  train
      ->add_option("--zero-stages", training->training.zero_stages,
                   "Under mpirun: what ranks share out, a row for each (default 0,1)")
      ->delimiter(',')
      ->check(CLI::Range(0, 3));
  train->add_option("--repeats", training->training.repeats, "Timed steps")->check(positive);
  train->callback(
      [training, &action] { action = [training] { return bench_training_command(*training); }; });
}

}  // namespace gradus::cli
