//! Images that come as files: an `oci-layout` folder, a saved archive, a tarball of a root, a directory.
//!
//! These block, so an asynchronous caller gives them a thread. Paths are the server's own: the caller has judged
//! whether somebody may name them. What lies there is hostile all the same.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rf_template::unpack::{self, Caps, Member};
use rf_types::TemplateConfig;
use serde::Deserialize;

use crate::{
    Blobs, Digest, Image, ImageCaps, ImageError, Layer, Progress, ProgressSink,
    model::{self, Descriptor, Document, Kind},
};

/// The annotation by which an `oci-layout` names its images (OCI image specification, "Annotations").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Imports from an `oci-layout` folder. `name` is which image, and may be left out when there is one.
///
/// # Errors
/// See [`ImageError`].
pub fn layout(
    dir: &Path,
    name: Option<&str>,
    blobs: &Blobs,
    caps: &ImageCaps,
    progress: ProgressSink<'_>,
) -> Result<Image, ImageError> {
    let mut index = Vec::new();
    let max = caps.document_bytes_max;
    open(&dir.join("index.json"))?
        .take(max + 1)
        .read_to_end(&mut index)
        .map_err(ImageError::files("read `index.json`"))?;
    if index.len() as u64 > max {
        return Err(ImageError::Bound { what: "bytes in a document", max });
    }
    // The name of a blob's file is made from a digest that was parsed, so it cannot lead elsewhere.
    let file = |digest: &Digest| open(&dir.join("blobs/sha256").join(digest.hex()));
    let take = |descriptor: &Descriptor, done: &dyn Fn(u64)| -> Result<(), ImageError> {
        if blobs.size(&descriptor.digest)? == Some(descriptor.size) {
            return Ok(());
        }
        let mut reader = file(&descriptor.digest)?.take(descriptor.size.saturating_add(1));
        let mut writer = blobs.write(descriptor.digest, descriptor.size)?;
        writer.restart()?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer).map_err(ImageError::files(format!("read the blob {}", descriptor.digest)))? {
                0 => return writer.finish(),
                count => writer.write(&buffer[..count])?,
            }
            done(writer.done());
        }
    };
    from_index(&index, name, blobs, caps, progress, &take)
}

/// Brings a blob into the store, telling how many of its bytes are there.
type Take<'t> = &'t dyn Fn(&Descriptor, &dyn Fn(u64)) -> Result<(), ImageError>;

