//! The one way of every operation: judged, its intent written, done, its result written, durable, answered.
//!
//! ```text
//! begin ──▶ gate: no  ──▶ the denial is recorded, durable ──▶ Refusal
//!      └──▶ gate: yes ──▶ intent appended ──▶ Operation (holds the permit)
//!                                               │ finish, fail ──▶ result appended, durable ──▶ answer
//!                                               └ dropped: the client went away; said in the result
//! ```
//!
//! A handler gets a [`Permit`] only from an [`Operation`], and an operation ends in the ledger whatever becomes of it,
//! so neither half can be forgotten. A streamed answer waits with [`Operation::durable`] until its intent is on the
//! disk before its first byte goes out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use rf_gate::Authenticated;
use rf_ledger::{By, Entry, Event, Outcome, Ticket};
use rf_policy::{Action, Asked, Credential, Permit};
use rf_types::{Code, Enforcement, ExitReport, Fault, PlaceRef, RequestId};
use serde_json::{Map, Value};

use crate::{
    app::{App, Caller},
    refusal::Refusal,
};

/// How often it is asked whether the credential of something that goes on still stands. Chosen: a read of the store is
/// some 20 µs, and who revokes a key expects it to be gone when they look.
const STANDING_PERIOD: Duration = Duration::from_secs(2);

/// What is to be done.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The action that is judged.
    pub action: Action,
    /// What more is asked.
    pub asked: Asked<'a>,
    /// Where, if that is known already.
    pub place: Option<PlaceRef>,
    /// The thing it is about.
    pub subject: Option<String>,
    /// More for the ledger; secrets only by way of its redactor.
    pub details: Map<String, Value>,
}

impl Ask<'_> {
    /// This action and nothing more.
    #[must_use]
    pub fn of(action: Action) -> Self {
        Self { action, asked: Asked::Nothing, place: None, subject: None, details: Map::new() }
    }

    /// In this place.
    #[must_use]
    pub fn place(mut self, place: PlaceRef) -> Self {
        self.place = Some(place);
        self
    }

    /// About this thing.
    #[must_use]
    pub fn subject(mut self, subject: impl ToString) -> Self {
        self.subject = Some(subject.to_string());
        self
    }

    /// With one more detail.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }
}

/// What every record of one operation has.
#[derive(Clone, Debug)]
struct Header {
    request: RequestId,
    user: rf_types::UserId,
    username: rf_types::Username,
    by: By,
    acted_by: Option<String>,
    action: Action,
    place: Option<PlaceRef>,
    subject: Option<String>,
}

impl Header {
    fn of(caller: &Caller, ask: &Ask<'_>) -> Self {
        let principal = caller.who.principal();
        let by = match &principal.credential {
            Credential::Key { id } => By::new("key", id.to_string()),
            Credential::Token { issuer } => By::new("token", issuer.clone()),
            Credential::Session { id } => By::new("session", id.to_string()),
            Credential::Sandbox { id } => By::new("sandbox", id.to_string()),
            Credential::Visitor { sandbox } => By::new("visitor", sandbox.to_string()),
        };
        Self {
            request: caller.request,
            user: principal.user,
            username: principal.username.clone(),
            by,
            acted_by: caller.who.acted_by().map(|scope| scope.username().to_string()),
            action: ask.action,
            place: ask.place,
            subject: ask.subject.clone(),
        }
    }

    fn entry(&self, at: u64, event: Event, details: Map<String, Value>) -> Entry {
        let mut entry = Entry::new(at, action_name(self.action), event)
            .request(self.request)
            .user(self.user, self.username.clone())
            .by(self.by.clone());
        entry.place = self.place;
        entry.subject.clone_from(&self.subject);
        entry.details = details;
        match &self.acted_by {
            Some(operator) => entry.detail("acted_by", operator.clone()),
            None => entry,
        }
    }
}

/// An operation under way.
#[must_use = "an operation ends by `finish` or `fail`"]
pub struct Operation {
    app: App,
    who: Authenticated,
    permit: Arc<Permit>,
    header: Header,
    started: Instant,
    intent: Option<Ticket>,
    details: Map<String, Value>,
    enforcement: Option<Enforcement>,
    outcome: Outcome,
    ended: bool,
}

impl App {
    /// Judges `ask` and writes its intent.
    ///
    /// # Errors
    /// What the gate says no with, recorded; `ledger_unavailable`.
    pub async fn begin(&self, caller: &Caller, ask: Ask<'_>) -> Result<Operation, Refusal> {
        let judged = self
            .gate()
            .permit(&caller.who, ask.action, caller.request, ask.asked.clone(), self.now())
            .map(|permit| (Arc::new(permit), ()));
        self.begin_judged(caller, ask, judged).await.map(|(operation, ())| operation)
    }

