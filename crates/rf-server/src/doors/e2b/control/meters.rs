//! What sandboxes used over time: a bounded ring of samples for each sandbox that somebody asks about.
//!
//! ```text
//! asked about ─▶ a sample now ─▶ sampled every 5 s ─ nobody asked for 10 min, or it ended ─▶ forgotten
//! ```
//! Nothing is sampled of a sandbox that nobody asks about, so idle ones cost nothing. Each of at most 512 sandboxes has at
//! most 240 samples of some 60 bytes: 8 MiB in all.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_e2b::models::{Metric, Sample, SandboxesWithMetrics};
use rf_places::{SandboxRow, WardenClient};
use rf_policy::Action;
use rf_types::{Fault, Limits, SandboxId, SandboxState, units::UnixMs};
use rf_wire::warden::Usage;
use serde::Deserialize;

use super::id;
use crate::{
    app::{App, Caller, Named, json, now},
    input,
    operation::Ask,
    refusal::Refusal,
};

/// How often a watched sandbox is sampled; also the least time between two samples. Chosen: as often as E2B does.
const PERIOD_MS: u64 = 5_000;
/// How long after the last question a sandbox is watched. Chosen.
const WATCHED_MS: u64 = 600_000;
/// Samples of one sandbox: twenty minutes. Chosen.
const SAMPLES_MAX: usize = 240;
/// Sandboxes that are watched at once; others get the sample of the moment they are asked about. Chosen: a sample takes
/// the warden some tens of microseconds, so all of them cost it a few per mille of its time.
const WATCHED_MAX: usize = 512;
/// Sandboxes in one question.
const ASKED_MAX: usize = 100;

/// The samples of all sandboxes that are watched; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Meters(Arc<Mutex<State_>>);

#[derive(Debug, Default)]
struct State_ {
    rings: HashMap<SandboxId, Ring>,
    /// Whether somebody samples.
    sampling: bool,
}

/// One sandbox's samples, oldest first.
#[derive(Debug)]
struct Ring {
    limits: Limits,
    /// CPU time at the last sample, microseconds, and when that was.
    last: (u64, UnixMs),
    asked_at: UnixMs,
    samples: VecDeque<Sample>,
}

impl Ring {
    fn new(row: &SandboxRow, now: UnixMs) -> Self {
        // Before the first sample it used nothing, since it began to run.
        Self { limits: row.spec.limits, last: (0, row.started_at), asked_at: now, samples: VecDeque::new() }
    }

    fn is_due(&self, now: UnixMs) -> bool {
        self.samples.back().is_none_or(|last| last.at.saturating_add(PERIOD_MS) <= now)
    }

    fn add(&mut self, usage: &Usage, at: UnixMs) {
        let (cpu_us, since) = self.last;
        let used_us = usage.cpu_us.saturating_sub(cpu_us);
        let most_us = at.saturating_sub(since).max(1).saturating_mul(self.limits.cpu_milli_max.into());
        self.last = (usage.cpu_us, at);
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at,
            cpu_count: self.limits.cpu_milli_max.div_ceil(1_000),
            // A reading of the counter between two ticks may be a little beyond what was allowed.
            cpu_used_pct: (used_us as f64 / most_us as f64 * 100.0).min(100.0) as f32,
            // The kernel counts the cache with the rest; these clients do not.
            mem_used: usage.memory_bytes.saturating_sub(usage.memory_cache_bytes),
            mem_cache: usage.memory_cache_bytes,
            mem_total: self.limits.memory_bytes_max,
            disk_used: usage.disk_bytes,
            disk_total: self.limits.disk_bytes_max,
        });
    }
}

impl Meters {
    fn lock(&self) -> MutexGuard<'_, State_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox's samples, the one of this moment included unless it is paused or was just sampled; it is watched from
    /// now on, if there is room.
    pub(in crate::doors::e2b) async fn ask(
        &self,
        warden: &WardenClient,
        row: &SandboxRow,
        now: UnixMs,
    ) -> Result<Vec<Sample>, Fault> {
        let due = {
            let mut state = self.lock();
            let room = state.rings.len() < WATCHED_MAX;
            match state.rings.get_mut(&row.id) {
                Some(ring) => {
                    ring.asked_at = now;
                    ring.limits = row.spec.limits;
                    ring.is_due(now)
                }
                None => {
                    if room {
                        state.rings.insert(row.id, Ring::new(row, now));
                    }
                    true
                }
            }
        };
        if !due || row.state == SandboxState::Paused {
            return Ok(self.samples(row.id));
        }
        let usage = warden.usage(row.id).await?;
        self.sample_for_a_while(warden);
        let mut state = self.lock();
        match state.rings.get_mut(&row.id) {
            Some(ring) => {
                // Somebody else may have asked at the same moment.
                if ring.is_due(now) {
                    ring.add(&usage, now);
                }
                Ok(ring.samples.iter().copied().collect())
            }
            None => {
                let mut once = Ring::new(row, now);
                once.add(&usage, now);
                Ok(once.samples.into())
            }
        }
    }

    fn samples(&self, id: SandboxId) -> Vec<Sample> {
        self.lock().rings.get(&id).map(|ring| ring.samples.iter().copied().collect()).unwrap_or_default()
    }

    /// Forgets those that nobody asked about for long, and says which of the rest are due.
    fn due(&self, now: UnixMs) -> Vec<SandboxId> {
        let mut state = self.lock();
        state.rings.retain(|_, ring| ring.asked_at.saturating_add(WATCHED_MS) > now);
        state.sampling = !state.rings.is_empty();
        state.rings.iter().filter(|(_, ring)| ring.is_due(now)).map(|(id, _)| *id).collect()
    }

