//! Pausing, resuming, snapshots and forks: against a warden in this process that does them in name.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rf_places::{ChangedWhy, EndedWhy, Making, Places, Resume, SandboxRow};
use rf_policy::{Action, UserUsage};
use rf_types::{
    Code, ExecId, ExecState, Fault, OnLeaseEnd, PauseKind, PlaceRef, SandboxAbout, SandboxId, SandboxSpec,
    SandboxState, SnapshotId, UserId,
};
use support::{Behaviour, Field, claim_exec, claim_sandbox, permit_of, server, shell, user};

async fn sandbox(places: &Places, about: SandboxAbout) -> SandboxId {
    let making = Making { about, ..Making::default() };
    places.sandboxes().create(claim_sandbox(places, user(1)), making).await.unwrap().sandbox_id()
}

async fn pause(places: &Places, id: SandboxId, keep: PauseKind) -> Result<SandboxRow, Fault> {
    places.sandboxes().pause(&permit_of(user(1), Action::SandboxPause), id, keep).await
}

async fn resume(places: &Places, id: SandboxId, how: Resume) -> Result<SandboxRow, Fault> {
    let claim = places.claim_resume(user(1), id, |_, _| Ok(permit_of(user(1), Action::SandboxResume)))?;
    places.sandboxes().resume(claim, id, how).await
}

async fn destroy(places: &Places, id: SandboxId) -> Result<(), Fault> {
    places.sandboxes().destroy(&permit_of(user(1), Action::SandboxDestroy), id).await
}

async fn snapshot(places: &Places, id: SandboxId, name: Option<&str>) -> Result<rf_places::SnapshotRow, Fault> {
    let claim = places.claim_snapshot(user(1), 1, |_| Ok(permit_of(user(1), Action::SnapshotCreate)))?;
    places.sandboxes().snapshot(claim, id, name.map(str::to_owned)).await
}

fn code<T>(result: Result<T, Fault>) -> Option<Code> {
    result.err().map(|fault| fault.code)
}

/// Waits until something is so; the time is a bound, not a pause.
async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..500 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}

#[tokio::test]
async fn a_paused_sandbox_serves_nobody_until_it_is_resumed() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout::default()).await;
    let before = places.sandboxes().row(user(1), id).unwrap();
    let place = places.place(user(1), PlaceRef::Sandbox(id)).unwrap();

    let paused = pause(&places, id, PauseKind::Memory).await.unwrap();
    assert_eq!((paused.state, paused.pause_kind), (SandboxState::Paused, Some(PauseKind::Memory)));
    assert!(paused.paused_at.is_some());
    assert_eq!(field.warden.frozen(), [id]);
    assert_eq!(field.rows.live.lock().unwrap()[&id], paused);
    assert_eq!(code(places.place(user(1), PlaceRef::Sandbox(id))), Some(Code::Paused));
    assert_eq!(code(places.awake(user(1), PlaceRef::Sandbox(id)).await), Some(Code::Paused));
    assert_eq!(code(places.awake(user(2), PlaceRef::Sandbox(id)).await), Some(Code::NotFound));
    assert_eq!(places.sandboxes().list(user(1)), std::slice::from_ref(&paused));
    let update = permit_of(user(1), Action::SandboxUpdate);
    assert_eq!(code(places.sandboxes().extend(&update, id, 5_000).await), Some(Code::Paused));
    assert_eq!(code(pause(&places, id, PauseKind::Memory).await), Some(Code::Conflict));

    let resumed = resume(&places, id, Resume { lease_ms: Some(7_000), cold: false }).await.unwrap();
    assert_eq!((resumed.state, resumed.pause_kind, resumed.paused_at), (SandboxState::Running, None, None));
    assert!(resumed.started_at >= before.started_at && resumed.created_at == before.created_at);
    assert_eq!(field.warden.lease(id), resumed.lease_until);
    assert!(field.warden.frozen().is_empty());
    assert_eq!(code(resume(&places, id, Resume::default()).await), Some(Code::Conflict));
    assert!(Arc::ptr_eq(&places.place(user(1), PlaceRef::Sandbox(id)).unwrap(), &place));

    // Destroyed from any state.
    pause(&places, id, PauseKind::Memory).await.unwrap();
    destroy(&places, id).await.unwrap();
    assert!(field.warden.alive().is_empty());
    assert_eq!(places.usage(user(1)), UserUsage::default());
    assert_eq!(code(pause(&places, id, PauseKind::Memory).await), Some(Code::NotFound));
}

