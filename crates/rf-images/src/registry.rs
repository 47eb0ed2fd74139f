//! Pulls an image from a registry (OCI distribution specification 1.1).
//!
//! Own requests rather than a client library's: documents are read within a bound, redirects are judged one by one,
//! and credentials go to the registry, to the token server that it names, and nowhere else.

use std::time::Duration;

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde::Deserialize;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::{
    Blobs, Digest, Image, ImageCaps, ImageError, Progress, ProgressSink, Reference,
    addresses::{World, led_within},
    model::{self, ACCEPTED, Descriptor, Document, Kind},
    reference::{host_of, is_loopback},
};

/// Redirects followed for one request. Chosen; registries need one.
const REDIRECTS_MAX: u32 = 4;
/// How often one blob is gone on with after its connection broke. Chosen.
const ATTEMPTS_MAX: u32 = 5;
/// Longest answer of a token server, bytes. Chosen; tokens have up to about 8 KiB.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Chunks that wait to be written. Chosen.
const CHUNKS_MAX: usize = 16;

/// A password or token: nothing prints it, and it is wiped when it goes.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps a text secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Who one is to a registry.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// Nobody.
    #[default]
    Anonymous,
    /// A user with a password or access token.
    Basic {
        /// Name.
        user: String,
        /// Password.
        password: Secret,
    },
    /// A token that the registry takes as it is.
    Bearer(Secret),
}

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`) that are spoken to without TLS. Those on this machine are anyway.
    pub plain_http: Vec<String>,
    /// Registries (`host` or `host:port`) that may be within, and may lead there: their own names, their token servers
    /// and what they redirect to may have addresses of this machine and of private networks. Those on this machine may
    /// anyway; of any other registry only the host may be within, and only where it is named as an address.
    pub private: Vec<String>,
    /// Certificate authorities besides the system's, PEM.
    pub extra_roots_pem: Vec<Vec<u8>>,
}

/// A client of registries.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Connects to the world's addresses alone, whatever a name leads to.
    outside: Client,
    /// Connects to any address.
    anywhere: Client,
    world: World,
    plain_http: Vec<String>,
    private: Vec<String>,
}

/// One pull: who asks whom, with the token that was had.
struct Session<'s> {
    registry: &'s Registry,
    reference: &'s Reference,
    credentials: &'s Credentials,
    /// What a token is asked for.
    scope: Option<String>,
    /// Spoken to without TLS, by name or because it is this machine.
    plain: bool,
    /// May lead within.
    private: bool,
    authorization: Option<HeaderValue>,
}

impl Registry {
    /// Makes a client. Installs the TLS provider (ring) unless the program has.
    ///
    /// # Errors
    /// A certificate is not PEM; the system's certificates cannot be read.
    pub fn new(options: RegistryOptions) -> Result<Self, ImageError> {
        Self::within(World::of_the_system(), options)
    }

    fn within(world: World, options: RegistryOptions) -> Result<Self, ImageError> {
        // Fails when there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |cause| ImageError::Unreachable { host: "any registry".to_owned(), cause };
        let client = |names: World| {
            let mut builder = Client::builder()
                .redirect(Policy::none())
                .connect_timeout(Duration::from_secs(15))
                .read_timeout(Duration::from_secs(60))
                .dns_resolver(names)
                .user_agent(concat!("ringfence/", env!("CARGO_PKG_VERSION")));
            for pem in &options.extra_roots_pem {
                builder = builder.add_root_certificate(reqwest::Certificate::from_pem(pem).map_err(wrong)?);
            }
            builder.build().map_err(wrong)
        };
        let (outside, anywhere) = (client(world.clone())?, client(world.unjudged())?);
        Ok(Self { outside, anywhere, world, plain_http: options.plain_http, private: options.private })
    }

    /// Asks the registry of `reference` whether it is one and lets this user in; no image is asked for.
    ///
    /// # Errors
    /// [`ImageError::Unreachable`], [`ImageError::Insecure`]; [`ImageError::Denied`] when it wants other credentials;
    /// [`ImageError::Protocol`] when it is no registry.
    pub async fn check(&self, reference: &Reference, credentials: &Credentials) -> Result<(), ImageError> {
        let mut session = self.session(reference, credentials, None)?;
        // OCI distribution specification 1.1, "Determining Support".
        let response = session.get(session.address("")?, HeaderMap::new()).await?;
        match response.status() {
            StatusCode::OK => Ok(()),
            status => Err(session.protocol(format!("{status} for `/v2/`"))),
        }
    }

    fn session<'s>(
        &'s self,
        reference: &'s Reference,
        credentials: &'s Credentials,
        scope: Option<String>,
    ) -> Result<Session<'s>, ImageError> {
        Ok(Session {
            registry: self,
            reference,
            credentials,
            scope,
            plain: reference.is_loopback() || self.plain_http.iter().any(|host| host == reference.registry()),
            private: reference.is_loopback() || self.private.iter().any(|host| host == reference.registry()),
            authorization: match credentials {
                Credentials::Bearer(token) => Some(bearer(token)?),
                Credentials::Anonymous | Credentials::Basic { .. } => None,
            },
        })
    }

    /// Gets an image: its manifest for this machine, its configuration, and every layer that is not there yet.
    ///
    /// # Errors
    /// See [`ImageError`]. What came whole stays, and what came in part is gone on with the next time.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        blobs: &std::sync::Arc<Blobs>,
        caps: &ImageCaps,
        progress: ProgressSink<'_>,
    ) -> Result<Image, ImageError> {
        // The scope is made from what was asked for, not from what a challenge says.
        let scope = format!("repository:{}:pull", reference.repository());
        let mut session = self.session(reference, credentials, Some(scope))?;
        let (mut digest, mut bytes) = session.manifest(&reference.version(), reference.digest(), caps).await?;
        let mut kind = Document::read(&bytes, caps)?;
        if let Kind::Index(manifests) = kind {
            let chosen = model::choose(&manifests, caps)?;
            (digest, bytes) = session.manifest(&chosen.digest.to_string(), Some(chosen.digest), caps).await?;
            kind = Document::read(&bytes, caps)?;
        }
        let Kind::Manifest { config, layers } = kind else {
            return Err(ImageError::Malformed("an index names an index".to_owned()));
        };
        let bytes_total = layers.iter().fold(config.size, |sum, layer| sum.saturating_add(layer.size));
        let mut bytes_done = 0;
        for descriptor in layers.iter().chain([&config]) {
            progress(Progress { bytes_done, bytes_total });
            session
                .blob(descriptor, blobs, &|done| progress(Progress { bytes_done: bytes_done + done, bytes_total }))
                .await?;
            bytes_done += descriptor.size;
        }
        progress(Progress { bytes_done, bytes_total });
        let config = blobs.read(&config.digest, caps.document_bytes_max)?;
        let stored: Vec<_> = layers.iter().map(|layer| (layer.digest, layer.size)).collect();
        model::image(digest, &config, &stored)
    }
}

impl Session<'_> {
    fn host(&self) -> String {
        self.reference.host().to_owned()
    }

    fn protocol(&self, why: impl Into<String>) -> ImageError {
        ImageError::Protocol { host: self.host(), why: why.into() }
    }

    fn url(&self, kind: &str, version: &str) -> Result<Url, ImageError> {
        self.address(&format!("{}/{kind}/{version}", self.reference.repository()))
    }

    fn address(&self, path: &str) -> Result<Url, ImageError> {
        let scheme = if self.plain { "http" } else { "https" };
        let text = format!("{scheme}://{}/v2/{path}", self.reference.host());
        Url::parse(&text).map_err(|e| self.protocol(format!("its name makes no address: {e}")))
    }

    /// A manifest or index with its digest, which is verified when one was named.
    async fn manifest(
        &mut self,
        version: &str,
        expected: Option<Digest>,
        caps: &ImageCaps,
    ) -> Result<(Digest, Vec<u8>), ImageError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let response = self.get(self.url("manifests", version)?, headers).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(ImageError::Absent(self.reference.to_string()));
        }
        if response.status() != StatusCode::OK {
            return Err(self.protocol(format!("{} for a manifest", response.status())));
        }
        let told = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = self.whole(response, caps.document_bytes_max).await?;
        let found = Digest::of(&bytes);
        match expected.or(told) {
            Some(expected) if expected != found => Err(ImageError::Digest { expected, found }),
            Some(_) | None => Ok((found, bytes)),
        }
    }

    /// Fetches a blob unless it is there; goes on where a broken connection stopped.
    async fn blob(
        &mut self,
        descriptor: &Descriptor,
        blobs: &std::sync::Arc<Blobs>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        if let Some(size) = blobs.size(&descriptor.digest)? {
            if size == descriptor.size {
                return Ok(());
            }
            return Err(ImageError::Size { digest: descriptor.digest, expected: descriptor.size, found: size });
        }
        let url = self.url("blobs", &descriptor.digest.to_string())?;
        let mut attempt = 1;
        loop {
            let before = blobs.part_size(&descriptor.digest, descriptor.size)?;
            let error = match self.blob_once(&url, descriptor, blobs, progress).await {
                Ok(()) => return Ok(()),
                // Only a connection that broke is worth another try.
                Err(error @ (ImageError::Unreachable { .. } | ImageError::Size { .. })) => error,
                Err(error) => return Err(error),
            };
            let after = blobs.part_size(&descriptor.digest, descriptor.size)?;
            // One that goes on for ever without a byte more does not count as a broken one.
            attempt = if after > before { 1 } else { attempt + 1 };
            if attempt > ATTEMPTS_MAX || matches!(error, ImageError::Size { found, .. } if found > descriptor.size) {
                return Err(error);
            }
        }
    }

    async fn blob_once(
        &mut self,
        url: &Url,
        descriptor: &Descriptor,
        blobs: &std::sync::Arc<Blobs>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let offset = blobs.part_size(&descriptor.digest, descriptor.size)?;
        let mut headers = HeaderMap::new();
        if offset > 0 && offset < descriptor.size {
            // A number and ASCII are a header's value.
            headers.insert(RANGE, HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are a header"));
        }
        let mut response = self.get(url.clone(), headers).await?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let right = range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")));
                if !right {
                    return Err(self.protocol("another part of a blob than was asked for"));
                }
                offset
            }
            StatusCode::NOT_FOUND => {
                return Err(ImageError::Absent(format!("{} ({})", self.reference, descriptor.digest)));
            }
            status => return Err(self.protocol(format!("{status} for a blob"))),
        };
        // Writing and hashing block, so they have a thread; the channel's bound holds the network back.
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(CHUNKS_MAX);
        let (store, digest, size) = (std::sync::Arc::clone(blobs), descriptor.digest, descriptor.size);
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = store.write(digest, size)?;
            if start == 0 {
                writer.restart()?;
            } else if writer.done() != start {
                return Err(ImageError::Protocol {
                    host: "the blob store".to_owned(),
                    why: "a part changed".to_owned(),
                });
            }
            while let Some(chunk) = receiver.blocking_recv() {
                writer.write(&chunk)?;
            }
            writer.finish()
        });
        let mut done = start;
        let broke = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    done += chunk.len() as u64;
                    progress(done.min(descriptor.size));
                    // The writer ended early: it has the reason.
                    if sender.send(chunk).await.is_err() {
                        break None;
                    }
                }
                Ok(None) => break None,
                Err(cause) => break Some(cause),
            }
        };
        drop(sender);
        let written = writer.await.map_err(|e| ImageError::files("write a blob")(std::io::Error::other(e)))?;
        match (written, broke) {
            (Ok(()), _) => Ok(()),
            // What came until it broke is a part.
            (Err(ImageError::Size { found, .. }), Some(cause)) if found < descriptor.size => {
                Err(ImageError::Unreachable { host: self.host(), cause })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Sends a request, answers a challenge once, and follows redirects.
    async fn get(&mut self, url: Url, headers: HeaderMap) -> Result<Response, ImageError> {
        let response = self.follow(url.clone(), headers.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return if response.status() == StatusCode::FORBIDDEN { Err(self.denied()) } else { Ok(response) };
        }
        // Whoever the registry sent on to may not say where its password goes.
        if response.url().origin() != url.origin() {
            return Err(self.denied());
        }
        let challenge = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|value| Challenge::parse(value.to_str().ok()?))
            .ok_or_else(|| self.denied())?;
        self.authorization = Some(self.answer(&challenge).await?);
        let response = self.follow(url, headers).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            _ => Ok(response),
        }
    }

    fn denied(&self) -> ImageError {
        ImageError::Denied { host: self.host() }
    }

    /// Follows redirects by hand: the authorization goes to the registry itself and to nobody else.
    async fn follow(&self, url: Url, headers: HeaderMap) -> Result<Response, ImageError> {
        let registry = url.clone();
        let mut url = url;
        for _ in 0..=REDIRECTS_MAX {
            self.judge(&url)?;
            let mut request = self.client().get(url.clone()).headers(headers.clone());
            if let Some(authorization) = &self.authorization
                && url.origin() == registry.origin()
            {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(|cause| not_reached(&url, cause))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            url = location
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| self.protocol("a redirect to nowhere"))?;
        }
        Err(self.protocol("too many redirects"))
    }

    /// Refuses addresses that a registry has no business to name.
    fn judge(&self, url: &Url) -> Result<(), ImageError> {
        let refused = |why| {
            let host = url.host_str().unwrap_or_default();
            Err(ImageError::Insecure { url: format!("{}://{host}{}", url.scheme(), url.path()), why })
        };
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if !url.username().is_empty() || url.password().is_some() {
            return refused("it has credentials in its address");
        }
        match url.scheme() {
            "https" => {}
            // A registry that is itself spoken to in the clear may send on to places that may be.
            "http" if self.plain && (host == host_of(self.reference.host()) || is_loopback(host)) => {}
            "http" => return refused("it is not encrypted"),
            _ => return refused("it is neither http nor https"),
        }
        // Names are judged when they are connected to, by where they lead.
        let inner = is_loopback(host) || host.parse().is_ok_and(|address| self.registry.world.is_within(address));
        if inner && host != host_of(self.reference.host()) && !self.private {
            return Err(ImageError::Within { host: host.to_owned(), address: host.to_owned() });
        }
        Ok(())
    }

    /// The client for this registry, and for where it leads.
    fn client(&self) -> &Client {
        if self.private { &self.registry.anywhere } else { &self.registry.outside }
    }

    /// What a challenge asks for.
    async fn answer(&self, challenge: &Challenge) -> Result<HeaderValue, ImageError> {
        let (realm, service) = match challenge {
            Challenge::Basic => {
                let Credentials::Basic { user, password } = self.credentials else { return Err(self.denied()) };
                return basic(user, password);
            }
            Challenge::Bearer { realm, service } => (realm, service),
        };
        let mut url = Url::parse(realm).map_err(|_| self.protocol("a token server without an address"))?;
        self.judge(&url)?;
        if let Some(scope) = &self.scope {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.client().get(url.clone());
        if let Credentials::Basic { user, password } = self.credentials {
            request = request.header(AUTHORIZATION, basic(user, password)?);
        }
        let response = request.send().await.map_err(|cause| not_reached(&url, cause))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
            status => return Err(self.protocol(format!("{status} of its token server"))),
        }
        let bytes = Zeroizing::new(self.whole(response, TOKEN_BYTES_MAX).await?);
        let answer: Token =
            serde_json::from_slice(&bytes).map_err(|_| self.protocol("its token server's answer cannot be read"))?;
        let token =
            answer.token.or(answer.access_token).ok_or_else(|| self.protocol("its token server gave no token"))?;
        bearer(&Secret::new(token))
    }

    /// A whole body within a bound.
    async fn whole(&self, mut response: Response, max: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|cause| ImageError::Unreachable { host: self.host(), cause: cause.without_url() })? {
                Some(chunk) if (bytes.len() + chunk.len()) as u64 > max => {
                    return Err(ImageError::Bound { what: "bytes in a document", max });
                }
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(bytes),
            }
        }
    }
}

/// Why a request was not sent.
fn not_reached(url: &Url, cause: reqwest::Error) -> ImageError {
    let host = url.host_str().unwrap_or_default().to_owned();
    match led_within(&cause) {
        Some(address) => ImageError::Within { host, address: address.to_string() },
        // An address may have a signed query, which is a credential.
        None => ImageError::Unreachable { host, cause: cause.without_url() },
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// What a registry wants (RFC 9110, 11.6.1).
#[derive(Debug, Eq, PartialEq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after.trim_start().strip_prefix(',').unwrap_or("").trim_start();
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

fn bearer(token: &Secret) -> Result<HeaderValue, ImageError> {
    secret_header(&Zeroizing::new(format!("Bearer {}", *token.0)))
}

fn basic(user: &str, password: &Secret) -> Result<HeaderValue, ImageError> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let pair = Zeroizing::new(format!("{user}:{}", *password.0));
    secret_header(&Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes()))))
}

fn secret_header(text: &str) -> Result<HeaderValue, ImageError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        ImageError::Malformed("the registry's credentials have characters that cannot be sent".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, SocketAddr},
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::SeqCst},
        },
    };

    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (text, expected) in [
            (r#"Bearer realm="https://a/t",service="r",scope="x:y,z""#, bearer("https://a/t", Some("r"))),
            (r#"bearer scope="a", realm="https://a/t""#, bearer("https://a/t", None)),
            ("Bearer realm=https://a/t,service=r", bearer("https://a/t", Some("r"))),
            (r#"Basic realm="r""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            ("Bearer", None),
            (r#"Bearer realm="unclosed"#, None),
            ("Negotiate", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_secret_prints_nothing() {
        let credentials = Credentials::Basic { user: "u".to_owned(), password: Secret::new("hunter2".to_owned()) };
        assert!(!format!("{credentials:?}").contains("hunter2"));
        let Credentials::Basic { password, .. } = &credentials else { unreachable!() };
        assert!(!format!("{:?}", basic("u", password).unwrap()).contains("aHVudGVy"));
    }

    /// How a connection of TLS begins, which is only let in and closed (RFC 8446, 5.1).
    const TLS_HANDSHAKE: u8 = 22;

    /// Answers every request on this machine alike, closing each connection; counts them.
    async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> (u16, Arc<AtomicU32>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<AtomicU32>::default();
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) if byte.is_ascii() && byte != TLS_HANDSHAKE => head.push(byte),
                        _ => break,
                    }
                }
                let answer = answer(std::str::from_utf8(&head).unwrap());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        (port, asked)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

    /// In these tests the world is 127.0.0.1, and 127.0.0.9 is within it.
    fn within(address: IpAddr) -> bool {
        address == IpAddr::from([127, 0, 0, 9])
    }

    fn names(name: &str) -> Vec<SocketAddr> {
        let last = if name.starts_with("within") { 9 } else { 1 };
        vec![SocketAddr::from(([127, 0, 0, last], 0))]
    }

    async fn check(world: World, host: &str, private: &[&str]) -> Result<(), ImageError> {
        let all = ["world.example", "within.example", "turning.example"];
        let plain_http = all.iter().map(|name| format!("{name}:{}", host.split_once(':').unwrap().1)).collect();
        let options = RegistryOptions {
            plain_http,
            private: private.iter().map(|host| (*host).to_owned()).collect(),
            ..RegistryOptions::default()
        };
        let reference: Reference = format!("{host}/a/b").parse().unwrap();
        Registry::within(world, options).unwrap().check(&reference, &Credentials::Anonymous).await
    }

    fn is_refused(result: Result<(), ImageError>) -> bool {
        matches!(result, Err(ImageError::Within { address, .. }) if address == "127.0.0.9")
    }

    #[tokio::test]
    async fn a_name_that_leads_within_is_not_connected_to_unless_configured() {
        let (port, asked) = serve(|_| OK.to_owned()).await;
        let host = format!("within.example:{port}");
        let world = || World::made(within, names);
        assert!(is_refused(check(world(), &host, &[]).await));
        assert!(is_refused(check(world(), &host, &["other.example"]).await));
        assert_eq!(asked.load(SeqCst), 0);
        // Controls: configured as private; and a name of the world.
        check(world(), &host, &[&host]).await.unwrap();
        check(world(), &format!("world.example:{port}"), &[]).await.unwrap();
        assert_eq!(asked.load(SeqCst), 2);
    }

    /// Attack: a registry of the world sends on to a name, or names a token server, that leads within.
    #[tokio::test]
    async fn a_redirect_or_token_server_that_leads_within_is_not_followed() {
        let (inner, asked) = serve(|_| OK.to_owned()).await;
        let to = format!("https://within.example:{inner}/x");
        let answers = [
            format!("HTTP/1.1 307 Go\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
            format!(
                "HTTP/1.1 401 No\r\nwww-authenticate: Bearer realm=\"{to}\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            ),
        ];
        for answer in answers {
            let (port, _) = serve(move |_| answer.clone()).await;
            let host = format!("world.example:{port}");
            let before = asked.load(SeqCst);
            assert!(is_refused(check(World::made(within, names), &host, &[]).await));
            assert_eq!(asked.load(SeqCst), before);
            // Control: one that may lead within gets there.
            let error = check(World::made(within, names), &host, &[&host]).await;
            assert!(matches!(error, Err(ImageError::Unreachable { .. })), "{error:?}");
            assert!(asked.load(SeqCst) > before);
        }
    }

    /// Attack: a name that leads to the world while it is looked at, and within when it is asked for again.
    #[tokio::test]
    async fn a_name_that_turns_within_is_judged_at_each_connection() {
        let (port, asked) = serve(|head| {
            if head.starts_with("GET /v2/ ") {
                let again = "HTTP/1.1 307 Go\r\nlocation: /v2/again\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                return again.to_owned();
            }
            OK.to_owned()
        })
        .await;
        let host = format!("turning.example:{port}");
        let steady = World::made(within, names);
        check(steady, &host, &[]).await.unwrap();
        assert_eq!(asked.load(SeqCst), 2, "control: two connections");
        let looked = AtomicU32::new(0);
        let turning = World::made(within, move |_| {
            let first = looked.fetch_add(1, SeqCst) == 0;
            names(if first { "world.example" } else { "within.example" })
        });
        assert!(is_refused(check(turning, &host, &[]).await));
        assert_eq!(asked.load(SeqCst), 3);
    }
}
