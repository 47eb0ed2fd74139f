//! Where attacks are run: a whole system, a sandbox of the attacker's, and on the host what they are after.

use std::{
    fs,
    io::Read as _,
    net::TcpListener,
    os::{linux::net::SocketAddrExt as _, unix::net::UnixListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rf_client::{Client, Key, Options};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    attacks::{Attack, Control, Who},
    support::System,
};

/// The probes, as they are copied into the sandbox.
const PROBE: &str = include_str!("../../probes/probe.py");
/// Where the probes are in the sandbox.
const INSIDE: &str = "/tmp/probe.py";
/// The key of a System V shared memory segment of the host's.
const SHM_KEY: &str = "0x52460001";

/// Becomes `sleep` with the marker as its name, a command line that only this process has, and holds a lock of an open
/// file description (F_OFD_SETLK, fcntl_locking(2)) on a byte that nobody else would lock.
const VICTIM: &str = "
import fcntl, os, struct, sys
file = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600)
os.set_inheritable(file, True)
fcntl.fcntl(file, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 1380319234, 1, 0))
os.execv('/bin/sleep', [sys.argv[1], '1000'])
";

/// What a probe said.
#[derive(Debug, Eq, PartialEq)]
enum Said {
    Got(String),
    Refused(String),
    /// It ended by this signal.
    Killed(i64),
    Else(String),
}

pub(crate) struct Field {
    /// `None` once it is closed.
    system: Option<System>,
    runtime: Runtime,
    client: Client,
    sandbox: String,
    /// A process of the host's, whose command line has `marker` in it.
    victim: Victim,
    marker: String,
    listener: TcpListener,
    abstract_name: String,
    _abstract_listener: UnixListener,
    probe: PathBuf,
}

