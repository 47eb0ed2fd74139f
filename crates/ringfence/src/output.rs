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
        let mut line =
            if self.json { escaped(&serde_json::to_string_pretty(value)?) } else { tame_lines(&text(value)) };
        if !line.ends_with('\n') && !line.is_empty() {
            line.push('\n');
        }
        print(line.as_bytes())
    }

    /// For programs, what was done; people see by the silence that it was.
    pub(crate) fn done(&self, value: &serde_json::Value) -> anyhow::Result<()> {
        if self.json { print_pretty(value) } else { Ok(()) }
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
            let _ = writeln!(io::stderr(), "{}", tame_lines(text));
        }
    }

    /// A remark that programs are to see as well: an object a line, on standard error.
    pub(crate) fn warning(&self, text: &str) {
        if !self.json {
            self.remark(text);
        } else if !self.quiet {
            // Nothing is lost when nobody reads it.
            let _ = writeln!(io::stderr(), "{}", escaped(&json!({ "warning": text }).to_string()));
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
        bar.set_message(tame(what));
        bar
    }

    /// A spinner for work of unknown length. Hidden where nobody watches.
    pub(crate) fn spinner(&self, what: &str) -> ProgressBar {
        if self.quiet || self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        bar.set_message(tame(what));
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        bar
    }

    /// Prints why a command failed, on standard error.
    pub(crate) fn failure(&self, error: &anyhow::Error) {
        let mut code = "failed".to_owned();
        let mut hint = String::new();
        let mut request = None;
        let theirs = error.chain().any(|cause| cause.is::<ClientError>());
        for cause in error.chain() {
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
                hint = hint_here(fault).to_owned();
                break;
            }
            if let Some(ClientError::Unreachable { url, .. }) = cause.downcast_ref::<ClientError>() {
                code = "unreachable".to_owned();
                // What a server without TLS answers to its greeting (RFC 8446, section 5.1).
                let no_tls = url.starts_with("https://") && format!("{error:#}").contains("InvalidContentType");
                hint = match no_tls {
                    true => "it speaks no TLS: name it with http://",
                    false => "start a server with `ringfence up`, or name one with --url",
                }
                .to_owned();
                break;
            }
        }
        let message = format!("{error:#}");
        let text = if self.json {
            escaped(&json!({ "code": code, "message": message, "hint": hint, "request_id": request }).to_string())
        } else {
            // Of ours some have several lines, such as what is wrong with a file; a server's could be taken for ours.
            let mut text = format!("error: {}", if theirs { tame(&message) } else { tame_lines(&message) });
            if !hint.is_empty() {
                text.push_str(&format!("\n hint: {}", tame(&hint)));
            }
            if let Some(request) = request {
                text.push_str(&format!("\n   id: {}", tame(&request)));
            }
            text
        };
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// What to do about a fault, for who types commands: a server's hints are for who writes requests.
fn hint_here(fault: &Fault) -> &str {
    match (fault.code, fault.hint.as_str()) {
        (Code::InvalidRequest, hint) if hint.contains("/v1/openapi.json") => "see the command's --help",
        (Code::NotFound, hint) if hint.contains("/v1/openapi.json") => {
            "check the server's address: --url, RINGFENCE_URL"
        }
        (Code::Unauthenticated, hint) if hint.starts_with("send `Authorization") => {
            "check the key: --key, RINGFENCE_KEY or ~/.config/ringfence/config.toml; it may be another server's, or revoked"
        }
        (Code::Paused, _) => "`ringfence resume` it first; one made with --auto-resume is resumed by the call itself",
        (_, hint) if hint.starts_with("see GET /v1/templates") => {
            "`ringfence template list` lists them; an operator can import one"
        }
        (_, hint) => hint,
    }
}

/// Whether a terminal, or who reads it, would obey a character instead of showing it: control characters (C0, DEL and
/// C1), line and paragraph separators, and those that turn, hide or tag what stands around them (Unicode's UAX #9 and
/// UTS #39).
fn is_wild(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c, '\u{e0000}'..='\u{e0fff}')
}

