//! `exec`, `shell`, `logs`: commands in places, their streams, and their exit codes, which become ours.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use rf_client::{
    Client, ClientError,
    stream::{Event, Events, ExecReader, ExecWriter},
    types::{ExecRequest, Started, Stdin},
};
use rf_types::{Code, ExecId, ExecState, ExitReport, Fault, MachineId, Preference, Program, SignalScope};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, signal::unix};

use crate::{
    cli::Global,
    connect,
    named::Named,
    output::{self, Output, parse_ms},
    terminal,
};

/// Most bytes of output that `--json` gathers. Chosen: beyond that a program should read the stream itself.
const GATHERED_MAX: usize = 64 * 1024 * 1024;
/// How long a command may go on after we were told to end. Chosen: time to put things away.
const TERMINATE_WITHIN: Duration = Duration::from_secs(3);
/// How long the end of a command is waited for when the server takes no more input. Chosen: a slow line's round trips.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    how: HowArgs,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl CommandArgs {
    pub(crate) fn request(&self) -> Result<ExecRequest> {
        self.how.request(&self.command)
    }
}

/// How to run it.
#[derive(Args, Clone, Debug)]
pub(crate) struct HowArgs {
    /// A variable of its environment; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE", help_heading = "Command")]
    env: Vec<String>,
    /// Its working directory.
    #[arg(short = 'w', long, value_name = "DIR", help_heading = "Command")]
    cwd: Option<String>,
    /// The user inside: `user`, `root`, or another that the place knows.
    #[arg(short, long, value_name = "USER", help_heading = "Command")]
    user: Option<String>,
    /// Run it as root inside.
    #[arg(long, conflicts_with = "user", help_heading = "Command")]
    root: bool,
    /// Kill it when it runs longer, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = parse_ms, help_heading = "Command")]
    timeout: Option<u64>,
    /// Give the command to a shell as one line.
    #[arg(long, help_heading = "Command")]
    sh: bool,
}

impl HowArgs {
    /// Without a command: what the template's image starts by itself.
    pub(crate) fn request(&self, command: &[String]) -> Result<ExecRequest> {
        let mut env = BTreeMap::new();
        for pair in &self.env {
            match pair.split_once('=') {
                Some((name, value)) if !name.is_empty() => env.insert(name.to_owned(), value.to_owned()),
                _ => bail!(Fault::invalid(format!("`{pair}` is no variable, such as NAME=VALUE"))),
            };
        }
        let program = match (command, self.sh) {
            ([], true) => bail!(Fault::invalid("there is no line for the shell")),
            ([], false) => None,
            (_, true) => Some(Program::Shell(command.join(" "))),
            (_, false) => Some(Program::Argv(command.to_vec())),
        };
        Ok(ExecRequest {
            env: env.into(),
            cwd: self.cwd.clone(),
            user: if self.root { Some("root".to_owned()) } else { self.user.clone() },
            timeout_ms: self.timeout,
            ..ExecRequest::new(program)
        })
    }
}

/// Where to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct PlaceArgs {
    /// In this sandbox, by id or name.
    #[arg(short, long, value_name = "SANDBOX", help_heading = "Place")]
    sandbox: Option<Named>,
    /// On this machine.
    #[arg(short, long, value_name = "ID", conflicts_with = "sandbox", help_heading = "Place")]
    machine: Option<MachineId>,
    /// Which kind of place [default: the user's preference].
    #[arg(long, value_enum, conflicts_with_all = ["sandbox", "machine"], help_heading = "Place")]
    place: Option<PlaceChoice>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PlaceChoice {
    /// On the joined machine, or not at all.
    Machine,
    /// In the user's sandbox.
    Sandbox,
    /// On the machine while one is joined, else in the sandbox.
    MachineElseSandbox,
}

impl PlaceChoice {
    pub(crate) fn preference(self) -> Preference {
        match self {
            Self::Machine => Preference::Machine,
            Self::Sandbox => Preference::Sandbox,
            Self::MachineElseSandbox => Preference::MachineElseSandbox,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Sandbox => "sandbox",
            Self::MachineElseSandbox => "machine-else-sandbox",
        }
    }
}

impl PlaceArgs {
    async fn apply(&self, client: &Client, request: ExecRequest) -> Result<ExecRequest> {
        let place = match (&self.sandbox, self.machine) {
            (Some(sandbox), _) => Some(sandbox.id(client).await?.to_string()),
            (None, Some(machine)) => Some(machine.to_string()),
            (None, None) => self.place.map(|choice| choice.text().to_owned()),
        };
        Ok(ExecRequest { place, ..request })
    }
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    command: CommandArgs,
    /// Send our standard input to it.
    #[arg(short, long, help_heading = "Command")]
    interactive: bool,
    /// Give it a terminal [default: when we have one].
    #[arg(short, long, help_heading = "Command")]
    tty: bool,
    /// No terminal, also when we have one.
    #[arg(short = 'T', long, conflicts_with_all = ["tty", "interactive"], help_heading = "Command")]
    no_tty: bool,
    /// Start it and print its id; `logs` and `ps` find it.
    #[arg(short, long, conflicts_with_all = ["tty", "interactive"], help_heading = "Command")]
    detach: bool,
}

