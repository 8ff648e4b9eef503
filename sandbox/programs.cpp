// SPDX-License-Identifier: Apache-2.0
#include "sandbox/programs.h"

#include <algorithm>
#include <cctype>

extern "C" {
extern const char gradus_call_header[];
extern const char gradus_call_header_end[];
}

namespace gradus::sandbox {
namespace {

constexpr const char* kProgramName = "program";

std::string json_string(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) quoted += c;
  }
  return quoted + "\"";
}

Run compilation(std::vector<RunFile> files) {
  Run run;
  run.arguments = {"/usr/bin/g++",   "-std=c++20", "-O2",        "-w",      "-pipe",
                   "-fmax-errors=3", "-o",         kProgramName, "main.cpp"};
  run.files = std::move(files);
  run.kept_file = kProgramName;
  run.limits = {.cpu_ms = 30000,
                .wall_ms = 60000,
                .memory_mib = 2048,
                .num_processes = 16,
                .output_kib = 64,
                .disk_mib = 64};
  return run;
}

// "f" as C++ writes it: a function, or a member of the class that it names or that holds it.
std::string cpp_name(std::string_view source, std::string_view function) {
  std::string name(function);
  const bool has_solution = source.find("class Solution") != std::string_view::npos ||
                            source.find("struct Solution") != std::string_view::npos;
  if (name.find('.') == std::string::npos) return has_solution ? "Solution::" + name : name;
  for (size_t dot; (dot = name.find('.')) != std::string::npos;) name.replace(dot, 1, "::");
  return name;
}

}  // namespace

Run python_program(std::string source, std::string stdin_text) {
  Run run;
  run.kind = RunKind::kPythonProgram;
  run.files = {{"main.py", std::move(source)}};
  run.stdin_text = std::move(stdin_text);
  return run;
}

Run python_call(std::string source, std::string_view function, std::string_view arguments_json) {
  Run run = python_program(std::move(source), "");
  run.kind = RunKind::kPythonCall;
  run.call =
      fmt::format(R"({{"function": {}, "arguments": {}}})", json_string(function), arguments_json);
  return run;
}

Run python_value_call(std::string source, std::string_view function,
                      std::string_view arguments_json) {
  Run run = python_call(std::move(source), function, arguments_json);
  run.call->replace(0, 1, R"({"values": true, )");
  return run;
}

Run cpp_compilation(std::string source) { return compilation({{"main.cpp", std::move(source)}}); }

Run cpp_call_compilation(std::string source, std::string_view function) {
  // Its own main, if it has one, must not be in the way.
  const std::string driver = fmt::format(
      "#define main gradus_solution_main\n#include \"solution.cpp\"\n#undef main\n"
      "#include \"call.h\"\nint main() {{ return gradus_call::run(&{}); }}\n",
      cpp_name(source, function));
  return compilation({{"main.cpp", driver},
                      {"solution.cpp", std::move(source)},
                      {"call.h", std::string(gradus_call_header, gradus_call_header_end)}});
}

Run cpp_program(std::string binary, std::string stdin_text) {
  Run run;
  run.arguments = {std::string("/tmp/") + kProgramName};
  run.files = {{kProgramName, std::move(binary)}};
  run.stdin_text = std::move(stdin_text);
  return run;
}

Run cpp_call(std::string binary, std::string_view arguments_json) {
  Run run = cpp_program(std::move(binary), "");
  run.call = std::string(arguments_json);
  return run;
}

}  // namespace gradus::sandbox