#[tokio::test]
async fn another_user_finds_nothing_of_it() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout { auto_resume: true, ..SandboxAbout::default() }).await;
    let made = snapshot(&places, id, Some("mine")).await.unwrap();
    let all = places.sandboxes();
    let other = |action| permit_of(user(2), action);
    let missing = Some(Code::NotFound);
    for state in ["running", "paused"] {
        assert_eq!(code(all.pause(&other(Action::SandboxPause), id, PauseKind::Memory).await), missing, "{state}");
        assert_eq!(code(places.claim_resume(user(2), id, |_, _| Ok(other(Action::SandboxResume)))), missing);
        assert_eq!(code(places.awake(user(2), PlaceRef::Sandbox(id)).await), missing);
        assert_eq!(code(all.fork_origin(&other(Action::SandboxFork), id).await), missing);
        assert_eq!(code(all.bytes_written(user(2), id).await), missing);
        let claim = places.claim_snapshot(user(2), 1, |_| Ok(other(Action::SnapshotCreate))).unwrap();
        assert_eq!(code(all.snapshot(claim, id, None).await), missing);
        if state == "running" {
            pause(&places, id, PauseKind::Memory).await.unwrap();
        }
    }
    assert!(all.snapshots(user(2)).is_empty());
    assert_eq!(code(all.snapshot_row(user(2), made.id)), missing);
    assert_eq!(code(all.snapshot_named(user(2), "mine")), missing);
    assert_eq!(code(all.origin(user(2), made.id)), missing);
    assert_eq!(code(all.remove_snapshot(&other(Action::SnapshotDelete), made.id)), missing);
    // Also with an origin of the right kind that is another's.
    let origin = all.origin(user(1), made.id).unwrap();
    let making = Making { from: Some(origin), ..Making::default() };
    assert_eq!(code(all.create(claim_sandbox(&places, user(2)), making).await), missing);
    assert_eq!(places.usage(user(2)), UserUsage::default());
    assert_eq!(field.warden.snapshots(), [made.id]);
}

#[tokio::test]
async fn what_cannot_be_paused_runs_on() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout::default()).await;
    let no = Fault::new(Code::Unsupported, "this host cannot freeze", "");
    field.warden.refuse(Some(no.clone()), None);
    assert_eq!(pause(&places, id, PauseKind::Memory).await.unwrap_err(), no);
    assert_eq!(places.sandboxes().row(user(1), id).unwrap().state, SandboxState::Running);
    places.sandboxes().get(user(1), id).unwrap();

    let full = Fault::new(Code::DiskFull, "no room for the files", "");
    field.warden.refuse(None, Some(full.clone()));
    assert_eq!(pause(&places, id, PauseKind::Files).await.unwrap_err(), full);
    places.sandboxes().get(user(1), id).unwrap();
    assert!(field.warden.frozen().is_empty());

    *field.rows.refuse.lock().unwrap() = true;
    assert_eq!(code(pause(&places, id, PauseKind::Files).await), Some(Code::StoreUnavailable));
    *field.rows.refuse.lock().unwrap() = false;
    places.sandboxes().get(user(1), id).unwrap();
    until("its files are not kept", || field.warden.snapshots().is_empty()).await;
    assert_eq!(field.warden.alive(), [id]);
    // What it is was written as soon as it could be.
    until("its row is written", || field.rows.live.lock().unwrap()[&id].state == SandboxState::Running).await;
}

#[tokio::test]
async fn a_call_resumes_it_once_however_many_come() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout { auto_resume: true, ..SandboxAbout::default() }).await;
    pause(&places, id, PauseKind::Memory).await.unwrap();
    let calls = (0..20).map(|_| places.awake(user(1), PlaceRef::Sandbox(id)));
    for place in futures::future::join_all(calls).await {
        assert_eq!(place.unwrap().place(), PlaceRef::Sandbox(id));
    }
    let calls = field.rows.whys.lock().unwrap().iter().filter(|(_, why)| *why == ChangedWhy::Call).count();
    assert_eq!(calls, 1);
    // Of one whose files alone are kept, room must be judged first.
    pause(&places, id, PauseKind::Files).await.unwrap();
    assert_eq!(code(places.awake(user(1), PlaceRef::Sandbox(id)).await), Some(Code::Paused));
}

