// SPDX-License-Identifier: Apache-2.0
// Attacks on the sandbox, one a function; the first line of stdin names the one to run. An attack
// says "tried" when it begins and "ESCAPED" where it reaches what it should not. hostile.py has the
// same. Compiled inside the sandbox.
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

extern char** environ;

static void escaped(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("ESCAPED ");
  vprintf(format, arguments);
  printf("\n");
  fflush(stdout);
  va_end(arguments);
}
static void refused() { printf("refused: %s\n", strerror(errno)); }
static char buffer[4096];

template <class... A>
static void call(long number, A... arguments) {
  const long result = syscall(number, arguments...);
  if (result >= 0) {
    escaped("system call %ld gave %ld", number, result);
  } else {
    refused();
  }
}
static void reads(const char* path) {
  const int file = open(path, O_RDONLY);
  if (file < 0) return refused();
  const ssize_t size = read(file, buffer, 64);
  if (size < 0) return refused();
  escaped("read %zd bytes of %s: %.40s", size, path, buffer);
}
static void writes(const char* path) {
  const int file = open(path, O_WRONLY | O_CREAT, 0666);
  if (file < 0) return refused();
  escaped("opened %s to write", path);
}
static void lists(const char* path) {
  if (opendir(path) == nullptr) return refused();
  escaped("listed %s", path);
}
static void connects(int family, int kind, const void* address, socklen_t size) {
  const int s = socket(family, kind, 0);
  if (s < 0) return refused();
  if (connect(s, static_cast<const sockaddr*>(address), size) != 0) return refused();
  escaped("connected by family %d", family);
}
static void connects_to(const char* host, int port, int kind) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, host, &address.sin_addr);
  connects(AF_INET, kind, &address, sizeof address);
}
static void connects_to_path(const char* path, size_t size) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path, size);
  connects(AF_UNIX, SOCK_STREAM, &address,
           static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size));
}
static const char* argument() {
  static char line[1024];
  if (fgets(line, sizeof line, stdin) == nullptr) line[0] = 0;
  line[strcspn(line, "\n")] = 0;
  return line;
}

// Processes and time.
static void fork_bomb() {
  for (;;) fork();
}
static void thread_bomb() {
  for (int i = 0; i < 100; ++i) std::thread([] { sleep(1000); }).detach();
  escaped("100 threads");
}
static void exec_chain() {
  char program[] = "/tmp/program";
  char* arguments[] = {program, nullptr};
  lseek(0, 0, SEEK_SET);
  fork();
  execv(program, arguments);
}
static void infinite_loop() {
  for (volatile int i = 0;; ++i) {
  }
}
static void sleep_forever() {
  for (;;) sleep(100000);
}
static void ignore_signals() {
  for (int number = 1; number < 65; ++number) signal(number, SIG_IGN);
  infinite_loop();
}
static void stop_self() { kill(getpid(), SIGSTOP); }
static void daemon_process() {
  if (fork() == 0) {
    setsid();
    if (fork() == 0) {
      for (int fd = 0; fd < 10; ++fd) close(fd);
      sleep(100000);
    }
    _exit(0);
  }
}
static void zombies() {
  for (int i = 0; i < 1000; ++i) {
    const pid_t pid = fork();
    if (pid < 0) return refused();
    if (pid == 0) _exit(0);
  }
  escaped("a thousand zombies");
}
static void orphans_that_hold_output() {
  if (fork() == 0) sleep(100000);
}

