//! Accepts connections and serves HTTP/1.1, HTTP/2 and WebSocket on each, within bounds: connections at once, time for
//! a header, time for a TLS handshake. Ends gracefully: no new request, running ones get their time.

mod duct;
mod unread;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::http::Request;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rf_gate::Party;
use rf_types::{Code, Fault, RequestId};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

pub(crate) use self::duct::{Duct, Filling};
use crate::{app::Peer, config::DoorConfig, refusal::Refusal, service::Door, tls::Certificate};

/// How often certificate files are looked at. Chosen: renewals come days ahead.
const CERTIFICATE_PERIOD: Duration = Duration::from_secs(5);
/// How long the listener rests when the process has no descriptors left. Chosen: one connection may end meanwhile.
const ACCEPT_REST: Duration = Duration::from_millis(20);
/// How long is read on what a client still sends of a request that was answered before its end. Chosen: a local client has
/// read the answer by then, and another one will have begun to.
const LINGER: Duration = Duration::from_millis(500);
/// Most that is kept of one HTTP/1.1 connection before it is a request: its head has to fit, and a body is read in pieces of
/// at most that much. Chosen: strangers have it before their credential is read, on as many connections as there may be.
const H1_BYTES_MAX: usize = 128 << 10;
/// Header list and streams of one HTTP/2 connection. Chosen: some clients keep one connection for all they do.
const H2_HEADER_BYTES_MAX: u32 = 64 << 10;
const H2_STREAMS_MAX: u32 = 128;
/// What a client may send over HTTP/2 before anybody takes it: of one stream, and of all of a connection. Chosen: ten
/// megabytes a second at a distance of 50 ms, and little enough for as many connections as there may be.
const H2_STREAM_WINDOW: u32 = 512 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// What waits in one stream of HTTP/2 for a client that does not read. Chosen: as for HTTP/1.1.
const H2_SEND_BYTES_MAX: usize = 128 << 10;

/// Serves `door` on `listener` until `shutdown` resolves, then gives running requests their grace.
pub async fn serve(
    listener: TcpListener,
    door: Door,
    certificate: Option<Arc<Certificate>>,
    config: &DoorConfig,
    shutdown: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(config.connections_max as usize));
    let peers = Peers { counts: Arc::default(), max: config.connections_per_peer_max };
    let stall = Duration::from_millis(config.stall_timeout_ms);
    let header_timeout = Duration::from_millis(config.header_timeout_ms);
    let builder = builder(header_timeout);
    let acceptor = match certificate.as_ref().map(Certificate::acceptor).transpose() {
        Ok(acceptor) => acceptor,
        // Never plain instead.
        Err(error) => return tracing::error!(%error, "the certificate cannot be served"),
    };
    let mut look = tokio::time::interval(CERTIFICATE_PERIOD);
    tokio::pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            _ = look.tick() => {
                if let Some(certificate) = &certificate {
                    reload(certificate);
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // EMFILE and the like: the connection stays in the queue, so trying at once would spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            },
        };
        let seat = Arc::clone(&room).try_acquire_owned().ok().zip(peers.take(peer.ip()));
        let Some(seat) = seat else {
            door.metrics().connections_refused.inc();
            tokio::spawn(turn_away(stream, acceptor.is_some()));
            continue;
        };
        let _ = stream.set_nodelay(true);
        let tls = acceptor.is_some();
        let line = Line { tls, duct: (!tls).then(Duct::default), ..Line::none() };
        let stream = Impatient { stream, stall, waiting: None, lingering: None, line: line.clone() };
        let watcher = graceful.watcher();
        let (door, builder, acceptor) = (door.clone(), builder.clone(), acceptor.clone());
        tokio::spawn(async move {
            door.metrics().connections.inc();
            match acceptor {
                Some(acceptor) => {
                    // Without a handshake in time there is nobody to answer.
                    if let Ok(Ok(stream)) = tokio::time::timeout(header_timeout, acceptor.accept(stream)).await {
                        connection(stream, (peer, line), &door, &builder, watcher, header_timeout).await;
                    }
                }
                None => connection(stream, (peer, line), &door, &builder, watcher, header_timeout).await,
            }
            door.metrics().connections.dec();
            drop(seat);
        });
    }
    drop(listener);
    let grace = Duration::from_millis(config.shutdown_grace_ms);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open when the grace was over");
    }
}

/// The connection that a request came over, as an extension of its requests.
#[derive(Clone, Debug)]
pub struct Line {
    /// Whether it is under TLS.
    pub tls: bool,
    reset: Arc<AtomicBool>,
    linger: Arc<AtomicBool>,
    duct: Option<Duct>,
}

impl Line {
    /// A line of its own, for requests that came over none.
    #[must_use]
    pub fn none() -> Self {
        Self { tls: false, reset: Arc::default(), linger: Arc::default(), duct: None }
    }

    /// The way around this program for the bytes of an answer. For HTTP/1.1 without TLS alone, where what is answered and
    /// what is sent are the same bytes.
    pub(crate) fn duct(&self) -> Option<&Duct> {
        self.duct.as_ref()
    }

