//! `multipart/form-data` (RFC 7578, RFC 2046 section 5.1) as it comes: parts and their bytes one after the other, in
//! constant memory. A part's file name is taken as it is written, for it is the whole path.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};
use rf_types::Fault;

use super::files::Source;

/// Longest boundary (RFC 2046, section 5.1.1).
const BOUNDARY_MAX: usize = 70;
/// Most bytes of a part's head. Chosen: a path of 4 KiB, each byte quoted, and more.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Most parts of one body. Chosen.
const PARTS_MAX: usize = 10_000;

/// A body taken apart.
pub(super) struct Multipart {
    source: Source,
    /// `CR LF -- boundary`.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    ended: bool,
    state: State,
    parts: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Before the first delimiter.
    Preamble,
    /// Within a part's bytes.
    Content,
    /// After a delimiter.
    Between,
    /// After the last.
    Over,
}

/// A part's head.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Part {
    /// The field's name.
    pub(super) name: String,
    /// The file's, if it is one.
    pub(super) filename: Option<String>,
}

fn malformed(what: &str) -> Fault {
    Fault::invalid(format!("error reading form: {what}"))
}

impl Multipart {
    /// Takes apart what `content_type` says is a form.
    ///
    /// # Errors
    /// `invalid_request` without a boundary.
    pub(super) fn new(source: Source, content_type: &str) -> Result<Self, Fault> {
        let boundary = parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty());
        let boundary = boundary.ok_or_else(|| malformed("no multipart boundary param in Content-Type"))?;
        if boundary.len() > BOUNDARY_MAX || boundary.contains(['\r', '\n']) {
            return Err(malformed("the boundary is none"));
        }
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        // The first delimiter may be the very beginning, without the line's end before it.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { source, delimiter, buffer, ended: false, state: State::Preamble, parts: 0 })
    }

    async fn fill(&mut self) -> Result<(), Fault> {
        match self.source.next().await? {
            Some(piece) => self.buffer.extend_from_slice(&piece),
            None => self.ended = true,
        }
        Ok(())
    }

    /// The next part; what is left of the one before is passed over.
    pub(super) async fn part(&mut self) -> Result<Option<Part>, Fault> {
        loop {
            match self.state {
                State::Preamble | State::Content => while self.piece().await?.is_some() {},
                State::Between => {
                    while self.buffer.len() < 2 {
                        if self.ended {
                            return Err(malformed("unexpected EOF"));
                        }
                        self.fill().await?;
                    }
                    if self.buffer.starts_with(b"--") {
                        self.state = State::Over;
                        continue;
                    }
                    return self.head().await.map(Some);
                }
                State::Over => {
                    // To its end, so that the connection can be used again.
                    while !self.ended {
                        self.buffer.clear();
                        self.fill().await?;
                    }
                    return Ok(None);
                }
            }
        }
    }

    async fn head(&mut self) -> Result<Part, Fault> {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(malformed("too many parts"));
        }
        // No byte is looked at twice, however small the pieces are that it comes in.
        let mut from = 0;
        let end = loop {
            if let Some(at) = find(&self.buffer[from..], HEAD_END) {
                break from + at;
            }
            from = self.buffer.len().saturating_sub(HEAD_END.len() - 1);
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(malformed("a part's head is too long"));
            }
            if self.ended {
                return Err(malformed("unexpected EOF"));
            }
            self.fill().await?;
        };
        let head = self.buffer.split_to(end);
        self.buffer.advance(HEAD_END.len());
        self.state = State::Content;
        let head = String::from_utf8_lossy(&head);
        let disposition = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then(|| value.trim().to_owned())
        });
        let disposition = disposition.unwrap_or_default();
        Ok(Part {
            name: parameter(&disposition, "name").unwrap_or_default(),
            filename: parameter(&disposition, "filename"),
        })
    }

    /// The next bytes of the part in hand; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        if !matches!(self.state, State::Preamble | State::Content) {
            return Ok(None);
        }
        loop {
            if let Some(at) = find(&self.buffer, &self.delimiter) {
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at).freeze()));
                }
                self.buffer.advance(self.delimiter.len());
                self.state = State::Between;
                return Ok(None);
            }
            // A delimiter may have begun in the last bytes.
            let kept = self.delimiter.len() - 1;
            if self.buffer.len() > kept {
                let whole = self.buffer.len() - kept;
                return Ok(Some(self.buffer.split_to(whole).freeze()));
            }
            if self.ended {
                return Err(malformed("unexpected EOF"));
            }
            self.fill().await?;
        }
    }
}

