//! What of a request's and an answer's head goes on to the other side, and what does not.
//!
//! The two connections are two: whatever is about one of them (RFC 9110, section 7.6.1) ends here, and so do our own
//! credentials. Bodies are framed anew on each side from what was read, so no length or coding that a head claims can
//! make the two sides disagree on where a message ends.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
    },
    uri::PathAndQuery,
};
use rf_gate::SecretKind;

use crate::doors::e2b::target::{ACCESS_TOKEN, SANDBOX_ID, SANDBOX_PORT, TRAFFIC_TOKEN};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// What is about one connection alone.
const OF_ONE_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];
/// What only the front says of where a request came from: a client's own word is worth nothing.
const OF_THE_FRONT: [HeaderName; 7] =
    [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, FORWARDED_PORT, FORWARDED_PREFIX, REAL_IP];
/// Most names in `Connection` that are heeded; more is an attack and the request is refused.
const NAMED_MAX: usize = 32;

/// Where a request came from.
#[derive(Clone, Debug)]
pub(super) struct From<'a> {
    /// Whose connection.
    pub(super) peer: Option<IpAddr>,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// The host that the client named, with its port.
    pub(super) host: Option<&'a str>,
    /// What was before the path that goes on.
    pub(super) prefix: Option<&'a str>,
}

/// A protocol that both sides may go over to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(UPGRADE)?;
    let connection = |value: &HeaderValue| names(value).any(|name| name.eq_ignore_ascii_case("upgrade"));
    let wanted = headers.get_all(CONNECTION).iter().any(connection);
    // HTTP/2 without TLS would carry requests past everything that is done here to a head.
    let plain = asked.to_str().is_ok_and(|text| !text.split(',').any(|name| name.trim().eq_ignore_ascii_case("h2c")));
    (wanted && plain).then(|| asked.clone())
}

fn names(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Takes away what is about one connection alone, and whatever `Connection` names. False: it names too much.
#[must_use]
fn end_connection(headers: &mut HeaderMap) -> bool {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for name in names(value) {
            if named.len() == NAMED_MAX {
                return false;
            }
            // What the other side cannot do without is not the client's to take away.
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) if name != HOST && name != CONTENT_LENGTH => named.push(name),
                Ok(_) | Err(_) => {}
            }
        }
    }
    for name in OF_ONE_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
    true
}

/// Takes away what some programs take for a header that is decided here: where headers become variables (RFC 3875,
/// section 4.1.18), `X_Forwarded_For` is the same as `X-Forwarded-For`.
fn remove_shadows(headers: &mut HeaderMap) {
    let decided = |name: &str| {
        OF_THE_FRONT.iter().any(|ours| ours == name)
            || OF_ONE_CONNECTION.iter().any(|ours| ours == name)
            || CONTENT_LENGTH == name
    };
    let is_shadow = |name: &&HeaderName| name.as_str().contains('_') && decided(&name.as_str().replace('_', "-"));
    let shadows: Vec<HeaderName> = headers.keys().filter(is_shadow).cloned().collect();
    for name in shadows {
        headers.remove(name);
    }
}

/// HTTP/2 lets a client send its cookies one by one, and browsers do; before HTTP/1.1 they become one field again, as its
/// programs read the first alone (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(one) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(COOKIE, one);
    }
}