    /// As [`App::begin`] with what the gate has judged and reserved already.
    ///
    /// # Errors
    /// As for [`App::begin`]; what was reserved is dropped.
    pub async fn begin_judged<T>(
        &self,
        caller: &Caller,
        ask: Ask<'_>,
        judged: Result<(Arc<Permit>, T), Fault>,
    ) -> Result<(Operation, T), Refusal> {
        let (permit, reserved) = match judged {
            Ok(judged) => judged,
            Err(fault) => return Err(self.refuse(caller, ask, fault).await),
        };
        let header = Header::of(caller, &ask);
        permit.require(ask.action)?;
        let intent = self.ledger().append(&header.entry(self.now(), Event::Intent, ask.details))?;
        let operation = Operation {
            app: self.clone(),
            who: caller.who.clone(),
            permit,
            header,
            started: caller.started,
            intent: Some(intent),
            details: Map::new(),
            enforcement: None,
            outcome: Outcome::default(),
            ended: false,
        };
        Ok((operation, reserved))
    }

    /// Records that the gate said no; gives what to answer.
    pub async fn refuse(&self, caller: &Caller, ask: Ask<'_>, fault: Fault) -> Refusal {
        self.metrics().operation(action_name(ask.action), code_name(fault.code), caller.started.elapsed());
        let header = Header::of(caller, &ask);
        let entry = header.entry(self.now(), Event::Decision(Some(fault.code)), ask.details);
        // A denial that cannot be recorded is still a denial, and the ledger's trouble is the answer then.
        let recorded = match self.ledger().append(&entry) {
            Ok(ticket) => ticket.durable().await,
            Err(unwritten) => Err(unwritten),
        };
        recorded.err().unwrap_or(fault).into()
    }
}

impl Operation {
    /// The proof that the gate said yes.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The server's numbers.
    pub fn metrics(&self) -> Arc<crate::metrics::Metrics> {
        Arc::clone(self.app.metrics())
    }

    /// The memory that requests share.
    pub fn room(&self) -> crate::room::Room {
        self.app.intake().room().clone()
    }

    /// Resolves when the credential that was judged no longer stands: its key was revoked, its session ended, its user
    /// was disabled, or it expired. For what goes on after the judgement; what it was is cut then.
    pub fn fallen(&self) -> BoxFuture<'static, Fault> {
        let (app, who) = (self.app.clone(), self.who.clone());
        async move {
            loop {
                tokio::time::sleep(STANDING_PERIOD).await;
                match app.gate().still_stands(&who, app.now()) {
                    Err(fault) if matches!(fault.code, Code::Unauthenticated | Code::Forbidden | Code::NotFound) => {
                        let message = "the credential was revoked or ended while this was going on";
                        return Fault::new(Code::Unauthenticated, message, "go on with another credential");
                    }
                    // A store that cannot be asked revokes nothing.
                    Ok(()) | Err(_) => {}
                }
            }
        }
        .boxed()
    }

    /// `stream`, for as long as the credential stands; see [`Operation::fallen`].
    pub fn while_standing<T: Send + 'static>(
        &self,
        stream: BoxStream<'static, Result<T, Fault>>,
    ) -> BoxStream<'static, Result<T, Fault>> {
        futures::stream::unfold(Some((stream, self.fallen())), |state| async {
            let (mut stream, mut fallen) = state?;
            tokio::select! {
                biased;
                item = stream.next() => item.map(|item| (item, Some((stream, fallen)))),
                fault = &mut fallen => Some((Err(fault), None)),
            }
        })
        .boxed()
    }

    /// Adds something to the result's record.
    pub fn detail(&mut self, key: &str, value: impl Into<Value>) {
        self.details.insert(key.to_owned(), value.into());
    }

    /// Names the place, once it is known.
    pub fn set_place(&mut self, place: PlaceRef) {
        self.header.place = Some(place);
    }

    /// Names the thing that it is about, once it is known.
    pub fn set_subject(&mut self, subject: impl ToString) {
        self.header.subject = Some(subject.to_string());
    }

    /// Adds what holds the sandbox.
    pub fn set_enforcement(&mut self, enforcement: &Enforcement) {
        self.enforcement = Some(enforcement.clone());
    }

    /// Adds how an exec ended.
    pub fn set_exit(&mut self, exit: &ExitReport) {
        self.outcome.usage = Some(exit.usage);
        self.outcome.exit_code = exit.code;
        self.outcome.signal = exit.signal;
        if exit.timed_out {
            self.detail("timed_out", true);
        }
    }

    /// Waits until the intent is on the disk.
    ///
    /// # Errors
    /// `ledger_unavailable`, recorded as far as that goes.
    pub async fn durable(&mut self) -> Result<(), Refusal> {
        match self.intent.take() {
            Some(ticket) => ticket.durable().await.map_err(Refusal::from),
            None => Ok(()),
        }
    }

    /// As [`Operation::durable`], in a chain.
    ///
    /// # Errors
    /// As for [`Operation::durable`].
    pub async fn made_durable(mut self) -> Result<Self, Refusal> {
        self.durable().await?;
        Ok(self)
    }

    /// Ends the operation: its result is recorded and durable, then handed back for the answer.
    ///
    /// # Errors
    /// The result's own fault; `ledger_unavailable` when it cannot be recorded, though it was done.
    pub async fn finish<T>(mut self, result: Result<T, Fault>) -> Result<T, Refusal> {
        self.end(result.as_ref().err().map(|fault| fault.code))?.durable().await?;
        result.map_err(Refusal::from)
    }

    /// As [`Operation::finish`]; the answer is put together by `tell` while the record is on its way to the disk.
    ///
    /// # Errors
    /// As for [`Operation::finish`].
    pub async fn finish_and_tell<T, U>(
        mut self,
        result: Result<T, Fault>,
        tell: impl FnOnce(T) -> U,
    ) -> Result<U, Refusal> {
        let ticket = self.end(result.as_ref().err().map(|fault| fault.code))?;
        ticket.hasten();
        let told = result.map(tell);
        ticket.durable().await?;
        told.map_err(Refusal::from)
    }

    /// Ends the operation within another one: its result is recorded, and durable as soon as that of the other is,
    /// which comes after it.
    ///
    /// # Errors
    /// The result's own fault; `ledger_unavailable`.
    pub fn finish_later<T>(mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        self.end(result.as_ref().err().map(|fault| fault.code))?;
        result
    }

    /// Ends the operation with a fault.
    pub async fn fail(self, fault: Fault) -> Refusal {
        match self.finish::<()>(Err(fault)).await {
            Err(refusal) => refusal,
            // `finish` hands an error back as one.
            Ok(()) => Fault::new(Code::Internal, "a failed operation ended well", "").into(),
        }
    }

    fn end(&mut self, code: Option<Code>) -> Result<Ticket, Fault> {
        self.ended = true;
        let took = self.started.elapsed();
        self.app.metrics().operation(action_name(self.header.action), code.map_or("ok", code_name), took);
        self.outcome.code = code;
        self.outcome.duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let details = std::mem::take(&mut self.details);
        let mut entry = self.header.entry(self.app.now(), Event::Result(self.outcome), details);
        if let Some(enforcement) = &self.enforcement {
            entry = entry.enforcement(enforcement);
        }
        self.app.ledger().append(&entry)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.ended {
            self.detail("client_gone", true);
            // Nobody waits for it any more; that it failed is in the ledger's own status.
            if let Err(fault) = self.end(None) {
                tracing::error!(request_id = %self.header.request, %fault, "an abandoned operation was not recorded");
            }
        }
    }
}