/// Follows an index to the image's layers; `take` brings a blob into the store.
fn from_index(
    index: &[u8],
    name: Option<&str>,
    blobs: &Blobs,
    caps: &ImageCaps,
    progress: ProgressSink<'_>,
    take: Take<'_>,
) -> Result<Image, ImageError> {
    /// An index of indexes is common (`docker buildx`); more is not.
    const LEVELS_MAX: usize = 3;
    let Kind::Index(mut manifests) = Document::read(index, caps)? else {
        return Err(ImageError::Malformed("its index is none".to_owned()));
    };
    if let Some(name) = name {
        manifests
            .retain(|manifest| manifest.annotations.as_ref().and_then(|a| a.get(REF_NAME)).is_some_and(|n| n == name));
        if manifests.is_empty() {
            return Err(ImageError::Absent(name.to_owned()));
        }
    }
    for _ in 0..LEVELS_MAX {
        let chosen = model::choose(&manifests, caps)?;
        take(&chosen, &|_| {})?;
        match Document::read(&blobs.read(&chosen.digest, caps.document_bytes_max)?, caps)? {
            Kind::Index(inner) => manifests = inner,
            Kind::Manifest { config, layers } => {
                let bytes_total = layers.iter().fold(config.size, |sum, layer| sum.saturating_add(layer.size));
                let mut bytes_done = 0;
                for descriptor in layers.iter().chain([&config]) {
                    take(descriptor, &|done| progress(Progress { bytes_done: bytes_done + done, bytes_total }))?;
                    bytes_done += descriptor.size;
                    progress(Progress { bytes_done, bytes_total });
                }
                let stored: Vec<_> = layers.iter().map(|layer| (layer.digest, layer.size)).collect();
                return model::image(chosen.digest, &blobs.read(&config.digest, caps.document_bytes_max)?, &stored);
            }
        }
    }
    Err(ImageError::Malformed("its indexes go too deep".to_owned()))
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Imports what `docker save` or `podman save` wrote, or a tar of an `oci-layout`; plain, gzip or zstd. `name` is which
/// image (a tag such as `alpine:3`), and may be left out when there is one.
///
/// # Errors
/// See [`ImageError`].
pub fn archive(
    input: &mut dyn Read,
    name: Option<&str>,
    blobs: &Blobs,
    caps: &ImageCaps,
    progress: ProgressSink<'_>,
) -> Result<Image, ImageError> {
    let mut files: HashMap<String, (Digest, u64)> = HashMap::new();
    let mut links: HashMap<String, String> = HashMap::new();
    let mut bytes_done = 0;
    // Every file becomes a blob by its content; which of them matter is known only when all were seen.
    unpack::members(input, &tar_caps(caps), |path, member| {
        let Ok(path) = std::str::from_utf8(path) else { return Ok(()) };
        let path = path.trim_start_matches("./").to_owned();
        if files.len() + links.len() >= usize::try_from(caps.files_max).unwrap_or(usize::MAX) {
            return Err(ImageError::Bound { what: "files", max: caps.files_max });
        }
        match member {
            Member::File { size, body } => {
                let added = blobs.add(body, caps.layer_bytes_max.min(size))?;
                bytes_done += added.1;
                if bytes_done > caps.image_bytes_max {
                    return Err(ImageError::Bound { what: "bytes in its files", max: caps.image_bytes_max });
                }
                progress(Progress { bytes_done, bytes_total: 0 });
                files.insert(path, added);
            }
            Member::Symlink(to) => {
                if let (Ok(to), Some((parent, _))) = (std::str::from_utf8(to), path.rsplit_once('/')) {
                    // Old versions wrote a layer that two images share once: `../ID/layer.tar`.
                    let to = to.strip_prefix("../").map_or_else(|| format!("{parent}/{to}"), str::to_owned);
                    links.insert(path, to);
                }
            }
        }
        Ok(())
    })?;
    let find = |path: &str| {
        let path = links.get(path).map_or(path, String::as_str);
        files.get(path).copied().ok_or_else(|| ImageError::Malformed("it lacks a file that it names".to_owned()))
    };
    let document = |path: &str| find(path).and_then(|(digest, _)| blobs.read(&digest, caps.document_bytes_max));
    if files.contains_key("manifest.json") {
        let saved: Vec<Saved> = serde_json::from_slice(&document("manifest.json")?)
            .map_err(|e| ImageError::Malformed(format!("its manifest: {e}")))?;
        let has = |saved: &&Saved, name: &str| {
            saved.repo_tags.iter().flatten().any(|tag| tag == name || tag.strip_suffix(":latest") == Some(name))
        };
        let chosen = match (name, saved.as_slice()) {
            (Some(name), saved) => {
                saved.iter().find(|saved| has(saved, name)).ok_or_else(|| ImageError::Absent(name.to_owned()))?
            }
            (None, [only]) => only,
            (None, _) => return Err(ImageError::Malformed("it has several images or none: name one".to_owned())),
        };
        if chosen.layers.is_empty() {
            return Err(ImageError::Unusable("it has no layers".to_owned()));
        }
        if chosen.layers.len() > caps.layers_max as usize {
            return Err(ImageError::Bound { what: "layers", max: caps.layers_max.into() });
        }
        let stored = chosen.layers.iter().map(|layer| find(layer)).collect::<Result<Vec<_>, _>>()?;
        // Such an archive has no manifest of its own; its configuration names every layer, so it names the image.
        let (digest, _) = find(&chosen.config)?;
        return model::image(digest, &document(&chosen.config)?, &stored);
    }
    let take = |descriptor: &Descriptor, _: &dyn Fn(u64)| match blobs.size(&descriptor.digest)? {
        Some(size) if size == descriptor.size => Ok(()),
        Some(found) => Err(ImageError::Size { digest: descriptor.digest, expected: descriptor.size, found }),
        None => Err(ImageError::Malformed(format!("it lacks {}", descriptor.digest))),
    };
    from_index(&document("index.json")?, name, blobs, caps, progress, &take)
}

/// Imports a tarball whose kind nobody told: a saved image or a tar of an `oci-layout` when it looks like one, else a
/// root. See [`archive`] and [`tarball`].
///
/// # Errors
/// See [`ImageError`].
pub fn upload(
    input: &mut dyn Read,
    name: Option<&str>,
    blobs: &Blobs,
    caps: &ImageCaps,
    progress: ProgressSink<'_>,
) -> Result<Image, ImageError> {
    let (blob, size) = blobs.add(&mut Told(input, 0, progress), caps.image_bytes_max)?;
    let stored = || blobs.get(&blob)?.ok_or_else(|| ImageError::Malformed("the blob was removed meanwhile".to_owned()));
    if looks_like_an_image(&mut stored()?, caps)? {
        let image = archive(&mut stored()?, name, blobs, caps, &|_| {});
        blobs.remove(&blob)?;
        return image;
    }
    root_of(blob, size, blobs, caps)
}

/// Whether an archive has at its top what saved images have, and nothing that roots have.
fn looks_like_an_image(input: &mut dyn Read, caps: &ImageCaps) -> Result<bool, ImageError> {
    let (mut marked, mut rooted) = (false, false);
    unpack::members(input, &tar_caps(caps), |path, _| {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        marked |= [b"oci-layout".as_slice(), b"manifest.json"].contains(&path);
        let top = path.split(|&byte| byte == b'/').next().unwrap_or_default();
        rooted |= [b"bin".as_slice(), b"etc", b"lib", b"sbin", b"usr"].contains(&top);
        Ok::<(), ImageError>(())
    })?;
    Ok(marked && !rooted)
}

/// A reader that tells how far it is.
struct Told<'t>(&'t mut dyn Read, u64, ProgressSink<'t>);

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1 += count as u64;
        (self.2)(Progress { bytes_done: self.1, bytes_total: 0 });
        Ok(count)
    }
}

