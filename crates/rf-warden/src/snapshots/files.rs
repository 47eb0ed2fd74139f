//! The files of durable snapshots: read at the warden's start, written beside and then named.
//!
//! One that cannot be read, or does not say what it should, is set aside by its name and left as it is: the next start
//! tries it again. It may name any layer that was there when this warden started, so this warden lets go of none of those;
//! what is made from then on it cannot name.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use rf_sandbox::keep::Kept;
use rf_types::SnapshotId;
use rf_wire::warden::Snapshot;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{CHAIN_MAX, Layer, LayerId, Record, Snapshots};
use crate::{WardenConfig, WardenError, gone::is_gone};

/// Longest file of a snapshot, bytes. Chosen: one of all the layers that there may be takes a tenth of it.
const FILE_MAX: u64 = 256 << 10;

/// A durable snapshot as it is stored.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    snapshot: Snapshot,
    template_layers: Vec<String>,
    layers: Vec<StoredLayer>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredLayer {
    id: String,
    binds: Vec<PathBuf>,
    /// Nothing in a file of before layers were counted by themselves.
    #[serde(default)]
    size: Kept,
}

/// A file of a snapshot that was set aside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SetAside {
    /// Its path.
    pub path: PathBuf,
    /// Why it is no good, for people.
    pub why: String,
}

/// What stands in a file that is good.
struct Good {
    snapshot: Snapshot,
    chain: Vec<(LayerId, StoredLayer)>,
    template_layers: Vec<String>,
}

/// The files of snapshots in a directory, and what is in each.
fn all_files(dir: &Path) -> io::Result<Vec<(PathBuf, Result<Good, String>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let good = read_file(dir, &path);
            all.push((path, good));
        }
    }
    Ok(all)
}

/// Those of a state directory that a warden which starts there now sets aside; none where there are no snapshots.
///
/// # Errors
/// When the directory that they are in cannot be read.
pub fn set_aside(state: &Path) -> io::Result<Vec<SetAside>> {
    let files = match all_files(&state.join("warden/snapshots")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let bad = |(path, good): (PathBuf, Result<Good, String>)| good.err().map(|why| SetAside { path, why });
    Ok(files.into_iter().filter_map(bad).collect())
}

fn id_of(path: &Path) -> Option<SnapshotId> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// Reads one file, all of it judged before any of it is used.
fn read_file(dir: &Path, path: &Path) -> Result<Good, String> {
    let id = id_of(path).ok_or("it is not named as a snapshot")?;
    let text = read_small(path).map_err(|error| error.to_string())?;
    let stored: Stored = serde_json::from_slice(&text).map_err(|error| format!("it is malformed: {error}"))?;
    let Stored { snapshot, template_layers, layers } = stored;
    if snapshot.id != id || !snapshot.durable {
        return Err("it is of another snapshot, or of one that is not durable".to_owned());
    }
    if layers.is_empty() || layers.len() > CHAIN_MAX {
        return Err(format!("it has {} layers, not 1 to {CHAIN_MAX}", layers.len()));
    }
    let mut chain: Vec<(LayerId, StoredLayer)> = Vec::new();
    for layer in layers {
        let id = LayerId::parse(&layer.id).ok_or("it names a layer as none is named")?;
        if chain.iter().any(|(other, _)| *other == id) {
            return Err(format!("it names its layer {id} twice"));
        }
        if !dir.join("kept").join(id.to_string()).is_dir() {
            return Err(format!("its layer {id} is not there"));
        }
        chain.push((id, layer));
    }
    Ok(Good { snapshot, chain, template_layers })
}

/// Reads a regular file, never through a link, and waits for nobody.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    // INVARIANT: the flags are small positive numbers on every Linux.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_MAX} bytes")));
    }
    Ok(text)
}

impl Snapshots {
    /// Reads what is durable; what is not was lost with the former warden.
    pub(crate) fn open(config: &WardenConfig) -> Result<Self, WardenError> {
        Self::open_at(config.own("snapshots"))
    }

    pub(super) fn open_at(dir: PathBuf) -> Result<Self, WardenError> {
        let mut this = Self::empty(dir);
        for (path, good) in all_files(&this.dir).map_err(WardenError::file(&this.dir))? {
            match good {
                Ok(good) => this.note(good),
                Err(why) => this.set_aside(&path, &why),
            }
        }
        let entries = |dir: &Path| -> Result<Vec<PathBuf>, WardenError> {
            let entries = fs::read_dir(dir).map_err(WardenError::file(dir))?;
            Ok(entries.flatten().map(|entry| entry.path()).collect())
        };
        for path in entries(&this.dir)? {
            if path.extension().is_some_and(|extension| extension == "part") {
                // What stays is in the way of that one snapshot alone.
                let _ = fs::remove_file(&path);
            }
        }
        for path in entries(&this.kept_dir())? {
            let id = path.file_name().and_then(|name| name.to_str()).and_then(LayerId::parse);
            if is_gone(&path) {
                this.gone.push(path);
            } else if id.is_none_or(|id| !this.guards && !this.layers.contains_key(&id)) {
                this.let_go(&path);
            }
        }
        let all: Vec<LayerId> = this.layers.keys().copied().collect();
        this.charge(&all);
        if this.guards {
            this.doubted.extend(all);
        }
        Ok(this)
    }

    fn note(&mut self, Good { snapshot, chain, template_layers }: Good) {
        let ids = chain.iter().map(|(id, _)| *id).collect();
        for (id, StoredLayer { binds, size, .. }) in chain {
            self.layers.entry(id).or_insert(Layer::new(binds, None, true, size));
        }
        self.insert(Record { info: snapshot, chain: ids, template_layers, since: Instant::now() });
    }

    fn set_aside(&mut self, path: &Path, why: &str) {
        eprintln!(
            "a snapshot's file is set aside, and no layer that is there now is removed: {}: {why}",
            path.display()
        );
        self.set_aside.extend(id_of(path));
        self.guards = true;
    }

    /// Writes a snapshot's file beside, then names it.
    pub(super) fn store(&mut self, id: SnapshotId, info: Snapshot) -> io::Result<()> {
        let file = self.file(id);
        let Some(record) = self.all.get_mut(&id) else { return Ok(()) };
        let layers = record.chain.iter().map(|id| {
            let (binds, size) = self.layers.get(id).map(|layer| (layer.binds.clone(), layer.size)).unwrap_or_default();
            StoredLayer { id: id.to_string(), binds, size }
        });
        let stored = Stored {
            snapshot: Snapshot { layers: u32::try_from(record.chain.len()).unwrap_or(u32::MAX), ..info },
            template_layers: record.template_layers.clone(),
            layers: layers.collect(),
        };
        let part = file.with_extension("part");
        fs::write(&part, serde_json::to_vec(&stored)?)?;
        fs::File::open(&part)?.sync_all()?;
        fs::rename(&part, &file)?;
        fs::File::open(&self.dir)?.sync_all()?;
        record.info = stored.snapshot;
        Ok(())
    }
}
