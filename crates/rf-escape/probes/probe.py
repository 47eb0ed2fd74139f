"""Attacks on a sandbox, one function each, run as `python3 probe.py NAME [ARGUMENT ...]`.

A probe prints one line: `GOT what` when the attack works, `REFUSED ERRNO` when the kernel refuses it. The same file runs
inside a sandbox and, as the control that shows that the probe can succeed, outside of one. Only the standard library.
"""

import ctypes
import errno
import os
import signal
import socket
import stat
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)


def got(what="it"):
    print("GOT", what)
    sys.exit(0)


def refused(number):
    print("REFUSED", errno.errorcode.get(number, number))
    sys.exit(0)


def call(number, *arguments):
    """A raw system call of x86-64; its result, or the end with REFUSED."""
    ctypes.set_errno(0)
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *wide)
    if result == -1:
        refused(ctypes.get_errno())
    return result


def attempt(number, *arguments):
    """Reaching the call's own checks is success: what refuses an unlisted call is the filter, with ENOSYS."""
    ctypes.set_errno(0)
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if LIBC.syscall(ctypes.c_long(number), *wide) == -1 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
        refused(ctypes.get_errno())
    got(f"call {number}")


def guarded(act):
    try:
        return act()
    except OSError as error:
        refused(error.errno)


# Processes of others.


def see_process(marker):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker.encode() in open(f"/proc/{pid}/cmdline", "rb").read() and int(pid) != os.getpid():
                got(pid)
        except OSError:
            pass
    refused(errno.ESRCH)


def signal_process(pid):
    guarded(lambda: os.kill(int(pid), 0))
    got()


def ptrace_process(pid):
    call(101, 0x4206, int(pid), 0, 0)  # PTRACE_SEIZE
    got()


def read_process_memory(pid):
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_void_p * 2)(0x1000, 8)
    ctypes.set_errno(0)
    one, none = ctypes.c_long(1), ctypes.c_long(0)
    LIBC.syscall(ctypes.c_long(310), ctypes.c_long(int(pid)), local, one, remote, one, none)
    if ctypes.get_errno() == errno.EFAULT:
        got("past the check of who asks")
    refused(ctypes.get_errno())


def limit_process(pid):
    """Sets a limit of another process to what it is."""
    limits = (ctypes.c_uint64 * 2)()
    call(302, int(pid), 7, 0, limits)  # RLIMIT_NOFILE
    call(302, int(pid), 7, limits, 0)
    got(f"{limits[0]} {limits[1]}")


def pidfd_of(pid):
    call(434, int(pid), 0)
    got()


def open_path(path, mode="rb"):
    def act():
        with open(path, mode) as file:
            if "r" in mode:
                file.read(1)

    guarded(act)
    got(path)


def write_path(path, text=""):
    """Opens for writing; the text is written only if there is one, since the control runs on the host."""

    def act():
        fd = os.open(path, os.O_WRONLY)
        if text:
            os.write(fd, text.encode())
        os.close(fd)

    guarded(act)
    got(path)


def list_path(path):
    guarded(lambda: os.listdir(path))
    got(path)


def readlink_path(path):
    got(guarded(lambda: os.readlink(path)))


def enter_namespace(path):
    def act():
        fd = os.open(path, os.O_RDONLY)
        ctypes.set_errno(0)
        if LIBC.syscall(308, fd, 0) == -1:
            raise OSError(ctypes.get_errno(), "setns")

    guarded(act)
    got()


def nonempty(path):
    """Whether a file can be read and has something in it."""

    def act():
        with open(path, "rb") as file:
            return file.read(4096)

    text = guarded(act)
    got(f"{len(text)} bytes") if text.strip(b"\0\n ") else refused(errno.ENODATA)


def contains(path, text):
    def act():
        with open(path, "rb") as file:
            return file.read(1 << 20)

    got() if text.encode() in guarded(act) else refused(errno.ENODATA)


def kernel_addresses():
    """Whether /proc/kallsyms gives addresses that are not zero."""

    def act():
        with open("/proc/kallsyms", "rb") as file:
            return file.read(64)

    text = guarded(act)
    got() if text and text.split(b" ")[0].strip(b"0") else refused(errno.ENODATA)


def negative_oom_score(value):
    write_path("/proc/self/oom_score_adj", value)


