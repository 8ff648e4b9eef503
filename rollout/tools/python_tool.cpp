// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "common/strings.h"
#include "rollout/tools/builtin.h"
#include "sandbox/programs.h"

// `python`: runs a program in the sandbox (docs/sandbox.md); what it prints is the answer.
namespace gradus::rollout {
namespace {

using data::ToolStatus;

class Python : public Tool {
 public:
  explicit Python(std::unique_ptr<sandbox::Sandbox> sandbox) : sandbox_(std::move(sandbox)) {}

  ToolReply call(std::string_view text, double seconds) const override {
    sandbox::Run run = sandbox::python_program(std::string(text), "");
    run.limits.wall_ms = std::max<int64_t>(1, static_cast<int64_t>(1000 * seconds));
    run.limits.cpu_ms = run.limits.wall_ms;
    run.limits.output_kib = 64;
    const Result<sandbox::RunResult> result = sandbox_->run(run);
    if (!result.ok()) return {ToolStatus::kError, "python: " + result.status().message()};
    const std::string printed(trim(result->stdout_text));
    switch (result->end) {
      case sandbox::RunEnd::kExited:
        break;
      case sandbox::RunEnd::kCpuLimit:
      case sandbox::RunEnd::kWallLimit:
        return {ToolStatus::kTimeout,
                fmt::format("python: the program did not end within {} s", seconds)};
      case sandbox::RunEnd::kStarved:
        return {ToolStatus::kTimeout, "python: the machine was too busy to run the program"};
      case sandbox::RunEnd::kSignalled:
      case sandbox::RunEnd::kMemoryLimit:
      case sandbox::RunEnd::kOutputLimit:
        return {ToolStatus::kError, fmt::format("python: the program was stopped: {}",
                                                sandbox::run_end_name(result->end))};
    }
    if (result->exit_code != 0) {
      const std::string_view traceback = trim(result->stderr_text);
      const size_t last = traceback.rfind('\n');
      const std::string_view what =
          last == std::string_view::npos ? traceback : traceback.substr(last + 1);
      return {ToolStatus::kError,
              fmt::format("{}{}python: {}", printed, printed.empty() ? "" : "\n",
                          what.empty() ? fmt::format("exit code {}", result->exit_code)
                                       : std::string(what))};
    }
    if (printed.empty()) return {ToolStatus::kOk, "python: the program printed nothing"};
    return {ToolStatus::kOk, printed};
  }

 private:
  std::unique_ptr<sandbox::Sandbox> sandbox_;
};

}  // namespace

Result<std::unique_ptr<Tool>> make_python(const ToolConfig&) {
  Result<std::unique_ptr<sandbox::Sandbox>> sandbox = sandbox::Sandbox::create({});
  if (!sandbox.ok()) return sandbox.status().with_prefix("tool python");
  return std::unique_ptr<Tool>(std::make_unique<Python>(std::move(*sandbox)));
}

}  // namespace gradus::rollout
