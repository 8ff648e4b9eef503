// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sandbox/internal/wire.h"

// What a process gives up for good before it runs untrusted code. Compiled into the launcher and
// into the library that the Python zygote loads; no memory is allocated.
namespace gradus::sandbox {

// Limits, capabilities, Landlock, system calls; for the calling process and all it will start. The
// layers are those of `request.layers`. Null, or what could not be done (errno says why).
const char* confine(const wire::RunRequest& request);

// The newest Landlock version that the kernel speaks, 0 for none.
int landlock_version();

// Whether the kernel can filter system calls.
bool has_seccomp();

}  // namespace gradus::sandbox
