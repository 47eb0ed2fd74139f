"""E2B's command line through what Ringfence does for it, as two users at once."""

import json
import os
import re
import subprocess
import time

from together import Steps, at_once, eventually, keys, say

step = Steps()
E2B = os.path.join(os.environ["CLIENTS"], ".bin/e2b")


class Ran:
    def __init__(self, key: str, *args: str, code: int | None = 0, given: str = "") -> None:
        # No terminal, no colours, and nothing asked.
        environment = os.environ | {"E2B_API_KEY": key, "NO_COLOR": "1", "FORCE_COLOR": "0", "CI": "1"}
        done = subprocess.run([E2B, *args], env=environment, capture_output=True, text=True, input=given, timeout=120)
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        if code is not None:
            assert self.code == code, f"e2b {' '.join(args)}: {self.code}\n{self.out}\n{self.err}"

    def json(self) -> object:
        return json.loads(self.out)


def listed(key: str, *args: str) -> list[str]:
    return [one["sandboxId"] for one in Ran(key, "sandbox", "list", "--format", "json", *args).json()]


def made(key: str, *args: str) -> str:
    ran = Ran(key, "sandbox", "create", "--detach", *args)
    found = re.search(r"\bsbx[0-9a-f]{32}\b", ran.out + ran.err)
    assert found, ran.out + ran.err
    return found[0]


@step
def lifecycle(me: str, key: str) -> None:
    id = made(key, "base", "--timeout", "300")
    assert listed(key) == [id]
    info = Ran(key, "sandbox", "info", "--format", "json", id).json()
    assert (info["sandboxId"], info["state"]) == (id, "running"), info
    ran = Ran(key, "sandbox", "exec", "-e", f"WHO={me}", "-c", "/tmp", id, "echo $WHO; pwd")
    assert ran.out == f"{me}\n/tmp\n", ran.out
    assert Ran(key, "sandbox", "exec", "-u", "root", id, "id -u").out == "0\n"
    assert Ran(key, "sandbox", "exec", id, "cat", given=f"given {me}").out == f"given {me}"
    Ran(key, "sandbox", "exec", id, "exit 3", code=3)
    Ran(key, "sandbox", "pause", id)
    assert id in listed(key, "--state", "paused") and id not in listed(key)
    Ran(key, "sandbox", "resume", id)
    assert id in listed(key)

    def metrics() -> bool:
        rows = [line for line in Ran(key, "sandbox", "metrics", "--format", "json", id).out.splitlines() if line]
        return bool(rows)

    eventually("metrics", metrics)
    Ran(key, "sandbox", "logs", "--format", "json", id)
    Ran(key, "sandbox", "kill", id)
    assert listed(key) == []
    gone = Ran(key, "sandbox", "kill", id, code=None)
    assert "wasn't found" in gone.out + gone.err or "not found" in gone.out + gone.err, gone.out + gone.err


@step
def snapshots(me: str, key: str) -> None:
    id = made(key, "base")
    Ran(key, "sandbox", "exec", id, f"echo {me} > kept")
    name = f"snap-{me}"
    Ran(key, "sandbox", "snapshot", "create", "--name", name, id)
    found = Ran(key, "sandbox", "snapshot", "list", "--format", "json").json()
    assert len(found) == 1 and any(name in text for text in found[0]["names"]), found
    copy = made(key, found[0]["snapshotId"])
    assert Ran(key, "sandbox", "exec", copy, "cat kept").out == f"{me}\n"
    Ran(key, "sandbox", "snapshot", "delete", found[0]["snapshotId"])
    assert Ran(key, "sandbox", "snapshot", "list", "--format", "json").json() == []
    Ran(key, "sandbox", "kill", id, copy)


@step
def strangers(me: str, key: str) -> None:
    id = made(key, "base")
    other = keys()["bob" if me == "alice" else "alice"]
    assert id not in listed(other)
    absent = "sbx" + "0" * 32
    for command in ["info", "exec", "pause", "kill"]:
        tail = ["true"] if command == "exec" else []

        def said(id: str) -> tuple[int, list[str]]:
            ran = Ran(other, "sandbox", command, id, *tail, code=None)
            lines = (ran.out + ran.err).replace(id, "ID").splitlines()
            # Where in the program an error came up is told as well.
            return ran.code, [line for line in lines if line and not line.lstrip().startswith("at ")]

        theirs, nobodys = said(id), said(absent)
        assert theirs == nobodys, (command, theirs, nobodys)
    assert id in listed(key)
    Ran(key, "sandbox", "kill", id)


@step
def refusals(me: str, key: str) -> None:
    # Building templates is not there: it says so and makes nothing.
    assert Ran("e2b_" + "0" * 40, "sandbox", "list", code=None).code != 0
    templates = Ran(key, "template", "list", code=None)
    assert templates.code in (0, 1), templates.err


def journey(me: str, key: str) -> None:
    for one in step.named():
        begun = time.monotonic()
        one(me, key)
        say(me, one.__name__, begun)


if __name__ == "__main__":
    at_once(journey)
