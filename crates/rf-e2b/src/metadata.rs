//! How a filter by metadata is written in a query.
//!
//! A client percent-encodes every key and value, writes the pairs as a form (`k=v&k2=v2`, which encodes the `%` anew), and
//! puts that text percent-encoded into the query. So after the query's own decoding the text is decoded once more, cut at
//! `&` and `=`, and each part is decoded again:
//!
//! ```text
//! {"a": "b c"}  ─▶  a=b%20c  ─▶  a=b%2520c  ─▶  metadata=a%3Db%252520c
//! ```

use std::collections::BTreeMap;

/// Why a filter cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// A `%` without two hex digits after it, or bytes that are no UTF-8.
    #[error("the filter by metadata is not percent-encoded text")]
    Encoding,
    /// A part that is no `key=value`.
    #[error("the filter by metadata is not of the form `key=value&key=value`")]
    Pair,
}

/// Reads a filter as it stands in the query's value, which was decoded once. All pairs must match exactly; of two with
/// one key the later counts.
///
/// # Errors
/// [`MetadataError`].
pub fn filter(text: &str) -> Result<BTreeMap<String, String>, MetadataError> {
    let form = decode(text)?;
    let mut pairs = BTreeMap::new();
    for part in form.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or(MetadataError::Pair)?;
        if value.contains('=') {
            return Err(MetadataError::Pair);
        }
        pairs.insert(decode(key)?, decode(value)?);
    }
    Ok(pairs)
}

/// Decodes `%XX`, and `+` as a blank, once.
fn decode(text: &str) -> Result<String, MetadataError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or(MetadataError::Encoding);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).map_err(|_| MetadataError::Encoding)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| MetadataError::Encoding)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// Percent-encodes everything but unreserved characters (RFC 3986, section 2.3).
    fn encode(text: &str) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    }

    /// What stands in the query's value once the query was decoded.
    fn written(pairs: &BTreeMap<String, String>) -> String {
        let pair = |(key, value): (&String, &String)| format!("{}={}", encode(&encode(key)), encode(&encode(value)));
        pairs.iter().map(pair).collect::<Vec<_>>().join("&")
    }

    #[test]
    fn a_blank_comes_encoded_twice() {
        // As captured: `metadata=a%3Db%252520c`, decoded once.
        assert_eq!(filter("a=b%2520c").unwrap(), map(&[("a", "b c")]));
        assert_eq!(filter("test-key=test-value").unwrap(), map(&[("test-key", "test-value")]));
        assert_eq!(filter("user%3Dabc%26app%3Dprod").unwrap(), map(&[("user", "abc"), ("app", "prod")]));
        assert_eq!(filter("").unwrap(), map(&[]));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for wrong in ["a=%25zz", "a=%", "a=%4", "a=%ff", "a=%25ff"] {
            assert_eq!(filter(wrong), Err(MetadataError::Encoding), "{wrong}");
        }
        for wrong in ["a", "a&b=c", "a=b=c"] {
            assert_eq!(filter(wrong), Err(MetadataError::Pair), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_writes_comes_back(pairs in prop::collection::btree_map(".{0,12}", ".{0,12}", 0..6)) {
            prop_assert_eq!(filter(&written(&pairs)).unwrap(), pairs);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,64}") {
            let _ = filter(&text);
        }
    }
}
