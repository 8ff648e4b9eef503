// SPDX-License-Identifier: Apache-2.0
#include "sandbox/launcher/syscall_filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <initializer_list>

namespace gradus::sandbox {
namespace {

constexpr int kAllowed[] = {
    // Files. There is nothing to write to but the working folder.
    SYS_read,
    SYS_write,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readv,
    SYS_writev,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_open,
    SYS_openat,
    SYS_creat,
    SYS_close,
    SYS_close_range,
    SYS_lseek,
    SYS_stat,
    SYS_fstat,
    SYS_lstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getdents,
    SYS_getdents64,
    SYS_getcwd,
    SYS_chdir,
    SYS_fchdir,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_mkdir,
    SYS_mkdirat,
    SYS_rmdir,
    SYS_unlink,
    SYS_unlinkat,
    SYS_link,
    SYS_linkat,
    SYS_symlink,
    SYS_symlinkat,
    SYS_chmod,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_umask,
    SYS_truncate,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_fadvise64,
    SYS_utime,
    SYS_utimes,
    SYS_utimensat,
    SYS_futimesat,
    SYS_flock,
    SYS_dup,
    SYS_dup2,
    SYS_dup3,
    SYS_fcntl,
    SYS_pipe,
    SYS_pipe2,
    SYS_sendfile,
    SYS_splice,
    SYS_tee,
    SYS_copy_file_range,
    SYS_poll,
    SYS_ppoll,
    SYS_select,
    SYS_pselect6,
    SYS_epoll_create,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd,
    SYS_eventfd2,
    SYS_getxattr,
    SYS_lgetxattr,
    SYS_fgetxattr,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_flistxattr,
    // Memory.
    SYS_brk,
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_msync,
    SYS_mincore,
    SYS_mlock,
    SYS_munlock,
    SYS_membarrier,
    // Processes and threads; clone has a rule of its own.
    SYS_fork,
    SYS_vfork,
    SYS_execve,
    SYS_execveat,
    SYS_exit,
    SYS_exit_group,
    SYS_wait4,
    SYS_waitid,
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_getpgid,
    SYS_getpgrp,
    SYS_setpgid,
    SYS_getsid,
    SYS_setsid,
    SYS_set_tid_address,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_futex,
    SYS_arch_prctl,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_getpriority,
    SYS_getcpu,
    SYS_getrlimit,
    SYS_setrlimit,
    SYS_getrusage,
    SYS_times,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    // Signals: they reach no further than the run's own process namespace.
    SYS_kill,
    SYS_tkill,
    SYS_tgkill,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_rt_sigqueueinfo,
    SYS_sigaltstack,
    SYS_pause,
    SYS_signalfd,
    SYS_signalfd4,
    SYS_restart_syscall,
    // Time.
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_time,
    SYS_alarm,
    SYS_getitimer,
    SYS_setitimer,
    SYS_timer_create,
    SYS_timer_settime,
    SYS_timer_gettime,
    SYS_timer_getoverrun,
    SYS_timer_delete,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    // Who and where.
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getresuid,
    SYS_getresgid,
    SYS_getgroups,
    SYS_uname,
    SYS_sysinfo,
    SYS_getrandom,
    SYS_capget,
    // Between the descriptors of one family: socketpair, no socket that could be connected.
    SYS_socketpair,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_recvmmsg,
    SYS_shutdown,
    SYS_getsockname,
    SYS_getpeername,
    SYS_getsockopt,
    SYS_setsockopt,
};

// Calls that depend on a first or second argument of 32 bits.
constexpr uint32_t kNewNamespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                    CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
constexpr int kAllowedPrctl[] = {
    PR_SET_NAME,         PR_GET_NAME,    PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE,
    PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, PR_CAPBSET_READ,  PR_SET_VMA,       PR_GET_TIMERSLACK};

constexpr size_t kMaxInstructions = 600;

class FilterBuilder {
 public:
  void add(uint16_t code, uint32_t value, uint8_t if_true = 0, uint8_t if_false = 0) {
    instructions_[size_++] = sock_filter{code, if_true, if_false, value};
  }
  void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)); }
  void load_argument(int index) {  // its low half: x86-64 is little-endian
    load(offsetof(seccomp_data, args) + 8 * static_cast<size_t>(index));
  }
  void load_number() { load(offsetof(seccomp_data, nr)); }
  void give(uint32_t action) { add(BPF_RET | BPF_K, action); }
  // The next instruction runs only if the accumulator is `value`.
  void if_equal(uint32_t value) { add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1); }
  void allow_if_equal(uint32_t value) {
    if_equal(value);
    give(SECCOMP_RET_ALLOW);
  }
  void deny(int error) { give(SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)); }
  // What follows, up to end(), runs only for this call; it must return.
  void begin(int call) {
    load_number();
    begin_ = size_;
    add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 0);
  }
  void end() { instructions_[begin_].jf = static_cast<uint8_t>(size_ - begin_ - 1); }

  sock_fprog program() { return {static_cast<unsigned short>(size_), instructions_}; }

 private:
  sock_filter instructions_[kMaxInstructions];
  size_t size_ = 0;
  size_t begin_ = 0;
};

