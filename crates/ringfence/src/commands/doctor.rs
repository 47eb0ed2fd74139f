//! `ringfence doctor`: what this host can hold and how to get the rest; `--audit`: what each process of ours holds.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rf_sandbox::{
    host::HostReport,
    settings::{self, Setting},
};
use rf_server::registries::RegistryCheck;
use rf_template::host::base;
use rf_types::{Code, Fault};
use serde::Serialize;
use serde_json::json;

use crate::{
    cli::Global,
    commands::server,
    connect,
    output::{self, Output},
    state::State,
    supervise::inspect::{self, Audit, Process, Role},
};

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// List every process of the running system with what it holds, and show that none both parses strangers' bytes and
    /// holds rights.
    #[arg(long)]
    audit: bool,
    /// Read this configuration as `up` would, and ask its registries whether they take what it has for them.
    #[arg(long, value_name = "FILE", conflicts_with = "audit")]
    config: Option<PathBuf>,
}

pub(crate) fn doctor(global: &Global, args: &DoctorArgs, out: &Output) -> Result<ExitCode> {
    if args.audit { audit(global, out) } else { host(global, args.config.as_deref(), out) }
}

/// A file of a snapshot that the warden sets aside.
#[derive(Serialize)]
struct SetAside {
    file: PathBuf,
    why: String,
}

/// What is wrong with what a state directory has stored.
#[derive(Serialize)]
struct StateFaults {
    available: bool,
    evidence: String,
    cure: String,
    set_aside: Vec<SetAside>,
}

impl StateFaults {
    fn look(state: &Path) -> Self {
        const CURE: &str = "put the file back as it was, from a backup, and start ringfence again; or have its user remove \
            the snapshot. Until then no layer that was there is removed";
        let good = |evidence: String| Self { available: true, evidence, cure: String::new(), set_aside: Vec::new() };
        match rf_warden::set_aside(state) {
            Ok(files) if files.is_empty() => good(format!("every snapshot in `{}` can be read", state.display())),
            Ok(files) => Self {
                available: false,
                evidence: format!("{} files of snapshots cannot be used", files.len()),
                cure: CURE.to_owned(),
                set_aside: files.into_iter().map(|file| SetAside { file: file.path, why: file.why }).collect(),
            },
            // Another person's: there is nothing to be found out.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                good(format!("`{}` is another user's, and was not looked at", state.display()))
            }
            Err(error) => Self {
                available: false,
                evidence: format!("snapshots cannot be listed: {error}"),
                cure: "look at the state directory and its disk".to_owned(),
                set_aside: Vec::new(),
            },
        }
    }
}

/// What is found of a configuration.
#[derive(Serialize)]
struct Configured<'a> {
    file: &'a Path,
    registries: Vec<RegistryCheck>,
}

/// Reads a configuration, which must be right for anything to be told of it, and asks its registries.
fn configured<'a>(global: &Global, file: &'a Path) -> Result<Configured<'a>> {
    let config = server::config_of(global, file)?;
    let registries = connect::runtime()?.block_on(rf_server::registries::check(&config.registries));
    Ok(Configured { file, registries })
}

