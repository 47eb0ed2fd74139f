//! What the sandbox uses now.

use axum::{body::Body, http::Response};
use rf_e2b::models::Sample;
use rf_policy::Action;
use rf_types::{Code, Fault};
use serde::Serialize;

use super::{Asked, fault, json};
use crate::operation::Ask;

/// One sample in the words of the in-sandbox interface.
#[derive(Serialize)]
struct Metrics {
    /// Seconds since 1970.
    ts: u64,
    cpu_count: u32,
    cpu_used_pct: f32,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    disk_used: u64,
    disk_total: u64,
}

impl From<Sample> for Metrics {
    fn from(sample: Sample) -> Self {
        Self {
            ts: sample.at / 1_000,
            cpu_count: sample.cpu_count,
            cpu_used_pct: sample.cpu_used_pct,
            mem_total: sample.mem_total,
            mem_used: sample.mem_used,
            mem_cache: sample.mem_cache,
            mem_total_mib: sample.mem_total >> 20,
            mem_used_mib: sample.mem_used >> 20,
            disk_used: sample.disk_used,
            disk_total: sample.disk_total,
        }
    }
}

pub(super) async fn answer(asked: &Asked) -> Response<Body> {
    let app = &asked.app;
    let ask = Ask::of(Action::ExecRead).place(asked.place()).subject(asked.target.id).detail("op", "metrics");
    let operation = match app.begin(&asked.caller, ask).await {
        Ok(operation) => operation,
        Err(refusal) => return fault(&refusal.fault),
    };
    let samples = match asked.target.row(app) {
        Ok(row) => app.e2b().meters().ask(app.places().warden(), &row, app.now()).await,
        Err(fault) => Err(fault),
    };
    let none = || Fault::new(Code::ServerBusy, "the sandbox was not measured yet", "try again");
    let last = samples.and_then(|samples| samples.last().copied().ok_or_else(none));
    match operation.finish(last).await {
        Ok(sample) => json(&Metrics::from(sample)),
        Err(refusal) => fault(&refusal.fault),
    }
}
