//! Who execs and file operations run as, and `sudo`. Needs root on the machine: a single uid has nobody to change to.

mod common;

use std::{fs, io::Write, os::unix::fs::PermissionsExt};

use common::{Exec, Field, FileOrder, Options, finish, read_all};
use rf_wire::init::{VERSION, file_op, order, spawn, stage};
use rustix::io::Errno;

const USERS: Options = Options { cgroups: false, root: false, users: true, only_user: false, bounded: false };
const ROOT: Options = Options { root: true, ..USERS };

fn field(options: Options) -> Field {
    let field = Field::with(options);
    fs::copy(common::program(), field.dir.path().join("sudo")).unwrap();
    field
}

/// A line with `sudo` in its path.
fn line(field: &Field, id: u128, line: &str) -> Exec {
    let mut exec = Exec::shell(id, line);
    exec.env.push(format!("PATH={}:/usr/bin:/bin", field.dir.path().display()).into_bytes());
    exec
}

fn text(field: &Field, id: u128, what: &str) -> String {
    field.run(&line(field, id, what)).text()
}

#[test]
fn the_default_user_has_no_rights_and_root_only_where_it_may_be_had() {
    let without = field(USERS);
    let who = "id -u; id -g; grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | sort -u -k2 | wc -l; grep CapEff /proc/self/status";
    assert_eq!(text(&without, 1, who), "1000\n1000\n1\nCapEff:\t0000000000000000\n");
    let root = Exec { user: "root".into(), ..Exec::new(2, &["id", "-u"]) };
    assert_eq!(without.spawn(&root).failed(), (Errno::PERM.raw_os_error(), stage::USER));
    let with = field(ROOT);
    assert_eq!(with.run(&root).text(), "0\n");
    let caps = with.run(&Exec {
        user: "root".into(),
        ..Exec::shell(3, "grep -E '^Cap(Inh|Amb)' /proc/self/status; grep CapEff /proc/self/status")
    });
    let caps = caps.text();
    assert!(caps.starts_with("CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n"), "{caps}");
    assert!(!caps.contains("CapEff:\t0000000000000000"), "{caps}");
    let other = Exec { user: "nobody".into(), ..Exec::shell(4, "id -un; echo $USER $LOGNAME; id -G") };
    assert_eq!(without.run(&other).text(), "nobody\nnobody nobody\n65534\n");
}

