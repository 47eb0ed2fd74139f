//! Execs that are followed live: from their start, later, by several, by nobody; named, fed, stopped, taken over.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use rf_places::{ExecEvent, LiveEnded, LiveEvents, LiveName, LiveNote, Place, Places};
use rf_policy::Action;
use rf_types::{Code, ExecId, ExecSpec, ExecState};
use support::{Field, claim_exec, permit_of, sandbox, server, shell, spec_of, until, user};

fn nobody() -> LiveEnded {
    Box::new(|_| async {}.boxed())
}

async fn start(places: &Places, place: &Arc<dyn Place>, spec: &ExecSpec, tag: &str) -> (ExecId, u32, LiveEvents) {
    let exec = ExecId::random();
    let note = LiveNote { tag: Some(tag.to_owned()), ..LiveNote::default() };
    let claim = claim_exec(places, user(1));
    let (pid, events) = places.execs().run_live(claim, place, exec, spec, note, nobody()).await.unwrap();
    (exec, pid, events)
}

/// Everything that is told until the end.
async fn all(mut events: LiveEvents) -> (Vec<u8>, Vec<u8>, ExecState) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match events.next().await.expect("the end is told") {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => err.extend_from_slice(&bytes),
            ExecEvent::Truncated(_) => panic!("nothing is dropped"),
            ExecEvent::Ended(state) => {
                assert!(events.next().await.is_none(), "the end is the last");
                return (out, err, state);
            }
        }
    }
}

