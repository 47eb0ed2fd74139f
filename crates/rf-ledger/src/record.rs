//! What is recorded: an [`Entry`] as given, a [`Record`] as read back.

use std::borrow::Cow;

use rf_types::{
    Code, Enforcement, Fault, Layer, PlaceRef, RequestId, Usage, UserId, Username, layer::Held, units::UnixMs,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::chain::{LINE_BYTES_MAX, hex};

/// Most bytes of an entry's `details` as JSON; larger ones are recorded by their size and digest.
const DETAILS_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of an entry's `enforcement` as JSON.
const ENFORCEMENT_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of an entry's other texts, each.
const TEXT_BYTES_MAX: usize = 512;

/// By what credential somebody asked. Never holds the secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct By {
    /// The kind of credential: `key`, `token`, `session`, `machine`, `local` and so on; at most 512 bytes.
    pub kind: Cow<'static, str>,
    /// Which one: a key's or session's id, a token's issuer; at most 512 bytes.
    pub id: String,
}

impl By {
    /// A credential of `kind` with the public name `id`.
    pub fn new(kind: impl Into<Cow<'static, str>>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into() }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The fault's code, or `None` when it went well.
    pub code: Option<Code>,
    /// From the request's arrival to its end, microseconds.
    pub duration_us: u64,
    /// What an exec used.
    pub usage: Option<Usage>,
    /// An exec's exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended an exec.
    pub signal: Option<i32>,
}

/// What happened, and what is known of it at that moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The gate decided; `None` is a yes, and a refusal has its code.
    Decision(Option<Code>),
    /// An operation is about to start.
    Intent,
    /// An operation ended.
    Result(Outcome),
    /// Something that nobody asked for: a start, a recovery, a lease that ran out.
    Note,
}

/// What kind of record, for filters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The gate decided.
    Decision,
    /// An operation is about to start.
    Intent,
    /// An operation ended.
    Result,
    /// Something that nobody asked for.
    Note,
}

impl Event {
    /// What kind of record it makes.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Decision(_) => Kind::Decision,
            Self::Intent => Kind::Intent,
            Self::Result(_) => Kind::Result,
            Self::Note => Kind::Note,
        }
    }
}

/// One thing to record. Secrets are put in only by way of a [`crate::Redactor`].
#[derive(Clone, Debug)]
pub struct Entry {
    /// When, by the caller's clock.
    pub at: UnixMs,
    /// In which request.
    pub request: Option<RequestId>,
    /// Whose: the wall that reading is held to. `None` is the operator's or nobody's.
    pub user: Option<UserId>,
    /// The user's name.
    pub username: Option<Username>,
    /// By what credential.
    pub by: Option<By>,
    /// What was to be done: the action's text, such as `sandbox_create`; at most 512 bytes.
    pub action: Cow<'static, str>,
    /// What happened.
    pub event: Event,
    /// Where.
    pub place: Option<PlaceRef>,
    /// The thing it is about: the text of an id, a template's name; at most 512 bytes.
    pub subject: Option<String>,
    /// More, such as argv and byte counts; at most 16 KiB as JSON.
    pub details: Map<String, Value>,
    /// What holds the sandbox; see [`Entry::enforcement`].
    pub enforcement: Option<Value>,
}

impl Entry {
    /// An entry with only what every one has.
    pub fn new(at: UnixMs, action: impl Into<Cow<'static, str>>, event: Event) -> Self {
        Self {
            at,
            request: None,
            user: None,
            username: None,
            by: None,
            action: action.into(),
            event,
            place: None,
            subject: None,
            details: Map::new(),
            enforcement: None,
        }
    }

    /// Of this request.
    #[must_use]
    pub fn request(mut self, request: RequestId) -> Self {
        self.request = Some(request);
        self
    }

    /// Of this user.
    #[must_use]
    pub fn user(mut self, user: UserId, username: Username) -> Self {
        self.user = Some(user);
        self.username = Some(username);
        self
    }

    /// By this credential.
    #[must_use]
    pub fn by(mut self, by: By) -> Self {
        self.by = Some(by);
        self
    }

