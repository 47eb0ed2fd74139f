//! Connections to ports inside a sandbox, as bytes.

use reqwest::{Method, StatusCode, Upgraded};
use rf_types::SandboxId;

use crate::{client::Client, error::ClientError};

/// Opens connections to ports. One for all of them: they share how the server is reached.
#[derive(Clone)]
pub struct Tunnels {
    client: Client,
}

/// A connection to a port: what is written comes out at the program, and the other way round.
pub type Tunnel = Upgraded;

impl Client {
    /// For connections to ports.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] when no connection of HTTP/1.1 alone can be set up.
    pub fn tunnels(&self) -> Result<Tunnels, ClientError> {
        // A connection goes over to other bytes in HTTP/1.1 alone.
        Ok(Tunnels { client: self.with_http_1()? })
    }
}

impl Tunnels {
    /// Opens a connection to what listens on a port of the sandbox's loopback.
    ///
    /// # Errors
    /// `not_found` when there is no such sandbox, or nothing listens; see [`ClientError`].
    pub async fn open(&self, sandbox: SandboxId, port: u16) -> Result<Tunnel, ClientError> {
        let path = format!("/v1/sandboxes/{sandbox}/tunnels/{port}");
        let request = self.client.request(Method::GET, &path);
        let answer = self.client.send_any(request.header("connection", "upgrade").header("upgrade", "tcp")).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.client.refusal(answer).await);
        }
        answer.upgrade().await.map_err(|source| self.client.unreachable(source))
    }
}
