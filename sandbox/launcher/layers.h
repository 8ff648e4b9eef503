// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sandbox/internal/wire.h"
#include "sandbox/launcher/watch.h"

// How a launcher shuts itself in, once, before it runs anything.
namespace gradus::sandbox {

struct Layers {
  wire::StartReply reply;
  uint32_t allowed_missing = 0;
  uint32_t active = 0;  // bits
  uint32_t uid = 0;     // of programs, as seen inside
  uint32_t gid = 0;
  TreeWatch watch;

  void note(wire::Layer layer, bool is_active, const char* detail, int error = 0);
  // Every layer is active or allowed to be missing.
  bool is_enough() const;
};

// Before the fork into the worker's process namespace: another user, and the namespaces.
void enter_namespaces(Layers& layers);

// After it, as pid 1: the watch, and the read-only root with /usr, `read_only` and the zygote's
// library.
void build_root(Layers& layers, const char* const* read_only, uint32_t num_read_only);

// What is left to find out: seccomp, Landlock, limits.
void probe_rest(Layers& layers);

}  // namespace gradus::sandbox
