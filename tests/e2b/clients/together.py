"""What every journey here shares: two users at once, each through all of it, and neither finds anything of the other's."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn


def keys() -> dict[str, str]:
    return {"alice": os.environ["E2B_API_KEY"], "bob": os.environ["OTHER_E2B_API_KEY"]}


def wildcard() -> bool:
    """Whether ports and signed links have names of their own."""
    return "E2B_DOMAIN" in os.environ


class Steps:
    """Runs what is decorated, in order, and says how long each took."""

    def __init__(self) -> None:
        self.all: list[Callable] = []

    def __call__(self, step: Callable) -> Callable:
        self.all.append(step)
        return step

    def named(self) -> list[Callable]:
        only = os.environ.get("ONLY", "").split()
        return [step for step in self.all if not only or step.__name__ in only]


def at_once(journey: Callable[[str, str], None]) -> None:
    """Runs the journey of each user in a thread of its own; ends the program with 1 when one fails."""
    failed = []

    def one(name: str, key: str) -> None:
        try:
            journey(name, key)
        except BaseException:
            failed.append(name)
            print(f"{name}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=one, args=pair) for pair in keys().items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        print(f"failed for {', '.join(failed)}", file=sys.stderr)
    leave(1 if failed else 0)


def leave(code: int) -> NoReturn:
    """Ends the program without taking the interpreter down.

    The client's threads (pyqwest, in Rust) may still wake up, and before Python 3.14 a foreign thread that asks for the
    interpreter while that goes away is ended by an unwinding that Rust answers with an abort (PyO3/pyo3#4874).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def eventually(what: str, done: Callable[[], bool], within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < until, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def say(name: str, step: str, begun: float) -> None:
    print(f"{name}: {step} ({(time.monotonic() - begun) * 1000:.0f} ms)", flush=True)
