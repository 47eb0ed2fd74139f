//! One server and one credential: making calls, reading bounded answers.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response};
use rf_types::{Code, Fault};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{error::ClientError, tls, types::Items};

/// Longest answer that is read whole, bytes. Chosen: the largest list the server gives fits many times.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Most pages of a list, of 1,000 items each. Chosen: a server that never ends its list does not fill our memory.
const PAGES_MAX: usize = 1_000;
/// How long a connection may take to open. Chosen.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A credential's secret text. `Debug` prints nothing of it.
#[derive(Clone)]
pub struct Key(Zeroizing<String>);

impl Key {
    /// Takes a secret; spaces and line ends around it do not count.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self(Zeroizing::new(secret.trim().to_owned()))
    }

    pub(crate) fn bearer(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("Bearer {}", self.0.as_str()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://` or `https://`, host and port.
    pub url: String,
    /// The credential; `None` for what needs none, such as health.
    pub key: Option<Key>,
    /// A PEM certificate to trust besides those of the system.
    pub certificate: Option<Vec<u8>>,
}

/// One server and one credential. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<Key>,
    tls: Arc<rustls::ClientConfig>,
}

/// A refusal as the server sends it.
#[derive(Deserialize)]
pub(crate) struct FaultBody {
    #[serde(flatten)]
    pub(crate) fault: Fault,
    #[serde(default)]
    pub(crate) request_id: Option<String>,
}

