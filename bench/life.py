"""Parts of bench/run: the life of a sandbox (pause, resume, snapshot, fork), and E2B's own Python client.

Each works on a `Bench` and a `Server` of bench/run and adds rows to the first.
"""

import http.client
import json
import os
import subprocess
import time

MIB = 1 << 20


class Kept:
    """One kept-alive connection to a server, so that what is timed is the request and not the connection."""

    def __init__(self, server, key):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port)
        self.connection.connect()
        self.key = key

    def call(self, method, path, body=None):
        """The answer, and the microseconds until it was read."""
        data = None if body is None else json.dumps(body)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        begun = time.monotonic()
        self.connection.request(method, path, data, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        took = (time.monotonic() - begun) * 1e6
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300].decode(errors='replace')}")
        return (json.loads(text) if text else None), took


def middle(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def shown(values):
    ordered = sorted(values)
    return f"{middle(values) / 1000:.2f} ms ({ordered[int((len(ordered) - 1) * 0.9)] / 1000:.2f})"


def life(bench, server):
    """Snapshot of 10 MB and of 2 GB, fork, resume: each over HTTP, authenticated, in the ledger."""
    rounds = 2 if bench.quick else 20
    kept = Kept(server, server.key)
    result = {}

    def sandbox(mib):
        limits = {"memory_bytes_max": (mib + 256) * MIB, "disk_bytes_max": (mib + 128) * MIB}
        made, _ = kept.call("POST", "/v1/sandboxes", {"limits": limits, "lease_ms": 600_000})
        line = f"dd if=/dev/urandom of=changed bs=1M count={mib} status=none"
        answer = server.exec(server.key, made["id"], shell=line, timeout_ms=120_000)
        if answer["code"] != 0:
            raise RuntimeError(f"the files of a sandbox could not be changed: {answer}")
        return made["id"]

    def drop(place):
        server.destroy(server.key, place)

    # Each snapshot is of a sandbox of its own: of what changed once, nothing is left to be saved the second time.
    sizes = {"10 MB": (10, rounds), **({"64 MB": (64, 1)} if bench.quick else {"2 GB": (2048, 5)})}
    for name, (mib, count) in sizes.items():
        took = []
        for _ in range(count):
            place = sandbox(mib)
            # Filling it may take longer than the server keeps a connection that says nothing.
            kept = Kept(server, server.key)
            kept.call("GET", f"/v1/sandboxes/{place}")
            made, us = kept.call("POST", f"/v1/sandboxes/{place}/snapshots", {})
            took.append(us)
            kept.call("DELETE", f"/v1/snapshots/{made['id']}")
            drop(place)
        result[f"snapshot of {name}"] = took
        bench.row(f"snapshot, {name} changed", shown(took), "-", "-", "≤ 5 ms", middle(took) <= 5_000)

    place = sandbox(10)
    for state in ("running", "paused"):
        took = []
        for _ in range(rounds):
            # Something is new each time, so that each fork has something to take.
            answer = server.exec(server.key, place, shell="date +%N > new")
            if answer["code"] != 0:
                raise RuntimeError(f"a file could not be written: {answer}")
            if state == "paused":
                kept.call("POST", f"/v1/sandboxes/{place}/pause", {})
            made, us = kept.call("POST", f"/v1/sandboxes/{place}/fork", {"count": 1})
            if "sandbox" not in made["forks"][0]:
                raise RuntimeError(f"a fork was refused: {made}")
            took.append(us)
            drop(made["forks"][0]["sandbox"]["id"])
            if state == "paused":
                kept.call("POST", f"/v1/sandboxes/{place}/resume", {})
        result[f"fork of a {state} sandbox"] = took
        bench.row(f"fork of the files of a {state} sandbox", shown(took), "-", "-", "≤ 10 ms", middle(took) <= 10_000)
    pauses, resumes = [], []
    for _ in range(rounds * 2):
        pauses.append(kept.call("POST", f"/v1/sandboxes/{place}/pause", {})[1])
        resumes.append(kept.call("POST", f"/v1/sandboxes/{place}/resume", {})[1])
    result["pause"], result["resume"] = pauses, resumes
    bench.row("pause, until its processes are frozen", shown(pauses), "-", "-", "-", "-")
    bench.row("resume of a frozen sandbox", shown(resumes), "-", "-", "≤ 2 ms", middle(resumes) <= 2_000)
    drop(place)
    bench.results["life"] = result


def e2b(bench, server, root):
    """`Sandbox.create()` to the first command's output with E2B's Python client, over loopback."""
    clients = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(root, "target")), "e2b-clients")
    python = os.path.join(clients, "venv", "bin", "python")
    if not os.path.exists(python):
        bench.absent["E2B's Python client"] = "not installed: python3 tests/e2b/install.py DIRECTORY"
        return
    key = server.call("POST", "/v1/users/bench/keys", {"name": "e2b", "e2b": True})["key"]
    env = {**os.environ, "E2B_API_KEY": key, "E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    count = 3 if bench.quick else 60
    script = os.path.join(root, "bench", "src", "e2b_client.py")
    done = subprocess.run([python, script, str(count)], env=env, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"E2B's client: {done.stderr.strip()[-600:]}")
    result = json.loads(done.stdout)
    bench.results["e2b"] = result
    first = result["first_output"]
    bench.row("E2B's Python client: create() to the first command's output", shown(first), "-", "-", "≤ 8 ms",
              middle(first) <= 8_000)
    bench.row("E2B's Python client: create() until run() of that command returned, its exit on the record",
              shown(result["returned"]), "-", "-", "-", "-")
    bench.row("E2B's Python client: create()", shown(result["create"]), "-", "-", "-", "-")
