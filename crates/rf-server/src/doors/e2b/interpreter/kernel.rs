//! The processes in which cells run: at most one of each sandbox, started at its first cell.
//!
//! What a kernel says is hostile: a line is handed on when it is one JSON object within its bound, and nothing is
//! concluded from it but that a cell has ended. It is read as far as that needs and never built up in memory, and what
//! waits for a slow client takes of the room that all requests share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use rf_places::{ExecEvent, LiveEvents, LiveNote, place::Place, sandbox::SandboxPlace};
use rf_policy::{Action, Permit};
use rf_types::{Code, ExecId, ExecSpec, ExecState, Fault, PlaceRef, Program, Rlimits, SandboxId, SignalScope};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc},
    time::Instant,
};

use super::super::target::Target;
use crate::{
    app::{App, Caller},
    operation::Ask,
    refusal::Refusal,
    room::{Room, Share},
};

/// The program.
const KERNEL: &str = include_str!("kernel.py");
/// Longest line of a kernel, bytes. Chosen: a large picture.
const LINE_BYTES_MAX: usize = 16 << 20;
/// How long an interrupted cell may go on; then its kernel is killed.
const INTERRUPTED_TIME: Duration = Duration::from_secs(5);
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;

/// One kernel's slot: empty before the first cell and after the kernel's end.
type Slot = Arc<AsyncMutex<Option<Kernel>>>;

/// The kernels of all sandboxes.
#[derive(Clone, Debug, Default)]
pub struct Kernels(Arc<Mutex<HashMap<SandboxId, Slot>>>);

/// A kernel that runs.
struct Kernel {
    exec: ExecId,
    events: LiveEvents,
    /// What came of a line that is not over.
    rest: BytesMut,
    /// How much of it was looked through for the line's end.
    looked_at: usize,
    room: Room,
    /// What `rest` takes of it.
    held: Share,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("exec", &self.exec).finish_non_exhaustive()
    }
}

/// A kernel that runs this cell and no other.
pub(super) struct Held(OwnedMutexGuard<Option<Kernel>>);

impl Kernels {
    /// The sandbox's kernel, started if there is none, for one cell. A start goes on also when the client goes away in the
    /// middle of it: the kernel is the next cell's then, and not a process that nobody knows.
    ///
    /// # Errors
    /// What the gate and the place say of starting it.
    pub(super) async fn held(&self, app: &App, caller: &Caller, target: &Target) -> Result<Held, Fault> {
        let mut slot = self.slot(target).lock_owned().await;
        if slot.is_some() {
            return Ok(Held(slot));
        }
        let (app, caller, id, place) = (app.clone(), caller.clone(), target.id, Arc::clone(&target.place));
        let started = async move {
            *slot = Some(start(&app, &caller, id, place).await?);
            Ok(Held(slot))
        };
        App::to_its_end(started).await.map_err(|refusal: Refusal| refusal.fault)
    }

    fn slot(&self, target: &Target) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&target.id) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        slots.insert(target.id, Arc::clone(&slot));
        // It goes with its sandbox.
        let (this, id, place) = (self.clone(), target.id, Arc::clone(&target.place));
        tokio::spawn(async move {
            place.gone().await;
            this.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
        slot
    }
}

