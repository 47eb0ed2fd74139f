"""Holds processes at their steps by ptrace(2), so that a test can look at them there. It runs on the host, as root.

    steps.py first PID...   holds the first program that one of these starts, before its first instruction
    steps.py launch PID     holds the next child of PID at its birth, at every system call it makes, and at its exec
    steps.py each PID       holds every child of PID in that way, from now on

It says READY, and then a line wherever it holds somebody: `EXEC pid`, `CALL number pid`, `END pid`. It goes on when it gets a
line: `go`; `kill`, which kills whom it holds at a system call, and ends; `slay`, which kills and goes on; `await`, which
holds on until somebody else has killed; or `follow`, with which it goes over to holding the first program that whom it
holds starts. At its own end everybody goes on untraced.
"""

import ctypes
import os
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long

# linux/ptrace.h.
CONT, DETACH, SYSCALL, SEIZE, GET_EVENT, LISTEN, GET_CALL = 7, 17, 24, 0x4206, 0x4201, 0x4208, 0x420E
FORKS, EVENT_EXEC, EVENT_STOP = (1, 2, 3), 4, 128
# TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC.
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10
# Every child, whatever signal it ends with (wait4(2)).
ALL = 0x40000000


def ptrace(request, pid, address=None, data=None):
    result = LIBC.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")
    return result


def number_of_call(pid):
    """At the entry of a system call its number; at its exit nothing."""
    told = (ctypes.c_uint64 * 11)()
    ptrace(GET_CALL, pid, ctypes.sizeof(told), ctypes.addressof(told))
    return told[3] if told[0] & 0xFF == 1 else None


def new_child(pid):
    told = ctypes.c_ulong()
    ptrace(GET_EVENT, pid, None, ctypes.addressof(told))
    return told.value


def hold(word, pid):
    """Says where it holds somebody, and waits for what is to come of it; whether that is to follow them."""
    print(word, pid, flush=True)
    answer = sys.stdin.readline().strip()
    if answer == "kill":
        # Not by kill(2): it would be ours to bury first, and its parent be told of its end before.
        ptrace(DETACH, pid, None, signal.SIGKILL)
        print("END", pid, flush=True)
        os._exit(0)
    elif answer == "slay":
        # Ours to bury first.
        os.kill(pid, signal.SIGKILL)
    elif answer == "await":
        # Still held: only its end can come.
        os.waitpid(pid, ALL)
        print("END", pid, flush=True)
        os._exit(0)
    elif answer not in ("go", "follow"):
        os._exit(0)
    return answer == "follow"


def resume(request, pid, number=None):
    try:
        ptrace(request, pid, None, number)
    except ProcessLookupError:
        # Killed meanwhile: its end comes next.
        pass


def main():
    mode, roots = sys.argv[1], {int(pid) for pid in sys.argv[2:]}
    for pid in roots:
        ptrace(SEIZE, pid, None, OPTIONS)
    print("READY", flush=True)
    watched, known, born = set(), set(roots), set()

    def go_on(pid):
        # Who is launched is followed from call to call, everybody else runs.
        return SYSCALL if mode != "first" and pid in watched else CONT

    while True:
        pid, status = os.waitpid(-1, ALL)
        if not os.WIFSTOPPED(status):
            if mode != "first" and pid in watched:
                hold("END", pid)
            continue
        event, number = status >> 16, os.WSTOPSIG(status)
        if event in FORKS:
            child = new_child(pid)
            known.add(child)
            if pid in roots and (mode != "launch" or not watched):
                watched.add(child)
            if child in born:
                resume(go_on(child), child)
            resume(go_on(pid), pid)
        elif event == EVENT_EXEC:
            if pid in watched and hold("EXEC", pid):
                mode, roots, watched = "first", {pid}, set()
            resume(go_on(pid), pid)
        elif event == EVENT_STOP and pid not in known:
            # Its birth, told before its parent's word of it.
            born.add(pid)
        elif event == EVENT_STOP:
            # Its birth, or a stop of its whole group, which is not ours to end.
            resume(LISTEN if number in (signal.SIGSTOP, signal.SIGTSTP) else go_on(pid), pid)
        elif number == signal.SIGTRAP | 0x80:
            call = number_of_call(pid)
            if call is not None:
                hold(f"CALL {call}", pid)
            resume(go_on(pid), pid)
        else:
            resume(go_on(pid), pid, number)


if __name__ == "__main__":
    main()
