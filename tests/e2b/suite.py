"""Runs the suites of E2B's own clients against a Ringfence of its own, and says what passes and what does not and why.

    suite.py python|javascript --tree CHECKOUT [--mode header|wildcard] [--only TEXT]

CHECKOUT is a checkout of the repository `e2b-dev/E2B` that somebody fetched; nothing of it comes here. The client is
taken from its registry at the version that the checkout's suite was written for. What is installed, and the list of
tests that need a server (found by running them all against none), stay in `--work` (target/e2b-suite).

A test that does not pass must be on the list `known.tsv`, with the reason; docs/E2B.md has the same list. It ends with 0
when every other one passes.
"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from world import TARGET, World, enter_namespaces

HERE = Path(__file__).resolve().parent
TOOLS = ["pytest>=9,<10", "pytest-asyncio>=1.3,<2", "pytest-xdist>=3,<4", "pytest-timeout>=2.4,<3", "pytest-dotenv>=0.5,<1"]


def run(*command: object, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], check=True, **more)


class Suite:
    """A suite, copied and ready to run."""

    def __init__(self, tree: Path, work: Path) -> None:
        self.tree, self.work = tree, work
        work.mkdir(parents=True, exist_ok=True)

    def known(self, mode: str) -> list[tuple[str, str]]:
        """Patterns of tests that do not pass in this mode, with the reason."""
        rows = []
        for line in (HERE / "known.tsv").read_text().splitlines():
            if line and not line.startswith("#"):
                suite, modes, pattern, reason = line.split("\t")
                if suite == self.name and mode in modes.split(","):
                    rows.append((pattern, reason))
        return rows


class Python(Suite):
    name = "python"

    def prepare(self) -> None:
        source = self.tree / "packages/python-sdk"
        version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
        self.dir = self.work / f"python-{version}"
        self.venv = self.dir / "venv"
        if not (self.venv / "bin/pytest").exists():
            run(sys.executable, "-m", "venv", self.venv)
            run(self.venv / "bin/pip", "install", "--quiet", f"e2b=={version}", *TOOLS)
        # Without the client's source beside them, so that the installed one is what is tested.
        shutil.rmtree(self.dir / "tests", ignore_errors=True)
        shutil.copytree(source / "tests", self.dir / "tests")
        shutil.copy(source / "pytest.ini", self.dir)

    def pytest(self, environment: dict[str, str], report: Path, *more: str) -> None:
        plugin = ["-p", "suite_plugin", "-p", "no:cacheprovider", "--suite-report", str(report)]
        command = [self.venv / "bin/pytest", "-q", "--tb=short", "-n", os.environ.get("SUITE_JOBS", "2"), *plugin, *more]
        environment = environment | {"PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
        with report.with_suffix(".log").open("w") as log:
            subprocess.run([str(part) for part in command], cwd=self.dir, env=environment, stdout=log, stderr=log)

    def needs_server(self) -> Path:
        """Those that do not pass where nothing listens."""
        names = self.dir / "needs-server.txt"
        if not names.exists():
            nobody = "http://127.0.0.1:9"
            environment = dict(os.environ) | {"E2B_API_URL": nobody, "E2B_SANDBOX_URL": nobody}
            environment |= {"E2B_API_KEY": "e2b_" + "0" * 40, "E2B_CONNECTION_RETRIES": "0"}
            report = self.dir / "alone.jsonl"
            self.pytest(environment, report, "--timeout", "20")
            rows = [json.loads(line) for line in report.read_text().splitlines()]
            names.write_text("\n".join(row["name"] for row in rows if row["outcome"] != "passed"))
        return names

    def run(self, environment: dict[str, str], mode: str, only: list[str]) -> list[dict]:
        names = [name for name in self.needs_server().read_text().splitlines() if any(part in name for part in only)]
        chosen = self.dir / f"chosen-{mode}.txt"
        chosen.write_text("\n".join(names))
        report = self.dir / f"report-{mode}.jsonl"
        report.unlink(missing_ok=True)
        paths = sorted({name.split("::")[0] for name in names})
        more = ["--suite-only", str(chosen), "--timeout", os.environ.get("SUITE_TIMEOUT_S", "60")]
        self.pytest(environment, report, *more, *paths)
        if not report.exists():
            sys.exit(report.with_suffix(".log").read_text()[-4000:])
        return [json.loads(line) for line in report.read_text().splitlines()]


class JavaScript(Suite):
    name = "javascript"

    def prepare(self) -> None:
        source = self.tree / "packages/js-sdk"
        package = json.loads((source / "package.json").read_text())
        self.dir = self.work / f"javascript-{package['version']}"
        self.dir.mkdir(exist_ok=True)
        for name in ["src", "tests"]:
            shutil.rmtree(self.dir / name, ignore_errors=True)
            shutil.copytree(source / name, self.dir / name)
        # The suite imports the client by its source, so that is what is tested; what it stands on comes by name.
        wanted = ["vitest", "msw", "dotenv", "@types/node", "@bufbuild/protobuf", "error-stack-parser-es"]
        versions = package["devDependencies"] | package["dependencies"]
        mine = {
            "name": "suite",
            "private": True,
            "version": package["version"],
            "dependencies": package["dependencies"],
            "devDependencies": {name: versions[name] for name in wanted if name in versions},
        }
        manifest, text = self.dir / "package.json", json.dumps(mine, indent=1)
        changed = not manifest.exists() or manifest.read_text() != text
        manifest.write_text(text)
        shutil.copy(HERE / "vitest.config.mjs", self.dir)
        tsconfig = source / "tsconfig.json"
        if tsconfig.exists():
            shutil.copy(tsconfig, self.dir)
        if changed or not (self.dir / "node_modules/vitest").exists():
            run("npm", "install", "--no-audit", "--no-fund", "--loglevel=error", cwd=self.dir)

    def run(self, environment: dict[str, str], mode: str, only: list[str]) -> list[dict]:
        report = self.dir / f"report-{mode}.json"
        report.unlink(missing_ok=True)
        command = ["npx", "vitest", "run", "--reporter=json", f"--outputFile={report}", *[part for part in only if part]]
        with report.with_suffix(".log").open("w") as log:
            subprocess.run(command, cwd=self.dir, env=environment, stdout=log, stderr=log)
        if not report.exists():
            sys.exit(report.with_suffix(".log").read_text()[-4000:])
        rows = []
        for file in json.loads(report.read_text())["testResults"]:
            path = os.path.relpath(file["name"], self.dir)
            if not file["assertionResults"] and file["status"] != "passed":
                rows.append({"name": path, "outcome": "failed", "why": file.get("message", "")[:400]})
            for test in file["assertionResults"]:
                outcome = {"passed": "passed", "failed": "failed"}.get(test["status"], "skipped")
                why = " | ".join(" ".join(test["failureMessages"]).splitlines()[:2])[:400]
                rows.append({"name": f"{path}::{test['fullName']}", "outcome": outcome, "why": why})
        return rows


def judge(suite: Suite, mode: str, rows: list[dict]) -> int:
    """Prints the table; gives the exit code."""
    known = suite.known(mode)
    count: Counter[str] = Counter()
    wrong = []
    for row in rows:
        reason = next((reason for pattern, reason in known if fnmatch.fnmatchcase(row["name"], pattern)), None)
        if row["outcome"] == "passed":
            count["passed"] += 1
            if reason:
                count["passed although known not to"] += 1
                print(f"PASSES  {row['name']}  ({reason})")
        elif reason:
            count["known"] += 1
        else:
            count[row["outcome"]] += 1
            wrong.append(row)
    for row in wrong:
        print(f"{row['outcome'].upper():7} {row['name']}\n        {row['why']}")
    print(f"{suite.name}: {len(rows)} tests: " + ", ".join(f"{n} {what}" for what, n in sorted(count.items())))
    return 1 if wrong or not rows else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["python", "javascript"])
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--mode", choices=["header", "wildcard"], default="header")
    parser.add_argument("--work", type=Path, default=TARGET / "e2b-suite")
    parser.add_argument("--only", action="append", default=[], help="run tests whose name has this in it")
    asked = parser.parse_args()
    suite = {"python": Python, "javascript": JavaScript}[asked.suite](asked.tree.resolve(), asked.work.resolve())
    if not os.environ.get("RINGFENCE_E2B_INSIDE"):
        # Before there is no way out any more.
        suite.prepare()
        if isinstance(suite, Python):
            suite.needs_server()
    if asked.mode == "wildcard":
        enter_namespaces()
        suite.prepare()
    with World(asked.mode) as world:
        key = world.key("suite", sandboxes_max=100, execs_max=500, memory_bytes_max=64 << 30, cpu_milli_max=400_000)
        rows = suite.run(world.environment(key), asked.mode, asked.only or [""])
    sys.exit(judge(suite, asked.mode, rows))


if __name__ == "__main__":
    main()