/// Starts a kernel: an exec of its own, judged and recorded like every other.
async fn start(app: &App, caller: &Caller, id: SandboxId, place: Arc<SandboxPlace>) -> Result<Kernel, Refusal> {
    let spec = ExecSpec {
        program: Program::Argv(["python3", "-u", "-c", KERNEL].map(str::to_owned).to_vec()),
        env: BTreeMap::new(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin: true,
        timeout_ms: None,
        rlimits: Rlimits::default(),
    };
    end_orphans(app, caller, id).await?;
    let exec = ExecId::random();
    let ask = Ask::of(Action::Exec)
        .place(PlaceRef::Sandbox(id))
        .subject(exec)
        .detail("argv", vec!["python3"])
        .detail("command_of", "code interpreter");
    let judged = app.claim_exec(caller, false);
    let (operation, claim) = app.begin_judged(caller, ask, judged).await?;
    let operation = Arc::new(AsyncMutex::new(Some(operation)));
    let ending = Arc::clone(&operation);
    let ended = Box::new(move |state: ExecState| {
        async move {
            let Some(mut operation) = ending.lock().await.take() else { return };
            if let ExecState::Exited(report) = state {
                operation.set_exit(&report);
            }
            if let Err(refusal) = operation.finish(Ok(())).await {
                tracing::debug!(fault = %refusal.fault, "the end of a kernel was not recorded");
            }
        }
        .boxed()
    });
    let place: Arc<dyn Place> = place;
    let note = LiveNote { servers_own: true, ..LiveNote::default() };
    match app.places().execs().run_live(claim, &place, exec, &spec, note, ended).await {
        Ok((_, events)) => Ok(Kernel::new(exec, events, app.intake().room())),
        Err(fault) => match operation.lock().await.take() {
            Some(operation) => Err(operation.fail(fault).await),
            None => Err(fault.into()),
        },
    }
}

/// Ends what an earlier server left: a kernel whose cells nobody can reach any more, for what is read of it was in that
/// server's hands.
async fn end_orphans(app: &App, caller: &Caller, id: SandboxId) -> Result<(), Refusal> {
    let execs = app.places().execs();
    for orphan in execs.servers_own(caller.who.principal().user, PlaceRef::Sandbox(id)) {
        let permit = app.permit(caller, Action::ExecControl)?;
        match execs.signal(&permit, orphan, SIGKILL, SignalScope::Tree).await {
            Ok(()) => {}
            // It ended by itself.
            Err(fault) if fault.code == Code::NotFound => {}
            Err(fault) => return Err(fault.into()),
        }
    }
    Ok(())
}

/// A whole line, its end included.
pub(super) struct Line {
    bytes: Bytes,
    /// What it takes of the room, until it is handed on.
    _held: Share,
}

impl Line {
    /// A line of ours.
    fn of(value: &Value, room: &Room) -> Self {
        Self { bytes: Bytes::from(format!("{value}\n")), _held: room.share() }
    }

    /// Its bytes, for the client.
    pub(super) fn hand_on(self) -> Bytes {
        self.bytes
    }

    /// Whether it says that its cell is over; nothing when it is no object.
    fn ends_a_cell(&self) -> Option<bool> {
        /// What is looked at; all else is passed over as it is read.
        #[derive(Deserialize)]
        struct Said {
            #[serde(rename = "type", default)]
            kind: Option<String>,
        }
        // A list of values in the order of our fields would be taken too.
        let first = self.bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        let said: Said = serde_json::from_slice(&self.bytes).ok().filter(|_| first == Some(&b'{'))?;
        Some(said.kind.as_deref() == Some("end_of_execution"))
    }
}

/// What a kernel did.
enum Told {
    /// It said something.
    Line(Line),
    /// It has ended, or says what nobody should read, or more than there is room for.
    Over,
}

impl Kernel {
    fn new(exec: ExecId, events: LiveEvents, room: &Room) -> Self {
        Self { exec, events, rest: BytesMut::new(), looked_at: 0, room: room.clone(), held: room.share() }
    }

    /// The next line.
    async fn line(&mut self) -> Told {
        loop {
            if let Some(end) = self.rest[self.looked_at..].iter().position(|byte| *byte == b'\n') {
                let bytes = self.rest.split_to(self.looked_at + end + 1).freeze();
                self.looked_at = 0;
                let held = std::mem::replace(&mut self.held, self.room.share());
                if !self.held.grow(self.rest.len()) {
                    return Told::Over;
                }
                return Told::Line(Line { bytes, _held: held });
            }
            self.looked_at = self.rest.len();
            if self.rest.len() > LINE_BYTES_MAX {
                return Told::Over;
            }
            match self.events.next().await {
                Some(ExecEvent::Stdout(bytes)) => {
                    if !self.held.grow(self.rest.len() + bytes.len()) {
                        return Told::Over;
                    }
                    self.rest.extend_from_slice(&bytes);
                }
                // Before it took its output for the cells: what it says of itself is nobody's.
                Some(ExecEvent::Stderr(_)) => {}
                _ => return Told::Over,
            }
        }
    }
}

impl Held {
    /// Runs one cell and hands its lines on; without a reader it is interrupted.
    ///
    /// # Errors
    /// `exec_failed` when the kernel ended with it; the next cell gets a new one.
    pub(super) async fn run(
        mut self,
        app: &App,
        permit: &Permit,
        cell: &Value,
        lines: &mpsc::Sender<Line>,
    ) -> Result<(), Fault> {
        let Some(kernel) = self.0.as_mut() else { return Err(died()) };
        let execs = app.places().execs();
        let mut fed = serde_json::to_vec(cell).map_err(|error| Fault::invalid(error.to_string()))?;
        fed.push(b'\n');
        let run = async {
            if execs.feed(permit, kernel.exec, &fed).await.is_err() {
                return false;
            }
            let mut until: Option<Instant> = None;
            loop {
                let late = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                let line = tokio::select! {
                    line = kernel.line() => line,
                    () = lines.closed(), if until.is_none() => {
                        until = Some(Instant::now() + INTERRUPTED_TIME);
                        // One that has ended meanwhile is told of by its line.
                        let _ = execs.signal(permit, kernel.exec, SIGINT, SignalScope::Process).await;
                        continue;
                    }
                    () = late => return false,
                };
                let Told::Line(line) = line else { return false };
                let Some(over) = line.ends_a_cell() else { return false };
                // Nobody reads it any more: that is seen above.
                let _ = lines.send(line).await;
                if over {
                    return true;
                }
            }
        };
        if run.await {
            return Ok(());
        }
        // Whatever it is at, nothing more of it is heard.
        let (exec, room) = (kernel.exec, kernel.room.clone());
        *self.0 = None;
        let _ = execs.stop(permit, exec, SIGKILL).await;
        let told = serde_json::json!({
            "type": "error", "name": "KernelDied", "value": died().message, "traceback": "",
        });
        let end = serde_json::json!({ "type": "end_of_execution" });
        for line in [told, end] {
            // As above.
            let _ = lines.send(Line::of(&line, &room)).await;
        }
        Err(died())
    }
}

fn died() -> Fault {
    let hint = "what the cells defined is gone; the next one gets a new kernel";
    Fault::new(Code::ExecFailed, "the kernel ended while it ran a cell", hint)
}

/// The lines, with one that says that there is nothing to say after each `silence`.
pub(super) fn alive(
    lines: impl Stream<Item = Bytes> + Send + 'static,
    silence: Duration,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    stream::unfold(Box::pin(lines), move |mut lines| async move {
        match tokio::time::timeout(silence, lines.next()).await {
            Ok(Some(line)) => Some((Ok(line), lines)),
            Ok(None) => None,
            Err(_) => Some((Ok(Bytes::from_static(b"{\"type\":\"keepalive\"}\n")), lines)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(pieces: &[&'static str]) -> Kernel {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| ExecEvent::Stdout(Bytes::from_static(piece.as_bytes()))).collect();
        Kernel::new(ExecId::random(), stream::iter(pieces).boxed(), &Room::default())
    }

    async fn all(mut kernel: Kernel) -> Vec<String> {
        let mut lines = Vec::new();
        while let Told::Line(line) = kernel.line().await {
            lines.push(String::from_utf8(line.hand_on().to_vec()).unwrap());
        }
        lines
    }

    #[tokio::test]
    async fn lines_are_whole_however_they_come() {
        assert_eq!(
            all(kernel(&["{\"a\"", ":1}\n{\"b\":", "2}\n\n", "cut off"])).await,
            ["{\"a\":1}\n", "{\"b\":2}\n", "\n"]
        );
        assert!(all(kernel(&[])).await.is_empty());
    }

    #[tokio::test]
    async fn a_line_without_end_is_no_line() {
        let long: &'static str = "x".repeat(1 << 20).leak();
        let mut endless = kernel(&[long; 40]);
        assert!(matches!(endless.line().await, Told::Over));
        assert!(endless.rest.len() <= LINE_BYTES_MAX + (1 << 20));
        assert_eq!(endless.looked_at, endless.rest.len(), "no byte is looked at twice");
    }

    #[tokio::test]
    async fn lines_that_wait_take_of_the_room_until_they_are_handed_on() {
        let long: &'static str = format!("{}\n", "x".repeat(1 << 20)).leak();
        let mut talker = kernel(&[long, "{}\n", long]);
        let free = talker.room.free_kib();
        let Told::Line(waiting) = talker.line().await else { panic!("no line") };
        assert!(talker.room.free_kib() <= free - 960, "{} of {free}", talker.room.free_kib());
        let mut others = talker.room.share();
        assert!(others.grow(talker.room.free_kib() << 10));
        assert!(matches!(talker.line().await, Told::Line(_)), "what is small is free");
        assert!(matches!(talker.line().await, Told::Over), "there is no room for it");
        drop((waiting.hand_on(), talker.held, others));
        assert_eq!(talker.room.free_kib(), free);
    }

    #[test]
    fn a_line_is_an_object_and_one_kind_of_it_ends_a_cell() {
        let line = |text: &str| Line { bytes: Bytes::from(text.to_owned()), _held: Room::default().share() };
        for (text, ends) in [
            (r#"{"type":"end_of_execution"}"#, Some(true)),
            (r#" {"x":[1,{"type":"end_of_execution"}],"type":"stdout"}"#, Some(false)),
            ("{}", Some(false)),
            (r#"["end_of_execution"]"#, None),
            (r#"{"type":7}"#, None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(line(text).ends_a_cell(), ends, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled() {
        let slow = stream::once(async {
            tokio::time::sleep(Duration::from_secs(12)).await;
            Bytes::from_static(b"{}\n")
        });
        let lines: Vec<_> = alive(slow, Duration::from_secs(5)).map(|line| line.unwrap()).collect().await;
        assert_eq!(lines, ["{\"type\":\"keepalive\"}\n", "{\"type\":\"keepalive\"}\n", "{}\n"].map(Bytes::from));
    }
}