#[tokio::test]
async fn at_the_end_of_its_lease_it_is_paused_as_it_said() {
    let field = Field::new();
    let places = field.places().await;
    let frozen = sandbox(&places, SandboxAbout::default()).await;
    let stored = sandbox(&places, SandboxAbout { auto_pause: PauseKind::Files, ..SandboxAbout::default() }).await;
    let state = |id| places.sandboxes().row(user(1), id).unwrap();
    field.warden.freeze(frozen);
    until("it is paused", || state(frozen).state == SandboxState::Paused).await;
    assert_eq!(state(frozen).pause_kind, Some(PauseKind::Memory));
    assert!(field.rows.whys.lock().unwrap().contains(&(frozen, ChangedWhy::Lease)));
    field.warden.freeze(stored);
    until("it is stored", || state(stored).pause_kind == Some(PauseKind::Files)).await;
    until("nothing of it runs", || field.warden.alive() == [frozen]).await;
    resume(&places, frozen, Resume::default()).await.unwrap();
    resume(&places, stored, Resume::default()).await.unwrap();
    assert_eq!(field.warden.alive().len(), 2);
}

#[tokio::test]
async fn the_server_pauses_what_the_warden_forgot_and_what_is_idle() {
    let field = Field::new();
    let places = field.places().await;
    let spec = SandboxSpec { on_lease_end: OnLeaseEnd::Pause, ..SandboxSpec::standard(60_000) };
    let claim = places.claim_sandbox(user(1), spec, |_| Ok(permit_of(user(1), Action::SandboxCreate))).unwrap();
    let over = places.sandboxes().create(claim, Making::default()).await.unwrap().sandbox_id();
    // Long over, and the warden says nothing.
    let idle_pause_ms = Some(1_000);
    let idle = sandbox(&places, SandboxAbout { idle_pause_ms, ..SandboxAbout::default() }).await;
    let busy = sandbox(&places, SandboxAbout { idle_pause_ms, ..SandboxAbout::default() }).await;
    let place = places.place(user(1), PlaceRef::Sandbox(busy)).unwrap();
    let exec = ExecId::random();
    places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &shell("sleep 30")).await.unwrap();
    let state = |id| places.sandboxes().row(user(1), id).unwrap().state;
    until("the idle one is paused", || state(idle) == SandboxState::Paused).await;
    assert_eq!(state(busy), SandboxState::Running);
    assert_eq!(state(over), SandboxState::Running, "its lease goes on");
    assert!(field.rows.whys.lock().unwrap().contains(&(idle, ChangedWhy::Idle)));
    let control = permit_of(user(1), Action::ExecControl);
    places.execs().signal(&control, exec, 9, rf_types::SignalScope::Tree).await.unwrap();
    until("the busy one is idle now", || state(busy) == SandboxState::Paused).await;
}

