"""A Ringfence of its own for E2B's clients to be pointed at, in one of two ways.

``header``
    One address for everything, plain HTTP on loopback: ``E2B_API_URL`` and ``E2B_SANDBOX_URL``. Which sandbox is meant
    stands in headers.
``wildcard``
    A domain with TLS: ``E2B_DOMAIN``; every port of every sandbox has a name of its own. The names must resolve and the
    certificate must be trusted, so all of it runs in a network and a mount namespace of its own, with a name server on
    its loopback and an authority made for the occasion. This program starts itself anew there (`enter_namespaces`).

Nothing here is code of E2B's. What is needed of the machine: root, ``ip``, ``unshare``, ``openssl``.
"""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
DOMAIN = "sandboxes.test"
# Set in the program that runs within the namespaces.
INSIDE = "RINGFENCE_E2B_INSIDE"
# A debug build on a busy machine is slow.
WITHIN_S = 120


def binary() -> Path:
    """The program under test."""
    named = os.environ.get("RINGFENCE_BINARY")
    path = Path(named) if named else TARGET / "debug/ringfence"
    if not path.exists():
        sys.exit(f"{path} is not there: build it (cargo build -p ringfence) or name one in RINGFENCE_BINARY")
    return path


def enter_namespaces() -> None:
    """Starts this program anew where only its own loopback is, and returns in that one."""
    if os.environ.get(INSIDE):
        return
    if os.geteuid() != 0:
        sys.exit("the mode `wildcard` needs root: it makes a network and a mount namespace")
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, *sys.argv])


class Names(threading.Thread):
    """Answers for the domain and everything below it with 127.0.0.1; knows no other name."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))

    def run(self) -> None:
        while True:
            query, sender = self.socket.recvfrom(1024)
            try:
                self.socket.sendto(self.answer(query), sender)
            except (IndexError, struct.error, UnicodeDecodeError):
                continue

    @staticmethod
    def answer(query: bytes) -> bytes:
        """One question, one answer; RFC 1035, section 4."""
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind = struct.unpack_from("!H", query, at + 1)[0]
        question = query[12 : at + 5]
        name = ".".join(labels)
        ours = name == DOMAIN or name.endswith("." + DOMAIN)
        # 1 is A; anything else of ours exists and has no such record.
        records = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + bytes([127, 0, 0, 1]) if ours and kind == 1 else b""
        flags = 0x8580 if ours else 0x8583
        return query[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0) + question + records


def set_up_names() -> None:
    """Loopback up, and the system's resolver asks us."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Names().start()
    target = Path("/etc/resolv.conf")
    # Without the file the C library asks 127.0.0.1, resolv.conf(5).
    if target.exists():
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            file.write("nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")
            file.flush()
            os.chmod(file.name, 0o644)
            subprocess.run(["mount", "--bind", file.name, str(target.resolve())], check=True)
    found = socket.getaddrinfo(f"49983-sbx0.{DOMAIN}", 443, socket.AF_INET)
    assert found[0][4][0] == "127.0.0.1", found


def make_certificates(folder: Path) -> None:
    """An authority, and a certificate of its for the domain and every name below: ca.pem, all.pem, chain.pem, key.pem."""

    def openssl(*args: str) -> None:
        done = subprocess.run(["openssl", *args], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"openssl {args[0]}: {done.stderr}")

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    authority = ("-subj", "/CN=an authority of the tests", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", *authority)
    openssl("req", *curve, "-keyout", "key.pem", "-out", "request.pem", "-subj", f"/CN={DOMAIN}")
    extensions = folder / "extensions"
    names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
    extensions.write_text(names)
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "extensions")
    openssl("x509", "-req", "-in", "request.pem", "-out", "chain.pem", *sign)
    # The server runs as somebody else.
    (folder / "key.pem").chmod(0o644)
    # Programs that take this file in place of the system's still know the public roots.
    system = Path("/etc/ssl/certs/ca-certificates.crt")
    roots = system.read_text() if system.exists() else ""
    (folder / "all.pem").write_text(roots + (folder / "ca.pem").read_text())


