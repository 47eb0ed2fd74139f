//! The templates that roots are made from, and their layers, shared by digest.
//!
//! ```text
//! warden/host/host-DIGEST/      the tree of the `host` template
//! warden/tools/usr/bin/sudo     laid over every root whose user may be `root` inside
//! warden/base/usr/local/bin/    laid over the host's tree for the template `base`
//! warden/layers/HEX/            one unpacked layer; HEX.part while it is being unpacked, another name ending in .gone while
//!                               it is removed
//! warden/templates/NAME.json    the layers of a template, lowest first; `/` in the name is `%`
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use rf_sandbox::plan::{Bind, RootSource};
use rf_template::host::{HostTemplate, base, build_base};
use rf_types::{Code, Fault, TemplateName};
use rf_wire::warden::Template;

use crate::{
    WardenConfig, WardenError,
    gone::{is_gone, let_go},
};

/// Most layers of a template: what overlayfs takes, and some to spare (overlayfs has 500 since Linux 4.x).
const LAYERS_MAX: usize = 100;

#[derive(Debug)]
pub(crate) struct Templates {
    layers: PathBuf,
    templates: PathBuf,
    tools: PathBuf,
    host: RootSource,
    /// What `base` has beyond `host`.
    additions: PathBuf,
    /// Below the layers of every imported template.
    below: PathBuf,
    /// Directories to be removed.
    gone: Vec<PathBuf>,
    /// Layers that were to go, and that a sandbox stood on.
    left: BTreeSet<String>,
    /// Layers that were unpacked, and that no template was given since: one is about to be.
    fresh: BTreeSet<String>,
}

impl Templates {
    /// Builds the `host` template. [`Self::sweep`] comes next.
    pub(crate) fn open(config: &WardenConfig) -> Result<Self, WardenError> {
        let dir = config.own("host");
        let host = HostTemplate::build(&dir, &[]).map_err(WardenError::file(&dir))?;
        for other in host.others(&dir).map_err(WardenError::file(&dir))? {
            // No sandbox stands on it: none is older than this warden.
            fs::remove_dir_all(&other).map_err(WardenError::file(&other))?;
        }
        let bind = |bind: rf_template::host::Bind| Bind {
            overlay: bind.to == Path::new("/usr"),
            from: bind.from,
            to: bind.to,
        };
        let tools = config.own("tools");
        write_tools(&tools).map_err(WardenError::file(&tools))?;
        let host = RootSource {
            layers: vec![host.root],
            binds: host.binds.into_iter().map(bind).collect(),
            additions: Vec::new(),
            tools: Some(tools.clone()),
            above: Vec::new(),
        };
        let additions = config.own("base");
        base::write_additions(Path::new("/"), &additions).map_err(WardenError::file(&additions))?;
        let below = build_base(&dir).map_err(WardenError::file(&dir))?;
        let (layers, templates) = (config.own("layers"), config.own("templates"));
        Ok(Self {
            layers,
            templates,
            tools,
            host,
            additions,
            below,
            gone: Vec::new(),
            left: BTreeSet::new(),
            fresh: BTreeSet::new(),
        })
    }