/// The connections of a client.
fn http(
    url: &str,
    tls: &rustls::ClientConfig,
    more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, ClientError> {
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("ringfence/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls.clone());
    // A proxy is not asked for this computer itself: it would reach another one, and see the key.
    let builder = if is_loopback(url) { builder.no_proxy() } else { builder };
    more(builder).build().map_err(|error| ClientError::Unusable(format!("no client can be made: {error}")))
}

/// Whether an address is this computer's own, by its text alone.
fn is_loopback(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().and_then(|url| Some(url.host_str()?.to_owned())).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

impl Client {
    /// Makes a client. No connection is opened yet.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] when the address is not one or the certificate cannot be read.
    pub fn new(options: Options) -> Result<Self, ClientError> {
        let url = options.url.trim_end_matches('/').to_owned();
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(ClientError::Unusable(format!("`{url}` is no address: it starts with http:// or https://")));
        }
        let tls = Arc::new(tls::config(url.starts_with("https://"), options.certificate.as_deref())?);
        let http = http(&url, &tls, |builder| builder)?;
        Ok(Self { http, url, key: options.key, tls })
    }

    /// The same client on connections of its own, of HTTP/1.1 alone.
    pub(crate) fn with_http_1(&self) -> Result<Self, ClientError> {
        let http = http(&self.url, &self.tls(), reqwest::ClientBuilder::http1_only)?;
        Ok(Self { http, ..self.clone() })
    }

    /// How TLS is spoken, for streams.
    pub(crate) fn tls(&self) -> Arc<rustls::ClientConfig> {
        let mut config = (*self.tls).clone();
        // A WebSocket begins as HTTP/1.1; a server that also has HTTP/2 must not choose that.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// The server's address, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let builder = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => builder.header("authorization", key.bearer().as_str()),
            None => builder,
        }
    }

    /// Sends a request; an answer that is not a success becomes the server's refusal.
    pub(crate) async fn send(&self, builder: RequestBuilder) -> Result<Response, ClientError> {
        let answer = builder.send().await.map_err(|source| self.unreachable(source))?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(answer).await) }
    }

    /// Sends a request; every answer is one.
    pub(crate) async fn send_any(&self, builder: RequestBuilder) -> Result<Response, ClientError> {
        builder.send().await.map_err(|source| self.unreachable(source))
    }

    pub(crate) fn unreachable(&self, source: reqwest::Error) -> ClientError {
        // Without its address: the text that shows it names it already.
        ClientError::Unreachable { url: self.url.clone(), source: Box::new(source.without_url()) }
    }

    pub(crate) async fn refusal(&self, answer: Response) -> ClientError {
        let status = answer.status().as_u16();
        let path = answer.url().path().to_owned();
        match self.read(answer).await {
            Ok(body) => match serde_json::from_slice::<FaultBody>(&body) {
                Ok(body) => ClientError::Refused { fault: body.fault, status, request_id: body.request_id },
                Err(_) => ClientError::Refused {
                    fault: Fault::new(
                        Code::Internal,
                        format!("`{path}` answered {status} without saying why"),
                        "check that the address is that of a ringfence server",
                    ),
                    status,
                    request_id: None,
                },
            },
            Err(error) => error,
        }
    }

    /// Reads an answer whole, up to [`ANSWER_MAX`].
    pub(crate) async fn read(&self, answer: Response) -> Result<Bytes, ClientError> {
        let path = answer.url().path().to_owned();
        let mut body = BytesMut::new();
        let mut stream = answer.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|source| self.unreachable(source))?;
            if body.len() + piece.len() > ANSWER_MAX {
                return Err(ClientError::Garbled { path, why: format!("it is longer than {ANSWER_MAX} bytes") });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    async fn read_json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, ClientError> {
        let path = answer.url().path().to_owned();
        let body = self.read(answer).await?;
        // An endpoint that has nothing to say answers 204; `null` stands for that.
        let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
        serde_json::from_slice(&body).map_err(|error| ClientError::Garbled { path, why: error.to_string() })
    }

    /// Calls `path` with `GET`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.send(self.request(Method::GET, path)).await?;
        self.read_json(answer).await
    }

    /// Every item of a list, page after page. `pairs` is what the list is asked beside its page.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        pairs: &[(&str, String)],
    ) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut asked = pairs.to_vec();
            asked.push(("items_max", "1000".to_owned()));
            asked.extend(after.take().map(|after| ("after", after)));
            let page: Items<T> = self.get(&format!("{path}{}", query(&asked))).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(items),
            }
        }
        Err(ClientError::Garbled { path: path.to_owned(), why: format!("the list has more than {PAGES_MAX} pages") })
    }

    /// Calls `path` with `POST` and a JSON body.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let answer = self.send(self.request(Method::POST, path).json(body)).await?;
        self.read_json(answer).await
    }

    /// Calls `path` with `PUT` and a JSON body.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let answer = self.send(self.request(Method::PUT, path).json(body)).await?;
        self.read_json(answer).await
    }

    /// Calls `path` with `PATCH` and a JSON body.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let answer = self.send(self.request(Method::PATCH, path).json(body)).await?;
        self.read_json(answer).await
    }

    /// Calls `path` with `DELETE`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        let answer = self.send(self.request(Method::DELETE, path)).await?;
        self.read(answer).await.map(drop)
    }
}

/// Writes `text` so that it can stand in a query or as one part of a path (RFC 3986, section 2).
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Joins pairs to a query with its `?`; empty when there are none.
pub(crate) fn query(pairs: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        out.push(if out.is_empty() { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        out.push_str(&escape(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_show_itself() {
        let key = Key::new(" rfk_secret\n");
        assert_eq!(format!("{key:?}"), "Key(..)");
        assert_eq!(key.bearer().as_str(), "Bearer rfk_secret");
    }

    #[test]
    fn a_query_keeps_every_byte_apart_from_its_syntax() {
        assert_eq!(query(&[("path", "a b&c=/ü".to_owned()), ("n", "1".to_owned())]), "?path=a%20b%26c%3D%2F%C3%BC&n=1");
        assert_eq!(query(&[]), "");
    }

    #[test]
    fn an_address_without_a_scheme_is_refused() {
        let options = |url: &str| Options { url: url.to_owned(), key: None, certificate: None };
        assert!(Client::new(options("localhost:7878")).is_err());
        assert_eq!(Client::new(options("http://localhost:7878/")).unwrap().url(), "http://localhost:7878");
    }
}
