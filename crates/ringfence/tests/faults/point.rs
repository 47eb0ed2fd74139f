//! One fault point: an operation is brought to a step, somebody is killed there, and what came of it is judged.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    field::{Field, Kind, go_on, is_dead, kill, runs, stop, until},
    http::{Call, Said, Waiting, frames, message, messages},
};

/// Longest time between a death and the answer of whoever waited for the dead.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Bytes that a command prints at its end (they fit a pipe that nobody reads), and bytes that are written to files.
const PRINTED: usize = 60_000;
const WRITTEN: usize = 4 << 20;
/// O_NONBLOCK, on every architecture that we build for.
const NONBLOCK: i32 = 0o4000;

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// A command whose end is waited for.
    Exec,
    /// A command in the background.
    Background,
    /// A command streamed as frames of a body.
    Frames,
    /// A command at a terminal, by WebSocket.
    Terminal,
    /// A file replaced whole or not at all.
    Replace,
    /// A file appended to.
    Append,
    /// A tree unpacked.
    Tree,
    /// A sandbox made.
    Create,
    /// A sandbox destroyed.
    Destroy,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    Server,
    Warden,
    Init,
    Machine,
    /// The server, while the operation runs on a machine.
    ServerOfMachine,
}

/// When.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Before the request is sent.
    Before,
    /// The intent is in the ledger, and nobody has begun.
    Intent,
    /// Begun and not done: the program runs, half of the bytes are there, the cgroup is made, process 1 is dead.
    Half,
    /// Done, and the server does not know yet, or has not said so.
    Done,
    /// While the answer goes out.
    Answer,
}

use {Op::*, Step::*, Target::*};

impl Op {
    const fn runs_a_command(self) -> bool {
        matches!(self, Exec | Background | Frames | Terminal)
    }

    const fn action(self) -> &'static str {
        match self {
            Exec | Background | Frames | Terminal => "exec",
            Replace | Append | Tree => "file_write",
            Create => "sandbox_create",
            Destroy => "sandbox_destroy",
        }
    }

    /// Whether there is such a point.
    const fn has(self, target: Target, step: Step) -> bool {
        match (self, target, step) {
            // These know no process 1 and no machine.
            (Create, Init | Machine | ServerOfMachine, _) | (Destroy, Machine | ServerOfMachine, _) => false,
            // Their answer is a few bytes, sent at once.
            (Replace | Append | Tree | Create | Destroy, _, Answer) => false,
            // With a dead process 1 half of it is done, and no more of process 1 is there to be killed.
            (Destroy, Init, Half | Done) => false,
            _ => true,
        }
    }
}

/// Every point of a target.
pub fn points(target: Target) -> Vec<(Op, Step)> {
    let ops = [Exec, Background, Frames, Terminal, Replace, Append, Tree, Create, Destroy];
    let steps = [Before, Intent, Half, Done, Answer];
    let all = ops.into_iter().flat_map(|op| steps.into_iter().map(move |step| (op, step)));
    all.filter(|(op, step)| op.has(target, *step)).collect()
}

/// Systems at once: while one rests after a death, another has its turn.
const LANES: usize = 2;

/// Goes through every point of a target; all that is wrong is told at once. Where `witnessed`, somebody else's command
/// runs beside all of it and must not notice.
pub fn go_through(target: Target, witnessed: bool) -> usize {
    go_through_all(Kind::Memory, target, &points(target), witnessed)
}

/// Goes through the points of a target in which sandboxes of this kind differ from the standard.
pub fn go_through_of(kind: Kind, target: Target) -> usize {
    let differs = |(op, step): &(Op, Step)| match kind {
        Kind::Memory => true,
        Kind::Image => matches!(op, Exec | Replace | Create | Destroy),
        // Without control groups it is not seen from outside how far the making of one has come.
        Kind::Rootless => matches!(op, Exec | Background | Replace | Destroy) && !matches!((op, step), (Destroy, Done)),
    };
    let points: Vec<_> = points(target).into_iter().filter(differs).collect();
    go_through_all(kind, target, &points, false)
}

