//! One child program kept alive: started, started again when it dies, asked to end and then made to.
//!
//! ```text
//! starting ──▶ running ──died──▶ resting (0.1 s, doubled up to 1 s; 0.1 s again after a minute of life) ──▶ starting
//!     └────────────┴──told to end──▶ ending (SIGTERM, after its grace SIGKILL) ──▶ ended
//! ```

use std::{
    ffi::OsString,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
};

/// First rest before a dead child is started again. Chosen: short enough that clients with one retry notice nothing.
const REST_MIN: Duration = Duration::from_millis(100);
/// Longest rest. Chosen: clients wait for it, and a start a second costs a machine nothing.
const REST_MAX: Duration = Duration::from_secs(1);
/// After a life so long a death counts as the first again. Chosen.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// Deaths in a row, before the child was ever ready, after which the start has failed. Chosen: a wrong setting fails at
/// once and always; what heals by itself heals within a second.
const FALSE_STARTS_MAX: u32 = 3;
/// A child's exit code for a setting that is wrong, which no second start makes right at the beginning (EX_CONFIG of
/// sysexits.h).
pub(crate) const WRONG_SETTING: u8 = 78;
/// Longest line that a child says on its standard output, bytes.
const LINE_MAX: u64 = 4096;

/// A child's name and how it is started.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    /// `warden` or `server`; also its first argument.
    pub(crate) name: &'static str,
    /// The arguments after the name.
    pub(crate) args: Vec<OsString>,
    /// How long it may take to end when asked.
    pub(crate) grace: Duration,
    /// What is added to the arguments of the next start when it says that it is ready.
    pub(crate) again: fn(&str) -> Vec<OsString>,
}

/// What a child says.
#[derive(Debug)]
pub(crate) enum News {
    /// It is ready; the server says its address.
    Ready(&'static str, String),
    /// It died and will be started again after a rest.
    Died(&'static str, ExitStatus, Duration),
}

/// Keeps a child alive until `stop` says true; then ends it.
///
/// # Errors
/// It cannot be started, or died [`FALSE_STARTS_MAX`] times before it was ever ready.
///
/// `all_ready` is set by the first child that says that it is ready, which it does when it has all that it needs of the
/// others; from then on no death is a failed start.
pub(crate) async fn keep(
    role: Role,
    news: mpsc::Sender<News>,
    mut stop: watch::Receiver<bool>,
    all_ready: Arc<AtomicBool>,
) -> Result<()> {
    let mut rest = REST_MIN;
    let mut deaths = 0;
    let mut again = Vec::new();
    loop {
        let started = Instant::now();
        let mut child = start(&role, &again)?;
        let Some(stdout) = child.stdout.take() else { bail!("the {} has no standard output", role.name) };
        // What a child says is bounded, and everything but its one line is passed over.
        let mut lines = BufReader::new(stdout).take(LINE_MAX);
        let mut talking = true;
        let status = loop {
            let mut line = String::new();
            tokio::select! {
                read = lines.read_line(&mut line), if talking => match read {
                    // Its end is told by its exit, below.
                    Ok(0) | Err(_) => talking = false,
                    Ok(_) => {
                        lines.set_limit(LINE_MAX);
                        if let Some(ready) = line.trim_end().strip_prefix("ready") {
                            all_ready.store(true, Ordering::Relaxed);
                            again = (role.again)(ready.trim());
                            // The supervisor reads its news for as long as it lives.
                            let _ = news.send(News::Ready(role.name, ready.trim().to_owned())).await;
                        }
                    }
                },
                status = child.wait() => break Some(status.context("cannot wait for a child")?),
                () = told(&mut stop) => {
                    end(&mut child, role.grace).await?;
                    break None;
                }
            }
        };
        let Some(status) = status else { return Ok(()) };
        // Of one that was ready, what was changed meanwhile is wrong: nobody's sandboxes end for that.
        if status.code() == Some(WRONG_SETTING.into()) && !all_ready.load(Ordering::Relaxed) {
            bail!("the {} does not start: a setting is wrong, as it says above", role.name);
        }
        deaths += 1;
        if started.elapsed() > GOOD_LIFE {
            rest = REST_MIN;
        }
        if !all_ready.load(Ordering::Relaxed) && deaths >= FALSE_STARTS_MAX {
            bail!("the {} does not start ({status}); what it said is above", role.name);
        }
        let _ = news.send(News::Died(role.name, status, rest)).await;
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = told(&mut stop) => return Ok(()),
        }
        rest = (rest * 2).min(REST_MAX);
    }
}

/// Returns when the child is to end; also when the supervisor that would say so is gone.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn start(role: &Role, again: &[OsString]) -> Result<Child> {
    // Ourselves, also when the file was replaced by a newer one meanwhile.
    Command::new("/proc/self/exe")
        .arg0("ringfence")
        .arg(role.name)
        .arg("--supervisor")
        .arg(std::process::id().to_string())
        .args(&role.args)
        .args(again)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A group of its own: Ctrl-C at a terminal comes to the supervisor alone, which ends the others in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start the {}", role.name))
}

/// Asks a child to end; after its grace it is killed.
async fn end(child: &mut Child, grace: Duration) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        // It may have ended by itself; then the wait below says so.
        let _ = kill_process(pid, Signal::TERM);
    }
    match tokio::time::timeout(grace, child.wait()).await {
        Ok(status) => status.map(drop).context("cannot wait for a child"),
        Err(_) => child.kill().await.context("cannot kill a child"),
    }
}