// Memory and disk.
static void memory_malloc() {
  for (;;) {
    char* block = static_cast<char*>(malloc(1 << 24));
    if (block == nullptr) return refused();
    for (int i = 0; i < 1 << 24; i += 4096) static_cast<volatile char*>(block)[i] = 1;
  }
}
static void memory_shared() {
  for (;;) {
    void* block = mmap(nullptr, 1 << 24, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return refused();
    memset(block, 1, 1 << 24);
  }
}
static void memory_of_many() {
  for (int i = 0; i < 16; ++i) {
    if (fork() == 0) break;
  }
  volatile char* block = static_cast<char*>(malloc(100 << 20));
  for (int i = 0; i < 100 << 20; i += 4096) block[i] = 1;
  sleep(1000);
}
static void fills(const char* path) {
  const int file = open(path, O_WRONLY | O_CREAT, 0666);
  static char block[1 << 20];
  for (int i = 0; i < 1000; ++i) {
    if (write(file, block, sizeof block) < 0) return refused();
  }
  escaped("wrote 1000 MiB");
}
static void memory_tmpfs() {
  signal(SIGXFSZ, SIG_IGN);
  fills("big");
}
static void memory_dev_shm() {
  signal(SIGXFSZ, SIG_IGN);
  fills("/dev/shm/big");
}
static void memory_memfd() { call(SYS_memfd_create, "x", 0); }
static void sparse_file() {
  signal(SIGXFSZ, SIG_IGN);
  const int file = open("sparse", O_WRONLY | O_CREAT, 0666);
  if (ftruncate(file, 1L << 40) != 0) return refused();
  escaped("a file of 1 TiB");
}
static void many_files() {
  for (int i = 0; i < 100000; ++i) {
    snprintf(buffer, sizeof buffer, "f%d", i);
    const int file = open(buffer, O_WRONLY | O_CREAT, 0666);
    if (file < 0) return refused();
    close(file);
  }
  escaped("100,000 files");
}
static void deep_folders() {
  for (int i = 0; i < 100000; ++i) {
    if (mkdir("d", 0777) != 0 || chdir("d") != 0) return refused();
  }
  escaped("100,000 folders");
}
static int recurse(volatile int n) {
  volatile char frame[1024];
  frame[n % 1024] = 1;
  return recurse(n + 1) + frame[0];
}
static void deep_recursion() { printf("%d", recurse(0)); }
static void huge_argv() {
  static char text[100000];
  memset(text, 'x', sizeof text - 1);
  static char* arguments[1001];
  for (int i = 0; i < 1000; ++i) arguments[i] = text;
  execv("/bin/true", arguments);
  refused();
}
static void lock_memory() { call(SYS_mlock, buffer, sizeof buffer); }

// Output.
static void stdout_flood() {
  for (;;) puts("floodfloodfloodflood");
}
static void stderr_flood() {
  for (;;) fputs("floodfloodfloodflood\n", stderr);
}
static void long_line() {
  static char block[1 << 20];
  memset(block, 'x', sizeof block);
  for (int i = 0; i < 1024; ++i) fwrite(block, 1, sizeof block, stdout);
}
static void invalid_bytes() {
  for (int c = 0; c < 256; ++c) putchar(c);
  fputs("\xff\xfe\x1b[31m\x1b]0;title\x07", stdout);
}
static void close_output() {
  close(1);
  close(2);
  usleep(50000);
}
static void forge_status() {
  static int words[40];
  for (int& word : words) word = 1;
  for (int fd = 3; fd < 64; ++fd) {
    if (write(fd, words, sizeof words) >= 0) escaped("wrote to descriptor %d", fd);
  }
}
static void inherited_descriptors() {
  for (int fd = 3; fd < 1024; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) escaped("descriptor %d is open", fd);
  }
}