/// Imports a tarball of a root, plain, gzip or zstd: an image of one layer without settings.
///
/// # Errors
/// See [`ImageError`].
pub fn tarball(
    input: &mut dyn Read,
    blobs: &Blobs,
    caps: &ImageCaps,
    progress: ProgressSink<'_>,
) -> Result<Image, ImageError> {
    let (blob, size) = blobs.add(&mut Told(input, 0, progress), caps.layer_bytes_max)?;
    root_of(blob, size, blobs, caps)
}

/// The image of one layer that a stored tarball is.
fn root_of(blob: Digest, size: u64, blobs: &Blobs, caps: &ImageCaps) -> Result<Image, ImageError> {
    let stored = blobs.get(&blob)?.ok_or_else(|| ImageError::Malformed("the blob was removed meanwhile".to_owned()))?;
    let diff_id = unpack::diff_id(stored, &tar_caps(caps))?;
    let diff_id = diff_id.parse().map_err(|_| ImageError::Malformed("the layer's digest".to_owned()))?;
    Ok(single(Layer { diff_id, blob, size }))
}

/// Imports a directory: an image of one layer without settings. Sockets and devices are left out; owners stay as they
/// are when the server may see them.
///
/// # Errors
/// See [`ImageError`].
pub fn directory(dir: &Path, blobs: &Blobs, caps: &ImageCaps, progress: ProgressSink<'_>) -> Result<Image, ImageError> {
    let spool = tempfile_beside(blobs)?;
    let mut archive = Archive { builder: tar::Builder::new(spool), bytes: 0, files: 0, caps, progress };
    archive.add_dir(dir, Path::new(""))?;
    let mut spool = archive.builder.into_inner().map_err(ImageError::files("write an archive"))?;
    spool.rewind().map_err(ImageError::files("write an archive"))?;
    let (digest, size) = blobs.add(&mut spool, caps.image_bytes_max)?;
    Ok(single(Layer { diff_id: digest, blob: digest, size }))
}