/// An action's name, as in JSON.
#[must_use]
pub const fn action_name(action: Action) -> &'static str {
    match action {
        Action::SandboxCreate => "sandbox_create",
        Action::SandboxRead => "sandbox_read",
        Action::SandboxUpdate => "sandbox_update",
        Action::SandboxDestroy => "sandbox_destroy",
        Action::SandboxPause => "sandbox_pause",
        Action::SandboxResume => "sandbox_resume",
        Action::SandboxFork => "sandbox_fork",
        Action::SnapshotCreate => "snapshot_create",
        Action::SnapshotRead => "snapshot_read",
        Action::SnapshotDelete => "snapshot_delete",
        Action::Exec => "exec",
        Action::ExecControl => "exec_control",
        Action::ExecRead => "exec_read",
        Action::FileRead => "file_read",
        Action::FileWrite => "file_write",
        Action::PortConnect => "port_connect",
        Action::MachineRead => "machine_read",
        Action::MachineManage => "machine_manage",
        Action::TemplateRead => "template_read",
        Action::TemplateManage => "template_manage",
        Action::KeyManage => "key_manage",
        Action::SessionManage => "session_manage",
        Action::AuditRead => "audit_read",
        Action::Operate => "operate",
    }
}

/// A code's name, for a metric's label.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => "invalid_request",
        Code::Unauthenticated => "unauthenticated",
        Code::Forbidden => "forbidden",
        Code::NotFound => "not_found",
        Code::Conflict => "conflict",
        Code::LimitReached => "limit_reached",
        Code::RateLimited => "rate_limited",
        Code::TooLarge => "too_large",
        Code::NoPlace => "no_place",
        Code::Paused => "paused",
        Code::PlaceLost => "place_lost",
        Code::OwnerForbids => "owner_forbids",
        Code::LayerUnavailable => "layer_unavailable",
        Code::TemplateUnavailable => "template_unavailable",
        Code::ExecFailed => "exec_failed",
        Code::FileFailed => "file_failed",
        Code::DiskFull => "disk_full",
        Code::PlaceExhausted => "place_exhausted",
        Code::LedgerUnavailable => "ledger_unavailable",
        Code::StoreUnavailable => "store_unavailable",
        Code::WardenUnavailable => "warden_unavailable",
        Code::ServerBusy => "server_busy",
        Code::TimedOut => "timed_out",
        Code::Unsupported => "unsupported",
        // `Code` may grow in its own crate; a metric's label is no place to break for it.
        _ => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_json() {
        for action in Action::ALL {
            assert_eq!(serde_json::to_value(action).unwrap(), action_name(action));
        }
        for code in [Code::NotFound, Code::LedgerUnavailable, Code::Internal, Code::OwnerForbids] {
            assert_eq!(serde_json::to_value(code).unwrap(), code_name(code));
        }
    }
}
