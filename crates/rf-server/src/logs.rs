//! Structured logs on standard error. A line carries ids, never a secret: bodies, headers and queries are not logged.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogConfig, LogFormat};

/// Starts logging for the whole process. Without effect when it was started before.
pub fn start(config: &LogConfig) {
    // INVARIANT: `validate` parsed the filter.
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    // An error means that somebody, such as a test, has a subscriber already: theirs stays.
    let _ = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Pretty => lines.compact().try_init(),
    };
}
