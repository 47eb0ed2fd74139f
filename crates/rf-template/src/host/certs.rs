//! Certificate authorities: the public roots that the distribution ships, and none that this host added.
//!
//! A host's own authority (a company's, an intercepting proxy's) tells where the host stands, so it stays out. On
//! Debian and its kin the roots are files below `/usr/share/ca-certificates` and `/etc/ssl/certs` has links to them:
//! only those links are taken, and the bundle is made anew from them. Fedora and its kin keep the shipped roots in
//! `/usr/share/pki` as one file with trust flags; there the extracted bundles are copied when no local anchor exists.

use std::{
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{Node, Plan, collect};

/// Where Debian's package keeps the roots.
const SHIPPED: &str = "usr/share/ca-certificates";
/// Where Debian's links and bundle are.
const CERTS: &str = "etc/ssl/certs";
/// Largest certificate that is taken into the bundle, bytes. Chosen: real ones have 1 to 3 KiB.
const CERTIFICATE_BYTES_MAX: u64 = 64 << 10;

/// Puts the links and bundles into the plan.
pub(super) fn public_roots(plan: &mut Plan, host: &Path) -> io::Result<()> {
    if host.join(SHIPPED).is_dir() {
        return debian(plan, host);
    }
    let local =
        ["etc/pki/ca-trust/source/anchors", "usr/local/share/ca-certificates", "etc/ca-certificates/trust-source"]
            .iter()
            .try_fold(0, |count, dir| collect::names(&host.join(dir)).map(|names| count + names.len()))?;
    if local == 0 {
        for path in
            ["etc/pki/ca-trust/extracted", "etc/pki/tls/certs", "etc/pki/tls/cert.pem", CERTS, "etc/ssl/cert.pem"]
        {
            collect::copied(plan, host, path)?;
        }
    }
    Ok(())
}

fn debian(plan: &mut Plan, host: &Path) -> io::Result<()> {
    let mut bundle = Vec::new();
    let mut hashes = Vec::new();
    for name in collect::names(&host.join(CERTS))? {
        let path = Path::new(CERTS).join(&name);
        let Ok(to) = std::fs::read_link(host.join(&path)) else { continue };
        let Some(end) = collect::leads(&path, &to) else { continue };
        if end.starts_with(SHIPPED) {
            let file = host.join(&end);
            let Ok(meta) = file.metadata() else { continue };
            // `end` was only followed by its text; what is read must be there in truth as well.
            let inside = file.canonicalize()?.starts_with(host.join(SHIPPED).canonicalize()?);
            if inside && meta.is_file() && meta.len() <= CERTIFICATE_BYTES_MAX {
                bundle.extend_from_slice(&std::fs::read(&file)?);
                if bundle.last() != Some(&b'\n') {
                    bundle.push(b'\n');
                }
                plan.put_path(path, Node::Link { to: to.into_os_string() });
            }
        } else if end.parent() == Some(Path::new(CERTS)) {
            hashes.push((path, to, end));
        }
    }
    // OpenSSL's links by hash, `002c0b4f.0 -> NAME.pem`: those whose certificate was taken.
    for (path, to, end) in hashes {
        if plan.nodes.contains_key(&end) {
            plan.put_path(path, Node::Link { to: to.into_os_string() });
        }
    }
    plan.file("etc/ssl/certs/ca-certificates.crt", 0o644, bundle);
    // Java's store is one file with every authority, the host's own among them.
    let own = collect::names(&host.join("usr/local/share/ca-certificates"))?;
    if !own.iter().any(|name| name.as_bytes().ends_with(b".crt")) {
        collect::copied(plan, host, PathBuf::from(CERTS).join("java/cacerts").to_str().unwrap_or_default())?;
    }
    Ok(())
}
