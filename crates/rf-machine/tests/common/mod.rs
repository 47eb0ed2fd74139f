//! A server on loopback and a machine that has joined it, in one process.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use rf_machine::{JoinArgs, JoinError, JoinEvent, Timing, join};
use rf_places::machine::MachinePlace;
use rf_testkit::machines::MachineServer;
use rf_types::UserId;
use rf_wire::machine::Level;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// A token that the server takes once.
pub const TOKEN: &str = "token-one";

/// Its parts.
pub struct Joined {
    pub server: MachineServer,
    pub user: UserId,
    pub directory: tempfile::TempDir,
    pub level: Level,
    pub events: mpsc::UnboundedReceiver<JoinEvent>,
    pub machine: Option<Machine>,
}

/// A running `ringfence join`.
pub struct Machine {
    stop: oneshot::Sender<()>,
    pub task: JoinHandle<Result<(), JoinError>>,
}

impl Machine {
    pub fn run(args: JoinArgs) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(join(args, async move {
            let _ = stopped.await;
        }));
        Self { stop, task }
    }

    pub async fn stop(self) -> Result<(), JoinError> {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

impl Joined {
    pub async fn start(level: Level) -> Self {
        Self::start_with(level, Duration::from_secs(20)).await
    }

    pub async fn start_with(level: Level, grace: Duration) -> Self {
        let server = MachineServer::start(grace).await;
        let user = UserId::random();
        server.authority.allow(TOKEN, user);
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("workspace")).unwrap();
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut args = arguments(&server, &directory, level);
        args.token = Some(TOKEN.to_owned());
        args.report = Box::new(move |event| drop(sender.send(event)));
        let machine = Some(Machine::run(args));
        // The machine knows that it has joined, and has noted it.
        let event = rf_testkit::machines::within(events.recv()).await;
        assert!(matches!(event, Some(JoinEvent::Connected { resumed: false, .. })), "{event:?}");
        Self { server, user, directory, level, events, machine }
    }

    pub fn arguments(&self) -> JoinArgs {
        arguments(&self.server, &self.directory, self.level)
    }

    pub fn workspace(&self) -> PathBuf {
        self.directory.path().join("workspace").canonicalize().unwrap()
    }

    pub async fn place(&self) -> Arc<MachinePlace> {
        self.server.joined(self.user).await
    }

    /// Ends the machine's program and starts it again; nothing in memory survives.
    pub async fn restart_machine(&mut self) {
        self.stop_machine().await;
        self.machine = Some(Machine::run(self.arguments()));
    }

    /// Ends the machine's program.
    pub async fn stop_machine(&mut self) {
        self.machine.take().unwrap().stop().await.unwrap();
    }

    pub async fn stop(self) {
        if let Some(machine) = self.machine {
            machine.stop().await.unwrap();
        }
    }

    /// Waits until the machine's program ends by itself.
    pub async fn ended(self) -> Result<(), JoinError> {
        self.machine.unwrap().task.await.unwrap()
    }
}

pub fn arguments(server: &MachineServer, directory: &tempfile::TempDir, level: Level) -> JoinArgs {
    JoinArgs {
        state: Some(directory.path().join("state")),
        workspace: Some(directory.path().join("workspace")),
        level: Some(level),
        timing: Timing {
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(200),
            keep: Duration::from_secs(60),
        },
        ..JoinArgs::new(server.url())
    }
}
