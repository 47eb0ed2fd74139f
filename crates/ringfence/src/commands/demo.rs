//! `ringfence demo`: two users, one with a joined machine and one without, ask the same questions at the same time.
//! What each saw is shown side by side, and checked: neither saw the other, the sandbox saw nothing of the host.
//!
//! The machine is a `ringfence join` on this computer, in process, name and mount namespaces of its own (unshare(1)), so
//! that it stands for another computer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use rf_client::{
    Client,
    stream::{Event, Events},
    types::{ExecRequest, SandboxRequest},
};
use rf_types::{Code, Fault, Layer, MachineId, PlaceRef, Program, SandboxId, Username};
use serde::Serialize;
use serde_json::json;

use crate::{cli::Global, commands::sandbox, connect, output::Output};

/// What both are asked: what is shown of it, and the line that is run where that differs. `ps` is missing on small
/// systems; then `/proc` is read without it.
const QUESTIONS: [(&str, &str); 9] = [
    ("uname -a", ""),
    ("hostname", ""),
    ("whoami", ""),
    ("id", ""),
    ("pwd", ""),
    ("env | sort", ""),
    (PS, "ps aux 2>/dev/null || for p in /proc/[0-9]*; do echo \"${p#/proc/} $(tr '\\0' ' ' < $p/cmdline)\"; done"),
    ("ls -a /home", ""),
    ("cat /etc/passwd", ""),
];
const PS: &str = "ps aux";
/// Longest output kept of one answer, bytes; and how much of it is shown.
const KEPT_MAX: usize = 256 * 1024;
const LINES_SHOWN: usize = 6;
const WIDTH_SHOWN: usize = 58;
/// How long the machine may take to join.
const JOIN_WITHIN: Duration = Duration::from_secs(20);

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Show every line of every answer.
    #[arg(long)]
    full: bool,
    /// Accept that the sandbox lacks this layer on this host; may be repeated.
    #[arg(long, value_name = "LAYER", value_delimiter = ',', value_parser = sandbox::parse_layer)]
    accept_missing: Vec<Layer>,
}

/// One answer.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    place: Option<PlaceRef>,
    exit: i32,
    output: String,
}

/// One question and what each saw.
#[derive(Debug, Serialize)]
struct Row {
    question: String,
    with_machine: Seen,
    without_machine: Seen,
}

/// One thing that must hold.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    holds: bool,
    evidence: String,
}

/// One of the two users.
struct Person {
    name: Username,
    client: Client,
    /// A word that only this user's files, processes and environment hold.
    secret: String,
    /// Exactly where, if not where the user's calls go by themselves.
    place: Option<String>,
}

/// What the host has that a sandbox must not see.
struct Host {
    name: String,
    /// A word that only a process and a file of the host hold.
    secret: String,
    file: PathBuf,
    people: BTreeSet<String>,
}