#[test]
fn where_there_is_one_uid_only_all_run_as_that() {
    let field = Field::with(Options { only_user: true, ..Options::default() });
    let line = "id -u; cat /proc/self/oom_score_adj; grep -E '^Cap(Prm|Eff)' /proc/self/status";
    let text = field.run(&Exec::shell(1, line)).text();
    assert_eq!(text, "1000\n500\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
    let path = field.path("a");
    let write = FileOrder { op: file_op::WRITE, permissions: 0o600, a: &path, ..FileOrder::default() };
    field.open(write).unwrap().0.write_all(b"x").unwrap();
    drop(field.open(write).unwrap());
    assert_eq!(field.read(&path).unwrap(), b"");
    let root = Exec { user: "root".into(), ..Exec::new(2, &["true"]) };
    assert_eq!(field.spawn(&root).failed(), (Errno::PERM.raw_os_error(), stage::USER));
    let chmod = FileOrder { op: file_op::CHMOD, permissions: 0o700, a: &path, ..FileOrder::default() };
    field.done(chmod).unwrap();
}

#[test]
fn streams_belong_to_the_user_and_can_be_opened_again() {
    let field = field(USERS);
    let exec = line(&field, 1, "cat /dev/stdin > /dev/stdout; echo err > /dev/stderr").flags(spawn::STDIN);
    let mut fds = field.spawned(&exec).fds.into_iter();
    fs::File::from(fds.next().unwrap()).write_all(b"again").unwrap();
    assert_eq!((read_all(fds.next().unwrap()), read_all(fds.next().unwrap())), (b"again".to_vec(), b"err\n".to_vec()));
    assert_eq!(field.server.next().exited().status, 0);
    let exec = line(&field, 2, "stat -c %u $(tty); echo again > $(tty)").flags(spawn::PTY);
    let mut master = fs::File::from(field.spawned(&exec).fds.remove(0));
    let mut printed = Vec::new();
    let _ = std::io::Read::read_to_end(&mut master, &mut printed);
    assert_eq!(String::from_utf8_lossy(&printed), "1000\r\nagain\r\n");
}

#[test]
fn the_three_capabilities_of_an_init_without_root_are_enough() {
    let field = field(Options { bounded: true, ..USERS });
    let line = line(&field, 1, "id -u; grep -E '^CapBnd' /proc/self/status; cat /dev/stdin > /dev/stdout");
    let mut fds = field.spawned(&line.flags(spawn::STDIN)).fds.into_iter();
    fs::File::from(fds.next().unwrap()).write_all(b"again").unwrap();
    assert_eq!(read_all(fds.next().unwrap()), b"1000\nCapBnd:\t00000000000000e0\nagain");
    assert_eq!(field.server.next().exited().status, 0);
    let pty = Exec::shell(2, "stat -c %u $(tty)").flags(spawn::PTY);
    let mut master = fs::File::from(field.spawned(&pty).fds.remove(0));
    let mut printed = Vec::new();
    let _ = std::io::Read::read_to_end(&mut master, &mut printed);
    assert_eq!(String::from_utf8_lossy(&printed), "1000\r\n");
    assert_eq!(field.server.next().exited().status, 0);
    let path = field.path("a");
    let write = FileOrder { op: file_op::WRITE, permissions: 0o600, a: &path, ..FileOrder::default() };
    drop(field.open(write).unwrap());
}

#[test]
fn init_can_neither_be_seen_into_nor_signalled_nor_traced() {
    let field = field(USERS);
    let line =
        "cat /proc/1/environ /proc/1/maps 2>/dev/null | wc -c; readlink /proc/1/fd/3 || echo no; kill -9 1 || echo no";
    let done = field.run(&Exec::shell(1, line));
    assert_eq!(done.text(), "0\nno\nno\n");
}

#[test]
fn file_operations_have_the_rights_of_their_user_only() {
    let field = field(ROOT);
    let dir = field.dir.path();
    fs::write(dir.join("roots"), "secret").unwrap();
    fs::set_permissions(dir.join("roots"), PermissionsExt::from_mode(0o600)).unwrap();
    let path = field.path("roots");
    assert_eq!(field.read(&path), Err(Errno::ACCESS.raw_os_error()));
    // Control: root inside may.
    let as_root = FileOrder { op: file_op::READ, user: "root", a: &path, ..FileOrder::default() };
    let (mut file, _) = field.open(as_root).unwrap();
    let mut content = String::new();
    std::io::Read::read_to_string(&mut file, &mut content).unwrap();
    assert_eq!(content, "secret");
    let made = field.path("made");
    let write = FileOrder { op: file_op::WRITE, permissions: 0o600, a: &made, ..FileOrder::default() };
    drop(field.open(write).unwrap());
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.join("made")).unwrap());
    assert_eq!(owner, 1000);
    // A replace by root leaves the owner.
    let (_, reply) = field.open(FileOrder { mode: 3, user: "root", ..write }).unwrap();
    reply.send(&[1], &[]);
    finish(&reply).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.join("made")).unwrap()), 1000);
}

#[test]
fn sudo_runs_as_root_with_streams_directory_and_code() {
    let field = field(ROOT);
    assert_eq!(text(&field, 1, "id -u; sudo id -u; echo in | sudo cat; cd /usr && sudo pwd"), "1000\n0\nin\n/usr\n");
    let done = field.run(&line(&field, 2, "sudo sh -c 'echo out; echo err >&2; exit 7'; echo $?"));
    assert_eq!((&done.stdout[..], &done.stderr[..]), (&b"out\n7\n"[..], &b"err\n"[..]));
    assert_eq!(
        text(&field, 3, "sudo -u nobody id -un; sudo --user=nobody -n -- id -un; sudo -nu nobody id -un"),
        "nobody\n".repeat(3)
    );
    assert_eq!(text(&field, 4, "sudo sh -c 'kill -TERM $$'; echo $?"), "143\n");
    assert_eq!(text(&field, 5, "sudo -v && sudo -k && sudo -V 2>&1 | grep -c rf-init; sudo true; echo $?"), "1\n0\n");
}

