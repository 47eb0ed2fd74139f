//! Many streams over one connection that may drop and come back: see [`rf_wire::machine`] for the wire.
//!
//! A [`Mux`] is one side of a session. It outlives connections: [`Mux::attach`] begins with a new one, [`pump`] moves
//! frames until that one ends. A sender keeps what the other side's user has not taken, at most a window, and goes
//! back to where the receiver is after a drop; so a stream goes on at the exact byte, and everything is bounded: each
//! direction of each stream by [`WINDOW`], streams by [`STREAMS_MAX`], records by [`RECORDS_WAITING_MAX`].
//!
//! A session is over when [`Mux::fail`] says so: then every stream and every waiter gets the reason.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt};
use rf_types::{Code, Fault};
use rf_wire::machine::{
    self, Bye, DATA_HEADER_LEN, DATA_MAX, Frame, RECORD_MAX, RECORDS_WAITING_MAX, STREAMS_MAX, StreamNews, Violation,
    WINDOW, kind, record,
};
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

mod streams;

pub use streams::{Incoming, Outgoing};

/// The stream of records.
const CONTROL: u32 = 0;
/// A ring that grew past this gives its memory back once it is empty, bytes.
const RING_KEPT: usize = 16 * 1024;

/// One side of a session. Clones are the same session.
#[derive(Clone)]
pub struct Mux {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The pump has something to write.
    writable: Notify,
    /// The number of the connection in charge; `u64::MAX` when the session is over.
    epoch: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    epoch: u64,
    attached: bool,
    dead: Option<Fault>,
    bye: Option<Vec<u8>>,
    control: Out,
    control_in: In,
    /// Who waits for room among the records.
    control_wakers: Vec<Waker>,
    outs: HashMap<u32, Out>,
    ins: HashMap<u32, In>,
    /// Streams that have something to send, each at most once.
    ready: VecDeque<u32>,
    /// Streams whose taken offset is to be told, each at most once.
    acks: VecDeque<u32>,
}

/// The sending side of a stream.
#[derive(Default)]
struct Out {
    /// Bytes from `base` on.
    ring: VecDeque<u8>,
    /// All below were taken by the other side's user.
    base: u64,
    /// All below were sent in this connection.
    sent: u64,
    /// All below were sent in some connection.
    sent_ever: u64,
    /// Sent only once the records up to here are.
    after: u64,
    queued: bool,
    /// Its user is gone: kept until the other side says stop.
    ended: bool,
    /// The other side wants no more.
    stopped: Option<Fault>,
    waker: Option<Waker>,
}

impl Out {
    fn end(&self) -> u64 {
        self.base + self.ring.len() as u64
    }

    fn room(&self) -> usize {
        (WINDOW as usize).saturating_sub(self.ring.len())
    }
}

/// The receiving side of a stream.
#[derive(Default)]
struct In {
    /// Bytes from `taken` on.
    ring: VecDeque<u8>,
    /// All below were taken by our user.
    taken: u64,
    /// All below are safe with our user, who says so later than it takes; `None`: what is taken is safe.
    safe: Option<u64>,
    /// The last offset that was told.
    told: u64,
    ack_queued: bool,
    length: Option<u64>,
    abort: Option<Fault>,
    waker: Option<Waker>,
}

impl In {
    fn received(&self) -> u64 {
        self.taken + self.ring.len() as u64
    }

    /// How far the sender may forget.
    fn done(&self) -> u64 {
        self.safe.unwrap_or(self.taken)
    }
}

/// What a stream says when its place is gone.
#[must_use]
pub fn place_lost(why: &str) -> Fault {
    Fault::new(
        Code::PlaceLost,
        format!("the machine is gone: {why}"),
        "how the operation ended is not known, and it was not run elsewhere; see that `ringfence join` runs there",
    )
}