// Files.
static void read_passwd() {
  for (const char* path : {"/etc/passwd", "/etc/shadow", "/etc/hostname"}) reads(path);
}
static void read_environment_of_init() {
  reads("/proc/1/environ");
  snprintf(buffer, sizeof buffer, "/proc/%d/environ", getppid());
  reads(buffer);
}
static void own_environment() {
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (strstr(*entry, "CANARY") != nullptr) escaped("%s", *entry);
  }
}
static void proc_self_root() {
  for (const char* path : {"/proc/self/root", "/proc/1/root", "/proc"}) lists(path);
}
static void list_sys() {
  for (const char* path : {"/sys", "/sys/fs/cgroup"}) lists(path);
}
static void list_homes() {
  for (const char* path : {"/root", "/home", "/var", "/work", "/mnt", "/run", "/boot"}) lists(path);
}
static void docker_socket() {
  connects_to_path("/var/run/docker.sock", 20);
  connects_to_path("/run/docker.sock", 16);
}
static void symlink_escape() {
  if (symlink("/../../../../../etc/passwd", "link") == 0) reads("link");
  if (symlink("/proc/self/cwd", "cwd") == 0) reads("cwd/../etc/passwd");
}
static void dotdot_escape() {
  reads("../../../../../../../../etc/passwd");
  if (chdir("..") == 0) reads("../../etc/passwd");
}
static void read_canary_file() { reads(argument()); }
static void write_outside() {
  for (const char* path :
       {"/escape", "/usr/bin/escape", "/usr/escape", "/etc/escape", "/dev/escape", "/gradus/escape",
        "/root/escape", "/var/tmp/escape", "/home/escape"}) {
    writes(path);
  }
}
static void write_canary_file() { writes(argument()); }
static void overwrite_tools() {
  writes("/gradus/zygote.so");
  writes("/usr/bin/g++");
  if (unlink("/gradus/zygote.so") == 0) escaped("unlink");
  if (rename("/usr", "/u") == 0) escaped("rename");
  if (chmod("/usr/bin/g++", 0777) == 0) escaped("chmod");
}
static void devices() {
  for (const char* path : {"/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/nvidia0",
                           "/dev/nvidiactl", "/dev/dri", "/dev/kvm", "/dev/fuse", "/dev/tty",
                           "/dev/console", "/dev/ptmx", "/dev/loop0"}) {
    struct stat about;
    if (lstat(path, &about) == 0) escaped("%s is there", path);
  }
}
static void make_device() {
  for (const mode_t mode : {S_IFCHR | 0666, S_IFBLK | 0666}) {
    if (mknod("device", mode, makedev(1, 1)) == 0) escaped("made a device");
  }
}
static void file_handles() {
  int mount_id = 0;
  call(SYS_name_to_handle_at, AT_FDCWD, "/usr", buffer, &mount_id, 0);
  call(SYS_open_by_handle_at, 0, buffer, 0);
}

// Rights.
static void become_root() {
  if (setuid(0) == 0 || setgid(0) == 0 || seteuid(0) == 0 || setresuid(0, 0, 0) == 0) {
    escaped("set an id");
  }
  if (geteuid() == 0) escaped("is root");
}
static void other_groups() {
  const gid_t group = 0;
  if (setgroups(1, &group) == 0) escaped("setgroups");
}
static void raise_capabilities() {
  uint32_t header[2] = {0x20080522, 0};
  uint32_t data[6] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
  call(SYS_capset, header, data);
}
static void raise_limits() {
  const rlimit more = {1UL << 40, 1UL << 40};
  for (const auto resource : {RLIMIT_AS, RLIMIT_NPROC, RLIMIT_CPU, RLIMIT_NOFILE, RLIMIT_FSIZE}) {
    if (setrlimit(resource, &more) == 0) escaped("limit %d", resource);
  }
}
static void limits_of_init() {
  const rlimit none = {0, 0};
  call(SYS_prlimit64, 1, RLIMIT_CPU, &none, nullptr);
  unsigned long first = 1;
  call(SYS_sched_setaffinity, 1, sizeof first, &first);
}
static void raise_priority() {
  if (setpriority(PRIO_PROCESS, 0, -10) == 0) escaped("setpriority");
  const sched_param parameter = {10};
  if (sched_setscheduler(0, SCHED_FIFO, &parameter) == 0) escaped("sched_setscheduler");
}