#[test]
fn sudo_gives_the_command_a_clean_environment() {
    let field = field(ROOT);
    let names = |options: &str| {
        let line = format!("A=1 LC_X=2 TERM=t sudo {options} env | cut -d= -f1 | sort | tr '\\n' ' '");
        text(&field, u128::from(options.len() as u32) + 10, &line)
    };
    let base = "HOME LANG LC_X LOGNAME PATH SHELL SUDO_GID SUDO_UID SUDO_USER TERM USER ";
    assert_eq!(names(""), base);
    assert_eq!(names("B=2"), format!("B {base}"));
    assert!(names("-E").starts_with("A ") && names("-E -H").starts_with("A "));
    assert_eq!(
        text(&field, 30, "sudo sh -c 'echo $HOME $USER $PATH'"),
        "/root root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    assert_eq!(text(&field, 31, "sudo -i pwd; sudo -s echo 'a  b;' '*'"), "/root\na  b; *\n");
}

#[test]
fn sudo_says_what_it_cannot_do() {
    let with = field(ROOT);
    let say = |field: &Field, id, what: &str| {
        let done = field.run(&line(field, id, what));
        (done.exited.status >> 8, String::from_utf8(done.stderr).unwrap())
    };
    assert_eq!(say(&with, 1, "sudo no-such-thing"), (1, "sudo: no-such-thing: command not found\n".into()));
    assert_eq!(say(&with, 2, "sudo -u nobody-here id"), (1, "sudo: unknown user nobody-here\n".into()));
    assert!(say(&with, 3, "sudo -Z id").1.starts_with("sudo: unknown option -Z\n"));
    assert!(say(&with, 4, "sudo").1.starts_with("usage: sudo"));
    let without = field(USERS);
    assert_eq!(say(&without, 1, "sudo id"), (1, "sudo: root cannot be had in this sandbox\n".into()));
}

#[test]
fn sudo_passes_signals_on() {
    let field = field(ROOT);
    let what = "sudo sh -c 'trap \"echo got; exit 5\" TERM; echo ready; while :; do sleep 0.01; done' > $OUT & \
                until grep -q ready $OUT; do sleep 0.01; done; kill -TERM $!; wait $!; echo $?; cat $OUT";
    let mut exec = line(&field, 1, what);
    exec.env.push([&b"OUT="[..], &field.path("out")].concat());
    fs::write(field.dir.path().join("out"), "").unwrap();
    fs::set_permissions(field.dir.path().join("out"), PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(field.run(&exec).text(), "5\nready\ngot\n");
}

#[test]
fn killing_an_exec_kills_what_sudo_started_for_it() {
    let field = field(Options { cgroups: true, ..ROOT });
    let answer = field.spawned(&line(&field, 1, "sudo sh -c 'echo started; exec sleep 1000'"));
    let mut fds = answer.fds.into_iter();
    let mut out = fs::File::from(fds.next().unwrap());
    let mut word = [0; 8];
    std::io::Read::read_exact(&mut out, &mut word).unwrap();
    let body = |writer: &mut rf_wire::init::Writer<'_>| {
        writer.u128(1);
        writer.u32(9);
        writer.u32(1);
    };
    field.server.order(order::SIGNAL, 2, body, &[]);
    assert_eq!(field.server.next().kind, rf_wire::init::answer::DONE);
    assert_eq!(field.server.next().exited().status, 9);
    assert_eq!(read_all(out.into()), b"");
    // Nothing of it is listed, for the server never asked for it.
    field.server.order(order::FORGET, 3, |writer| writer.u128(1), &[]);
    assert_eq!(field.server.next().kind, rf_wire::init::answer::DONE);
    field.server.order(order::LIST, 4, |_| (), &[]);
    assert_eq!(field.server.next().kind, rf_wire::init::answer::DONE);
}

/// Attack: a workload that stops every process of its user, also one that is not yet a program, for which init waits.
#[test]
fn stopping_all_the_time_does_not_hold_up_init() {
    let field = field(USERS);
    let script = "
import os, signal
print('on', flush=True)
while True:
    try: os.kill(-1, signal.SIGSTOP)
    except ProcessLookupError: pass
";
    let mut out = fs::File::from(field.spawned(&Exec::new(1, &["python3", "-c", script])).fds.remove(0));
    std::io::Read::read_exact(&mut out, &mut [0; 3]).unwrap();
    // Stopped before or after its execve: init goes on, and can kill it either way.
    for id in 2..12 {
        field.spawned(&Exec::new(id, &["true"]));
        let body = |writer: &mut rf_wire::init::Writer<'_>| {
            writer.u128(id);
            writer.u32(9);
            writer.u32(0);
        };
        field.server.order(order::SIGNAL, 2, body, &[]);
        let (mut ended, mut answered) = (false, false);
        while !(ended && answered) {
            match field.server.next().kind {
                rf_wire::init::answer::EXITED => ended = true,
                _ => answered = true,
            }
        }
    }
}