#[tokio::test]
async fn with_its_files_alone_it_takes_less_and_comes_back_under_its_id() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout::default()).await;
    let whole = places.usage(user(1));
    let old = places.place(user(1), PlaceRef::Sandbox(id)).unwrap();
    let exec = ExecId::random();
    places.execs().run_background(claim_exec(&places, user(1)), &old, exec, &shell("sleep 30")).await.unwrap();

    let paused = pause(&places, id, PauseKind::Files).await.unwrap();
    let saved = paused.saved.unwrap();
    assert_eq!(paused.pause_kind, Some(PauseKind::Files));
    assert_eq!(field.warden.snapshots(), [saved]);
    assert!(places.sandboxes().snapshots(user(1)).is_empty(), "it is in no list");
    until("nothing of it runs", || field.warden.alive().is_empty()).await;
    let less = places.usage(user(1));
    assert_eq!((less.sandboxes, less.cpu_milli, less.memory_bytes), (1, 0, 0));
    assert_eq!(less.disk_bytes, whole.disk_bytes);
    let read = permit_of(user(1), Action::ExecRead);
    let lost = tokio::time::timeout(Duration::from_secs(5), places.execs().wait(&read, exec)).await.unwrap();
    assert_eq!(lost.unwrap(), ExecState::Lost);

    // Refused by the judge it stays as it is.
    let no = |row: &SandboxRow, usage: &UserUsage| {
        assert_eq!((row.id, *usage), (id, UserUsage::default()), "judged as if it were not there");
        Err(Fault::new(Code::LimitReached, "no", ""))
    };
    assert_eq!(code(places.claim_resume(user(1), id, no)), Some(Code::LimitReached));
    assert_eq!(places.usage(user(1)), less);

    let resumed = resume(&places, id, Resume::default()).await.unwrap();
    assert_eq!((resumed.id, resumed.state, resumed.saved), (id, SandboxState::Running, None));
    assert_eq!(field.warden.alive(), [id]);
    assert_eq!(field.warden.begun_with(id), Some(saved));
    assert_eq!(places.usage(user(1)), whole);
    until("its saved files are not kept twice", || field.warden.snapshots().is_empty()).await;
    let new = places.place(user(1), PlaceRef::Sandbox(id)).unwrap();
    assert!(!Arc::ptr_eq(&new, &old));
    let exec = ExecId::random();
    places.execs().run_background(claim_exec(&places, user(1)), &new, exec, &shell("true")).await.unwrap();
    // The old init's end says nothing of the new one.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(places.sandboxes().row(user(1), id).unwrap().state, SandboxState::Running);

    // Cold from memory: its processes do not come back.
    pause(&places, id, PauseKind::Memory).await.unwrap();
    resume(&places, id, Resume { cold: true, lease_ms: None }).await.unwrap();
    assert_eq!(field.warden.alive(), [id]);
    assert_eq!(places.usage(user(1)), whole);

    // Stored and destroyed, nothing is left.
    pause(&places, id, PauseKind::Files).await.unwrap();
    destroy(&places, id).await.unwrap();
    assert_eq!(places.usage(user(1)), UserUsage::default());
    until("its files are gone", || field.warden.snapshots().is_empty() && field.warden.alive().is_empty()).await;
    assert!(field.rows.ended.lock().unwrap().contains(&(id, EndedWhy::Destroyed)));
}

#[test]
fn a_new_server_finds_the_paused_ones_paused() {
    let field = Field::new();
    let (frozen, stored, exec) = server(async {
        let places = field.places().await;
        let frozen = sandbox(&places, SandboxAbout::default()).await;
        let stored = sandbox(&places, SandboxAbout::default()).await;
        let place = places.place(user(1), PlaceRef::Sandbox(frozen)).unwrap();
        let exec = ExecId::random();
        let spec = shell("sleep 1; echo still here");
        places.execs().run_background(claim_exec(&places, user(1)), &place, exec, &spec).await.unwrap();
        pause(&places, frozen, PauseKind::Memory).await.unwrap();
        pause(&places, stored, PauseKind::Files).await.unwrap();
        until("nothing of it runs", || field.warden.alive() == [frozen]).await;
        (frozen, stored, exec)
    });
    server(async {
        let places = field.places().await;
        let row = |id| places.sandboxes().row(user(1), id).unwrap();
        assert_eq!((row(frozen).state, row(frozen).pause_kind), (SandboxState::Paused, Some(PauseKind::Memory)));
        assert_eq!((row(stored).state, row(stored).pause_kind), (SandboxState::Paused, Some(PauseKind::Files)));
        assert_eq!(field.warden.snapshots(), [row(stored).saved.unwrap()], "what is known is not collected");
        assert_eq!(code(places.place(user(1), PlaceRef::Sandbox(frozen))), Some(Code::Paused));
        // Its exec is neither lost nor ended: it waits with it.
        assert_eq!(places.execs().info(user(1), exec).unwrap().state, ExecState::Running);
        resume(&places, frozen, Resume::default()).await.unwrap();
        let read = permit_of(user(1), Action::ExecRead);
        let end = tokio::time::timeout(Duration::from_secs(10), places.execs().wait(&read, exec)).await.unwrap();
        let end = end.unwrap();
        assert!(matches!(end, ExecState::Exited(report) if report.code == Some(0)), "{end:?}");
        resume(&places, stored, Resume::default()).await.unwrap();
        assert_eq!(places.usage(user(1)).sandboxes, 2);
    });
}

