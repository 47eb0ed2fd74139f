//! What is printed: text for people, JSON for programs, errors with what to do next.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use rf_client::ClientError;
use rf_types::{Code, Fault};
use serde::Serialize;
use serde_json::json;

/// How this run prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether JSON was asked for.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Prints a value as JSON, or what `text` makes of it.
    pub(crate) fn value<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let mut line = if self.json { serde_json::to_string_pretty(value)? } else { text(value) };
        if !line.ends_with('\n') && !line.is_empty() {
            line.push('\n');
        }
        print(line.as_bytes())
    }

    /// Prints rows as JSON, or as a table with these headings.
    pub(crate) fn rows<T: Serialize>(
        &self,
        rows: &[T],
        headings: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> anyhow::Result<()> {
        self.value(&rows, |rows| table(headings, rows.iter().map(row)))
    }

    /// A remark for people, on standard error.
    pub(crate) fn remark(&self, text: &str) {
        if !self.quiet && !self.json {
            // Nothing is lost when nobody reads it.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A bar for `length` bytes, or a spinner when that is not known. Hidden where nobody watches.
    pub(crate) fn bytes_bar(&self, length: Option<u64>, what: &str) -> ProgressBar {
        if self.quiet || self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let (bar, style) = match length {
            Some(length) => (ProgressBar::new(length), "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
            None => (ProgressBar::new_spinner(), "{msg} {spinner} {bytes} {bytes_per_sec}"),
        };
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar
    }

    /// A spinner for work of unknown length. Hidden where nobody watches.
    pub(crate) fn spinner(&self, what: &str) -> ProgressBar {
        if self.quiet || self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        bar
    }

    /// Prints why a command failed, on standard error.
    pub(crate) fn failure(&self, error: &anyhow::Error) {
        let mut code = "failed".to_owned();
        let mut hint = String::new();
        let mut request = None;
        let mut ours = false;
        for cause in error.chain() {
            ours |= cause.downcast_ref::<Fault>().is_some();
            let fault = cause.downcast_ref::<Fault>().or_else(|| match cause.downcast_ref::<ClientError>() {
                Some(ClientError::Refused { fault, request_id, .. }) => {
                    request = request_id.clone();
                    Some(fault)
                }
                _ => None,
            });
            if let Some(fault) = fault {
                code = serde_json::to_value(fault.code)
                    .ok()
                    .and_then(|value| value.as_str().map(str::to_owned))
                    .unwrap_or(code);
                hint.clone_from(&fault.hint);
                if ours && fault.code == Code::InvalidRequest && hint.contains("/v1/openapi.json") {
                    // Nobody was asked: it is the command line that is wrong.
                    hint = "see the command's --help".to_owned();
                }
                break;
            }
            if matches!(cause.downcast_ref::<ClientError>(), Some(ClientError::Unreachable { .. })) {
                code = "unreachable".to_owned();
                hint = "start a server with `ringfence up`, or name one with --url".to_owned();
                break;
            }
        }
        let message = format!("{error:#}");
        let text = if self.json {
            json!({ "code": code, "message": message, "hint": hint, "request_id": request }).to_string()
        } else {
            let mut text = format!("error: {message}");
            if !hint.is_empty() {
                text.push_str(&format!("\n hint: {hint}"));
            }
            if let Some(request) = request {
                text.push_str(&format!("\n   id: {request}"));
            }
            text
        };
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(bytes) {
        // Whoever reads us has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Rows under headings, for people.
pub(crate) fn table(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    // The style without borders still has room for one at the left.
    let lines = table.to_string();
    lines.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect::<Vec<_>>().join("\n")
}

/// A count of bytes for people, such as `256 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value.fract() < 0.05 || unit == 0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// How long ago or from now an instant is, such as `3 min`.
pub(crate) fn span(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} min", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Reads a size such as `256M`, `1.5GiB` or `4096`: powers of 1,024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        other => return Err(format!("`{other}` is no unit: use K, M, G or T")),
    };
    let value: f64 = digits.parse().map_err(|_| format!("`{text}` is no size, such as 256M"))?;
    let bytes = value * 1024_f64.powi(power);
    if bytes.is_finite() && (0.0..=9.0e15).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("`{text}` is out of range"))
    }
}

/// Reads a time such as `30s`, `5m`, `2h`, `1d`, `1500ms`; a bare number is seconds. Gives milliseconds.
pub(crate) fn parse_ms(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1.0,
        "" | "s" => 1_000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        other => return Err(format!("`{other}` is no unit: use ms, s, m, h or d")),
    };
    let value: f64 = digits.parse().map_err(|_| format!("`{text}` is no time, such as 30s"))?;
    let ms = value * factor;
    if ms.is_finite() && (0.0..=9.0e15).contains(&ms) {
        Ok(ms as u64)
    } else {
        Err(format!("`{text}` is out of range"))
    }
}

/// Reads a number of CPUs such as `1` or `0.5`; gives thousandths.
pub(crate) fn parse_cpu(text: &str) -> Result<u32, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number of CPUs, such as 0.5"))?;
    if value.is_finite() && (0.0..=1.0e6).contains(&value) {
        Ok((value * 1000.0).round() as u32)
    } else {
        Err(format!("`{text}` is out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(parse_bytes("256M"), Ok(256 << 20));
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_ms("30s"), Ok(30_000));
        assert_eq!(parse_ms("1500ms"), Ok(1_500));
        assert_eq!(parse_ms("2"), Ok(2_000));
        assert_eq!(parse_cpu("0.5"), Ok(500));
        for wrong in ["", "M", "-1", "1X", "nan", "1e99", "1 M"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
            assert!(parse_ms(wrong).is_err(), "{wrong}");
        }
        assert!(parse_cpu("-1").is_err());
    }

    #[test]
    fn sizes_are_printed_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(span(30_000), "30 s");
        assert_eq!(span(7 * 86_400_000), "7 days");
    }
}
