//! Small images made in the test.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by two test programs, each of which uses a part")]

use std::io::Write as _;

use rf_images::{Digest, Progress};

pub const ARCH: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A tar of one file.
pub fn layer(name: &str, body: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, body.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image of two layers: its documents and blobs, the manifest last.
pub struct Made {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub diff_ids: Vec<Digest>,
}

pub fn image(arch: &str) -> Made {
    let (low, high) = (layer("etc/low", &"low ".repeat(5000)), layer("etc/high", "high"));
    let diff_ids = vec![Digest::of(&low), Digest::of(&high)];
    let stored = [gzip(&low), zstd::encode_all(high.as_slice(), 1).unwrap()];
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"Env":["PATH=/bin","A=b=c"],"User":"1000:1000","WorkingDir":"/work",
        "Entrypoint":["/bin/sh","-c"],"Cmd":["true"]}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        diff_ids[0], diff_ids[1]
    )
    .into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{},{}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json", &config),
        descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &stored[0]),
        descriptor("application/vnd.oci.image.layer.v1.tar+zstd", &stored[1]),
    )
    .into_bytes();
    let [a, b] = stored;
    Made { blobs: vec![a, b, config.clone()], manifest, config, diff_ids }
}

/// An index of manifests: architecture and bytes.
pub fn index(manifests: &[(&str, &[u8])]) -> Vec<u8> {
    let entries: Vec<String> = manifests
        .iter()
        .map(|(arch, bytes)| {
            format!(
                r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{arch}"}},
                "annotations":{{"org.opencontainers.image.ref.name":"tag-{arch}"}}}}"#,
                Digest::of(bytes),
                bytes.len()
            )
        })
        .collect();
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, entries.join(",")).into_bytes()
}

pub fn quiet(_: Progress) {}