/// The warden cannot read what some snapshots are: they are there all the same, until it can.
#[test]
fn what_the_warden_has_set_aside_is_not_forgotten() {
    let field = Field::new();
    let (stored, made) = server(async {
        let places = field.places().await;
        let source = sandbox(&places, SandboxAbout::default()).await;
        let mut made = Vec::new();
        for _ in 0..6 {
            made.push(snapshot(&places, source, None).await.unwrap().id);
        }
        let stored = sandbox(&places, SandboxAbout::default()).await;
        pause(&places, stored, PauseKind::Files).await.unwrap();
        (stored, made)
    });
    let bad: Vec<_> = field.rows.live.lock().unwrap()[&stored].saved.into_iter().chain(made[..4].to_vec()).collect();
    bad.iter().for_each(|id| field.warden.set_aside(*id, true));
    server(async {
        let places = field.places().await;
        let all = places.sandboxes();
        assert_eq!((all.snapshots(user(1)).len(), field.warden.snapshots().len()), (6, 7));
        let making = Making { from: Some(all.origin(user(1), made[0]).unwrap()), ..Making::default() };
        let unavailable = Some(Code::StoreUnavailable);
        assert_eq!(code(all.create(claim_sandbox(&places, user(1)), making).await), unavailable);
        assert_eq!(code(resume(&places, stored, Resume::default()).await), unavailable);
        assert_eq!(all.row(user(1), stored).unwrap().pause_kind, Some(PauseKind::Files));
        // Its user may let go of one.
        all.remove_snapshot(&permit_of(user(1), Action::SnapshotDelete), made[1]).unwrap();
        until("it is gone", || !field.warden.snapshots().contains(&made[1])).await;
    });
    bad.iter().for_each(|id| field.warden.set_aside(*id, false));
    server(async {
        let places = field.places().await;
        assert_eq!(places.sandboxes().snapshots(user(1)).len(), 5);
        assert_eq!(resume(&places, stored, Resume::default()).await.unwrap().state, SandboxState::Running);
    });
}

#[test]
fn a_new_server_finishes_what_the_old_one_began() {
    let field = Field::new();
    let (saved_not_taken, made_not_written) = server(async {
        let places = field.places().await;
        let first = sandbox(&places, SandboxAbout::default()).await;
        let second = sandbox(&places, SandboxAbout::default()).await;
        let claim = |n| places.claim_snapshot(user(1), n, |_| Ok(permit_of(user(1), Action::SnapshotCreate))).unwrap();
        let all = places.sandboxes();
        let (one, two) =
            (all.snapshot(claim(1), first, None).await.unwrap(), all.snapshot(claim(1), second, None).await.unwrap());
        pause(&places, first, PauseKind::Memory).await.unwrap();
        // As the rows are when the server dies between two of its steps.
        let mut live = field.rows.live.lock().unwrap();
        for (id, saved) in [(first, one.id), (second, two.id)] {
            let row = live.get_mut(&id).unwrap();
            (row.saved, row.state, row.pause_kind) = (Some(saved), SandboxState::Paused, Some(PauseKind::Files));
        }
        drop(live);
        field.rows.snapshots.lock().unwrap().clear();
        (first, second)
    });
    server(async {
        let places = field.places().await;
        let row = |id| places.sandboxes().row(user(1), id).unwrap();
        assert_eq!(row(saved_not_taken).pause_kind, Some(PauseKind::Files));
        assert_eq!((row(made_not_written).state, row(made_not_written).saved), (SandboxState::Running, None));
        assert_eq!(field.warden.alive(), [made_not_written]);
        let saved = row(saved_not_taken).saved.unwrap();
        until("only what is needed is kept", || field.warden.snapshots() == [saved]).await;
        assert_eq!(field.rows.live.lock().unwrap()[&made_not_written].state, SandboxState::Running);
    });
}

#[tokio::test]
async fn with_the_warden_goes_what_is_frozen_and_not_what_is_stored() {
    let mut field = Field::new();
    let places = field.places().await;
    let frozen = sandbox(&places, SandboxAbout::default()).await;
    let stored = sandbox(&places, SandboxAbout::default()).await;
    let lost = sandbox(&places, SandboxAbout::default()).await;
    pause(&places, frozen, PauseKind::Memory).await.unwrap();
    pause(&places, stored, PauseKind::Files).await.unwrap();
    let files = pause(&places, lost, PauseKind::Files).await.unwrap().saved.unwrap();
    field.warden.die();
    until("the frozen one is gone", || places.sandboxes().row(user(1), frozen).is_err()).await;
    assert!(field.rows.ended.lock().unwrap().contains(&(frozen, EndedWhy::WardenRestarted)));
    field.warden.lose_snapshot(files);
    field.warden.listen();
    tokio::time::timeout(Duration::from_secs(10), places.ready()).await.unwrap();
    until("what has no files is gone", || places.sandboxes().row(user(1), lost).is_err()).await;
    assert!(field.rows.ended.lock().unwrap().contains(&(lost, EndedWhy::FilesLost)));
    let resumed = resume(&places, stored, Resume::default()).await.unwrap();
    assert_eq!(resumed.state, SandboxState::Running);
    assert_eq!(places.usage(user(1)).sandboxes, 1);
}

