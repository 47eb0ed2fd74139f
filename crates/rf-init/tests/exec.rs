//! Execs: start, streams, ends, signals, deadlines, what is kept for another server.

mod common;

use std::{
    io::{Read, Write},
    os::fd::AsFd,
};

use common::{Exec, Field, Options, peers, read_all};
use rf_wire::init::{IN_MEMFD, Listed, VERSION, Writer, answer, file_op, order, ready, spawn, stage};
use rustix::io::Errno;

const KILLED: u32 = 9;

#[test]
fn true_starts_and_ends() {
    let field = Field::start();
    let done = field.run(&Exec::new(1, &["/bin/true"]));
    assert_eq!((done.code(), done.exited.timed_out), (0, 0));
    assert!(done.exited.wall_us > 0 && done.exited.memory_peak_bytes > 0);
    let done = field.run(&Exec::new(2, &["false"]));
    assert_eq!(done.code(), 1);
}

#[test]
fn output_is_byte_exact_and_apart() {
    let field = Field::start();
    let done = field.run(&Exec::new(1, &["printf", r"\000\377\n\001x"]));
    assert_eq!(done.stdout, b"\0\xff\n\x01x");
    let done = field.run(&Exec::shell(2, "printf out; printf err >&2; exit 7"));
    assert_eq!((done.code(), &done.stdout[..], &done.stderr[..]), (7, &b"out"[..], &b"err"[..]));
    // More than any pipe holds.
    let done = field.run(&Exec::new(3, &["head", "-c", "3000000", "/dev/zero"]));
    assert_eq!(done.stdout.len(), 3_000_000);
}

#[test]
fn standard_input_is_given_when_asked_for_and_null_otherwise() {
    let field = Field::start();
    let mut fds = field.spawned(&Exec::new(1, &["cat"]).flags(spawn::STDIN)).fds.into_iter();
    std::fs::File::from(fds.next().unwrap()).write_all(b"in\0put").unwrap();
    assert_eq!(read_all(fds.next().unwrap()), b"in\0put");
    assert_eq!(field.server.next().exited().status, 0);
    assert_eq!(field.run(&Exec::new(2, &["cat"])).stdout, b"");
}

#[test]
fn a_terminal_is_a_terminal_of_its_size() {
    let field = Field::start();
    let mut exec = Exec::shell(1, "stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM");
    (exec.rows, exec.cols) = (33, 101);
    let mut fds = field.spawned(&exec.flags(spawn::PTY)).fds;
    assert_eq!(fds.len(), 1);
    let mut master = std::fs::File::from(fds.remove(0));
    let mut text = Vec::new();
    // The end of a terminal is an error (tty_ioctl(4)): all that was printed came before.
    let _ = master.read_to_end(&mut text);
    assert_eq!(
        String::from_utf8_lossy(&text),
        "33 101\r\n/dev/pts/0\r\nall\r\nxterm-256color\r\n".replace("pts/0", &pts(&text))
    );
    assert_eq!(field.server.next().exited().status, 0);
}

/// The name of the terminal as printed; the machine's own devpts numbers it.
fn pts(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().find_map(|line| line.strip_prefix("/dev/")).expect("a terminal's name").trim().to_owned()
}

#[test]
fn a_hung_up_terminal_ends_its_session() {
    let field = Field::start();
    let answer = field.spawned(&Exec::new(1, &["cat"]).flags(spawn::PTY));
    drop(answer);
    assert_eq!(field.server.next().exited().status & 0x7f, 1, "SIGHUP");
}