def realtime():
    guarded(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
    got()


def negative_nice():
    guarded(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
    got()


# Mounts and namespaces.


def mount_tmpfs():
    os.makedirs("/tmp/at", exist_ok=True)
    call(165, b"none", b"/tmp/at", b"tmpfs", 0, 0)
    got()


def remount_writable(path):
    call(165, 0, path.encode(), 0, 0x20 | 0x1000, 0)  # MS_REMOUNT | MS_BIND
    got()


def unmount(path):
    call(166, path.encode(), 2)  # MNT_DETACH
    got()


def change_root():
    guarded(lambda: os.chroot("/tmp"))
    got()


def pivot():
    attempt(155, b".", b".")


def open_tree():
    call(428, -100, b"/", 1)  # OPEN_TREE_CLONE
    got()


def fs_open():
    call(430, b"tmpfs", 0)
    got()


def unshare(flag):
    call(272, int(flag, 0))
    got()


def clone_with(flag):
    pid = call(56, int(flag, 0) | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    got()


def clone3_with(flag):
    args = struct.pack("11Q", int(flag, 0), 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = call(435, ctypes.create_string_buffer(args, len(args)), len(args))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    got()


# Identity and capabilities.


def set_uid(uid):
    guarded(lambda: os.setuid(int(uid)))
    got()


def set_groups():
    guarded(lambda: os.setgroups([0]))
    got()


def run_set_user_id(path):
    """Runs a set-user-id copy of `id` that is there and tells whose id it had."""
    import subprocess

    result = subprocess.run([path, "-u"], capture_output=True, text=True)
    uid = result.stdout.strip()
    got(uid) if uid and int(uid) != os.getuid() else refused(errno.EPERM)


def set_hostname():
    guarded(lambda: socket.sethostname("mine"))
    got()


def make_device(kind, major, minor):
    import stat

    mode = {"b": stat.S_IFBLK, "c": stat.S_IFCHR}[kind] | 0o600
    path = f"/tmp/device-{os.getpid()}"
    guarded(lambda: os.mknod(path, mode, os.makedev(int(major), int(minor))))
    os.unlink(path)
    got()


def change_owner():
    path = f"/tmp/owned-{os.getpid()}"
    open(path, "w").close()
    guarded(lambda: os.chown(path, 0, 0))
    os.unlink(path)
    got()


def raise_limit():
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard + 1))
    except (ValueError, OSError):
        refused(errno.EPERM)
    got()


# Kernel interfaces that are not on the list.


def syscall(number, *arguments):
    attempt(int(number), *[int(a, 0) for a in arguments])


def is_there(number, absent=(errno.ENOSYS,)):
    """Whether a call of this number, with arguments that are good for nothing, answers that it is there."""
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    return result != -1 or ctypes.get_errno() not in absent


def is_there_unfiltered(number):
    pid = os.fork()
    if pid == 0:
        os._exit(is_there(number, (errno.ENOSYS, errno.ENXIO)))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) not in (0, -signal.SIGILL)


# uretprobe and uprobe: Linux 6.13 and later show them to no filter (kernel/seccomp.c, `seccomp_uprobe_exception`), and kill
# by SIGILL, or answer ENXIO to, whoever calls them from elsewhere than a probe that the host has set.
UNFILTERED = (335, 336)


def numbers_beside(listed):
    """Calls every number that is not listed; got are those that are there."""
    known = {int(number) for number in listed.split(",")}
    others = (number for number in range(1024) if number not in known)
    there = [str(n) for n in others if (is_there_unfiltered(n) if n in UNFILTERED else is_there(n))]
    got(",".join(there)) if there else refused(errno.ENOSYS)


def terminal_injection():
    """Types into its own terminal with TIOCSTI."""
    import fcntl
    import pty

    pid, master = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, 0x5412, b"x")
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    got() if code == 0 else refused(code)


def line_discipline():
    """Gives a terminal of its own another line discipline; its own one again, so that no module is loaded."""
    import fcntl

    master, terminal = os.openpty()
    guarded(lambda: fcntl.ioctl(terminal, 0x5423, struct.pack("i", 0)))
    got()


def huge_file():
    call(319, b"huge", 4)
    got()


def sibling():
    """A child of its makes a child that is its own, so that no tree has it below its maker."""
    pid = os.fork()
    if pid == 0:
        made = LIBC.syscall(ctypes.c_long(56), ctypes.c_long(0x8000 | signal.SIGCHLD), *[ctypes.c_long(0)] * 4)
        os._exit(ctypes.get_errno() if made == -1 else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        refused(code)
    os.wait()
    got()


def dump_limit():
    """Lowers the limit on core dumps to 0, with which a dump still goes to a program (core(5)), and looks whether it is."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    got() if soft == 0 else refused(errno.EPERM)


def compat_entry():
    """Calls getpid through the 32-bit entry `int 0x80` (20 there)."""
    import mmap

    code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20; int 0x80; ret
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    got(f"pid {function()}")


def x32_entry():
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(0x40000000 | 39))
    # Where the kernel has no x32 it answers ENOSYS itself; a filter that kills shows either way.
    got(f"answer {result} {errno.errorcode.get(ctypes.get_errno(), 0)}")


def lease():
    """Takes a write lease on a file of its own, which holds up whoever opens it."""
    import fcntl

    path = f"/tmp/lease-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        guarded(lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK))
    finally:
        os.unlink(path)
    got()


# Sockets.


def socket_of(family, kind, protocol="0"):
    guarded(lambda: socket.socket(int(family), int(kind), int(protocol, 0)))
    got()


def socket_ioctl(request):
    """An ioctl on a socket; the kernel's own answer to it without an argument counts."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    attempt(16, sock.fileno(), int(request, 0), 0)


def upper_protocol():
    """Sets TCP_ULP to `tls` on a connected socket of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    try:
        client.setsockopt(6, 31, b"tls")
    except OSError as error:
        # ENOENT: past the filter, but this kernel has no such module.
        got("asked the kernel") if error.errno == errno.ENOENT else refused(error.errno)
    got()


def tcp_option(number):
    """Sets an option of TCP to what is too short for it: past the filter the kernel says so."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(6, int(number), b"x")
    except OSError as error:
        got("asked the kernel") if error.errno == errno.EINVAL else refused(error.errno)
    got()


def udp_encapsulation():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(17, 100, 2)
    except OSError as error:
        got("asked the kernel") if error.errno in (errno.ENOENT, errno.EPERM) else refused(error.errno)
    got()


def socket_filter():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF), 8)
    packed = struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))
    guarded(lambda: sock.setsockopt(1, 26, packed))
    got()