#[tokio::test]
async fn a_snapshot_counts_is_named_once_and_goes() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout::default()).await;
    let first = snapshot(&places, id, Some("base:v1")).await.unwrap();
    assert_eq!((first.sandbox, first.bytes, first.durable), (id, 10, false));
    let usage = places.usage(user(1));
    assert_eq!((usage.snapshots, usage.snapshot_bytes), (1, 10));
    field.warden.count(first.id, 25);
    until("it is counted", || places.usage(user(1)).snapshot_bytes == 25).await;
    let row = places.sandboxes().snapshot_row(user(1), first.id).unwrap();
    assert!(row.durable && row.bytes == 25);
    assert_eq!(field.rows.snapshots.lock().unwrap()[&first.id], row);

    // A frozen one can be saved too; a later one takes the name.
    pause(&places, id, PauseKind::Memory).await.unwrap();
    let second = snapshot(&places, id, Some("base:v1")).await.unwrap();
    assert_eq!(places.sandboxes().snapshot_named(user(1), "base:v1").unwrap().id, second.id);
    assert_eq!(places.sandboxes().snapshot_row(user(1), first.id).unwrap().name, None);
    assert_eq!(field.rows.snapshots.lock().unwrap()[&first.id].name, None);
    for bad in ["", " ", "a b", "ä", &"x".repeat(129)] {
        assert_eq!(code(snapshot(&places, id, Some(bad)).await), Some(Code::InvalidRequest), "{bad}");
    }
    // Refused by the judge, by the store and by the warden nothing is left.
    let no = places.claim_snapshot(user(1), 1, |usage| {
        assert_eq!(usage.snapshots, 2);
        Err(Fault::new(Code::LimitReached, "no", ""))
    });
    assert_eq!(code(no), Some(Code::LimitReached));
    *field.rows.refuse.lock().unwrap() = true;
    assert_eq!(code(snapshot(&places, id, None).await), Some(Code::StoreUnavailable));
    *field.rows.refuse.lock().unwrap() = false;
    until("nothing is left of it", || field.warden.snapshots().len() == 2).await;
    assert_eq!(places.usage(user(1)).snapshots, 2);

    let remove = permit_of(user(1), Action::SnapshotDelete);
    places.sandboxes().remove_snapshot(&remove, second.id).unwrap();
    assert_eq!(code(places.sandboxes().remove_snapshot(&remove, second.id)), Some(Code::NotFound));
    until("it is gone", || field.warden.snapshots() == [first.id]).await;
    assert_eq!(places.usage(user(1)).snapshots, 1);
    places.sandboxes().remove_snapshots_of(user(1)).unwrap();
    until("all are gone", || field.warden.snapshots().is_empty()).await;
    assert!(field.rows.snapshots.lock().unwrap().is_empty());
}

#[test]
fn a_new_server_collects_what_nobody_knows_and_forgets_what_is_not_there() {
    let field = Field::new();
    let (kept, unknown, missing) = server(async {
        let places = field.places().await;
        let id = sandbox(&places, SandboxAbout::default()).await;
        let kept = snapshot(&places, id, Some("kept")).await.unwrap().id;
        let unknown = snapshot(&places, id, None).await.unwrap().id;
        let missing = snapshot(&places, id, None).await.unwrap().id;
        field.rows.snapshots.lock().unwrap().remove(&unknown);
        field.warden.lose_snapshot(missing);
        (kept, unknown, missing)
    });
    server(async {
        let places = field.places().await;
        until("what nobody knows is gone", || field.warden.snapshots() == [kept]).await;
        let ids: Vec<SnapshotId> = places.sandboxes().snapshots(user(1)).iter().map(|row| row.id).collect();
        assert_eq!(ids, [kept]);
        assert_ne!(unknown, missing);
        assert!(!field.rows.snapshots.lock().unwrap().contains_key(&missing));
        assert_eq!(places.usage(user(1)).snapshots, 1);
    });
}

