//! Real work in a sandbox: what people let agents do, done with the tools that they use, and the results exact.

mod support;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rf_testkit::noise;
use sha2::{Digest as _, Sha256};
use support::System;

/// A sandbox with room for a build, and a directory of the host's to bring things from.
struct Bench {
    system: System,
    id: String,
}

impl Bench {
    fn open() -> Self {
        let system = System::start();
        let id = system.ok(&[
            "create",
            "--memory",
            "1G",
            "--cpu",
            "2",
            "--tasks",
            "512",
            "--disk-image",
            "--disk",
            "600M",
            "--lease",
            "20m",
        ]);
        Self { system, id }
    }

    /// Copies a tree of files in, to `name` in the user's home.
    fn put(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let here = self.system.dir().join(name);
        for (path, text) in files {
            let path = here.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.copy_in(&here, name);
        here
    }

    fn copy_in(&self, from: &Path, to: &str) {
        self.system.ok(&["cp", from.to_str().unwrap(), &format!("{}:{to}", self.id)]);
    }

    /// Runs a shell line in a directory below the home; it must end with 0. Its standard output without the last line
    /// end.
    fn sh(&self, cwd: &str, line: &str) -> String {
        let ran = self.system.run(&["exec", "-s", &self.id, "--cwd", cwd, "--timeout", "120s", "--sh", line]);
        ran.expect(0)
    }

    fn close(self) {
        self.system.ok(&["rm", &self.id]);
        self.system.stop();
    }
}

const PYTHON: &[(&str, &str)] = &[
    ("primes/__init__.py", "from .sieve import primes\n__all__ = ['primes']\n"),
    (
        "primes/sieve.py",
        "def primes(low, high):\n    return [n for n in range(max(low, 2), high)\n            if all(n % d for d in range(2, int(n ** 0.5) + 1))]\n",
    ),
    (
        "main.py",
        r#"
import concurrent.futures, json, multiprocessing, subprocess, sys, tempfile, threading
from primes import primes

def part(bounds):
    return primes(*bounds)

if __name__ == "__main__":
    bounds = [(low, low + 5000) for low in range(0, 20000, 5000)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        by_threads = sum(pool.map(part, bounds), [])
    with multiprocessing.Pool(2) as pool:
        by_processes = sum(pool.map(part, bounds), [])
    lock, count = threading.Lock(), 0
    def add():
        global count
        for _ in range(1000):
            with lock:
                count += 1
    threads = [threading.Thread(target=add) for _ in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    child = subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read().upper())"],
                           input="from a pipe", capture_output=True, text=True, check=True)
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 1000)
        size = file.tell()
    print(json.dumps([len(by_threads), by_threads[-1], by_threads == by_processes, count, child.stdout, size]))
"#,
    ),
];

const NODE: &str = r#"
const http = require('http'), { execFile, fork } = require('child_process'), crypto = require('crypto');
if (process.argv[2] === 'child') { process.on('message', n => { process.send(n * n); process.disconnect(); }); return; }
const server = http.createServer((request, response) => {
  const hash = crypto.createHash('sha256');
  request.on('data', piece => hash.update(piece));
  request.on('end', () => response.end(JSON.stringify({ path: request.url, sha256: hash.digest('hex') })));
});
server.listen(0, '127.0.0.1', async () => {
  const url = `http://127.0.0.1:${server.address().port}`;
  const answers = await Promise.all([...Array(20).keys()].map(n =>
    fetch(`${url}/${n}`, { method: 'POST', body: 'a'.repeat(100000) }).then(r => r.json())));
  const listed = await new Promise((done, fail) =>
    execFile('/bin/echo', ['from', 'a', 'child'], (error, out) => error ? fail(error) : done(out)));
  const squared = await new Promise(done => { const c = fork(__filename, ['child']); c.on('message', done); c.send(12); });
  console.log(JSON.stringify([answers.length, answers[19], listed, squared]));
  server.close();
});
"#;

const C: &[(&str, &str)] = &[
    ("fib.h", "unsigned long fib(unsigned n);\n"),
    ("fib.c", "#include \"fib.h\"\nunsigned long fib(unsigned n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }\n"),
    (
        "main.c",
        "#include <math.h>\n#include <pthread.h>\n#include <stdio.h>\n#include \"fib.h\"\n\
         static void *work(void *at) { *(unsigned long *)at = fib(27); return 0; }\n\
         int main(void) {\n  unsigned long got[4]; pthread_t t[4];\n\
         for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, work, &got[i]);\n\
         for (int i = 0; i < 4; i++) pthread_join(t[i], 0);\n\
         printf(\"%lu %lu %.3f\\n\", got[0], got[0] + got[1] + got[2] + got[3], sqrt(2));\n  return 42;\n}\n",
    ),
    (
        "Makefile",
        "CFLAGS = -O2 -Wall -Werror\nmain: main.o libfib.a\n\t$(CC) -o $@ main.o -L. -lfib -lm -pthread\n\
         libfib.a: fib.o\n\t$(AR) rcs $@ $^\nmain.o fib.o: fib.h\nclean:\n\trm -f *.o *.a main\n",
    ),
];

