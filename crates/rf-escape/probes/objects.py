"""Kernel objects: each function makes one more of its kind, or one more batch; run as `python3 objects.py NAME MOST [keep]`.

It ends by itself at MOST, or where the kernel ends it: with an error, or by killing it. Each line printed is how many there
are by then; `ENDED word` follows the last one, with what ended it. With `keep` it then waits, and holds what it has.

What a process does not hold and would outlive it (System V objects) is removed at its end.
"""

import atexit
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
KEPT = []
PAGE = 4096


def call(number, *arguments):
    ctypes.set_errno(0)
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"call {number}")
    return result


def of_libc(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def keep(thing):
    KEPT.append(thing)
    return 1


# Processes.


def processes():
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
        os._exit(0)
    atexit.register(os.kill, pid, signal.SIGKILL)
    return keep(pid)


def zombies():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return keep(pid)


def threads():
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    return keep(thread)


def queued_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    of_libc("sigqueue", os.getpid(), int(signal.SIGRTMIN), None)
    return 1


def posix_timers():
    timer = ctypes.c_int()
    call(222, 0, None, ctypes.byref(timer))
    return 1


def seccomp_filters():
    """Filters of 4,000 instructions that allow everything."""
    call(157, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    load = struct.pack("HBBI", 0x20, 0, 0, 0)
    program = ctypes.create_string_buffer(load * 3_999 + allow, 8 * 4_000)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4_000, ctypes.addressof(program)), 16)
    call(317, 1, 0, header)
    return 1


def seccomp_filters_by_prctl():
    call(157, 38, 1, 0, 0, 0)
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow)), 16)
    call(157, 22, 2, header, 0, 0)  # PR_SET_SECCOMP
    return 1


def landlock_domains():
    call(157, 38, 1, 0, 0, 0)
    handled = ctypes.create_string_buffer(struct.pack("Q", 1 << 12), 8)  # MAKE_SYM
    rules = call(444, handled, 8, 0)
    call(446, rules, 0)
    os.close(rules)
    return 1


# Descriptors.


def files_open():
    return keep(os.open("/dev/null", os.O_RDONLY))


def pipes():
    return keep(os.pipe())


def terminals():
    return keep(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))


def epolls():
    return keep(select.epoll())


def eventfds():
    return keep(of_libc("eventfd", 0, 0))


def timerfds():
    return keep(call(283, 1, 0))


def signalfds():
    mask = ctypes.create_string_buffer(8)
    return keep(call(289, -1, mask, 8, 0))


def memfds():
    return keep(os.memfd_create("one"))


def pidfds():
    return keep(os.pidfd_open(os.getpid()))


def udp_sockets():
    return keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def tcp_listeners():
    return keep(socket.create_server(("127.0.0.1", 0)))


def unix_sockets():
    return keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))


def netlink_sockets():
    return keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


def descriptors_in_flight():
    """Sent to oneself, and not received."""
    for _ in range(2):
        if not KEPT:
            keep(socket.socketpair())
        try:
            KEPT[-1][0].setblocking(False)
            socket.send_fds(KEPT[-1][0], [b"x"], [0])
            return 1
        except BlockingIOError:
            keep(socket.socketpair())
    return 0


# Watches, locks, memory.


def inotify_instances():
    return keep(of_libc("inotify_init1", 0))


def inotify_watches():
    """1,000 at a time, on files of one's own."""
    if not os.path.isdir("/tmp/watched"):
        os.mkdir("/tmp/watched")
        for number in range(1_000):
            os.close(os.open(f"/tmp/watched/{number}", os.O_CREAT | os.O_WRONLY))
        import shutil

        atexit.register(shutil.rmtree, "/tmp/watched")
    fd = of_libc("inotify_init1", 0)
    keep(fd)
    for number in range(1_000):
        of_libc("inotify_add_watch", fd, f"/tmp/watched/{number}".encode(), 2)
    return 1_000


def epoll_items():
    """1,000 at a time."""
    if not KEPT:
        for _ in range(1_000):
            eventfds()
    poll = select.epoll()
    for fd in KEPT[:1_000]:
        poll.register(fd)
    keep(poll)
    return 1_000


