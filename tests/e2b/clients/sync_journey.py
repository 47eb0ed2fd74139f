"""The synchronous Python client through all that Ringfence does for it, as two users at once."""

import contextlib
import io
import os
import threading
import time
import urllib.error
import urllib.request

from e2b import (
    AuthenticationException,
    CommandExitException,
    FileNotFoundException,
    FileType,
    FilesystemEventType,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b_code_interpreter import Sandbox as Interpreter

from together import Steps, at_once, eventually, keys, say, wildcard

step = Steps()
barrier = threading.Barrier(2)


class Refused:
    """`with refused(SomeException, "text")`: that is raised, and says so."""

    def __init__(self, kind: type, text: str = "") -> None:
        self.kind, self.text = kind, text

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, _trace) -> bool:
        assert kind is not None, f"nothing was raised, not {self.kind.__name__}"
        if not issubclass(kind, self.kind):
            return False
        assert self.text in str(error), str(error)
        return True


refused = Refused


@step
def commands(sbx: Sandbox, me: str) -> None:
    done = sbx.commands.run("echo out; echo err >&2; pwd; whoami")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "out\n/home/user\nuser\n", "err\n"), done
    with refused(CommandExitException, "code 3"):
        sbx.commands.run("exit 3")
    # The sandbox's own environment, the command's above it, and where and as whom.
    assert sbx.commands.run("echo $OWNER $X", envs={"X": "mine"}).stdout == f"{me} mine\n"
    assert sbx.commands.run("echo $OWNER", envs={"OWNER": "other"}).stdout == "other\n"
    assert sbx.commands.run("pwd; id -u", cwd="/tmp", user="root").stdout == "/tmp\n0\n"
    with refused(InvalidArgumentException, "does not exist"):
        sbx.commands.run("true", cwd="/no/such")
    with refused(AuthenticationException):
        sbx.commands.run("true", user="nobody-of-that-name")
    with refused(TimeoutException):
        sbx.commands.run("sleep 30", timeout=1)
    said: list[str] = []
    sbx.commands.run("for i in 1 2 3; do echo $i; done; echo ü", on_stdout=said.append)
    assert "".join(said) == "1\n2\n3\nü\n", said
    big = sbx.commands.run("head -c 1000000 /dev/zero | tr '\\0' x")
    assert len(big.stdout) == 1_000_000


@step
def background(sbx: Sandbox, me: str) -> None:
    left = sbx.commands.run("sleep 300", background=True)
    assert left.pid in [one.pid for one in sbx.commands.list()]
    left.disconnect()
    assert left.pid in [one.pid for one in sbx.commands.list()], "it outlives its reader"
    again = sbx.commands.connect(left.pid)
    assert sbx.commands.kill(left.pid)
    with refused(CommandExitException):
        again.wait()
    eventually("a killed command is on no list", lambda: left.pid not in [one.pid for one in sbx.commands.list()])
    assert not sbx.commands.kill(left.pid)
    reader = sbx.commands.run("cat; echo over", background=True, stdin=True)
    sbx.commands.send_stdin(reader.pid, f"from {me}\n")
    sbx.commands.stream_input(reader.pid, ["a ", "stream\n"])
    sbx.commands.close_stdin(reader.pid)
    assert reader.wait().stdout == f"from {me}\na stream\nover\n"
    with refused(NotFoundException):
        sbx.commands.connect(987654)


@step
def terminals(sbx: Sandbox, me: str) -> None:
    terminal = sbx.pty.create(PtySize(rows=24, cols=80), envs={"WHO": me}, cwd="/tmp")
    sbx.pty.resize(terminal.pid, PtySize(rows=40, cols=132))
    sbx.pty.send_stdin(terminal.pid, b"stty size; echo $WHO-$TERM; pwd; exit\n")
    seen = b""
    with contextlib.suppress(CommandExitException):
        for _out, _err, pty in terminal:
            seen += pty or b""
    for words in ["40 132", f"{me}-xterm-256color", "/tmp"]:
        assert words.encode() in seen, seen
    held = sbx.pty.create(PtySize(rows=10, cols=10))
    assert sbx.pty.kill(held.pid)
    assert not sbx.pty.kill(held.pid)