    /// Has the connection end with a reset (RST) instead of an orderly end, once it is given up: what was under way on
    /// it is not to be taken for whole. For HTTP/1.1 alone, where one request at a time has the connection.
    pub fn reset_at_end(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Has the connection end only when its client has ended it as well, or after a moment: closed with bytes unread, it
    /// would be reset, and the client might never see the answer (RFC 9112, section 9.6).
    fn linger_at_end(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }
}

/// Connections of each peer, so that one cannot take every seat.
#[derive(Clone)]
struct Peers {
    counts: Arc<Mutex<HashMap<Party, u32>>>,
    max: u32,
}

/// One connection of a peer's; counts until it is dropped.
struct PeerSeat {
    peers: Peers,
    peer: Party,
}

impl Peers {
    fn take(&self, address: IpAddr) -> Option<PeerSeat> {
        let peer = Party::of(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(PeerSeat { peers: self.clone(), peer })
    }
}

impl Drop for PeerSeat {
    fn drop(&mut self) {
        let mut counts = self.peers.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get(&self.peer).copied() {
            // The last one takes the entry along.
            Some(0 | 1) | None => drop(counts.remove(&self.peer)),
            Some(count) => drop(counts.insert(self.peer, count - 1)),
        }
    }
}

/// A connection that is given up when its client takes no byte for too long: whoever asks for much and reads nothing
/// would hold it, and what runs behind it, for ever.
struct Impatient {
    stream: TcpStream,
    stall: Duration,
    waiting: Option<Pin<Box<tokio::time::Sleep>>>,
    lingering: Option<Pin<Box<tokio::time::Sleep>>>,
    line: Line,
}

impl Drop for Impatient {
    fn drop(&mut self) {
        if self.line.reset.load(Ordering::Relaxed) {
            // A connection that is no more needs none (socket(7), SO_LINGER with a time of 0).
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl Impatient {
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let stall = self.stall;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Impatient {
    /// Reads and drops what still comes, until the client's end or the end of [`LINGER`].
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let over = self.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut dropped = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut dropped);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                // The answer is out; how the client ends is its own affair.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &self.line.duct {
            Some(duct) if duct::is_placeholder(bytes) => duct.poll_drain(&self.stream, bytes.len(), context),
            _ => Pin::new(&mut self.stream).poll_write(context, bytes),
        };
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // What comes before a placeholder goes out first, by itself.
        let plain = match self.line.duct {
            Some(_) => bytes.iter().position(|bytes| duct::is_placeholder(bytes)).unwrap_or(bytes.len()),
            None => bytes.len(),
        };
        match bytes.first() {
            Some(first) if plain == 0 => self.poll_write(context, first),
            _ => {
                let written = Pin::new(&mut self.stream).poll_write_vectored(context, &bytes[..plain]);
                self.judge(written, context)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.reset.load(Ordering::Relaxed) {
            // An orderly end would come before the reset.
            return Poll::Ready(Ok(()));
        }
        if self.lingering.is_none() {
            let ended = Pin::new(&mut self.stream).poll_shutdown(context);
            if !matches!(ended, Poll::Ready(Ok(()))) || !self.line.linger.load(Ordering::Relaxed) {
                return ended;
            }
        }
        self.poll_linger(context)
    }
}

fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(H1_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEADER_BYTES_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

fn reload(certificate: &Certificate) {
    match certificate.reload() {
        Ok(true) => tracing::info!("the certificate was read again"),
        Ok(false) => {}
        Err(error) => tracing::error!(error = %error, "the changed certificate cannot be used; the old one stays"),
    }
}

/// One connection, from its first byte to its last.
async fn connection<S>(
    stream: S,
    (peer, line): (SocketAddr, Line),
    door: &Door,
    builder: &auto::Builder<TokioExecutor>,
    watcher: hyper_util::server::graceful::Watcher,
    header_timeout: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seen = Arc::new(AtomicBool::new(false));
    let service = service_fn({
        let (door, seen) = (door.clone(), Arc::clone(&seen));
        move |mut request: Request<hyper::body::Incoming>| {
            seen.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(peer.ip()));
            request.extensions_mut().insert(line.clone());
            let (door, line) = (door.clone(), line.clone());
            async move {
                let (request, unread) = unread::watch(request);
                let mut response = door.answer(request).await;
                if unread.say(&mut response) {
                    line.linger_at_end();
                }
                Ok::<_, Infallible>(response)
            }
        }
    });
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let served = watcher.watch(served);
    tokio::pin!(served);
    // The protocol is told by the first bytes, and waiting for those is not under hyper's own header timeout.
    let first = tokio::time::sleep(header_timeout);
    tokio::pin!(first);
    let mut waiting = true;
    loop {
        tokio::select! {
            ended = &mut served => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, error, "a connection ended badly");
                }
                return;
            }
            () = &mut first, if waiting => {
                if !seen.load(Ordering::Relaxed) {
                    tracing::debug!(%peer, "a connection sent no request in time");
                    return;
                }
                waiting = false;
            }
        }
    }
}

/// Tells a client that there is no room; with TLS there is no room for the handshake either.
async fn turn_away(mut stream: TcpStream, tls: bool) {
    if tls {
        return;
    }
    let fault = Fault::new(Code::ServerBusy, "too many connections", "keep connections alive, or try again later");
    let body = Refusal::from(fault).body(RequestId::random());
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let write = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await
    };
    // Whether it is read is the client's affair.
    let _ = tokio::time::timeout(Duration::from_secs(1), write).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_of_one_network_share_their_seats() {
        let peers = Peers { counts: Arc::default(), max: 2 };
        let take = |address: &str| peers.take(address.parse().unwrap());
        let seats = [take("2001:db8::1"), take("2001:db8::2")].map(Option::unwrap);
        assert!(take("2001:db8::ffff:3").is_none());
        assert!(take("2001:db8:0:1::1").is_some() && take("192.0.2.1").is_some());
        drop(seats);
        assert!(take("2001:db8::ffff:3").is_some());
        assert!(peers.counts.lock().unwrap().is_empty());
    }
}