def file_locks():
    """1,000 at a time: on every other byte of a file."""
    fd = os.memfd_create("locked")
    keep(fd)
    for number in range(1_000):
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * number)
    return 1_000


def file_locks_of_the_dead():
    """1,000 at a time, by a process that shares the table of descriptors and ends."""
    # CLONE_FILES and SIGCHLD.
    pid = call(56, 0x400 | 17, 0, 0, 0, 0)
    if pid == 0:
        code = 1
        try:
            file_locks()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError(errno.ENOLCK, "lockf")
    return 1_000


def mappings():
    """Two pages of different rights each, so that no two become one."""
    for rights in (1, 3):
        if LIBC.mmap(None, ctypes.c_size_t(PAGE), rights, 0x22, -1, ctypes.c_long(0)) == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
    return 2


def memory_policies():
    """A policy of its own for every other page of 20,000, in a process of its own each time."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            area = LIBC.mmap(None, ctypes.c_size_t(40_000 * PAGE), 3, 0x22, -1, ctypes.c_long(0))
            nodes = ctypes.c_ulong(1)
            for number in range(20_000):
                at = ctypes.c_void_p(area + 2 * number * PAGE)
                call(237, at, PAGE, 2, ctypes.byref(nodes), 64, 0)  # MPOL_BIND
        except OSError as error:
            code = error.errno
        os.write(write, bytes([code]))
        time.sleep(1000)
    atexit.register(os.kill, pid, signal.SIGKILL)
    keep(pid)
    code = os.read(read, 1)
    os.close(read)
    os.close(write)
    if code != b"\0":
        raise OSError(code[0] if code else errno.ENOMEM, "mbind")
    return 20_000


def extended_attributes():
    """One for each file: a file system of the host's may have room for no more."""
    path = f"/tmp/attributes-{os.getpid()}-{len(KEPT)}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    atexit.register(os.unlink, path)
    os.setxattr(path, "user.a", bytes(2_000))
    return keep(None)


def names_looked_up():
    """10,000 at a time, none of which is there."""
    keep(None)
    for number in range(10_000):
        try:
            os.stat(f"/tmp/none-{len(KEPT)}-{number}")
        except FileNotFoundError:
            pass
    return 10_000


# System V and POSIX objects.


def shared_segments():
    number = of_libc("shmget", 0, ctypes.c_size_t(PAGE), 0o1600)
    atexit.register(LIBC.shmctl, number, 0, None)
    return 1


def semaphore_sets():
    number = of_libc("semget", 0, 1, 0o1600)
    atexit.register(LIBC.semctl, number, 0, 0)
    return 1


def message_queues():
    number = of_libc("msgget", 0, 0o1600)
    atexit.register(LIBC.msgctl, number, 0, None)
    return keep(number)


def messages():
    """MiB of them."""
    message = ctypes.create_string_buffer(struct.pack("q", 1) + bytes(8_000))
    total = 0
    while total < 1 << 20:
        try:
            if not KEPT:
                message_queues()
            of_libc("msgsnd", KEPT[-1], message, ctypes.c_size_t(8_000), 0o4000)
            total += 8_000
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            message_queues()
    return 1


def posix_queues():
    name = f"ringfence-{os.getpid()}".encode()
    fd = call(240, name, 0o102 | 0o200, 0o600, ctypes.create_string_buffer(struct.pack("4q32x", 0, 1, 1, 0), 64))
    call(241, name)
    return keep(fd)


# What lies in sockets and is not read, in MiB.


def fill(one, two):
    keep(one)
    keep(two)
    total = 0
    one.setblocking(False)
    while total < 64 << 20:
        try:
            total += one.send(bytes(60_000))
        except (BlockingIOError, OSError):
            break
    return total


LEFT = [0]


def mib(total):
    LEFT[0] += total
    whole, LEFT[0] = divmod(LEFT[0], 1 << 20)
    return whole


def unix_bytes():
    return mib(fill(*socket.socketpair()))


def udp_bytes():
    """Datagrams, of which the kernel drops without a word what finds no room: what can be read again is what was kept."""
    two = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    two.bind(("127.0.0.1", 0))
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.connect(two.getsockname())
    for _ in range(200):
        try:
            one.send(bytes(60_000))
        except OSError:
            break
    one.close()
    keep(two)
    # What is held, from the kernel itself: bytes and overhead (sock_diag(7), SO_MEMINFO).
    return mib(struct.unpack("I", two.getsockopt(socket.SOL_SOCKET, 55, 36)[:4])[0])