def abstract_socket(name):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    guarded(lambda: sock.connect("\0" + name))
    got()


def tcp(host, port):
    def act():
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            return sock

    try:
        act()
    except TimeoutError:
        refused(errno.ETIMEDOUT)
    except OSError as error:
        refused(error.errno or errno.EHOSTUNREACH)
    got()


def shared_memory(key):
    call(29, int(key, 0), 1, 0)
    got()


# The sandbox's own exhaustion; what is measured is said by the caller, who looks from outside.


def descriptors():
    names = sorted(os.listdir("/proc/self/fd"), key=int)
    # 0 to 2, and the one that lists.
    extra = [name for name in names if int(name) > 3]
    got(" ".join(extra)) if extra else refused(errno.EBADF)


def environment(*names):
    found = [name for name in os.environ if any(word in name.upper() or word in os.environ[name].upper() for word in names)]
    got(" ".join(found)) if found else refused(errno.ENODATA)


def find_text(root, text):
    """Looks for a text in the regular files below a directory, as far as they can be read."""
    wanted = text.encode()
    for at, dirs, files in os.walk(root):
        dirs[:] = [d for d in dirs if os.path.join(at, d) not in ("/proc", "/sys", "/usr", "/dev")]
        for name in files:
            path = os.path.join(at, name)
            try:
                if os.path.isfile(path) and os.path.getsize(path) < 1 << 22 and wanted in open(path, "rb").read():
                    got(path)
            except OSError:
                pass
    refused(errno.ENODATA)


# Controls that are aimed at what is the sandbox's own.


def find_sockets(root):
    """Sockets with a name: a container engine's, a desktop's, the warden's. The sandbox's own one, for `sudo`, is none."""
    for directory, names, files in os.walk(root):
        if directory in ("/proc", "/sys"):
            names.clear()
            continue
        for path in (os.path.join(directory, name) for name in files):
            try:
                if path != "/run/rf-init.sock" and stat.S_ISSOCK(os.lstat(path).st_mode):
                    got(path)
            except OSError:
                pass
    refused(errno.ENODATA)


def end_process(pid):
    """Sends every signal that ends a process, and looks whether it is still there."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP):
        try:
            os.kill(pid, number)
        except OSError as error:
            refused(error.errno)


def end_process_1():
    end_process(1)
    # Still here, so process 1 is: the kernel drops such signals to it from within its namespace (pid_namespaces(7)).
    refused(errno.EPERM)


def end_own_child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    end_process(pid)
    got() if os.WIFSIGNALED(os.waitpid(pid, 0)[1]) else refused(errno.EPERM)


def lower_limit():
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard - 1))
    got()


def open_path_only(path):
    def act():
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    guarded(act)
    got(path)


def list_and_nonempty(path):
    names = guarded(lambda: os.listdir(path))
    got(" ".join(names[:3])) if names else refused(errno.ENODATA)


def set_clock():
    """Asks for what is checked only after the right to it (clock_adjtime(2), settimeofday(2)): nobody's clock changes."""
    import time

    timex = struct.pack("I4xqqqqi4xqqq", 0x4000, 0, 0, 0, 0, 0, 0, 0, 0) + struct.pack("qqq", 0, 0, 1) + bytes(128)
    # ADJ_TICK, and a tick that is far out of range; a time zone that is.
    for arguments in ((305, 0, timex), (159, timex), (164, 0, struct.pack("ii", 99999, 0))):
        ctypes.set_errno(0)
        buffers = [ctypes.create_string_buffer(a, len(a)) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
        if LIBC.syscall(*buffers) != -1 or ctypes.get_errno() == errno.EINVAL:
            got("past the check of who asks")
    # Reached only where all of that was refused: to the time it is.
    guarded(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
    got()


def bind_port(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    guarded(lambda: sock.bind(("127.0.0.1", int(port))))
    got()


def listening(host, port, *probe):
    """Runs a probe beside somebody who listens there."""
    import subprocess

    with socket.create_server((host, int(port))):
        subprocess.run([sys.executable, *probe])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