pub(crate) fn exec(global: &Global, args: ExecArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let request = args.command.request()?;
    let runtime = connect::runtime()?;
    let request = runtime.block_on(args.place.apply(&client, request))?;
    if args.detach {
        let exec = runtime.block_on(client.exec_background(&request))?;
        out.value(&exec, |exec| exec.id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let tty = args.tty || (terminal::present() && !args.no_tty && !args.interactive && !out.json());
    let result = runtime.block_on(async {
        if tty || args.interactive {
            interact(&client, request, tty, out).await
        } else {
            follow(client.exec(&request).await?, out).await
        }
    });
    // A thread may still wait for a key that nobody will press.
    runtime.shutdown_background();
    result
}

#[derive(Args, Debug)]
pub(crate) struct ShellArgs {
    /// In this sandbox, by id or name, or on this machine; else where the user's preference says.
    #[arg(value_name = "PLACE")]
    id: Option<String>,
    /// As root inside.
    #[arg(long)]
    root: bool,
    /// Which shell.
    #[arg(long, value_name = "PROGRAM", default_value = "/bin/bash")]
    shell: String,
}

pub(crate) fn shell(global: &Global, args: ShellArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let mut request = ExecRequest::new(Program::Argv(vec![args.shell, "-l".to_owned()]));
    request.user = args.root.then(|| "root".to_owned());
    let runtime = connect::runtime()?;
    if let Some(text) = &args.id {
        request.place = Some(match (text.parse::<MachineId>(), text.parse::<Named>()) {
            (Ok(machine), _) => machine.to_string(),
            (Err(_), Ok(sandbox)) if !text.starts_with("mch_") => runtime.block_on(sandbox.id(&client))?.to_string(),
            (Err(_), _) => bail!(Fault::invalid(format!("`{text}` is no id of a sandbox or a machine"))),
        });
    }
    let result = runtime.block_on(interact(&client, request, true, out));
    runtime.shutdown_background();
    result
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The command's id, `exe_…`.
    exec: ExecId,
    /// Go on until it ends; its exit code becomes ours.
    #[arg(short, long)]
    follow: bool,
}

pub(crate) fn logs(global: &Global, args: &LogsArgs, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    connect::runtime()?.block_on(async {
        let mut stdout = client.exec_logs(args.exec, "stdout", args.follow).await?;
        let mut stderr = client.exec_logs(args.exec, "stderr", args.follow).await?;
        let mut printer = Printer::new(out);
        let mut open = [true, true];
        while open != [false, false] {
            let (piece, which) = tokio::select! {
                piece = stdout.next(), if open[0] => (piece, 0),
                piece = stderr.next(), if open[1] => (piece, 1),
            };
            match piece {
                Some(piece) => printer.bytes(&piece?, which == 0)?,
                None => open[which] = false,
            }
        }
        let exec = if args.follow { client.exec_wait(args.exec).await? } else { client.exec_info(args.exec).await? };
        printer.started = Some(Started { id: exec.id, place: exec.place, pid: exec.pid });
        match exec.state {
            ExecState::Exited(report) if args.follow => printer.end(Some(report)),
            ExecState::Lost if args.follow => bail!(Fault::new(
                Code::PlaceLost,
                "its place went away, so how it ended is not known",
                "it was not run again",
            )),
            ExecState::Running | ExecState::Exited(_) | ExecState::Lost => printer.end(None),
        }
    })
}

/// Prints what an exec says until it ends; its exit code becomes ours.
pub(crate) async fn follow(mut events: Events, out: &Output) -> Result<ExitCode> {
    let mut printer = Printer::new(out);
    let mut interrupt = unix::signal(unix::SignalKind::interrupt()).context("cannot listen for signals")?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            // Dropping the stream ends the exec: its output would go nowhere.
            _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        };
        if let Some(report) = printer.event(event)? {
            return printer.end(Some(report));
        }
    }
}

/// Runs with our standard input, and with `tty` on our terminal.
async fn interact(client: &Client, request: ExecRequest, tty: bool, out: &Output) -> Result<ExitCode> {
    let request = ExecRequest { stdin: Stdin::Open(true), pty: tty.then(terminal::size), ..request };
    let (reader, writer) = client.exec_interactive(&request).await?.split();
    let raw = if tty && terminal::present() {
        Some(terminal::Raw::enter().context("cannot use the terminal")?)
    } else {
        None
    };
    let mut receiving = std::pin::pin!(receive(reader, out));
    let result = tokio::select! {
        result = &mut receiving => result,
        stopped = send(writer, tty) => match stopped {
            Stopped::Told => Ok(ExitCode::from(128 + 15)),
            Stopped::Here(error) => Err(error),
            // It takes nothing more, since the command ended: how it ended was said before, and is on its way.
            Stopped::There(error) => match tokio::time::timeout(LAST_WORDS_WITHIN, receiving).await {
                Ok(Ok(code)) => Ok(code),
                Ok(Err(_)) | Err(_) => Err(error.into()),
            },
        },
    };
    drop(raw);
    result
}