@step
def files(sbx: Sandbox, me: str) -> None:
    fs = sbx.files
    made = fs.write("notes/a.txt", f"of {me}")
    assert (made.path, made.name) == ("/home/user/notes/a.txt", "a.txt"), made
    assert fs.read("notes/a.txt") == f"of {me}"
    info = fs.get_info("notes/a.txt")
    assert (info.owner, info.group, info.mode, info.size) == ("user", "user", 0o644, len(f"of {me}")), info
    assert (info.permissions, info.type) == ("-rw-r--r--", FileType.FILE), info
    data = os.urandom(300_000)
    for gzip in [False, True]:
        fs.write("/tmp/data", data, use_octet_stream=True, gzip=gzip)
        assert bytes(fs.read("/tmp/data", format="bytes", gzip=gzip)) == data
    fs.write("/tmp/piecemeal", io.BytesIO(data))
    assert b"".join(fs.read("/tmp/piecemeal", format="stream")) == data
    many = fs.write_files([{"path": f"many/{i}", "data": str(i)} for i in range(5)])
    assert [one.name for one in many] == ["0", "1", "2", "3", "4"]
    assert sorted(one.name for one in fs.list("many")) == ["0", "1", "2", "3", "4"]
    assert {one.path for one in fs.list("/home/user", depth=2)} >= {"/home/user/many", "/home/user/many/3"}
    assert fs.make_dir("many/deep/er") and not fs.make_dir("many/deep")
    assert fs.rename("many/0", "many/zero").path == "/home/user/many/zero"
    assert fs.exists("many/zero") and not fs.exists("many/0")
    fs.remove("many")
    fs.remove("many")
    assert not fs.exists("many")
    sbx.commands.run("ln -s /etc/hostname link")
    assert fs.get_info("link").symlink_target == "/etc/hostname"
    marked = fs.write("marked", "x", metadata={"purpose": "a test"})
    assert marked.metadata == {"purpose": "a test"} == fs.get_info("marked").metadata
    assert fs.write("roots", "x", user="root").path == "/root/roots"
    # Above the home, where the user may make nothing: it is made all the same, and theirs.
    assert fs.write("/far/away/file", me).path == "/far/away/file"
    assert [fs.get_info(path).owner for path in ["/far", "/far/away", "/far/away/file"]] == ["user"] * 3
    with refused(SandboxException, "permission denied"):
        fs.write("/etc/hostname", "mine")
    for path in ["/no/such", "/tmp/no"]:
        with refused(FileNotFoundException):
            fs.read(path)
        with refused(FileNotFoundException):
            fs.list(path)
    with refused(InvalidArgumentException):
        fs.read("/tmp")
    with refused(InvalidArgumentException):
        fs.list("/etc/hostname")
    with refused(AuthenticationException):
        fs.read("x", user="nobody-of-that-name")


@step
def watching(sbx: Sandbox, me: str) -> None:
    sbx.files.make_dir("seen/deep")
    watcher = sbx.files.watch_dir("seen", recursive=True, include_entry=True)
    sbx.files.write("seen/new", me)
    events = watcher.get_new_events()
    kinds = [event.type for event in events if event.name == "new"]
    assert kinds[0] == FilesystemEventType.CREATE and len(kinds) == 3, events
    assert set(kinds[1:]) == {FilesystemEventType.CHMOD, FilesystemEventType.WRITE}, events
    assert all(event.entry and event.entry.path == "/home/user/seen/new" for event in events), events
    sbx.commands.run("mkdir seen/later && echo x > seen/later/file && mv seen/new seen/old && rm seen/old")
    events = watcher.get_new_events()
    names = {(event.name, event.type) for event in events}
    for expected in [
        ("later", FilesystemEventType.CREATE),
        ("later/file", FilesystemEventType.WRITE),
        ("new", FilesystemEventType.RENAME),
        ("old", FilesystemEventType.REMOVE),
    ]:
        assert expected in names, (expected, names)
    watcher.stop()
    with refused(SandboxException):
        watcher.get_new_events()
    with refused(FileNotFoundException):
        sbx.files.watch_dir("/no/such")