/// Makes a client's head into one for the program. `exact` is the length of its body where that is known. False: the
/// head is refused.
#[must_use]
pub(super) fn to_program(headers: &mut HeaderMap, host: HeaderValue, exact: Option<u64>, from: &From<'_>) -> bool {
    let trailers =
        headers.get_all(TE).iter().any(|value| names(value).any(|name| name.eq_ignore_ascii_case("trailers")));
    let switch = upgrade(headers);
    if !end_connection(headers) {
        return false;
    }
    for name in OF_THE_FRONT {
        headers.remove(name);
    }
    remove_shadows(headers);
    // Answered here, as the body is read when the program takes it.
    headers.remove(EXPECT);
    for name in [ACCESS_TOKEN, TRAFFIC_TOKEN, SANDBOX_ID, SANDBOX_PORT] {
        headers.remove(name);
    }
    // A key of ours never gets into a sandbox; one of the program's own is none of our business.
    for name in [API_KEY, AUTHORIZATION] {
        if headers.get_all(&name).iter().any(holds_our_secret) {
            headers.remove(&name);
        }
    }
    join_cookies(headers);
    match exact {
        // Nothing is said of a body that nobody sends; some servers wait for it otherwise.
        Some(0) if !headers.contains_key(CONTENT_LENGTH) => {}
        Some(length) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        None => drop(headers.remove(CONTENT_LENGTH)),
    }
    headers.insert(HOST, host);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(switch) = switch {
        headers.insert(UPGRADE, switch);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let said = [
        (FORWARDED_FOR, from.peer.and_then(|peer| text(&peer.to_canonical().to_string()))),
        (FORWARDED_HOST, from.host.and_then(text)),
        (FORWARDED_PROTO, Some(HeaderValue::from_static(from.scheme))),
        (FORWARDED_PREFIX, from.prefix.and_then(text)),
    ];
    for (name, value) in said {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    true
}

/// Whether a header holds a key or session of ours.
fn holds_our_secret(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|text| text.split([' ', ',']).any(|word| SecretKind::of(word).is_some()))
}

/// Makes a program's head into one for the client. `switching` keeps what an answer of 101 needs.
pub(super) fn to_client(headers: &mut HeaderMap, switching: bool) -> bool {
    let switch = headers.get(UPGRADE).cloned().filter(|_| switching);
    if !end_connection(headers) {
        return false;
    }
    if let Some(switch) = switch {
        headers.insert(UPGRADE, switch);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    true
}

/// Bytes of the fields of a head as HTTP/1.1 writes them.
pub(super) fn length(headers: &HeaderMap) -> usize {
    const BETWEEN: usize = ": \r\n".len();
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + BETWEEN).sum()
}

/// A path as the program is asked for it: what is after `prefix`, beginning with a slash, with the query.
pub(super) fn path(uri: &Uri, prefix: &str) -> Option<Uri> {
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = whole.strip_prefix(prefix)?;
    let text = match rest.as_bytes().first() {
        Some(b'/') => rest.to_owned(),
        // `*`, which asks about the server itself.
        Some(b'*') if rest == "*" => rest.to_owned(),
        Some(b'?') | None => format!("/{rest}"),
        Some(_) => return None,
    };
    text.parse::<PathAndQuery>().ok().map(Uri::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: From<'_> = From { peer: None, scheme: "http", host: None, prefix: None };

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn host() -> HeaderValue {
        HeaderValue::from_static("h")
    }

    #[test]
    fn what_is_about_one_connection_ends_here() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "x-other, host, content-length"),
            ("x-private", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("expect", "100-continue"),
            ("content-length", "5"),
            ("x-kept", "1"),
            ("cookie", "a=b"),
        ]);
        assert!(to_program(&mut headers, host(), Some(5), &FROM));
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "cookie", "host", "x-forwarded-proto", "x-kept"]);
    }

    #[test]
    fn no_credential_of_ours_gets_in_and_the_programs_own_does() {
        let ours = rf_gate::Secret::mint(SecretKind::KeyE2b);
        let session = rf_gate::Secret::mint(SecretKind::Session);
        let mut headers = map(&[
            ("x-access-token", "t"),
            ("e2b-traffic-access-token", "t"),
            ("e2b-sandbox-id", "i"),
            ("e2b-sandbox-port", "1"),
            ("x-api-key", ours.reveal()),
            ("authorization", &format!("Bearer {}", session.reveal())),
        ]);
        assert!(to_program(&mut headers, host(), Some(0), &FROM));
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>().len(), 2, "{headers:?}");
        let mut own = map(&[("x-api-key", "sk-theirs"), ("authorization", "Bearer theirs")]);
        assert!(to_program(&mut own, host(), Some(0), &FROM));
        assert_eq!(
            (&own["x-api-key"], &own["authorization"]),
            (&"sk-theirs".parse().unwrap(), &"Bearer theirs".parse().unwrap())
        );
    }

    #[test]
    fn where_a_request_came_from_is_our_word_alone() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-port", "1"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded_proto", "https"),
            ("transfer_encoding", "chunked"),
            ("content_length", "7"),
            ("x_own", "1"),
        ]);
        let from = From {
            peer: Some("::ffff:192.0.2.9".parse().unwrap()),
            scheme: "https",
            host: Some("3000-x.box.example.com"),
            prefix: Some("/v1/x"),
        };
        assert!(to_program(&mut headers, host(), None, &from));
        let said = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(said("x-forwarded-for"), ["192.0.2.9"]);
        assert_eq!(said("x-forwarded-proto"), ["https"]);
        assert_eq!(said("x-forwarded-host"), ["3000-x.box.example.com"]);
        assert_eq!(said("x-forwarded-prefix"), ["/v1/x"]);
        for gone in ["forwarded", "x-real-ip", "x-forwarded-port"] {
            assert!(said(gone).is_empty(), "{gone}");
        }
        let other = headers.keys().map(HeaderName::as_str).filter(|name| name.contains('_')).collect::<Vec<_>>();
        assert_eq!(other, ["x_own"], "also where it is spelled so that some programs take it for the same");
    }

    #[test]
    fn a_length_is_that_of_the_body_and_not_what_a_head_claims() {
        let claimed = |exact| {
            let mut headers = map(&[("content-length", "5"), ("content-length", "6")]);
            assert!(to_program(&mut headers, host(), exact, &FROM));
            headers.get_all(CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(claimed(Some(7)), ["7"]);
        assert_eq!(claimed(Some(0)), ["0"]);
        assert!(claimed(None).is_empty());
    }

    #[test]
    fn an_upgrade_is_asked_for_twice_and_never_to_h2c() {
        let asks = |pairs: &[(&'static str, &str)]| upgrade(&map(pairs)).is_some();
        assert!(asks(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(asks(&[("connection", "upgrade"), ("upgrade", "anything/2")]));
        assert!(!asks(&[("upgrade", "websocket")]));
        assert!(!asks(&[("connection", "upgrade")]));
        for h2c in ["h2c", "H2C", "websocket, h2c"] {
            assert!(!asks(&[("connection", "upgrade, http2-settings"), ("upgrade", h2c)]), "{h2c}");
        }
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("te", "trailers, deflate")]);
        assert!(to_program(&mut headers, host(), Some(0), &FROM));
        assert_eq!(
            (&headers[CONNECTION], &headers[UPGRADE]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        let mut answer = map(&[("connection", "Upgrade, x-gone"), ("upgrade", "websocket"), ("x-gone", "1")]);
        assert!(to_client(&mut answer, true));
        assert_eq!((answer.len(), &answer[UPGRADE]), (2, &"websocket".parse().unwrap()));
        let mut plain =
            map(&[("connection", "close"), ("upgrade", "h3"), ("transfer-encoding", "chunked"), ("x", "1")]);
        assert!(to_client(&mut plain, false));
        assert_eq!(plain.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn a_connection_that_names_too_much_is_refused() {
        let many = (0..=NAMED_MAX).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",");
        assert!(!to_program(&mut map(&[("connection", &many)]), host(), None, &FROM));
    }

    #[test]
    fn a_path_goes_on_as_it_is_without_what_was_before() {
        let of = |uri: &str, prefix: &str| path(&uri.parse().unwrap(), prefix).map(|uri| uri.to_string());
        assert_eq!(of("/a/../b?x=1&y=%2F", "").as_deref(), Some("/a/../b?x=1&y=%2F"));
        assert_eq!(of("http://host/a?b", "").as_deref(), Some("/a?b"));
        assert_eq!(of("*", "").as_deref(), Some("*"));
        assert_eq!(of("/p/80", "/p/80").as_deref(), Some("/"));
        assert_eq!(of("/p/80?x", "/p/80").as_deref(), Some("/?x"));
        assert_eq!(of("/p/80//x", "/p/80").as_deref(), Some("//x"));
        assert_eq!(of("/p/801", "/p/80"), None);
        assert_eq!(of("/q", "/p"), None);
    }
}