def netlink_bytes():
    """Answers of the kernel that are not read; as many bytes as one socket takes."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.setblocking(False)
    # 16 bytes of header, a no-op that wants an acknowledgement; many in one message.
    many = struct.pack("IHHII", 16, 1, 0x4 | 0x1, 1, 0) * 500
    held = -1
    while True:
        try:
            sock.send(many)
        except OSError:
            break
        now = struct.unpack("I", sock.getsockopt(socket.SOL_SOCKET, 55, 36)[:4])[0]
        if now == held:
            break
        held = now
    keep(sock)
    return mib(struct.unpack("I", sock.getsockopt(socket.SOL_SOCKET, 55, 36)[:4])[0])


def groups_joined(family, level, option, pack):
    """1,000 at a time, on the loopback."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    keep(sock)
    joined = 0
    for number in range(1_000):
        try:
            sock.setsockopt(level, option, pack(len(KEPT) * 1_000 + number))
            joined += 1
        except OSError:
            if joined == 0:
                raise
            break
    return joined


def ipv6_groups():
    return groups_joined(
        socket.AF_INET6, 41, 20, lambda n: bytes([0xFF, 0x02] + [0] * 10) + struct.pack(">I", n) + struct.pack("I", 1)
    )


def ipv4_groups():
    return groups_joined(socket.AF_INET, 0, 35, lambda n: struct.pack(">I", 0xE8000000 + n) + bytes([127, 0, 0, 1]))


def flow_labels():
    """Leases of IPv6 flow labels, of which the kernel has 4,096 for all."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    keep(sock)
    ask = bytes(15) + b"\1" + struct.pack(">I", 0) + struct.pack("BBHHHI", 0, 1, 1, 600, 600, 0)
    for _ in range(16):
        sock.setsockopt(41, 32, ask)
    return 16


# Calls that are not there.


def keys():
    call(248, b"user", f"ringfence-{len(KEPT)}".encode(), b"x", 1, -2)  # into the process's own keyring
    return keep(None)


def bpf_maps():
    return keep(call(321, 0, ctypes.create_string_buffer(struct.pack("5I", 2, 4, 4, 1, 0), 128), 128))


def perf_counters():
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0), 128)  # PERF_COUNT_SW_CPU_CLOCK
    return keep(call(298, attributes, 0, -1, -1, 0))


def user_faults():
    return keep(call(323, 0))


def io_urings():
    return keep(call(425, 1, ctypes.create_string_buffer(120)))


def aio_contexts():
    call(206, 1, ctypes.byref(ctypes.c_ulong(0)))
    return 1


def fanotify_groups():
    return keep(call(300, 0, 0))


def namespaces():
    call(272, 0x04000000)  # CLONE_NEWUTS
    return keep(os.open("/proc/self/ns/uts", os.O_RDONLY))


def user_namespaces():
    pid = os.fork()
    if pid == 0:
        try:
            call(272, 0x10000000)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "unshare")
    return 1


def mounts():
    call(165, b"none", b"/tmp", b"tmpfs", 0, 0)
    return 1


def device_files():
    import stat

    path = f"/tmp/device-{os.getpid()}-{len(KEPT)}"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))
    atexit.register(os.unlink, path)
    return keep(None)


def huge_pages():
    return keep(call(319, b"huge", 4))


if __name__ == "__main__":
    act, most = globals()[sys.argv[1]], int(sys.argv[2])
    count, shown, ended = 0, time.monotonic(), "most"
    try:
        while count < most:
            more = act()
            if more == 0 and act not in (unix_bytes, udp_bytes, netlink_bytes, messages):
                ended = "nothing"
                break
            count += more
            # Not every step: there may be a million.
            if time.monotonic() - shown > 0.05:
                shown = time.monotonic()
                print(count, flush=True)
    except (OSError, MemoryError, RuntimeError) as error:
        ended = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
    print(count, flush=True)
    print("ENDED", ended, flush=True)
    if "keep" in sys.argv[3:]:
        time.sleep(1000)