/// Attack: a lease on a program's file, which holds up whoever opens it.
#[test]
fn a_lease_on_a_program_holds_nothing_up_for_long() {
    let field = field(USERS);
    let script = "
import fcntl, os, signal, shutil, time
signal.signal(signal.SIGIO, lambda *_: None)
path = os.environ['WHERE']
shutil.copy('/bin/true', path)
os.chmod(path, 0o755)
fd = os.open(path, os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('on', flush=True)
while True: time.sleep(1000)
";
    let mut exec = Exec::new(1, &["python3", "-c", script]);
    exec.env.push([&b"WHERE="[..], &field.path("leased")].concat());
    let mut out = fs::File::from(field.spawned(&exec).fds.remove(0));
    std::io::Read::read_exact(&mut out, &mut [0; 3]).unwrap();
    // Reading does not wait at all.
    assert_eq!(field.read(&field.path("leased")), Err(Errno::AGAIN.raw_os_error()));
    field.spawned(&Exec::new(2, &[field.path("leased")]));
    assert_eq!(field.server.next().exited().status, 9, "killed on its way to its execve");
}

/// Attack: a workload that talks to process 1 over `sudo`'s socket itself.
#[test]
fn strangers_at_sudos_socket_neither_crash_nor_block_it() {
    let field = field(ROOT);
    let script = "
import socket, os, random, array
random.seed(1)
def connect():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(20); s.connect('/run/rf-init.sock'); return s
idle = [connect() for _ in range(8)]
for i in range(300):
    s = connect()
    kind = random.choice([160, 160, 161, 162, 1, 8, 0x8000 | 160])
    body = kind.to_bytes(2, 'little') + VERSION.to_bytes(2, 'little') + bytes(8) + random.randbytes(random.randrange(200))
    fds = array.array('i', [0] * random.randrange(5))
    s.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if len(fds) else [])
    if i % 3 == 0:
        try: s.recv(100)
        except OSError: pass
    s.close()
print('done')
";
    let script = format!("VERSION = {VERSION}\n{script}");
    assert_eq!(field.run(&Exec::new(1, &["python3", "-c", &script])).text(), "done\n");
    assert_eq!(text(&field, 2, "sudo id -u"), "0\n");
}

