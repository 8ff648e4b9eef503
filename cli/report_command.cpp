// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "records/report.h"
#include "records/run_folder.h"

namespace gradus::cli {
namespace {

struct Options {
  std::string run_folder;
  std::string out;
};

Status report(const Options& options) {
  const std::string out =
      options.out.empty() ? records::RunPaths(options.run_folder).report() : options.out;
  const Result<records::ReportSummary> summary = records::write_report(options.run_folder, out);
  GRADUS_RETURN_IF_ERROR(summary.status());
  for (const std::string& warning : summary->warnings) {
    fmt::print(stderr, "gradus report: {}\n", warning);
  }
  Result<std::unique_ptr<JsonLinesWriter>> writer = JsonLinesWriter::open("-");
  GRADUS_RETURN_IF_ERROR(writer.status());
  GRADUS_RETURN_IF_ERROR((*writer)->write({{"report", summary->path},
                                           {"num_steps", summary->num_steps},
                                           {"num_rollouts", summary->num_rollouts},
                                           {"num_warnings", summary->warnings.size()}}));
  return (*writer)->finish();
}

}  // namespace

void add_report_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("report", "Show a run as one self-contained HTML file");
  command->add_option("run_dir", options->run_folder, "Folder of the run")->required();
  command->add_option("--out", options->out, "File to write [RUN_DIR/report.html]");
  command->callback([options, &action] { action = [options] { return report(*options); }; });
}

}  // namespace gradus::cli
