//! Reaching the server: which addresses, which certificates, and the WebSocket as a stream of binary messages.

use std::{
    net::IpAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{Sink, Stream};
use rf_wire::machine::{CONNECT_PATH, MESSAGE_MAX};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{self, Message, http::Uri, protocol::WebSocketConfig},
};

/// A server, as the owner named it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Scheme, host and port: `https://example.org:443`.
    pub(crate) origin: String,
    connect: String,
    tls: bool,
}

impl Server {
    /// Reads the owner's URL: `https://HOST[:PORT][/PREFIX]`, or `http` to this computer itself.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(crate) fn parse(url: &str, allow_plaintext: bool) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| format!("`{url}` is no URL"))?;
        let (tls, port) = match uri.scheme_str() {
            Some("https" | "wss") => (true, 443),
            Some("http" | "ws") => (false, 80),
            _ => return Err(format!("`{url}` does not begin with https://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| format!("`{url}` has no host"))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') || uri.query().is_some() {
            return Err(format!("`{url}` has more than a host, a port and a path"));
        }
        let port = uri.port_u16().unwrap_or(port);
        if !tls && !allow_plaintext && !is_loopback(host) {
            return Err(format!(
                "`{url}` is not encrypted: anybody on the way could take over this machine; use https, or say \
                 --allow-plaintext"
            ));
        }
        let host = host.to_ascii_lowercase();
        let prefix = uri.path().trim_end_matches('/');
        let (scheme, socket) = if tls { ("https", "wss") } else { ("http", "ws") };
        Ok(Self {
            origin: format!("{scheme}://{host}:{port}"),
            connect: format!("{socket}://{host}:{port}{prefix}{CONNECT_PATH}"),
            tls,
        })
    }

    /// Connects, with certificates judged by `tls`.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) async fn connect(&self, tls: &Arc<ClientConfig>) -> Result<Wire, String> {
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
        let connector = if self.tls { Connector::Rustls(tls.clone()) } else { Connector::Plain };
        match connect_async_tls_with_config(&self.connect, Some(config), true, Some(connector)).await {
            Ok((socket, _)) => Ok(Wire(socket)),
            Err(tungstenite::Error::Http(answer)) => Err(format!("{} answered {}", self.origin, answer.status())),
            Err(error) => Err(format!("{} cannot be reached: {error}", self.origin)),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// The public certificate authorities, and those of `ca`.
///
/// # Errors
/// Why `ca` cannot be used, for people.
pub(crate) fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = ca {
        let unusable =
            |error: &dyn std::fmt::Display| format!("`{}` has no usable certificates: {error}", path.display());
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))? {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
            count += 1;
        }
        if count == 0 {
            return Err(unusable(&"there are none in it"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A WebSocket begins as HTTP/1.1; a server that also has HTTP/2 must not choose that.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A WebSocket as binary messages.
pub(crate) struct Wire(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Stream for Wire {
    type Item = Result<Bytes, tungstenite::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => return Poll::Ready(Some(Ok(bytes))),
                // Answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(None),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Some(Err(tungstenite::Error::Io(std::io::Error::other("text was sent")))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl Sink<Bytes> for Wire {
    type Error = tungstenite::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, bytes: Bytes) -> Result<(), Self::Error> {
        Pin::new(&mut self.0).start_send(Message::Binary(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_goes_to_this_computer_only_unless_said_by_name() {
        for fine in ["http://127.0.0.1:8080", "http://[::1]:1", "http://localhost", "https://example.org"] {
            assert!(Server::parse(fine, false).is_ok(), "{fine}");
        }
        for wrong in [
            "http://example.org",
            "ws://10.0.0.1",
            "http://127.0.0.1.example.org",
            "http://localhost.example.org",
            "ftp://127.0.0.1",
            "example.org",
            "https://",
            "https://a@example.org",
            "https://example.org/?x",
        ] {
            assert!(Server::parse(wrong, false).is_err(), "{wrong}");
        }
        assert!(Server::parse("http://example.org", true).is_ok());
    }

    #[test]
    fn an_origin_has_one_form() {
        let origin = |url| Server::parse(url, false).unwrap().origin;
        assert_eq!(origin("https://Example.org/"), "https://example.org:443");
        assert_eq!(origin("wss://example.org:443/prefix"), "https://example.org:443");
        assert_eq!(Server::parse("https://a/x/", false).unwrap().connect, "wss://a:443/x/v1/machines/connect");
    }
}
