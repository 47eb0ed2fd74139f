"""Bombs: each makes more and more of one thing and prints how many it has, a line for each step.

Run as `python3 bomb.py NAME MOST [FILE]`. It ends by itself at MOST, or where the kernel ends it: with an error, or by
killing it. The last line printed is how far it came. With FILE it keeps what it has, makes that file, and waits.
"""

import ctypes
import fcntl
import os
import socket
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20
KEPT = []


def forks():
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
        os._exit(0)
    KEPT.append(pid)


def sessions():
    """Children that leave the session and the process group, and whose parent ends: nobody is left to find them by."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            if os.fork() == 0:
                time.sleep(1000)
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise OSError("no more")


def threads():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    KEPT.append(thread)


def memory():
    KEPT.append(bytearray(os.urandom(4096) * 256))


def memory_in_a_file():
    fd = os.memfd_create("bomb")
    os.write(fd, bytes(MIB))
    KEPT.append(fd)


def shared_memory():
    shmid = LIBC.shmget(0, MIB, 0o1600)
    if shmid < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    LIBC.shmat.restype = ctypes.c_void_p
    at = LIBC.shmat(shmid, None, 0)
    LIBC.shmctl(shmid, 0, None)  # IPC_RMID: it goes with the process
    ctypes.memset(at, 1, MIB)


def pipes():
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, MIB)
    except OSError:
        pass
    KEPT.append(read)
    KEPT.append(write)
    total = 0
    while total < MIB:
        try:
            total += os.write(write, bytes(65536))
        except BlockingIOError:
            return sum_of(pipes, total)
    return sum_of(pipes, total)


def unix_buffers():
    one, two = socket.socketpair()
    return fill(unix_buffers, one, two)


def tcp_buffers():
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    two = listener.accept()[0]
    listener.close()
    return fill(tcp_buffers, one, two)


TOTALS = {}


def sum_of(name, count):
    """Adds bytes up and gives them in MiB."""
    TOTALS[name] = TOTALS.get(name, 0) + count
    return TOTALS[name] // MIB


def fill(name, one, two):
    KEPT.append(one)
    KEPT.append(two)
    one.setblocking(False)
    total = 0
    while True:
        try:
            total += one.send(bytes(65536))
        except BlockingIOError:
            return sum_of(name, total)


def write_file(path):
    with open(path, "ab", buffering=0) as file:
        if file.write(bytes(MIB)) < MIB:
            raise OSError("no more")


def disk():
    write_file("/tmp/bomb")


def disk_of_shm():
    write_file("/dev/shm/bomb")


def disk_of_usr():
    write_file("/usr/local/bomb")


def files():
    os.close(os.open(f"/tmp/bomb-{len(KEPT)}", os.O_CREAT | os.O_WRONLY))
    KEPT.append(None)


def directories():
    os.mkdir(f"/tmp/bomb-{len(KEPT)}")
    KEPT.append(None)


def links():
    os.symlink("x", f"/tmp/bomb-{len(KEPT)}")
    KEPT.append(None)


def descriptors():
    KEPT.append(os.open("/dev/null", os.O_RDONLY))


def locked_memory():
    import mmap

    area = mmap.mmap(-1, MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    KEPT.append(area)
    if LIBC.mlock(ctypes.c_void_p(address), ctypes.c_size_t(MIB)) != 0:
        raise OSError(ctypes.get_errno(), "mlock")


def timers():
    timer = ctypes.c_int()
    if LIBC.syscall(222, 0, None, ctypes.byref(timer)) != 0:  # timer_create
        raise OSError(ctypes.get_errno(), "timer_create")


def watchers():
    fd = LIBC.inotify_init1(0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    KEPT.append(fd)


def terminals():
    KEPT.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))


if __name__ == "__main__":
    act, most = globals()[sys.argv[1]], int(sys.argv[2])
    for count in range(1, most * 64 + 1):
        try:
            reached = act() if act in (pipes, unix_buffers, tcp_buffers) else (act(), count)[1]
        except (OSError, MemoryError, RuntimeError):
            break
        print(reached, flush=True)
        if reached >= most:
            break
    for pid in KEPT if act is forks else []:
        os.kill(pid, 9)
    if len(sys.argv) > 3:
        open(sys.argv[3], "w").close()
        time.sleep(1000)
