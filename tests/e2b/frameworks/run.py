"""Runs a small program of each framework that has an E2B back end, unchanged, by the two or three variables alone.

    run.py [header|wildcard] [deep_agent|openai_agents|smol ...]

The frameworks are installed into target/e2b-frameworks (about 400 MB), each at a fixed version.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from world import INSIDE, TARGET, World, enter_namespaces  # noqa: E402

WANTED = [
    "smolagents==1.26.0",
    "e2b-code-interpreter==2.11.5",
    "e2b==2.63.0",
    "langchain-e2b==0.0.6",
    "deepagents==0.6.12",
    "openai-agents==0.24.0",
]
PROGRAMS = ["deep_agent", "openai_agents", "smol"]


def install(venv: Path) -> None:
    stamp = venv / "installed"
    if stamp.exists() and stamp.read_text() == "\n".join(WANTED):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    subprocess.run([str(venv / "bin/pip"), "install", "--quiet", *WANTED], check=True)
    stamp.write_text("\n".join(WANTED))


def check_packages() -> None:
    """smolagents brings code along that imports Pillow and NumPy; a sandbox's Python is the host's."""
    found = subprocess.run(["/usr/bin/python3", "-c", "import PIL, numpy"], capture_output=True)
    if found.returncode != 0:
        cure = "apt-get install python3-pil python3-numpy"
        sys.exit(f"smolagents needs Pillow and NumPy in the sandbox, whose `/usr` is the host's: {cure}")


def main() -> None:
    mode, *chosen = sys.argv[1:] or ["header"]
    venv = Path(os.environ.get("RINGFENCE_E2B_FRAMEWORKS", TARGET / "e2b-frameworks")).resolve()
    if not os.environ.get(INSIDE):
        install(venv)
    if "smol" in (chosen or PROGRAMS):
        check_packages()
    if mode == "wildcard":
        enter_namespaces()
    failed = []
    with World(mode) as world:
        environment = world.environment(world.key("alice")) | {"PYTHONDONTWRITEBYTECODE": "1"}
        for program in chosen or PROGRAMS:
            command = [str(venv / "bin/python"), str(HERE / f"{program}.py")]
            if subprocess.run(command, env=environment, timeout=300).returncode != 0:
                failed.append(program)
        if failed:
            print(world.log.read_text(errors="replace")[-10_000:], file=sys.stderr)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