// Namespaces and mounts.
static void mount_tmpfs() {
  mkdir("m", 0777);
  call(SYS_mount, "tmpfs", "/tmp/m", "tmpfs", 0, nullptr);
}
static void mount_proc() {
  mkdir("m", 0777);
  call(SYS_mount, "proc", "/tmp/m", "proc", 0, nullptr);
}
static void remount_writable() {
  call(SYS_mount, nullptr, "/usr", nullptr, MS_REMOUNT | MS_BIND, nullptr);
  call(SYS_mount, nullptr, "/", nullptr, MS_REMOUNT, nullptr);
}
static void new_mount_calls() {
  call(SYS_open_tree, AT_FDCWD, "/", 1);
  call(SYS_move_mount, -1, "", AT_FDCWD, "/tmp", 4);
  call(SYS_fsopen, "tmpfs", 0);
  call(SYS_mount_setattr, AT_FDCWD, "/usr", 0, nullptr, 0);
}
static void unmount() {
  call(SYS_umount2, "/usr", MNT_DETACH);
  call(SYS_umount2, "/tmp", MNT_DETACH);
}
static void leave_root() {
  mkdir("jail", 0777);
  call(SYS_chroot, "/tmp/jail");
  call(SYS_pivot_root, ".", ".");
}
static void unshare_user() { call(SYS_unshare, CLONE_NEWUSER); }
static void unshare_all() {
  for (const int flag : {CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET,
                         CLONE_NEWCGROUP, 0x80}) {
    call(SYS_unshare, flag);
  }
}
static void clone_user() {
  const long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) _exit(0);
  if (pid > 0) escaped("clone with a user namespace");
}
static void clone3_user() {
  uint64_t arguments[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
  const long pid = syscall(SYS_clone3, arguments, sizeof arguments);
  if (pid == 0) _exit(0);
  if (pid > 0) escaped("clone3 with a user namespace");
}
static void enter_namespace() {
  const auto init = static_cast<int>(syscall(SYS_pidfd_open, 1, 0));
  call(SYS_setns, init, CLONE_NEWNS);
  call(SYS_setns, init, 0);
}

// Other processes.
static void trace_parent() {
  call(SYS_ptrace, 16, getppid(), 0, 0);
  call(SYS_ptrace, 0x4206, 1, 0, 0);
}
static void read_memory_of_parent() {
  uint64_t vector[2] = {reinterpret_cast<uint64_t>(buffer), 64};
  call(SYS_process_vm_readv, 1, vector, 1, vector, 1, 0);
  call(SYS_process_vm_writev, 1, vector, 1, vector, 1, 0);
}
static void take_descriptor_of_parent() {
  call(SYS_pidfd_getfd, static_cast<int>(syscall(SYS_pidfd_open, 1, 0)), 0, 0);
}
static void kill_all() { kill(-1, SIGTERM); }
static void kill_parent() {
  for (const int number : {SIGTERM, SIGKILL, SIGSTOP, SIGSEGV}) kill(getppid(), number);
  usleep(20000);
  puts("still here");
}
static void kill_range() {
  for (pid_t pid = 1; pid < 70000; ++pid) {
    if (pid != getpid()) kill(pid, SIGKILL);
  }
}
static void compare_processes() { call(SYS_kcmp, 1, getpid(), 0, 0, 0); }

// Network.
static void tcp() { connects_to("127.0.0.1", atoi(argument()), SOCK_STREAM); }
static void metadata_service() { connects_to("169.254.169.254", 80, SOCK_STREAM); }
static void udp() { connects_to("8.8.8.8", 53, SOCK_DGRAM); }
static void dns() {
  addrinfo* found = nullptr;
  if (getaddrinfo("example.com", "80", nullptr, &found) == 0) escaped("resolved");
}
static void abstract_socket() {
  char name[108] = {};
  snprintf(name + 1, sizeof name - 1, "%s", argument());
  connects_to_path(name, 1 + strlen(name + 1));
}
static void raw_sockets() {
  const int kinds[][2] = {{AF_INET, SOCK_RAW},
                          {AF_NETLINK, SOCK_RAW},
                          {AF_PACKET, SOCK_RAW},
                          {AF_ALG, SOCK_SEQPACKET},
                          {AF_VSOCK, SOCK_STREAM}};
  for (const auto& kind : kinds) {
    if (socket(kind[0], kind[1], 0) >= 0) escaped("socket %d", kind[0]);
  }
}

// The kernel's rarer doors.
static void io_uring() { call(SYS_io_uring_setup, 8, buffer); }
static void user_fault() { call(SYS_userfaultfd, 1); }
static void bpf() { call(SYS_bpf, 0, buffer, 72); }
static void keys() {
  call(SYS_keyctl, 0, -3, 1);
  call(SYS_add_key, "user", "name", "x", 1, -3);
  call(SYS_request_key, "user", "name", nullptr, -3);
}
static void perf_events() { call(SYS_perf_event_open, buffer, 0, -1, -1, 0); }
static void set_personality() { call(SYS_personality, 0x0040000); }
static void set_clock() {
  long zero[2] = {};
  call(SYS_clock_settime, 0, zero);
  call(SYS_settimeofday, zero, nullptr);
  call(SYS_adjtimex, buffer);
}
static void host_name() {
  call(SYS_sethostname, "escaped", 7);
  call(SYS_setdomainname, "escaped", 7);
}
static void kernel_control() {
  call(SYS_reboot, 0xfee1dead, 672274793, 0x89abcdef, 0);
  call(SYS_init_module, nullptr, 0, "");
  call(SYS_finit_module, -1, "", 0);
  call(SYS_kexec_load, 0, 0, nullptr, 0);
  call(SYS_swapon, "/tmp", 0);
  call(SYS_quotactl, 0, "/", 0, nullptr);
  call(SYS_acct, "/tmp/acct");
  call(SYS_syslog, 3, nullptr, 0);
}
static void ports() {
  call(SYS_iopl, 3);
  call(SYS_ioperm, 0x80, 1, 1);
  call(SYS_modify_ldt, 1, buffer, 16);
}
static void shared_memory() { call(SYS_shmget, 0x4242, 4096, 01666); }
static void message_queues() {
  call(SYS_msgget, 0x4242, 01666);
  call(SYS_semget, 0x4242, 1, 01666);
  call(SYS_mq_open, "queue", O_CREAT, 0666, nullptr);
}
static void watch_files() {
  call(SYS_fanotify_init, 0, 0);
  call(SYS_inotify_init1, 0);
}
static void own_filter() {
  call(SYS_seccomp, 1, 0, nullptr);
  call(SYS_landlock_create_ruleset, nullptr, 0, 1);
  if (prctl(PR_SET_DUMPABLE, 1) == 0 || prctl(PR_SET_SECCOMP, 2, 0) == 0) escaped("prctl");
}
static void type_into_terminal() {
  for (int fd = 0; fd < 3; ++fd) {
    if (ioctl(fd, TIOCSTI, "x") == 0) escaped("typed");
  }
}
static void move_pages() {
  call(SYS_move_pages, 1, 0, nullptr, nullptr, nullptr, 0);
  call(SYS_migrate_pages, 1, 8, nullptr, nullptr);
}
// Calls of 32-bit programs have numbers of their own; a filter that minds none is passed by.
static void other_architecture() {
  long result = 20;  // getpid there
  asm volatile("int $0x80" : "+a"(result) : : "memory");
  escaped("a 32-bit call gave %ld", result);
}
static void x32_call() {
  const long result = syscall(0x40000000 + SYS_getpid);
  escaped("an x32 call gave %ld", result);
}

// Planted code.
static void preload() {
  char evil[] = "LD_PRELOAD=/tmp/evil.so", program[] = "/usr/bin/id";
  char* arguments[] = {program, nullptr};
  char* environment[] = {evil, nullptr};
  execve(program, arguments, environment);
}
static void planted_library() {
  close(open("libevil.so", O_WRONLY | O_CREAT, 0777));
  if (dlopen("/tmp/libevil.so", RTLD_NOW) != nullptr) escaped("loaded");
}
static void core_dump() { abort(); }
static void crash() { *static_cast<volatile int*>(nullptr) = 1; }
static void leave_files() {
  close(open("left", O_WRONLY | O_CREAT, 0777));
  close(open("/dev/shm/left", O_WRONLY | O_CREAT, 0777));
}
static void find_left_files() {
  DIR* folder = opendir("/tmp");
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] != '.' && strcmp(entry->d_name, "program") != 0) {
      escaped("a file of another run: %s", entry->d_name);
    }
  }
}

