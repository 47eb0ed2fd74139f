//! Execs: run and stream, run two-way, list, wait, read logs, signal.

use reqwest::Method;
use rf_types::{ExecId, SandboxId, SignalScope};
use rf_wire::frames;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    Connector,
    tungstenite::{
        self,
        client::IntoClientRequest,
        http::{HeaderValue, header::AUTHORIZATION},
    },
};

use crate::{
    client::{CONNECT_TIMEOUT, Client, FaultBody, query},
    error::ClientError,
    files::ByteStream,
    stream::{Events, ExecStream},
    types::{Exec, ExecRequest, SandboxRequest, SignalRequest},
};

impl Client {
    /// Runs a command; its output comes as it is printed. Standard input is empty.
    ///
    /// # Errors
    /// `no_place`, `exec_failed`, `not_found`; see [`ClientError`].
    pub async fn exec(&self, request: &ExecRequest) -> Result<Events, ClientError> {
        self.events("/v1/exec", request).await
    }

    /// Makes a sandbox, runs a command in it and destroys it.
    ///
    /// # Errors
    /// As making a sandbox and running in it.
    pub async fn run_once(&self, sandbox: &SandboxRequest, exec: &ExecRequest) -> Result<Events, ClientError> {
        #[derive(serde::Serialize)]
        struct Body<'a> {
            exec: &'a ExecRequest,
            sandbox: &'a SandboxRequest,
        }
        self.events("/v1/run", &Body { exec, sandbox }).await
    }

    async fn events(&self, path: &str, body: &impl serde::Serialize) -> Result<Events, ClientError> {
        let request = self.request(Method::POST, path).header("accept", frames::MEDIA_TYPE).json(body);
        let answer = self.send(request).await?;
        Ok(Events::new(self.url(), answer.bytes_stream()))
    }

    /// Starts a command that outlives this call.
    ///
    /// # Errors
    /// As [`Client::exec`].
    pub async fn exec_background(&self, request: &ExecRequest) -> Result<Exec, ClientError> {
        self.post("/v1/exec", &ExecRequest { background: true, ..request.clone() }).await
    }

    /// Runs a command with a stream both ways: standard input, terminal size, signals.
    ///
    /// # Errors
    /// As [`Client::exec`]; refusals after the connection is open come with the first event.
    pub async fn exec_interactive(&self, request: &ExecRequest) -> Result<ExecStream, ClientError> {
        let stream = self.socket("/v1/exec/stream").await?;
        let (read, mut write) = stream.split();
        write.begin(request).await?;
        Ok(ExecStream::join(read, write))
    }

    /// Opens a WebSocket to `path`.
    async fn socket(&self, path: &str) -> Result<ExecStream, ClientError> {
        let url = format!("ws{}{path}", self.url().trim_start_matches("http"));
        let unusable = |why: String| ClientError::Unusable(why);
        let mut request = url.as_str().into_client_request().map_err(|error| unusable(format!("`{url}`: {error}")))?;
        if let Some(key) = self.key() {
            let value = HeaderValue::from_str(&key.bearer()).map_err(|_| unusable("the key is no key".to_owned()))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let tls = self.url().starts_with("https://").then(|| Connector::Rustls(self.tls()));
        let stream = self.connect().await?;
        match tokio_tungstenite::client_async_tls_with_config(request, stream, None, tls).await {
            Ok((socket, _)) => Ok(ExecStream::new(self.url(), socket)),
            Err(tungstenite::Error::Http(answer)) => Err(refused(path, &answer)),
            Err(source) => Err(self.unreached(source)),
        }
    }

    /// A connection to the server, by no proxy.
    async fn connect(&self) -> Result<TcpStream, ClientError> {
        let unusable = || ClientError::Unusable(format!("`{}` is no address", self.url()));
        let url = reqwest::Url::parse(self.url()).map_err(|_| unusable())?;
        let (host, port) = url.host_str().zip(url.port_or_known_default()).ok_or_else(unusable)?;
        let address = (host.trim_matches(['[', ']']), port);
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = connected.unwrap_or_else(|late| Err(late.into())).map_err(|error| self.unreached(error))?;
        stream.set_nodelay(true).map_err(|error| self.unreached(error))?;
        Ok(stream)
    }

    fn unreached(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Unreachable { url: self.url().to_owned(), source: Box::new(source) }
    }

    /// The user's execs, running and recent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn execs(&self, sandbox: Option<SandboxId>) -> Result<Vec<Exec>, ClientError> {
        let pairs: Vec<_> = sandbox.map(|id| ("sandbox", id.to_string())).into_iter().collect();
        self.list("/v1/execs", &pairs).await
    }

    /// One exec.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn exec_info(&self, id: ExecId) -> Result<Exec, ClientError> {
        self.get(&format!("/v1/execs/{id}")).await
    }

    /// Waits until an exec ended.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn exec_wait(&self, id: ExecId) -> Result<Exec, ClientError> {
        self.get(&format!("/v1/execs/{id}/wait")).await
    }

    /// The kept output of an exec: `stdout` or `stderr`; with `follow` also what comes until it ends.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn exec_logs(&self, id: ExecId, stream: &str, follow: bool) -> Result<ByteStream, ClientError> {
        let pairs = [("stream", stream.to_owned()), ("follow", follow.to_string())];
        let answer = self.send(self.request(Method::GET, &format!("/v1/execs/{id}/logs{}", query(&pairs)))).await?;
        Ok(self.bytes_of(answer))
    }

    /// Sends a signal to a running exec.
    ///
    /// # Errors
    /// `not_found`; see [`ClientError`].
    pub async fn exec_signal(&self, id: ExecId, signal: i32, scope: SignalScope) -> Result<(), ClientError> {
        self.post::<serde::de::IgnoredAny>(&format!("/v1/execs/{id}/signal"), &SignalRequest { signal, scope })
            .await
            .map(drop)
    }
}

/// A refusal of a WebSocket before it opened.
fn refused(path: &str, answer: &tungstenite::http::Response<Option<Vec<u8>>>) -> ClientError {
    let status = answer.status().as_u16();
    match answer.body().as_deref().map(serde_json::from_slice::<FaultBody>) {
        Some(Ok(body)) => ClientError::Refused { fault: body.fault, status, request_id: body.request_id },
        _ => ClientError::Garbled { path: path.to_owned(), why: format!("status {status} and no reason") },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpSocket;

    use super::*;
    use crate::client::Options;

    #[tokio::test]
    async fn a_host_that_says_nothing_is_not_waited_for_without_end() {
        // Its queue is full, so it drops what would be one more connection.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let address = silent.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let queue: Vec<_> = std::iter::from_fn(|| connect().ok()).take(16).collect();
        assert!(queue.len() < 16);

        let options = Options { url: format!("http://{address}"), key: None, certificate: None };
        let client = Client::new(options).unwrap();
        let socket = timeout(2 * CONNECT_TIMEOUT, client.socket("/v1/exec/stream")).await.unwrap();
        assert!(matches!(socket, Err(ClientError::Unreachable { .. })));
    }
}
