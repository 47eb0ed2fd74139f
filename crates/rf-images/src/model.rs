//! What manifests, indexes and configurations say (OCI image specification 1.1, and Docker's kin of it), as far as a
//! root needs it.

use std::collections::HashSet;

use rf_types::{Code, TemplateConfig};
use serde::{Deserialize, Serialize};

use crate::{Digest, ImageError};

/// Bounds of one image.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageCaps {
    /// Bytes of one manifest, index or configuration.
    pub document_bytes_max: u64,
    /// Layers, 1 to 100, which is what the warden takes.
    pub layers_max: u32,
    /// Bytes of one layer as it is stored (compressed).
    pub layer_bytes_max: u64,
    /// Bytes of all layers as they are stored.
    pub image_bytes_max: u64,
    /// Files in a saved archive or directory that is imported.
    pub files_max: u64,
}

impl ImageCaps {
    /// The caps of an image for which nobody asked for others. Chosen; see `rf_template::unpack::Caps::STANDARD`.
    pub const STANDARD: Self = Self {
        document_bytes_max: 4 << 20,
        layers_max: 100,
        layer_bytes_max: 12 << 30,
        image_bytes_max: 24 << 30,
        files_max: 1_000_000,
    };
}

/// One layer of an image, in the blob store.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Of the uncompressed tar: the layer's name for the warden, which verifies it.
    pub diff_id: Digest,
    /// Of the blob as it is stored.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
}

/// An image whose blobs are all there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Of its manifest; of its layers' list for an import without one.
    pub digest: Digest,
    /// How programs are started.
    pub config: TemplateConfig,
    /// Lowest first; no two alike.
    pub layers: Vec<Layer>,
}

/// A pointer to a document or layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
}

/// An index or a manifest: which, tells what it has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    schema_version: u32,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// What a [`Document`] turned out to be.
pub(crate) enum Kind {
    /// Manifests to choose from.
    Index(Vec<Descriptor>),
    /// An image's configuration and layers, lowest first.
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

/// Media types that are asked for.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Media types of layers that can be unpacked; others are no root file systems, encrypted, or to be had elsewhere only.
const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
];

impl Document {
    /// Reads and checks a document.
    pub(crate) fn read(bytes: &[u8], caps: &ImageCaps) -> Result<Kind, ImageError> {
        let document: Self =
            serde_json::from_slice(bytes).map_err(|e| ImageError::Malformed(format!("its manifest: {e}")))?;
        if document.schema_version != 2 {
            return Err(ImageError::Unusable(format!(
                "its manifest is of version {}, and only 2 is known",
                document.schema_version
            )));
        }
        match document {
            // Both at once is a trick: one program would take the index, another the manifest (CVE-2021-41190).
            Self { manifests: Some(manifests), config: None, layers: None, .. } => Ok(Kind::Index(manifests)),
            Self { manifests: None, config: Some(config), layers: Some(layers), .. } => {
                if layers.is_empty() {
                    return Err(ImageError::Unusable("it has no layers".to_owned()));
                }
                if layers.len() > caps.layers_max as usize {
                    return Err(ImageError::Bound { what: "layers", max: caps.layers_max.into() });
                }
                let mut sum = 0_u64;
                for layer in &layers {
                    if !LAYERS.contains(&layer.media_type.as_str()) {
                        let kind: String =
                            layer.media_type.chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
                        return Err(ImageError::Unusable(format!("a layer is of the kind `{kind}`")));
                    }
                    if layer.size > caps.layer_bytes_max {
                        return Err(ImageError::Bound { what: "bytes in one layer", max: caps.layer_bytes_max });
                    }
                    sum = sum.saturating_add(layer.size);
                }
                if sum > caps.image_bytes_max {
                    return Err(ImageError::Bound { what: "bytes in its layers", max: caps.image_bytes_max });
                }
                document_size(&config, caps)?;
                Ok(Kind::Manifest { config, layers })
            }
            Self { .. } => Err(ImageError::Malformed("its manifest is neither an index nor an image".to_owned())),
        }
    }
}

