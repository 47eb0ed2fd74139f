"""The asynchronous Python client: what it does in another way than the synchronous one, as two users at once."""

import asyncio
import os
import time

from e2b import (
    AsyncSandbox,
    CommandExitException,
    FilesystemEventType,
    PtySize,
    SandboxException,
    SandboxNotFoundException,
    SandboxState,
    TimeoutException,
)

from together import Steps, keys, leave, say

step = Steps()


async def until(what: str, done, within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.05)


@step
async def commands(sbx: AsyncSandbox, me: str) -> None:
    done = await sbx.commands.run("echo $OWNER; pwd; whoami")
    assert done.stdout == f"{me}\n/home/user\nuser\n", done
    many = await asyncio.gather(*(sbx.commands.run(f"echo {n}; exit 0") for n in range(20)))
    assert [one.stdout for one in many] == [f"{n}\n" for n in range(20)]
    said: list[str] = []
    slow = await sbx.commands.run("for i in 1 2 3; do echo $i; sleep 0.2; done", background=True, on_stdout=said.append)
    await until("output comes while it runs", lambda: said)
    assert (await slow.wait()).stdout == "1\n2\n3\n" == "".join(said)
    try:
        await sbx.commands.run("echo no >&2; exit 7")
        raise AssertionError("it ended with 7")
    except CommandExitException as error:
        assert (error.exit_code, error.stderr) == (7, "no\n")
    try:
        await sbx.commands.run("sleep 30", timeout=1)
        raise AssertionError("it ran into its time")
    except TimeoutException:
        pass
    reader = await sbx.commands.run("cat", background=True, stdin=True)
    await sbx.commands.send_stdin(reader.pid, me)
    await sbx.commands.close_stdin(reader.pid)
    assert (await reader.wait()).stdout == me


@step
async def terminals(sbx: AsyncSandbox, me: str) -> None:
    seen = bytearray()
    terminal = await sbx.pty.create(PtySize(rows=24, cols=80), on_data=seen.extend, envs={"WHO": me})
    await sbx.pty.send_stdin(terminal.pid, b"echo $WHO-$TERM; stty size\n")
    await until("the terminal answers", lambda: f"{me}-xterm-256color".encode() in seen and b"24 80" in seen)
    await terminal.disconnect()
    more = bytearray()
    again = await sbx.pty.connect(terminal.pid, on_data=more.extend)
    await sbx.pty.resize(terminal.pid, PtySize(rows=50, cols=100))
    await sbx.pty.send_stdin(terminal.pid, b"stty size\n")
    await until("the other one reads on", lambda: b"50 100" in more)
    assert await sbx.pty.kill(terminal.pid)
    try:
        await again.wait()
    except CommandExitException:
        pass


@step
async def watching(sbx: AsyncSandbox, me: str) -> None:
    await sbx.files.make_dir("seen")
    events = []
    watcher = await sbx.files.watch_dir("seen", on_event=events.append, recursive=True)
    await sbx.files.write("seen/new", me)
    await until("three events of a new file", lambda: len(events) >= 3)
    kinds = {FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE}
    assert {event.type for event in events} == kinds and {event.name for event in events} == {"new"}, events
    await sbx.commands.run("mkdir -p seen/a && echo x > seen/a/b")
    await until("a file in a new directory", lambda: any(event.name == "a/b" for event in events))
    await watcher.stop()


@step
async def files(sbx: AsyncSandbox, me: str) -> None:
    data = os.urandom(3_000_000)
    await sbx.files.write("data", data)
    async with await sbx.files.read("data", format="stream") as stream:
        assert b"".join([chunk async for chunk in stream]) == data

    async def pieces():
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    await sbx.files.write("again", pieces())
    assert bytes(await sbx.files.read("again", format="bytes")) == data


@step
async def life(sbx: AsyncSandbox, me: str) -> None:
    key = keys()[me]
    beside = await AsyncSandbox.create(timeout=120, metadata={"owner": me}, api_key=key)
    await beside.files.write("kept", me)
    assert await beside.pause()
    assert (await beside.get_info()).state == SandboxState.PAUSED and not await beside.is_running()
    back = await beside.connect(timeout=60)
    assert await back.files.read("kept") == me
    forks = await back.fork(count=2, timeout=60)
    assert [await fork.files.read("kept") for fork in forks] == [me, me]
    assert all(await asyncio.gather(*(one.kill() for one in [*forks, back])))
    many = await asyncio.gather(*(AsyncSandbox.create(timeout=60, api_key=key) for _ in range(5)))
    said = await asyncio.gather(*(one.commands.run("echo up") for one in many))
    assert [one.stdout for one in said] == ["up\n"] * 5
    assert all(await asyncio.gather(*(one.kill() for one in many)))


@step
async def killing(sbx: AsyncSandbox, me: str) -> None:
    running = await sbx.commands.run("sleep 300", background=True, timeout=0)
    assert await sbx.kill()
    try:
        await running.wait()
        raise AssertionError("its sandbox is gone")
    except SandboxException as error:
        assert "killed or reached its end of life" in str(error), error
    try:
        await sbx.get_info()
        raise AssertionError("it is gone")
    except SandboxNotFoundException:
        pass


async def journey(me: str, key: str) -> None:
    begun = time.monotonic()
    sbx = await AsyncSandbox.create(timeout=600, metadata={"owner": me}, envs={"OWNER": me}, api_key=key)
    say(me, "create", begun)
    try:
        for one in step.named():
            begun = time.monotonic()
            await one(sbx, me)
            say(me, one.__name__, begun)
    finally:
        await AsyncSandbox.kill(sbx.sandbox_id, api_key=key)
    left = await AsyncSandbox.list(limit=100, api_key=key).next_items()
    assert not left, left


async def main() -> None:
    await asyncio.gather(*(journey(me, key) for me, key in keys().items()))


if __name__ == "__main__":
    asyncio.run(main())
    leave(0)