struct Attack {
  const char* name;
  void (*run)();
};
static const Attack kAttacks[] = {
    {"fork_bomb", fork_bomb},
    {"thread_bomb", thread_bomb},
    {"exec_chain", exec_chain},
    {"infinite_loop", infinite_loop},
    {"sleep_forever", sleep_forever},
    {"ignore_signals", ignore_signals},
    {"stop_self", stop_self},
    {"daemon", daemon_process},
    {"zombies", zombies},
    {"orphans_that_hold_output", orphans_that_hold_output},
    {"memory_malloc", memory_malloc},
    {"memory_shared", memory_shared},
    {"memory_of_many", memory_of_many},
    {"memory_tmpfs", memory_tmpfs},
    {"memory_dev_shm", memory_dev_shm},
    {"memory_memfd", memory_memfd},
    {"sparse_file", sparse_file},
    {"many_files", many_files},
    {"deep_folders", deep_folders},
    {"deep_recursion", deep_recursion},
    {"huge_argv", huge_argv},
    {"lock_memory", lock_memory},
    {"stdout_flood", stdout_flood},
    {"stderr_flood", stderr_flood},
    {"long_line", long_line},
    {"invalid_bytes", invalid_bytes},
    {"close_output", close_output},
    {"forge_status", forge_status},
    {"inherited_descriptors", inherited_descriptors},
    {"read_passwd", read_passwd},
    {"read_environment_of_init", read_environment_of_init},
    {"own_environment", own_environment},
    {"proc_self_root", proc_self_root},
    {"list_sys", list_sys},
    {"list_homes", list_homes},
    {"docker_socket", docker_socket},
    {"symlink_escape", symlink_escape},
    {"dotdot_escape", dotdot_escape},
    {"read_canary_file", read_canary_file},
    {"write_outside", write_outside},
    {"write_canary_file", write_canary_file},
    {"overwrite_tools", overwrite_tools},
    {"devices", devices},
    {"make_device", make_device},
    {"file_handles", file_handles},
    {"become_root", become_root},
    {"other_groups", other_groups},
    {"raise_capabilities", raise_capabilities},
    {"raise_limits", raise_limits},
    {"limits_of_init", limits_of_init},
    {"raise_priority", raise_priority},
    {"mount_tmpfs", mount_tmpfs},
    {"mount_proc", mount_proc},
    {"remount_writable", remount_writable},
    {"new_mount_calls", new_mount_calls},
    {"unmount", unmount},
    {"leave_root", leave_root},
    {"unshare_user", unshare_user},
    {"unshare_all", unshare_all},
    {"clone_user", clone_user},
    {"clone3_user", clone3_user},
    {"enter_namespace", enter_namespace},
    {"trace_parent", trace_parent},
    {"read_memory_of_parent", read_memory_of_parent},
    {"take_descriptor_of_parent", take_descriptor_of_parent},
    {"kill_all", kill_all},
    {"kill_parent", kill_parent},
    {"kill_range", kill_range},
    {"compare_processes", compare_processes},
    {"tcp", tcp},
    {"metadata_service", metadata_service},
    {"udp", udp},
    {"dns", dns},
    {"abstract_socket", abstract_socket},
    {"raw_sockets", raw_sockets},
    {"io_uring", io_uring},
    {"userfaultfd", user_fault},
    {"bpf", bpf},
    {"keys", keys},
    {"perf_events", perf_events},
    {"personality", set_personality},
    {"set_clock", set_clock},
    {"host_name", host_name},
    {"kernel_control", kernel_control},
    {"ports", ports},
    {"shared_memory", shared_memory},
    {"message_queues", message_queues},
    {"watch_files", watch_files},
    {"own_filter", own_filter},
    {"type_into_terminal", type_into_terminal},
    {"move_pages", move_pages},
    {"other_architecture", other_architecture},
    {"x32_call", x32_call},
    {"preload", preload},
    {"planted_library", planted_library},
    {"core_dump", core_dump},
    {"crash", crash},
    {"leave_files", leave_files},
    {"find_left_files", find_left_files},
};

int main() {
  const char* name = strdup(argument());
  if (strcmp(name, "list") != 0) {
    puts("tried");
    fflush(stdout);
  }
  for (const Attack& attack : kAttacks) {
    if (strcmp(name, "list") == 0) puts(attack.name);
    if (strcmp(name, attack.name) == 0) attack.run();
  }
  return 0;
}