#[tokio::test]
async fn sandboxes_begin_with_a_snapshot_or_with_anothers_files() {
    let field = Field::new();
    let places = field.places().await;
    let env = BTreeMap::from([("TOKEN".to_owned(), "x".to_owned())]).into();
    let id = sandbox(&places, SandboxAbout { env, ..SandboxAbout::default() }).await;
    let made = snapshot(&places, id, None).await.unwrap();
    let all = places.sandboxes();
    let from = |origin| Making { from: Some(origin), ..Making::default() };
    let origin = all.origin(user(1), made.id).unwrap();
    let child = all.create(claim_sandbox(&places, user(1)), from(origin.clone())).await.unwrap().sandbox_id();
    let row = all.row(user(1), child).unwrap();
    assert_eq!((row.from_snapshot, field.warden.begun_with(child)), (Some(made.id), Some(made.id)));
    assert!(row.about.env.is_empty(), "nothing of the other's environment");

    let mut spec = SandboxSpec::standard(60_000);
    spec.template = "other".parse().unwrap();
    let claim = places.claim_sandbox(user(1), spec, |_| Ok(permit_of(user(1), Action::SandboxCreate))).unwrap();
    assert_eq!(code(all.create(claim, from(origin)).await), Some(Code::InvalidRequest));

    let fork = permit_of(user(1), Action::SandboxFork);
    for keep in [None, Some(PauseKind::Memory), Some(PauseKind::Files)] {
        if let Some(keep) = keep {
            pause(&places, id, keep).await.unwrap();
        }
        let origin = all.fork_origin(&fork, id).await.unwrap();
        let forks = (0..3).map(|_| all.create(claim_sandbox(&places, user(1)), from(origin.clone())));
        let forks = futures::future::join_all(forks).await;
        drop(origin);
        let mut ids: Vec<_> = forks.into_iter().map(|fork| fork.unwrap().sandbox_id()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 3, "{keep:?}");
        for fork in ids {
            assert_eq!(all.row(user(1), fork).unwrap().from_snapshot, None, "in no list of snapshots");
            destroy(&places, fork).await.unwrap();
        }
        // What was taken for them is gone; what the parent needs itself stays.
        let stored = all.row(user(1), id).unwrap().saved;
        let needed = [Some(made.id), stored].into_iter().flatten().count();
        until("only what is needed is kept", || field.warden.snapshots().len() == needed).await;
        if keep.is_some() {
            resume(&places, id, Resume::default()).await.unwrap();
        }
    }
    assert_eq!(all.snapshots(user(1)).len(), 1);
}

/// A frozen init answers nothing for as long as it is frozen; that is not silence.
#[tokio::test]
async fn time_stands_still_while_it_is_paused() {
    let field = Field::new();
    let places = field.places().await;
    field.warden.behave(Behaviour::Silent);
    let id = sandbox(&places, SandboxAbout::default()).await;
    let place = places.sandboxes().get(user(1), id).unwrap();
    let pinged = tokio::spawn({
        let place = Arc::clone(&place);
        async move { place.ping().await }
    });
    pass(rf_places::HUNG_TIME / 4).await;
    pause(&places, id, PauseKind::Memory).await.unwrap();
    pass(100 * rf_places::ANSWER_TIME).await;
    assert!(!pinged.is_finished());
    assert!(!place.is_lost());
    resume(&places, id, Resume::default()).await.unwrap();
    pass(rf_places::HUNG_TIME / 4).await;
    assert!(!pinged.is_finished(), "its time began anew");
    pass(2 * rf_places::HUNG_TIME).await;
    assert_eq!(code(pinged.await.unwrap()), Some(Code::TimedOut));
}

/// Lets time pass by the clock of the runtime alone.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::sleep(time).await;
    tokio::time::resume();
}

/// Whatever is asked at once by however many, each is answered, and the sandbox is in one state in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_each_is_answered() {
    let field = Field::new();
    let places = field.places().await;
    for round in 0..20_u32 {
        let id = sandbox(&places, SandboxAbout { auto_resume: true, ..SandboxAbout::default() }).await;
        let mut tasks = Vec::new();
        for n in 0..12_u32 {
            let places = places.clone();
            tasks.push(tokio::spawn(async move {
                let result = match (n + round) % 6 {
                    0 | 1 => pause(&places, id, PauseKind::Memory).await.map(drop),
                    2 => pause(&places, id, PauseKind::Files).await.map(drop),
                    3 => resume(&places, id, Resume::default()).await.map(drop),
                    4 => places.awake(user(1), PlaceRef::Sandbox(id)).await.map(drop),
                    _ if n == 11 => destroy(&places, id).await,
                    _ => snapshot(&places, id, None).await.map(drop),
                };
                match result {
                    Ok(()) => {}
                    Err(fault) => assert!(
                        matches!(fault.code, Code::Conflict | Code::Paused | Code::NotFound | Code::PlaceLost),
                        "{fault:?}"
                    ),
                }
            }));
        }
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        }
        match destroy(&places, id).await {
            Ok(()) => {}
            Err(fault) => assert_eq!(fault.code, Code::NotFound),
        }
    }
    until("nothing is left of any", || field.warden.alive().is_empty()).await;
    places.sandboxes().remove_snapshots_of(user(1)).unwrap();
    until("no snapshot is left", || field.warden.snapshots().is_empty()).await;
    assert_eq!(places.usage(UserId::from_bits(1)), UserUsage::default());
}

