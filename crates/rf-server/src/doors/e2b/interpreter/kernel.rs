//! The processes in which cells run: at most one of each sandbox, started at its first cell.
//!
//! What a kernel says is hostile: a line is handed on when it is one JSON object within its bound, and nothing is
//! concluded from it but that a cell has ended.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use rf_places::{ExecEvent, LiveEvents, LiveNote, place::Place};
use rf_policy::{Action, Permit};
use rf_types::{Code, ExecId, ExecSpec, ExecState, Fault, PlaceRef, Program, Rlimits, SandboxId, SignalScope};
use serde_json::Value;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc},
    time::Instant,
};

use super::super::target::Target;
use crate::{
    app::{App, Caller},
    operation::Ask,
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
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("exec", &self.exec).finish_non_exhaustive()
    }
}

/// A kernel that runs this cell and no other.
pub(super) struct Held(OwnedMutexGuard<Option<Kernel>>);

impl Kernels {
    /// The sandbox's kernel, started if there is none, for one cell.
    ///
    /// # Errors
    /// What the gate and the place say of starting it.
    pub(super) async fn held(&self, app: &App, caller: &Caller, target: &Target) -> Result<Held, Fault> {
        let mut slot = self.slot(target).lock_owned().await;
        if slot.is_none() {
            *slot = Some(start(app, caller, target).await?);
        }
        Ok(Held(slot))
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
async fn start(app: &App, caller: &Caller, target: &Target) -> Result<Kernel, Fault> {
    let spec = ExecSpec {
        program: Program::Argv(["python3", "-u", "-c", KERNEL].map(str::to_owned).to_vec()),
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        pty: None,
        stdin: true,
        timeout_ms: None,
        rlimits: Rlimits::default(),
    };
    let exec = ExecId::random();
    let ask = Ask::of(Action::Exec)
        .place(PlaceRef::Sandbox(target.id))
        .subject(exec)
        .detail("argv", vec!["python3"])
        .detail("command_of", "code interpreter");
    let judged = app.claim_exec(caller, false);
    let (operation, claim) = app.begin_judged(caller, ask, judged).await.map_err(|refusal| refusal.fault)?;
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
    let place: Arc<dyn Place> = Arc::clone(&target.place) as Arc<dyn Place>;
    match app.places().execs().run_live(claim, &place, exec, &spec, LiveNote::default(), ended).await {
        Ok((_, events)) => Ok(Kernel { exec, events, rest: BytesMut::new() }),
        Err(fault) => match operation.lock().await.take() {
            Some(operation) => Err(operation.fail(fault).await.fault),
            None => Err(fault),
        },
    }
}

/// What a kernel did.
enum Told {
    /// A whole line, its end included.
    Line(Bytes),
    /// It has ended, or says what nobody should read.
    Over,
}

impl Kernel {
    /// The next line.
    async fn line(&mut self) -> Told {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                return Told::Line(self.rest.split_to(end + 1).freeze());
            }
            if self.rest.len() > LINE_BYTES_MAX {
                return Told::Over;
            }
            match self.events.next().await {
                Some(ExecEvent::Stdout(bytes)) => self.rest.extend_from_slice(&bytes),
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
        lines: &mpsc::Sender<Bytes>,
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
                let Ok(Value::Object(told)) = serde_json::from_slice(&line) else { return false };
                let over = told.get("type").and_then(Value::as_str) == Some("end_of_execution");
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
        let exec = kernel.exec;
        *self.0 = None;
        let _ = execs.stop(permit, exec, SIGKILL).await;
        let told = serde_json::json!({
            "type": "error", "name": "KernelDied", "value": died().message, "traceback": "",
        });
        let end = serde_json::json!({ "type": "end_of_execution" });
        for line in [told, end] {
            // As above.
            let _ = lines.send(Bytes::from(format!("{line}\n"))).await;
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
        Kernel { exec: ExecId::random(), events: stream::iter(pieces).boxed(), rest: BytesMut::new() }
    }

    async fn all(mut kernel: Kernel) -> Vec<String> {
        let mut lines = Vec::new();
        while let Told::Line(line) = kernel.line().await {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
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
