//! Following the output of a background exec: what is in its spool first, then what comes.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use rf_types::{ExecState, Fault};
use tokio::sync::watch;

use crate::{
    content::content,
    execs::{Entry, ExecEvent},
    spool::{Progress, Which},
};

/// One output as it is followed.
struct Follow {
    which: Which,
    progress: watch::Receiver<Progress>,
    position: u64,
    reading: Option<BoxStream<'static, Result<Bytes, Fault>>>,
    over: bool,
}

struct Attached {
    entry: Arc<Entry>,
    outputs: Vec<Follow>,
    follow: bool,
    /// What is told after all bytes.
    last: Option<VecDeque<ExecEvent>>,
}

/// The events of an exec in the background, from the given offsets on.
pub(crate) fn attach(
    entry: Arc<Entry>,
    stdout_from: u64,
    stderr_from: u64,
    follow: bool,
) -> BoxStream<'static, Result<ExecEvent, Fault>> {
    let outputs = [(Which::Stdout, stdout_from), (Which::Stderr, stderr_from)];
    let outputs = outputs.into_iter().filter_map(|(which, position)| {
        let (progress, _) = entry.output(which)?;
        Some(Follow { which, progress, position, reading: None, over: false })
    });
    let outputs = outputs.collect();
    let attached = Attached { entry, outputs, follow, last: None };
    Box::pin(futures::stream::unfold(Some(attached), |attached| async move {
        let mut attached = attached?;
        match attached.next().await {
            Some(Ok(event)) => Some((Ok(event), Some(attached))),
            Some(Err(fault)) => Some((Err(fault), None)),
            None => None,
        }
    }))
}

impl Attached {
    async fn next(&mut self) -> Option<Result<ExecEvent, Fault>> {
        loop {
            for output in &mut self.outputs {
                match output.ready(&self.entry, self.follow).await {
                    Ok(Some(bytes)) => {
                        return Some(Ok(match output.which {
                            Which::Stdout => ExecEvent::Stdout(bytes),
                            Which::Stderr => ExecEvent::Stderr(bytes),
                        }));
                    }
                    Ok(None) => {}
                    Err(fault) => return Some(Err(fault)),
                }
            }
            let waiting: Vec<_> = self.outputs.iter_mut().filter(|output| !output.over).collect();
            if waiting.is_empty() {
                return self.last().await.map(Ok);
            }
            let changed = waiting.into_iter().map(|output| Box::pin(output.progress.changed()));
            // The pump's side lives as long as the exec is kept, and `over` says that nothing more comes.
            if futures::future::select_all(changed).await.0.is_err() {
                return self.last().await.map(Ok);
            }
        }
    }

    async fn last(&mut self) -> Option<ExecEvent> {
        if self.last.is_none() {
            let mut last = VecDeque::new();
            for output in &self.outputs {
                if output.progress.borrow().truncated {
                    last.push_back(ExecEvent::Truncated(output.which));
                }
            }
            let mut state = self.entry.state();
            let ended = if self.follow {
                state.wait_for(|state| *state != ExecState::Running).await.map(|state| *state).ok()
            } else {
                Some(*state.borrow()).filter(|state| *state != ExecState::Running)
            };
            last.extend(ended.map(ExecEvent::Ended));
            self.last = Some(last);
        }
        self.last.as_mut().and_then(VecDeque::pop_front)
    }
}

impl Follow {
    /// The next bytes that are there; `None` when none are now.
    async fn ready(&mut self, entry: &Entry, follow: bool) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(reading) = &mut self.reading {
                match reading.next().await {
                    Some(bytes) => {
                        let bytes = bytes?;
                        self.position += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                    None => self.reading = None,
                }
            }
            let Progress { len, ended, .. } = *self.progress.borrow_and_update();
            if self.position >= len {
                self.over = ended || !follow;
                return Ok(None);
            }
            let Some((_, spool)) = entry.output(self.which) else { return Ok(None) };
            let fd = spool.open_to_read(self.which).map_err(|_| Fault::not_found("exec"))?;
            self.reading = Some(content(fd, self.position, Some(len - self.position), "output"));
        }
    }
}
