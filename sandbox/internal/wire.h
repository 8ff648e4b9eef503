// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// What Sandbox and its launcher say to each other over a stream socket, and the launcher to the
// processes that it starts. Both ends are of one build, so these are plain structs.
//
//   Sandbox                    launcher
//   StartRequest + body   ->            body: Python's path, then each read-only path
//                         <-   StartReply
//   RunRequest + body     ->            body: stdin, then in the order of the fields of RunRequest
//                         <-   RunReply + stdout + stderr + result + kept file
//
// A text in a body is its length as uint64_t and its bytes.
namespace gradus::sandbox::wire {

// Protections, in the order in which they are reported. See kLayerNames in sandbox.cpp.
enum Layer : uint32_t {
  kUserNamespace,
  kPrivateUid,
  kMountNamespace,
  kPidNamespace,
  kNetworkNamespace,
  kIpcNamespace,
  kSeccomp,
  kLandlock,
  kProcessLimit,
  kTreeWatch,
  kNumLayers,
};
constexpr uint32_t bit(Layer layer) { return 1u << layer; }

struct StartRequest {
  uint32_t allowed_missing = 0;  // bits of layers
  uint32_t num_read_only = 0;
  uint64_t body_bytes = 0;
};

struct LayerState {
  uint32_t is_active = 0;
  char detail[120] = {};
};

struct StartReply {
  uint32_t is_ready = 0;
  LayerState layers[kNumLayers];
  char failure[200] = {};  // what went wrong beside the layers
};

enum RunKind : uint32_t { kExec, kPythonProgram, kPythonCall };

struct RunRequest {
  uint32_t kind = kExec;
  uint32_t num_arguments = 0;  // texts; with kExec the first is the program's path
  uint32_t num_files = 0;      // (name, content) texts, written into the working folder, executable
  uint32_t has_call = 0;       // a text that the program reads from descriptor 3; it writes to 4
  uint32_t has_kept = 0;       // a text: the name of a file to give back
  uint32_t layers = 0;         // set by the launcher: bits of those active
  uint32_t uid = 0;            // set by the launcher: who the program is
  uint32_t gid = 0;
  uint64_t cpu_ms = 0;
  uint64_t wall_ms = 0;
  uint64_t memory_bytes = 0;
  uint64_t num_processes = 0;
  uint64_t output_bytes = 0;
  uint64_t disk_bytes = 0;
  uint64_t body_bytes = 0;
};

enum RunEnd : uint32_t {
  kExited,
  kSignalled,
  kCpuLimit,
  kWallLimit,
  kMemoryLimit,
  kOutputLimit,
  kStarved,        // the wall clock ran out while the machine gave the program no core
  kLauncherError,  // see `failure`
};

struct RunReply {
  uint32_t end = kLauncherError;
  int32_t exit_code = 0;
  int32_t signal = 0;
  uint32_t stdout_bytes = 0;
  uint32_t stderr_bytes = 0;
  uint32_t result_bytes = 0;
  uint32_t kept_bytes = 0;
  uint32_t padding = 0;
  uint64_t cpu_us = 0;
  uint64_t wall_us = 0;
  uint64_t peak_bytes = 0;
  char failure[200] = {};
};

}  // namespace gradus::sandbox::wire
