//! A sandbox that computes without end is held to as many processors as its limit; on the real kernel.

mod support;

use std::time::{Duration, Instant};

use rf_sandbox::processors::processors;
use rf_types::SandboxSpec;
use rf_wire::warden::Order;
use support::{Sandbox, Warden};

/// More than any limit gives, until it is told to stop; it ends a second later, so that whoever told it ends before.
const LOOPS: &str = "for i in 1 2 3 4; do while test ! -e /tmp/stop; do :; done & done; wait; sleep 1";

/// How many processors a new exec of the sandbox may use.
fn allowed(sandbox: &Sandbox) -> usize {
    let list = sandbox.sh("grep Cpus_allowed_list /proc/self/status");
    let list = list.trim().rsplit('\t').next().unwrap().to_owned();
    let count = |part: &str| match part.split_once('-') {
        Some((first, last)) => last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1,
        None => 1,
    };
    list.split(',').map(count).sum()
}

/// Waits until `done`, and asks seldom: on a slow machine who asks all the time is heavy by that alone.
fn in_time(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(1_500));
    }
}

#[test]
fn a_heavy_sandbox_is_held_to_its_processors_until_it_is_light_again() {
    let all = processors().len();
    assert!(all > 1, "on one processor there is nothing to hold anybody to: run this with two");
    let (warden, mut server, heavy) = Warden::with(&SandboxSpec::standard(600_000));
    // Its limit is what there is, so that on a slow machine its own small commands are not past it.
    let mut spec = SandboxSpec::standard(600_000);
    spec.limits.cpu_milli_max = u32::try_from(all).unwrap() * 1_000;
    let light = server.create(&spec);
    // Control: nobody is held before.
    in_time("nobody is held", || (allowed(&heavy), allowed(&light)) == (all, all));

    let loops = heavy.start(LOOPS);
    in_time("the heavy one is held to one processor", || allowed(&heavy) == 1);
    assert_eq!(allowed(&light), all, "somebody else was held");

    heavy.sh("touch /tmp/stop");
    heavy.wait(loops);
    in_time("it is let go", || allowed(&heavy) == all);
    for id in [heavy.id(), light.id()] {
        server.done(Order::Destroy { id });
    }
    warden.stop();
}
