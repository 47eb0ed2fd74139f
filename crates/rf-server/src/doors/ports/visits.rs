//! What the ledger has of traffic to ports: one operation for each visit, not for each request, so that a busy page
//! costs two records and not thousands.
//!
//! ```text
//! first request of (sandbox, port, address, credential) ─▶ intent, durable before anything is sent
//! further ones ─▶ counted        idle for a minute, or ten minutes old ─▶ result, with the count
//! ```
//!
//! Each request is judged anew all the same; only the writing is shared. The table is bounded: when it is full the visit
//! that was idle longest ends. So is what strangers can have written: who looks at many ports of an open sandbox makes one
//! visit of all but the first of them, and where very many come at once it is one of all the rest.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rf_gate::Party;
use rf_policy::{Action, Credential, Permit};
use rf_types::{PlaceRef, SandboxId};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{App, Caller},
    operation::{Ask, Operation},
    refusal::Refusal,
};

/// How long a visit may be idle, and how old it may get. Chosen.
const IDLE_TIME: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(600);
/// How often visits are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);
/// Visits at once, over all sandboxes. Chosen: some megabytes.
const VISITS_MAX: usize = 8_192;
/// Visits at once of one visitor to one sandbox, and of all visitors to it, each with a record of its own. Chosen: more
/// ports than a person opens, and of people as many as make a busy page.
const PORTS_MAX: usize = 32;
const VISITORS_MAX: usize = 1_024;
/// By what a visitor comes.
const VISITOR: &str = "visitor";

/// Whose requests are one visit.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    sandbox: SandboxId,
    /// None: of several.
    port: Option<u16>,
    /// None: of several, or not known.
    peer: Option<Party>,
    /// By what: one user's two keys are two visits.
    by: String,
}

/// The visits; clones are the same ones.
#[derive(Clone, Default)]
pub(super) struct Visits(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    visits: HashMap<Key, Visit>,
    sweeping: bool,
}

struct Visit {
    operation: Option<Operation>,
    began: Instant,
    counts: Arc<Counts>,
    /// Looks whether the credential still stands; ends with the visit.
    watch: AbortHandle,
}

/// What is counted of a visit.
#[derive(Debug)]
pub(super) struct Counts {
    start: Instant,
    requests: AtomicU64,
    /// Milliseconds after `start`.
    last_ms: AtomicU64,
    under_way: AtomicUsize,
    /// Set when the credential that was judged no longer stands: streams of the visit are cut then.
    fallen: CancellationToken,
}

/// One request or stream of a visit, which does not end before it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Counts>);

impl UnderWay {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }

    /// Set when who asked may no longer.
    pub(super) fn fallen(&self) -> CancellationToken {
        self.0.fallen.clone()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let ms = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_ms.store(ms, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counts {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            requests: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            fallen: CancellationToken::new(),
        }
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) != 0
    }
}

impl Visit {
    /// Ends it in the ledger; durable with whatever comes next.
    fn end(mut self) {
        // Streams that outlive it, because the table was full, are cut no later than their sandbox.
        self.watch.abort();
        let Some(mut operation) = self.operation.take() else { return };
        operation.detail("requests", self.counts.requests.load(Ordering::Relaxed));
        if let Err(fault) = operation.finish_later(Ok(())) {
            tracing::error!(%fault, "the end of a visit was not recorded");
        }
    }
}

impl Visits {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges one request, and has it on the record that its visit began.
    ///
    /// # Errors
    /// What the gate says no with, recorded; `ledger_unavailable`.
    pub(super) async fn enter(
        &self,
        app: &App,
        caller: &Caller,
        sandbox: SandboxId,
        port: u16,
        peer: Option<IpAddr>,
    ) -> Result<(Arc<Permit>, UnderWay), Refusal> {
        let ask = |key: &Key| {
            let ask = Ask::of(Action::PortConnect).place(PlaceRef::Sandbox(sandbox)).subject(sandbox);
            let ask = match key.port {
                Some(port) => ask.detail("port", port),
                None => ask.detail("port", "several"),
            };
            match (peer, key.peer) {
                (Some(peer), Some(_)) => ask.detail("peer", peer.to_string()),
                (Some(_), None) => ask.detail("peer", "several"),
                (None, _) => ask,
            }
        };
        let mut key = Key { sandbox, port: Some(port), peer: peer.map(Party::of), by: by(caller) };
        let permit = match app.permit(caller, Action::PortConnect) {
            Ok(permit) => Arc::new(permit),
            Err(fault) => {
                let denied = app.begin_judged::<()>(caller, ask(&key), Err(fault)).await;
                return match denied {
                    Err(refusal) => Err(refusal),
                    // `begin_judged` hands an error back as one.
                    Ok((operation, ())) => Err(operation.fail(rf_types::Fault::not_found("sandbox")).await),
                };
            }
        };
        if let Some(under_way) = self.under_way(&key) {
            return Ok((permit, under_way));
        }
        if key.by == VISITOR {
            key = self.shared(key);
            if let Some(under_way) = self.under_way(&key) {
                return Ok((permit, under_way));
            }
        }
        let (mut operation, ()) = app.begin_judged(caller, ask(&key), Ok((Arc::clone(&permit), ()))).await?;
        operation.durable().await?;
        let counts = Arc::new(Counts::new());
        let under_way = UnderWay::new(&counts);
        let (fallen, told) = (operation.fallen(), counts.fallen.clone());
        let watch = tokio::spawn(async move {
            fallen.await;
            told.cancel();
        });
        let visit = Visit { operation: Some(operation), began: Instant::now(), counts, watch: watch.abort_handle() };
        let over = self.insert(key, visit);
        if let Some(over) = over {
            over.end();
        }
        Ok((permit, under_way))
    }

