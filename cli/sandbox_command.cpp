// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "sandbox/programs.h"
#include "sandbox/sandbox.h"

namespace gradus::cli {
namespace {

// One line a layer, and one for each language that programs can be in.
Status check(const sandbox::SandboxOptions& options) {
  const auto layers = sandbox::probe_layers(options);
  GRADUS_RETURN_IF_ERROR(layers.status());
  auto writer = JsonLinesWriter::open("-");
  GRADUS_RETURN_IF_ERROR(writer.status());
  for (const sandbox::Layer& layer : *layers) {
    GRADUS_RETURN_IF_ERROR((*writer)->write(
        {{"layer", layer.name}, {"active", layer.is_active}, {"detail", layer.detail}}));
  }
  const auto made = sandbox::Sandbox::create(options);
  for (const bool is_python : {true, false}) {
    std::string detail = made.ok() ? "" : "not tried";
    if (made.ok()) {
      const auto result =
          (*made)->run(is_python ? sandbox::python_program("print(1)", "")
                                 : sandbox::cpp_compilation("int main() { return 0; }"));
      if (!result.ok()) {
        detail = result.status().message();
      } else if (result->exit_code != 0) {
        detail = result->stderr_text;
      }
    }
    GRADUS_RETURN_IF_ERROR((*writer)->write({{"language", is_python ? "python" : "cpp"},
                                             {"active", detail.empty()},
                                             {"detail", detail}}));
  }
  GRADUS_RETURN_IF_ERROR((*writer)->finish());
  return made.status();
}

}  // namespace

void add_sandbox_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("sandbox", "The sandbox in which code is judged");
  command->require_subcommand(1);
  CLI::App* checker = command->add_subcommand(
      "check", "Print the layers of protection of this machine; fails where they are not enough");
  auto options = std::make_shared<sandbox::SandboxOptions>();
  checker->add_option("--python", options->python, "Interpreter of Python programs")
      ->capture_default_str();
  checker->add_option("--read-only", options->read_only, "Path to show to programs beside /usr")
      ->allow_extra_args(false);
  checker
      ->add_option("--allow-missing", options->allow_missing,
                   "Layer to do without; may be repeated")
      ->allow_extra_args(false);
  checker->callback([options, &action] { action = [options] { return check(*options); }; });
}

}  // namespace gradus::cli
