//! A sandbox does what every place does: the suite that machines run too, on sandboxes of a real warden, with root and
//! without.

mod support;

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use rf_places::{EndedWhy, ExecsConfig, Place, Places, PlacesConfig, Rows, SandboxRow};
use rf_policy::Action;
use rf_testkit::{
    conformance::{self, Differs, within},
    permits::permit,
};
use rf_types::{Code, DiskKind, Fault, Layer, PlaceRef, SandboxId, SandboxSpec, UserId, units::MIB};
use support::{BINARY, Ran, binary, eventually, fresh_dir, ringfence, signal};

const USER: UserId = UserId::from_bits(1);
/// Names the directory in which this binary, started once more by itself, runs its part without root.
const ROOTLESS_IN: &str = "RINGFENCE_TEST_ROOTLESS_IN";
/// Nobody's id on this machine. Chosen; not the server's.
const NOBODY: u32 = 1_878_982_701;

#[test]
fn a_sandbox_of_a_warden_with_root_conforms() {
    assert!(rustix::process::geteuid().is_root(), "run this as root");
    let dir = fresh_dir();
    let mut spec = SandboxSpec::standard(600_000);
    spec.limits.memory_bytes_max = 512 * MIB;
    conforms(dir.path(), &[spec.clone(), SandboxSpec { disk: DiskKind::Image, ..spec }]);
}

#[test]
fn a_sandbox_of_a_warden_without_root_conforms() {
    if let Some(dir) = std::env::var_os(ROOTLESS_IN) {
        assert!(!rustix::process::geteuid().is_root());
        let mut spec = SandboxSpec::standard(600_000);
        spec.limits.memory_bytes_max = 512 * MIB;
        // Limits need control groups, which nobody delegated to this id. A disk in memory needs no `io`.
        spec.accept_missing = vec![Layer::Memory, Layer::Tasks, Layer::Cpu];
        return conforms(Path::new(&dir), &[spec]);
    }
    assert!(rustix::process::geteuid().is_root(), "run this as root, which can become anybody");
    let dir = fresh_dir();
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // They may not reach where the originals are.
    let (tests, tested) = (dir.path().join("tests"), dir.path().join("ringfence"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(binary(), &tested).unwrap();
    let mut again = Command::new(tests);
    again
        .args(["--exact", "a_sandbox_of_a_warden_without_root_conforms", "--nocapture"])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir(dir.path())
        .env(BINARY, tested)
        .env(ROOTLESS_IN, dir.path());
    let ran = Ran::of(again, b"");
    let said = ran.expect(0);
    assert!(said.contains("1 passed"), "{said}");
    eprintln!("{}", ran.stderr);
}

/// Runs the whole suite in a sandbox of each of these, made by a warden that runs as who runs this.
fn conforms(dir: &Path, specs: &[SandboxSpec]) {
    let warden = Warden::start(dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let config =
            PlacesConfig { warden_socket: warden.socket.clone(), execs: ExecsConfig::standard(dir.join("spool")) };
        let places = Places::start(config, Arc::new(NoRows), Vec::new(), Vec::new()).unwrap();
        within(places.ready()).await;
        for spec in specs {
            eprintln!("a sandbox with a disk of kind {:?}", spec.disk);
            refuses_what_is_not_accepted(&places, spec).await;
            let place = create(&places, spec).await.unwrap();
            let PlaceRef::Sandbox(id) = place.place() else { panic!("a sandbox was asked for") };
            let differs = Differs { loses_detached_orphans: spec.accept_missing.contains(&Layer::Tasks) };
            conformance::run_where(place, USER, differs).await;
            places.sandboxes().destroy(&permit(USER, Action::SandboxDestroy), id).await.unwrap();
        }
    });
    runtime.shutdown_background();
    warden.stop();
}

async fn create(places: &Places, spec: &SandboxSpec) -> Result<Arc<dyn Place>, Fault> {
    let claim = places.claim_sandbox(USER, spec.clone(), |_| Ok(permit(USER, Action::SandboxCreate)))?;
    Ok(places.sandboxes().create(claim, rf_places::Making::default()).await?)
}

/// What a spec accepts to be missing is missing indeed: a spec that does not is refused.
async fn refuses_what_is_not_accepted(places: &Places, spec: &SandboxSpec) {
    for layer in &spec.accept_missing {
        let mut strict = spec.clone();
        strict.accept_missing.retain(|accepted| accepted != layer);
        let fault = create(places, &strict).await.err().expect("it lacks a layer and nobody accepted that");
        assert_eq!(fault.code, Code::LayerUnavailable, "{fault:?}");
        assert!(fault.message.contains(&layer.to_string()) && !fault.hint.is_empty(), "{fault:?}");
    }
}

/// A warden alone, without supervisor and server.
struct Warden {
    child: Child,
    state: std::path::PathBuf,
    socket: std::path::PathBuf,
}

impl Warden {
    fn start(dir: &Path) -> Self {
        let state = dir.join("state");
        let socket = state.join("run/warden.sock");
        fs::create_dir_all(state.join("run")).unwrap();
        fs::create_dir_all(state.join("warden")).unwrap();
        let log = fs::File::create(dir.join("warden.log")).unwrap();
        let mut command = ringfence(dir);
        command.arg("--state").arg(&state).args(["warden", "--pool", "1"]);
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        eventually("the warden listens", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(dir.join("warden.log")).unwrap());
            socket.exists()
        });
        Self { child, state, socket }
    }

    /// Ends it in order; nothing of it may be left.
    fn stop(mut self) {
        signal(self.child.id(), "TERM");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        let state = self.state.to_str().unwrap();
        let left: Vec<_> = support::processes().into_iter().filter(|(_, line)| line.contains(state)).collect();
        assert_eq!(left, []);
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(state));
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        // A test that failed. What it leaves ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct NoRows;

impl Rows for NoRows {
    fn made(&self, _: &SandboxRow, _: Option<&rf_places::Repeat>) -> Result<(), Fault> {
        Ok(())
    }
    fn unmade(&self, _: UserId, _: SandboxId) {}
    fn changed(&self, _: &SandboxRow, _: rf_places::ChangedWhy) -> Result<(), Fault> {
        Ok(())
    }
    fn ended(&self, _: UserId, id: SandboxId, why: EndedWhy) {
        assert_eq!(why, EndedWhy::Destroyed, "{id}");
    }

    fn snapshot_made(&self, _: &rf_places::SnapshotRow) -> Result<(), Fault> {
        Ok(())
    }

    fn snapshot_changed(&self, _: &rf_places::SnapshotRow) {}

    fn snapshot_removed(&self, _: UserId, _: rf_types::SnapshotId) -> Result<(), Fault> {
        Ok(())
    }
}
