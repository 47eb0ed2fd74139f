//! What is known of an exec beside what its place knows, kept for the next server: program, arguments, and what its
//! starter said of it. An exec in the background has it on disk before it starts, with its output; every other one only
//! once it has run for a while, so that the way of a short command has no file in it.
//!
//! ```text
//!  begin ─▶ young ──100 ms──▶ still runs? ─▶ about.json ─▶ end: removed
//!                              └ no: nothing
//! ```
//!
//! A server that is killed before the note is written leaves an exec that the next one takes over by its id and pid alone.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use rf_types::ExecId;
use tokio::{sync::Notify, time::Instant};

use super::{Entry, Execs, lock};
use crate::spool::Spool;

/// How long an exec has run when it is noted. Chosen: most commands are over by then.
const AGE: Duration = Duration::from_millis(100);

/// The execs that began lately and are not noted yet, oldest first. As many as begin within [`AGE`], or a write of the
/// disk.
#[derive(Default)]
pub(super) struct Young {
    queue: Mutex<VecDeque<(Instant, Weak<Entry>)>>,
    first: Notify,
}

impl Young {
    pub(super) fn push(&self, entry: &Arc<Entry>) {
        let mut queue = lock(&self.queue);
        let first = queue.is_empty();
        queue.push_back((Instant::now(), Arc::downgrade(entry)));
        drop(queue);
        if first {
            self.first.notify_one();
        }
    }

    /// Those that are old enough now, and when the next one will be.
    fn grown(&self) -> (Vec<Weak<Entry>>, Option<Instant>) {
        let mut queue = lock(&self.queue);
        let now = Instant::now();
        let count = queue.partition_point(|(began, _)| *began + AGE <= now);
        let grown = queue.drain(..count).map(|(_, entry)| entry).collect();
        (grown, queue.front().map(|(began, _)| *began + AGE))
    }
}

/// Whether an exec is noted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Noted {
    #[default]
    NotYet,
    Written,
    /// It has ended, so it will not be.
    Over,
}

impl Execs {
    /// Notes what has run for a while; ends with the server.
    pub(crate) async fn note_the_long_ones(self) {
        loop {
            self.inner.young.first.notified().await;
            loop {
                let (grown, next) = self.inner.young.grown();
                let long: Vec<_> = grown.iter().filter_map(Weak::upgrade).filter(|entry| entry.is_running()).collect();
                if !long.is_empty() {
                    let root = self.inner.config.spool.clone();
                    let write = move || long.iter().for_each(|entry| entry.note_down(&root));
                    // It only writes, and what fails there is said there.
                    let _ = tokio::task::spawn_blocking(write).await;
                }
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    // Whoever comes first from now on wakes us.
                    None => break,
                }
            }
        }
    }
}

impl Entry {
    fn note_down(&self, root: &Path) {
        // Held while it is written, so that an end that comes meanwhile finds it.
        let mut noted = lock(&self.noted);
        if *noted != Noted::NotYet {
            return;
        }
        let mut about = self.about(None);
        // What the next server makes of it.
        about.info.background = true;
        let spool = Spool::of(root, about.info.id);
        match spool.make().and_then(|()| spool.write_about(&about)) {
            Ok(()) => *noted = Noted::Written,
            Err(error) => {
                tracing::warn!(%error, exec = %about.info.id, "an exec is not noted for the next server");
                spool.remove();
            }
        }
    }

    /// It has ended, or never came to run.
    pub(super) fn forget_note(&self, root: &Path, exec: ExecId) {
        if std::mem::replace(&mut *lock(&self.noted), Noted::Over) == Noted::Written {
            Spool::of(root, exec).remove();
        }
    }
}