static_assert(2 * (sizeof kAllowed + sizeof kAllowedPrctl) / sizeof(int) + 60 < kMaxInstructions);

void build(FilterBuilder& filter) {
  filter.load(offsetof(seccomp_data, arch));
  filter.add(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
  filter.give(SECCOMP_RET_KILL_PROCESS);
  filter.load_number();
  filter.add(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1);  // the x32 calls
  filter.give(SECCOMP_RET_KILL_PROCESS);

  filter.begin(SYS_clone);
  filter.load_argument(0);
  filter.add(BPF_JMP | BPF_JSET | BPF_K, kNewNamespaces, 0, 1);
  filter.deny(EPERM);
  filter.give(SECCOMP_RET_ALLOW);
  filter.end();

  filter.begin(SYS_prctl);
  filter.load_argument(0);
  for (const int option : kAllowedPrctl) filter.allow_if_equal(static_cast<uint32_t>(option));
  filter.deny(EPERM);
  filter.end();

  filter.begin(SYS_ioctl);  // typing into a terminal that an ancestor reads
  filter.load_argument(1);
  filter.if_equal(TIOCSTI);
  filter.deny(EPERM);
  filter.if_equal(0x541C);  // TIOCLINUX
  filter.deny(EPERM);
  filter.give(SECCOMP_RET_ALLOW);
  filter.end();

  filter.begin(SYS_personality);  // may be asked for, not set
  filter.load_argument(0);
  filter.allow_if_equal(0xffffffff);
  filter.deny(EPERM);
  filter.end();

  // Of the caller alone: with the limits of init a program could end it, and its own verdict.
  for (const int call : {SYS_prlimit64, SYS_sched_setaffinity}) {
    filter.begin(call);
    filter.load_argument(0);
    filter.allow_if_equal(0);
    filter.deny(EPERM);
    filter.end();
  }

  for (const int call : {SYS_mknod, SYS_mknodat}) {  // named pipes only
    filter.begin(call);
    filter.load_argument(call == SYS_mknod ? 1 : 2);
    filter.add(BPF_ALU | BPF_AND | BPF_K, S_IFMT);
    filter.allow_if_equal(S_IFIFO);
    filter.deny(EPERM);
    filter.end();
  }

  for (const int call :
       {SYS_socket,    SYS_ptrace,    SYS_mount,      SYS_umount2,  SYS_unshare,
        SYS_setns,     SYS_chroot,    SYS_pivot_root, SYS_setuid,   SYS_setgid,
        SYS_setresuid, SYS_setresgid, SYS_setgroups,  SYS_bpf,      SYS_clock_settime,
        SYS_chown,     SYS_fchown,    SYS_lchown,     SYS_fchownat, SYS_setpriority}) {
    filter.begin(call);  // refused as by an ordinary kernel, so that programs say why they stop
    filter.deny(EPERM);
    filter.end();
  }

  filter.load_number();
  for (const int call : kAllowed) filter.allow_if_equal(static_cast<uint32_t>(call));
  filter.deny(ENOSYS);
}

}  // namespace

bool install_syscall_filter() {
  FilterBuilder filter;
  build(filter);
  sock_fprog program = filter.program();
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
}

}  // namespace gradus::sandbox