@step
def life(sbx: Sandbox, me: str) -> None:
    info = sbx.get_info()
    assert info.sandbox_id == sbx.sandbox_id and info.metadata["owner"] == me and info.state == SandboxState.RUNNING
    assert sbx.is_running()
    sbx.set_timeout(600)
    longer = sbx.get_info().end_at
    Sandbox.connect(sbx.sandbox_id, timeout=60, api_key=keys()[me])
    assert sbx.get_info().end_at >= longer, "connecting never shortens"
    eventually("metrics", lambda: len(sbx.get_metrics()) > 0)
    last = sbx.get_metrics()[-1]
    assert last.mem_total > 0 and last.disk_total > 0 and last.cpu_count > 0, last
    # Written by a command: what is uploaded is counted for the server, which writes it.
    sbx.commands.run("head -c 16777216 /dev/zero > cached.bin")
    eventually("the cache is counted", lambda: sbx.get_metrics()[-1].mem_cache >= last.mem_cache + (15 << 20))
    sbx.files.remove("cached.bin")


@step
def lists(sbx: Sandbox, me: str) -> None:
    key = keys()[me]
    own = [Sandbox.create(timeout=120, metadata={"n": str(n), "set": f"{me}&=%"}, api_key=key) for n in range(3)]
    try:
        query = SandboxQuery(metadata={"set": f"{me}&=%"})
        pages = Sandbox.list(query=query, limit=2, api_key=key)
        sizes, found = [], []
        while pages.has_next:
            page = pages.next_items()
            sizes.append(len(page))
            found += [one.sandbox_id for one in page]
        assert sizes == [2, 1] and sorted(found) == sorted(one.sandbox_id for one in own), (sizes, found)
        one = Sandbox.list(query=SandboxQuery(metadata={"n": "1", "set": f"{me}&=%"}), api_key=key).next_items()
        assert [item.sandbox_id for item in one] == [own[1].sandbox_id]
        mine = Sandbox.list(limit=100, api_key=key).next_items()
        assert {item.metadata.get("owner", me) for item in mine} == {me}, mine
        paused = Sandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED]), api_key=key).next_items()
        assert not {item.sandbox_id for item in paused} & set(found)
    finally:
        for one in own:
            assert one.kill()
    assert not own[0].kill()


@step
def pausing(sbx: Sandbox, me: str) -> None:
    key = keys()[me]
    beside = Sandbox.create(timeout=120, metadata={"owner": me}, api_key=key)
    counting = "while :; do echo $((++n)) > /tmp/count; sleep 0.05; done"
    beside.commands.run(counting, background=True, timeout=0).disconnect()
    eventually("it counts", lambda: beside.files.exists("/tmp/count"))
    assert beside.pause()
    assert not Sandbox.pause(beside.sandbox_id, api_key=key), "it is paused already"
    assert beside.get_info().state == SandboxState.PAUSED
    assert not beside.is_running()
    with refused(TimeoutException, "was not found"):
        beside.commands.run("true")
    back = beside.connect(timeout=120)
    before = int(back.files.read("/tmp/count").strip() or 0)
    eventually("it counts on", lambda: int(back.files.read("/tmp/count").strip() or 0) > before)
    assert back.is_running() and back.kill()

    idle = Sandbox.create(timeout=120, lifecycle={"on_timeout": "pause"}, api_key=key)
    idle.files.write("kept", me)
    idle.set_timeout(0)
    eventually("it pauses at its end", lambda: idle.get_info().state == SandboxState.PAUSED)
    assert idle.connect(timeout=60).files.read("kept") == me
    assert idle.kill()

    waking = Sandbox.create(timeout=120, lifecycle={"on_timeout": "pause", "auto_resume": True}, api_key=key)
    waking.files.write("kept", me)
    waking.pause()
    assert waking.files.read("kept") == me, "the next request wakes it"
    assert waking.kill()