    /// In this place.
    #[must_use]
    pub fn place(mut self, place: PlaceRef) -> Self {
        self.place = Some(place);
        self
    }

    /// About this thing.
    #[must_use]
    pub fn subject(mut self, subject: impl ToString) -> Self {
        self.subject = Some(subject.to_string());
        self
    }

    /// With one more detail.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// With what holds the sandbox: which layers are held fully, partly and not, and a digest of the whole report, which
    /// names the evidence too.
    #[must_use]
    pub fn enforcement(mut self, enforcement: &Enforcement) -> Self {
        let full = serde_json::to_vec(enforcement).expect("a report is plain data");
        let held = |wanted: fn(&Held) -> bool| -> Vec<Layer> {
            enforcement.layers.iter().filter(|report| wanted(&report.held)).map(|report| report.layer).collect()
        };
        self.enforcement = Some(json!({
            "level": enforcement.level,
            "mode": enforcement.mode,
            "full": held(|held| matches!(held, Held::Full)),
            "partial": held(|held| matches!(held, Held::Partial { .. })),
            "absent": held(|held| matches!(held, Held::Absent)),
            "blake3": hex(blake3::hash(&full).as_bytes()),
        }));
        self
    }

    /// The entry as JSON without braces and without its place in the chain, its texts held to their limits.
    ///
    /// # Errors
    /// `internal` when it does not fit a line even so.
    pub(crate) fn fields(&self) -> Result<Vec<u8>, Fault> {
        let (allowed, outcome) = match self.event {
            Event::Decision(code) => (Some(code.is_none()), Some(Outcome { code, ..Outcome::default() })),
            Event::Result(outcome) => (None, Some(outcome)),
            Event::Intent | Event::Note => (None, None),
        };
        let timed = matches!(self.event, Event::Result(_));
        let fields = Fields {
            at: self.at,
            request: self.request,
            user: self.user,
            username: self.username.as_ref(),
            by: self.by.as_ref().map(|by| ByFields { kind: bounded(&by.kind), id: bounded(&by.id) }),
            action: bounded(&self.action),
            kind: self.event.kind(),
            allowed,
            code: outcome.and_then(|outcome| outcome.code),
            duration_us: outcome.filter(|_| timed).map(|outcome| outcome.duration_us),
            usage: outcome.and_then(|outcome| outcome.usage),
            exit_code: outcome.and_then(|outcome| outcome.exit_code),
            signal: outcome.and_then(|outcome| outcome.signal),
            place: self.place,
            subject: self.subject.as_deref().map(bounded),
            details: details_of(&self.details)?,
            enforcement: self
                .enforcement
                .as_ref()
                .map(|value| bounded_value(value, ENFORCEMENT_BYTES_MAX))
                .transpose()?,
        };
        let mut json = serde_json::to_vec(&fields).map_err(|error| unfit(&error.to_string()))?;
        // Room for `seq`, `prev`, `hash`, `seal` and their keys.
        if json.len() + 300 > LINE_BYTES_MAX {
            return Err(unfit("it is too long for a line"));
        }
        json.pop();
        json.remove(0);
        Ok(json)
    }
}

fn unfit(why: &str) -> Fault {
    Fault::new(Code::Internal, format!("this cannot be recorded: {why}"), "")
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn details_of(details: &Map<String, Value>) -> Result<Option<Box<serde_json::value::RawValue>>, Fault> {
    if details.is_empty() {
        return Ok(None);
    }
    let json = serde_json::value::to_raw_value(details).map_err(|error| unfit(&error.to_string()))?;
    oversize(json, DETAILS_BYTES_MAX).map(Some)
}

fn bounded_value(value: &Value, bytes_max: usize) -> Result<Box<serde_json::value::RawValue>, Fault> {
    oversize(serde_json::value::to_raw_value(value).map_err(|error| unfit(&error.to_string()))?, bytes_max)
}

/// `json`, or what stands for it when it is too large: its size and digest, so that what is recorded stays true.
fn oversize(
    json: Box<serde_json::value::RawValue>,
    bytes_max: usize,
) -> Result<Box<serde_json::value::RawValue>, Fault> {
    let text = json.get();
    if text.len() <= bytes_max {
        return Ok(json);
    }
    let digest = hex(blake3::hash(text.as_bytes()).as_bytes());
    serde_json::value::to_raw_value(&json!({ "oversize_bytes": text.len(), "blake3": digest }))
        .map_err(|error| unfit(&error.to_string()))
}

#[derive(Serialize)]
struct ByFields<'a> {
    kind: &'a str,
    id: &'a str,
}

