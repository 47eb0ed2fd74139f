//! Which part of a file a request is for, and whether it is wanted at all (RFC 9110, sections 13 and 14), and in which
//! coding (section 12.5.3).

use axum::http::{HeaderMap, HeaderName, header};
use time::{OffsetDateTime, PrimitiveDateTime, macros::format_description};

/// What is to be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Bytes from here on, so many.
    Some(u64, u64),
    /// The client has it.
    NotModified,
    /// It was changed since the client allows.
    Failed,
    /// No byte of it is asked for.
    Unsatisfiable,
}

/// How an answer may be coded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Coding {
    /// As it is.
    Identity,
    /// With gzip, for it may not come as it is.
    Gzip,
    /// Neither.
    None,
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A date as HTTP writes it (RFC 9110, section 5.6.7), seconds since 1970. The two obsolete forms are not read: then the
/// header does not count.
fn date(text: &str) -> Option<i64> {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    PrimitiveDateTime::parse(text, format).ok().map(|time| time.assume_utc().unix_timestamp())
}

/// A second since 1970 as HTTP writes it.
pub(super) fn http_date(seconds: u64) -> Option<String> {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?.format(format).ok()
}

/// Whether a request asks for a part, or under a condition: then what it gets is never coded.
pub(super) fn is_special(headers: &HeaderMap) -> bool {
    [header::RANGE, header::IF_MODIFIED_SINCE, header::IF_NONE_MATCH, header::IF_RANGE]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// The part of a file of `size` bytes, last changed at `modified` (seconds since 1970), that a request is for.
pub(super) fn part(headers: &HeaderMap, size: u64, modified: u64) -> Part {
    let modified = i64::try_from(modified).unwrap_or(i64::MAX);
    if let Some(since) = text(headers, header::IF_UNMODIFIED_SINCE).and_then(date)
        && modified > since
    {
        return Part::Failed;
    }
    // Where there is a condition by tag the one by date does not count, and no file of ours has a tag.
    if !headers.contains_key(header::IF_NONE_MATCH)
        && text(headers, header::IF_MODIFIED_SINCE).and_then(date).is_some_and(|since| modified <= since)
    {
        return Part::NotModified;
    }
    if headers.contains_key(header::IF_RANGE) && text(headers, header::IF_RANGE).and_then(date) != Some(modified) {
        return Part::Whole;
    }
    let Some(range) = text(headers, header::RANGE) else { return Part::Whole };
    let Some(set) = range.strip_prefix("bytes=") else { return Part::Whole };
    // Several parts are answered by the whole, which is allowed.
    if set.contains(',') {
        return Part::Whole;
    }
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok());
    match set.trim().split_once('-') {
        Some(("", last)) => match number(last).flatten() {
            Some(0) => Part::Unsatisfiable,
            Some(_) if size == 0 => Part::Whole,
            Some(count) => Part::Some(size.saturating_sub(count), count.min(size)),
            None => Part::Whole,
        },
        Some((first, last)) => match (number(first).flatten(), last.is_empty(), number(last).flatten()) {
            (Some(first), ..) if first >= size => Part::Unsatisfiable,
            (Some(first), true, _) => Part::Some(first, size - first),
            (Some(first), false, Some(last)) if last >= first => Part::Some(first, last.min(size - 1) - first + 1),
            _ => Part::Whole,
        },
        None => Part::Whole,
    }
}

/// How an answer may be coded. As it is, wherever that is allowed: clients take it, and it costs nobody anything.
pub(super) fn coding(headers: &HeaderMap) -> Coding {
    let (mut identity, mut gzip, mut any) = (None, None, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for one in value.to_str().unwrap_or_default().split(',') {
            let (name, rest) = one.split_once(';').unwrap_or((one, ""));
            let refused = rest.split(';').any(|parameter| {
                let parameter = parameter.trim().to_ascii_lowercase();
                parameter.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
            });
            let slot = match name.trim().to_ascii_lowercase().as_str() {
                "identity" => &mut identity,
                "gzip" => &mut gzip,
                "*" => &mut any,
                _ => continue,
            };
            *slot = Some(!refused);
        }
    }
    if identity.or(any) != Some(false) {
        Coding::Identity
    } else if gzip.or(any) == Some(true) {
        Coding::Gzip
    } else {
        Coding::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn parts_of_a_file() {
        let of = |range: &str, size| part(&head(&[(header::RANGE, range)]), size, 0);
        assert_eq!(of("bytes=0-4", 10), Part::Some(0, 5));
        assert_eq!(of("bytes=5-", 10), Part::Some(5, 5));
        assert_eq!(of("bytes=5-99", 10), Part::Some(5, 5));
        assert_eq!(of("bytes=-3", 10), Part::Some(7, 3));
        assert_eq!(of("bytes=-99", 10), Part::Some(0, 10));
        assert_eq!(of("bytes=10-", 10), Part::Unsatisfiable);
        assert_eq!(of("bytes=-0", 10), Part::Unsatisfiable);
        assert_eq!(of("bytes=0-", 0), Part::Unsatisfiable);
        for ignored in ["bytes=4-2", "bytes=+1-2", "bytes=0-1,3-4", "lines=0-1", "bytes=x", "bytes=-"] {
            assert_eq!(of(ignored, 10), Part::Whole, "{ignored}");
        }
    }

    #[test]
    fn conditions_by_date() {
        let at = 1_700_000_000;
        let (same, before) = (http_date(at).unwrap(), http_date(at - 1).unwrap());
        assert_eq!(same, "Tue, 14 Nov 2023 22:13:20 GMT");
        let of = |pairs: &[(HeaderName, &str)]| part(&head(pairs), 10, at);
        assert_eq!(of(&[(header::IF_MODIFIED_SINCE, &same)]), Part::NotModified);
        assert_eq!(of(&[(header::IF_MODIFIED_SINCE, &before)]), Part::Whole);
        assert_eq!(of(&[(header::IF_UNMODIFIED_SINCE, &before)]), Part::Failed);
        assert_eq!(of(&[(header::IF_UNMODIFIED_SINCE, &same)]), Part::Whole);
        assert_eq!(of(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, &same)]), Part::Some(0, 2));
        assert_eq!(of(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, &before)]), Part::Whole);
        assert_eq!(of(&[(header::RANGE, "bytes=0-1"), (header::IF_RANGE, "\"tag\"")]), Part::Whole);
        assert_eq!(of(&[(header::IF_MODIFIED_SINCE, "yesterday")]), Part::Whole);
    }

    #[test]
    fn codings_are_taken_as_they_come() {
        let of = |text: &str| coding(&head(&[(header::ACCEPT_ENCODING, text)]));
        assert_eq!(coding(&HeaderMap::new()), Coding::Identity);
        for identity in ["gzip, deflate", "gzip", "*", "identity;q=0.5", "br;q=1", "*;q=0, identity"] {
            assert_eq!(of(identity), Coding::Identity, "{identity}");
        }
        for gzip in ["gzip, identity;q=0", "identity;q=0, *", "*;q=0, gzip;q=1"] {
            assert_eq!(of(gzip), Coding::Gzip, "{gzip}");
        }
        for none in ["identity;q=0", "*;q=0", "br, identity;q=0.0", "gzip;q=0, *;q=0"] {
            assert_eq!(of(none), Coding::None, "{none}");
        }
    }
}
