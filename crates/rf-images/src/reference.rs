//! Names of images in registries, such as `alpine`, `ghcr.io/owner/name:1.2` or `localhost:5000/a/b@sha256:...`.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::Digest;

/// An image in a registry, complete: what people leave out is filled in as Docker does.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Longest reference, bytes. Specified for the parts (255 and 128), rounded.
const LENGTH_MAX: usize = 512;

impl Reference {
    /// The registry's host, with its port when one was named; `docker.io` when none was.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where requests go: Docker's registry answers under another name than its own.
    #[must_use]
    pub fn host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// The path within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest, else the tag: what a manifest is asked for by.
    #[must_use]
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The digest that the manifest must have, when one was named.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether the registry is this machine itself, by its name alone.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(host_of(&self.registry))
    }
}

/// The host without its port, and an IPv6 address without its brackets.
pub(crate) fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        let wrong = |why| Err(ParseReferenceError { why });
        if text.is_empty() || text.len() > LENGTH_MAX {
            return wrong("it must have 1 to 512 characters");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => match digest.parse() {
                Ok(digest) => (rest, Some(digest)),
                Err(_) => return wrong("what follows `@` must be `sha256:` and 64 lower-case hex digits"),
            },
            None => (text, None),
        };
        // The first part is a host when it cannot be a part of a path, or is `localhost`.
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            Some(_) | None => ("docker.io", rest),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !valid_authority(registry) {
            return wrong("the registry must be a host name or address, maybe with a port");
        }
        if !path.split('/').all(valid_part) || path.len() > 255 {
            return wrong(
                "the repository's parts are lower-case letters and digits, with `.`, `_`, `__` or `-` between",
            );
        }
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid_tag = |tag: &str| {
            tag.len() <= 128
                && tag.bytes().next().is_some_and(word)
                && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte))
        };
        if !tag.is_none_or(valid_tag) {
            return wrong("a tag is 1 to 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two");
        }
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let official = registry == "docker.io" && !path.contains('/');
        Ok(Self {
            registry: registry.to_ascii_lowercase(),
            repository: if official { format!("library/{path}") } else { path.to_owned() },
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// `name`, `name:port`, `1.2.3.4:port` or `[v6]:port`.
fn valid_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port)
        }
        None => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let valid_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.len() <= 5 && !port.starts_with('+') && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    valid_port && host.len() <= 253 && host.split('.').all(label)
}

/// One part of a repository's path (OCI distribution specification, "Pulling manifests").
fn valid_part(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word);
    let body = part.bytes().all(|byte| word(byte) || b"._-".contains(&byte));
    // Between letters and digits: one dot, one or two underscores, any number of hyphens.
    let between = part.split(|c: char| c.is_ascii_alphanumeric());
    ends && body
        && between.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|byte| byte == b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.tag, &self.digest) {
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, None) => write!(f, ":latest")?,
            (None, Some(_)) => {}
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Why a text names no image.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an image's name: {why}")]
pub struct ParseReferenceError {
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let digest = Digest::of(b"x");
        for (text, full, host, version) in [
            ("alpine", "docker.io/library/alpine:latest", "registry-1.docker.io", "latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "registry-1.docker.io", "3.20"),
            ("owner/name", "docker.io/owner/name:latest", "registry-1.docker.io", "latest"),
            ("index.docker.io/a", "docker.io/library/a:latest", "registry-1.docker.io", "latest"),
            ("ghcr.io/o/n:V1_x", "ghcr.io/o/n:V1_x", "ghcr.io", "V1_x"),
            ("GHCR.io/o/n", "ghcr.io/o/n:latest", "ghcr.io", "latest"),
            ("localhost/a", "localhost/a:latest", "localhost", "latest"),
            ("localhost:5000/a/b--c/d__e", "localhost:5000/a/b--c/d__e:latest", "localhost:5000", "latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000", "latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.host()), (full, host), "{text}");
            assert_eq!(reference.version(), version);
            assert_eq!(full.parse::<Reference>().unwrap(), Reference { tag: Some(version.to_owned()), ..reference });
        }
        let both: Reference = format!("a:1@{digest}").parse().unwrap();
        assert_eq!(both.version(), digest.to_string());
        assert_eq!(both.to_string(), format!("docker.io/library/a:1@{digest}"));
    }

    #[test]
    fn what_could_reach_elsewhere_is_refused() {
        for text in [
            "",
            "A",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a:",
            "a:b:c",
            "a:-x",
            "a@sha256:12",
            "a@md5:aa",
            "-a",
            "a..b",
            "a.-b",
            "a___b",
            "http://x/a",
            "user@host/a",
            "x.y:0/a",
            "x.y:99999/a",
            "x.y:+1/a",
            ".x/a",
            "x..y/a",
            "[::1/a",
            "[zz]:1/a",
            "x.y?q/a",
            "x.y#f/a",
            "a?b",
            "a#b",
            "a%2e",
            "é.x/a",
            "x.y:80:80/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "`{text}` was taken");
        }
        assert!("a".repeat(256).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_is_told_by_the_name() {
        for (text, is) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("127.8.9.1/a", true),
            ("[::1]:5000/a", true),
            ("[::ffff:127.0.0.1]:5000/a", true),
            ("10.0.0.1:5000/a", false),
            ("localhost.example.com/a", false),
            ("a", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_loopback(), is, "{text}");
        }
    }
}