/// Prints what comes, to its end.
async fn receive(mut reader: ExecReader, out: &Output) -> Result<ExitCode> {
    let mut printer = Printer::new(out);
    loop {
        if let Some(report) = printer.event(reader.next().await?)? {
            return printer.end(Some(report));
        }
    }
}

/// Why nothing more is sent to an exec.
enum Stopped {
    /// The server takes nothing more.
    There(ClientError),
    /// Something on this side failed.
    Here(anyhow::Error),
    /// We were told to end, and what runs there has had its time.
    Told,
}

impl From<ClientError> for Stopped {
    fn from(error: ClientError) -> Self {
        Self::There(error)
    }
}

/// Sends keys, sizes and signals for as long as the exec runs.
async fn send(mut writer: ExecWriter, tty: bool) -> Stopped {
    match send_inner(&mut writer, tty).await {
        Ok(never) => match never {},
        Err(stopped) => stopped,
    }
}

async fn send_inner(writer: &mut ExecWriter, tty: bool) -> Result<std::convert::Infallible, Stopped> {
    let listen = |kind| unix::signal(kind).context("cannot listen for signals").map_err(Stopped::Here);
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 64 * 1024];
    let mut open = true;
    let mut resized = listen(unix::SignalKind::window_change())?;
    let mut interrupted = listen(unix::SignalKind::interrupt())?;
    let mut terminated = listen(unix::SignalKind::terminate())?;
    let mut end: Option<tokio::time::Instant> = None;
    loop {
        let over = async {
            match end {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = stdin.read(&mut buffer), if open => {
                match read.context("cannot read standard input").map_err(Stopped::Here)? {
                    0 => {
                        open = false;
                        writer.stdin_end().await?;
                    }
                    n => writer.stdin(&buffer[..n]).await?,
                }
            }
            _ = resized.recv(), if tty => writer.resize(terminal::size()).await?,
            _ = interrupted.recv() => writer.signal(2, SignalScope::Process).await?,
            _ = terminated.recv() => {
                // A second time is an order. What does not end, such as a shell, is killed when we have gone.
                if end.is_some() {
                    return Err(Stopped::Told);
                }
                writer.signal(15, SignalScope::Tree).await?;
                end = Some(tokio::time::Instant::now() + TERMINATE_WITHIN);
            }
            () = over => return Err(Stopped::Told),
        }
    }
}

/// Prints an exec's output as it comes, or gathers it for `--json`.
struct Printer {
    json: bool,
    started: Option<Started>,
    gathered: [Vec<u8>; 2],
}

impl Printer {
    fn new(out: &Output) -> Self {
        Self { json: out.json(), started: None, gathered: [Vec::new(), Vec::new()] }
    }

    /// Takes one piece of news; the last one gives how it ended.
    fn event(&mut self, event: Event) -> Result<Option<ExitReport>> {
        match event {
            Event::Started(started) => self.started = Some(started),
            Event::Stdout(bytes) => self.bytes(&bytes, true)?,
            Event::Stderr(bytes) => self.bytes(&bytes, false)?,
            Event::Exit(report) => return Ok(Some(report)),
        }
        Ok(None)
    }

    fn bytes(&mut self, bytes: &Bytes, standard: bool) -> Result<()> {
        if self.json {
            let gathered = &mut self.gathered[usize::from(!standard)];
            if gathered.len() + bytes.len() > GATHERED_MAX {
                bail!(Fault::new(
                    Code::TooLarge,
                    format!("the output is longer than {GATHERED_MAX} bytes"),
                    "run it without --json",
                ));
            }
            gathered.extend_from_slice(bytes);
            return Ok(());
        }
        let written = if standard {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        } else {
            io::stderr().write_all(bytes)
        };
        match written {
            Err(error) if standard && error.kind() == io::ErrorKind::BrokenPipe => Err(output::Closed.into()),
            written => Ok(written.map_err(|source| ClientError::Local { step: "write the output", source })?),
        }
    }

    /// The exit code that becomes ours.
    fn end(self, report: Option<ExitReport>) -> Result<ExitCode> {
        if self.json {
            let [stdout, stderr] = self.gathered.map(|bytes| text_or_bytes(&bytes));
            let value = json!({
                "id": self.started.as_ref().map(|started| started.id),
                "place": self.started.as_ref().map(|started| started.place),
                "exit": report,
                "stdout": stdout,
                "stderr": stderr,
            });
            output::print_pretty(&value)?;
        } else if report.is_some_and(|report| report.timed_out) {
            let _ = writeln!(io::stderr(), "ringfence: killed, because its time was up");
        }
        // INVARIANT: exit codes and 128 + signal are 0 to 255; what is not is told as 255.
        Ok(ExitCode::from(report.map_or(0, |report| u8::try_from(report.shell_code()).unwrap_or(255))))
    }
}

/// Text where it is UTF-8, else the bytes as numbers: nothing is lost.
fn text_or_bytes(bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!(bytes),
    }
}