fn go_through_all(kind: Kind, target: Target, points: &[(Op, Step)], witnessed: bool) -> usize {
    let lane = |lane: usize| {
        let mut field = Field::start_of(kind);
        if matches!(target, Machine | ServerOfMachine) {
            field.join().unwrap();
        }
        if witnessed {
            field.watch();
        }
        let mut wrong = String::new();
        for (number, (op, step)) in points.iter().enumerate().filter(|(number, _)| number % LANES == lane) {
            let began = Instant::now();
            let mut shot = Shot::new(&mut field, *op, target, *step, number);
            let result = shot.fire().or_else(|error| shot.recover().and(Err(error)));
            let mut problems = shot.wrong;
            problems.extend(result.err());
            for problem in &problems {
                let _ = writeln!(wrong, "{kind:?}: {target:?} killed, {op:?}, {step:?}: {problem}");
            }
            eprintln!("{target:?} killed, {op:?}, {step:?}: {:?}, {} problems", began.elapsed(), problems.len());
        }
        assert!(wrong.is_empty(), "{wrong}");
        if witnessed {
            field.ask_witness();
        }
        field.end();
    };
    let lane = &lane;
    std::thread::scope(|scope| {
        for number in 0..LANES {
            scope.spawn(move || lane(number));
        }
    });
    points.len()
}

/// What a request came to at once.
enum Begun {
    Call(Call),
    Said(Said),
}

struct Shot<'a> {
    field: &'a mut Field,
    op: Op,
    target: Target,
    step: Step,
    /// A word that is in every command and path of this point and nowhere else.
    token: String,
    /// The sandbox that it is done to; also where the machine is the place, and then it is only looked on.
    sandbox: String,
    init: u32,
    /// The background exec.
    exec: Option<String>,
    wrong: Vec<String>,
}

impl<'a> Shot<'a> {
    fn new(field: &'a mut Field, op: Op, target: Target, step: Step, number: usize) -> Self {
        let token = format!("point-{number}-{op:?}-{target:?}-{step:?}-x").to_lowercase();
        let (sandbox, init) = field.sandbox();
        Self { field, op, target, step, token, sandbox, init, exec: None, wrong: Vec::new() }
    }

    const fn on_machine(&self) -> bool {
        matches!(self.target, Machine | ServerOfMachine)
    }

    /// Whether what was made in the place outlives the fault.
    const fn place_survives(&self) -> bool {
        !matches!(self.target, Warden | Init)
    }

    fn machine_pid(&self) -> u32 {
        self.field.machine.as_ref().map_or(0, super::field::Joined::pid)
    }

    fn route(&self) -> String {
        match &self.field.machine {
            Some(machine) if self.on_machine() => format!("/v1/machines/{}", machine.id),
            _ => format!("/v1/sandboxes/{}", self.sandbox),
        }
    }

    /// Where its files are, as its commands see it.
    fn inside(&self) -> String {
        match &self.field.machine {
            Some(machine) if self.on_machine() => machine.work.to_str().unwrap().to_owned(),
            _ => "/tmp".to_owned(),
        }
    }