fn host(global: &Global, config: Option<&Path>, out: &Output) -> Result<ExitCode> {
    let configured = config.map(|file| configured(global, file)).transpose()?;
    let registries = configured.as_ref().map_or(&[][..], |configured| &configured.registries);
    let report = HostReport::probe("ringfence-doctor").context("cannot probe this host")?;
    // The probe made groups to see whether it may.
    report.hierarchies.remove_base();
    let mode = if report.rooted { "rooted" } else { "rootless" };
    let layers = report.statuses();
    let missing = layers.iter().filter(|layer| !layer.available).count();
    let packages = base::missing(Path::new("/"));
    // Whoever has no home and names no directory has no state either.
    let state = State::locate(global.state.as_deref()).ok();
    let supervisor = state.as_ref().and_then(State::running).map(|running| running.pid);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let settings = settings::look(supervisor, u64::try_from(now).unwrap_or(u64::MAX));
    let state_faults = StateFaults::look(state.as_ref().map_or(Path::new(""), State::root));
    let value = json!({
        "mode": mode,
        "kernel": report.kernel,
        "layers": layers,
        "disk_image": { "available": report.image.available, "evidence": report.image.evidence, "cure": report.image.cure },
        "template_base": { "available": packages.is_empty(), "missing_packages": packages },
        "missing": missing,
        "settings": settings.iter().map(|setting| json!({
            "name": setting.name,
            "available": setting.found.available,
            "evidence": setting.found.evidence,
            "cure": setting.found.cure,
        })).collect::<Vec<_>>(),
        "state": state_faults,
        "configuration": configured,
    });
    out.value(&value, |_| {
        let mark = |available| if available { "yes" } else { "NO" };
        let rows = layers
            .iter()
            .map(|layer| vec![layer.layer.to_string(), mark(layer.available).to_owned(), layer.evidence.clone()])
            .chain([vec![
                "disk image".to_owned(),
                mark(report.image.available).to_owned(),
                report.image.evidence.clone(),
            ]])
            .chain([vec![
                "template base".to_owned(),
                mark(packages.is_empty()).to_owned(),
                if packages.is_empty() {
                    "the host has every program that it needs".to_owned()
                } else {
                    format!("looked for programs: {} missing", packages.join(", "))
                },
            ]])
            .chain(settings.iter().map(|Setting { name, found }| {
                vec![(*name).to_owned(), mark(found.available).to_owned(), found.evidence.clone()]
            }))
            .chain([vec!["state".to_owned(), mark(state_faults.available).to_owned(), state_faults.evidence.clone()]])
            .chain(configured.iter().map(|configured| {
                let read = format!("`{}` was read, and the files of its registries", configured.file.display());
                vec!["configuration".to_owned(), mark(true).to_owned(), read]
            }))
            .chain(registries.iter().map(|found| {
                vec![format!("registry {}", found.host), mark(found.available).to_owned(), found.evidence.clone()]
            }));
        let mut text = format!(
            "kernel {}, {mode}\n\n{}\n",
            report.kernel,
            output::table(&["layer", "held", "how that is known"], rows)
        );
        for layer in layers.iter().filter(|layer| !layer.available) {
            text.push_str(&format!("\n{} is missing. To get it: {}", layer.layer, layer.cure));
        }
        if !report.image.available {
            text.push_str(&format!("\ndisks on images are not to be had. To get them: {}", report.image.cure));
        }
        if !packages.is_empty() {
            text.push_str(&format!("\nthe template `base` is not to be had. To get it: {}", base::cure(&packages)));
        }
        for Setting { name, found } in settings.iter().filter(|setting| !setting.found.available) {
            text.push_str(&format!("\n{name} is better changed. To do so: {}", found.cure));
        }
        for fault in &state_faults.set_aside {
            text.push_str(&format!("\na snapshot cannot be used: {}: {}", fault.file.display(), fault.why));
        }
        if !state_faults.available {
            text.push_str(&format!("\nthe state has faults. To mend them: {}", state_faults.cure));
        }
        for found in registries.iter().filter(|found| !found.available) {
            text.push_str(&format!("\nno images are to be had of {}. To get them: {}", found.host, found.cure));
        }
        match missing {
            0 => text.push_str("\nevery layer can be held: sandboxes start as they should"),
            _ => text.push_str(&format!(
                "\n{missing} layers are missing: sandboxes are refused, unless a request accepts that by name"
            )),
        }
        text
    })?;
    // Settings are advice: nothing is refused for them.
    let well = missing == 0 && state_faults.available && registries.iter().all(|found| found.available);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn audit(global: &Global, out: &Output) -> Result<ExitCode> {
    let state = State::locate(global.state.as_deref())?;
    let Some(running) = state.running() else {
        bail!(Fault::new(
            Code::NotFound,
            format!("nothing runs on `{}`, or another user's", state.root().display()),
            "start it with `ringfence up`, name its state directory with --state, or run this as who started it",
        ));
    };
    let audit = inspect::audit(running.pid)?;
    out.value(&audit, text)?;
    Ok(if audit.holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(audit: &Audit) -> String {
    // Thousands of sandboxes look alike: one line for all that do.
    let mut alike: BTreeMap<(Role, Vec<String>), Vec<&Process>> = BTreeMap::new();
    for process in &audit.processes {
        let cells = vec![
            if audit.rooted && matches!(process.role, Role::Init | Role::Workload) {
                "own range".to_owned()
            } else {
                process.uid.to_string()
            },
            match (process.capabilities.count_ones(), process.own_user_namespace) {
                (0, _) => "none".to_owned(),
                (count, true) => format!("{count}, in its own namespace"),
                (count, false) => count.to_string(),
            },
            if process.no_new_privs { "yes" } else { "no" }.to_owned(),
            if process.seccomp == 2 { "filter" } else { "none" }.to_owned(),
            if process.listens.is_empty() { "-".to_owned() } else { process.listens.join(", ") },
            if process.parses.is_empty() { "nobody's".to_owned() } else { process.parses.to_owned() },
        ];
        alike.entry((process.role, cells)).or_default().push(process);
    }
    let rows = alike.iter().map(|((role, cells), processes)| {
        let which = match processes.as_slice() {
            [one] => one.pid.to_string(),
            many => format!("{} of them", many.len()),
        };
        [&[format!("{role:?}").to_lowercase(), which][..], cells].concat()
    });
    let mut text = output::table(
        &["role", "pid", "uid", "capabilities", "no new privs", "seccomp", "listens", "parses bytes of"],
        rows,
    );
    text.push_str("\n\n");
    for process in audit.processes.iter().filter(|process| !process.finding.is_empty()) {
        text.push_str(&format!("FOUND: {:?} {} {}\n", process.role, process.pid, process.finding));
    }
    for finding in &audit.findings {
        text.push_str(&format!("FOUND: {finding}\n"));
    }
    if audit.holds {
        text.push_str("none of these processes both parses strangers' bytes and holds rights");
        if !audit.rooted {
            text.push_str("\nrootless: all of them run as the same person and hold no more than that person does");
        }
    }
    text
}
