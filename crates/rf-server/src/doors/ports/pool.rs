//! Connections to ports inside sandboxes that are kept for the next request: opening one costs an order to process 1 of
//! the sandbox. Each belongs to one sandbox and port, lives no longer than the sandbox, and is bounded in number and in
//! idle time.
//!
//! A connection goes back as soon as the head of its answer is here; whether it is free again is asked when it is taken.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{Request, Response},
};
use bytes::Bytes;
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{Builder, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use rf_places::sandbox::SandboxPlace;
use rf_policy::Permit;
use rf_types::{Code, Fault, SandboxId};
use tokio::{net::TcpStream, sync::oneshot};

/// How long a connection waits for its next request. Chosen: servers of the usual frameworks close idle ones after five
/// seconds, and one that we close first cannot be closed under a request.
const IDLE_TIME: Duration = Duration::from_secs(4);
/// How often idle connections are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(2);
/// Connections kept for one port. Chosen: more than a page opens at once.
const KEPT_MAX: usize = 64;
/// Connections of one sandbox at once, those in use included; each is one descriptor here and one inside. Chosen.
const OPEN_MAX: usize = 1_024;
/// Connections of all sandboxes at once. Chosen: a quarter of the descriptors that the server asks for at least.
const OPEN_MAX_ALL: usize = 8_192;
/// The longest head of an answer, bytes, and how many fields it may have. Chosen: as much as a request's may be, for it is
/// kept here as long, and what writes it is hostile.
pub(super) const HEAD_BYTES_MAX: usize = 128 << 10;
pub(super) const FIELDS_MAX: usize = 256;

/// A connection to a port, ready for one request.
#[derive(Debug)]
pub(super) struct Sender {
    sender: SendRequest<Body>,
    /// To the task that drives it.
    take_out: Option<oneshot::Sender<oneshot::Sender<TakenOut>>>,
}

/// A connection that was taken from HTTP in the middle of an answer's body.
#[derive(Debug)]
pub(super) struct TakenOut {
    pub(super) stream: TcpStream,
    /// What was read of it, and handed on to nobody.
    pub(super) read: Bytes,
    pub(super) seat: Seat,
}

impl Sender {
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        self.sender.try_send_request(request).await
    }

    /// Takes the connection from HTTP: none when it has ended, or goes over to another protocol by itself. What of the
    /// body was read by then is still in it, or in [`TakenOut::read`] after that.
    pub(super) async fn take_out(self) -> Option<TakenOut> {
        let (reply, taken) = oneshot::channel();
        self.take_out?.send(reply).ok()?;
        taken.await.ok()
    }
}

/// The connections; clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Connections>>);

#[derive(Debug, Default)]
struct Connections {
    kept: HashMap<(SandboxId, u16), Vec<Kept>>,
    open: HashMap<SandboxId, usize>,
    open_all: usize,
    sweeping: bool,
}

#[derive(Debug)]
struct Kept {
    sender: Sender,
    since: Instant,
}

