# SPDX-License-Identifier: Apache-2.0
# Attacks on the sandbox, one a function; the first line of stdin names the one to run. An attack says
# "tried" when it begins and "ESCAPED" where it reaches what it should not. hostile.cpp has the same.
import ctypes
import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
ATTACKS = {}


def attack(function):
    ATTACKS[function.__name__] = function
    return function


def escaped(what):
    print("ESCAPED", what, flush=True)


def call(number, *arguments):
    """A system call that must be refused."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result >= 0:
        escaped(f"system call {number} gave {result}")
    else:
        print("refused", errno.errorcode[ctypes.get_errno()])


def reads(path, size=64):
    try:
        with open(path, "rb") as file:
            content = file.read(size)
        escaped(f"read {path}: {content[:40]!r}")
    except OSError as error:
        print("refused", error.strerror)


def writes(path):
    try:
        with open(path, "wb") as file:
            file.write(b"x")
        escaped(f"wrote {path}")
    except OSError as error:
        print("refused", error.strerror)


def lists(path):
    try:
        escaped(f"listed {path}: {os.listdir(path)[:5]}")
    except OSError as error:
        print("refused", error.strerror)


def connects(family, kind, address):
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(1)
            s.connect(address)
            s.send(b"x")
        escaped(f"connected {address}")
    except OSError as error:
        print("refused", error)


# Processes and time.
@attack
def fork_bomb():
    while True:
        try:
            os.fork()
        except OSError:
            pass


@attack
def thread_bomb():
    threads = 0
    try:
        while True:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            threads += 1
            if threads > 100:
                escaped("more than 100 threads")
                return
    except RuntimeError:
        print("refused at", threads)


@attack
def exec_chain():
    for _ in range(2):
        if os.fork() == 0:
            break
    os.execv("/usr/bin/python3", ["python3", "-c", sys.argv[0] and "import os,sys\n"
             "while True:\n os.fork()\n os.execv('/usr/bin/python3', ['python3', '-c', 'while 1: pass'])"])


@attack
def infinite_loop():
    while True:
        pass


@attack
def sleep_forever():
    time.sleep(100000)


@attack
def ignore_signals():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass


@attack
def stop_self():
    os.kill(os.getpid(), signal.SIGSTOP)


@attack
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(10):
                try:
                    os.close(fd)
                except OSError:
                    pass
            time.sleep(100000)
        os._exit(0)


@attack
def zombies():
    for _ in range(1000):
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            return print("refused")
    escaped("a thousand zombies")


@attack
def orphans_that_hold_output():
    if os.fork() == 0:
        time.sleep(100000)
    print("parent ends")


# Memory and disk.
@attack
def memory_malloc():
    blocks = []
    while True:
        blocks.append(bytearray(1 << 24))


@attack
def memory_shared():
    maps = []
    while True:
        block = mmap.mmap(-1, 1 << 24)
        block.write(b"x" * (1 << 24))
        maps.append(block)


@attack
def memory_of_many():
    for _ in range(16):
        if os.fork() == 0:
            break
    block = bytearray(100 << 20)
    for i in range(0, len(block), 4096):
        block[i] = 1
    time.sleep(1000)


@attack
def memory_tmpfs():
    with open("big", "wb") as file:
        for _ in range(1000):
            file.write(b"x" * (1 << 20))
    escaped("wrote 1000 MiB")


@attack
def memory_dev_shm():
    with open("/dev/shm/big", "wb") as file:
        for _ in range(1000):
            file.write(b"x" * (1 << 20))
    escaped("wrote 1000 MiB")


@attack
def memory_memfd():
    call(319, b"x", 0)


@attack
def sparse_file():
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    escaped("a file of 1 TiB")


@attack
def many_files():
    for i in range(100000):
        open(f"f{i}", "w").close()
    escaped("100,000 files")


@attack
def deep_folders():
    for _ in range(100000):
        os.mkdir("d")
        os.chdir("d")
    escaped("100,000 folders")


@attack
def deep_recursion():
    sys.setrecursionlimit(10**9)

    def f(n):
        return f(n + 1) + 1

    f(0)


@attack
def huge_argv():
    os.execv("/bin/true", ["true"] + ["x" * 100000] * 1000)


@attack
def huge_environment():
    os.execve("/bin/true", ["true"], {f"v{i}": "x" * 100000 for i in range(1000)})


@attack
def lock_memory():
    call(149, ctypes.c_void_p(ctypes.addressof(ctypes.create_string_buffer(1 << 20))), 1 << 20)


# Output.
@attack
def stdout_flood():
    while True:
        print("flood" * 1000)


@attack
def stderr_flood():
    while True:
        print("flood" * 1000, file=sys.stderr)


@attack
def long_line():
    for _ in range(1024):
        sys.stdout.write("x" * (1 << 20))


@attack
def invalid_bytes():
    os.write(1, bytes(range(256)) + b"\xff\xfe\x00\x1b[31m\x1b]0;title\x07")


@attack
def close_output():
    os.close(1)
    os.close(2)
    time.sleep(0.05)


@attack
def forge_status():
    for fd in range(3, 64):
        try:
            os.write(fd, b"\x01\x00\x00\x00" * 40)
            escaped(f"wrote to descriptor {fd}")
        except OSError:
            pass


@attack
def inherited_descriptors():
    for fd in range(3, 1024):
        try:
            os.fstat(fd)
            escaped(f"descriptor {fd} is open")
        except OSError:
            pass


# Files.
@attack
def read_passwd():
    reads("/etc/passwd")
    reads("/etc/shadow")
    reads("/etc/hostname")


@attack
def read_environment_of_init():
    reads("/proc/1/environ", 1 << 16)
    reads(f"/proc/{os.getppid()}/environ", 1 << 16)


@attack
def own_environment():
    for name, value in os.environ.items():
        if "CANARY" in name or "CANARY" in value:
            escaped(f"{name}={value}")


@attack
def proc_self_root():
    lists("/proc/self/root")
    lists("/proc/1/root")
    lists("/proc")


@attack
def list_sys():
    lists("/sys")
    lists("/sys/fs/cgroup")


@attack
def list_homes():
    for path in ("/root", "/home", "/var", "/work", "/mnt", "/run", "/boot", "/etc/ssl"):
        lists(path)


@attack
def docker_socket():
    connects(socket.AF_UNIX, socket.SOCK_STREAM, "/var/run/docker.sock")
    connects(socket.AF_UNIX, socket.SOCK_STREAM, "/run/docker.sock")


@attack
def symlink_escape():
    os.symlink("/../../../../../etc/passwd", "link")
    reads("link")
    os.symlink("/proc/self/cwd", "cwd")
    reads("cwd/../etc/passwd")


@attack
def dotdot_escape():
    reads("../../../../../../../../etc/passwd")
    os.chdir("..")
    reads("../../etc/passwd")


@attack
def read_canary_file():
    reads(sys.stdin.readline().strip())


@attack
def write_outside():
    for path in ("/escape", "/usr/bin/escape", "/usr/escape", "/etc/escape", "/dev/escape",
                 "/gradus/escape", "/root/escape", "/var/tmp/escape", "/home/escape"):
        writes(path)


@attack
def write_canary_file():
    writes(sys.stdin.readline().strip())


@attack
def overwrite_tools():
    writes("/gradus/zygote.so")
    writes("/usr/bin/python3")
    for function, arguments in ((os.unlink, ("/gradus/zygote.so",)), (os.rename, ("/usr", "/u")),
                                (os.chmod, ("/usr/bin/python3", 0o777)), (os.rmdir, ("/tmp",))):
        try:
            function(*arguments)
            escaped(function.__name__)
        except OSError as error:
            print("refused", error.strerror)


@attack
def devices():
    for path in ("/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/nvidia0", "/dev/nvidiactl",
                 "/dev/dri", "/dev/kvm", "/dev/fuse", "/dev/tty", "/dev/console", "/dev/ptmx",
                 "/dev/loop0", "/dev/net/tun"):
        if os.path.exists(path):
            escaped(f"{path} is there")


@attack
def make_device():
    for mode in (0o20666, 0o60666):
        try:
            os.mknod("device", mode, os.makedev(1, 1))
            escaped("made a device")
        except OSError as error:
            print("refused", error.strerror)


@attack
def file_handles():
    call(303, -100, b"/usr", ctypes.create_string_buffer(256), ctypes.byref(ctypes.c_int()), 0)
    call(304, 0, ctypes.create_string_buffer(256), 0)


# Rights.
@attack
def become_root():
    for function in (os.setuid, os.setgid, os.seteuid, os.setegid):
        try:
            function(0)
            escaped(function.__name__)
        except OSError as error:
            print("refused", error.strerror)
    if os.geteuid() == 0:
        escaped("is root")


@attack
def other_groups():
    try:
        os.setgroups([0])
        escaped("setgroups")
    except OSError as error:
        print("refused", error.strerror)


@attack
def setuid_binaries():
    for path in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/passwd"):
        if os.path.exists(path):
            done = subprocess.run([path, "--version"], capture_output=True)
            print("ran", path, done.returncode)
    subprocess.run(["/usr/bin/cp", "/usr/bin/id", "id"])
    try:
        os.chmod("id", 0o6755)
        output = subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout
        if output.strip() == "0":
            escaped("a set-uid program ran as root")
    except OSError as error:
        print("refused", error.strerror)


@attack
def raise_capabilities():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    call(126, header, data)


@attack
def raise_limits():
    import resource
    for name in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU,
                 resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        try:
            resource.setrlimit(name, (1 << 40, 1 << 40))
            escaped(f"limit {name}")
        except (OSError, ValueError) as error:
            print("refused", error)


@attack
def limits_of_init():
    for pid in (1, os.getppid()):
        call(302, pid, 0, (ctypes.c_uint64 * 2)(0, 0), 0)  # no time of a core
        call(203, pid, 8, ctypes.byref(ctypes.c_uint64(1)))


@attack
def raise_priority():
    for function in (lambda: os.nice(-10), lambda: os.setpriority(0, 0, -10),
                     lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))):
        try:
            function()
            escaped("a higher priority")
        except OSError as error:
            print("refused", error.strerror)


# Namespaces and mounts.
@attack
def mount_tmpfs():
    os.mkdir("m")
    call(165, b"tmpfs", b"/tmp/m", b"tmpfs", 0, 0)


@attack
def mount_proc():
    os.mkdir("m")
    call(165, b"proc", b"/tmp/m", b"proc", 0, 0)


@attack
def remount_writable():
    call(165, 0, b"/usr", 0, 32 | 4096, 0)
    call(165, 0, b"/", 0, 32, 0)


@attack
def new_mount_calls():
    call(428, -100, b"/", 1)
    call(429, -1, b"", -100, b"/tmp", 4)
    call(430, b"tmpfs", 0)
    call(442, -100, b"/usr", 0, 0, 0)


@attack
def unmount():
    call(166, b"/usr", 2)
    call(166, b"/tmp", 2)


@attack
def leave_root():
    os.mkdir("jail")
    call(161, b"/tmp/jail")
    call(155, b".", b".")


@attack
def unshare_user():
    call(272, 0x10000000)


@attack
def unshare_all():
    for flag in (0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000, 0x2000000, 0x80):
        call(272, flag)


@attack
def clone_user():
    result = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
    if result == 0:
        os._exit(0)
    if result > 0:
        escaped("clone with a user namespace")


@attack
def clone3_user():
    arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
    result = libc.syscall(435, arguments, 88)
    if result == 0:
        os._exit(0)
    if result > 0:
        escaped("clone3 with a user namespace")


@attack
def enter_namespace():
    pidfd = os.pidfd_open(os.getppid())
    call(308, pidfd, 0x20000)
    call(308, pidfd, 0)


# Other processes.
@attack
def trace_parent():
    call(101, 16, os.getppid(), 0, 0)
    call(101, 0x4206, 1, 0, 0)


@attack
def read_memory_of_parent():
    buffer = ctypes.create_string_buffer(64)
    iov = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 64)
    call(310, 1, iov, 1, iov, 1, 0)
    call(311, 1, iov, 1, iov, 1, 0)


@attack
def take_descriptor_of_parent():
    call(438, os.pidfd_open(1), 0, 0)


@attack
def kill_all():
    os.kill(-1, signal.SIGTERM)


@attack
def kill_parent():
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
        os.kill(os.getppid(), number)
    time.sleep(0.02)
    print("still here")


@attack
def kill_range():
    for pid in range(1, 70000):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


@attack
def compare_processes():
    call(312, 1, os.getpid(), 0, 0, 0)


# Network.
@attack
def tcp():
    port = int(sys.stdin.readline())
    connects(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))
    connects(socket.AF_INET6, socket.SOCK_STREAM, ("::1", port))


@attack
def metadata_service():
    connects(socket.AF_INET, socket.SOCK_STREAM, ("169.254.169.254", 80))


@attack
def udp():
    connects(socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53))


@attack
def dns():
    try:
        escaped(socket.getaddrinfo("example.com", 80))
    except OSError as error:
        print("refused", error)


@attack
def abstract_socket():
    connects(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + sys.stdin.readline().strip())


@attack
def listen():
    try:
        with socket.socket(socket.AF_INET) as s:
            s.bind(("0.0.0.0", 0))
            s.listen()
        escaped("listens")
    except OSError as error:
        print("refused", error)


@attack
def raw_sockets():
    for family, kind in ((socket.AF_INET, socket.SOCK_RAW), (16, socket.SOCK_RAW), (17, 3), (38, 5),
                         (40, 1)):
        try:
            socket.socket(family, kind, 0)
            escaped(f"socket {family}")
        except OSError as error:
            print("refused", error)


# The kernel's rarer doors.
@attack
def io_uring():
    call(425, 8, ctypes.create_string_buffer(256))


@attack
def userfaultfd():
    call(323, 1)


@attack
def bpf():
    call(321, 0, ctypes.create_string_buffer(128), 72)


@attack
def keys():
    call(250, 0, -3, 1)
    call(248, b"user", b"name", b"x", 1, -3)
    call(249, b"user", b"name", 0, -3)


@attack
def perf_events():
    call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)


@attack
def personality():
    call(135, 0x0040000)


@attack
def set_clock():
    call(227, 0, (ctypes.c_long * 2)(0, 0))
    call(164, (ctypes.c_long * 2)(0, 0), 0)
    call(159, ctypes.create_string_buffer(256))


@attack
def host_name():
    call(170, b"escaped", 7)
    call(171, b"escaped", 7)


@attack
def kernel_control():
    call(169, 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0)  # reboot, with the argument that only arms it
    call(175, 0, 0, b"")
    call(313, -1, b"", 0)
    call(246, 0, 0, 0, 0)
    call(167, b"/tmp", 0)
    call(179, 0, b"/", 0, 0)
    call(163, b"/tmp/acct")
    call(103, 3, 0, 0)


@attack
def ports():
    call(172, 3)
    call(173, 0x80, 1, 1)
    call(154, 1, ctypes.create_string_buffer(16), 16)


@attack
def shared_memory():
    call(29, 0x4242, 4096, 0o1666)


@attack
def message_queues():
    call(68, 0x4242, 0o1666)
    call(64, 0x4242, 1, 0o1666)
    call(240, b"queue", 0o100, 0o666, 0)


@attack
def watch_files():
    call(300, 0, 0)
    call(294, 0)


@attack
def own_filter():
    libc.prctl(38, 1, 0, 0, 0)
    call(317, 1, 0, 0)
    call(444, 0, 0, 1)
    if libc.prctl(4, 1, 0, 0, 0) == 0 or libc.prctl(22, 2, 0, 0, 0) == 0:
        escaped("prctl")


@attack
def type_into_terminal():
    import fcntl
    for fd in (0, 1, 2):
        try:
            fcntl.ioctl(fd, 0x5412, b"x")
            escaped("typed")
        except OSError as error:
            print("refused", error.strerror)


@attack
def move_pages():
    call(279, 1, 0, 0, 0, 0, 0)
    call(256, 1, 8, 0, 0)


# Planted code.
@attack
def preload():
    with open("evil.so", "wb") as file:
        file.write(b"\x7fELF not really")
    output = subprocess.run(["/usr/bin/id"], env={"LD_PRELOAD": "/tmp/evil.so"}, capture_output=True)
    print("ran", output.returncode)


@attack
def planted_library():
    open("libevil.so", "wb").close()
    try:
        ctypes.CDLL("/tmp/libevil.so")
        escaped("loaded")
    except OSError as error:
        print("refused", error)


@attack
def core_dump():
    import resource
    print(resource.getrlimit(resource.RLIMIT_CORE))
    os.abort()


@attack
def crash():
    ctypes.string_at(0)


@attack
def leave_files():
    with open("left", "w") as file:
        file.write("CANARY")
    with open("/dev/shm/left", "w") as file:
        file.write("CANARY")


@attack
def find_left_files():
    names = [name for name in os.listdir("/tmp") if name not in ("main.py", "program")]
    if names:
        escaped(f"files of another run: {names}")


name = sys.stdin.readline().strip()
if name == "list":
    print("\n".join(ATTACKS))
else:
    print("tried", flush=True)
    ATTACKS[name]()