#[test]
fn programs_in_python_node_and_c_run() {
    let bench = Bench::open();
    bench.put("python", PYTHON);
    assert_eq!(bench.sh("python", "python3 main.py"), r#"[2262, 19997, true, 8000, "FROM A PIPE\n", 1000]"#);

    bench.put("node", &[("server.js", NODE)]);
    let body: String = Sha256::digest(vec![b'a'; 100_000]).iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = format!(r#"[20,{{"path":"/19","sha256":"{body}"}},"from a child\n",144]"#);
    assert_eq!(bench.sh("node", "node server.js"), wanted);

    bench.put("c", C);
    // Both at once, and nothing is left to make the second time.
    bench.sh("c", "make -s -j2 && make -q");
    assert_eq!(bench.sh("c", "./main; echo $?"), "196418 785672 1.414\n42");
    assert_eq!(bench.sh("c", "gcc -static -O1 -o small fib.c main.c -lm -pthread && ./small | wc -l"), "1");
    let broken = bench.system.run(&["exec", "-s", &bench.id, "--sh", "echo 'int main(' > x.c && gcc x.c"]);
    assert_eq!(broken.code, 1);
    assert!(broken.stderr.contains("x.c:1"), "{}", broken.stderr);
    bench.close();
}

#[test]
fn a_repository_and_a_database_hold_what_was_put_in() {
    let bench = Bench::open();
    let line = "git init -q -b main . && git config user.name Ann && git config user.email ann@example.org && \
        echo one > a && git add a && git commit -q -m first && \
        git checkout -q -b side && echo two >> a && git commit -q -a -m second && \
        git checkout -q main && echo b > b && git add b && git commit -q -m third && \
        git merge -q -m merged side && git clone -q . ../clone && git -C ../clone log --format=%s --topo-order && \
        git -C ../clone fsck --strict && cat ../clone/a";
    bench.sh(".", "mkdir repository");
    let told = bench.sh("repository", line);
    let mut subjects: Vec<_> = told.lines().collect();
    assert_eq!(subjects.split_off(4), ["one", "two"]);
    assert_eq!((subjects[0], subjects[3]), ("merged", "first"));

    bench.put(
        "database",
        &[(
            "load.py",
            r#"
import sqlite3
base = sqlite3.connect("base.db")
base.execute("PRAGMA journal_mode = WAL")
base.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL, age INTEGER NOT NULL)")
with base:
    base.executemany("INSERT INTO people (name, age) VALUES (?, ?)",
                     ((f"name-{n * 7919 % 100000:05}", n % 90) for n in range(100000)))
base.execute("CREATE INDEX people_by_name ON people (name)")
plan = base.execute("EXPLAIN QUERY PLAN SELECT id FROM people WHERE name = ?", ("name-00042",)).fetchone()[3]
found = base.execute("SELECT name, age FROM people WHERE name = ?", ("name-00042",)).fetchall()
sums = base.execute("SELECT count(*), sum(age), min(name), max(name) FROM people").fetchone()
print(found, sums, "people_by_name" in plan, base.execute("PRAGMA integrity_check").fetchone())
"#,
        )],
    );
    // 7919 * n = 42 (mod 100000), by hand of another program; its age is n % 90.
    let n = (0_u64..100_000).find(|n| n * 7919 % 100_000 == 42).unwrap();
    let sum: u64 = (0..100_000).map(|n| n % 90).sum();
    let wanted = format!("[('name-00042', {})] (100000, {sum}, 'name-00000', 'name-99999') True ('ok',)", n % 90);
    assert_eq!(bench.sh("database", "python3 load.py"), wanted);
    // Another process reads what the first wrote.
    let again = "python3 -c 'import sqlite3; print(sqlite3.connect(\"base.db\").execute(\"SELECT count(*) FROM people\").fetchone()[0])'";
    assert_eq!(bench.sh("database", again), "100000");
    bench.close();
}

/// Every file below a directory with the hash of what is in it, as `sha256sum` prints it, sorted.
fn hashes(dir: &Path) -> Vec<String> {
    let told = Command::new("sh")
        .args(["-c", "find . -type f -exec sha256sum {} + | LC_ALL=C sort"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(told.status.success());
    String::from_utf8(told.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_hundred_megabytes_go_round_as_a_tree_and_as_an_archive() {
    let bench = Bench::open();
    let here = bench.system.dir().join("big");
    fs::create_dir_all(here.join("small")).unwrap();
    let bytes = noise(20 << 20);
    for n in 0..4 {
        let mut file = fs::File::create(here.join(format!("part-{n}"))).unwrap();
        file.write_all(&[n]).unwrap();
        file.write_all(&bytes).unwrap();
    }
    for n in 0..1000 {
        fs::write(here.join(format!("small/{n}")), &bytes[n * 20_000..(n + 1) * 20_000]).unwrap();
    }
    let wanted = hashes(&here);
    assert_eq!(wanted.len(), 1004);
    bench.copy_in(&here, "big");
    let inside = bench.sh("big", "find . -type f -exec sha256sum {} + | LC_ALL=C sort");
    assert_eq!(inside.lines().collect::<Vec<_>>(), wanted);

    let back = bench.system.dir().join("back");
    bench.system.ok(&["cp", &format!("{}:big", bench.id), back.to_str().unwrap()]);
    assert_eq!(hashes(&back), wanted);

    // As one file that a program inside made, and that a program here reads.
    bench.sh(".", "tar -cf big.tar big && rm -r big && sha256sum < big.tar > sum");
    let archive = bench.system.dir().join("big.tar");
    bench.system.ok(&["cp", &format!("{}:big.tar", bench.id), archive.to_str().unwrap()]);
    let sum: String = Sha256::digest(fs::read(&archive).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(bench.sh(".", "cat sum"), format!("{sum}  -"));
    let apart = bench.system.dir().join("apart");
    fs::create_dir(&apart).unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&apart).status().unwrap();
    assert!(unpacked.success());
    assert_eq!(hashes(&apart.join("big")), wanted);
    bench.close();
}

#[test]
fn packages_are_installed_by_root_inside() {
    let bench = Bench::open();
    let tree = bench.system.dir().join("hello");
    let write = |path: &str, text: &str, mode| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let control = "Package: ringfence-hello\nVersion: 1.2.3\nArchitecture: all\nMaintainer: Ann <ann@example.org>\n\
                   Description: says hello\n";
    write("DEBIAN/control", control, 0o644);
    write(
        "DEBIAN/postinst",
        "#!/bin/sh\nset -e\nid -u > /var/lib/ringfence-hello\nchown 1000:1000 /var/lib/ringfence-hello\n",
        0o755,
    );
    write("usr/bin/ringfence-hello", "#!/bin/sh\necho hello from a package\n", 0o755);
    write("etc/ringfence-hello.conf", "word = hello\n", 0o640);
    let package = bench.system.dir().join("hello.deb");
    let built = Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&package).output().unwrap();
    assert!(built.status.success(), "{built:?}");
    bench.copy_in(&package, "hello.deb");
    let install = "sudo apt-get install -y ./hello.deb";
    bench.sh(".", &format!("{install} > apt.log 2>&1 || {{ cat apt.log >&2; exit 1; }}"));
    assert_eq!(bench.sh(".", "ringfence-hello"), "hello from a package");
    let state = "dpkg-query -W -f '${Version} ${db:Status-Status}\\n' ringfence-hello; \
                 stat -c '%U %u %a' /usr/bin/ringfence-hello /etc/ringfence-hello.conf; \
                 cat /var/lib/ringfence-hello; stat -c %u /var/lib/ringfence-hello";
    assert_eq!(bench.sh(".", state), "1.2.3 installed\nroot 0 755\nroot 0 640\n0\n1000");
    // As the user it is refused, and without the package the program is not there: not the host's.
    let as_user = bench.system.run(&["exec", "-s", &bench.id, "--sh", "apt-get purge -y ringfence-hello"]);
    assert_eq!(as_user.code, 100, "{}", as_user.stderr);
    bench.sh(".", "sudo apt-get purge -y ringfence-hello > apt.log 2>&1 || { cat apt.log >&2; exit 1; }");
    assert_eq!(bench.sh(".", "command -v ringfence-hello; ls /etc/ringfence-hello.conf 2>&1 | wc -l"), "1");
    assert!(!Path::new("/usr/bin/ringfence-hello").exists());

    bench.put(
        "pkg",
        &[
            (
                "package.json",
                r#"{ "name": "ringfence-greeter", "version": "2.0.1", "bin": { "ringfence-greet": "greet.js" },
                     "scripts": { "install": "node -e \"require('fs').writeFileSync('built', 'yes')\"" } }"#,
            ),
            (
                "greet.js",
                "#!/usr/bin/env node\nconst fs = require('fs'), at = require('path');\n\
                 console.log('greetings', fs.readFileSync(at.join(__dirname, 'built'), 'utf8'), \
                 require('./package.json').version);\n",
            ),
        ],
    );
    let install = "sudo npm install -g --offline --no-audit --no-fund --install-links ./pkg";
    bench.sh(".", &format!("{install} > npm.log 2>&1 || {{ cat npm.log >&2; exit 1; }}"));
    assert_eq!(bench.sh("/tmp", "ringfence-greet"), "greetings yes 2.0.1");
    assert_eq!(bench.sh("/", "stat -c %u $(readlink -f $(command -v ringfence-greet))"), "0");
    bench.close();
}