@step
def snapshots(sbx: Sandbox, me: str) -> None:
    key = keys()[me]
    sbx.files.write("/home/user/state", f"of {me}")
    taken = sbx.create_snapshot(name=f"snap-{me}")
    listed = Sandbox.list_snapshots(api_key=key).next_items()
    assert taken.snapshot_id in [one.snapshot_id for one in listed], listed
    sbx.files.write("/home/user/state", "later")
    copy = Sandbox.create(taken.snapshot_id, timeout=60, api_key=key)
    assert copy.files.read("/home/user/state") == f"of {me}"
    assert copy.kill()
    forks = sbx.fork(count=2, timeout=60)
    for fork in forks:
        assert isinstance(fork, Sandbox), fork
        assert fork.files.read("/home/user/state") == "later"
        fork.files.write("/home/user/state", "fork")
    assert len({fork.sandbox_id for fork in [*forks, sbx]}) == 3
    assert sbx.files.read("/home/user/state") == "later"
    seeds = [fork.commands.run("head -c 16 /dev/urandom | od -An -tx1").stdout for fork in [*forks, sbx]]
    assert len(set(seeds)) == 3, seeds
    for fork in forks:
        assert fork.kill()
    assert Sandbox.delete_snapshot(taken.snapshot_id, api_key=key)
    assert not Sandbox.delete_snapshot(taken.snapshot_id, api_key=key)
    with refused(SandboxException):
        Sandbox.create(taken.snapshot_id, api_key=key)