/// One open connection; counts until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pool: Pool,
    sandbox: SandboxId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self.pool.lock();
        connections.open_all -= 1;
        match connections.open.get(&self.sandbox).copied() {
            // The last one takes the entry along.
            Some(0 | 1) | None => drop(connections.open.remove(&self.sandbox)),
            Some(open) => drop(connections.open.insert(self.sandbox, open - 1)),
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that is free now.
    pub(super) fn take(&self, sandbox: SandboxId, port: u16) -> Option<Sender> {
        let mut connections = self.lock();
        let kept = connections.kept.get_mut(&(sandbox, port))?;
        kept.retain(|kept| !kept.sender.sender.is_closed());
        // The newest that is free: the others may then grow old.
        let free = kept.iter().rposition(|kept| kept.sender.sender.is_ready())?;
        let Kept { sender, since } = kept.remove(free);
        (since.elapsed() < IDLE_TIME).then_some(sender)
    }

    /// Keeps a connection whose answer has begun, for when that has ended.
    pub(super) fn keep(&self, sandbox: SandboxId, port: u16, sender: Sender) {
        if sender.sender.is_closed() {
            return;
        }
        let mut connections = self.lock();
        let kept = connections.kept.entry((sandbox, port)).or_default();
        if kept.len() < KEPT_MAX {
            kept.push(Kept { sender, since: Instant::now() });
        }
        if !std::mem::replace(&mut connections.sweeping, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }

    /// A new connection. Ends with the sandbox at the latest.
    ///
    /// # Errors
    /// `not_found` when nothing listens; `limit_reached` when the sandbox has too many; `server_busy`; `place_lost`.
    pub(super) async fn open(
        &self,
        place: &Arc<SandboxPlace>,
        sandbox: SandboxId,
        permit: &Permit,
        port: u16,
    ) -> Result<Sender, Fault> {
        let (stream, seat) = self.connect(place, sandbox, permit, port).await?;
        drive(stream, seat, place).await
    }

    /// As [`Self::open`], for one request that asks to go over to another protocol. It is not kept.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(super) async fn open_switching(
        &self,
        place: &Arc<SandboxPlace>,
        sandbox: SandboxId,
        permit: &Permit,
        port: u16,
    ) -> Result<Sender, Fault> {
        let (stream, seat) = self.connect(place, sandbox, permit, port).await?;
        let (sender, connection) = handshake(stream).await?;
        let place = Arc::clone(place);
        tokio::spawn(async move {
            tokio::select! {
                // How it ends is seen by whoever has a request on it.
                _ = connection.with_upgrades() => {}
                _ = place.lost() => {}
            }
            drop(seat);
        });
        Ok(Sender { sender, take_out: None })
    }

    /// Gives HTTP a connection back that was taken from it and is between two messages, for the next request.
    pub(super) async fn give_back(&self, place: &Arc<SandboxPlace>, sandbox: SandboxId, port: u16, taken: TakenOut) {
        if let Ok(sender) = drive(taken.stream, taken.seat, place).await {
            self.keep(sandbox, port, sender);
        }
    }

    /// A connection as it is, counted until its seat is dropped.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(super) async fn connect(
        &self,
        place: &Arc<SandboxPlace>,
        sandbox: SandboxId,
        permit: &Permit,
        port: u16,
    ) -> Result<(TcpStream, Seat), Fault> {
        let seat = self.seat(sandbox)?;
        let stream = place.connect(permit, port).await?;
        // A proxy must not hold small pieces back; where it cannot be set they are only later.
        let _ = stream.set_nodelay(true);
        Ok((stream, seat))
    }

    fn seat(&self, sandbox: SandboxId) -> Result<Seat, Fault> {
        let mut connections = self.lock();
        if connections.open_all >= OPEN_MAX_ALL {
            return Err(Fault::new(Code::ServerBusy, "too many connections to ports", "try again in a moment"));
        }
        let open = connections.open.entry(sandbox).or_default();
        if *open >= OPEN_MAX {
            return Err(Fault::new(
                Code::LimitReached,
                format!("the sandbox has {OPEN_MAX} connections to its ports already"),
                "end some, or try again in a moment",
            ));
        }
        *open += 1;
        connections.open_all += 1;
        Ok(Seat { pool: self.clone(), sandbox })
    }
}

type Connection = hyper::client::conn::http1::Connection<TokioIo<TcpStream>, Body>;

async fn handshake(stream: TcpStream) -> Result<(SendRequest<Body>, Connection), Fault> {
    let mut builder = Builder::new();
    // As most clients of HTTP/1.1 write them: what listens here may be a few lines that never heard of another way.
    builder.title_case_headers(true).max_buf_size(HEAD_BYTES_MAX).max_headers(FIELDS_MAX);
    let begun = builder.handshake(TokioIo::new(stream)).await;
    begun.map_err(|error| Fault::new(Code::Internal, format!("a connection did not begin: {error}"), ""))
}