    /// The same as we see it.
    fn outside(&self) -> PathBuf {
        match &self.field.machine {
            Some(machine) if self.on_machine() => machine.work.clone(),
            _ => PathBuf::from(format!("/proc/{}/root/tmp", self.init)),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.outside().join(format!("{name}-{}", self.token))
    }

    fn victim(&self) -> u32 {
        match self.target {
            Server | ServerOfMachine => self.field.server(),
            Warden => self.field.warden(),
            Init => self.init,
            Machine => self.machine_pid(),
        }
    }

    /// Who is stopped so that nothing begins.
    fn doer(&self) -> u32 {
        match self.op {
            Create | Destroy => self.field.warden(),
            _ if self.on_machine() => self.machine_pid(),
            _ => self.init,
        }
    }

    fn script(&self) -> String {
        let Self { token, .. } = self;
        let dir = self.inside();
        let begin = format!("echo {token} >> {dir}/ran-{token}; mkfifo {dir}/go-{token}; : > {dir}/started-{token}");
        if self.step == Answer && self.op != Exec {
            return format!("{begin}; while :; do echo {token}; done");
        }
        // A terminal holds less than a pipe.
        let printed = if self.op == Terminal { 1_000 } else { PRINTED };
        format!("{begin}; read x < {dir}/go-{token}; head -c {printed} /dev/zero | tr '\\0' o; echo; exit 7")
    }

    /// Lets the script go on to its end.
    fn release(&self) -> Result<(), String> {
        let path = self.file("go");
        until("the command waits for us", || {
            let mut options = fs::File::options();
            let opened = options.write(true).custom_flags(NONBLOCK).open(&path);
            opened.is_ok_and(|mut fifo| fifo.write_all(b"x\n").is_ok())
        })
    }

    /// The bytes that a file operation sends.
    fn payload(&self) -> Vec<u8> {
        if self.op != Tree {
            return vec![b'n'; WRITTEN];
        }
        let mut tree = tar::Builder::new(Vec::new());
        for (name, length) in [("a", 100_000), ("b", WRITTEN)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(length as u64);
            header.set_mode(0o644);
            let name = format!("{name}-{}", self.token);
            tree.append_data(&mut header, name, std::io::repeat(b'n').take(length as u64)).unwrap();
        }
        tree.into_inner().unwrap()
    }

    /// Sends the request; of a file operation only its head.
    fn begin(&self) -> Begun {
        self.try_begin().unwrap_or_else(|error| Begun::Said(Said::Lost(error.to_string())))
    }

    fn try_begin(&self) -> std::io::Result<Begun> {
        let route = self.route();
        let file = format!("{}/new-{}", self.inside(), self.token);
        let mut ask = json!({ "shell": self.script() });
        let json = |method: &str, path: &str, body: &Value, more: &str| {
            let body = body.to_string();
            let mut bytes = self.field.head(method, path, body.len(), more);
            bytes.extend_from_slice(body.as_bytes());
            bytes
        };
        let bytes = match self.op {
            Exec => json("POST", &format!("{route}/exec"), &ask, ""),
            Background => {
                ask["background"] = true.into();
                json("POST", &format!("{route}/exec"), &ask, "")
            }
            Frames => json("POST", &format!("{route}/exec"), &ask, "accept: application/vnd.ringfence.frames\r\n"),
            Terminal => self.field.head(
                "GET",
                &format!("{route}/exec/stream"),
                0,
                "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
            ),
            Replace | Append => {
                let mode = if self.op == Replace { "replace" } else { "append" };
                self.field.head("PUT", &format!("{route}/files?path={file}&mode={mode}"), WRITTEN, "")
            }
            Tree => {
                let path = format!("{route}/files/tar?path={}", self.inside());
                self.field.head("PUT", &path, self.payload().len(), "")
            }
            // Of another size than those of the pool, so that all of it is made now.
            Create => {
                let spec = self.field.spec(json!({ "limits": { "inodes_max": 4096 } }));
                json("POST", "/v1/sandboxes", &spec, "")
            }
            Destroy => self.field.head("DELETE", &route, 0, ""),
        };
        let mut call = self.field.open()?;
        call.send(&bytes)?;
        if self.op == Terminal {
            if let Some(said) = call.upgrade()? {
                return Ok(Begun::Said(said));
            }
            ask["pty"] = json!({ "rows": 24, "cols": 80 });
            call.send(&message(1, ask.to_string().as_bytes()))?;
        }
        Ok(Begun::Call(call))
    }

    /// Waits for the answer beside us.
    fn wait(&self, begun: Begun) -> Waiting {
        let terminal = self.op == Terminal;
        match begun {
            Begun::Said(said) => Waiting::said(said),
            Begun::Call(call) if terminal => Waiting::start(call, |call| {
                let body = messages(&call.rest());
                Said::Answer { status: 200, body, whole: true }
            }),
            Begun::Call(call) => Waiting::start(call, Call::answer),
        }
    }

    /// Brings the operation to its step, kills, and judges.
    fn fire(&mut self) -> Result<(), String> {
        let old = format!("{}/new-{}", self.inside(), self.token);
        if matches!(self.op, Replace | Append) {
            let said = self.field.send("PUT", &format!("{}/files?path={old}", self.route()), b"old");
            if !said.is_done() {
                return Err(format!("cannot write the old file: {said}"));
            }
        }
        let (victim, server, doer) = (self.victim(), self.field.server(), self.doer());
        let (said, took) = match self.step {
            Before => {
                kill(victim);
                let since = Instant::now();
                self.wait(self.begin()).end(since)
            }
            Intent => {
                let action = self.op.action();
                let before = self.field.intents(action);
                stop(doer);
                let waiting = self.wait(self.begin());
                let written = until("the intent is in the ledger", || self.field.intents(action) > before);
                kill(victim);
                let since = Instant::now();
                if doer != victim {
                    go_on(doer);
                }
                written?;
                waiting.end(since)
            }
            Half | Done | Answer => self.fire_later(victim, server)?,
        };
        if took > ANSWERED_WITHIN {
            self.wrong.push(format!("answered only after {took:?}: {said}"));
        }
        self.judge_answer(&said);
        self.heal()?;
        self.judge_effects(&said)?;
        self.clean()?;
        self.field.settle()
    }

    /// Waits until the system is well again by itself; only a machine's program is its owner's to start.
    fn heal(&mut self) -> Result<(), String> {
        if self.target == Machine {
            self.field.join()?;
        }
        until("ready again", || self.field.is_ready())?;
        if self.on_machine() {
            self.field.online()?;
        }
        Ok(())
    }

    /// After a point that went wrong: what comes next must not suffer for it.
    fn recover(&mut self) -> Result<(), String> {
        for pid in [self.field.server(), self.field.warden(), self.machine_pid()] {
            if pid != 0 {
                go_on(pid);
            }
        }
        self.heal()?;
        self.clean()?;
        self.field.settle()
    }

    fn fire_later(&mut self, victim: u32, server: u32) -> Result<(Said, Duration), String> {
        let cgroups = self.field.cgroups();
        let Begun::Call(mut call) = self.begin() else { return Err("the request cannot be sent".to_owned()) };
        let mut sender = call.sender();
        // Kills, with the server standing still if it is not to hear of what was done before.
        let strike = |stopped: bool| {
            kill(victim);
            let since = Instant::now();
            if stopped && victim != server {
                go_on(server);
            }
            since
        };
        match self.op {
            Exec | Background | Frames | Terminal => {
                if self.op == Background {
                    let said = call.answer();
                    let id = said.json().and_then(|item| Some(item["id"].as_str()?.to_owned()));
                    let id = id.ok_or_else(|| format!("not started: {said}"))?;
                    let verb = if self.step == Answer { "attach" } else { "wait" };
                    call.send(&self.field.head("GET", &format!("/v1/execs/{id}/{verb}"), 0, ""))
                        .map_err(|error| error.to_string())?;
                    self.exec = Some(id);
                }
                let started = self.file("started");
                until("the command has started", || started.exists())?;
                if self.step == Answer {
                    if self.op == Exec {
                        self.release()?;
                    }
                    call.wait_for(|seen| seen.len() > 20_000).map_err(|error| error.to_string())?;
                    let waiting = self.wait(Begun::Call(call));
                    return Ok(waiting.end(strike(false)));
                }
                let waiting = self.wait(Begun::Call(call));
                if self.step == Half {
                    return Ok(waiting.end(strike(false)));
                }
                stop(server);
                let ended = self.release().and_then(|()| until("the command has ended", || !runs(&self.token)));
                let since = strike(true);
                ended?;
                Ok(waiting.end(since))
            }
            Replace | Append | Tree => {
                let payload = self.payload();
                let waiting = self.wait(Begun::Call(call));
                let (half, rest) = payload.split_at(payload.len() / 2);
                let send = |sender: &mut std::net::TcpStream, bytes: &[u8]| {
                    sender.write_all(bytes).map_err(|error| format!("cannot send: {error}"))
                };
                send(&mut sender, half)?;
                until("some of it is there", || self.bytes_there() > 100_000)?;
                if self.step == Half {
                    return Ok(waiting.end(strike(false)));
                }
                send(&mut sender, rest)?;
                until("all of it is there", || self.bytes_there() >= WRITTEN)?;
                Ok(waiting.end(strike(false)))
            }
            Create => {
                let waiting = self.wait(Begun::Call(call));
                let mut fresh = None;
                until("the cgroup of a new sandbox", || {
                    fresh = self.field.cgroups().difference(&cgroups).next().cloned();
                    fresh.is_some()
                })?;
                if self.step == Half {
                    return Ok(waiting.end(strike(false)));
                }
                stop(server);
                let started = until("its process 1 runs", || {
                    let init = fresh.as_deref().and_then(|id| self.field.init_of(id));
                    let line = init.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
                    line.is_some_and(|line| line.starts_with(b"rf-init"))
                });
                let since = strike(true);
                started?;
                Ok(waiting.end(since))
            }
            Destroy => {
                let waiting = self.wait(Begun::Call(call));
                let init = self.init;
                until("process 1 is dead", || is_dead(init))?;
                if self.step == Half {
                    return Ok(waiting.end(strike(false)));
                }
                stop(server);
                let gone = until("its cgroup is gone", || !self.field.cgroups().contains(&self.sandbox));
                let since = strike(true);
                gone?;
                Ok(waiting.end(since))
            }
        }
    }

    /// How many bytes of what is written are on the disk, wherever: a replacing file has another name until its end, on
    /// a machine none.
    fn bytes_there(&self) -> usize {
        let entries = fs::read_dir(self.outside()).into_iter().flatten();
        let named = entries.filter_map(|entry| entry.ok()?.metadata().ok());
        let open = fs::read_dir(format!("/proc/{}/fd", self.machine_pid())).into_iter().flatten();
        let nameless = open.filter_map(|entry| {
            let path = entry.ok()?.path();
            let here = fs::read_link(&path).ok()?.starts_with(self.outside());
            here.then(|| fs::metadata(path).ok())?
        });
        let lengths = named.chain(nameless).filter(fs::Metadata::is_file).map(|meta| meta.len());
        usize::try_from(lengths.max().unwrap_or(0)).unwrap()
    }

    /// What a client may be told.
    fn judge_answer(&mut self, said: &Said) {
        let mut is = |fine: bool, what: &str| {
            if !fine {
                self.wrong.push(format!("{what}: {said}"));
            }
        };
        if matches!(self.target, Server | ServerOfMachine) {
            // Who is dead says nothing: what was begun is cut, what was said was whole.
            let cut = matches!(said, Said::Lost(_) | Said::Answer { whole: false, .. });
            is(cut || said.is_done() || said.code().is_some(), "neither a loss, an answer nor an error");
            return;
        }
        let lost = |code: &str| matches!(code, "place_lost" | "not_found" | "warden_unavailable" | "no_place");
        if let Some(code) = said.code() {
            is(lost(&code) || (self.op == Destroy && code == "not_found"), "an error of another kind");
            return;
        }
        is(said.is_done(), "neither whole nor an error");
        let late = matches!(self.step, Done | Answer);
        match self.op {
            Frames | Terminal => {
                let Said::Answer { body, .. } = said else { return };
                let last = frames(body).pop();
                let code = last.as_ref().filter(|(kind, _)| *kind == 4).and_then(|(_, json)| {
                    let body: Value = serde_json::from_slice(json).ok()?;
                    Some(body["code"].as_str()?.to_owned())
                });
                let exited = last.is_some_and(|(kind, _)| kind == 3);
                is(code.is_some_and(|code| lost(&code)) || (exited && self.step == Done), "a stream without its end");
            }
            Background if self.step == Answer => {
                let Said::Answer { body, .. } = said else { return };
                is(frames(body).last().is_some_and(|(kind, _)| matches!(kind, 3 | 4)), "a stream without its end");
            }
            Background if self.exec.is_some() => {
                let state = said.json().and_then(|item| Some(item["state"].as_str()?.to_owned()));
                is(state.as_deref() == Some("lost") || (late && state.as_deref() == Some("exited")), "not lost");
            }
            // The new warden made it, or the old one was quick.
            Create => is(self.step == Before || late, "made by nobody"),
            Destroy => {}
            Exec | Background | Replace | Append | Tree => is(late, "done by nobody"),
        }
    }

    /// What was done: once, or not at all; whole, or not at all.
    fn judge_effects(&mut self, said: &Said) -> Result<(), String> {
        let token = self.token.clone();
        if !self.place_survives() {
            until("no process of the lost sandbox", || !runs(&token))?;
            if self.op != Create || self.target == Warden {
                let gone = || self.field.listed().is_some_and(|list| !list.contains(&self.sandbox));
                until("the lost sandbox is not listed", gone)?;
            }
            return Ok(());
        }
        if self.op.runs_a_command() {
            self.judge_command()?;
        }
        let read = |path: PathBuf| fs::read(path).unwrap_or_default();
        let file = read(self.file("new"));
        let done = said.is_done();
        let fine = match self.op {
            Replace => file == vec![b'n'; WRITTEN] || (!done && file == b"old"),
            Append => {
                let rest = file.strip_prefix(b"old");
                rest.is_some_and(|rest| {
                    rest.iter().all(|b| *b == b'n') && (rest.len() == WRITTEN || (!done && rest.len() < WRITTEN))
                })
            }
            Tree => !done || (read(self.file("a")).len() == 100_000 && read(self.file("b")).len() == WRITTEN),
            _ => true,
        };
        if !fine {
            let shown = String::from_utf8_lossy(&file[..file.len().min(20)]).into_owned();
            self.wrong.push(format!("answered {said}, and the file has {} bytes: {shown}", file.len()));
        }
        if self.op == Replace {
            let outside = self.outside();
            let strays = move || -> Vec<_> {
                let entries = fs::read_dir(&outside).into_iter().flatten();
                let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                names.filter(|name| !name.contains("-point-")).collect()
            };
            if until("no half-written file is left", || strays().is_empty()).is_err() {
                self.wrong.push(format!("a half-written file is left: {:?}", strays()));
            }
        }
        if self.op == Create && done {
            let id = said.json().and_then(|made| Some(made["id"].as_str()?.to_owned()));
            let listed = self.field.listed().unwrap_or_default();
            if !id.is_some_and(|id| listed.contains(&id)) {
                self.wrong.push(format!("made, and not listed: {said}"));
            }
        }
        Ok(())
    }

    fn judge_command(&mut self) -> Result<(), String> {
        let token = self.token.clone();
        if let Some(id) = self.exec.clone() {
            self.judge_background(&id)?;
        } else {
            self.end_adopted();
            if let Err(error) = until("nothing of it runs any more", || !runs(&token)) {
                self.wrong.push(error);
            }
        }
        let ran = fs::read_to_string(self.file("ran")).unwrap_or_default();
        let times = ran.lines().count();
        let fine = match self.step {
            Before => times == 0,
            Intent => times <= 1,
            Half | Done | Answer => times == 1,
        };
        if !fine {
            self.wrong.push(format!("it ran {times} times"));
        }
        Ok(())
    }

    /// A command whose caller was cut off by the server's death is taken over like one in the background: who has its
    /// id can follow it, and the list has it. So whatever runs must be listed; and it is ended here.
    fn end_adopted(&mut self) {
        let witness = self.field.witness.as_ref().map(|(_, exec)| exec.clone());
        let list = self.field.ask("GET", "/v1/execs?items_max=1000", &Value::Null);
        let items = list.json().map(|list| list["items"].clone()).unwrap_or_default();
        let running = items.as_array().into_iter().flatten().filter(|item| item["state"] == "running");
        let ids: Vec<_> = running.filter_map(|item| Some(item["id"].as_str()?.to_owned())).collect();
        let ids: Vec<_> = ids.into_iter().filter(|id| Some(id) != witness.as_ref()).collect();
        for id in &ids {
            // It may end by itself meanwhile.
            self.field.ask("POST", &format!("/v1/execs/{id}/signal"), &json!({ "signal": 9, "scope": "tree" }));
        }
    }

    /// A background exec goes on when the server dies; on a machine that died it is lost.
    fn judge_background(&mut self, id: &str) -> Result<(), String> {
        let token = self.token.clone();
        let path = format!("/v1/execs/{id}");
        if self.target == Machine {
            let state = self.field.must("GET", &path, &Value::Null)["state"].clone();
            if state != "lost" && !(state == "exited" && self.step == Done) {
                self.wrong.push(format!("on a machine that died it is {state}"));
            }
            return until("nothing of it runs on the machine", || !runs(&token));
        }
        match self.step {
            Half => {
                if !runs(&token) {
                    self.wrong.push("it did not survive the server".to_owned());
                }
                self.release()?;
            }
            Answer => {
                if !runs(&token) {
                    self.wrong.push("it did not survive the server".to_owned());
                }
                self.field.must("POST", &format!("{path}/signal"), &json!({ "signal": 9, "scope": "tree" }));
            }
            Before | Intent | Done => {}
        }
        let ended = self.field.ask("GET", &format!("{path}/wait?timeout_ms=20000"), &Value::Null);
        let item = ended.json().unwrap_or_default();
        let as_told = if self.step == Answer { item["signal"] == 9 } else { item["code"] == 7 };
        if item["state"] != "exited" || !as_told {
            self.wrong.push(format!("its end was not learned: {ended}"));
        }
        let logs = self.field.ask("GET", &format!("{path}/logs"), &Value::Null);
        let Said::Answer { body, whole: true, .. } = &logs else { return Err(format!("no logs: {logs}")) };
        let whole = if self.target == ServerOfMachine && self.step == Answer {
            // What was on its way from the machine to the server that died is missing; what came is there.
            body.starts_with(format!("{token}\n").as_bytes())
        } else if self.step == Answer {
            // Its end is cut where it was killed.
            let line = format!("{token}\n");
            !body.is_empty() && body.chunks(line.len()).all(|chunk| line.as_bytes().starts_with(chunk))
        } else {
            body.len() == PRINTED + 1 && body[..PRINTED].iter().all(|b| *b == b'o') && body[PRINTED] == b'\n'
        };
        if !whole {
            self.wrong.push(format!("its output is not whole: {logs}"));
        }
        Ok(())
    }

    /// Destroys what is left, and what was to be destroyed once more.
    fn clean(&mut self) -> Result<(), String> {
        for id in self.field.listed().unwrap_or_default() {
            let witness = self.field.witness.as_ref().is_some_and(|(sandbox, _)| *sandbox == id);
            if witness {
                continue;
            }
            let said = self.field.ask("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
            if !said.is_done() && said.code().as_deref() != Some("not_found") {
                return Err(format!("cannot be destroyed: {said}"));
            }
        }
        if let Some(machine) = &self.field.machine {
            for entry in fs::read_dir(&machine.work).into_iter().flatten().flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}
