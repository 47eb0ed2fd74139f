//! A server for joined machines on loopback: real WebSockets, real handshake, tokens and keys in memory.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use futures::{Sink, Stream};
use rf_places::machine::{Enrolment, HubConfig, MachineAuthority, MachineHub, MachinePlace};
use rf_types::{Code, Fault, MachineId, UserId};
use rf_wire::machine::{MESSAGE_MAX, to_hex};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};
use tokio_tungstenite::{
    WebSocketStream, accept_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

/// A machine's key, for machines made by hand.
pub struct TestKey(SigningKey);

impl TestKey {
    /// A fresh one.
    #[allow(clippy::new_without_default, reason = "it is random")]
    pub fn new() -> Self {
        let half = || MachineId::random().bits().to_be_bytes();
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(&half());
        seed[16..].copy_from_slice(&half());
        Self(SigningKey::from_bytes(&seed))
    }

    /// Its public half in hex.
    pub fn public(&self) -> String {
        to_hex(self.0.verifying_key().as_bytes())
    }

    /// A signature in hex.
    pub fn sign(&self, message: &[u8]) -> String {
        to_hex(&self.0.sign(message).to_bytes())
    }
}

/// Tokens and keys in memory.
#[derive(Default)]
pub struct Authority {
    tokens: Mutex<HashMap<String, UserId>>,
    machines: Mutex<HashMap<MachineId, (UserId, VerifyingKey)>>,
    enrolments: Mutex<u32>,
}

impl Authority {
    /// Makes `token` good once, for `user`.
    pub fn allow(&self, token: &str, user: UserId) {
        self.tokens.lock().unwrap().insert(token.to_owned(), user);
    }

    /// No longer knows the machine.
    pub fn forget(&self, machine: MachineId) {
        self.machines.lock().unwrap().remove(&machine);
    }

    /// The machines it knows.
    pub fn machines(&self) -> Vec<MachineId> {
        self.machines.lock().unwrap().keys().copied().collect()
    }

    /// How often a machine enrolled.
    pub fn enrolments(&self) -> u32 {
        *self.enrolments.lock().unwrap()
    }
}

fn refused() -> Fault {
    Fault::new(Code::Unauthenticated, "the machine's proof is not good", "join with a new token")
}

fn check(key: &VerifyingKey, message: &[u8], signature: &[u8; 64]) -> Result<(), Fault> {
    key.verify(message, &Signature::from_bytes(signature)).map_err(|_| refused())
}

impl MachineAuthority for Authority {
    fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(UserId, MachineId), Fault> {
        let key = VerifyingKey::from_bytes(&enrolment.public_key).map_err(|_| refused())?;
        check(&key, enrolment.message, &enrolment.signature)?;
        let user = self.tokens.lock().unwrap().remove(enrolment.token).ok_or_else(refused)?;
        let machine = MachineId::random();
        self.machines.lock().unwrap().insert(machine, (user, key));
        *self.enrolments.lock().unwrap() += 1;
        Ok((user, machine))
    }

    fn recognise(&self, machine: MachineId, message: &[u8], signature: &[u8; 64]) -> Result<UserId, Fault> {
        let (user, key) = *self.machines.lock().unwrap().get(&machine).ok_or_else(refused)?;
        check(&key, message, signature)?;
        Ok(user)
    }

    fn connected(&self, _: &Arc<MachinePlace>) {}

    fn disconnected(&self, _: &Arc<MachinePlace>) {}
}

/// The server.
pub struct MachineServer {
    /// Its hub; replaced by [`MachineServer::restart`].
    hub: Arc<Mutex<Arc<MachineHub>>>,
    /// Who may.
    pub authority: Arc<Authority>,
    address: SocketAddr,
    config: HubConfig,
    cut: Arc<Notify>,
    open: Arc<watch::Sender<bool>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl MachineServer {
    /// Listens on a free port of loopback; machines that drop out have `grace`.
    pub async fn start(grace: Duration) -> Self {
        let config = HubConfig {
            heartbeat: Duration::from_secs(1),
            grace,
            grace_closed: grace,
            ..HubConfig::new("test-server".to_owned())
        };
        let authority = Arc::new(Authority::default());
        let hub = Arc::new(Mutex::new(MachineHub::new(config.clone(), authority.clone())));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, open) = (Arc::new(Notify::new()), Arc::new(watch::Sender::new(true)));
        let accepting = {
            let (hub, cut, open) = (hub.clone(), cut.clone(), open.clone());
            tokio::spawn(async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    let (hub, cut) = (hub.lock().unwrap().clone(), cut.clone());
                    if !*open.borrow() {
                        continue;
                    }
                    // Small frames go out at once, as at the server's own door.
                    stream.set_nodelay(true).unwrap();
                    tokio::spawn(async move {
                        let cut = cut.notified();
                        let serve = async {
                            let config = WebSocketConfig::default()
                                .max_message_size(Some(MESSAGE_MAX))
                                .max_frame_size(Some(MESSAGE_MAX));
                            if let Ok(socket) = accept_async_with_config(stream, Some(config)).await {
                                let _ = hub.serve(Wire(socket)).await;
                            }
                        };
                        // A cut drops the TCP connection without a word, as a network does.
                        tokio::select! { () = serve => {} () = cut => {} }
                    });
                }
            })
        };
        Self { hub, authority, address, config, cut, open, accepting }
    }

    /// Its hub.
    pub fn hub(&self) -> Arc<MachineHub> {
        self.hub.lock().unwrap().clone()
    }

    /// Where machines join.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops every connection.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// As [`MachineServer::cut`], to be called from elsewhere.
    pub fn cutter(&self) -> impl Fn() + Send + Sync + 'static {
        let cut = self.cut.clone();
        move || cut.notify_waiters()
    }

    /// Whether new connections are served, or dropped.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Forgets every session, as a server does that is started again; tokens and keys stay.
    pub fn restart(&self) {
        *self.hub.lock().unwrap() = MachineHub::new(self.config.clone(), self.authority.clone());
        self.cut();
    }

    /// The user's machine, once it is connected.
    pub async fn joined(&self, user: UserId) -> Arc<MachinePlace> {
        within(async {
            loop {
                if let Some(place) = self.hub().joined(user) {
                    return place;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

impl Drop for MachineServer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Waits for what must come; panics after a minute, which is far beyond what a busy machine takes.
///
/// # Panics
/// When it does not come.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it did not happen within a minute")
}

/// A WebSocket as binary messages.
pub struct Wire(pub WebSocketStream<TcpStream>);

impl Stream for Wire {
    type Item = Result<Bytes, tungstenite::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => return Poll::Ready(Some(Ok(bytes))),
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(None),
                Some(Ok(_)) => {}
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