/// The order of a record's keys between `seq` and `prev`.
#[derive(Serialize)]
struct Fields<'a> {
    at: UnixMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a Username>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<ByFields<'a>>,
    action: &'a str,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<PlaceRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Box<serde_json::value::RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcement: Option<Box<serde_json::value::RawValue>>,
}

/// One record as it stands in the ledger. The keys of its JSON are these names.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// Its number, from 1 without a gap.
    pub seq: u64,
    /// When.
    pub at: UnixMs,
    /// In which request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// The user's name at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<Username>,
    /// By what credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// What was to be done.
    pub action: String,
    /// What kind of record.
    pub kind: Kind,
    /// A decision: whether it was a yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<bool>,
    /// The fault's code of a refusal or failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// A result: how long it took, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// What an exec used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// An exec's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended an exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PlaceRef>,
    /// The thing it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// More.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
    /// What holds the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Value>,
    /// The hash of the record before it; 64 hex digits.
    pub prev: String,
    /// The hash of this one; 64 hex digits.
    pub hash: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversize_detail_is_recorded_by_its_digest() {
        let entry = Entry::new(1, "exec", Event::Intent).detail("argv", "x".repeat(DETAILS_BYTES_MAX + 1));
        let text = String::from_utf8(entry.fields().unwrap()).unwrap();
        assert!(text.contains("oversize_bytes") && text.len() < 400, "{text}");
        let fits = Entry::new(1, "exec", Event::Intent).detail("argv", "x".repeat(DETAILS_BYTES_MAX - 11));
        assert!(fits.fields().unwrap().len() > DETAILS_BYTES_MAX);
    }

    #[test]
    fn the_largest_entry_fits_a_line() {
        // Every character that JSON writes longest.
        let worst = "\u{1}".repeat(TEXT_BYTES_MAX * 2);
        let mut entry = Entry::new(u64::MAX, worst.clone(), Event::Result(Outcome::default()))
            .subject(&worst)
            .by(By::new(worst.clone(), worst))
            .detail("a", "x".repeat(DETAILS_BYTES_MAX - 8));
        entry.enforcement = Some(Value::String("x".repeat(ENFORCEMENT_BYTES_MAX - 2)));
        assert!(entry.fields().is_ok());
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "ä".repeat(TEXT_BYTES_MAX);
        assert_eq!(bounded(&text).len(), TEXT_BYTES_MAX);
        assert_eq!(bounded(&format!("a{text}")).len(), TEXT_BYTES_MAX - 1);
    }

    #[test]
    fn keys_stand_in_their_order() {
        let entry = Entry::new(5, "exec", Event::Decision(Some(Code::Forbidden)))
            .request(RequestId::from_bits(1))
            .user(UserId::from_bits(2), "ann".parse().unwrap())
            .by(By::new("key", "key_1"))
            .subject("exe_1")
            .detail("z", 1)
            .detail("a", 2);
        let text = String::from_utf8(entry.fields().unwrap()).unwrap();
        let request = RequestId::from_bits(1);
        let user = UserId::from_bits(2);
        assert_eq!(
            text,
            format!(
                r#""at":5,"request":"{request}","user":"{user}","username":"ann","by":{{"kind":"key","id":"key_1"}},"#
            ) + r#""action":"exec","kind":"decision","allowed":false,"code":"forbidden","subject":"exe_1","#
                + r#""details":{"a":2,"z":1}"#
        );
    }
}