class World:
    """A running Ringfence; `with World(mode) as world`. Nothing of it is left afterwards."""

    def __init__(self, mode: str, config: str = "") -> None:
        assert mode in ("header", "wildcard"), mode
        self.mode = mode
        if mode == "wildcard":
            assert os.environ.get(INSIDE), "call enter_namespaces first"
            set_up_names()
        self.dir = Path(tempfile.mkdtemp(prefix="ringfence-e2b-"))
        # The server, which has another id, must come through.
        self.dir.chmod(0o755)
        self.config = config
        self.state = self.dir / "state"
        self.log = self.dir / "up.log"
        self.users: dict[str, str] = {}

    def __enter__(self) -> "World":
        command = [str(binary()), "--json", "--state", str(self.state), "up", "--pool", "2"]
        config = self.config
        if self.mode == "wildcard":
            make_certificates(self.dir)
            command += ["--listen", "127.0.0.1:443"]
            command += ["--tls-certificate", str(self.dir / "chain.pem"), "--tls-key", str(self.dir / "key.pem")]
            config += f'\n[e2b]\ndomain = "{DOMAIN}"\n'
        else:
            command += ["--listen", "127.0.0.1:0"]
        if config:
            path = self.dir / "config.toml"
            path.write_text(config)
            command += ["--config", str(path)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "RINGFENCE"))}
        with self.log.open("wb") as log:
            self.up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=clean, text=True)
        line = self.up.stdout.readline()
        try:
            told = json.loads(line)
            self.url, self.operator = told["url"], told["key"]
        except ValueError:
            self.up.kill()
            self.up.wait()
            sys.exit(f"the system does not start: {line}{self.log.read_text()}")
        self.base = f"https://api.{DOMAIN}" if self.mode == "wildcard" else self.url
        return self

    def __exit__(self, *error: object) -> None:
        self.up.send_signal(signal.SIGTERM)
        try:
            status = self.up.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            self.up.kill()
            status = self.up.wait()
        left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.dir) in line]
        keep = os.environ.get("RINGFENCE_E2B_KEEP_LOG")
        if keep:
            shutil.copy(self.log, keep)
        said = self.log.read_text(errors="replace")
        shutil.rmtree(self.dir, ignore_errors=True)
        if error[0] is None and (status != 0 or left):
            sys.exit(f"the system ended with {status} and left {left}:\n{said[-4000:]}")

    def call(self, method: str, path: str, body: object = None, key: str | None = None) -> object:
        """One call of Ringfence's own interface."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {key or self.operator}", "content-type": "application/json"}
        request = urllib.request.Request(self.base + path, data=data, headers=headers, method=method)
        context = None
        if self.mode == "wildcard":
            import ssl

            context = ssl.create_default_context(cafile=self.dir / "ca.pem")
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def key(self, name: str, **limits: object) -> str:
        """A key of a user's in the form that every version of the clients takes; the user is made at first use."""
        if name not in self.users:
            self.call("POST", "/v1/users", {"name": name, "limits": limits} if limits else {"name": name})
            made = self.call("POST", f"/v1/users/{name}/keys", {"name": "for E2B's clients", "e2b": True})
            self.users[name] = made["key"]
        return self.users[name]

    def environment(self, key: str) -> dict[str, str]:
        """What points any of E2B's clients here."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "RINGFENCE"))}
        mine = {"E2B_API_KEY": key}
        if self.mode == "header":
            mine |= {"E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}
        else:
            every = str(self.dir / "all.pem")
            mine |= {
                "E2B_DOMAIN": DOMAIN,
                "SSL_CERT_FILE": every,
                "CURL_CA_BUNDLE": every,
                "REQUESTS_CA_BUNDLE": every,
                "NODE_EXTRA_CA_CERTS": str(self.dir / "ca.pem"),
            }
        return clean | mine


def main() -> None:
    """`world.py header|wildcard COMMAND...`: runs a command against a system of its own, as one user."""
    if len(sys.argv) < 3:
        sys.exit("world.py header|wildcard COMMAND...")
    mode, command = sys.argv[1], sys.argv[2:]
    if mode == "wildcard":
        enter_namespaces()
    begun = time.monotonic()
    with World(mode) as world:
        environment = world.environment(world.key("alice"))
        code = subprocess.run(command, env=environment).returncode
    print(f"ended with {code} after {time.monotonic() - begun:.1f} s", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