/// Refuses a descriptor of a document that is too large.
pub(crate) fn document_size(descriptor: &Descriptor, caps: &ImageCaps) -> Result<(), ImageError> {
    if descriptor.size > caps.document_bytes_max {
        return Err(ImageError::Bound { what: "bytes in a document", max: caps.document_bytes_max });
    }
    Ok(())
}

/// This machine's architecture by Go's name, which images use.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The manifest of an index that fits this machine.
pub(crate) fn choose(manifests: &[Descriptor], caps: &ImageCaps) -> Result<Descriptor, ImageError> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    let chosen = manifests.iter().find(fits).or(match manifests {
        // A single one without a platform: its configuration tells.
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    });
    let Some(chosen) = chosen else {
        let mut has: Vec<String> = manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref())
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .filter(|text| text.len() < 40 && text.chars().all(|c| c.is_ascii_graphic()))
            .take(20)
            .collect();
        has.sort();
        has.dedup();
        let has = if has.is_empty() { "nothing that says for what it is".to_owned() } else { has.join(", ") };
        return Err(ImageError::Unusable(format!("it has nothing for linux/{}; it has {has}", architecture())));
    };
    document_size(chosen, caps)?;
    Ok(chosen.clone())
}

#[derive(Deserialize)]
struct ConfigFile {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<Run>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
}

/// Puts an image together. `blobs` are the layers' blobs and sizes, lowest first.
pub(crate) fn image(digest: Digest, config: &[u8], blobs: &[(Digest, u64)]) -> Result<Image, ImageError> {
    let file: ConfigFile =
        serde_json::from_slice(config).map_err(|e| ImageError::Malformed(format!("its configuration: {e}")))?;
    if file.os != "linux" || file.architecture != architecture() {
        let what: String =
            format!("{}/{}", file.os, file.architecture).chars().filter(char::is_ascii_graphic).take(60).collect();
        return Err(ImageError::Unusable(format!("it is for {what}, and this is linux/{}", architecture())));
    }
    if file.rootfs.diff_ids.len() != blobs.len() {
        return Err(ImageError::Malformed(format!(
            "its manifest has {} layers, its configuration {}",
            blobs.len(),
            file.rootfs.diff_ids.len()
        )));
    }
    let run = file.config.unwrap_or_default();
    let config = TemplateConfig {
        env: run.env.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        cwd: run.working_dir.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
    };
    check(&config)?;
    let layers = file
        .rootfs
        .diff_ids
        .into_iter()
        .zip(blobs)
        .map(|(diff_id, &(blob, size))| Layer { diff_id, blob, size })
        .collect();
    Ok(Image { digest, config, layers: distinct(layers) })
}

/// Refuses what execve(2) would not take, or what is no setting of an image.
fn check(config: &TemplateConfig) -> Result<(), ImageError> {
    /// Strings, and bytes of all of them; chosen, far above what real images have.
    const STRINGS_MAX: usize = 4096;
    const BYTES_MAX: usize = 256 << 10;
    let texts = || config.env.iter().chain(&config.entrypoint).chain(&config.cmd).chain([&config.user, &config.cwd]);
    if texts().count() > STRINGS_MAX || texts().map(String::len).sum::<usize>() > BYTES_MAX {
        return Err(ImageError::Bound { what: "bytes in its settings", max: BYTES_MAX as u64 });
    }
    let named = |text: &String| text.find('=').is_some_and(|at| at > 0);
    if texts().any(|text| text.contains('\0')) || !config.env.iter().all(named) {
        return Err(ImageError::Malformed("a setting has a NUL, or a variable has no name".to_owned()));
    }
    if !config.cwd.is_empty() && !config.cwd.starts_with('/') {
        return Err(ImageError::Malformed("its working directory is not absolute".to_owned()));
    }
    Ok(())
}

/// Of layers that are alike, the uppermost: what a lower one did, it does again. Overlayfs takes no directory twice.
fn distinct(layers: Vec<Layer>) -> Vec<Layer> {
    let mut seen = HashSet::new();
    let mut kept: Vec<Layer> = layers.into_iter().rev().filter(|layer| seen.insert(layer.diff_id)).collect();
    kept.reverse();
    kept
}

