"""A pytest plugin: writes one JSON line for each test, and runs only those of a list."""

import json
from pathlib import Path

OUTCOMES = ["passed", "skipped", "failed"]
found: dict[str, tuple[str, str]] = {}


def pytest_addoption(parser):
    parser.addoption("--suite-report", help="where the JSON lines go")
    parser.addoption("--suite-only", help="a file with the names of the tests to run, one a line")


def pytest_collection_modifyitems(config, items):
    only = config.getoption("--suite-only")
    if only:
        names = set(Path(only).read_text().split("\n"))
        rest = [item for item in items if item.nodeid not in names]
        config.hook.pytest_deselected(items=rest)
        items[:] = [item for item in items if item.nodeid in names]


def why(report) -> str:
    """One line that says what went wrong, or why it was skipped."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[:3])[:400]


def pytest_runtest_logreport(report):
    # Setup, call and teardown come one by one; the worst counts.
    before = found.get(report.nodeid, ("passed", ""))
    if report.outcome == "passed" and report.nodeid in found:
        return
    if OUTCOMES.index(report.outcome) >= OUTCOMES.index(before[0]):
        found[report.nodeid] = (report.outcome, why(report))


def pytest_sessionfinish(session):
    path = session.config.getoption("--suite-report")
    if path and not hasattr(session.config, "workerinput"):
        lines = [json.dumps({"name": n, "outcome": o, "why": w}) + "\n" for n, (o, w) in sorted(found.items())]
        Path(path).write_text("".join(lines))