fn code(state: ExecState) -> Option<i32> {
    let ExecState::Exited(report) = state else { panic!("{state:?}") };
    report.code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_starts_it_misses_nothing_and_whoever_comes_late_sees_what_comes_then() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let mut spec = shell("head -c 3000000 /dev/zero; echo err >&2; read line; echo \"got $line\"; exit 3");
    spec.stdin = true;
    let (exec, pid, mut first) = start(&places, &place, &spec, "t").await;
    let mut read = 0;
    while read < 3_000_000 {
        match first.next().await.unwrap() {
            ExecEvent::Stdout(bytes) => read += bytes.len(),
            ExecEvent::Stderr(bytes) => assert_eq!(bytes, "err\n"),
            other => panic!("{other:?}"),
        }
    }
    let permit = |action| permit_of(user(1), action);
    let (same, late) = places.execs().follow(&permit(Action::ExecRead), exec).unwrap();
    assert_eq!(same, pid);
    places.execs().feed(&permit(Action::ExecControl), exec, b"this\n").await.unwrap();
    let ((rest, _, state), (out, _, also)) = tokio::join!(all(first), all(late));
    assert_eq!((rest, out), (b"got this\n".to_vec(), b"got this\n".to_vec()));
    assert_eq!((code(state), code(also)), (Some(3), Some(3)));
    // Its end is told for a while.
    let (_, after) = places.execs().follow(&permit(Action::ExecRead), exec).unwrap();
    assert_eq!(all(after).await, (Vec::new(), Vec::new(), state));
    assert_eq!(places.usage(user(1)).execs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_named_by_pid_and_tag_in_its_own_place_alone() {
    let field = Field::new();
    let places = field.places().await;
    let (place, other) = (sandbox(&places, user(1)).await, sandbox(&places, user(1)).await);
    let (exec, pid, events) = start(&places, &place, &spec_of(&["sleep", "1000"]), "name").await;
    let execs = places.execs();
    for name in [LiveName::Pid(pid), LiveName::Tag("name")] {
        assert_eq!(execs.named(user(1), place.place(), name).unwrap(), exec);
        assert_eq!(execs.named(user(1), other.place(), name).unwrap_err().code, Code::NotFound);
        assert_eq!(execs.named(user(2), place.place(), name).unwrap_err().code, Code::NotFound);
    }
    let live = execs.live(user(1), place.place());
    assert_eq!((live.len(), live[0].pid, live[0].note.tag.as_deref()), (1, pid, Some("name")));
    assert_eq!(live[0].argv, ["sleep", "1000"]);
    assert!(execs.live(user(2), place.place()).is_empty() && execs.live(user(1), other.place()).is_empty());
    let theirs = permit_of(user(2), Action::ExecRead);
    assert_eq!(execs.follow(&theirs, exec).err().unwrap().code, Code::NotFound);
    let control = permit_of(user(1), Action::ExecControl);
    assert_eq!(execs.stop(&permit_of(user(2), Action::ExecControl), exec, 9).await.unwrap_err().code, Code::NotFound);
    execs.stop(&control, exec, 9).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it has ended when the kill returns");
    let ExecState::Exited(report) = all(events).await.2 else { panic!("its end is known") };
    assert_eq!((report.code, report.signal), (None, Some(9)));
    assert!(execs.live(user(1), place.place()).is_empty());
    assert_eq!(execs.named(user(1), place.place(), LiveName::Pid(pid)).unwrap(), exec, "its end is still told");
    assert_eq!(execs.stop(&control, exec, 9).await.unwrap_err().code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_when_nobody_follows_and_says_its_end_to_its_starter() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let ended = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&ended);
    let hook: LiveEnded = Box::new(move |state| {
        async move {
            assert_eq!(code(state), Some(0));
            tokio::time::sleep(Duration::from_millis(50)).await;
            note.store(true, Ordering::Release);
        }
        .boxed()
    });
    // More than any pipe or channel holds, and nobody reads it.
    let mut spec = shell("head -c 20000000 /dev/zero; read line; head -c 20000000 /dev/zero; echo over");
    spec.stdin = true;
    let exec = ExecId::random();
    let claim = claim_exec(&places, user(1));
    let run = places.execs().run_live(claim, &place, exec, &spec, LiveNote::default(), hook);
    let (_, events) = run.await.unwrap();
    drop(events);
    let (_, late) = places.execs().follow(&permit_of(user(1), Action::ExecRead), exec).unwrap();
    places.execs().feed(&permit_of(user(1), Action::ExecControl), exec, b"\n").await.unwrap();
    let (out, _, _) = all(late).await;
    assert!(out.ends_with(b"over\n"));
    assert!(ended.load(Ordering::Acquire), "the hook is over before anybody is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_is_closed_once_and_what_has_none_takes_none() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let control = permit_of(user(1), Action::ExecControl);
    let mut cat = spec_of(&["cat"]);
    cat.stdin = true;
    let (exec, _, events) = start(&places, &place, &cat, "cat").await;
    let long = Bytes::from(vec![b'x'; 500_000]);
    let feeding = async {
        places.execs().feed(&control, exec, &long).await.unwrap();
        places.execs().end_input(&control, exec).await.unwrap();
        assert_eq!(places.execs().end_input(&control, exec).await.unwrap_err().code, Code::Conflict);
        assert_eq!(places.execs().feed(&control, exec, b"x").await.unwrap_err().code, Code::Conflict);
    };
    let ((), (out, _, _)) = tokio::join!(feeding, all(events));
    assert!(out == long);
    let (exec, _, events) = start(&places, &place, &spec_of(&["sleep", "1000"]), "none").await;
    assert_eq!(places.execs().feed(&control, exec, b"x").await.unwrap_err().code, Code::Conflict);
    assert_eq!(places.execs().set_size(&control, exec, 1, 1).unwrap_err().code, Code::Conflict);
    places.execs().stop(&control, exec, 15).await.unwrap();
    let ExecState::Exited(report) = all(events).await.2 else { panic!("its end is known") };
    assert_eq!(report.signal, Some(15));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_left_behind_holds_its_end_only_until_it_is_stopped() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    // Its own end waits for the output of what it left behind.
    let (_, _, events) = start(&places, &place, &shell("(sleep 0.4; echo late) & echo early"), "waits").await;
    assert_eq!(all(events).await.0, b"early\nlate\n");
    // Killed, it does not: the process left behind would hold the output for long.
    let (exec, _, mut events) = start(&places, &place, &shell("sleep 30 & echo up; wait"), "killed").await;
    assert_eq!(events.next().await, Some(ExecEvent::Stdout("up\n".into())));
    let since = Instant::now();
    places.execs().stop(&permit_of(user(1), Action::ExecControl), exec, 9).await.unwrap();
    assert_eq!(code(all(events).await.2), None);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_goes_away_holds_up_nobody() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let (exec, _, events) = start(&places, &place, &shell("head -c 30000000 /dev/zero"), "much").await;
    let (_, idle) = places.execs().follow(&permit_of(user(1), Action::ExecRead), exec).unwrap();
    let leaving = async {
        // Long enough that its channel is full and the exec waits for it.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(idle);
    };
    let ((), (out, _, state)) = tokio::join!(leaving, all(events));
    assert_eq!((out.len(), code(state)), (30_000_000, Some(0)));
}

#[test]
fn the_next_server_takes_it_over_and_knows_what_was_said_of_it() {
    let field = Field::new();
    let noted = |exec: ExecId| field.dir.path().join(format!("spool/{exec}/about.json"));
    let said = LiveNote {
        tag: Some("kept".to_owned()),
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]).into(),
        cwd: Some("/tmp".to_owned()),
        servers_own: false,
    };
    let line = "read line; echo \"after $line\"";
    let (exec, pid, at) = server(async {
        let places = field.places().await;
        let place = sandbox(&places, user(1)).await;
        let mut spec = shell(line);
        spec.stdin = true;
        let (exec, claim) = (ExecId::random(), claim_exec(&places, user(1)));
        let run = places.execs().run_live(claim, &place, exec, &spec, said.clone(), nobody());
        let (pid, _) = run.await.unwrap();
        until(|| noted(exec).exists()).await;
        (exec, pid, place.place())
    });
    let after = server(async {
        let places = field.places().await;
        let execs = places.execs();
        for name in [LiveName::Pid(pid), LiveName::Tag("kept")] {
            assert_eq!(execs.named(user(1), at, name).unwrap(), exec);
        }
        let live = execs.live(user(1), at);
        assert_eq!((live.len(), live[0].pid, &live[0].note), (1, pid, &said));
        assert_eq!(live[0].argv, ["sh", "-c", line]);
        assert_eq!(execs.info(user(1), exec).unwrap().argv, live[0].argv);
        let (_, events) = execs.follow(&permit_of(user(1), Action::ExecRead), exec).unwrap();
        execs.feed(&permit_of(user(1), Action::ExecControl), exec, b"all\n").await.unwrap();
        let (out, _, state) = all(events).await;
        // What ended is called by its name no more.
        assert_eq!(execs.named(user(1), at, LiveName::Tag("kept")).unwrap_err().code, Code::NotFound);
        (out, code(state))
    });
    assert_eq!(after, (b"after all\n".to_vec(), Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_runs_for_a_while_is_noted_and_only_while_it_runs() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let spool = || std::fs::read_dir(field.dir.path().join("spool")).unwrap().count();
    let (long, _, events) = start(&places, &place, &spec_of(&["sleep", "1000"]), "long").await;
    for _ in 0..20 {
        let (_, _, events) = start(&places, &place, &spec_of(&["true"]), "short").await;
        assert_eq!(code(all(events).await.2), Some(0));
    }
    until(|| spool() > 0).await;
    assert_eq!(spool(), 1, "the long one");
    places.execs().stop(&permit_of(user(1), Action::ExecControl), long, 9).await.unwrap();
    all(events).await;
    assert_eq!(spool(), 0);
}
