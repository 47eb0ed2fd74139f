//! Sandboxes and the choice of a place: first use, quota, users apart, leases, destruction.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Sink, SinkExt as _, Stream, StreamExt as _, channel::mpsc};
use rf_places::{
    Choice, Place, Places, file_action,
    machine::{Enrolment, HubConfig, MachineAuthority, MachineHub, MachinePlace},
};
use rf_policy::Action;
use rf_types::{Code, Fault, FileOp, MachineId, PlaceRef, Preference, SandboxId, UserId};
use rf_wire::machine::{Frame, VERSION, encode_json, kind};
use support::{Allowed, Field, claim_sandbox, permit_of, user};

async fn resolve(places: &Places, who: u128, choice: Option<Choice>) -> Result<PlaceRef, rf_types::Fault> {
    let permit = permit_of(user(who), Action::Exec);
    let first_use = Allowed(places, user(who));
    let resolved = places.resolve(&permit, Preference::MachineElseSandbox, choice, false, &first_use).await?;
    Ok(resolved.place.place())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_calls_at_once_make_one_sandbox_for_each_user() {
    let field = Field::new();
    let places = field.places().await;
    let calls = (0..60_u128).map(|n| {
        let places = places.clone();
        tokio::spawn(async move { (n % 3, resolve(&places, n % 3, None).await.unwrap()) })
    });
    let mut seen: Vec<(u128, PlaceRef)> = Vec::new();
    for call in futures::future::join_all(calls).await {
        let call = call.unwrap();
        if !seen.contains(&call) {
            seen.push(call);
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(field.warden.created.load(Ordering::SeqCst), 3);
    assert_eq!(places.usage(user(0)).sandboxes, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_machine_a_call_that_wants_one_has_no_place() {
    let field = Field::new();
    let places = field.places().await;
    let refused = resolve(&places, 1, Some(Choice::Prefer(Preference::Machine))).await.unwrap_err();
    assert_eq!(refused.code, Code::NoPlace);
    assert!(refused.hint.contains("ringfence join"));
    assert_eq!(field.warden.created.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_sandbox_is_to_others_as_one_that_does_not_exist() {
    let field = Field::new();
    let places = field.places().await;
    let place = resolve(&places, 1, None).await.unwrap();
    let PlaceRef::Sandbox(id) = place else { panic!("{place}") };
    let nothing = SandboxId::from_bits(5);
    let theirs = |id| places.sandboxes().get(user(2), id).unwrap_err();
    assert_eq!(theirs(id), theirs(nothing));
    assert_eq!(places.sandboxes().row(user(2), id).unwrap_err(), places.sandboxes().row(user(2), nothing).unwrap_err());
    let permit = permit_of(user(2), Action::SandboxDestroy);
    let destroy = places.sandboxes().destroy(&permit, id).await.unwrap_err();
    assert_eq!(destroy, places.sandboxes().destroy(&permit, nothing).await.unwrap_err());
    let named = resolve(&places, 2, Some(Choice::Place(place))).await.unwrap_err();
    assert_eq!(named, resolve(&places, 2, Some(Choice::Place(PlaceRef::Sandbox(nothing)))).await.unwrap_err());
    // Even with the place in hand, another user's permit opens nothing.
    let sandbox = places.sandboxes().get(user(1), id).unwrap();
    let op = FileOp::Stat { path: "/".into(), follow: true };
    let peek = sandbox.file(&permit_of(user(2), file_action(&op)), &op, None).await;
    assert_eq!(peek.err().unwrap().code, Code::NotFound);
    assert!(places.sandboxes().list(user(2)).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_sandbox_is_gone_with_its_row_and_quota() {
    let field = Field::new();
    let places = field.places().await;
    let PlaceRef::Sandbox(id) = resolve(&places, 1, None).await.unwrap() else { panic!("not a sandbox") };
    let permit = permit_of(user(1), Action::SandboxDestroy);
    let twice = futures::future::join(places.sandboxes().destroy(&permit, id), places.sandboxes().destroy(&permit, id));
    let (first, second) = twice.await;
    first.unwrap();
    // The second came before the end or after it.
    assert!(second.is_ok() || second.unwrap_err().code == Code::NotFound);
    assert!(field.warden.alive().is_empty());
    assert_eq!(field.warden.destroyed.load(Ordering::SeqCst), 1);
    assert_eq!(*field.rows.ended.lock().unwrap(), [(id, rf_places::EndedWhy::Destroyed)]);
    assert_eq!(places.usage(user(1)), rf_policy::UserUsage::default());
    // The next call makes a new one.
    assert_ne!(resolve(&places, 1, None).await.unwrap(), PlaceRef::Sandbox(id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_whose_row_cannot_be_written_is_not_left_behind() {
    let field = Field::new();
    let places = field.places().await;
    *field.rows.refuse.lock().unwrap() = true;
    let made = places.sandboxes().create(claim_sandbox(&places, user(1)), rf_places::Making::default()).await;
    assert_eq!(made.unwrap_err().code, Code::StoreUnavailable);
    assert!(field.warden.alive().is_empty());
    assert_eq!(places.usage(user(1)), rf_policy::UserUsage::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_stops_waiting_leaves_a_listed_sandbox() {
    let field = Field::new();
    let places = field.places().await;
    let mut create = Box::pin(places.sandboxes().create(
        claim_sandbox(&places, user(1)),
        rf_places::Making { name: Some("mine".into()), ..rf_places::Making::default() },
    ));
    // Ready already on a slow enough day; the point is that nobody looks again.
    let _ = futures::poll!(create.as_mut());
    drop(create);
    while places.sandboxes().list(user(1)).is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(places.sandboxes().list(user(1))[0].name.as_deref(), Some("mine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_extended_and_ended() {
    let field = Field::new();
    let places = field.places().await;
    let PlaceRef::Sandbox(id) = resolve(&places, 1, None).await.unwrap() else { panic!("not a sandbox") };
    let permit = permit_of(user(1), Action::SandboxUpdate);
    let row = places.sandboxes().extend(&permit, id, 3_600_000).await.unwrap();
    assert_eq!(field.rows.live.lock().unwrap()[&id].lease_until, row.lease_until);
    // At least so long.
    let lengthen = async |lease_ms| places.sandboxes().lengthen(&permit, id, lease_ms).await.unwrap().lease_until;
    assert_eq!(lengthen(5_000).await, row.lease_until, "never sooner");
    assert!(lengthen(7_200_000).await >= row.lease_until + 3_600_000);
    // Many at once: the warden's and ours are the same in the end, and the longest that was asked for holds.
    let longest = row.lease_until - 3_600_000 + 9_000_000;
    let all = (1..=30).rev().map(|n| {
        let (places, permit) = (places.clone(), permit_of(user(1), Action::SandboxUpdate));
        tokio::spawn(async move { places.sandboxes().lengthen(&permit, id, n % 10 * 1_000_000).await.unwrap() })
    });
    let all: Vec<_> = all.collect();
    for one in all {
        one.await.unwrap();
    }
    let row = places.sandboxes().row(user(1), id).unwrap();
    assert!(row.lease_until >= longest, "{} of {longest}", row.lease_until);
    assert_eq!(field.warden.lease(id), row.lease_until);
    field.warden.kill_init(id, Some(rf_wire::warden::GoneWhy::Lease));
    while places.sandboxes().get(user(1), id).is_ok() || field.rows.ended.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(places.sandboxes().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_found_while_it_is_connected_and_only_by_its_user() {
    struct Elsewhere(Arc<dyn Place>);
    impl Place for Elsewhere {
        fn place(&self) -> PlaceRef {
            PlaceRef::Machine(rf_types::MachineId::from_bits(3))
        }
        fn spawn<'a>(
            &'a self,
            permit: &'a rf_policy::Permit,
            exec: rf_types::ExecId,
            spec: &'a rf_types::ExecSpec,
            keep: bool,
        ) -> futures::future::BoxFuture<'a, Result<rf_places::place::Spawned, rf_types::Fault>> {
            self.0.spawn(permit, exec, spec, keep)
        }
        fn signal<'a>(
            &'a self,
            permit: &'a rf_policy::Permit,
            exec: rf_types::ExecId,
            signal: i32,
            scope: rf_types::SignalScope,
        ) -> futures::future::BoxFuture<'a, Result<(), rf_types::Fault>> {
            self.0.signal(permit, exec, signal, scope)
        }
        fn file<'a>(
            &'a self,
            permit: &'a rf_policy::Permit,
            op: &'a FileOp,
            user: Option<&'a str>,
        ) -> futures::future::BoxFuture<'a, Result<rf_places::FileAnswer, rf_types::Fault>> {
            self.0.file(permit, op, user)
        }
        fn adopt_execs<'a>(
            &'a self,
            held: &'a rf_places::place::HeldOf<'a>,
        ) -> futures::future::BoxFuture<'a, Result<Vec<rf_places::place::AdoptedExec>, rf_types::Fault>> {
            self.0.adopt_execs(held)
        }
        fn forget(&self, exec: rf_types::ExecId) -> futures::future::BoxFuture<'_, ()> {
            self.0.forget(exec)
        }
    }
    let field = Field::new();
    let places = field.places().await;
    let inside =
        places.sandboxes().create(claim_sandbox(&places, user(1)), rf_places::Making::default()).await.unwrap();
    let machine: Arc<dyn Place> = Arc::new(Elsewhere(inside));
    let id = rf_types::MachineId::from_bits(3);
    places.add_machine(user(1), Arc::clone(&machine), serde_json::json!({"hostname": "h"}));
    assert_eq!(resolve(&places, 1, None).await.unwrap(), PlaceRef::Machine(id));
    assert!(matches!(resolve(&places, 2, None).await.unwrap(), PlaceRef::Sandbox(_)));
    assert!(places.place(user(2), PlaceRef::Machine(id)).is_err());
    // A streams-only place runs execs in the background as well: its output goes to the spool by copying.
    let exec = rf_types::ExecId::random();
    let claim = support::claim_exec(&places, user(1));
    places.execs().run_background(claim, &machine, exec, &support::shell("echo far; echo bad >&2")).await.unwrap();
    let permit = permit_of(user(1), Action::ExecRead);
    places.execs().wait(&permit, exec).await.unwrap();
    let mut events = places.execs().attach(&permit, exec, 0, 0, true).unwrap();
    let mut text = Vec::new();
    while let Some(event) = futures::StreamExt::next(&mut events).await {
        if let rf_places::ExecEvent::Stdout(bytes) | rf_places::ExecEvent::Stderr(bytes) = event.unwrap() {
            text.extend_from_slice(&bytes);
        }
    }
    assert_eq!(text, b"far\nbad\n");
    places.remove_machine(user(1), id, Some(&machine));
    assert!(matches!(resolve(&places, 1, None).await.unwrap(), PlaceRef::Sandbox(_)));
}

/// One end of a machine's connection.
struct Wire(mpsc::UnboundedSender<Bytes>, mpsc::UnboundedReceiver<Bytes>);

impl Stream for Wire {
    type Item = Result<Bytes, mpsc::SendError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.1.poll_next_unpin(context).map(|bytes| bytes.map(Ok))
    }
}

impl Sink<Bytes> for Wire {
    type Error = mpsc::SendError;

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready_unpin(context)
    }

    fn start_send(mut self: Pin<&mut Self>, bytes: Bytes) -> Result<(), Self::Error> {
        self.0.start_send_unpin(bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_flush_unpin(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_close_unpin(context)
    }
}

/// Knows one machine, whose user removes it just when it has proved who it is.
#[derive(Default)]
struct Removing {
    hub: OnceLock<Weak<MachineHub>>,
    remove: bool,
    removed: AtomicBool,
}

impl MachineAuthority for Removing {
    fn enrol(&self, _: &Enrolment<'_>) -> Result<(UserId, MachineId), Fault> {
        Err(Fault::not_found("token"))
    }

    fn recognise(&self, machine: MachineId, _: &[u8], _: &[u8; 64]) -> Result<UserId, Fault> {
        if self.remove {
            // As whoever removes it does: first so that it is not let in again, then out with it.
            self.removed.store(true, Ordering::SeqCst);
            self.hub.get().unwrap().upgrade().unwrap().remove(machine);
        }
        Ok(user(1))
    }

    fn connected(&self, _: &Arc<MachinePlace>) {}

    fn still_stands(&self, _: &Arc<MachinePlace>) -> bool {
        !self.removed.load(Ordering::SeqCst)
    }

    fn disconnected(&self, _: &Arc<MachinePlace>) {}
}

/// What a machine is told last, and whether it can be found then.
async fn joined(remove: bool) -> (Option<serde_json::Value>, bool) {
    let authority = Arc::new(Removing { remove, ..Removing::default() });
    let hub = MachineHub::new(HubConfig::new("srv_test".into()), Arc::clone(&authority) as Arc<dyn MachineAuthority>);
    authority.hub.set(Arc::downgrade(&hub)).unwrap();
    let machine = MachineId::random();
    let (to_server, from_machine) = mpsc::unbounded();
    let (to_machine, mut from_server) = mpsc::unbounded();
    let serving = tokio::spawn({
        let hub = Arc::clone(&hub);
        async move { hub.serve(Wire(to_machine, from_machine)).await }
    });
    let hello = serde_json::json!({
        "version_min": VERSION, "version_max": VERSION, "origin": "http://x:1",
        "facts": {
            "hostname": "h", "os": "linux", "kernel": "6", "arch": "x86_64", "home": "/h", "username": "u",
            "workspace": "/w", "level": "workspace", "version": "1", "landlock_abi": 1, "not_held": [],
        },
        "resume": null,
        "proof": { "by": "key", "machine": machine, "signature": "00".repeat(64) },
    });
    to_server.unbounded_send(encode_json(kind::HELLO, &hello).into()).unwrap();
    let mut bye = None;
    while let Some(bytes) = from_server.next().await {
        match Frame::decode(&bytes).unwrap() {
            Frame::Json { kind: kind::BYE, json } => bye = Some(serde_json::from_slice(json).unwrap()),
            Frame::Ping if !remove => break,
            _ => {}
        }
    }
    let found = hub.machine(user(1), machine).is_some();
    drop((to_server, from_server));
    let _ = serving.await.unwrap();
    (bye, found)
}

/// Attack: a machine that is removed at the very moment at which it comes must not stay.
#[tokio::test]
async fn a_machine_that_is_removed_while_it_connects_is_thrown_out() {
    let (bye, found) = joined(true).await;
    assert_eq!((bye.unwrap()["fault"]["code"].as_str(), found), (Some("unauthenticated"), false));
    // Control: one that is not removed stays.
    assert_eq!(joined(false).await, (None, true));
}
