//! Numbers for Prometheus. No label holds a user, an id or anything else that a client chooses.

use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// What a request is counted under.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    method: &'static str,
    status: u16,
}

/// What an operation is counted under.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OperationLabels {
    action: String,
    result: String,
}

/// Every number of the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    operations: Family<OperationLabels, Counter>,
    operation_seconds: Histogram,
    /// Connections open now.
    pub connections: Gauge<i64, AtomicI64>,
    /// Connections refused because there were too many.
    pub connections_refused: Counter<u64, AtomicU64>,
    /// Output bytes sent to clients in frames.
    pub stream_bytes: Counter<u64, AtomicU64>,
    sandboxes: Gauge<i64, AtomicI64>,
    execs: Gauge<i64, AtomicI64>,
    machines: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        // Chosen: 64 µs to 134 s in factors of 2, which tells a fast exec from a slow one and ends above most waits.
        let buckets = || Histogram::new((0..22).map(|n| 64e-6 * f64::from(1u32 << n)));
        let mut metrics = Self {
            registry: Registry::with_prefix("ringfence"),
            requests: Family::default(),
            request_seconds: buckets(),
            operations: Family::default(),
            operation_seconds: buckets(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            stream_bytes: Counter::default(),
            sandboxes: Gauge::default(),
            execs: Gauge::default(),
            machines: Gauge::default(),
        };
        let r = &mut metrics.registry;
        r.register("http_requests", "Requests answered", metrics.requests.clone());
        r.register(
            "http_request_seconds",
            "From a request's header to its answer's header",
            metrics.request_seconds.clone(),
        );
        r.register("operations", "Operations judged, by action and result", metrics.operations.clone());
        r.register("operation_seconds", "From judgement to the recorded result", metrics.operation_seconds.clone());
        r.register("connections", "Connections open", metrics.connections.clone());
        r.register(
            "connections_refused",
            "Connections refused because there were too many",
            metrics.connections_refused.clone(),
        );
        r.register("stream_bytes", "Bytes of output sent in frames", metrics.stream_bytes.clone());
        r.register("sandboxes", "Sandboxes alive", metrics.sandboxes.clone());
        r.register("execs", "Execs running", metrics.execs.clone());
        r.register("machines", "Machines connected", metrics.machines.clone());
        metrics
    }
}

impl Metrics {
    /// Counts one answered request.
    pub fn request(&self, method: &http::Method, status: u16, took: Duration) {
        let method = match method.as_str() {
            "GET" => "GET",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            "HEAD" => "HEAD",
            // A client may invent methods; each would be a series of its own.
            _ => "other",
        };
        self.requests.get_or_create(&RequestLabels { method, status }).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Counts one operation. `result` is `ok` or the code of the fault.
    pub fn operation(&self, action: &str, result: &str, took: Duration) {
        let labels = OperationLabels { action: action.to_owned(), result: result.to_owned() };
        self.operations.get_or_create(&labels).inc();
        self.operation_seconds.observe(took.as_secs_f64());
    }

    /// Sets what is counted elsewhere, at the moment of asking.
    pub fn set_alive(&self, sandboxes: usize, execs: usize, machines: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.sandboxes.set(number(sandboxes));
        self.execs.set(number(execs));
        self.machines.set(number(machines));
    }

    /// All numbers as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a `String` does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