/// A text of somebody else's as one line of a terminal: in place of what a terminal would obey stands U+FFFD.
pub(crate) fn tame(text: &str) -> String {
    text.chars().map(|c| if is_wild(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The same for a text whose lines are ours.
fn tame_lines(text: &str) -> String {
    let wild = |c: char| is_wild(c) && !matches!(c, '\n' | '\t');
    text.chars().map(|c| if wild(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// As [`tame`], at most so many characters of it; that it was cut is shown.
pub(crate) fn short(text: &str, most: usize) -> String {
    let mut short = tame(text);
    if let Some((at, _)) = short.char_indices().nth(most) {
        short.truncate(at);
        short.push('…');
    }
    short
}

/// A JSON text in which everything that a terminal would obey is escaped. The library escapes C0 alone; the rest can
/// stand in strings only, where an escape means the same (RFC 8259, section 7).
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_wild(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// Prints a value as JSON, for people to read too.
pub(crate) fn print_pretty(value: &serde_json::Value) -> anyhow::Result<()> {
    print(format!("{}\n", escaped(&serde_json::to_string_pretty(value)?)).as_bytes())
}

/// Prints a value as JSON on one line, for programs that read as it comes.
pub(crate) fn print_line(value: &serde_json::Value) -> anyhow::Result<()> {
    print(format!("{}\n", escaped(&value.to_string())).as_bytes())
}

/// Nobody reads our standard output any more, as with `| head`: no fault, and nothing to say.
#[derive(Debug)]
pub(crate) struct Closed;

impl Closed {
    /// As a shell tells of a command that ended so: by SIGPIPE.
    pub(crate) const EXIT: u8 = 128 + 13;
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for Closed {}

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
        table.add_row(row.iter().map(|cell| tame(cell)));
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
    // To the nearest: a lease of an hour that began just now has not 59 minutes left.
    let of = |unit: u64| ms.saturating_add(unit / 2) / unit;
    match ms / 1000 {
        0..=119 => format!("{} s", ms / 1000),
        120..=7_169 => format!("{} min", of(60_000)),
        7_170..=170_999 => format!("{} h", of(3_600_000)),
        _ => format!("{} days", of(86_400_000)),
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
    let unit = &text[digits.len()..];
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return Err(format!("`{unit}` is no unit: use K, M, G or T")),
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

/// Reads an address to listen on, such as `127.0.0.1:7070`.
pub(crate) fn parse_address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| "give an address and a port, such as 127.0.0.1:7070 or [::1]:7070".to_owned())
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
    fn hints_are_for_who_types_commands() {
        let told = |code, hint: &str| hint_here(&Fault::new(code, "x", hint)).to_owned();
        for (code, theirs, ours) in [
            (Code::InvalidRequest, "see the endpoint in /v1/openapi.json", "--help"),
            (Code::NotFound, "see /v1/openapi.json", "--url"),
            (Code::Unauthenticated, "send `Authorization: Bearer` with an API key", "--key"),
            (Code::Paused, "resume it first", "`ringfence resume`"),
            (Code::NotFound, "see GET /v1/templates", "`ringfence template list`"),
        ] {
            let hint = told(code, theirs);
            assert!(hint.contains(ours) && !hint.contains("/v1/") && !hint.contains("Bearer"), "{hint}");
        }
        assert_eq!(told(Code::LimitReached, "ask for less"), "ask for less", "what is for everybody stays");
    }

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
    fn nothing_reaches_a_terminal_that_it_would_obey() {
        let title = "a\u{1b}]0;b\u{7}c\u{9b}2J\r\nd\u{7f}\u{202e}e\u{e0041}f";
        assert_eq!(tame(title), "a\u{fffd}]0;b\u{fffd}c\u{fffd}2J\u{fffd}\u{fffd}d\u{fffd}\u{fffd}e\u{fffd}f");
        assert_eq!(tame_lines("a\nb\tc\rd"), "a\nb\tc\u{fffd}d");
        assert_eq!(tame("naïve 日本 👩\u{200d}💻"), "naïve 日本 👩\u{200d}💻");
        assert_eq!(short("ab\u{1b}cd", 3), "ab\u{fffd}…");
        assert_eq!(short("abc", 3), "abc");
        // Whatever a cell holds, its row stays a row.
        let shown = table(&["name"], [vec!["x\ny\u{1b}[2J".to_owned()]].into_iter());
        assert_eq!(shown, "NAME\nx\u{fffd}y\u{fffd}[2J");
        // As JSON it is the same text, in other letters.
        let value = json!({ title: [title] });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let escaped = escaped(&text);
            assert!(!escaped.chars().any(|c| is_wild(c) && c != '\n'), "{escaped:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }

    #[test]
    fn sizes_are_printed_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(span(30_000), "30 s");
        assert_eq!(span(7 * 86_400_000), "7 days");
        assert_eq!([span(119_999), span(120_000), span(3_599_000)], ["119 s", "2 min", "60 min"]);
        assert_eq!([span(7_169_000), span(7_170_000), span(30 * 86_400_000 - 1)], ["119 min", "2 h", "30 days"]);
        assert_eq!([span(170_999_000), span(171_000_000), span(0)], ["47 h", "2 days", "0 s"]);
        assert!(parse_bytes("1X").unwrap_err().contains("`X`"));
    }
}