/// What a program needs to ask process 1 for a command by itself.
const ASK: &str = "
import array, os, socket, struct, sys, threading, time
def connect():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(20); s.connect('/run/rf-init.sock'); return s
def string(text): return struct.pack('<I', len(text)) + text + bytes(1)
def head(kind): return struct.pack('<HHQ', kind, VERSION, 0)
def run(*argv):
    order = bytes(24) + bytes([255] * 40) + string(b'root') + string(b'/') + struct.pack('<I', len(argv))
    return head(160) + order + b''.join(map(string, argv)) + bytes(4)
def ask(s, body, *fds):
    s.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))])
";

fn asking(field: &Field, id: u128, script: &str) -> Exec {
    let mut exec = Exec::new(id, &["python3", "-c", &format!("VERSION = {VERSION}{ASK}{script}")]);
    exec.env.push(format!("PATH={}:/usr/bin:/bin", field.dir.path().display()).into_bytes());
    exec
}

/// Whether nobody has the other end of a pipe any more, or will soon have.
fn is_over(mut out: fs::File) -> bool {
    let begun = std::time::Instant::now();
    let patience = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    while begun.elapsed().as_secs() < 5 {
        let mut fds = [rustix::event::PollFd::new(&out, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&patience)).unwrap() == 0 {
            return false;
        }
        if std::io::Read::read(&mut out, &mut [0; 64]).unwrap() == 0 {
            return true;
        }
    }
    false
}

/// Attack: a command by `sudo` that goes on when its exec is killed, since whoever connected for it has ended before.
#[test]
fn a_command_that_nobody_alive_asks_for_is_not_run() {
    let field = field(Options { cgroups: true, ..ROOT });
    let script = "
command = [b'sh', b'-c', b'trap \"\" HUP; echo started; exec sleep 1000']
dies = sys.argv[1:] == ['dies']
connector = os.fork()
if connector == 0:
    s, connector = connect(), os.getpid()
    if not dies or os.fork() == 0:
        while dies and os.getppid() == connector: time.sleep(0.01)
        time.sleep(0.2 if dies else 0)
        ask(s, run(*command), 0, 1, 2)
        print('answer', s.recv(100)[0], flush=True)
        time.sleep(1000)
    os._exit(0)
os.waitpid(connector, 0)
time.sleep(1000)
";
    for (id, arguments, said) in [(1, &[][..], "started\n"), (2, &["dies"][..], "answer 163\n")] {
        let mut exec = asking(&field, id, script);
        exec.argv.extend(arguments.iter().map(|argument| argument.as_bytes().to_vec()));
        let mut out = fs::File::from(field.spawned(&exec).fds.remove(0));
        let mut first = vec![0; said.len()];
        std::io::Read::read_exact(&mut out, &mut first).unwrap();
        let body = |writer: &mut rf_wire::init::Writer<'_>| {
            writer.u128(id);
            writer.u32(9);
            writer.u32(1);
        };
        field.server.order(order::SIGNAL, 2, body, &[]);
        assert_eq!(field.server.next().kind, rf_wire::init::answer::DONE);
        assert_eq!(field.server.next().exited().status, 9);
        assert!(is_over(out), "something goes on after {}", String::from_utf8_lossy(&first));
        // The first is the control: asked for by who lives, it runs.
        assert_eq!(String::from_utf8_lossy(&first), said);
    }
}

#[test]
fn a_command_of_sudo_has_the_limits_of_the_exec_that_asks() {
    let field = field(Options { cgroups: true, ..ROOT });
    let limited = |id, nofile| {
        let mut exec = line(&field, id, "ulimit -n; sudo sh -c 'ulimit -n'; sudo -u nobody sh -c 'ulimit -n'");
        exec.rlimits[3] = nofile;
        field.run(&exec).text()
    };
    assert_eq!(limited(1, 77), "77\n77\n77\n");
    let others = limited(2, rf_wire::init::UNLIMITED);
    assert!(!others.contains("77\n"), "{others}");
}