    /// One more request of a visit that goes on.
    fn under_way(&self, key: &Key) -> Option<UnderWay> {
        // One whose credential fell is over, though the same one may stand again: a user that was let in anew, or a
        // provider's next token.
        let goes_on = |visit: &&Visit| visit.began.elapsed() < AGE_MAX && !visit.counts.fallen.is_cancelled();
        self.lock().visits.get(key).filter(goes_on).map(|visit| UnderWay::new(&visit.counts))
    }

    /// The visit that a visitor's first request to a port belongs to: one of its own, unless there are many.
    fn shared(&self, key: Key) -> Key {
        let (mut visitors, mut ports) = (0, 0);
        for other in self.lock().visits.keys().filter(|other| other.sandbox == key.sandbox && other.by == VISITOR) {
            visitors += 1;
            ports += usize::from(other.peer == key.peer);
        }
        match (visitors >= VISITORS_MAX, ports >= PORTS_MAX) {
            (true, _) => Key { port: None, peer: None, ..key },
            (false, true) => Key { port: None, ..key },
            (false, false) => key,
        }
    }

    /// Ends all visits in the ledger: the server ends.
    pub(super) fn end(&self) {
        let all: Vec<Visit> = self.lock().visits.drain().map(|(_, visit)| visit).collect();
        for visit in all {
            visit.end();
        }
    }

    /// Enters a visit; gives back one that ends by it.
    fn insert(&self, key: Key, visit: Visit) -> Option<Visit> {
        let mut table = self.lock();
        if !std::mem::replace(&mut table.sweeping, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
        let full = table.visits.len() >= VISITS_MAX && !table.visits.contains_key(&key);
        let over = if full {
            let idlest =
                table.visits.iter().min_by_key(|(_, visit)| (visit.counts.is_under_way(), visit.counts.last()));
            idlest.map(|(key, _)| key.clone()).and_then(|key| table.visits.remove(&key))
        } else {
            None
        };
        // Somebody else of the same visit may have come first; what they began ends, and both are on the record.
        table.visits.insert(key, visit).or(over)
    }
}

/// By what credential, in one text.
fn by(caller: &Caller) -> String {
    match &caller.who.principal().credential {
        Credential::Key { id } => id.to_string(),
        Credential::Token { issuer } => format!("{issuer} {}", caller.who.principal().user),
        Credential::Session { id } => id.to_string(),
        Credential::Sandbox { .. } => "token".to_owned(),
        Credential::Visitor { .. } => VISITOR.to_owned(),
    }
}

/// Ends visits that are over, until there are none.
async fn sweep(visits: Weak<Mutex<Table>>) {
    loop {
        tokio::time::sleep(SWEEP_PERIOD).await;
        let Some(visits) = visits.upgrade() else { return };
        let mut over = Vec::new();
        let done = {
            let mut table = visits.lock().unwrap_or_else(PoisonError::into_inner);
            let ends = |visit: &Visit| {
                let idle = visit.counts.last().elapsed() >= IDLE_TIME;
                !visit.counts.is_under_way() && (idle || visit.began.elapsed() >= AGE_MAX)
            };
            let keys: Vec<Key> =
                table.visits.iter().filter(|(_, visit)| ends(visit)).map(|(key, _)| key.clone()).collect();
            over.extend(keys.iter().filter_map(|key| table.visits.remove(key)));
            table.sweeping = !table.visits.is_empty();
            !table.sweeping
        };
        for visit in over {
            visit.end();
        }
        if done {
            return;
        }
    }
}