#[test]
fn failures_name_their_stage() {
    let field = Field::start();
    let fail = |exec: &Exec| field.spawn(exec).failed();
    let errno = |errno: Errno| errno.raw_os_error();
    assert_eq!(fail(&Exec::new(1, &["no-such-program"])), (errno(Errno::NOENT), stage::PROGRAM));
    assert_eq!(fail(&Exec::new(1, &["/no/such"])), (errno(Errno::NOENT), stage::PROGRAM));
    assert_eq!(fail(&Exec::new(1, &["/etc"])), (errno(Errno::ACCESS), stage::PROGRAM));
    assert_eq!(fail(&Exec::new(1, &[""])), (errno(Errno::NOENT), stage::PROGRAM));
    assert_eq!(fail(&Exec::new::<&str>(1, &[])), (errno(Errno::INVAL), stage::ORDER));
    assert_eq!(
        fail(&Exec { cwd: "/no/such".into(), ..Exec::new(1, &["true"]) }),
        (errno(Errno::NOENT), stage::DIRECTORY)
    );
    assert_eq!(
        fail(&Exec { user: "nobody-here".into(), ..Exec::new(1, &["true"]) }),
        (errno(Errno::NOENT), stage::USER)
    );
    // Another than the one uid there is.
    assert_eq!(fail(&Exec { user: "nobody".into(), ..Exec::new(1, &["true"]) }), (errno(Errno::PERM), stage::USER));
    // After all that nothing is left of them, and it still works.
    assert_eq!(field.run(&Exec::new(1, &["true"])).code(), 0);
    // At most once.
    assert_eq!(fail(&Exec::new(1, &["true"])), (errno(Errno::EXIST), stage::ORDER));
}