/// Starts the task that drives a connection until it ends, its sandbox does, or somebody takes it out.
async fn drive(stream: TcpStream, seat: Seat, place: &Arc<SandboxPlace>) -> Result<Sender, Fault> {
    let (sender, mut connection) = handshake(stream).await?;
    let (take_out, mut taken) = oneshot::channel::<oneshot::Sender<TakenOut>>();
    let place = Arc::clone(place);
    tokio::spawn(async move {
        let reply = tokio::select! {
            // How it ends is seen by whoever has a request on it.
            _ = &mut connection => return,
            _ = place.lost() => return,
            Ok(reply) = &mut taken => reply,
        };
        let parts = connection.into_parts();
        // Whoever asked may have gone: then it is closed.
        let _ = reply.send(TakenOut { stream: parts.io.into_inner(), read: parts.read_buf, seat });
    });
    Ok(Sender { sender, take_out: Some(take_out) })
}

/// Closes what was idle for too long, until nothing is kept.
async fn sweep(pool: Weak<Mutex<Connections>>) {
    loop {
        tokio::time::sleep(SWEEP_PERIOD).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut connections = pool.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |kept: &Kept| !kept.sender.sender.is_ready() || kept.since.elapsed() < IDLE_TIME;
        connections.kept.retain(|_, kept| {
            kept.retain(|kept| !kept.sender.sender.is_closed() && fresh(kept));
            !kept.is_empty()
        });
        if connections.kept.is_empty() {
            connections.sweeping = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SandboxId = SandboxId::from_bits(1);
    const TWO: SandboxId = SandboxId::from_bits(2);

    #[test]
    fn one_sandbox_cannot_take_every_connection() {
        let pool = Pool::default();
        let seats: Vec<Seat> = (0..OPEN_MAX).map(|_| pool.seat(ONE).unwrap()).collect();
        assert_eq!(pool.seat(ONE).err().unwrap().code, Code::LimitReached);
        assert!(pool.seat(TWO).is_ok());
        drop(seats);
        assert!(pool.seat(ONE).is_ok());
        let connections = pool.lock();
        assert_eq!((connections.open_all, connections.open.len()), (0, 0), "nothing is left");
    }

    #[test]
    fn all_sandboxes_together_are_bounded() {
        let pool = Pool::default();
        let all: Vec<Seat> =
            (0..OPEN_MAX_ALL as u128).map(|n| pool.seat(SandboxId::from_bits(n % 100)).unwrap()).collect();
        assert_eq!(pool.seat(SandboxId::from_bits(500)).err().unwrap().code, Code::ServerBusy);
        drop(all);
        assert!(pool.seat(SandboxId::from_bits(500)).is_ok());
    }

    #[tokio::test]
    async fn a_kept_connection_is_taken_again_and_only_for_its_own_port() {
        let pool = Pool::default();
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (sender, connection) = Builder::new().handshake(TokioIo::new(ours)).await.unwrap();
        let sender = Sender { sender, take_out: None };
        let driver = tokio::spawn(connection);
        tokio::task::yield_now().await;
        pool.keep(ONE, 80, sender);
        assert!(pool.take(TWO, 80).is_none() && pool.take(ONE, 81).is_none());
        let sender = pool.take(ONE, 80).unwrap();
        assert!(pool.take(ONE, 80).is_none());
        pool.keep(ONE, 80, sender);
        drop(theirs);
        // How it ends is of no interest.
        let _ = driver.await.unwrap();
        assert!(pool.take(ONE, 80).is_none(), "one that the program closed is none");
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweep_ends_when_nothing_is_left() {
        let pool = Pool::default();
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (sender, connection) = Builder::new().handshake(TokioIo::new(ours)).await.unwrap();
        let sender = Sender { sender, take_out: None };
        let driver = tokio::spawn(connection);
        pool.keep(ONE, 80, sender);
        assert!(pool.lock().sweeping);
        drop(theirs);
        // How it ends is of no interest.
        let _ = driver.await.unwrap();
        tokio::time::sleep(SWEEP_PERIOD * 2).await;
        let connections = pool.lock();
        assert!(!connections.sweeping && connections.kept.is_empty());
    }
}
