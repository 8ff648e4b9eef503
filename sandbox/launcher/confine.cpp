// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/confine.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/launcher/syscall_filter.h"

namespace gradus::sandbox {
namespace {

constexpr uint64_t kMiB = 1024 * 1024;

bool limit(int resource, uint64_t value) {
  const rlimit both = {value, value};
  return setrlimit(static_cast<__rlimit_resource>(resource), &both) == 0;
}

const char* set_limits(const wire::RunRequest& request) {
  // Whole seconds, rounded up: the watch over the tree is finer, this is what cannot be missed.
  if (!limit(RLIMIT_CPU, (request.cpu_ms + 999) / 1000 + 1)) return "RLIMIT_CPU";
  if (!limit(RLIMIT_AS, request.memory_bytes)) return "RLIMIT_AS";
  if (!limit(RLIMIT_FSIZE, request.disk_bytes)) return "RLIMIT_FSIZE";
  if (!limit(RLIMIT_NOFILE, 64)) return "RLIMIT_NOFILE";
  if (!limit(RLIMIT_CORE, 0)) return "RLIMIT_CORE";
  if (!limit(RLIMIT_MEMLOCK, 0)) return "RLIMIT_MEMLOCK";
  if (!limit(RLIMIT_MSGQUEUE, 0)) return "RLIMIT_MSGQUEUE";
  // Recursion is what answers to exercises are made of. CPython's own stack is fixed by its fork.
  if (request.kind == wire::kExec && !limit(RLIMIT_STACK, 64 * kMiB)) return "RLIMIT_STACK";
  // The launcher, the zygote and the init of the run count too.
  if (!limit(RLIMIT_NPROC, request.num_processes + 3)) return "RLIMIT_NPROC";
  return nullptr;
}

const char* drop_capabilities(const wire::RunRequest& request) {
  for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; ++capability) {
  }
  // Without a user namespace the launcher is still the machine's root here.
  if ((request.layers & wire::bit(wire::kUserNamespace)) == 0) {
    if (setgroups(0, nullptr) != 0) return "setgroups";
    if (setresgid(request.gid, request.gid, request.gid) != 0) return "setresgid";
    if (setresuid(request.uid, request.uid, request.uid) != 0) return "setresuid";
  }
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[2] = {};
  if (syscall(SYS_capset, &header, none) != 0) return "capset";
  return nullptr;
}

// The struct of Landlock ABI 6; older kernels take a shorter one.
struct RulesetAttribute {
  uint64_t handled_access_fs;
  uint64_t handled_access_net;
  uint64_t scoped;
};

bool allow_beneath(int ruleset, const char* path, uint64_t access) {
  const int folder = open(path, O_PATH | O_CLOEXEC);
  if (folder < 0) return false;
  landlock_path_beneath_attr rule = {};
  rule.allowed_access = access;
  rule.parent_fd = folder;
  const long result = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
  close(folder);
  return result == 0;
}

// A second fence around what the mount namespace leaves: reading and executing everywhere, writing
// only in the working folder and to the devices; no TCP; no signals or abstract sockets outwards.
const char* enter_landlock() {
  const int version = landlock_version();
  constexpr uint64_t kRead =
      LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
  // Bits 0-12 came with version 1, REFER with 2, TRUNCATE with 3, IOCTL_DEV with 5.
  const int num_bits = version >= 5 ? 16 : version >= 3 ? 15 : version >= 2 ? 14 : 13;
  const uint64_t all = (uint64_t{1} << num_bits) - 1;
  RulesetAttribute attribute = {};
  attribute.handled_access_fs = all;
  if (version >= 4) attribute.handled_access_net = 3;  // bind and connect
  if (version >= 6) attribute.scoped = 3;              // abstract sockets and signals
  const size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;
  const int ruleset = static_cast<int>(syscall(SYS_landlock_create_ruleset, &attribute, size, 0));
  if (ruleset < 0) return "landlock_create_ruleset";
  if (!allow_beneath(ruleset, "/", kRead) || !allow_beneath(ruleset, "/tmp", all) ||
      !allow_beneath(ruleset, "/dev", kRead | LANDLOCK_ACCESS_FS_WRITE_FILE)) {
    return "landlock_add_rule";
  }
  if (syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) return "landlock_restrict_self";
  close(ruleset);
  return nullptr;
}

}  // namespace

int landlock_version() {
  const long version =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return version > 0 ? static_cast<int>(version) : 0;
}

bool has_seccomp() {
  const uint32_t action = SECCOMP_RET_ERRNO;
  return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

const char* confine(const wire::RunRequest& request) {
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (const char* what = set_limits(request)) return what;
  if (const char* what = drop_capabilities(request)) return what;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return "no_new_privs";
  if ((request.layers & wire::bit(wire::kLandlock)) != 0) {
    if (const char* what = enter_landlock()) return what;
  }
  if ((request.layers & wire::bit(wire::kSeccomp)) != 0 && !install_syscall_filter()) {
    return "seccomp";
  }
  return nullptr;
}

}  // namespace gradus::sandbox