#[test]
fn what_an_exec_left_behind_may_still_ask_when_that_is_forgotten() {
    let field = field(Options { cgroups: true, ..ROOT });
    let what = "setsid sh -c 'until [ -e $OUT.go ]; do sleep 0.01; done; sudo id -u > $OUT.part; mv $OUT.part $OUT' \
                > /dev/null 2>&1 &";
    let mut exec = line(&field, 1, what);
    exec.env.push([&b"OUT="[..], &field.path("out")].concat());
    assert_eq!(field.run(&exec).text(), "");
    field.server.order(order::FORGET, 3, |writer| writer.u128(1), &[]);
    assert_eq!(field.server.next().kind, rf_wire::init::answer::DONE);
    fs::write(field.dir.path().join("out.go"), "").unwrap();
    let begun = std::time::Instant::now();
    while !field.dir.path().join("out").exists() && begun.elapsed().as_secs() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(fs::read_to_string(field.dir.path().join("out")).unwrap(), "0\n");
}

/// Attack: sockets that take ten minutes to close, left with process 1 in every way that there is.
#[test]
fn what_strangers_leave_is_not_process_1s_to_close() {
    let field = field(ROOT);
    let script = "
def lingering(seconds):
    l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
    c = socket.socket(); c.connect(l.getsockname()); c.setblocking(False)
    try:
        while True: c.send(bytes(65536))
    except BlockingIOError: pass
    c.setblocking(True)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, seconds))
    return l, c
l, c = lingering(1); begun = time.monotonic(); c.close()
print('control', time.monotonic() - begun > 0.9)
listeners = []
for way in range(5):
    l, c = lingering(600); listeners.append(l)
    s, fd = connect(), c.fileno()
    if way == 0: ask(s, run(b'true'), fd, fd, fd)
    elif way == 1: ask(s, head(161) + bytes(4), fd)
    elif way == 2: ask(s, run(b'true'), *[fd] * 20)
    elif way == 3:
        a, b = socket.socketpair(); ask(a, b'x', fd); a.close()
        ask(s, head(160), b.fileno()); b.close()
    else:
        ask(s, run(b'sleep', b'0.1'), 0, 1, 2); ask(s, head(161), fd); ask(s, head(162), fd)
    # Whoever has the last copy waits, and that may be this program.
    threading.Thread(target=c.close).start(); s.close()
print('done', flush=True)
time.sleep(1000)
";
    let mut out = fs::File::from(field.spawned(&asking(&field, 1, script)).fds.remove(0));
    let mut said = [0; 18];
    std::io::Read::read_exact(&mut out, &mut said).unwrap();
    assert_eq!(&said, b"control True\ndone\n");
    let begun = std::time::Instant::now();
    for tag in 2..20 {
        field.server.order(order::PING, tag, |_| (), &[]);
        assert_eq!((field.server.next().kind, begun.elapsed().as_secs() < 10), (rf_wire::init::answer::DONE, true));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(text(&field, 2, "sudo id -u"), "0\n");
}

#[test]
fn a_file_that_may_not_be_removed_is_not_moved_to_another_file_system() {
    let field = field(USERS);
    let there = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(there.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let target = there.path().join("target");
    fs::write(&target, "mine").unwrap();
    for (name, mode) in [("closed", 0o755), ("sticky", 0o1777), ("open", 0o777)] {
        let dir = field.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).unwrap();
        fs::write(dir.join("file"), "theirs").unwrap();
    }
    let rename = |from: &str, flags| {
        let (a, b) = (field.path(from), target.as_os_str().as_encoded_bytes());
        field.done(FileOrder { op: file_op::MOVE, flags, a: &a, b, ..FileOrder::default() })
    };
    for (from, errno) in [("closed/file", Errno::ACCESS), ("sticky/file", Errno::PERM)] {
        for flags in [0, 1] {
            assert_eq!(rename(from, flags), Err(errno.raw_os_error()), "{from}");
            assert_eq!(fs::read(&target).unwrap(), b"mine");
            assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1);
        }
    }
    // Control: one that may be is, in place of what is there.
    assert_eq!(rename("open/file", 1), Ok(()));
    assert_eq!(fs::read(&target).unwrap(), b"theirs");
    assert!(!field.dir.path().join("open/file").exists());
}
