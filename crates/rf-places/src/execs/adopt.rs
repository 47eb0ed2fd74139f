//! Execs of places that were there before this server: taken over with their places, or lost with them.

use std::sync::Arc;

use rf_types::{ExecId, ExecInfo, ExecState, Fault, PlaceRef, UserId};
use rf_wire::machine::Held;

use super::{Execs, lock};
use crate::{
    place::{AdoptedExec, Place},
    quota::of_exec,
    sandbox::RawAdopted,
    sandboxes::now_ms,
    spool::{About, Spool, Which},
};

/// What is known of an exec that a place says it runs.
enum Claimed {
    /// It was begun there.
    Own(Box<About>),
    /// Nothing: an exec in the foreground of an earlier server.
    Unknown,
    /// It is another place's or another user's, or may be.
    Elsewhere,
}

impl Execs {
    /// Whose the exec is that a place claims. What a place says is hostile: with an id that it has from elsewhere it must
    /// get nobody's output, nor put its own in its place.
    fn claimed(&self, spool: &Spool, user: UserId, place: PlaceRef, exec: ExecId) -> Claimed {
        match spool.read_about() {
            Ok(Some(about)) if about.user == user && about.place == place => Claimed::Own(Box::new(about)),
            Ok(None) if !spool.is_there() => {
                let users = lock(&self.inner.users);
                let entered = users.get(&user).and_then(|execs| execs.execs.get(&exec));
                if entered.is_none_or(|entry| entry.place == place) { Claimed::Unknown } else { Claimed::Elsewhere }
            }
            Ok(_) | Err(_) => Claimed::Elsewhere,
        }
    }

    /// Takes over what runs in an adopted place; everything becomes a background exec.
    ///
    /// # Errors
    /// `place_lost`, `timed_out`.
    pub async fn adopt(&self, user: UserId, place: &Arc<dyn Place>) -> Result<(), Fault> {
        let held = |exec| {
            let spool = Spool::of(&self.inner.config.spool, exec);
            let len = |which| spool.progress(which).len;
            // What is not of this place, or of no known beginning, counts for nothing.
            match self.claimed(&spool, user, place.place(), exec) {
                Claimed::Own(_) => Held { stdout: len(Which::Stdout), stderr: len(Which::Stderr) },
                Claimed::Unknown | Claimed::Elsewhere => Held::default(),
            }
        };
        let found: Vec<RawAdopted> = match place.sandbox() {
            Some(sandbox) => sandbox.adopt_raw().await?,
            None => {
                let adopt = |found: AdoptedExec| RawAdopted {
                    exec: found.exec,
                    pty: found.pty,
                    wall_us: found.wall_us,
                    running: true,
                    from: Some(found.from),
                    raw: found.spawned.into(),
                };
                place.adopt_execs(&held).await?.into_iter().map(adopt).collect()
            }
        };
        for RawAdopted { exec, pty, wall_us, running, from, raw } in found {
            let spool = Spool::of(&self.inner.config.spool, exec);
            let about = match self.claimed(&spool, user, place.place(), exec) {
                Claimed::Own(about) => Some(*about),
                Claimed::Unknown => None,
                Claimed::Elsewhere => {
                    tracing::warn!(%user, place = %place.place(), %exec, "a place claims an exec that is not its own");
                    continue;
                }
            };
            // It had its answer in the foreground of a server that is no more: nothing is left to take over. Where the
            // end of one in the background is known its last output may still be on its way.
            if about.is_none() && !running {
                place.forget(exec).await;
                continue;
            }
            let known = about.is_some();
            let note = Arc::new(about.as_ref().map(|about| about.note.clone()).unwrap_or_default());
            let info = about.map_or_else(
                || ExecInfo {
                    id: exec,
                    pid: raw.pid,
                    argv: Vec::new(),
                    background: true,
                    pty,
                    started_at: now_ms().saturating_sub(wall_us / 1000),
                    state: ExecState::Running,
                },
                |about| match about.info.state {
                    state @ ExecState::Exited(_) => ExecInfo { pid: raw.pid, state, ..about.info },
                    // One that was given up as lost is found again.
                    ExecState::Running | ExecState::Lost => {
                        ExecInfo { pid: raw.pid, state: ExecState::Running, ..about.info }
                    }
                },
            );
            if !known && let Err(error) = spool.make() {
                tracing::warn!(%error, %exec, "the output of an exec that is taken over cannot be kept");
            }
            let hold = Some(self.inner.quota.hold(user, of_exec()));
            let progress = |which| spool.progress(which);
            let entry = self.entry(user, place.place(), Some(place), info, note, hold, Some(&spool), progress);
            if let (Some(kept), Some(from)) = (&entry.kept, from) {
                kept.note_gaps(from);
            }
            {
                let mut users = lock(&self.inner.users);
                let execs = users.entry(user).or_default();
                execs.ended.retain(|(_, ended)| *ended != exec);
                // Who waits for it since before it was taken over waits on the old entry.
                if let Some(old) = execs.execs.insert(exec, Arc::clone(&entry)) {
                    let mut state = entry.state.subscribe();
                    tokio::spawn(async move {
                        if let Ok(ended) = state.wait_for(|state| *state != ExecState::Running).await {
                            old.state.send_replace(*ended);
                        }
                    });
                }
            }
            // As with a start: what cannot be written now is written at its end.
            let _ = spool.write_about(&entry.about(None));
            self.pump(entry, exec, raw).await;
        }
        Ok(())
    }

    /// Whether an exec of the user's in `place` is followed: then nothing there is to be adopted, for its session goes
    /// on.
    pub(crate) fn follows(&self, user: UserId, place: PlaceRef) -> bool {
        let users = lock(&self.inner.users);
        users.get(&user).is_some_and(|execs| {
            execs.execs.values().any(|entry| entry.place == place && entry.is_running() && entry.is_followed())
        })
    }

    /// Every place that lives was adopted, but for the sandboxes that `waits` names: what is still said to run, and runs
    /// in none of them, is lost.
    pub fn adoption_over(&self, waits: impl Fn(PlaceRef) -> bool) {
        self.lose_strays(|place| matches!(place, PlaceRef::Sandbox(_)) && !waits(place));
    }

    /// A place was adopted late, or will never be: what is still said to run there is lost.
    pub(crate) fn settle(&self, place: PlaceRef) {
        self.lose_strays(|stray| stray == place);
    }

    fn lose_strays(&self, of: impl Fn(PlaceRef) -> bool) {
        let stray: Vec<_> = {
            let users = lock(&self.inner.users);
            (users.values().flat_map(|execs| execs.execs.iter()))
                .filter(|(_, entry)| entry.is_running() && !entry.is_followed())
                .filter(|(_, entry)| of(entry.place))
                .map(|(exec, entry)| (*exec, Arc::clone(entry)))
                .collect()
        };
        for (exec, entry) in stray {
            self.end(&entry, exec, ExecState::Lost);
        }
    }
}