pub(crate) fn demo(global: &Global, args: &DemoArgs, out: &Output) -> Result<ExitCode> {
    let operator = connect::client(global)?;
    let runtime = connect::runtime()?;
    let (rows, checks) = runtime.block_on(play(global, &operator, args, out))?;
    let holds = checks.iter().all(|check| check.holds);
    out.value(&json!({ "holds": holds, "answers": rows, "checks": checks }), |_| text(&rows, &checks, args.full))?;
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets the stage, plays, and clears the stage whatever happened.
async fn play(global: &Global, operator: &Client, args: &DemoArgs, out: &Output) -> Result<(Vec<Row>, Vec<Check>)> {
    let mark = format!("{:08x}", rf_types::RequestId::random().bits() as u32);
    let stage = std::env::temp_dir().join(format!("ringfence-demo-{mark}"));
    fs::create_dir(&stage).with_context(|| format!("cannot make `{}`", stage.display()))?;
    let bar = out.spinner("two users ask the same questions");
    let names = [format!("demo-ann-{mark}"), format!("demo-ben-{mark}")];
    let result = act(global, operator, &args.accept_missing, &stage, &mark, &names).await;
    let cleared = clear(global, operator, &names).await;
    bar.finish_and_clear();
    fs::remove_dir_all(&stage).with_context(|| format!("cannot remove `{}`", stage.display()))?;
    let result = result?;
    cleared.context("the demonstration's users are not all removed")?;
    Ok(result)
}

async fn person(global: &Global, operator: &Client, name: &str, mark: &str) -> Result<Person> {
    let name: Username = name.parse()?;
    operator.user_add(&name, &Default::default()).await?;
    let key = operator.user_key_add(&name, "demo").await?;
    let client = connect::with_key(global, operator.url(), key.key.expose())?;
    let secret = format!("secret-of-{name}-{mark}");
    Ok(Person { name, client, secret, place: None })
}

async fn act(
    global: &Global,
    operator: &Client,
    accept_missing: &[Layer],
    stage: &Path,
    mark: &str,
    names: &[String; 2],
) -> Result<(Vec<Row>, Vec<Check>)> {
    let host = host(stage, mark)?;
    // A process of the host whose arguments hold the host's secret; ends with this scope.
    let mut witness = tokio::process::Command::new("sleep");
    let _witness = witness.arg0(&host.secret).arg("300").kill_on_drop(true).spawn().context("cannot start sleep")?;
    let ann = person(global, operator, &names[0], mark).await?;
    let mut ben = person(global, operator, &names[1], mark).await?;
    if !accept_missing.is_empty() {
        // By name, as always: what the host cannot hold is not left out in silence.
        let request = SandboxRequest { accept_missing: accept_missing.to_vec(), ..SandboxRequest::default() };
        ben.place = Some(ben.client.sandbox_create(&request).await?.id.to_string());
    }
    let ben = ben;
    let machine = Machine::join(global, &ann, stage).await?;

    // Each leaves a file and a process that hold their own secret.
    let (ann_left, ben_left) = tokio::join!(leave(&ann), leave(&ben));
    let (ann_left, ben_left) = (ann_left?, ben_left?);

    let mut rows = Vec::new();
    for (question, line) in QUESTIONS {
        let line = if line.is_empty() { question } else { line };
        let (with, without) = tokio::join!(ask(&ann, line.to_owned(), true), ask(&ben, line.to_owned(), true));
        rows.push(Row { question: question.to_owned(), with_machine: with?, without_machine: without? });
    }

    let mut checks = Vec::new();
    let mut check = |what: &str, holds: bool, evidence: String| {
        checks.push(Check { what: what.to_owned(), holds, evidence });
    };
    let on_machine = rows.iter().all(|row| row.with_machine.place == Some(PlaceRef::Machine(machine.id)));
    check("every command of the user with a machine ran on that machine", on_machine, machine.id.to_string());
    let boxes: BTreeSet<_> = rows.iter().filter_map(|row| row.without_machine.place).map(|p| p.to_string()).collect();
    let in_one = boxes.len() == 1 && boxes.iter().all(|id| id.parse::<SandboxId>().is_ok());
    check(
        "every command of the user without one ran in one sandbox",
        in_one,
        boxes.into_iter().collect::<Vec<_>>().join(" "),
    );
    let answered = rows.iter().all(|row| row.with_machine.exit == 0 && row.without_machine.exit == 0);
    check("every question was answered", answered, format!("{} questions", rows.len()));

    let all = |pick: fn(&Row) -> &Seen| rows.iter().map(|row| pick(row).output.as_str()).collect::<Vec<_>>().join("\n");
    let (ann_saw, ben_saw) = (all(|row| &row.with_machine), all(|row| &row.without_machine));
    // Controls: each sees its own, so that not seeing another's means something.
    check(
        "each user sees their own secret",
        ann_saw.contains(&ann.secret) && ben_saw.contains(&ben.secret),
        "in `env`".to_owned(),
    );
    let tree = |pick: fn(&Row) -> &Seen| rows.iter().find(|row| row.question == PS).map_or("", |row| &pick(row).output);
    let own =
        tree(|row| &row.with_machine).contains(&ann.secret) && tree(|row| &row.without_machine).contains(&ben.secret);
    check("each user sees their own process", own, "in `ps aux`".to_owned());
    check("the user with a machine saw nothing of the other", !ann_saw.contains(&ben.secret), String::new());
    check("the user without one saw nothing of the other", !ben_saw.contains(&ann.secret), String::new());
    check("the sandbox saw no process, file or variable of the host", !ben_saw.contains(&host.secret), String::new());
    let answer = |question: &str, pick: fn(&Row) -> &Seen| {
        rows.iter()
            .find(|row| row.question == question)
            .map(|row| pick(row).output.trim().to_owned())
            .unwrap_or_default()
    };
    let (ann_host, ben_host) = (answer("hostname", |r| &r.with_machine), answer("hostname", |r| &r.without_machine));
    let three = BTreeSet::from([&ann_host, &ben_host, &host.name]).len() == 3;
    check("machine, sandbox and host have three names", three, format!("{ann_host}, {ben_host}, {}", host.name));
    let passwd = answer("cat /etc/passwd", |row| &row.without_machine);
    let met: Vec<_> =
        passwd.lines().filter_map(|line| line.split(':').next()).filter(|name| host.people.contains(*name)).collect();
    check(
        "the sandbox's /etc/passwd names nobody of the host",
        met.is_empty(),
        format!("{} people on the host", host.people.len()),
    );

    let reach = [
        (&ben, ann_left.output.trim().to_owned(), &ann.secret, "the sandbox cannot read the other user's file"),
        (&ann, ben_left.output.trim().to_owned(), &ben.secret, "the machine cannot read the other user's file"),
        (&ben, host.file.display().to_string(), &host.secret, "the sandbox cannot read a file of the host"),
    ];
    for (person, path, secret, what) in reach {
        let seen = ask(person, format!("cat '{path}'"), false).await?;
        check(what, !path.is_empty() && !seen.output.contains(secret.as_str()), last_line(&seen.output));
    }
    let control = fs::read_to_string(&host.file).is_ok_and(|text| text.contains(&host.secret));
    check("the host itself can read that file", control, host.file.display().to_string());

    // The interface, too: another's thing answers as one that was never there.
    let asked = |id: String| {
        let client = ben.client.clone();
        async move {
            let request = ExecRequest { place: Some(id), ..ExecRequest::new(Program::Shell("true".to_owned())) };
            match client.exec(&request).await {
                Ok(_) => "it ran".to_owned(),
                Err(error) => error.fault().map_or_else(
                    || error.to_string(),
                    |fault| format!("{:?}: {}; {}", fault.code, fault.message, fault.hint),
                ),
            }
        }
    };
    let (theirs, nobodys) = (asked(machine.id.to_string()).await, asked(MachineId::random().to_string()).await);
    check("another's machine answers as one that does not exist", theirs == nobodys && theirs != "it ran", theirs);
    machine.leave().await?;
    Ok((rows, checks))
}

/// Removes the two users with all they have. Tries everything before it says what failed.
async fn clear(global: &Global, operator: &Client, names: &[String; 2]) -> Result<()> {
    let mut failed = None;
    for name in names {
        let name: Username = name.parse()?;
        let done = async {
            let key = match operator.user_key_add(&name, "clear").await {
                Ok(key) => key,
                // Not made yet when something failed before.
                Err(error) if error.fault().is_some_and(|fault| fault.code == Code::NotFound) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let client = connect::with_key(global, operator.url(), key.key.expose())?;
            for sandbox in client.sandboxes().await? {
                client.sandbox_destroy(sandbox.id).await?;
            }
            for machine in client.machines().await? {
                client.machine_remove(machine.id).await?;
            }
            anyhow::Ok(operator.user_remove(&name).await?)
        };
        if let Err(error) = done.await {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn host(stage: &Path, mark: &str) -> Result<Host> {
    let secret = format!("secret-of-the-host-{mark}");
    let file = stage.join("host-secret");
    fs::write(&file, &secret).with_context(|| format!("cannot write `{}`", file.display()))?;
    let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    // People, not the services that every system has.
    let people = passwd
        .lines()
        .filter_map(|line| {
            let mut words = line.split(':');
            let (name, id) = (words.next()?, words.nth(1)?.parse::<u32>().ok()?);
            (1000..60_000).contains(&id).then(|| name.to_owned())
        })
        // The sandbox's own user may have the name of one of the host's by chance; it is nobody's.
        .filter(|name| name != "user")
        .collect();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(Host { name, secret, file, people })
}

/// Leaves a file and a process that hold the user's secret; answers with the file's path.
async fn leave(person: &Person) -> Result<Seen> {
    let line = format!(
        "umask 077; echo {0} > demo-secret; (exec -a {0} sleep 300 >/dev/null 2>&1 &); readlink -f demo-secret",
        person.secret
    );
    ask(person, line, true).await
}

/// Runs a line as the user, with their secret in the environment if so, and gathers what it printed.
async fn ask(person: &Person, line: String, with_secret: bool) -> Result<Seen> {
    let mut request = ExecRequest::new(Program::Argv(vec!["/bin/bash".to_owned(), "-c".to_owned(), line]));
    if with_secret {
        request.env = BTreeMap::from([("MY_SECRET".to_owned(), person.secret.clone())]).into();
    }
    request.place.clone_from(&person.place);
    request.timeout_ms = Some(15_000);
    gather(person.client.exec(&request).await?).await
}

async fn gather(mut events: Events) -> Result<Seen> {
    let mut seen = Seen { place: None, exit: -1, output: String::new() };
    let mut bytes = Vec::new();
    loop {
        match events.next().await? {
            Event::Started(started) => seen.place = Some(started.place),
            Event::Stdout(piece) | Event::Stderr(piece) => {
                let room = KEPT_MAX.saturating_sub(bytes.len());
                bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Event::Exit(report) => {
                seen.exit = report.shell_code();
                // What a terminal would obey has no place in what is shown of it.
                let shown = String::from_utf8_lossy(&bytes);
                seen.output = shown.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
                return Ok(seen);
            }
        }
    }
}

/// The joined machine: a process group of ours.
struct Machine {
    id: MachineId,
    child: tokio::process::Child,
}

impl Machine {
    /// Starts `ringfence join` as another computer would, and waits until the server knows it.
    async fn join(global: &Global, ann: &Person, stage: &Path) -> Result<Self> {
        let token = ann.client.machine_enrol().await?;
        let (home, workspace) = (stage.join("ann-home"), stage.join("ann-home/work"));
        fs::create_dir_all(&workspace).context("cannot make the machine's workspace")?;
        let ours = std::env::current_exe().context("cannot find ourselves")?;
        // Its own process tree, name and mounts; /home is empty but for its own.
        let script = r#"hostname "$1" && mount -t tmpfs none /home && shift && exec "$@""#;
        let mut command = tokio::process::Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command
            .args([
                "--uts",
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
                "sh",
                "-ec",
                script,
                "sh",
            ])
            .arg("ann-laptop")
            .arg(ours)
            .args(["join", ann.client.url(), "--level", "full", "--workspace"])
            .arg(&workspace)
            .arg("--key-dir")
            .arg(home.join(".ringfence"))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &home)
            // Not as an argument, where `ps` would show it.
            .env("RINGFENCE_TOKEN", token.token.expose())
            .current_dir(&workspace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(stage.join("join.log"))?)
            .kill_on_drop(true);
        if let Some(certificate) = connect::certificate(global)? {
            command.env("RINGFENCE_CERTIFICATE", certificate);
        }
        let mut child = command.spawn().context("cannot start the machine (unshare)")?;
        let waited = async {
            loop {
                let machines = ann.client.machines().await?;
                if let Some(machine) = machines.iter().find(|machine| machine.online) {
                    return anyhow::Ok(machine.id);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let said = || fs::read_to_string(stage.join("join.log")).unwrap_or_default();
        let id = tokio::select! {
            id = tokio::time::timeout(JOIN_WITHIN, waited) => match id {
                Ok(id) => id?,
                Err(_) => bail!(Fault::new(Code::TimedOut, format!("{}'s machine did not join: {}", ann.name, said()), "")),
            },
            status = child.wait() => bail!("the machine ended before it joined ({}): {}", status?, said()),
        };
        Ok(Self { id, child })
    }

    async fn leave(mut self) -> Result<()> {
        // Unshare's child, and with it its whole process tree, is killed with it.
        self.child.kill().await.context("cannot stop the machine")
    }
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().chars().take(WIDTH_SHOWN * 2).collect()
}

/// What is shown of an answer.
fn shorten(text: &str, full: bool) -> String {
    if full {
        return text.trim_end().to_owned();
    }
    let mut lines: Vec<String> = text
        .trim_end()
        .lines()
        .take(LINES_SHOWN)
        .map(|line| {
            let mut shown: String = line.chars().take(WIDTH_SHOWN).collect();
            if shown.len() < line.len() {
                shown.push('…');
            }
            shown
        })
        .collect();
    let more = text.trim_end().lines().count().saturating_sub(LINES_SHOWN);
    if more > 0 {
        lines.push(format!("… {more} more lines"));
    }
    lines.join("\n")
}

fn text(rows: &[Row], checks: &[Check], full: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["asked", "the user with a machine saw", "the user without one saw"]);
    for row in rows {
        let cell = |seen: &Seen| shorten(&seen.output, full);
        table.add_row([row.question.clone(), cell(&row.with_machine), cell(&row.without_machine)]);
    }
    let mut text = format!("{table}\n\n");
    for check in checks {
        let evidence = if check.evidence.is_empty() { String::new() } else { format!("  ({})", check.evidence) };
        text.push_str(&format!("{}  {}{evidence}\n", if check.holds { "ok    " } else { "FAILED" }, check.what));
    }
    let failed = checks.iter().filter(|check| !check.holds).count();
    match failed {
        0 => text.push_str(&format!(
            "\nall {} checks hold: neither user saw the other, and the sandbox saw nothing of the host",
            checks.len()
        )),
        _ => text.push_str(&format!("\n{failed} of {} checks FAILED", checks.len())),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut_and_says_so() {
        let long = "x\n".repeat(9);
        assert_eq!(shorten(&long, false), format!("{}… 3 more lines", "x\n".repeat(6)));
        assert_eq!(shorten(&long, true).lines().count(), 9);
        assert_eq!(shorten(&"ä".repeat(100), false), format!("{}…", "ä".repeat(WIDTH_SHOWN)));
    }
}