    /// Samples every watched sandbox, until there is none.
    fn sample_for_a_while(&self, warden: &WardenClient) {
        if std::mem::replace(&mut self.lock().sampling, true) {
            return;
        }
        let (meters, warden) = (self.clone(), warden.clone());
        tokio::spawn(async move {
            while meters.lock().sampling {
                tokio::time::sleep(Duration::from_millis(PERIOD_MS)).await;
                for id in meters.due(now()) {
                    let usage = warden.usage(id).await;
                    let mut state = meters.lock();
                    match (usage, state.rings.get_mut(&id)) {
                        (Ok(usage), Some(ring)) => ring.add(&usage, now()),
                        // It has ended. Where the warden is away the sandboxes soon are, too.
                        (Err(_), Some(_)) => drop(state.rings.remove(&id)),
                        (_, None) => {}
                    }
                }
            }
        });
    }
}

/// Seconds since 1970.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Window {
    start: Option<u64>,
    end: Option<u64>,
}

impl Window {
    fn takes(&self, sample: &Sample) -> bool {
        let second = sample.at / 1_000;
        self.start.is_none_or(|start| second >= start) && self.end.is_none_or(|end| second <= end)
    }
}

/// What one sandbox used, oldest first.
pub(super) async fn of_one(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
    uri: Uri,
) -> Result<Response<Body>, Refusal> {
    let window: Window = input::query(&uri)?;
    if window.start.zip(window.end).is_some_and(|(start, end)| start > end) {
        return Err(Fault::invalid("`start` is after `end`").into());
    }
    let id = id(&text)?;
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).subject(id).detail("op", "metrics")).await?;
    let samples = match app.places().sandboxes().row(operation.permit().user(), id) {
        Ok(row) => app.e2b().meters().ask(app.places().warden(), &row, app.now()).await,
        Err(fault) => Err(fault),
    };
    let samples = operation.finish(samples).await?;
    let metrics: Vec<Metric> = samples.into_iter().filter(|sample| window.takes(sample)).map(Metric::from).collect();
    Ok(json(StatusCode::OK, &metrics))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ManyQuery {
    sandbox_ids: String,
}

/// The latest numbers of several sandboxes; one that is not there is left out.
pub(super) async fn of_many(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let ManyQuery { sandbox_ids } = input::query(&uri)?;
    let ids: Vec<&str> = sandbox_ids.split(',').filter(|text| !text.is_empty()).collect();
    if ids.len() > ASKED_MAX {
        return Err(Fault::invalid("`sandbox_ids` must be at most 100 ids").into());
    }
    let operation = app.begin(&caller, Ask::of(Action::SandboxRead).detail("op", "metrics")).await?;
    let user = operation.permit().user();
    let mut sandboxes = BTreeMap::new();
    for text in ids {
        let Ok(row) = id(text).and_then(|id| app.places().sandboxes().row(user, id)) else { continue };
        if let Ok(samples) = app.e2b().meters().ask(app.places().warden(), &row, app.now()).await
            && let Some(last) = samples.last()
        {
            sandboxes.insert(rf_e2b::id::sandbox_text(row.id), Metric::from(*last));
        }
    }
    Ok(json(StatusCode::OK, &operation.finish(Ok(SandboxesWithMetrics { sandboxes })).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        let limits = Limits { cpu_milli_max: 2_000, ..Limits::STANDARD };
        Ring { limits, last: (0, 10_000), asked_at: 10_000, samples: VecDeque::new() }
    }

    fn usage(cpu_us: u64) -> Usage {
        Usage { cpu_us, memory_bytes: 7, memory_cache_bytes: 3, ..Usage::default() }
    }

    #[test]
    fn cpu_is_counted_against_all_that_is_allowed() {
        let mut ring = ring();
        // Of 2 CPUs for one second: one of them, then nothing, then both and a little.
        for (cpu_us, at, percent) in [(1_000_000, 11_000, 50.0), (1_000_000, 12_000, 0.0), (3_100_000, 13_000, 100.0)] {
            ring.add(&usage(cpu_us), at);
            let last = ring.samples.back().unwrap();
            assert!((last.cpu_used_pct - percent).abs() < 0.01, "{}", last.cpu_used_pct);
            assert_eq!((last.at, last.cpu_count, last.mem_used, last.mem_cache), (at, 2, 4, 3));
        }
    }

    #[test]
    fn a_ring_is_bounded_and_sampled_no_more_often_than_it_should() {
        let mut ring = ring();
        assert!(ring.is_due(10_000));
        for n in 0..2 * SAMPLES_MAX as u64 {
            ring.add(&usage(n), 10_000 + n * PERIOD_MS);
        }
        assert_eq!(ring.samples.len(), SAMPLES_MAX);
        let last = ring.samples.back().unwrap().at;
        assert!(!ring.is_due(last + PERIOD_MS - 1) && ring.is_due(last + PERIOD_MS));
    }

    #[test]
    fn what_nobody_asks_about_is_forgotten() {
        let meters = Meters::default();
        meters.lock().rings.insert(SandboxId::from_bits(1), ring());
        assert_eq!(meters.due(10_000 + WATCHED_MS - 1).len(), 1);
        assert!(meters.due(10_000 + WATCHED_MS).is_empty());
        let state = meters.lock();
        assert!(state.rings.is_empty() && !state.sampling);
    }

    #[test]
    fn a_window_is_in_seconds_and_both_ends_belong_to_it() {
        let mut ring = ring();
        ring.add(&usage(0), 100_999);
        let sample = ring.samples[0];
        for (start, end, taken) in
            [(None, None, true), (Some(100), Some(100), true), (Some(101), None, false), (None, Some(99), false)]
        {
            assert_eq!(Window { start, end }.takes(&sample), taken, "{start:?} {end:?}");
        }
    }
}