def fetch(url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}, data=data), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def port(sbx: Sandbox, number: int, path: str = "/", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Asks a port of a sandbox, by name or by headers."""
    headers = headers or {}
    if wildcard():
        return fetch(f"https://{sbx.get_host(number)}{path}", headers)
    headers |= {"E2b-Sandbox-Id": sbx.sandbox_id, "E2b-Sandbox-Port": str(number)}
    return fetch(os.environ["E2B_SANDBOX_URL"] + path, headers)


@step
def ports(sbx: Sandbox, me: str) -> None:
    sbx.files.write("/tmp/www/index.html", f"page of {me}")
    # On the loopback of the sandbox alone.
    served = sbx.commands.run("python -m http.server 8000 --bind 127.0.0.1 -d /tmp/www", background=True, timeout=0)
    eventually("a port is served", lambda: port(sbx, 8000)[0] == 200)
    assert port(sbx, 8000) == (200, f"page of {me}".encode())
    assert port(sbx, 8000, "/no")[0] == 404
    status, body = port(sbx, 8001)
    assert status == 502 and b"port is not open" in body, body
    # Whoever binds it inside takes nothing over: it is ours, and outside.
    sbx.commands.run("python -m http.server 49983 -d /tmp/www", background=True, timeout=0)
    time.sleep(0.5)
    assert sbx.is_running() and sbx.commands.run("echo ours").stdout == "ours\n"
    served.kill()
    closed = Sandbox.create(timeout=60, network={"allow_public_traffic": False}, api_key=keys()[me])
    closed.commands.run("python3 -m http.server 8000", background=True, timeout=0)
    token = {"e2b-traffic-access-token": closed.traffic_access_token}
    eventually("a port with a token", lambda: port(closed, 8000, headers=dict(token))[0] == 200)
    assert port(closed, 8000)[0] == 403
    assert port(closed, 8000, headers={"e2b-traffic-access-token": "wrong"})[0] == 403
    assert closed.kill()


def post(sbx: Sandbox, number: int, path: str, data: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    if wildcard():
        return fetch(f"https://{sbx.get_host(number)}{path}", headers, data)
    headers |= {"E2b-Sandbox-Id": sbx.sandbox_id, "E2b-Sandbox-Port": str(number)}
    return fetch(os.environ["E2B_SANDBOX_URL"] + path, headers, data)


@step
def signatures(sbx: Sandbox, me: str) -> None:
    sbx.files.write("signed", f"of {me}")
    url = sbx.download_url("signed")
    assert fetch(url) == (200, f"of {me}".encode())
    assert fetch(url.replace("path=signed", "path=other"))[0] == 401
    assert fetch(sbx.download_url("signed", use_signature_expiration=60))[0] == 200
    expired = sbx.download_url("signed", use_signature_expiration=-60)
    status, body = fetch(expired)
    assert status == 401 and b"signature is already expired" in body, body
    boundary = "----boundary"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="up"\r\n\r\nput\r\n--{boundary}--\r\n'
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    assert fetch(sbx.upload_url("up"), kind, part.encode())[0] == 200
    assert sbx.files.read("up") == "put"


@step
def interpreter(sbx: Sandbox, me: str) -> None:
    key = keys()[me]
    with Interpreter.create(timeout=120, envs={"OWNER": me}, api_key=key) as box:
        assert box.run_code("import os\nx = 20\nprint('out')\nos.environ['OWNER']").text == me
        done = box.run_code("print(x); x + 22", envs={"MORE": "1"})
        assert (done.text, done.logs.stdout, done.execution_count) == ("42", ["20\n"], 2), done
        seen: list[str] = []
        box.run_code("import sys\nprint('to', 'err', file=sys.stderr)", on_stderr=lambda line: seen.append(line.line))
        assert seen == ["to err\n"], seen
        error = box.run_code("1 / 0").error
        assert error.name == "ZeroDivisionError" and "1 / 0" in error.traceback, error
        # Who does not wait any longer interrupts it; what was defined stays.
        with refused(TimeoutException):
            box.run_code("while True: pass", timeout=1)
        assert box.run_code("x").text == "20"
        assert box.run_code('text = """\n! is no command\n"""\nlen(text)').text == "17"
        assert box.run_code("!echo one\nx").logs.stdout == ["one\n"]
        with refused(Exception, "env_vars"):
            box.run_code("1", envs={"A=B": "x"})
        assert box.run_code("x").text == "20", "nothing was lost by that"
        assert box.run_code("os._exit(3)").error.name == "KernelDied"
        assert box.run_code("'x' in globals()").text == "False"
        for call in [box.create_code_context, lambda: box.run_code("1", language="r")]:
            with refused(Exception, "not built"):
                call()
        other = Sandbox.connect(box.sandbox_id, api_key=key)
        status, _ = post(other, 49999, "/execute", b'{"code": "1"}')
        assert status == 401, "without its token nothing runs"


@step
def refusals(sbx: Sandbox, me: str) -> None:
    with refused(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with refused(SandboxException, "no-such-template"):
        Sandbox.create("no-such-template", api_key=keys()[me])
    # What cannot be held is refused by its name, never taken and ignored: there is no way out, so nothing can be allowed.
    with refused(SandboxException, "allowOut"):
        Sandbox.create(network={"allow_out": ["1.1.1.1"], "deny_out": ["0.0.0.0/0"]}, api_key=keys()[me])
    with refused(SandboxException, "iam"):
        Sandbox.create(iam={"tokens": {"aws": {"audience": "a", "token_type": "JWT-SVID"}}}, api_key=keys()[me])
    with refused(SandboxException, "volumeMounts"):
        Sandbox.create(volume_mounts={"/mnt": "a-volume"}, api_key=keys()[me])
    closed = Sandbox.create(network={"deny_out": ["0.0.0.0/0"]}, timeout=60, api_key=keys()[me])
    assert closed.get_info().network == {"deny_out": ["0.0.0.0/0"]}, closed.get_info().network
    assert closed.kill()
    with refused(SandboxNotFoundException):
        Sandbox.connect("sbx" + "0" * 32, api_key=keys()[me])


@step
def same_key_twice(sbx: Sandbox, me: str) -> None:
    key = keys()[me]
    first = Sandbox.create(timeout=60, idempotency_key=f"once-{me}", api_key=key)
    second = Sandbox.create(timeout=60, idempotency_key=f"once-{me}", api_key=key)
    assert first.sandbox_id == second.sandbox_id
    assert first.kill()


met: dict[str, tuple[Sandbox, object]] = {}


@step
def strangers(sbx: Sandbox, me: str) -> None:
    """Neither finds anything of the other's: all of it answers as what does not exist."""
    snapshot = sbx.create_snapshot()
    met[me] = (sbx, snapshot)
    barrier.wait(120)
    theirs, their_snapshot = met["bob" if me == "alice" else "alice"]
    key, id = keys()[me], theirs.sandbox_id
    assert id not in [one.sandbox_id for one in Sandbox.list(limit=100, api_key=key).next_items()]
    assert their_snapshot.snapshot_id not in [one.snapshot_id for one in Sandbox.list_snapshots(api_key=key).next_items()]
    absent = "sbx" + "0" * 32

    def said(call, id: str) -> str:
        try:
            return f"answers {call(id)}"
        except Exception as error:
            return f"{type(error).__name__}: {error}".replace(id, "ID")

    for call in [
        lambda id: Sandbox.get_info(id, api_key=key),
        lambda id: Sandbox.kill(id, api_key=key),
        lambda id: Sandbox.set_timeout(id, 1, api_key=key),
        lambda id: Sandbox.pause(id, api_key=key),
        lambda id: Sandbox.connect(id, api_key=key),
        lambda id: Sandbox.fork(id, api_key=key),
        lambda id: Sandbox.create_snapshot(id, api_key=key),
        lambda id: Sandbox.get_metrics(id, api_key=key),
    ]:
        assert said(call, id) == said(call, absent), (said(call, id), said(call, absent))
    with refused(SandboxException):
        Sandbox.create(their_snapshot.snapshot_id, api_key=key)
    assert not Sandbox.delete_snapshot(their_snapshot.snapshot_id, api_key=key)
    # With the token of one's own sandbox nothing is had in theirs.
    mine = dict(sbx.connection_config.sandbox_headers)
    if not wildcard():
        mine |= {"E2b-Sandbox-Id": id, "E2b-Sandbox-Port": "49983"}
        address = os.environ["E2B_SANDBOX_URL"]
    else:
        address = f"https://{theirs.get_host(49983)}"
    assert fetch(f"{address}/files?path=signed", mine)[0] == 401
    barrier.wait(120)
    assert theirs.is_running() and sbx.is_running()
    barrier.wait(120)
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, api_key=key)


@step
def killing(sbx: Sandbox, me: str) -> None:
    running = sbx.commands.run("sleep 300", background=True, timeout=0)
    assert sbx.kill() and not sbx.kill()
    with refused(SandboxException, "killed or reached its end of life"):
        running.wait()
    with refused(TimeoutException, "was not found"):
        sbx.commands.run("true")
    assert not sbx.is_running()
    with refused(SandboxNotFoundException):
        sbx.set_timeout(10)


def journey(me: str, key: str) -> None:
    begun = time.monotonic()
    sbx = Sandbox.create(timeout=600, metadata={"owner": me}, envs={"OWNER": me}, api_key=key)
    say(me, "create", begun)
    try:
        for one in step.named():
            begun = time.monotonic()
            try:
                one(sbx, me)
            except BaseException:
                barrier.abort()
                raise
            say(me, one.__name__, begun)
    finally:
        Sandbox.kill(sbx.sandbox_id, api_key=key)
    left = Sandbox.list(limit=100, api_key=key).next_items()
    assert not left, left


if __name__ == "__main__":
    at_once(journey)
