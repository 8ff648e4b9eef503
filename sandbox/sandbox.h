// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

// Runs programs that nobody has read, and lets them do nothing but compute: for code rewards and
// for tools that execute what a model writes. docs/sandbox.md says what stands between such a
// program and the machine.
//
// A sandbox has workers, each a small process that it starts once; a worker runs one program at a
// time. Every run begins with an empty working folder and ends with all of its processes, files,
// mounts and shared memory gone. Linux 5.14 or newer on x86-64; needs no privileges where the
// kernel lets users make namespaces.
namespace gradus::sandbox {

// One protection, as it was found on this machine. All are needed but the last, `control_group`,
// which a process can seldom make and whose work others do, if less sharply.
struct Layer {
  std::string name;  // "network_namespace"
  bool is_active = false;
  std::string detail;  // what it does here, or what the kernel answered
};

struct SandboxOptions {
  int num_workers = 1;                      // programs that run at once; >= 1
  std::string python = "/usr/bin/python3";  // for Python programs only; looked at when first needed
  std::vector<std::string> read_only;       // paths that programs may read beside /usr
  // Layers to do without where they are missing. The mount and process namespaces are not among
  // them: without these a run could leave something behind.
  std::vector<std::string> allow_missing;
};

// What a program may use; for all its processes together unless it says otherwise.
struct RunLimits {
  int64_t cpu_ms = 5000;
  // Runs while all processes wait for something; at most five times this passes in all.
  int64_t wall_ms = 10000;
  int64_t memory_mib = 512;    // resident in all, and address space of each process
  int64_t num_processes = 64;  // and threads
  int64_t output_kib = 1024;   // of stdout, of stderr and of the result, each
  int64_t disk_mib = 16;       // of the working folder
};

enum class RunKind {
  kProgram,        // arguments[0] is a path inside the sandbox
  kPythonProgram,  // the file main.py, as a script, by the warm interpreter
  kPythonCall,     // `call` asks for a function of main.py
};

struct RunFile {
  std::string name;  // without a slash
  std::string content;
};

struct Run {
  RunKind kind = RunKind::kProgram;
  std::vector<std::string> arguments;  // kProgram; at most 64
  std::vector<RunFile> files;          // in the working folder, executable; at most 16
  std::string stdin_text;
  // JSON that the program reads from descriptor 3; it writes its result to 4. See programs.h.
  std::optional<std::string> call;
  std::string kept_file;  // name of a file to give back; empty: none
  RunLimits limits;
};

enum class RunEnd {
  kExited,
  kSignalled,
  kCpuLimit,
  kWallLimit,
  kMemoryLimit,
  kOutputLimit,
  kStarved,  // the machine was too busy to tell: not the program's fault
};

// "exited", "signalled", "cpu_limit", ...
const char* run_end_name(RunEnd end);

struct RunResult {
  RunEnd end = RunEnd::kExited;
  int exit_code = 0;  // with kExited
  int signal = 0;     // with kSignalled
  double cpu_ms = 0;
  double wall_ms = 0;
  int64_t peak_bytes = 0;
  // Any bytes: not necessarily UTF-8, cut at output_kib.
  std::string stdout_text, stderr_text, result;
  std::string kept;  // content of the kept file; empty if there is none
};

class Worker;

// Thread-safe.
class Sandbox {
 public:
  // Unavailable if a layer is missing that is not allowed to, each by name with what the kernel
  // said; InvalidArgument for a name in allow_missing that is none.
  static Result<std::unique_ptr<Sandbox>> create(const SandboxOptions& options);
  ~Sandbox();

  // Waits for a free worker, then for the run. Unavailable when the sandbox itself could not do it
  // (no Python, no memory for a fork, a worker killed from outside): never the program's fault.
  Result<RunResult> run(const Run& run);

  const std::vector<Layer>& layers() const { return layers_; }
  int num_workers() const { return options_.num_workers; }

 private:
  explicit Sandbox(const SandboxOptions& options);
  struct Pool;

  SandboxOptions options_;
  std::vector<Layer> layers_;
  std::unique_ptr<Pool> pool_;
};

// The layers of this machine, whether or not they are enough for create().
Result<std::vector<Layer>> probe_layers(const SandboxOptions& options);

}  // namespace gradus::sandbox
