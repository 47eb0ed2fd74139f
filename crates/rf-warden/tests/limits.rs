//! Limits and the pool as a real kernel holds them, where no other test looks: the lease, block I/O, prepared sandboxes.

mod support;

use std::time::{Duration, Instant};

use rf_types::{DiskKind, Enforcement, Held, Layer, SandboxSpec, units::MIB};
use rf_wire::warden::{GoneWhy, Order, Reply};
use support::{Sandbox, Server, Warden, eventually};

/// Makes a sandbox; with it, what holds it and whether it was prepared.
fn create(server: &mut Server, spec: &SandboxSpec) -> (Sandbox, Enforcement, bool) {
    match server.ask_with_fd(Order::Create { spec: spec.clone(), from: None, id: None }) {
        (Ok(Reply::Created { id, lease_until, pooled, enforcement }), Some(socket)) => {
            (Sandbox::new(id, lease_until, socket), enforcement, pooled)
        }
        other => panic!("{other:?}"),
    }
}

/// Whether a process of the host has this in its command line.
fn runs(marker: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.windows(marker.len()).any(|window| window == marker.as_bytes()))
}

#[test]
fn the_end_of_a_lease_ends_every_process() {
    let warden = Warden::start();
    let mut server = warden.connect();
    let (short, _, _) = create(&mut server, &SandboxSpec::standard(2_000));
    let (long, _, _) = create(&mut server, &SandboxSpec::standard(600_000));
    let mark = |sandbox: &Sandbox| {
        let marker = format!("lease-{}", sandbox.id());
        sandbox.sh(&format!("setsid bash -c 'exec -a {marker} sleep 1000' > /dev/null 2>&1 &"));
        eventually("it runs", || runs(&marker));
        marker
    };
    let (ends, stays) = (mark(&short), mark(&long));
    let why = server.news(|news| match news {
        Reply::Gone { id, why } if *id == short.id() => Some(*why),
        _ => None,
    });
    assert_eq!(why, GoneWhy::Lease);
    eventually("nothing of it runs", || !runs(&ends));
    assert!(runs(&stays) && long.sh("echo here") == "here", "the control: one whose lease goes on");
    server.done(Order::Destroy { id: long.id() });
    warden.stop();
}

#[test]
#[ignore = "CAP_SYS_RESOURCE, which not every host's root has: it runs in the virtual machine (`cargo xtask v2`)"]
fn what_the_warden_is_spared_when_memory_runs_out_no_sandbox_is() {
    // What a process may set is what it was started with, whoever it is by then (proc_pid_oom_adj(5)).
    const TRY: &str = "(echo -400 > /proc/self/oom_score_adj) 2>/dev/null && echo set || echo refused";
    std::fs::write("/proc/self/oom_score_adj", "-500").unwrap();
    let mut control = std::process::Command::new("setpriv");
    let control = control.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", TRY]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&control.stdout), "set\n", "the control: somebody else on the host");
    let warden = Warden::start();
    let mut server = warden.connect();
    let sandbox = server.create(&SandboxSpec::standard(600_000));
    assert_eq!(sandbox.sh(TRY), "refused");
    server.done(Order::Destroy { id: sandbox.id() });
    warden.stop();
}

#[test]
fn block_io_is_held_as_far_as_the_report_says() {
    const SLOW: u64 = MIB;
    let warden = Warden::start();
    let mut server = warden.connect();
    let mut disk = |rate: u64| {
        let mut spec = SandboxSpec { disk: DiskKind::Image, ..SandboxSpec::standard(600_000) };
        spec.limits.io_bytes_per_second_max = rate;
        let (sandbox, enforcement, _) = create(&mut server, &spec);
        let held = enforcement.layers.into_iter().find(|report| report.layer == Layer::Io).unwrap().held;
        (sandbox, held)
    };
    let ((slow, held), (fast, _)) = (disk(SLOW), disk(1024 * MIB));
    let took = |sandbox: &Sandbox, line: &str| {
        let begun = Instant::now();
        sandbox.sh(line);
        begun.elapsed()
    };
    let waited_for = "dd if=/dev/zero of=/tmp/a bs=1M count=4 oflag=direct 2>&1";
    assert!(took(&slow, waited_for) > Duration::from_secs(3), "4 MiB at 1 MiB a second");
    assert!(took(&fast, waited_for) < Duration::from_secs(3), "the control: a limit that is far away");
    // What the kernel writes later, and for whom.
    let put_off = "dd if=/dev/zero of=/tmp/b bs=1M count=4 2>&1 && sync -f /tmp/b";
    match held {
        Held::Full => assert!(took(&slow, put_off) > Duration::from_secs(3), "said to be held"),
        Held::Partial { missing } => assert!(missing.contains("later"), "{missing}"),
        Held::Absent => panic!("the host has such a controller, or the launch would have been refused"),
    }
    for id in [slow.id(), fast.id()] {
        server.done(Order::Destroy { id });
    }
    warden.stop();
}

#[test]
fn a_prepared_sandbox_is_handed_out_once_and_another_prepared() {
    let warden = Warden::start_with(&["2"]);
    let mut server = warden.connect();
    let spec = SandboxSpec::standard(600_000);
    let mut made = Vec::new();
    let prepared = |server: &mut Server| {
        eventually("two are prepared", || match server.ask(Order::Status {}) {
            Ok(Reply::Status(status)) => status.pooled == 2,
            other => panic!("{other:?}"),
        });
    };
    for turn in 0..4 {
        prepared(&mut server);
        let (sandbox, _, pooled) = create(&mut server, &spec);
        assert!(pooled, "turn {turn}");
        assert_eq!(
            sandbox.sh("ls -A /tmp; echo written > /tmp/mine; cat /tmp/mine"),
            "written",
            "nobody was here before"
        );
        made.push(sandbox);
    }
    // Limits that can still be set are; one that cannot be is no reason for another to be late.
    prepared(&mut server);
    let mut other = spec.clone();
    other.limits.tasks_max = 50;
    let (sandbox, enforcement, pooled) = create(&mut server, &other);
    let tasks = enforcement.layers.iter().find(|report| report.layer == Layer::Tasks).unwrap();
    assert!(pooled && tasks.evidence.ends_with("= 51"), "process 1 is not the user's: {tasks:?}");
    made.push(sandbox);
    let mut other = spec;
    other.root_allowed = false;
    let (sandbox, _, pooled) = create(&mut server, &other);
    assert!(!pooled, "the control: what is not kept is made");
    made.push(sandbox);
    for sandbox in made {
        server.done(Order::Destroy { id: sandbox.id() });
    }
    warden.stop();
}