/// The news of a lease's end can be read after the sandbox was resumed: whoever reads it may be busy with another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn late_news_of_a_pause_that_is_over_changes_nothing() {
    let field = Field::new();
    let places = field.places().await;
    let busy = sandbox(&places, SandboxAbout::default()).await;
    let id = sandbox(&places, SandboxAbout::default()).await;
    let last = sandbox(&places, SandboxAbout::default()).await;
    let state = |id| places.sandboxes().row(user(1), id).unwrap().state;

    // A thread that waits for a lock looks after no sockets and clocks, and may have been the one that did: so somebody
    // from outside wakes another again and again, which then does.
    let (over, runtime) = (Arc::new(AtomicBool::new(false)), tokio::runtime::Handle::current());
    let looks = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::Relaxed) {
                drop(runtime.spawn(async {}));
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    // Rows cannot be written while somebody has them: who tells of `busy` waits, and all other news behind it.
    let (rows, (let_go, held)) = (Arc::clone(&field.rows), std::sync::mpsc::channel::<()>());
    let (is_held, wait_held) = tokio::sync::oneshot::channel();
    let holder = std::thread::spawn(move || {
        let _rows = rows.live.lock().unwrap();
        is_held.send(()).unwrap();
        let _ = held.recv();
    });
    wait_held.await.unwrap();
    field.warden.freeze(busy);
    until("its pause is being written down", || state(busy) == SandboxState::Paused).await;
    field.warden.freeze(id);
    // Their user asks for the same, and for the opposite. Neither is written down yet.
    let of = |what: &'static str| {
        let places = places.clone();
        tokio::spawn(async move {
            match what {
                "pause" => pause(&places, id, PauseKind::Memory).await,
                _ => resume(&places, id, Resume::default()).await,
            }
        })
    };
    let paused = of("pause");
    until("it is paused", || state(id) == SandboxState::Paused).await;
    let resumed = of("resume");
    until("it runs", || state(id) == SandboxState::Running).await;
    drop(let_go);
    holder.join().unwrap();
    paused.await.unwrap().unwrap();
    resumed.await.unwrap().unwrap();

    // What is told after it is read after it.
    field.warden.freeze(last);
    until("the news are read", || state(last) == SandboxState::Paused).await;
    assert_eq!(state(id), SandboxState::Running);
    assert!(!field.warden.frozen().contains(&id));
    // Control: the end of the lease that it has now pauses it.
    field.warden.freeze(id);
    until("it is paused again", || state(id) == SandboxState::Paused).await;
    over.store(true, Ordering::Relaxed);
    looks.join().unwrap();
}

#[tokio::test]
async fn a_step_under_way_can_be_waited_for() {
    let field = Field::new();
    let places = field.places().await;
    let id = sandbox(&places, SandboxAbout::default()).await;
    let update = permit_of(user(1), Action::SandboxUpdate);
    let settled = || places.sandboxes().settled(&update, id);
    assert_eq!(settled().await.unwrap().state, SandboxState::Running);
    let (paused, after) = tokio::join!(pause(&places, id, PauseKind::Files), async {
        tokio::task::yield_now().await;
        // Control: in the middle of it there is neither the one nor the other.
        let now = places.sandboxes().extend(&update, id, 5_000).await;
        (now, settled().await)
    });
    paused.unwrap();
    assert_eq!(code(after.0), Some(Code::Paused));
    assert_eq!(after.1.unwrap().pause_kind, Some(PauseKind::Files));
    let others = permit_of(user(2), Action::SandboxUpdate);
    assert_eq!(code(places.sandboxes().settled(&others, id).await), Some(Code::NotFound));
}
