//! Execs in sandboxes: foreground, background, at once, out of order, cancelled, kept across servers.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use rf_places::{
    ExecEvent, Place, Places, Which,
    place::{AdoptedExec, HeldOf, Spawned},
};
use rf_policy::{Action, Asked, Credential, Permit, Principal, Question, Scope, UserUsage, judge};
use rf_types::{Code, ExecId, ExecState, Fault, PlaceRef, RequestId, SandboxId, SignalScope, UserId, UserLimits};
use support::{Behaviour, Field, claim_exec, id_of, permit_of, sandbox, server, shell, spec_of, until, user};

const MAX: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_and_its_streams_stay_apart() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let spec = shell("printf 'a\\000b\\377'; echo err >&2; exit 7");
    let exec = ExecId::random();
    let running = places.execs().run(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
    let done = running.collect(Bytes::new(), MAX, MAX).await.unwrap();
    assert_eq!((done.stdout, done.stderr), (b"a\0b\xff".to_vec(), b"err\n".to_vec()));
    assert_eq!((done.exit.code, done.exit.signal), (Some(7), None));
    let info = places.execs().info(user(1), exec).unwrap();
    assert_eq!(info.state, ExecState::Exited(done.exit));
    // Another user's is as one that does not exist.
    let theirs = places.execs().info(user(2), exec).unwrap_err();
    assert_eq!(theirs, places.execs().info(user(2), ExecId::random()).unwrap_err());
    assert_eq!(places.usage(user(1)).execs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_input_is_fed_and_ends() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let mut spec = spec_of(&["cat"]);
    spec.stdin = true;
    let running = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await.unwrap();
    let input = Bytes::from(vec![42; 700_000]);
    let done = running.collect(input.clone(), MAX, MAX).await.unwrap();
    assert!(done.stdout == input);
    // A program that does not read its input is no error.
    let mut spec = spec_of(&["true"]);
    spec.stdin = true;
    let running = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await.unwrap();
    assert_eq!(running.collect(input, MAX, MAX).await.unwrap().exit.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_past_the_cap_is_dropped_and_the_program_goes_on() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let spec = shell("head -c 3000000 /dev/zero; echo done >&2");
    let running = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await.unwrap();
    let done = running.collect(Bytes::new(), 1000, 1000).await.unwrap();
    assert_eq!((done.stdout.len(), done.stdout_truncated), (1000, true));
    assert_eq!((done.stderr, done.stderr_truncated), (b"done\n".to_vec(), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_child_that_holds_the_output_does_not_hold_the_caller() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let spec = shell("sleep 1000 & echo out");
    let running = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await.unwrap();
    let done = running.collect(Bytes::new(), MAX, MAX).await.unwrap();
    assert_eq!((done.stdout, done.exit.code), (b"out\n".to_vec(), Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_each_get_their_own() {
    for behaviour in [Behaviour::Honest, Behaviour::OutOfOrder] {
        let field = Field::new();
        field.warden.behave(behaviour);
        let places = field.places().await;
        let place = sandbox(&places, user(1)).await;
        let all = (0..40).map(|n| {
            let (places, place) = (places.clone(), Arc::clone(&place));
            tokio::spawn(async move {
                let spec = shell(&format!("echo {n}"));
                let claim = claim_exec(&places, user(1));
                let running = places.execs().run(claim, &place, ExecId::random(), &spec).await.unwrap();
                assert_eq!(running.collect(Bytes::new(), MAX, MAX).await.unwrap().stdout, format!("{n}\n").as_bytes());
            })
        });
        for done in futures::future::join_all(all).await {
            done.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_started_at_most_once() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let exec = ExecId::random();
    let spec = spec_of(&["true"]);
    let run = || places.execs().run(claim_exec(&places, user(1)), &place, exec, &spec);
    run().await.unwrap().collect(Bytes::new(), MAX, MAX).await.unwrap();
    assert_eq!(run().await.err().unwrap().code, Code::Conflict);
    let again = places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec_of(&["true"])).await;
    assert_eq!(again.unwrap_err().code, Code::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_is_said_so_and_leaves_nothing() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let spec = spec_of(&["no-such-program"]);
    let run = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await;
    assert_eq!(run.err().unwrap().code, Code::ExecFailed);
    let run = places.execs().run_background(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await;
    let fault = run.unwrap_err();
    assert_eq!(fault.code, Code::ExecFailed);
    assert!(fault.message.contains("`no-such-program`"), "{}", fault.message);
    assert!(places.execs().list(user(1), None).is_empty());
    assert_eq!(std::fs::read_dir(field.dir.path().join("spool")).unwrap().count(), 0);
    assert_eq!(places.usage(user(1)).execs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_arguments_travel_in_a_memfd() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let long = "x".repeat(120_000);
    let spec = spec_of(&["printf", "%s", &long]);
    let running = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await.unwrap();
    assert_eq!(running.collect(Bytes::new(), MAX, MAX).await.unwrap().stdout, long.as_bytes());
    let mut spec = spec_of(&["true"]);
    spec.env.insert("A".into(), "x".repeat(9 << 20));
    let refused = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await;
    assert_eq!(refused.err().unwrap().code, Code::TooLarge);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreground_caller_that_goes_away_kills_the_tree() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let init = field.warden.init(id_of(&place));
    let exec = ExecId::random();
    let spec = shell("sleep 1000 & sleep 1000");
    let running = places.execs().run(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
    assert_eq!(init.running(), 1);
    drop(running);
    until(|| init.running() == 0).await;
    let ExecState::Exited(report) = places.execs().info(user(1), exec).unwrap().state else { panic!("not ended") };
    assert_eq!(report.signal, Some(9));
    assert_eq!(places.usage(user(1)).execs, 0);
    // Also when it goes away while the streams are being read.
    let running = places.execs().run(claim_exec(&places, user(1)), &place, ExecId::random(), &spec).await.unwrap();
    let mut events = running.events();
    assert!(futures::poll!(events.next()).is_pending());
    drop(events);
    until(|| init.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_the_tree_and_only_its_users() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let exec = ExecId::random();
    places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &shell("sleep 1000")).await.unwrap();
    let control = |user| permit_of(user, Action::ExecControl);
    let theirs = places.execs().signal(&control(user(2)), exec, 15, SignalScope::Tree).await;
    assert_eq!(theirs.unwrap_err().code, Code::NotFound);
    let wrong = places.execs().signal(&control(user(1)), exec, 900, SignalScope::Tree).await;
    assert_eq!(wrong.unwrap_err().code, Code::InvalidRequest);
    places.execs().signal(&control(user(1)), exec, 15, SignalScope::Tree).await.unwrap();
    let state = places.execs().wait(&permit_of(user(1), Action::ExecRead), exec).await.unwrap();
    let ExecState::Exited(report) = state else { panic!("{state:?}") };
    assert_eq!(report.signal, Some(15));
    let late = places.execs().signal(&control(user(1)), exec, 15, SignalScope::Tree).await;
    assert_eq!(late.unwrap_err().code, Code::NotFound);
}

async fn replay(places: &Places, exec: ExecId, from: u64, follow: bool) -> (Vec<u8>, Vec<u8>, Vec<ExecEvent>) {
    let permit = permit_of(user(1), Action::ExecRead);
    let mut events = places.execs().attach(&permit, exec, from, 0, follow).unwrap();
    let (mut out, mut err, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(event) = events.next().await {
        match event.unwrap() {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => err.extend_from_slice(&bytes),
            other => rest.push(other),
        }
    }
    (out, err, rest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_exec_is_replayed_from_any_offset_and_followed_by_several() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let exec = ExecId::random();
    let mut spec = shell("echo one; echo err >&2; read line; echo \"got $line\"");
    spec.stdin = true;
    let info = places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
    assert!(info.background && info.pid > 0);
    assert_eq!(places.usage(user(1)).execs, 1);
    let followers = [0, 2].map(|from| {
        let places = places.clone();
        tokio::spawn(async move { replay(&places, exec, from, true).await })
    });
    let control = permit_of(user(1), Action::ExecControl);
    places.execs().write_stdin(&control, exec, b"input\n").await.unwrap();
    let [all, some] = followers;
    let (out, err, rest) = all.await.unwrap();
    assert_eq!((out.as_slice(), err.as_slice()), (&b"one\ngot input\n"[..], &b"err\n"[..]));
    assert!(matches!(rest[..], [ExecEvent::Ended(ExecState::Exited(_))]), "{rest:?}");
    assert_eq!(some.await.unwrap().0, b"e\ngot input\n");
    assert_eq!(replay(&places, exec, 4, false).await.0, b"got input\n");
    let (mut bytes, truncated) =
        places.execs().output(&permit_of(user(1), Action::ExecRead), exec, Which::Stdout, 4, Some(3)).unwrap();
    assert_eq!((bytes.next().await.unwrap().unwrap(), truncated), (Bytes::from_static(b"got"), false));
    assert_eq!(places.usage(user(1)).execs, 0);
    // What init kept for another server is let go.
    let init = field.warden.init(id_of(&place));
    until(|| init.remembered() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_standard_input_ends_a_kept_exec() {
    let field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let exec = ExecId::random();
    let mut spec = spec_of(&["cat"]);
    spec.stdin = true;
    places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
    let control = permit_of(user(1), Action::ExecControl);
    places.execs().write_stdin(&control, exec, b"text").await.unwrap();
    places.execs().close_stdin(&control, exec).await.unwrap();
    let state = places.execs().wait(&permit_of(user(1), Action::ExecRead), exec).await.unwrap();
    assert!(matches!(state, ExecState::Exited(report) if report.code == Some(0)));
    assert_eq!(replay(&places, exec, 0, true).await.0, b"text");
    let closed = places.execs().write_stdin(&control, exec, b"more").await;
    assert_eq!(closed.unwrap_err().code, Code::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_output_past_the_cap_is_cut_and_said_so() {
    let field = Field::new();
    let places = field.places_with(|config| config.bytes_max = 100_000).await;
    let place = sandbox(&places, user(1)).await;
    let exec = ExecId::random();
    let spec = shell("head -c 5000000 /dev/zero; echo end >&2");
    places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
    let (out, err, rest) = replay(&places, exec, 0, true).await;
    assert_eq!((out.len(), err.as_slice()), (100_000, &b"end\n"[..]));
    assert_eq!(rest[0], ExecEvent::Truncated(Which::Stdout));
    assert!(matches!(rest[1], ExecEvent::Ended(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_output_of_a_user_is_bounded_and_the_oldest_goes_first() {
    let field = Field::new();
    let places = field.places_with(|config| config.user_bytes_max = 150_000).await;
    let place = sandbox(&places, user(1)).await;
    let other = sandbox(&places, user(2)).await;
    let print = async |who, place, id| {
        let exec = ExecId::from_bits(id);
        let spec = shell("head -c 100000 /dev/zero");
        places.execs().run_background(claim_exec(&places, user(who)), place, exec, &spec).await.unwrap();
        let mut events = places.execs().attach(&permit_of(user(who), Action::ExecRead), exec, 0, 0, true).unwrap();
        let (mut len, mut cut) = (0, false);
        while let Some(event) = events.next().await {
            match event.unwrap() {
                ExecEvent::Stdout(bytes) => len += bytes.len(),
                ExecEvent::Truncated(_) => cut = true,
                ExecEvent::Stderr(_) | ExecEvent::Ended(_) => {}
            }
        }
        (len, cut)
    };
    assert_eq!(print(1, &place, 1).await, (100_000, false));
    assert_eq!(print(1, &place, 2).await, (50_000, true));
    assert_eq!(print(2, &other, 3).await, (100_000, false));
    // All is used up, so the oldest goes.
    until(|| places.execs().info(user(1), ExecId::from_bits(1)).is_err()).await;
    assert_eq!(print(1, &place, 4).await, (100_000, false));
    assert!(places.execs().info(user(2), ExecId::from_bits(3)).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_execs_are_bounded_in_number() {
    let field = Field::new();
    let places = field.places_with(|config| config.ended_max = 3).await;
    let place = sandbox(&places, user(1)).await;
    for n in 0..6_u128 {
        let exec = ExecId::from_bits(n + 1);
        places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec_of(&["true"])).await.unwrap();
        places.execs().wait(&permit_of(user(1), Action::ExecRead), exec).await.unwrap();
    }
    let left: Vec<_> = places.execs().list(user(1), None).iter().map(|info| info.id.bits()).collect();
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|id| *id > 3), "{left:?}");
    assert_eq!(std::fs::read_dir(field.dir.path().join("spool")).unwrap().count(), 3);
}

#[test]
fn a_new_server_adopts_sandboxes_and_their_execs_and_no_byte_is_lost() {
    let field = Field::new();
    let exec = ExecId::random();
    let foreground = ExecId::random();
    let (id, unknown) = server(async {
        let places = field.places().await;
        let place = sandbox(&places, user(1)).await;
        let other = sandbox(&places, user(2)).await;
        let spec = shell("for n in 1 2 3 4 5 6 7 8 9 10; do echo $n; sleep 0.05; done; exit 3");
        places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
        let kept = places.execs().run(claim_exec(&places, user(1)), &place, foreground, &shell("sleep 1000")).await;
        // As with SIGKILL, no destructor runs.
        std::mem::forget(kept.unwrap());
        // It has run for long enough that the next server is to know what it is.
        until(|| field.dir.path().join(format!("spool/{foreground}/about.json")).exists()).await;
        (id_of(&place), id_of(&other))
    });
    // One sandbox that no row knows, and one row without its sandbox.
    field.rows.live.lock().unwrap().remove(&unknown);
    let mut stray = field.rows.live.lock().unwrap()[&id].clone();
    stray.id = SandboxId::from_bits(99);
    field.rows.live.lock().unwrap().insert(stray.id, stray);
    server(async {
        let places = field.places().await;
        assert_eq!(field.warden.alive(), [id]);
        assert_eq!(*field.rows.ended.lock().unwrap(), [(SandboxId::from_bits(99), rf_places::EndedWhy::GoneMeanwhile)]);
        assert_eq!(places.sandboxes().list(user(1)).len(), 1);
        assert!(places.sandboxes().list(user(2)).is_empty());
        let (out, _, rest) = replay(&places, exec, 0, true).await;
        assert_eq!(String::from_utf8(out).unwrap(), "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
        let [ExecEvent::Ended(ExecState::Exited(report))] = rest[..] else { panic!("{rest:?}") };
        assert_eq!(report.code, Some(3));
        // The foreground one became a background one and can be ended.
        let taken_over = places.execs().info(user(1), foreground).unwrap();
        assert_eq!(
            (taken_over.background, &*taken_over.argv),
            (true, &["sh", "-c", "sleep 1000"].map(String::from)[..])
        );
        let control = permit_of(user(1), Action::ExecControl);
        places.execs().signal(&control, foreground, 9, SignalScope::Tree).await.unwrap();
        places.execs().wait(&permit_of(user(1), Action::ExecRead), foreground).await.unwrap();
        assert_eq!(places.usage(user(1)).execs, 0);
        assert_eq!(places.usage(user(1)).sandboxes, 1);
    });
    // The third one still knows how it ended.
    server(async {
        let places = field.places().await;
        let ExecState::Exited(report) = places.execs().info(user(1), exec).unwrap().state else { panic!("not ended") };
        assert_eq!(report.code, Some(3));
        assert_eq!(replay(&places, exec, 18, true).await.0, b"10\n");
    });
}

#[test]
fn an_exec_whose_sandbox_ended_while_no_server_was_there_is_lost() {
    let field = Field::new();
    let exec = ExecId::random();
    let id = server(async {
        let places = field.places().await;
        let place = sandbox(&places, user(1)).await;
        let spec = shell("echo before; sleep 1000");
        places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
        let permit = permit_of(user(1), Action::ExecRead);
        let mut events = places.execs().attach(&permit, exec, 0, 0, true).unwrap();
        assert_eq!(events.next().await.unwrap().unwrap(), ExecEvent::Stdout(Bytes::from_static(b"before\n")));
        id_of(&place)
    });
    field.warden.kill_init(id, None);
    server(async {
        let places = field.places().await;
        let (out, _, rest) = replay(&places, exec, 0, true).await;
        assert_eq!(out, b"before\n");
        assert_eq!(rest, [ExecEvent::Ended(ExecState::Lost)]);
    });
}

/// A permit that is good in one sandbox alone, as the sandbox's own token gives one.
fn permit_within(user: UserId, sandbox: SandboxId, action: Action) -> Permit {
    let principal = Principal {
        user,
        username: "ann".parse().unwrap(),
        credential: Credential::Sandbox { id: sandbox },
        scopes: vec![Scope::Read, Scope::Run],
    };
    let (limits, usage) = (UserLimits::STANDARD, UserUsage::default());
    let (request, asked) = (RequestId::random(), Asked::Nothing);
    judge(&Question { principal: &principal, action, request, limits: &limits, usage: &usage, asked }).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_for_one_sandbox_finds_nothing_in_another() {
    let field = Field::new();
    let places = field.places().await;
    let (one, other) = (sandbox(&places, user(1)).await, sandbox(&places, user(1)).await);
    let exec = ExecId::random();
    places.execs().run_background(claim_exec(&places, user(1)), &one, exec, &shell("sleep 1000")).await.unwrap();
    let permit = |place: &Arc<dyn Place>, action| permit_within(user(1), id_of(place), action);
    let live = ExecId::random();
    let (note, ended) = (rf_places::LiveNote::default(), Box::new(|_| Box::pin(async {}) as _));
    let started =
        places.execs().run_live(claim_exec(&places, user(1)), &one, live, &shell("sleep 1000"), note, ended).await;
    started.map(drop).unwrap();
    // Of the same user's, and as if it did not exist.
    let wrong = permit(&other, Action::ExecControl);
    let mut refused = Vec::new();
    for exec in [exec, live] {
        let execs = places.execs();
        refused.extend([
            execs.signal(&wrong, exec, 9, SignalScope::Tree).await.unwrap_err(),
            execs.write_stdin(&wrong, exec, b"x").await.unwrap_err(),
            execs.remove(&wrong, exec).unwrap_err(),
            execs.wait(&permit(&other, Action::ExecRead), exec).await.unwrap_err(),
            execs.follow(&permit(&other, Action::ExecRead), exec).err().unwrap(),
            execs.feed(&wrong, exec, b"x").await.unwrap_err(),
            execs.end_input(&wrong, exec).await.unwrap_err(),
            execs.set_size(&wrong, exec, 1, 1).unwrap_err(),
            execs.stop(&wrong, exec, 9).await.unwrap_err(),
        ]);
    }
    let none = places.execs().signal(&wrong, ExecId::random(), 9, SignalScope::Tree).await.unwrap_err();
    assert!(refused.iter().all(|fault| *fault == none), "{refused:?}");
    let op = rf_types::FileOp::Stat { path: "/".to_owned(), follow: true };
    let file = |permit: Permit| {
        let (one, op) = (Arc::clone(&one), op.clone());
        async move { one.file(&permit, &op, None).await.map(drop) }
    };
    assert_eq!(file(permit(&other, Action::FileRead)).await.unwrap_err().code, Code::NotFound);
    let port = one.sandbox().unwrap().connect(&permit(&other, Action::PortConnect), 1).await.unwrap_err();
    assert_eq!(port.message, "no such sandbox");
    // Control: in its own sandbox each of them is let in.
    file(permit(&one, Action::FileRead)).await.unwrap();
    let port = one.sandbox().unwrap().connect(&permit(&one, Action::PortConnect), 1).await.unwrap_err();
    assert!(port.message.contains("nothing listens"), "{port:?}");
    for exec in [exec, live] {
        places.execs().follow(&permit(&one, Action::ExecRead), exec).map(drop).unwrap();
        places.execs().signal(&permit(&one, Action::ExecControl), exec, 9, SignalScope::Tree).await.unwrap();
    }
}

/// A place that says it runs an exec of this id, which it has from elsewhere.
struct Claims {
    place: PlaceRef,
    exec: ExecId,
}

impl Place for Claims {
    fn place(&self) -> PlaceRef {
        self.place
    }

    fn spawn<'a>(
        &'a self,
        _: &'a Permit,
        _: ExecId,
        _: &'a rf_types::ExecSpec,
        _: bool,
    ) -> BoxFuture<'a, Result<Spawned, Fault>> {
        async { Err(Fault::not_found("program")) }.boxed()
    }

    fn signal<'a>(&'a self, _: &'a Permit, _: ExecId, _: i32, _: SignalScope) -> BoxFuture<'a, Result<(), Fault>> {
        async { Ok(()) }.boxed()
    }

    fn file<'a>(
        &'a self,
        _: &'a Permit,
        _: &'a rf_types::FileOp,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<rf_places::FileAnswer, Fault>> {
        async { Err(Fault::not_found("file")) }.boxed()
    }

    fn adopt_execs<'a>(&'a self, held: &'a HeldOf<'a>) -> BoxFuture<'a, Result<Vec<AdoptedExec>, Fault>> {
        let from = held(self.exec);
        let spawned = Spawned {
            pid: 1,
            stdin: None,
            stdout: Box::pin(&b"forged"[..]),
            stderr: Some(Box::pin(tokio::io::empty())),
            resize: None,
            exit: Box::pin(std::future::pending()),
        };
        let claimed = AdoptedExec { exec: self.exec, pty: false, wall_us: 1, from, spawned };
        async { Ok(vec![claimed]) }.boxed()
    }

    fn forget(&self, _: ExecId) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

/// Attack: a machine, or process 1 of a sandbox, that was taken over says it runs an exec of somebody else, or of another
/// place of its own user, to have its output or to put another in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_gets_no_exec_that_is_not_its_own() {
    let field = Field::new();
    let places = field.places().await;
    let (ann, bob) = (sandbox(&places, user(1)).await, sandbox(&places, user(2)).await);
    let (theirs, other, foreground) = (ExecId::random(), ExecId::random(), ExecId::random());
    let line = shell("echo secret; sleep 1000");
    places.execs().run_background(claim_exec(&places, user(2)), &bob, theirs, &line).await.unwrap();
    places.execs().run_background(claim_exec(&places, user(1)), &ann, other, &line).await.unwrap();
    let running = places.execs().run(claim_exec(&places, user(1)), &ann, foreground, &shell("sleep 1000")).await;
    let machine = PlaceRef::Machine(rf_types::MachineId::random());
    let printed = |who, exec| {
        let permit = permit_of(user(who), Action::ExecRead);
        places.execs().attach(&permit, exec, 0, 0, true).map(|mut events| async move { events.next().await })
    };
    for exec in [theirs, other, foreground] {
        let place: Arc<dyn Place> = Arc::new(Claims { place: machine, exec });
        places.execs().adopt(user(1), &place).await.unwrap();
        assert!(places.execs().place_of(user(1), exec).is_err() || exec != theirs, "it is another user's");
    }
    assert!(places.execs().list(user(1), Some(machine)).is_empty());
    for (who, exec, place) in [(2, theirs, &bob), (1, other, &ann)] {
        assert_eq!(places.execs().place_of(user(who), exec).unwrap(), place.place());
        let first = printed(who, exec).unwrap().await.unwrap().unwrap();
        assert_eq!(first, ExecEvent::Stdout(Bytes::from_static(b"secret\n")));
    }
    assert_eq!(places.execs().place_of(user(1), foreground).unwrap(), ann.place());
    assert!(printed(1, theirs).is_err());
    drop(running);
    // Control: what nobody knows is taken over.
    let exec = ExecId::random();
    let place: Arc<dyn Place> = Arc::new(Claims { place: machine, exec });
    places.execs().adopt(user(1), &place).await.unwrap();
    assert_eq!(printed(1, exec).unwrap().await.unwrap().unwrap(), ExecEvent::Stdout(Bytes::from_static(b"forged")));
}
