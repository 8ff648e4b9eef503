// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/layers.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>

#include "sandbox/launcher/confine.h"

extern "C" {
extern const char gradus_zygote_library[];
extern const char gradus_zygote_library_end[];
}

namespace gradus::sandbox {
namespace {

// Programs of root run as one of these, which own nothing. Debian gives 60000-64999 to nobody.
constexpr uint32_t kFirstPrivateUid = 60000;
constexpr uint32_t kNumPrivateUids = 4096;
constexpr uint32_t kInnerUid = 1000;  // with a user namespace, what programs take themselves for

bool write_text(const char* path, const char* text) {
  const int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  const auto size = static_cast<ssize_t>(strlen(text));
  const bool is_written = write(file, text, static_cast<size_t>(size)) == size;
  close(file);
  return is_written;
}

void enter_user_namespace(Layers& layers, bool is_root) {
  const uint32_t outer_uid = geteuid(), outer_gid = getegid();
  layers.uid = kInnerUid;
  layers.gid = kInnerUid;
  if (unshare(CLONE_NEWUSER) != 0) {
    layers.note(wire::kUserNamespace, false, "unshare", errno);
    layers.uid = kFirstPrivateUid + static_cast<uint32_t>(getpid()) % kNumPrivateUids;
    layers.gid = layers.uid;
    return;
  }
  char uid_map[64], gid_map[64];
  snprintf(uid_map, sizeof uid_map, "%u %u 1", kInnerUid, outer_uid);
  snprintf(gid_map, sizeof gid_map, "%u %u 1", kInnerUid, outer_gid);
  write_text("/proc/self/setgroups", "deny");
  if (!write_text("/proc/self/uid_map", uid_map) || !write_text("/proc/self/gid_map", gid_map)) {
    layers.note(wire::kUserNamespace, false, "uid_map", errno);
    return;
  }
  layers.note(wire::kUserNamespace, true, is_root ? "of the private uid" : "of the caller's uid");
}

// Root becomes nobody in particular before the user namespace begins, so that nothing in it is
// the machine's root in any sense: RLIMIT_NPROC does not count for that one either.
bool become_private_uid(uint32_t uid) {
  if (setgroups(0, nullptr) != 0 || setresgid(uid, uid, uid) != 0 ||
      setresuid(uid, uid, uid) != 0) {
    return false;
  }
  return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0;  // or /proc/self/uid_map is root's
}

void make_folder(const char* path) {
  for (const char* slash = strchr(path + 1, '/'); slash != nullptr;
       slash = strchr(slash + 1, '/')) {
    char parent[4096];
    snprintf(parent, sizeof parent, "%.*s", static_cast<int>(slash - path), path);
    mkdir(parent, 0755);
  }
  mkdir(path, 0755);
}

// A copy of the mounts at `path`, not yet placed; below 0: there is none.
int copy_mounts(const char* path, uint64_t attributes) {
  const int tree = static_cast<int>(
      syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
  if (tree < 0) return tree;
  mount_attr attribute = {};
  attribute.attr_set = attributes;
  if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attribute,
              sizeof attribute) != 0) {
    close(tree);
    return -1;
  }
  return tree;
}

constexpr uint64_t kReadOnly = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
constexpr uint64_t kDevice = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
constexpr uint32_t kMaxMounts = 64;

struct PlannedMount {
  const char* path = nullptr;
  int tree = -1;
  bool is_file = false;
};

// Copies are taken before the new root covers /tmp, where a path may lie.
bool plan(PlannedMount* mounts, uint32_t& num_mounts, const char* path, uint64_t attributes,
          bool is_needed) {
  struct stat about;
  if (stat(path, &about) != 0) return !is_needed;
  if (num_mounts == kMaxMounts) {
    errno = E2BIG;
    return false;
  }
  const int tree = copy_mounts(path, attributes);
  if (tree < 0) return !is_needed;
  mounts[num_mounts++] = {path, tree, !S_ISDIR(about.st_mode)};
  return true;
}

bool place(const PlannedMount& planned) {
  const char* target = planned.path + 1;  // we stand in the new root
  char parent[4096];
  snprintf(parent, sizeof parent, "%s", target);
  if (planned.is_file) {
    if (char* slash = strrchr(parent, '/')) {
      *slash = 0;
      make_folder(parent);
    }
    const int file = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) return false;
    close(file);
  } else {
    make_folder(target);
  }
  const bool is_placed =
      syscall(SYS_move_mount, planned.tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) == 0;
  close(planned.tree);
  return is_placed;
}

