//! The end of a foreground exec, noted whatever its caller does.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use rf_types::{ExecId, ExecState, ExitReport, Fault, Usage};

use super::{Entry, Execs, ended_state, lock};
use crate::sandboxes::now_ms;

/// Notes the end of a foreground exec, whatever its caller does.
pub(super) struct EndGuard {
    pub(super) execs: Execs,
    pub(super) entry: Arc<Entry>,
    pub(super) exec: ExecId,
    pub(super) over: bool,
    /// It goes on when this server ends, which is when nobody waits for it any more.
    pub(super) outlives: bool,
}

impl EndGuard {
    pub(super) fn not_started(mut self, fault: &Fault) {
        self.over = true;
        self.execs.not_started(&self.entry, fault);
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if !self.over && !self.outlives {
            // The caller went away and the place kills the tree.
            const SIGKILL: i32 = 9;
            let wall_us = now_ms().saturating_sub(lock(&self.entry.info).started_at).saturating_mul(1000);
            let usage = Usage { wall_us, ..Usage::default() };
            let killed = ExitReport { code: None, signal: Some(SIGKILL), timed_out: false, usage };
            self.execs.end(&self.entry, self.exec, ExecState::Exited(killed));
        }
    }
}

/// The end of a foreground exec, noted when it comes.
pub(super) struct WatchedExit {
    pub(super) exit: BoxFuture<'static, Result<ExitReport, Fault>>,
    pub(super) guard: EndGuard,
}

impl Future for WatchedExit {
    type Output = Result<ExitReport, Fault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let end = ready!(self.exit.as_mut().poll(context));
        self.guard.over = true;
        self.guard.execs.end(&self.guard.entry, self.guard.exec, ended_state(&end));
        Poll::Ready(end)
    }
}
