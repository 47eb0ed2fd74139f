//! Reads what a request brings, within bounds, and says what is wrong with it in words of the house.

use std::{str::FromStr, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Query},
    http::{HeaderMap, Request, Uri, header},
};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use rf_types::{Code, Fault};
use serde::de::DeserializeOwned;

use crate::{app::App, config::DoorConfig, refusal::Refusal, room::Room};

/// Longest message about a malformed body, characters: a name in it is the client's.
const MESSAGE_CHARS_MAX: usize = 400;

/// A JSON body, read by [`Intake::json`]: as a handler's last argument, and so only for who was let in.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequest<App> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request<Body>, app: &App) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        Ok(Self(app.intake().json(&parts.headers, body).await?))
    }
}

/// The bounds of reading, shared by all requests.
#[derive(Clone, Debug)]
pub struct Intake {
    json_bytes_max: usize,
    body_timeout: Duration,
    room: Room,
}

impl Intake {
    /// The bounds of `config`.
    #[must_use]
    pub fn new(config: &DoorConfig) -> Self {
        Self {
            json_bytes_max: config.json_bytes_max,
            body_timeout: Duration::from_millis(config.body_timeout_ms),
            room: Room::default(),
        }
    }

    /// The room that bodies, inputs and outputs share.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Reads a JSON body. The media type is not looked at: a credential is a header of its own, so no form of a
    /// foreign page can send one.
    ///
    /// # Errors
    /// `invalid_request` for what is not JSON of this shape, `too_large`, `timed_out`, `server_busy`.
    pub async fn json<T: DeserializeOwned>(&self, headers: &HeaderMap, body: Body) -> Result<T, Fault> {
        parse(&self.bytes(headers, body).await?)
    }

    /// Reads a whole body within the bounds for JSON.
    ///
    /// # Errors
    /// `too_large`, `timed_out`, `server_busy`, and `invalid_request` when the client broke off.
    pub async fn bytes(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, Fault> {
        let max = self.json_bytes_max;
        let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > max as u64) {
            return Err(too_large(max as u64));
        }
        match tokio::time::timeout(self.body_timeout, self.collect(body, max)).await {
            Ok(result) => result,
            Err(_) => Err(Fault::new(
                Code::TimedOut,
                format!("the body did not come within {} ms", self.body_timeout.as_millis()),
                "send the body at once",
            )),
        }
    }

    async fn collect(&self, mut body: Body, max: usize) -> Result<Bytes, Fault> {
        let mut whole = BytesMut::new();
        let mut first = Bytes::new();
        let mut share = self.room.share();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Fault::invalid("the connection broke within the body"))?;
            let Ok(data) = frame.into_data() else { continue };
            if first.is_empty() && whole.is_empty() {
                first = data;
            } else {
                whole.extend_from_slice(&std::mem::take(&mut first));
                whole.extend_from_slice(&data);
            }
            let length = whole.len() + first.len();
            if length > max {
                return Err(too_large(max as u64));
            }
            if !share.grow(length) {
                return Err(no_room());
            }
        }
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    }
}

/// The fault for what there is no memory for now.
#[must_use]
pub fn no_room() -> Fault {
    Fault::new(Code::ServerBusy, "too much is held in memory at once", "try again in a moment, or send less at once")
}

/// Reads JSON. Nothing at all is the object without fields, so that a call that needs none can be made with none.
///
/// # Errors
/// `invalid_request` naming the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    // A list of values in the order of our fields would be taken too, and would break with the next field.
    if text.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Fault::invalid("the body must be one JSON object"));
    }
    serde_json::from_slice(text).map_err(|error| malformed("the body is not what this endpoint takes", &error))
}

/// The fault for a body past a bound.
#[must_use]
pub fn too_large(max: u64) -> Fault {
    Fault::new(
        Code::TooLarge,
        format!("the body is longer than {max} bytes"),
        "send less; files go to the files endpoints, which stream",
    )
}

/// The fault for an upload that came to a halt.
#[must_use]
pub fn too_slow(idle: Duration) -> Fault {
    Fault::new(Code::TimedOut, format!("no bytes came for {} ms", idle.as_millis()), "send the body steadily")
}

/// Reads the query.
///
/// # Errors
/// `invalid_request` naming the field.
pub fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Fault> {
    Query::<T>::try_from_uri(uri)
        .map(|Query(value)| value)
        .map_err(|error| malformed("the query is not what this endpoint takes", &source(&error)))
}

/// Reads an id from the path; what is no id names nothing, so it answers as a thing that does not exist.
///
/// # Errors
/// `not_found`.
pub fn id<T: FromStr>(what: &str, text: &str) -> Result<T, Fault> {
    text.parse().map_err(|_| Fault::not_found(what))
}

/// The innermost cause, which names the field.
fn source<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut at = error;
    while let Some(next) = at.source() {
        at = next;
    }
    at
}

