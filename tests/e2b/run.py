"""Drives E2B's own clients through a Ringfence, as two users at once: `run.py header|wildcard [sync|async|js|cli ...]`.

The clients are installed by `install.py` into target/e2b-clients (or where RINGFENCE_E2B_CLIENTS says).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from install import install, search_path
from world import INSIDE, TARGET, World, enter_namespaces

CLIENTS = Path(__file__).resolve().parent / "clients"
JOURNEYS = ["sync", "async", "js", "cli"]
# Longest journey. A debug build on a busy machine is slow.
WITHIN_S = 600


def command(journey: str, installed: Path) -> list[str]:
    if journey == "js":
        return ["node", str(CLIENTS / "journey.mjs")]
    return [str(installed / "venv/bin/python"), str(CLIENTS / f"{journey}_journey.py")]


def main() -> None:
    mode, *chosen = sys.argv[1:] or ["header"]
    installed = Path(os.environ.get("RINGFENCE_E2B_CLIENTS", TARGET / "e2b-clients")).resolve()
    if not os.environ.get(INSIDE):
        install(installed)
    os.environ["PATH"] = search_path(installed)
    if mode == "wildcard":
        enter_namespaces()
    failed = []
    with World(mode) as world:
        for journey in chosen or JOURNEYS:
            begun = time.monotonic()
            # Users of their own, so that what one journey leaves behind is not another's failure.
            environment = world.environment(world.key(f"alice-{journey}")) | {
                "OTHER_E2B_API_KEY": world.key(f"bob-{journey}"),
                "CLIENTS": str(installed / "node/node_modules"),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            code = subprocess.run(command(journey, installed), env=environment, timeout=WITHIN_S).returncode
            print(f"== {mode} {journey}: {code} after {time.monotonic() - begun:.1f} s", flush=True)
            if code != 0:
                failed.append(journey)
        if failed:
            print(world.log.read_text(errors="replace")[-20_000:], file=sys.stderr)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