    /// Lets go of what a former warden left: what it was unpacking or removing, and layers that neither a template nor a
    /// snapshot has, of imports that came to nothing.
    pub(crate) fn sweep(&mut self, is_held: impl Fn(&str) -> bool) -> Result<(), WardenError> {
        let named = self.named();
        for entry in fs::read_dir(&self.layers).map_err(WardenError::file(&self.layers))?.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let id = format!("sha256:{}", name.strip_suffix(".part").unwrap_or(&name));
            let is_needed = |named: &BTreeSet<String>| named.contains(&id) || is_held(&id);
            if is_gone(&path) {
                self.gone.push(path);
            } else if self.layer(&id).is_ok()
                && (name.ends_with(".part") || named.as_ref().is_some_and(|n| !is_needed(n)))
            {
                self.let_go(&path).map_err(WardenError::file(&path))?;
            }
        }
        Ok(())
    }

    /// The layers of all templates; `None` where one cannot be read, which may have any.
    fn named(&self) -> Option<BTreeSet<String>> {
        let mut named = BTreeSet::new();
        for entry in fs::read_dir(&self.templates).ok()? {
            let path = entry.ok()?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                named.extend(self.read(&path)?);
            }
        }
        Some(named)
    }

    /// Directories to be removed.
    pub(crate) fn take_gone(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.gone)
    }

    fn let_go(&mut self, dir: &Path) -> io::Result<()> {
        self.gone.extend(let_go(dir)?);
        Ok(())
    }

    /// What the root of `name` is made from.
    pub(crate) fn source(&self, name: &TemplateName) -> Result<RootSource, Fault> {
        if *name == TemplateName::host() {
            return Ok(self.host.clone());
        }
        if *name == TemplateName::base() {
            // Asked each time: what is missing may have been installed meanwhile.
            let missing = base::missing(Path::new("/"));
            if !missing.is_empty() {
                let what = format!("the template `base` needs what this host lacks: {}", missing.join(", "));
                let hint = format!("on the server: {}", base::cure(&missing));
                return Err(Fault::new(Code::TemplateUnavailable, what, hint));
            }
            return Ok(RootSource { additions: vec![self.additions.clone()], ..self.host.clone() });
        }
        let unknown = || {
            let hint = "see `ringfence template list`; import it with `ringfence template import`";
            Fault::new(Code::TemplateUnavailable, format!("there is no template `{name}`"), hint)
        };
        let layers = self.read(&self.file(name)).ok_or_else(unknown)?;
        self.source_of(name, &layers)
    }

    /// What a root of `name` is made from when it has these layers, which it may have had once; none of a built-in one.
    pub(crate) fn source_of(&self, name: &TemplateName, layers: &[String]) -> Result<RootSource, Fault> {
        if name.is_built_in() {
            return self.source(name);
        }
        let mut lowest_first = vec![self.below.clone()];
        for id in layers {
            lowest_first.push(self.layer(id)?);
        }
        let tools = Some(self.tools.clone());
        Ok(RootSource { layers: lowest_first, binds: Vec::new(), additions: Vec::new(), tools, above: Vec::new() })
    }

    /// The layers of a template that a root is made from.
    pub(crate) fn layers_of(&self, source: &RootSource) -> Vec<String> {
        let own = source.layers.iter().filter(|dir| dir.parent() == Some(&self.layers));
        own.filter_map(|dir| Some(format!("sha256:{}", dir.file_name()?.to_str()?))).collect()
    }

    pub(crate) fn list(&self) -> Vec<Template> {
        let built_in = [TemplateName::base(), TemplateName::host()];
        let mut all = built_in.map(|name| Template { name, layers: Vec::new() }).to_vec();
        for entry in fs::read_dir(&self.templates).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().strip_suffix(".json").map(|stem| stem.replace('%', "/"));
            let name = name.and_then(|name| name.parse::<TemplateName>().ok()).filter(|name| !name.is_built_in());
            if let (Some(name), Some(layers)) = (name, self.read(&entry.path())) {
                all.push(Template { name, layers });
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Names the layers of a template; gives those that it had before.
    pub(crate) fn set(&mut self, name: &TemplateName, layers: &[String]) -> Result<Vec<String>, Fault> {
        if name.is_built_in() {
            let what = format!("the template `{name}` is made by the server itself");
            return Err(Fault::new(Code::Conflict, what, "choose another name"));
        }
        if layers.is_empty() || layers.len() > LAYERS_MAX {
            return Err(Fault::invalid(format!("a template has 1 to {LAYERS_MAX} layers, not {}", layers.len())));
        }
        for id in layers {
            if !self.layer(id)?.is_dir() {
                return Err(Fault::new(Code::NotFound, format!("the layer `{id}` is not unpacked"), "unpack it first"));
            }
        }
        let text = serde_json::to_vec(layers).map_err(|error| Fault::invalid(error.to_string()))?;
        let file = self.file(name);
        let before = self.read(&file).unwrap_or_default();
        let part = file.with_extension("part");
        let written = fs::write(&part, text)
            .and_then(|()| fs::File::open(&part)?.sync_all())
            .and_then(|()| fs::rename(&part, &file));
        written.map_err(|error| stored(&error))?;
        self.fresh.retain(|id| !layers.contains(id));
        Ok(before)
    }

    /// Removes a template; gives its layers, for [`Self::drop_unused`].
    pub(crate) fn remove(&self, name: &TemplateName) -> Result<Vec<String>, Fault> {
        let file = self.file(name);
        let Some(layers) = self.read(&file) else { return Err(Fault::not_found("template")) };
        fs::remove_file(&file).map_err(|error| stored(&error))?;
        Ok(layers)
    }

    /// Lets go of those of `layers` that no template has, no sandbox stands on (`in_use`) and no snapshot (`is_held`). What
    /// cannot be let go of is swept at the next start.
    pub(crate) fn drop_unused<'a>(
        &mut self,
        layers: &[String],
        in_use: impl Iterator<Item = &'a RootSource>,
        is_held: impl Fn(&str) -> bool,
    ) {
        let with_dir = |id: &String| Some((id.clone(), self.layer(id).ok()?));
        let unheld: Vec<(String, PathBuf)> =
            layers.iter().filter(|id| !is_held(id) && !self.fresh.contains(*id)).filter_map(with_dir).collect();
        if unheld.is_empty() {
            return;
        }
        // The files are read last: most often a snapshot is removed whose template is there and used.
        let used: BTreeSet<&PathBuf> = in_use.flat_map(|source| &source.layers).collect();
        let (used, unused): (Vec<_>, Vec<_>) = unheld.into_iter().partition(|(_, dir)| used.contains(dir));
        self.left.extend(used.into_iter().map(|(id, _)| id));
        let named = if unused.is_empty() { None } else { self.named() };
        let Some(named) = named else { return };
        for (_, dir) in unused.iter().filter(|(id, _)| !named.contains(id)) {
            let _ = self.let_go(dir);
        }
    }

    /// Layers that could not be let go of because a sandbox stood on them.
    pub(crate) fn take_left(&mut self) -> Vec<String> {
        std::mem::take(&mut self.left).into_iter().collect()
    }

    /// An empty directory for a layer that is about to be unpacked.
    pub(crate) fn begin_layer(&self, diff_id: &str) -> Result<PathBuf, Fault> {
        let part = self.layer(diff_id)?.with_extension("part");
        match fs::create_dir(&part) {
            Ok(()) => Ok(part),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Fault::new(Code::Conflict, format!("the layer `{diff_id}` is being unpacked"), "wait for that"))
            }
            Err(error) => Err(stored(&error)),
        }
    }

    /// Names an unpacked layer. One that is there already, with the same content by its digest, stays.
    pub(crate) fn finish_layer(&mut self, diff_id: &str) -> Result<(), Fault> {
        let dir = self.layer(diff_id)?;
        let part = dir.with_extension("part");
        let named = if dir.is_dir() { self.let_go(&part) } else { fs::rename(&part, &dir) };
        named.map_err(|error| stored(&error))?;
        self.fresh.insert(diff_id.to_owned());
        Ok(())
    }

    /// Drops what was unpacked of a layer.
    pub(crate) fn drop_layer(&mut self, diff_id: &str) {
        if let Ok(dir) = self.layer(diff_id) {
            // What stays is dropped at the next start.
            let _ = self.let_go(&dir.with_extension("part"));
        }
    }

    fn file(&self, name: &TemplateName) -> PathBuf {
        self.templates.join(format!("{}.json", name.as_str().replace('/', "%")))
    }

    fn layer(&self, diff_id: &str) -> Result<PathBuf, Fault> {
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        match diff_id.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(lower_hex) => Ok(self.layers.join(hex)),
            _ => Err(Fault::invalid(format!("`{diff_id}` is not `sha256:` and 64 lower-case hex digits"))),
        }
    }

    fn read(&self, file: &Path) -> Option<Vec<String>> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }
}

/// Writes the directory that is laid over roots; anew at each start, since it belongs to this program's version.
fn write_tools(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let bin = dir.join("usr/bin");
    fs::create_dir_all(&bin)?;
    let sudo = bin.join("sudo");
    fs::write(&sudo, rf_sandbox::plan::init_program())?;
    for path in [dir, &dir.join("usr"), &bin, &sudo] {
        // Whatever the warden's umask is.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn stored(error: &io::Error) -> Fault {
    Fault::new(
        Code::StoreUnavailable,
        format!("the warden cannot keep templates: {error}"),
        "look at its state directory",
    )
}
