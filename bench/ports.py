"""Part of bench/run: a port of a sandbox through the server, against a direct connection to the same listener.

The direct connection is made in the sandbox's own network namespace, to its loopback, which only root can. So both ask
the same program, and what differs is the way there: the server's sockets, its parser, and what it writes down.
"""

import ctypes
import os
import socket
import threading
import time

MIB = 1 << 20
CLONE_NEWNET = 0x40000000

# A listener that costs little itself, so that the way to it is what is measured: `/N` answers with N bytes.
LISTENER = """
import socket, threading
block = memoryview(bytes(1 << 20))
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = b''
    while True:
        while b'\\r\\n\\r\\n' not in head:
            more = c.recv(65536)
            if not more: return c.close()
            head += more
        request, head = head.split(b'\\r\\n\\r\\n', 1)
        left = int(request.split(b' ', 2)[1][1:])
        c.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n' % left + (block[:left] if left < 4096 else b''))
        if left < 4096: continue
        while left > 0:
            c.sendall(block[:left]); left -= min(left, 1 << 20)
s = socket.create_server(('127.0.0.1', 8000))
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""


class Way:
    """One kept-alive connection and the request that asks it for some bytes."""

    def __init__(self, connection, head):
        self.connection, self.head = connection, head
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.room = bytearray(MIB)

    def fetch(self, length):
        """The microseconds until all of it was read."""
        begun = time.monotonic()
        self.connection.sendall(self.head % length)
        got = b""
        while b"\r\n\r\n" not in got:
            more = self.connection.recv(65536)
            if not more:
                raise RuntimeError("the connection ended")
            got += more
        head, body = got.split(b"\r\n\r\n", 1)
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"refused: {got[:300].decode(errors='replace')}")
        left = length - len(body)
        while left > 0:
            count = self.connection.recv_into(self.room, min(left, MIB))
            if count == 0:
                raise RuntimeError("the connection ended")
            left -= count
        return (time.monotonic() - begun) * 1e6


def inside(pid, port):
    """A connection made in the network namespace of a process; the socket stays there, the thread does not matter."""
    made = []

    def make():
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{pid}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                made.append(OSError(ctypes.get_errno(), "setns"))
                return
        try:
            made.append(socket.create_connection(("127.0.0.1", port)))
        except OSError as error:
            made.append(error)

    # A thread of its own: its namespace is not taken back.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def listener(server):
    """A process of the sandbox's listener, by what its command line holds."""
    for pid in server.pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"listener.py" in file.read() and os.path.exists(f"/proc/{pid}/ns/net"):
                    return pid
        except OSError:
            continue
    raise RuntimeError("the listener's process was not found")


def middle(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def ports(bench, server):
    """Added time of a small request, and throughput of a large answer: direct and proxied in turn."""
    small, large = (200, 3) if bench.quick else (5000, 20)
    size = (64 if bench.quick else 512) * MIB
    place = server.sandbox(server.key, lease_ms=600_000)
    local = os.path.join(bench.directory, "listener.py")
    with open(local, "w") as file:
        file.write(LISTENER)
    server.put(server.key, place, "/tmp/listener.py", "644", local)
    server.exec(server.key, place, argv=["python3", "/tmp/listener.py"], background=True)
    base = f"/v1/sandboxes/{place}/ports/8000"
    asked = f"GET {base}/%d HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {server.key}\r\n\r\n".encode()
    end = time.monotonic() + 30
    while True:
        try:
            proxied = Way(socket.create_connection(("127.0.0.1", server.port)), asked)
            proxied.fetch(1)
            break
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    direct = Way(inside(listener(server), 8000), b"GET /%d HTTP/1.1\r\nhost: bench\r\n\r\n")
    # In turn, a piece at a time, so that what the machine does meanwhile meets both.
    times = {"direct": [], "proxied": []}
    for _ in range(small // 50):
        for name, way in (("direct", direct), ("proxied", proxied)):
            times[name] += [way.fetch(100) for _ in range(50)]
    rates = {"direct": [], "proxied": []}
    for _ in range(large):
        for name, way in (("direct", direct), ("proxied", proxied)):
            rates[name].append(size / way.fetch(size))
    server.destroy(server.key, place)
    bench.results["ports"] = {"microseconds": times, "megabytes_per_second": rates}
    added = middle(times["proxied"]) - middle(times["direct"])
    part = middle(rates["proxied"]) / middle(rates["direct"])
    bench.row("port proxied: added to a small request", f"{added / 1000:.3f} ms",
              f"{middle(times['direct']) / 1000:.3f} ms direct", "-", "≤ 0.2 ms", added <= 200)
    bench.row("port proxied: throughput", f"{middle(rates['proxied']) / 1000:.2f} GB/s ({part:.2f} ×)",
              f"{middle(rates['direct']) / 1000:.2f} GB/s direct", "-", "≥ 0.8 ×", part >= 0.8)
