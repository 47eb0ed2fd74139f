//! An exec's stream as frames ([`rf_wire::frames`]), for a body of HTTP and for a WebSocket.

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use rf_places::Foreground;
use rf_types::{ExecState, Fault};
use rf_wire::frames;
use serde::Serialize;

use crate::{
    app::Caller,
    doors::execs::{Running, feed},
    operation::Operation,
    output::{Event, Output},
    refusal::{Refusal, to_json},
};

/// One whole frame of JSON.
pub fn frame(kind: u8, value: &(impl Serialize + ?Sized)) -> Bytes {
    frame_of(kind, &to_json(value))
}

/// One whole frame.
pub fn frame_of(kind: u8, payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(frames::HEADER_LEN + payload.len());
    bytes.extend_from_slice(&frames::header(kind, payload.len()));
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// The frames of an exec, from the first to the last; the operation ends before the last one is handed out. Dropped
/// before, the exec's tree is killed.
pub fn frames_of(
    running: Running,
    caller: &Caller,
    metrics: std::sync::Arc<crate::metrics::Metrics>,
) -> BoxStream<'static, Bytes> {
    struct Streaming {
        started: Option<Bytes>,
        operation: Option<Operation>,
        output: Output,
        feeding: Option<BoxFuture<'static, ()>>,
        fallen: BoxFuture<'static, Fault>,
        request: rf_types::RequestId,
        metrics: std::sync::Arc<crate::metrics::Metrics>,
    }
    let started = Some(frame(frames::STARTED, &running.started()));
    let Running { operation, exec, place: _, stdin, held } = running;
    let Foreground { id: _, pid: _, stdin: writer, stdout, stderr, resize, exit } = exec;
    let output = Output::new(stdout, stderr, exit);
    let feeding = Some(feed(writer, stdin, held, resize.is_some()).boxed());
    let fallen = operation.fallen();
    let request = caller.request;
    let streaming = Streaming { started, operation: Some(operation), output, feeding, fallen, request, metrics };
    stream::unfold(streaming, |mut s| async move {
        if let Some(started) = s.started.take() {
            return Some((started, s));
        }
        s.operation.as_ref()?;
        let event = loop {
            let feeding = async {
                match &mut s.feeding {
                    Some(feeding) => feeding.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = s.output.next() => break event,
                () = feeding => s.feeding = None,
                // What is dropped with this stream is killed.
                fault = &mut s.fallen => break Some(Event::Fault(fault)),
            }
        };
        let last = match event {
            Some(Event::Output(frame)) => {
                s.metrics.stream_bytes.inc_by((frame.len() - frames::HEADER_LEN) as u64);
                return Some((frame, s));
            }
            Some(Event::Exit(exit)) => Ok(exit),
            Some(Event::Fault(fault)) => Err(fault),
            None => return None,
        };
        let mut operation = s.operation.take()?;
        if let Ok(exit) = &last {
            operation.set_exit(exit);
        }
        let last = match operation.finish(last).await {
            Ok(exit) => frame(frames::EXIT, &crate::api::ExitAnswer::from(exit)),
            Err(refusal) => frame_of(frames::FAULT, &refusal.body(s.request)),
        };
        Some((last, s))
    })
    .boxed()
}

/// How an exec's last state is told in a stream.
pub fn end_frame(state: ExecState, request: rf_types::RequestId) -> Bytes {
    match state {
        ExecState::Exited(exit) => frame(frames::EXIT, &crate::api::ExitAnswer::from(exit)),
        ExecState::Lost | ExecState::Running => {
            let fault = Fault::new(
                rf_types::Code::PlaceLost,
                "the place went away, so how the exec ended is not known",
                "it was not run elsewhere",
            );
            frame_of(frames::FAULT, &Refusal::from(fault).body(request))
        }
    }
}
