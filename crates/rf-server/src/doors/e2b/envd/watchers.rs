//! Watchers that are asked for what changed, instead of telling it: kept here between two questions, bounded, each for
//! its sandbox alone and gone with it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rf_e2b::rpc::filesystem::FilesystemEvent;
use rf_places::{
    detail::{WatchTold, Watching},
    place::{ChangeKind, Place as _},
    sandbox::SandboxPlace,
};
use rf_types::{Code, ExecId, Fault, SandboxId};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{entry::clean, filesystem::events};
use crate::room::{Room, Share};

/// Most watchers of one sandbox; each is a process in it. Chosen.
const WATCHERS_MAX: usize = 64;
/// Most events kept for one watcher, and most bytes of them, as far as there is room. Chosen: beyond that nobody asks.
const EVENTS_MAX: usize = 10_000;
const BYTES_MAX: usize = 4 << 20;
/// How long a sandbox may take to tell what happened so far. Chosen.
const ASK_TIME: Duration = Duration::from_secs(10);

type Taken = Option<Vec<FilesystemEvent>>;
type Key = (SandboxId, String);

/// All watchers; clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Watchers(Arc<Mutex<HashMap<Key, Option<Watcher>>>>);

#[derive(Debug)]
struct Watcher {
    questions: mpsc::Sender<oneshot::Sender<Result<Taken, Fault>>>,
    task: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Room for one more watcher of a sandbox; given back when it is not used.
pub(super) struct Vacancy {
    watchers: Watchers,
    key: Key,
    used: bool,
}

impl Drop for Vacancy {
    fn drop(&mut self) {
        if !self.used {
            self.watchers.lock().remove(&self.key);
        }
    }
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Option<Watcher>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more.
    ///
    /// # Errors
    /// `limit_reached`.
    pub(super) fn place(&self, sandbox: SandboxId) -> Result<Vacancy, Fault> {
        let mut watchers = self.lock();
        if watchers.keys().filter(|(of, _)| *of == sandbox).count() >= WATCHERS_MAX {
            let message = format!("a sandbox has at most {WATCHERS_MAX} watchers");
            return Err(Fault::new(Code::LimitReached, message, "remove one that is not needed any more"));
        }
        // Any of our random ids does: 32 hex digits that nobody guesses.
        let id = format!("w{}", ExecId::random().to_string().trim_start_matches("exe_"));
        let key = (sandbox, id);
        watchers.insert(key.clone(), None);
        Ok(Vacancy { watchers: self.clone(), key, used: false })
    }

    /// The events since the last time, up to what happened before this call; nothing when some were lost.
    ///
    /// # Errors
    /// `not_found`, also for another sandbox's; what the sandbox said when it ended the watch.
    pub(super) async fn take(&self, sandbox: SandboxId, id: &str) -> Result<Taken, Fault> {
        let questions = match self.lock().get(&(sandbox, id.to_owned())) {
            Some(Some(watcher)) => watcher.questions.clone(),
            Some(None) | None => return Err(Fault::not_found("watcher")),
        };
        let (answer, answered) = oneshot::channel();
        let asked = async {
            questions.send(answer).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(ASK_TIME, asked).await {
            Ok(Some(taken)) => taken,
            Ok(None) => Err(Fault::not_found("watcher")),
            Err(_) => Err(Fault::new(Code::TimedOut, "the sandbox did not tell what changed in time", "try again")),
        }
    }

    /// Ends a watcher.
    ///
    /// # Errors
    /// `not_found`, also for another sandbox's.
    pub(super) fn remove(&self, sandbox: SandboxId, id: &str) -> Result<(), Fault> {
        let removed = self.lock().remove(&(sandbox, id.to_owned()));
        removed.flatten().map(drop).ok_or_else(|| Fault::not_found("watcher"))
    }
}

impl Vacancy {
    /// Keeps a watch; its id.
    pub(super) fn keep(mut self, watching: Watching, place: Arc<SandboxPlace>, room: &Room) -> String {
        self.used = true;
        let (questions, asked) = mpsc::channel(4);
        let (watchers, key) = (self.watchers.clone(), self.key.clone());
        let kept = Kept::new(watching, room.clone());
        let mut map = self.watchers.lock();
        // Begun under the lock, so that its end finds it in the map.
        let task = tokio::spawn(async move {
            tokio::select! {
                () = kept.serve(asked) => {}
                // With its sandbox.
                _ = place.gone() => {
                    watchers.lock().remove(&key);
                }
            }
        });
        map.insert(self.key.clone(), Some(Watcher { questions, task }));
        drop(map);
        self.key.1.clone()
    }
}

/// A watch and what it told so far.
struct Kept {
    watching: Watching,
    top: String,
    events: Vec<FilesystemEvent>,
    bytes: usize,
    lost: bool,
    ended: Option<Fault>,
    room: Room,
    share: Share,
}

impl Kept {
    fn new(watching: Watching, room: Room) -> Self {
        let top = clean(&watching.top.stat.path);
        let share = room.share();
        Self { watching, top, events: Vec::new(), bytes: 0, lost: false, ended: None, room, share }
    }

    /// Answers until nobody can ask any more.
    async fn serve(mut self, mut asked: mpsc::Receiver<oneshot::Sender<Result<Taken, Fault>>>) {
        let mut waiting = Vec::new();
        loop {
            if self.ended.is_some() {
                waiting.drain(..).for_each(|answer| self.answer(answer));
            }
            tokio::select! {
                question = asked.recv() => {
                    let Some(answer) = question else { return };
                    if self.ended.is_some() {
                        self.answer(answer);
                    } else {
                        match self.watching.ask() {
                            Ok(()) => waiting.push(answer),
                            // Nobody waits any more, if it cannot be told.
                            Err(fault) => drop(answer.send(Err(fault))),
                        }
                    }
                }
                told = self.watching.next(), if self.ended.is_none() => match told {
                    Ok(WatchTold::Changed(change, detail)) => {
                        self.lost |= change.kinds.contains(&ChangeKind::Overflow);
                        for event in events(&self.top, &change, detail) {
                            self.keep(event);
                        }
                    }
                    // One answer to each question, in order.
                    Ok(WatchTold::Caught) if !waiting.is_empty() => {
                        let answer = waiting.remove(0);
                        self.answer(answer);
                    }
                    Ok(WatchTold::Caught) => {}
                    Err(fault) => self.ended = Some(fault),
                },
            }
        }
    }

    fn keep(&mut self, event: FilesystemEvent) {
        let bytes = event.name.len() + event.entry.as_option().map_or(0, |entry| entry.path.len() * 2 + 256) + 64;
        if self.events.len() >= EVENTS_MAX || self.bytes + bytes > BYTES_MAX || !self.share.grow(self.bytes + bytes) {
            self.lost = true;
            return;
        }
        self.bytes += bytes;
        self.events.push(event);
    }

    fn answer(&mut self, answer: oneshot::Sender<Result<Taken, Fault>>) {
        let taken = match &self.ended {
            Some(fault) if self.events.is_empty() => Err(fault.clone()),
            Some(_) | None => {
                self.bytes = 0;
                self.share = self.room.share();
                let events = std::mem::take(&mut self.events);
                Ok(if std::mem::take(&mut self.lost) { None } else { Some(events) })
            }
        };
        // Whoever asked may have gone.
        let _ = answer.send(taken);
    }
}