#[test]
fn scripts_without_a_shebang_run_as_execvp_has_them() {
    let field = Field::start();
    let path = field.dir.path().join("script");
    std::fs::write(&path, "echo \"$0 $1 $#\"\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(field.run(&Exec::new(1, &[path, "a b", "c"])).text(), format!("{path} a b 2\n"));
    // Also when it was found by the exec's own PATH.
    let mut exec = Exec::new(2, &["script", "x"]);
    exec.env.push(format!("PATH=/nowhere:{}:/bin", field.dir.path().display()).into());
    assert_eq!(field.run(&exec).text(), format!("{path} x 1\n"));
}

#[test]
fn the_environment_is_what_was_given_and_the_documented_defaults() {
    let field = Field::start();
    let mut exec = Exec::new(1, &["env"]);
    exec.env = vec![b"A=b=c".to_vec(), b"LANG=de".to_vec(), b"BYTES=\xff\xfe".to_vec()];
    let done = field.run(&exec);
    let mut lines: Vec<_> = done.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let names: Vec<_> = lines.iter().map(|line| line.split(|byte| *byte == b'=').next().unwrap()).collect();
    assert_eq!(names, [&b"A"[..], b"BYTES", b"HOME", b"LANG", b"LOGNAME", b"PATH", b"SHELL", b"USER"]);
    assert!(
        lines.contains(&&b"A=b=c"[..]) && lines.contains(&&b"LANG=de"[..]) && lines.contains(&&b"BYTES=\xff\xfe"[..])
    );
    assert!(lines.contains(&&b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"[..]));
}

#[test]
fn the_language_is_left_out_where_nobody_gave_one() {
    let field = Field::start();
    let language = Exec::new(1, &["sh", "-c", "echo ${LANG-none}"]);
    assert_eq!(field.run(&language).text(), "C.UTF-8\n");
    let none = Exec::new(2, &["sh", "-c", "echo ${LANG-none}"]).flags(spawn::NO_LANGUAGE);
    assert_eq!(field.run(&none).text(), "none\n");
    let mut given = Exec::new(3, &["sh", "-c", "echo ${LANG-none}"]).flags(spawn::NO_LANGUAGE);
    given.env = vec![b"LANG=de".to_vec()];
    assert_eq!(field.run(&given).text(), "de\n");
}

#[test]
fn a_workload_starts_clean() {
    let field = Field::start();
    let line = "ls /proc/self/fd; grep -E '^(Sig(Blk|Ign)|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/self/status; \
                umask; cat /proc/self/oom_score_adj; ps -o sid= -p $$ | tr -d ' '; echo $$";
    let text = field.run(&Exec::shell(1, line)).text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(&lines[..4], ["0", "1", "2", "3"], "3 is the directory that ls reads: {text}");
    for name in ["SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(text.contains(&format!("{name}:\t0000000000000000\n")), "{name}: {text}");
    }
    assert!(text.contains("NoNewPrivs:\t1\n") && text.contains("Seccomp:\t2\n"), "{text}");
    let tail = &lines[lines.len() - 4..];
    assert_eq!((tail[0], tail[1]), ("0022", "500"));
    assert_eq!(tail[2], tail[3], "it leads a session of its own");
}

#[test]
fn limits_hold_and_never_rise() {
    let field = Field::start();
    let mut exec = Exec::shell(1, "ulimit -n; ulimit -Hn; ulimit -f; ulimit -t");
    exec.rlimits = [77, rf_wire::init::UNLIMITED, 512 * 1024, 1 << 40];
    let text = field.run(&exec).text();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers[0] < 1 << 40 && numbers[1] < 1 << 40, "{text}");
    assert_eq!(&numbers[2..], [512, 77], "{text}");
}

#[test]
fn signals_reach_the_process() {
    let field = Field::start();
    let line = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let answer = field.spawned(&Exec::shell(5, line));
    let mut out = std::fs::File::from(answer.fds.into_iter().next().unwrap());
    let mut word = [0; 6];
    out.read_exact(&mut word).unwrap();
    send_signal(&field, 5, 15, 0);
    assert_eq!(field.server.next().kind, answer::DONE);
    assert_eq!(field.server.next().exited().status, 3 << 8);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got\n");
    // It is reaped: its pid is nobody's to signal.
    send_signal(&field, 5, 15, 0);
    assert_eq!(field.server.next().failed(), (Errno::SRCH.raw_os_error(), stage::SIGNAL));
    for (exec, signal, scope) in [(6, 15, 0), (5, 999, 0), (5, 0, 0), (5, 15, 2)] {
        send_signal(&field, exec, signal, scope);
        assert_eq!(field.server.next().failed().1, stage::ORDER, "{exec} {signal} {scope}");
    }
}

fn send_signal(field: &Field, exec: u128, signal: u32, scope: u32) {
    let body = |writer: &mut Writer<'_>| {
        writer.u128(exec);
        writer.u32(signal);
        writer.u32(scope);
    };
    field.server.order(order::SIGNAL, 11, body, &[]);
}

/// A tree with a child of its own session, all of which hold the output open.
const TREE: &str = "setsid sleep 1000 & sleep 1000 & echo started; wait";
/// The same without a session of its own, which only cgroups can find.
const FLAT_TREE: &str = "(sleep 1000 & sleep 1000) & sleep 1000 & echo started; wait";

fn kill_a_tree(options: Options, line: &str) {
    let field = Field::with(options);
    let answer = field.spawned(&Exec::shell(5, line));
    let mut fds = answer.fds.into_iter();
    let mut out = std::fs::File::from(fds.next().unwrap());
    let mut word = [0; 8];
    out.read_exact(&mut word).unwrap();
    send_signal(&field, 5, KILLED, 1);
    assert_eq!(field.server.next().kind, answer::DONE);
    assert_eq!(field.server.next().exited().status, KILLED);
    // Only when every process of the tree is gone is this the end.
    assert_eq!(read_all(out.into()), b"");
}

#[test]
fn killing_an_exec_kills_its_grandchildren() {
    kill_a_tree(Options { cgroups: true, ..Options::default() }, TREE);
}

#[test]
fn without_cgroups_descendants_and_session_are_killed() {
    kill_a_tree(Options::default(), FLAT_TREE);
}

#[test]
fn a_deadline_kills_the_tree_also_when_its_first_process_is_gone() {
    let field = Field::with(Options { cgroups: true, ..Options::default() });
    let exec = Exec { timeout_ms: 300, ..Exec::shell(1, TREE) };
    let done = field.run(&exec);
    assert_eq!((done.exited.status, done.exited.timed_out), (KILLED, 1));
    // The shell ends at once; the output ends when the deadline takes what it left behind.
    let exec = Exec { timeout_ms: 300, ..Exec::shell(2, "setsid sleep 1000 & exit 4") };
    let answer = field.spawned(&exec);
    let exited = field.server.next().exited();
    assert_eq!((exited.status, exited.timed_out), (4 << 8, 0));
    for fd in answer.fds {
        assert_eq!(read_all(fd), b"");
    }
}

#[test]
fn nobody_starts_in_the_cgroup_of_a_killed_exec() {
    let field = Field::with(Options { cgroups: true, ..Options::default() });
    for id in 1..6 {
        // One process, so that its cgroup is empty as soon as it has ended.
        let exec = Exec { timeout_ms: 100, ..Exec::new(id, &["sleep", "1000"]) };
        assert_eq!(field.run(&exec).exited.timed_out, 1);
        let after = field.run(&Exec::new(100 + id, &["echo", "after"]));
        assert_eq!((after.exited.status, after.text().as_str()), (0, "after\n"));
    }
}

#[test]
fn an_exec_runs_in_a_cgroup_of_its_own_from_the_start() {
    let field = Field::with(Options { cgroups: true, ..Options::default() });
    assert_ne!(field.ready & ready::EXEC_CGROUPS, 0);
    let group = |id: u128, line: &str| {
        let text = field.run(&Exec::new(id, &["sh", "-c", line])).text();
        let name = text.trim_end().rsplit('/').next().unwrap().to_owned();
        assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
        name
    };
    let first = group(1, "cat /proc/self/cgroup");
    // One that is empty again is taken for the next; one in which somebody stayed never is.
    let stayed = group(2, "sleep 600 </dev/null >/dev/null 2>&1 & cat /proc/self/cgroup");
    let third = group(3, "cat /proc/self/cgroup");
    assert_eq!(first, stayed);
    assert_ne!(stayed, third);
    field.server.order(order::FORGET, 22, |writer| writer.u128(2), &[]);
    assert_eq!(field.server.next().kind, answer::DONE);
    assert_ne!(stayed, group(4, "cat /proc/self/cgroup"), "a group in which somebody stayed was given away");
}

#[test]
fn an_idle_one_has_one_cgroup_and_an_exec_does_without_it() {
    let field = Field::with(Options { cgroups: true, ..Options::default() });
    let groups = || field.groups().len();
    assert_eq!(groups(), 1, "made ahead for the first exec");
    // Whatever became of it, the next exec has a group, and none that nobody knows of is left.
    std::fs::remove_dir(&field.groups()[0]).unwrap();
    assert_eq!(field.run(&Exec::new(1, &["echo", "in its own"])).text(), "in its own\n");
    assert_eq!(field.spawn(&Exec::new(2, &["no-such-program"])).kind, answer::FAILED);
    assert_eq!(groups(), 0, "one in which nothing started is removed");
    assert_eq!(field.run(&Exec::new(3, &["echo", "again"])).text(), "again\n");
    for id in [1, 3] {
        field.server.order(order::FORGET, 22, |writer| writer.u128(id), &[]);
        assert_eq!(field.server.next().kind, answer::DONE);
    }
    assert_eq!(groups(), 1, "kept for the next exec");
}

#[test]
fn the_probes_tell_no_layer_that_is_not_there() {
    assert_eq!(Field::start().ready & (ready::LANDLOCK | ready::SECCOMP | ready::EXEC_CGROUPS), 0);
}

fn listed(field: &Field) -> Vec<(Listed, Vec<std::os::fd::OwnedFd>)> {
    field.server.order(order::LIST, 21, |_| (), &[]);
    let mut all = Vec::new();
    loop {
        let message = field.server.next();
        assert_eq!(message.tag, 21, "{message:?}");
        if message.kind == answer::DONE {
            return all;
        }
        all.push((Listed::read(&mut message.reader()).unwrap(), message.fds));
    }
}

#[test]
fn another_server_takes_over_what_was_kept() {
    let mut field = Field::start();
    let running = field.spawned(&Exec::new(1, &["cat"]).flags(spawn::KEEP | spawn::STDIN));
    let ended = field.spawned(&Exec::new(2, &["echo", "late"]).flags(spawn::KEEP));
    assert_eq!((running.fds.len(), ended.fds.len()), (3, 2));
    // The server dies before it hears of the end, with all it holds.
    let (inside, outside) = peers();
    drop(std::mem::replace(&mut field.server, outside));
    drop((running, ended));
    field.warden.order(order::ADOPT, 3, |_| (), &[inside.as_fd()]);
    drop(inside);
    assert_eq!((field.warden.next()).kind, answer::DONE);
    let mut all = wait_until_listed(&field, |all| all.iter().any(|(listed, _)| listed.running == 0));
    all.sort_by_key(|(listed, _)| listed.exit.exec);
    let (late, late_fds) = all.pop().unwrap();
    assert_eq!((late.exit.exec, late.exit.status, late.running, late_fds.len()), (2, 0, 0, 2));
    let (cat, cat_fds) = all.pop().unwrap();
    assert_eq!((cat.exit.exec, cat.running, cat_fds.len()), (1, 1, 3));
    // What was printed while nobody listened is still there; it ends when init forgets its own copy.
    let forget = |exec: u128| field.server.order(order::FORGET, 22, |writer| writer.u128(exec), &[]);
    forget(2);
    assert_eq!(field.server.next().kind, answer::DONE);
    assert_eq!(read_all(late_fds.into_iter().next().unwrap()), b"late\n");
    // A running one is not forgotten; it is released, so that it sees the end of its input.
    forget(1);
    assert_eq!(field.server.next().failed(), (Errno::BUSY.raw_os_error(), stage::ORDER));
    field.server.order(order::RELEASE, 23, |writer| writer.u128(1), &[]);
    assert_eq!(field.server.next().kind, answer::DONE);
    let mut fds = cat_fds.into_iter();
    std::fs::File::from(fds.next().unwrap()).write_all(b"hello").unwrap();
    assert_eq!(read_all(fds.next().unwrap()), b"hello");
    assert_eq!(field.server.next().exited().exec, 1);
    forget(1);
    assert_eq!(field.server.next().kind, answer::DONE);
    assert!(listed(&field).is_empty());
}

/// Lists again and again until it is as wanted; news in between would be a mistake but for those of ended execs.
fn wait_until_listed(
    field: &Field,
    is_so: impl Fn(&[(Listed, Vec<std::os::fd::OwnedFd>)]) -> bool,
) -> Vec<(Listed, Vec<std::os::fd::OwnedFd>)> {
    loop {
        field.server.order(order::LIST, 21, |_| (), &[]);
        let mut all = Vec::new();
        loop {
            let message = field.server.next();
            match message.kind {
                answer::DONE => break,
                answer::EXITED => {}
                _ => all.push((Listed::read(&mut message.reader()).unwrap(), message.fds)),
            }
        }
        if is_so(&all) {
            return all;
        }
    }
}

#[test]
fn only_the_warden_changes_the_server() {
    let field = Field::start();
    let (inside, _outside) = peers();
    field.server.order(order::ADOPT, 3, |_| (), &[inside.as_fd()]);
    assert_eq!(field.server.next().failed(), (Errno::OPNOTSUPP.raw_os_error(), stage::ORDER));
    field.server.order(order::PING, 4, |_| (), &[]);
    assert_eq!(field.server.next().kind, answer::DONE);
}

#[test]
fn orders_in_a_memfd_are_as_good() {
    let field = Field::start();
    let mut exec = Exec::shell(9, "echo ${#BIG} $0");
    exec.env.push([b"BIG=".to_vec(), vec![b'x'; 120_000]].concat());
    exec.env.extend((0..5000).map(|number| format!("V{number}=1").into_bytes()));
    let mut buffer = vec![0; 1 << 20];
    let mut writer = Writer::new(&mut buffer, 0, 0);
    exec.write(&mut writer);
    let len = writer.finish().unwrap();
    let memfd = rustix::fs::memfd_create("order", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let body = &buffer[rf_wire::init::HEADER_LEN..len];
    rustix::io::write(&memfd, body).unwrap();
    let send = |len: u64| field.server.order(order::SPAWN | IN_MEMFD, 5, |writer| writer.u64(len), &[memfd.as_fd()]);
    send(body.len() as u64);
    let answer = field.server.next();
    assert_eq!((answer.kind, answer.tag), (answer::SPAWNED, 5));
    let out = answer.fds.into_iter().next().unwrap();
    assert!(read_all(out).starts_with(b"120000 "));
    assert_eq!(field.server.next().exited().status, 0);
    // Lengths that lie.
    for len in [0, body.len() as u64 + 1, 1 << 40, u64::MAX, 3] {
        send(len);
        assert_eq!(field.server.next().failed().1, stage::ORDER, "{len}");
    }
    field.server.order(order::SPAWN | IN_MEMFD, 5, |writer| writer.u64(1), &[]);
    assert_eq!(field.server.next().failed(), (Errno::BADF.raw_os_error(), stage::ORDER));
    // What is no file in memory is not read: process 1 could wait for it.
    let (pipe, _writer) = common::pipe();
    let host = std::fs::File::open("/proc/version").unwrap();
    for other in [pipe.as_fd(), host.as_fd(), field.server.0.as_fd()] {
        field.server.order(order::SPAWN | IN_MEMFD, 5, |writer| writer.u64(1), &[other]);
        assert_eq!(field.server.next().failed(), (Errno::BADF.raw_os_error(), stage::ORDER));
    }
}

#[test]
fn a_file_order_in_a_memfd_keeps_its_own_descriptors() {
    let field = Field::start();
    std::fs::write(field.dir.path().join("file"), "text").unwrap();
    let path = field.path("file");
    let body = rf_wire::init::File {
        op: file_op::TAR_OUT,
        mode: 0,
        flags: 0,
        permissions: 0,
        number: 0,
        user: b"",
        a: &path,
        b: b"",
    };
    let mut buffer = vec![0; 4096];
    let mut writer = Writer::new(&mut buffer, 0, 0);
    body.write(&mut writer);
    let len = writer.finish().unwrap();
    let memfd = rustix::fs::memfd_create("order", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let bytes = &buffer[rf_wire::init::HEADER_LEN..len];
    rustix::io::write(&memfd, bytes).unwrap();
    let (theirs, reply) = common::peers();
    let (archive, data) = common::pipe();
    let fds = [memfd.as_fd(), theirs.as_fd(), data.as_fd()];
    field.server.order(order::FILE | IN_MEMFD, 6, |writer| writer.u64(bytes.len() as u64), &fds);
    drop((theirs, data));
    let archive = read_all(archive);
    assert_eq!(common::finish(&reply), Ok(()));
    assert!(archive.windows(4).any(|window| window == b"text"));
    // Without them it is refused, and nothing of the memfd is taken for one.
    field.server.order(order::FILE | IN_MEMFD, 6, |writer| writer.u64(bytes.len() as u64), &[memfd.as_fd()]);
    assert_eq!(field.server.next().failed(), (Errno::BADF.raw_os_error(), stage::ORDER));
}

#[test]
fn an_order_of_another_version_is_refused_and_not_carried_out() {
    let field = Field::start();
    let mut buffer = [0; 4096];
    let mut writer = Writer::new(&mut buffer, order::SPAWN, 9);
    Exec::new(1, &["true"]).write(&mut writer);
    let len = writer.finish().unwrap();
    for version in [VERSION - 1, VERSION + 1] {
        buffer[2..4].copy_from_slice(&version.to_le_bytes());
        field.server.send(&buffer[..len], &[]);
        assert_eq!(field.server.next().failed(), (Errno::PROTO.raw_os_error(), stage::ORDER), "{version}");
    }
    // It would be refused as one that was started before.
    assert_eq!(field.run(&Exec::new(1, &["true"])).code(), 0);
}

#[test]
fn malformed_orders_neither_kill_nor_hang_it() {
    let field = Field::start();
    let mut good = vec![0; 4096];
    let mut writer = Writer::new(&mut good, order::SPAWN, 1);
    Exec::new(1, &["no-such-program-anywhere"]).write(&mut writer);
    let len = writer.finish().unwrap();
    // A fixed sequence, so that a failure comes again (xorshift).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..3000_u32 {
        let mut bytes = good[..len].to_vec();
        match round % 4 {
            0 => bytes.truncate(random() as usize % len + 1),
            1 => bytes.iter_mut().for_each(|byte| *byte = random() as u8),
            2 => bytes[0] = random() as u8 % 10,
            _ => {}
        }
        for _ in 0..random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        // The kinds that would answer elsewhere, or end with this socket.
        let kind = u16::from_le_bytes([bytes[0], *bytes.get(1).unwrap_or(&0)]);
        if kind == order::LIST {
            continue;
        }
        field.server.send(&bytes, &[]);
        let answer = field.server.next();
        let kinds = [answer::FAILED, answer::DONE, answer::SPAWNED, answer::EXITED];
        assert!(kinds.contains(&answer.kind), "{round}: {answer:?}");
    }
    // News of whatever was started may still come; then the answer to this.
    field.server.order(order::PING, 0xfeed, |_| (), &[]);
    loop {
        let message = field.server.next();
        if message.tag == 0xfeed {
            assert_eq!(message.kind, answer::DONE);
            break;
        }
    }
}

#[test]
fn a_server_that_does_not_read_holds_up_nobody_else() {
    let field = Field::start();
    // Until its own socket takes no more: then init has stopped reading, and waits for room.
    let mut sent = 0_u64;
    let mut buffer = [0; 64];
    loop {
        let writer = Writer::new(&mut buffer, order::PING, sent + 1);
        let len = writer.finish().unwrap();
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        match rustix::net::send(&field.server.0, &buffer[..len], flags) {
            Ok(_) => sent += 1,
            Err(Errno::AGAIN) => {
                // The warden's order is done though.
                field.warden.order(order::PING, 1, |_| (), &[]);
                assert_eq!(field.warden.next().kind, answer::DONE);
                if rustix::net::send(&field.server.0, &buffer[..len], flags) == Err(Errno::AGAIN) {
                    break;
                }
                sent += 1;
            }
            Err(errno) => panic!("{errno}"),
        }
    }
    assert!(sent > 100);
    // And every answer comes once it reads, in order.
    for tag in 1..=sent {
        let message = field.server.next();
        assert_eq!((message.kind, message.tag), (answer::DONE, tag));
    }
}

#[test]
fn orphans_are_reaped_and_many_execs_leave_nothing() {
    let field = Field::start();
    for id in 0..600 {
        assert_eq!(field.run(&Exec::shell(id, "(true &) ; true")).code(), 0);
    }
    let text = field.run(&Exec::shell(9999, "ps -e -o stat= | grep -c Z || true; ls /proc | grep -c '^[0-9]'")).text();
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[0], 0, "{text}");
    assert!(numbers[1] < 8, "{text}");
    // Ended ones were given up for room, the longest ended first.
    assert_eq!(listed(&field).len(), rf_wire::init::EXECS_MAX);
}

#[test]
fn the_end_of_the_warden_is_the_end() {
    let mut field = Field::start();
    let answer = field.spawned(&Exec::new(1, &["sleep", "1000"]));
    let (_, other) = peers();
    field.warden = other;
    for fd in answer.fds {
        assert_eq!(read_all(fd), b"");
    }
    assert!(field.server.receive().is_none());
}
