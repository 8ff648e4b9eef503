// SPDX-License-Identifier: Apache-2.0
#pragma once

// The system calls that untrusted programs may make: what interpreters, compilers and ordinary
// programs need, and nothing by which a process reaches another, the kernel's rarer doors or a
// network. Everything that is not listed answers ENOSYS, so that the calls of later kernels are
// closed by themselves; a call of another architecture (32 bit, x32) kills the process.
namespace gradus::sandbox {

// For the calling thread and all it starts; needs no_new_privs. False: errno says why.
bool install_syscall_filter();

}  // namespace gradus::sandbox