impl Field {
    pub(crate) fn open() -> Self {
        let system = System::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let key = fs::read_to_string(system.state().join("first-key")).unwrap();
        let client =
            Client::new(Options { url: system.url.clone(), key: Some(Key::new(&key)), certificate: None }).unwrap();
        let marker = format!("ringfence-victim-{}", std::process::id());
        let locked = system.dir().join("locked");
        let victim =
            Command::new("python3").args(["-c", VICTIM, &marker]).arg(&locked).stdin(Stdio::null()).spawn().unwrap();
        let abstract_name = format!("ringfence-escape-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let abstract_listener = UnixListener::bind_addr(&address).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let probe = system.dir().join("probe.py");
        fs::write(&probe, PROBE).unwrap();
        let made: Value = runtime
            .block_on(client.post("/v1/sandboxes", &json!({ "name": "attacker" })))
            .expect("a sandbox for the attacker");
        let sandbox = made["id"].as_str().unwrap().to_owned();
        let field = Self {
            system: Some(system),
            runtime,
            client,
            sandbox,
            victim: Victim(victim),
            marker,
            listener,
            abstract_name,
            _abstract_listener: abstract_listener,
            probe,
        };
        let quoted = PROBE.replace('\'', "'\\''");
        let put = field.exec(&json!({ "shell": format!("printf %s '{quoted}' > {INSIDE}") }));
        assert_eq!(put["code"], 0, "{put}");
        // What its owner, `root` inside, may make: a set-user-id program, which then does nothing.
        let copy = "cp /usr/bin/id /tmp/set-user-id && chmod 4755 /tmp/set-user-id";
        let made = field.exec(&json!({ "shell": copy, "user": "root" }));
        assert_eq!(made["code"], 0, "{made}");
        field
    }

    /// Ends the system in order; it fails if anything of it is left.
    pub(crate) fn close(mut self) {
        self.victim.0.kill().unwrap();
        self.system.take().expect("it is closed once").stop();
    }

    fn system(&self) -> &System {
        self.system.as_ref().expect("it is open")
    }

    fn exec(&self, body: &Value) -> Value {
        self.exec_in(&self.sandbox, body)
    }

    /// Runs a command in a sandbox, and waits for it unless it is in the background.
    pub(crate) fn exec_in(&self, id: &str, body: &Value) -> Value {
        let path = format!("/v1/sandboxes/{id}/exec");
        self.runtime.block_on(self.client.post(&path, body)).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    /// Makes a sandbox of this request.
    pub(crate) fn sandbox_of(&self, ask: &Value) -> String {
        let made: Value = self
            .runtime
            .block_on(self.client.post("/v1/sandboxes", ask))
            .unwrap_or_else(|error| panic!("{ask}: {error}"));
        made["id"].as_str().unwrap().to_owned()
    }

    /// What the report says of one layer of a sandbox.
    pub(crate) fn layer(&self, id: &str, layer: &str) -> Value {
        let told: Value = self.runtime.block_on(self.client.get(&format!("/v1/sandboxes/{id}"))).unwrap();
        let layers = told["enforcement"]["layers"].as_array().unwrap();
        layers.iter().find(|report| report["layer"] == layer).unwrap().clone()
    }

    pub(crate) fn destroy(&self, id: &str) {
        self.runtime.block_on(self.client.delete(&format!("/v1/sandboxes/{id}"))).unwrap();
    }

    /// A file of the host's beside the system's state.
    pub(crate) fn host_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.system().dir().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Fills in what is only known now.
    fn fill(&self, argument: &str) -> String {
        argument
            .replace("{victim}", &self.victim.0.id().to_string())
            .replace("{marker}", &self.marker)
            .replace("{port}", &self.listener.local_addr().unwrap().port().to_string())
            .replace("{server_port}", self.system().url.rsplit(':').next().unwrap())
            .replace("{abstract}", &self.abstract_name)
            .replace("{state}", self.system().state().to_str().unwrap())
            .replace("{key}", fs::read_to_string(self.system().state().join("first-key")).unwrap().trim())
            .replace("{shm}", SHM_KEY)
    }

    /// One attack: its control must work, and inside it must be refused as it says.
    pub(crate) fn run(&self, attack: &Attack) -> Result<(), String> {
        let arguments: Vec<String> = attack.probe.iter().map(|argument| self.fill(argument)).collect();
        let control = self.control(attack, &arguments);
        if !matches!(control, Said::Got(_)) {
            return Err(format!("the control does not work, so nothing would be shown: {control:?}"));
        }
        let inside = self.inside(attack, &arguments);
        let held = match &inside {
            Said::Refused(errno) => attack.refused.contains(&errno.as_str()),
            Said::Killed(signal) => attack.refused.contains(&format!("SIGNAL {signal}").as_str()),
            Said::Got(_) | Said::Else(_) => false,
        };
        if held { Ok(()) } else { Err(format!("expected {:?}, got {inside:?}", attack.refused)) }
    }

    /// The same probe where the layer is not: on the host, with what the attack says around it.
    fn control(&self, attack: &Attack, arguments: &[String]) -> Said {
        let elsewhere: Vec<String>;
        let mut arguments = arguments;
        let command = match attack.control {
            Control::Host => Command::new("python3"),
            Control::HostAt(other) => {
                elsewhere = other.iter().map(|argument| self.fill(argument)).collect();
                arguments = &elsewhere;
                Command::new("python3")
            }
            // What it changes is changed in namespaces of its own, which end with it.
            Control::Private(flags) => {
                let mut command = Command::new("unshare");
                command.args(flags.split(' ')).arg("python3");
                command
            }
            Control::Prepared(shell) => {
                let mut command = Command::new("bash");
                command.args(["-c", &format!("{}; exec python3 \"$@\"", self.fill(shell)), "control"]);
                command
            }
            Control::HostOr { lacks, inside } => {
                let said = self.outside(Command::new("python3"), arguments);
                if !matches!(&said, Said::Refused(errno) if lacks.contains(&errno.as_str())) {
                    return said;
                }
                println!("{}: not on this host at all ({said:?}); the control is {inside:?} inside", attack.name);
                let arguments: Vec<String> = inside.iter().map(|argument| self.fill(argument)).collect();
                return self.inside(attack, &arguments);
            }
            Control::Inside(other) => {
                let arguments: Vec<String> = other.iter().map(|argument| self.fill(argument)).collect();
                return self.inside(attack, &arguments);
            }
        };
        self.outside(command, arguments)
    }

    /// The probe by a command of the host's that runs it.
    fn outside(&self, mut command: Command, arguments: &[String]) -> Said {
        command.arg(&self.probe).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        child.wait().unwrap();
        said(&out, &err)
    }

    /// Which numbers of system calls, beside `listed`, the kernel has for the sandbox's user; and for `root` inside.
    pub(crate) fn numbers_beside(&self, listed: &[u64]) -> [String; 2] {
        let listed = listed.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        ["user", "root"].map(|user| {
            let body = json!({ "argv": ["python3", INSIDE, "numbers_beside", listed], "user": user });
            let result = self.exec(&body);
            match said(text(&result, "stdout"), text(&result, "stderr")) {
                Said::Got(numbers) => numbers,
                Said::Refused(errno) if errno == "ENOSYS" => String::new(),
                other => panic!("{other:?}: {result}"),
            }
        })
    }

    /// The numbers that `ringfence seccomp` prints.
    pub(crate) fn listed(&self) -> Vec<u64> {
        let list: Value = serde_json::from_str(&self.system().run(&["--json", "seccomp"]).expect(0)).unwrap();
        list["calls"].as_array().unwrap().iter().map(|call| call["number"].as_u64().unwrap()).collect()
    }

    fn inside(&self, attack: &Attack, arguments: &[String]) -> Said {
        let mut argv = vec!["python3", INSIDE];
        argv.extend(arguments.iter().map(String::as_str));
        let mut body = json!({ "argv": argv, "timeout_ms": 60_000 });
        if attack.who == Who::Root {
            body["user"] = json!("root");
        }
        let result = self.exec(&body);
        match result["signal"].as_i64() {
            Some(signal) => Said::Killed(signal),
            None => said(text(&result, "stdout"), text(&result, "stderr")),
        }
    }
}

impl Field {
    /// Reads a file by the interface; its text, or the refusal's code.
    pub(crate) fn read(&self, id: &str, path: &str) -> Result<String, String> {
        self.curl(id, "", path, &[]).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a file by the interface.
    pub(crate) fn write(&self, id: &str, path: &str, text: &str) -> Result<(), String> {
        self.curl(id, "", path, &["--request", "PUT", "--data-binary", text]).map(drop)
    }

    /// Takes a tree as an archive.
    pub(crate) fn tar_out(&self, id: &str, path: &str) -> Result<Vec<u8>, String> {
        self.curl(id, "/tar", path, &[])
    }

    /// A file operation as any program would ask for it; bounded, so that one that hangs is a failure.
    fn curl(&self, id: &str, what: &str, path: &str, more: &[&str]) -> Result<Vec<u8>, String> {
        let key = fs::read_to_string(self.system().state().join("first-key")).unwrap();
        let url = format!("{}/v1/sandboxes/{id}/files{what}", self.system().url);
        let encoded: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "20", "--header"])
            .arg(format!("Authorization: Bearer {}", key.trim()))
            .args(["--write-out", "\n%{http_code}"])
            .args(more)
            .arg(format!("{url}?path={encoded}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{path}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
        let split = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
        let (body, status) = output.stdout.split_at(split);
        if status.starts_with(b"\n2") {
            return Ok(body.to_vec());
        }
        let fault: Value = serde_json::from_slice(body).unwrap_or_else(|e| panic!("{path}: {e}: {body:?}"));
        Err(fault["code"].as_str().unwrap().to_owned())
    }
}

fn text<'a>(result: &'a Value, stream: &str) -> &'a str {
    result[stream].as_str().or_else(|| result[stream]["text"].as_str()).unwrap_or("")
}

fn said(out: &str, err: &str) -> Said {
    let line = out.lines().next().unwrap_or("");
    match line.split_once(' ') {
        Some(("GOT", what)) => Said::Got(what.to_owned()),
        Some(("REFUSED", errno)) => Said::Refused(errno.to_owned()),
        _ => Said::Else(format!("{out}{err}")),
    }
}

/// A process that ends with the test, also with one that fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have been ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