/// Takes the names of our types out of a message: they mean nothing to a client.
fn without_types(text: &str) -> String {
    // What the client wrote may come before it; what was expected is ours, and last.
    let Some((before, expected)) = text.rsplit_once("expected ") else {
        return text.replace("invalid digit found in string", "it is no whole number");
    };
    let (expected, rest) = expected.split_at(expected.find(" at line").unwrap_or(expected.len()));
    let expected = match expected {
        "u64" | "u32" | "u16" | "u8" | "usize" => "a whole number from 0",
        "i64" | "i32" | "i16" => "a whole number",
        "f64" | "f32" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "`true` or `false`",
        name if name.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{before}expected {expected}{rest}").replacen("invalid type: sequence", "invalid type: list", 1).replacen(
        "invalid type: map",
        "invalid type: object",
        1,
    )
}

fn malformed(what: &str, why: &dyn std::fmt::Display) -> Fault {
    let mut message = format!("{what}: {}", without_types(&why.to_string()));
    if let Some((cut, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
        message.truncate(cut);
        message.push('…');
    }
    Fault::invalid(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intake() -> Intake {
        Intake::new(&DoorConfig { json_bytes_max: 200 << 10, body_timeout_ms: 100, ..DoorConfig::default() })
    }

    #[tokio::test]
    async fn a_body_past_the_bound_is_refused_declared_or_not() {
        let headers = HeaderMap::new();
        let long = vec![b'x'; (200 << 10) + 1];
        let fault = intake().bytes(&headers, Body::from(long)).await.unwrap_err();
        assert_eq!(fault.code, Code::TooLarge);
        let mut declared = HeaderMap::new();
        declared.insert(header::CONTENT_LENGTH, "999999999".parse().unwrap());
        assert_eq!(intake().bytes(&declared, Body::empty()).await.unwrap_err().code, Code::TooLarge);
        let exact = vec![b'x'; 200 << 10];
        assert_eq!(intake().bytes(&headers, Body::from(exact)).await.unwrap().len(), 200 << 10);
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_whole() {
        let pieces = (0..1000u32).map(|n| Ok::<_, std::io::Error>(Bytes::from(vec![n as u8; 150])));
        let body = Body::from_stream(futures::stream::iter(pieces));
        let whole = intake().bytes(&HeaderMap::new(), body).await.unwrap();
        assert_eq!(whole.len(), 150_000);
        assert_eq!(whole[150 * 999], 231);
    }

    #[tokio::test]
    async fn a_body_that_never_ends_times_out() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(intake().bytes(&HeaderMap::new(), body).await.unwrap_err().code, Code::TimedOut);
    }

    #[tokio::test]
    async fn large_bodies_share_a_bounded_room() {
        let intake = intake();
        let free = intake.room.free_kib();
        let mut all = intake.room.share();
        assert!(all.grow((free + 64) << 10), "64 KiB of each are free");
        let body = || Body::from(vec![b'x'; 100 << 10]);
        assert_eq!(intake.bytes(&HeaderMap::new(), body()).await.unwrap_err().code, Code::ServerBusy);
        drop(all);
        assert!(intake.bytes(&HeaderMap::new(), body()).await.is_ok());
        assert_eq!(intake.room.free_kib(), free);
    }

    #[test]
    fn what_is_expected_is_said_in_words_of_json() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            #[serde(rename = "count")]
            _count: Option<u64>,
            #[serde(rename = "list")]
            _list: Option<Vec<String>>,
            #[serde(rename = "map")]
            _map: Option<std::collections::BTreeMap<String, String>>,
            #[serde(rename = "flag")]
            _flag: Option<bool>,
        }
        for (wrong, said) in [
            (r#"{"count":"1"}"#, "invalid type: string \"1\", expected a whole number from 0 at line"),
            (r#"{"count":-1}"#, "invalid value: integer `-1`, expected a whole number from 0 at line"),
            (r#"{"list":"x"}"#, "expected a list at line"),
            (r#"{"map":[]}"#, "invalid type: list, expected an object at line"),
            (r#"{"flag":7}"#, "expected `true` or `false` at line"),
            (r#"{"flag":"expected u64"}"#, "string \"expected u64\", expected `true` or `false` at line"),
        ] {
            let fault = parse::<Asked>(wrong.as_bytes()).unwrap_err();
            assert!(fault.message.contains(said), "{wrong}: {}", fault.message);
        }
        let uri = "/x?count=x".parse().unwrap();
        let fault = query::<Asked>(&uri).unwrap_err();
        assert!(fault.message.ends_with("count: it is no whole number"), "{}", fault.message);
    }

    #[test]
    fn no_message_names_a_type_of_ours() {
        #[derive(Debug, serde::Deserialize)]
        struct Secretive {
            #[serde(rename = "inner")]
            _inner: Option<Inner>,
        }
        #[derive(Debug, serde::Deserialize)]
        struct Inner {}
        for wrong in ["[]", "null", "7", r#"{"inner":7}"#, r#"{"inner":"x"}"#] {
            let fault = parse::<Secretive>(wrong.as_bytes()).unwrap_err();
            assert!(!fault.message.contains("Inner") && !fault.message.contains("Secretive"), "{}", fault.message);
        }
    }

    #[tokio::test]
    async fn a_clients_long_name_does_not_come_back_whole() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}
        let body = format!("{{\"{}\":1}}", "ä".repeat(5000));
        let fault = intake().json::<Empty>(&HeaderMap::new(), Body::from(body)).await.unwrap_err();
        assert!(fault.message.chars().count() <= MESSAGE_CHARS_MAX + 1);
    }
}