bool write_zygote_library() {
  mkdir("gradus", 0755);
  const int file = open("gradus/zygote.so", O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
  const auto size = static_cast<size_t>(gradus_zygote_library_end - gradus_zygote_library);
  const bool is_written =
      file >= 0 && write(file, gradus_zygote_library, size) == static_cast<ssize_t>(size);
  if (file >= 0) close(file);
  return is_written;
}

// Null, or what could not be done.
const char* try_root(const char* const* read_only, uint32_t num_read_only) {
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return "private mounts";
  PlannedMount mounts[kMaxMounts];
  uint32_t num_mounts = 0;
  if (!plan(mounts, num_mounts, "/usr", kReadOnly, true)) return "bind of /usr";
  const char* const kLinks[] = {"/bin", "/sbin", "/lib", "/lib64", "/lib32"};
  bool is_link[5] = {};
  for (int i = 0; i < 5; ++i) {
    struct stat about;
    is_link[i] = lstat(kLinks[i], &about) == 0 && S_ISLNK(about.st_mode);
    if (!is_link[i]) plan(mounts, num_mounts, kLinks[i], kReadOnly, false);
  }
  plan(mounts, num_mounts, "/etc/ld.so.cache", kReadOnly, false);
  plan(mounts, num_mounts, "/etc/alternatives", kReadOnly, false);
  for (const char* device :
       {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}) {
    if (!plan(mounts, num_mounts, device, kDevice, true)) return "bind of a device";
  }
  for (uint32_t i = 0; i < num_read_only; ++i) {
    if (!plan(mounts, num_mounts, read_only[i], kReadOnly, true)) return "bind of a read_only path";
  }
  if (mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755") != 0) {
    return "tmpfs";
  }
  if (chdir("/tmp") != 0) return "chdir";
  for (uint32_t i = 0; i < num_mounts; ++i) {
    if (!place(mounts[i])) return "move_mount";
  }
  for (int i = 0; i < 5; ++i) {
    char target[32];
    snprintf(target, sizeof target, "usr%s", kLinks[i]);
    if (is_link[i] && symlink(target, kLinks[i] + 1) != 0) return "symlink";
  }
  mkdir("tmp", 0755);
  if (symlink("/tmp", "dev/shm") != 0) return "symlink";
  if (!write_zygote_library()) return "zygote.so";
  // The old root goes on top of the new one and is taken off (pivot_root(2), notes).
  if (syscall(SYS_pivot_root, ".", ".") != 0) return "pivot_root";
  if (umount2(".", MNT_DETACH) != 0) return "umount";
  if (chdir("/") != 0) return "chdir";
  mount_attr attribute = {};
  attribute.attr_set = MOUNT_ATTR_RDONLY;
  if (syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, &attribute, sizeof attribute) != 0) {
    return "read-only root";
  }
  return nullptr;
}

}  // namespace

void Layers::note(wire::Layer layer, bool is_active, const char* detail, int error) {
  wire::LayerState& state = reply.layers[layer];
  state.is_active = is_active;
  snprintf(state.detail, sizeof state.detail, error == 0 ? "%s" : "%s: %s", detail,
           strerror(error));
  if (is_active) active |= wire::bit(layer);
}

bool Layers::is_enough() const {
  const uint32_t needed = (1u << wire::kNumLayers) - 1;
  return ((active | allowed_missing) & needed) == needed;
}

void enter_namespaces(Layers& layers) {
  const bool is_root = geteuid() == 0;
  bool can_try_user = true;
  if (!is_root) {
    layers.note(wire::kPrivateUid, true, "not needed: the caller is not root");
  } else {
    // Whether a user namespace can be had is known before the way back is closed.
    const pid_t probe = static_cast<pid_t>(syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0));
    if (probe == 0) _exit(0);
    const int error = errno;
    can_try_user = probe > 0;
    if (probe > 0) waitpid(probe, nullptr, 0);
    const uint32_t uid = kFirstPrivateUid + static_cast<uint32_t>(getpid()) % kNumPrivateUids;
    char detail[40];
    snprintf(detail, sizeof detail, "uid %u", uid);
    if (!can_try_user) {
      layers.note(wire::kUserNamespace, false, "clone", error);
      layers.note(wire::kPrivateUid, true, detail);
      layers.uid = uid;
      layers.gid = uid;
    } else if (become_private_uid(uid)) {
      layers.note(wire::kPrivateUid, true, detail);
    } else {
      layers.note(wire::kPrivateUid, false, "setresuid", errno);
    }
  }
  if (can_try_user) enter_user_namespace(layers, is_root);

  const struct {
    wire::Layer layer;
    int flags;
    const char* detail;
  } kNamespaces[] = {
      {wire::kMountNamespace, CLONE_NEWNS, "read-only root: /usr and what is configured"},
      {wire::kPidNamespace, CLONE_NEWPID, "one per run"},
      {wire::kNetworkNamespace, CLONE_NEWNET, "no interface is up"},
      {wire::kIpcNamespace, CLONE_NEWIPC, "one per run"},
  };
  for (const auto& entry : kNamespaces) {
    const bool is_entered = unshare(entry.flags) == 0;
    layers.note(entry.layer, is_entered, is_entered ? entry.detail : "unshare",
                is_entered ? 0 : errno);
  }
  if (unshare(CLONE_NEWUTS) == 0 && sethostname("sandbox", 7) != 0) {
    // The host's name is no secret; nothing hangs on it.
  }
}

void build_root(Layers& layers, const char* const* read_only, uint32_t num_read_only) {
  const bool is_watched = layers.watch.open();
  layers.note(wire::kTreeWatch, is_watched,
              is_watched ? "memory and time of all processes of a run" : "mount of proc",
              is_watched ? 0 : errno);
  if ((layers.active & wire::bit(wire::kMountNamespace)) == 0) return;
  if (const char* what = try_root(read_only, num_read_only)) {
    const int error = errno;
    layers.active &= ~wire::bit(wire::kMountNamespace);
    layers.note(wire::kMountNamespace, false, what, error);
  }
}

void probe_rest(Layers& layers) {
  const bool can_filter = has_seccomp();
  layers.note(wire::kSeccomp, can_filter, can_filter ? "system calls by an allow-list" : "seccomp",
              can_filter ? 0 : errno);
  const int version = landlock_version();
  char detail[40];
  snprintf(detail, sizeof detail, "version %d", version);
  layers.note(wire::kLandlock, version > 0, version > 0 ? detail : "landlock_create_ruleset",
              version > 0 ? 0 : errno);
  // The kernel does not hold its own root to RLIMIT_NPROC.
  const bool is_counted = (layers.active & wire::bit(wire::kPrivateUid)) != 0;
  layers.note(wire::kProcessLimit, is_counted,
              is_counted ? "RLIMIT_NPROC" : "RLIMIT_NPROC does not bind root");
}

}  // namespace gradus::sandbox