impl From<crate::ParseReferenceError> for rf_types::Fault {
    fn from(error: crate::ParseReferenceError) -> Self {
        Self::new(
            Code::InvalidRequest,
            error.to_string(),
            "write it as `registry/repository:tag`, such as `docker.io/library/alpine:3`",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str, blob: &str) -> Layer {
        Layer { diff_id: Digest::of(text.as_bytes()), blob: Digest::of(blob.as_bytes()), size: 1 }
    }

    #[test]
    fn of_layers_alike_the_uppermost_stays() {
        let layers = vec![layer("empty", "1"), layer("a", "2"), layer("empty", "3"), layer("b", "4")];
        assert_eq!(distinct(layers), [layer("a", "2"), layer("empty", "3"), layer("b", "4")]);
    }

    #[test]
    fn a_document_that_is_both_index_and_image_is_refused() {
        let digest = Digest::of(b"");
        let descriptor = format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1}}"#, LAYERS[0]);
        let read =
            |inner: &str| Document::read(format!(r#"{{"schemaVersion":2,{inner}}}"#).as_bytes(), &ImageCaps::STANDARD);
        let image = format!(r#""config":{descriptor},"layers":[{descriptor}]"#);
        assert!(matches!(read(&image), Ok(Kind::Manifest { .. })));
        assert!(matches!(read(&format!(r#""manifests":[{descriptor}]"#)), Ok(Kind::Index(_))));
        let both = format!(r#"{image},"manifests":[{descriptor}]"#);
        assert!(matches!(read(&both), Err(ImageError::Malformed(_))));
        let huge = image.replace(r#""size":1"#, &format!(r#""size":{}"#, u64::MAX));
        assert!(matches!(read(&huge), Err(ImageError::Bound { .. })));
        for kind in ["application/wasm", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", ""] {
            assert!(matches!(read(&image.replace(LAYERS[0], kind)), Err(ImageError::Unusable(_))), "{kind}");
        }
        assert!(matches!(read(&format!(r#""config":{descriptor},"layers":[]"#)), Err(ImageError::Unusable(_))));
        let many = vec![descriptor.as_str(); 101].join(",");
        assert!(matches!(read(&format!(r#""config":{descriptor},"layers":[{many}]"#)), Err(ImageError::Bound { .. })));
    }

    #[test]
    fn settings_are_taken_and_checked() {
        let config = |run: &str| {
            let arch = architecture();
            format!(
                r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"type":"layers","diff_ids":["{0}"]}},"config":{run}}}"#,
                Digest::of(b"")
            )
        };
        let read = |text: &str| image(Digest::of(b""), text.as_bytes(), &[(Digest::of(b""), 1)]);
        let made = read(&config(
            r#"{"Env":["A=1"],"User":"app","WorkingDir":"/w","Entrypoint":["/e"],"Cmd":["c"],"Volumes":{}}"#,
        ))
        .unwrap();
        assert_eq!(made.config.env, ["A=1"]);
        assert_eq!((made.config.user.as_str(), made.config.cwd.as_str()), ("app", "/w"));
        assert_eq!(
            (made.config.entrypoint.as_slice(), made.config.cmd.as_slice()),
            (["/e".to_owned()].as_slice(), ["c".to_owned()].as_slice())
        );
        assert_eq!(read(&config("null")).unwrap().config, TemplateConfig::default());
        for bad in [r#"{"Env":["A"]}"#, r#"{"Env":["=1"]}"#, r#"{"Cmd":["a\u0000b"]}"#, r#"{"WorkingDir":"w"}"#] {
            assert!(matches!(read(&config(bad)), Err(ImageError::Malformed(_))), "{bad}");
        }
        assert!(matches!(read(&config("null").replace("linux", "windows")), Err(ImageError::Unusable(_))));
        assert!(matches!(read(&config("null").replace(architecture(), "z80")), Err(ImageError::Unusable(_))));
        assert!(matches!(image(Digest::of(b""), config("null").as_bytes(), &[]), Err(ImageError::Malformed(_))));
    }
}