/// A fault as the other side told it, made fit to be shown: short, without control characters, and of a code that a
/// place may answer with.
#[must_use]
pub fn tame(fault: Fault) -> Fault {
    let text = |text: &str| text.chars().filter(|c| !c.is_control()).take(512).collect::<String>();
    let code = match fault.code {
        code @ (Code::InvalidRequest
        | Code::NotFound
        | Code::Conflict
        | Code::TooLarge
        | Code::PlaceLost
        | Code::OwnerForbids
        | Code::LayerUnavailable
        | Code::ExecFailed
        | Code::FileFailed
        | Code::DiskFull
        | Code::PlaceExhausted
        | Code::TimedOut
        | Code::Unsupported) => code,
        // Whether somebody may is not for a place to say.
        _ => Code::FileFailed,
    };
    Fault::new(code, text(&fault.message), text(&fault.hint))
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

impl Mux {
    /// A session without a connection.
    #[must_use]
    pub fn new() -> Self {
        let shared =
            Shared { state: Mutex::new(State::default()), writable: Notify::new(), epoch: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock leaves the state half changed, so a poisoned one is as good.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far each stream was received, for the handshake.
    #[must_use]
    pub fn received(&self) -> Vec<(u32, u64)> {
        let state = self.state();
        let control = (CONTROL, state.control_in.received());
        std::iter::once(control).chain(state.ins.iter().map(|(id, r#in)| (*id, r#in.received()))).collect()
    }

    /// Puts a new connection in charge; the one before ends. `received` is how far the other side got. Returns the
    /// connection's number, for [`pump`].
    ///
    /// # Errors
    /// [`Violation`] for an offset that was never sent; the session's end, when it is over.
    pub fn attach(&self, received: &[(u32, u64)]) -> Result<u64, Violation> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.dead.is_some() {
            return Err(Violation("the session is over"));
        }
        let received: HashMap<u32, u64> = received.iter().copied().collect();
        let back = |stream: u32, out: &mut Out| {
            // A stream that the other side does not know yet, or no more, starts again from what was not taken.
            let offset = received.get(&stream).copied().unwrap_or(out.base).max(out.base);
            if offset > out.sent_ever {
                return Err(Violation("an offset that was never sent"));
            }
            out.sent = offset;
            Ok(())
        };
        back(CONTROL, &mut state.control)?;
        for (stream, out) in &mut state.outs {
            back(*stream, out)?;
            if !out.queued {
                out.queued = true;
                state.ready.push_back(*stream);
            }
        }
        // An acknowledgement may have been on its way when the connection dropped.
        for (stream, r#in) in &mut state.ins {
            if !r#in.ack_queued {
                r#in.ack_queued = true;
                state.acks.push_back(*stream);
            }
        }
        if !state.control_in.ack_queued {
            state.control_in.ack_queued = true;
            state.acks.push_back(CONTROL);
        }
        state.epoch += 1;
        state.attached = true;
        let epoch = state.epoch;
        drop(guard);
        self.shared.epoch.send_replace(epoch);
        Ok(epoch)
    }

    /// Whether a connection is in charge.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.state().attached
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn dead(&self) -> Option<Fault> {
        self.state().dead.clone()
    }

    /// Ends the session: every stream and waiter gets `fault`, from now on too.
    pub fn fail(&self, fault: Fault) {
        let mut wakers = Vec::new();
        {
            let mut state = self.state();
            if state.dead.is_some() {
                return;
            }
            state.dead = Some(fault);
            state.attached = false;
            wakers.append(&mut state.control_wakers);
            wakers.extend(state.outs.values_mut().filter_map(|out| out.waker.take()));
            wakers.extend(state.ins.values_mut().filter_map(|r#in| r#in.waker.take()));
        }
        wakers.into_iter().for_each(Waker::wake);
        self.shared.epoch.send_replace(u64::MAX);
    }

    /// Tells the other side goodbye as the last frame of the connection in charge.
    pub fn say_bye(&self, bye: &Bye) {
        self.state().bye = Some(machine::encode_json(kind::BYE, bye));
        self.shared.writable.notify_one();
    }

    /// Waits until the session is over.
    pub async fn ended(&self) {
        let mut epoch = self.shared.epoch.subscribe();
        // The sender lives as long as `self`.
        let _ = epoch.wait_for(|epoch| *epoch == u64::MAX).await;
    }

    /// Puts a record on stream 0. It arrives exactly once, or the session ends.
    pub fn send(&self, message: &impl Serialize) {
        self.record(record::MESSAGE, message);
    }

    fn record(&self, tag: u8, value: &impl Serialize) {
        let json = serde_json::to_vec(value).expect("plain data has a JSON form");
        {
            let mut state = self.state();
            if state.dead.is_some() {
                return;
            }
            if state.control.ring.len() + json.len() <= RECORDS_WAITING_MAX {
                let ring = &mut state.control.ring;
                ring.push_back(tag);
                // INVARIANT: `RECORDS_WAITING_MAX` fits 32 bits.
                ring.extend((json.len() as u32).to_le_bytes());
                ring.extend(json);
                drop(state);
                self.shared.writable.notify_one();
                return;
            }
        }
        self.fail(place_lost("it takes no messages"));
    }

    /// Waits until fewer records wait than one window holds, so that whoever makes many is slowed to the other side's
    /// pace.
    ///
    /// # Errors
    /// The session's end.
    pub async fn room(&self) -> Result<(), Fault> {
        poll_fn(|cx| {
            let mut state = self.state();
            if let Some(fault) = &state.dead {
                return Poll::Ready(Err(fault.clone()));
            }
            if state.control.room() > 0 {
                return Poll::Ready(Ok(()));
            }
            if !state.control_wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.control_wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Opens the sending side of `stream`, when the other side has its receiving side open.
    ///
    /// # Errors
    /// `place_exhausted` with too many streams; `conflict` for one that is open; the session's end.
    pub fn open_out(&self, stream: u32) -> Result<Outgoing, Fault> {
        self.open_out_after(stream, 0)
    }

    /// Opens the sending side of `stream` and holds its bytes back until [`Outgoing::release`], which is called once
    /// the record is sent that makes the other side open its own.
    ///
    /// # Errors
    /// As for [`Mux::open_out`].
    pub fn open_out_held(&self, stream: u32) -> Result<Outgoing, Fault> {
        self.open_out_after(stream, u64::MAX)
    }

    fn open_out_after(&self, stream: u32, after: u64) -> Result<Outgoing, Fault> {
        let mut state = self.state();
        if let Some(fault) = &state.dead {
            return Err(fault.clone());
        }
        check_new(stream, state.outs.len(), state.outs.contains_key(&stream))?;
        state.outs.insert(stream, Out { after, ..Out::default() });
        Ok(Outgoing { mux: self.clone(), stream, end_on_drop: false, over: false })
    }

    /// Opens the receiving side of `stream`.
    ///
    /// # Errors
    /// As for [`Mux::open_out`].
    pub fn open_in(&self, stream: u32) -> Result<Incoming, Fault> {
        let mut state = self.state();
        if let Some(fault) = &state.dead {
            return Err(fault.clone());
        }
        check_new(stream, state.ins.len(), state.ins.contains_key(&stream))?;
        state.ins.insert(stream, In::default());
        Ok(Incoming { mux: self.clone(), stream, over: false })
    }

    /// The next frame to write, if there is one and connection `epoch` is in charge.
    fn next_frame(&self, epoch: u64) -> Option<Vec<u8>> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.epoch != epoch || !state.attached {
            return None;
        }
        while let Some(stream) = state.acks.pop_front() {
            let r#in = if stream == CONTROL { Some(&mut state.control_in) } else { state.ins.get_mut(&stream) };
            if let Some(r#in) = r#in {
                r#in.ack_queued = false;
                r#in.told = r#in.done();
                return Some(machine::encode_ack(stream, r#in.told));
            }
        }
        if let Some(frame) = cut(CONTROL, &mut state.control) {
            return Some(frame);
        }
        for _ in 0..state.ready.len() {
            let stream = state.ready.pop_front()?;
            let Some(out) = state.outs.get_mut(&stream) else { continue };
            if out.after > state.control.sent {
                // The record that opens it is not out yet; the next acknowledgement of records lets it go on.
                state.ready.push_back(stream);
                continue;
            }
            out.queued = false;
            if let Some(frame) = cut(stream, out) {
                out.queued = true;
                state.ready.push_back(stream);
                return Some(frame);
            }
        }
        None
    }

    fn on_data(&self, stream: u32, offset: u64, bytes: &[u8]) -> Result<(), Violation> {
        let mut guard = self.state();
        let state = &mut *guard;
        // A stream that we gave up may still have bytes on their way.
        let Some(r#in) = state.ins.get_mut(&stream) else { return Ok(()) };
        receive(r#in, offset, bytes)?;
        if r#in.length.is_some_and(|length| r#in.received() > length) {
            return Err(Violation("a stream is longer than it said"));
        }
        if let Some(waker) = r#in.waker.take() {
            drop(guard);
            waker.wake();
        }
        Ok(())
    }

    /// Takes bytes of stream 0 and returns the records that are whole.
    fn on_control(&self, offset: u64, bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, Violation> {
        let mut guard = self.state();
        let state = &mut *guard;
        let r#in = &mut state.control_in;
        // Records are taken at once, so the window counts from what was received and a record may be longer than it.
        if offset > r#in.received() {
            return Err(Violation("bytes of a stream are missing"));
        }
        let known = usize::try_from(r#in.received() - offset).unwrap_or(usize::MAX);
        r#in.ring.extend(bytes.get(known..).unwrap_or_default());
        let mut records = Vec::new();
        loop {
            if r#in.ring.len() < record::HEADER_LEN {
                break;
            }
            let mut head = r#in.ring.iter().copied();
            let mut next = || head.next().unwrap_or_default();
            let tag = next();
            let length = u32::from_le_bytes([next(), next(), next(), next()]) as usize;
            if length > RECORD_MAX {
                return Err(Violation("a record is too long"));
            }
            if r#in.ring.len() < record::HEADER_LEN + length {
                break;
            }
            r#in.ring.drain(..record::HEADER_LEN);
            records.push((tag, r#in.ring.drain(..length).collect()));
            r#in.taken += (record::HEADER_LEN + length) as u64;
        }
        if !r#in.ack_queued {
            r#in.ack_queued = true;
            state.acks.push_back(CONTROL);
            self.shared.writable.notify_one();
        }
        Ok(records)
    }

    fn on_ack(&self, stream: u32, offset: u64) -> Result<(), Violation> {
        let mut wakers = Vec::new();
        {
            let mut guard = self.state();
            let state = &mut *guard;
            let out = if stream == CONTROL {
                Some(&mut state.control)
            } else {
                // Late news of a stream that is over.
                state.outs.get_mut(&stream)
            };
            let Some(out) = out else { return Ok(()) };
            if offset > out.sent_ever {
                return Err(Violation("more was acknowledged than was sent"));
            }
            let taken = usize::try_from(offset.saturating_sub(out.base)).unwrap_or(usize::MAX);
            out.ring.drain(..taken.min(out.ring.len()));
            out.base = out.base.max(offset);
            // Bytes of the connection before may have come after its end was noticed here.
            out.sent = out.sent.max(out.base);
            if out.ring.is_empty() && out.ring.capacity() > RING_KEPT {
                out.ring = VecDeque::new();
            }
            wakers.extend(out.waker.take());
            if stream == CONTROL {
                wakers.append(&mut state.control_wakers);
            } else if !out.queued {
                out.queued = true;
                state.ready.push_back(stream);
            }
        }
        self.shared.writable.notify_one();
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn on_news(&self, news: StreamNews) -> Result<(), Violation> {
        let mut guard = self.state();
        let state = &mut *guard;
        let waker = match news {
            StreamNews::End { stream, length } => match state.ins.get_mut(&stream) {
                Some(r#in) if r#in.received() > length || r#in.length.is_some() => {
                    return Err(Violation("a stream ends before its end"));
                }
                Some(r#in) => {
                    r#in.length = Some(length);
                    r#in.waker.take()
                }
                None => None,
            },
            StreamNews::Abort { stream, fault } => state.ins.get_mut(&stream).and_then(|r#in| {
                r#in.abort = Some(tame(fault));
                r#in.waker.take()
            }),
            StreamNews::Stop { stream, fault } => {
                let ended = state.outs.get(&stream).is_some_and(|out| out.ended);
                if ended {
                    state.outs.remove(&stream).and_then(|out| out.waker)
                } else {
                    state.outs.get_mut(&stream).and_then(|out| {
                        out.base = out.end();
                        out.sent = out.base;
                        out.ring = VecDeque::new();
                        out.stopped = Some(fault.map_or_else(
                            || Fault::new(Code::FileFailed, "the other side reads no more of this stream", ""),
                            tame,
                        ));
                        out.waker.take()
                    })
                }
            }
        };
        drop(guard);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Connection `epoch` has ended. Whether none came after it.
    pub fn detach(&self, epoch: u64) -> bool {
        let mut state = self.state();
        let last = state.epoch == epoch;
        if last {
            state.attached = false;
        }
        last
    }

    /// Whether connection `epoch` has ended and none came after it.
    #[must_use]
    pub fn is_detached_since(&self, epoch: u64) -> bool {
        let state = self.state();
        state.epoch == epoch && !state.attached
    }
}

/// Adds what is new of `bytes`, which begin at `offset`.
fn receive(r#in: &mut In, offset: u64, bytes: &[u8]) -> Result<(), Violation> {
    let received = r#in.received();
    if offset > received {
        return Err(Violation("bytes of a stream are missing"));
    }
    let end = offset.checked_add(bytes.len() as u64).ok_or(Violation("an offset is out of range"))?;
    if end > r#in.taken + WINDOW {
        return Err(Violation("a stream was sent past its window"));
    }
    let known = usize::try_from(received - offset).unwrap_or(usize::MAX);
    r#in.ring.extend(bytes.get(known..).unwrap_or_default());
    Ok(())
}

fn check_new(stream: u32, open: usize, known: bool) -> Result<(), Fault> {
    if stream == CONTROL || known {
        return Err(Fault::new(Code::Conflict, "a stream of this number is open", ""));
    }
    if open >= STREAMS_MAX {
        return Err(Fault::new(
            Code::PlaceExhausted,
            format!("{STREAMS_MAX} streams of this machine are open"),
            "end some of its execs and transfers",
        ));
    }
    Ok(())
}

/// Cuts the next `DATA` frame of a stream, if it may send one.
fn cut(stream: u32, out: &mut Out) -> Option<Vec<u8>> {
    let from = usize::try_from(out.sent - out.base).ok()?;
    // Records are bounded by count of bytes and taken at once; the window keeps replay of one drop small.
    let to = out.ring.len().min(from + DATA_MAX).min(WINDOW as usize);
    if from >= to {
        return None;
    }
    let mut frame = Vec::with_capacity(DATA_HEADER_LEN + to - from);
    machine::data_header(&mut frame, kind::DATA, stream, out.sent);
    let (head, tail) = out.ring.as_slices();
    frame.extend(head.get(from..to.min(head.len())).unwrap_or_default());
    frame.extend(&tail[from.saturating_sub(head.len())..to.saturating_sub(head.len())]);
    out.sent = out.base + to as u64;
    out.sent_ever = out.sent_ever.max(out.sent);
    Some(frame)
}

/// Why a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// It fell silent, or another took its place; the session may go on.
    Dropped(String),
    /// It was closed from without: the other program died, or something between the two did; the session may go on.
    Closed(String),
    /// The other side broke the protocol; the session is over.
    Broken(Violation),
    /// The other side said goodbye.
    Bye(Bye),
    /// We said goodbye.
    SaidBye,
    /// The session is over.
    Over,
}

/// Moves frames over `transport` as connection `epoch` until it ends. `on_record` gets each record of stream 0, in
/// order; it must not wait.
pub async fn pump<T, E>(
    mux: &Mux,
    epoch: u64,
    transport: T,
    heartbeat: Duration,
    mut on_record: impl FnMut(&[u8]) -> Result<(), Violation>,
) -> Ended
where
    T: Stream<Item = Result<Bytes, E>> + Sink<Bytes, Error = E>,
    E: std::fmt::Display,
{
    let (mut sink, stream) = transport.split();
    let mut stream = std::pin::pin!(stream);
    let writer = async {
        let mut beat = interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(frame) = mux.next_frame(epoch) {
                if let Err(error) = sink.feed(frame.into()).await {
                    return Ended::Closed(error.to_string());
                }
            }
            let bye = mux.state().bye.take();
            let last = bye.is_some();
            if let Some(bye) = bye
                && let Err(error) = sink.feed(bye.into()).await
            {
                return Ended::Closed(error.to_string());
            }
            if let Err(error) = sink.flush().await {
                return Ended::Closed(error.to_string());
            }
            if last {
                return Ended::SaidBye;
            }
            tokio::select! {
                () = mux.shared.writable.notified() => {}
                _ = beat.tick() => {
                    if let Err(error) = sink.feed(machine::encode(kind::PING, &[]).into()).await {
                        return Ended::Closed(error.to_string());
                    }
                }
            }
        }
    };
    let reader = async {
        loop {
            let message = match timeout_at(Instant::now() + 3 * heartbeat, stream.next()).await {
                Err(_) => return Ended::Dropped("no sign of life".to_owned()),
                Ok(None) => return Ended::Closed("it was closed".to_owned()),
                Ok(Some(Err(error))) => return Ended::Closed(error.to_string()),
                Ok(Some(Ok(message))) => message,
            };
            let done = match Frame::decode(&message) {
                Ok(Frame::Ping) => Ok(()),
                Ok(Frame::Ack { stream, offset }) => mux.on_ack(stream, offset),
                Ok(Frame::Data { stream: CONTROL, offset, bytes }) => {
                    mux.on_control(offset, bytes).and_then(|records| {
                        records.into_iter().try_for_each(|(tag, json)| match tag {
                            record::STREAM => serde_json::from_slice(&json)
                                .map_err(|_| Violation("news of a stream cannot be read"))
                                .and_then(|news| mux.on_news(news)),
                            record::MESSAGE => on_record(&json),
                            _ => Err(Violation("a record of an unknown kind")),
                        })
                    })
                }
                Ok(Frame::Data { stream, offset, bytes }) => mux.on_data(stream, offset, bytes),
                Ok(Frame::Json { kind: kind::BYE, json }) => {
                    return serde_json::from_slice(json)
                        .map_or(Ended::Broken(Violation("a goodbye cannot be read")), Ended::Bye);
                }
                Ok(Frame::Json { .. }) => Err(Violation("a handshake in the middle")),
                Err(violation) => Err(violation),
            };
            if let Err(violation) = done {
                return Ended::Broken(violation);
            }
        }
    };
    let replaced = async {
        let mut now = mux.shared.epoch.subscribe();
        let now = now.wait_for(|now| *now != epoch).await.map_or(u64::MAX, |now| *now);
        if now == u64::MAX { Ended::Over } else { Ended::Dropped("another connection took its place".to_owned()) }
    };
    let ended = tokio::select! {
        biased;
        ended = replaced => ended,
        ended = reader => ended,
        ended = writer => ended,
    };
    mux.detach(epoch);
    ended
}
