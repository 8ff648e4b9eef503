// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/kernel_bench.h"

namespace gradus::cli {
namespace {

struct BenchOptions {
  std::string library;
  std::string output = "-";
  int32_t device = 0;
  int64_t repeats = 40;
  bool quick = false;
};

Status bench_kernels(const BenchOptions& options) {
  const auto cuda = kernels::Cuda::open(options.library, options.device);
  GRADUS_RETURN_IF_ERROR(cuda.status());
  const auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  KernelBench bench(*cuda, options.repeats,
                    [&](const nlohmann::ordered_json& row) { return (*writer)->write(row); });
  GRADUS_RETURN_IF_ERROR(bench.run(options.quick));
  return (*writer)->finish();
}

}  // namespace

void add_bench_command(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this machine's kernels");
  bench->require_subcommand(1);
  CLI::App* kernels = bench->add_subcommand("kernels",
                                            "Measure the GPU's language-model head beside cuBLAS' "
                                            "matrix product alone, in the same call; "
                                            "one JSON row a case");
  const auto options = std::make_shared<BenchOptions>();
  kernels->add_option("--library", options->library,
                      "libgradus_cuda.so (default: beside the binary)");
  kernels->add_option("--output", options->output, "Where the rows go; - is standard output");
  kernels->add_option("--device", options->device, "Number of the device");
  kernels->add_option("--repeats", options->repeats, "Timed runs of each case")
      ->check(CLI::Range(int64_t{3}, int64_t{10000}));
  kernels->add_flag("--quick", options->quick, "One shape alone");
  kernels->callback([options, &action] { action = [options] { return bench_kernels(*options); }; });
}

}  // namespace gradus::cli