/// An image of one layer; it has the layer's digest.
fn single(layer: Layer) -> Image {
    Image { digest: layer.diff_id, config: TemplateConfig::default(), layers: vec![layer] }
}

/// A nameless file on the blobs' file system.
fn tempfile_beside(blobs: &Blobs) -> Result<File, ImageError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(blobs.dir(), flags, Mode::RUSR | Mode::WUSR);
    fd.map(File::from).map_err(|e| ImageError::files("make a temporary file")(e.into()))
}

/// The caps of an archive that is looked at and not unpacked here: those of the image.
fn tar_caps(caps: &ImageCaps) -> Caps {
    Caps {
        // Headers and padding come on top of the files.
        tar_bytes_max: caps.image_bytes_max.saturating_add(caps.files_max.saturating_mul(2048)),
        files_bytes_max: caps.image_bytes_max,
        file_bytes_max: caps.layer_bytes_max,
        entries_max: caps.files_max,
        ..Caps::STANDARD
    }
}

/// Opens a file for reading; a link at its end and a FIFO are refused.
fn open(path: &Path) -> Result<File, ImageError> {
    use rustix::fs::OFlags;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let step = || format!("open `{}`", path.display());
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(ImageError::files(step()))?;
    if !file.metadata().map_err(ImageError::files(step()))?.is_file() {
        return Err(ImageError::files(step())(io::Error::other("it is no regular file")));
    }
    Ok(file)
}

/// An archive of a directory in the making.
struct Archive<'a, W: io::Write> {
    builder: tar::Builder<W>,
    bytes: u64,
    files: u64,
    caps: &'a ImageCaps,
    progress: ProgressSink<'a>,
}

impl<W: io::Write> Archive<'_, W> {
    fn add_dir(&mut self, dir: &Path, inner: &Path) -> Result<(), ImageError> {
        let step = |path: &Path| ImageError::files(format!("read `{}`", path.display()));
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(step(dir))?;
        // The same directory gives the same archive.
        names.sort();
        for name in names {
            let (path, inner) = (dir.join(&name), inner.join(&name));
            let meta = path.symlink_metadata().map_err(step(&path))?;
            let kind = meta.file_type();
            if kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                continue;
            }
            self.files += 1;
            if self.files > self.caps.files_max {
                return Err(ImageError::Bound { what: "files", max: self.caps.files_max });
            }
            let mut header = tar::Header::new_gnu();
            header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
            if kind.is_symlink() {
                let to = std::fs::read_link(&path).map_err(step(&path))?;
                header.set_size(0);
                self.builder.append_link(&mut header, &inner, to).map_err(step(&path))?;
            } else if kind.is_file() {
                let file = open(&path)?;
                // Of the file that is open: another may have taken the name since.
                let meta = file.metadata().map_err(step(&path))?;
                header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
                self.bytes += meta.size();
                if self.bytes > self.caps.image_bytes_max {
                    return Err(ImageError::Bound { what: "bytes in its files", max: self.caps.image_bytes_max });
                }
                // A file that shrinks meanwhile is filled up, so that the archive stays one.
                let body = file.chain(io::repeat(0)).take(meta.size());
                self.builder.append_data(&mut header, &inner, body).map_err(step(&path))?;
                (self.progress)(Progress { bytes_done: self.bytes, bytes_total: 0 });
            } else {
                header.set_size(0);
                self.builder.append_data(&mut header, &inner, io::empty()).map_err(step(&path))?;
                if kind.is_dir() {
                    self.add_dir(&path, &inner)?;
                }
            }
        }
        Ok(())
    }
}