/// Where `needle` begins first.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|byte| byte == first) {
        let at = from + at;
        if hay[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// A parameter of a header's value: a token or a quoted string; `name*` with its bytes in percent signs goes before.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut plain = None;
    let mut rest = value.split_once(';')?.1;
    let mut seen = VecDeque::new();
    while !rest.trim_start().is_empty() {
        let trimmed = rest.trim_start();
        let Some((name, after)) = trimmed.split_once('=') else { break };
        let after = after.trim_start();
        let (text, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted),
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim_end().to_owned(), &after[end..])
            }
        };
        seen.push_back((name.trim().to_ascii_lowercase(), text));
        rest = left.trim_start().strip_prefix(';').unwrap_or_default();
    }
    for (name, text) in seen {
        if name == wanted && plain.is_none() {
            plain = Some(text);
        } else if name.strip_suffix('*') == Some(wanted)
            && let Some(encoded) = text.splitn(3, '\'').nth(2)
        {
            return Some(unescape(encoded));
        }
    }
    plain
}

/// A quoted string without its first quote, and what comes after it. Only a quote and a backslash are escaped: clients
/// write paths with backslashes of other systems as they are.
fn quoted_string(text: &str) -> (String, &str) {
    let mut plain = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (plain, &text[at + 1..]),
            '\\' => match characters.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, next)) => plain.push(next),
                None => plain.push('\\'),
            },
            other => plain.push(other),
        }
    }
    (plain, "")
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            (other, ..) => {
                plain.push(other);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;

    use super::*;

    fn plain(body: Body, idle: Duration) -> Source {
        Source::new(body, idle, false)
    }

    const TYPE: &str = "multipart/form-data; boundary=XyZ";

    /// Every part's name, file name and bytes, of a body that comes in pieces of so many bytes.
    async fn parts(body: &[u8], piece: usize) -> Result<Vec<(String, Option<String>, Vec<u8>)>, Fault> {
        let pieces: Vec<_> =
            body.chunks(piece).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let mut form = Multipart::new(plain(body, Duration::from_secs(5)), TYPE)?;
        let mut parts = Vec::new();
        while let Some(part) = form.part().await? {
            let mut bytes = Vec::new();
            while let Some(piece) = form.piece().await? {
                bytes.extend_from_slice(&piece);
            }
            parts.push((part.name, part.filename, bytes));
        }
        Ok(parts)
    }

    #[tokio::test]
    async fn parts_come_whole_however_they_are_cut() {
        let body = b"preamble\r\n--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/a/b c.txt\"\r\n\
            Content-Type: text/plain\r\n\r\nline\r\n--XyZnot\r\n--XyZ\r\ncontent-disposition: form-data; name=file; \
            filename=\"../q\\\"uote\"\r\n\r\n\r\n--XyZ\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\nv\r\n--XyZ--\r\nepilogue";
        // The delimiter needs no more than to be there: what follows it on its line does not matter to a part's end.
        let body = String::from_utf8_lossy(body).replace("--XyZnot", "--Xynot").into_bytes();
        let expected = vec![
            ("file".to_owned(), Some("/a/b c.txt".to_owned()), b"line\r\n--Xynot".to_vec()),
            ("file".to_owned(), Some("../q\"uote".to_owned()), Vec::new()),
            ("x".to_owned(), None, b"v".to_vec()),
        ];
        for piece in [1, 2, 3, 7, 64, 10_000] {
            assert_eq!(parts(&body, piece).await.unwrap(), expected, "{piece}");
        }
    }

    #[tokio::test]
    async fn a_form_that_breaks_off_is_an_error_at_every_byte() {
        let body = b"--XyZ\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc\r\n--XyZ--";
        assert_eq!(parts(body, 5).await.unwrap().len(), 1);
        for cut in 0..body.len() {
            assert!(parts(&body[..cut], 5).await.is_err(), "{cut}");
        }
    }

    #[tokio::test]
    async fn what_has_no_bound_is_refused() {
        let long = [b"--XyZ\r\nX: ".as_slice(), &[b'a'; HEAD_BYTES_MAX + 10]].concat();
        assert!(parts(&long, 1000).await.is_err());
        for wrong in ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x=y"] {
            let source = plain(Body::empty(), Duration::from_secs(5));
            assert!(Multipart::new(source, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parameters_are_read_as_clients_write_them() {
        let of = |value| parameter(value, "filename");
        assert_eq!(of("form-data; name=\"file\"; filename=\"a;b=c\"").unwrap(), "a;b=c");
        assert_eq!(of("form-data; filename=plain; name=x").unwrap(), "plain");
        assert_eq!(of("form-data; filename=\"x\"; filename*=UTF-8''%C3%A4%2Fb").unwrap(), "ä/b");
        assert_eq!(of("form-data; filename=\"C:\\dir\\f\"").unwrap(), "C:\\dir\\f");
        assert_eq!(of("form-data; name=\"filename\""), None);
        assert_eq!(of("form-data"), None);
    }
}
