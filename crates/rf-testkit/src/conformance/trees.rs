//! Cases of archives and of watching.

use std::{collections::BTreeMap, io::Read};

use bytes::Bytes;
use futures::StreamExt;
use rf_places::place::{ChangeKind, FileAnswer};
use rf_types::{Code, Fault, FileOp};
use tar::{Archive, Builder, EntryType, Header};

use super::Site;
use crate::noise;

async fn download(site: &Site, name: &str) -> Vec<u8> {
    let answer = site.file(FileOp::TarOut { path: site.path(name) }).await.unwrap();
    let FileAnswer::Archive(mut archive) = answer else { panic!("a download gives an archive") };
    let mut all = Vec::new();
    while let Some(piece) = archive.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    all
}

async fn upload(site: &Site, name: &str, archive: &[u8]) -> Result<(), Fault> {
    let answer = site.file(FileOp::TarIn { path: site.path(name) }).await?;
    let FileAnswer::Sink(mut sink) = answer else { panic!("an upload takes bytes") };
    for piece in archive.chunks(70_001) {
        sink.write(Bytes::copy_from_slice(piece)).await?;
    }
    sink.finish().await
}

/// Names in the archive, without `./` and a `/` at the end, with kind, mode and a word on the content.
fn contents(archive: &[u8]) -> BTreeMap<String, (EntryType, u32, String)> {
    let mut found = BTreeMap::new();
    for entry in Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let name = name.trim_start_matches("./").trim_end_matches('/').to_owned();
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().unwrap() & 0o777;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let word = match kind {
            EntryType::Symlink => entry.link_name().unwrap().unwrap().to_string_lossy().into_owned(),
            _ => format!("{} {}", bytes.len(), bytes.iter().map(|b| u64::from(*b)).sum::<u64>()),
        };
        if !name.is_empty() {
            found.insert(name, (kind, mode, word));
        }
    }
    found
}

pub(super) async fn a_tree_goes_out_and_in(site: &Site) {
    let long = "long-".repeat(30);
    site.make_dir("from/deep/deeper").await;
    site.write("from/file", &noise(1_000_003)).await;
    site.write("from/empty", b"").await;
    site.write(&format!("from/deep/{long}"), b"long name").await;
    site.write("from/deep/deeper/ü €", b"unicode").await;
    site.shell("cd from; chmod 755 file; chmod 700 deep; ln -s ../file deep/link; ln -s /etc/hostname out").await;
    let archive = download(site, "from").await;
    let out = contents(&archive);
    assert_eq!(out.len(), 8, "{out:?}");
    assert_eq!(out["deep/link"].2, "../file");
    assert_eq!(out["file"].1, 0o755);
    assert_eq!(out["deep"], (EntryType::Directory, 0o700, "0 0".into()));

    upload(site, "to", &archive).await.unwrap();
    assert_eq!(contents(&download(site, "to").await), out);
    assert!(site.read("to/file").await == site.read("from/file").await);
    // Over what is there.
    site.write("to/empty", b"no longer empty").await;
    upload(site, "to", &archive).await.unwrap();
    assert_eq!(contents(&download(site, "to").await), out);

    let single = contents(&download(site, "from/file").await);
    assert_eq!(single.keys().collect::<Vec<_>>(), ["file"]);
}

/// Name, kind, target and content.
type Entry<'a> = (&'a str, EntryType, &'a str, &'a [u8]);

/// An archive of one entry, whose name is written as it is.
fn entry(archive: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, target: &str, content: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    // The library's own setters refuse what an attacker writes.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    archive.append(&header, content).unwrap();
}

pub(super) async fn an_archive_that_would_leave_is_refused(site: &Site) {
    site.write("victim", b"untouched").await;
    site.make_dir("outside").await;
    let make = |entries: &[Entry<'_>]| {
        let mut archive = Builder::new(Vec::new());
        for (name, kind, target, content) in entries {
            entry(&mut archive, name, *kind, target, content);
        }
        archive.into_inner().unwrap()
    };
    // Control: the same way of making one gives an archive that is taken.
    upload(site, "in", &make(&[("fine", EntryType::Regular, "", b"x")])).await.unwrap();
    assert_eq!(site.read("in/fine").await, b"x");
    let attacks: [&[Entry<'_>]; 6] = [
        &[("../victim", EntryType::Regular, "", b"changed")],
        &[("a/../../victim", EntryType::Regular, "", b"changed")],
        // A link that the archive brings itself, then a file through it.
        &[("out", EntryType::Symlink, "../outside", b""), ("out/new", EntryType::Regular, "", b"changed")],
        &[("up", EntryType::Symlink, "..", b""), ("up/victim", EntryType::Regular, "", b"changed")],
        &[("hard", EntryType::Link, "../victim", b""), ("hard", EntryType::Regular, "", b"changed")],
        &[("pipe", EntryType::Fifo, "", b"")],
    ];
    for attack in attacks {
        let refused = upload(site, "in", &make(attack)).await;
        assert!(refused.is_err(), "{} was taken", attack[0].0);
        assert_eq!(site.read("victim").await, b"untouched");
        assert_eq!(super::files::list(site, "outside", 1).await.len(), 0);
    }
    // A file through a link of the same name replaces the link.
    let over = make(&[("v", EntryType::Symlink, "../victim", b""), ("v", EntryType::Regular, "", b"mine")]);
    upload(site, "in", &over).await.unwrap();
    assert_eq!(site.read("in/v").await, b"mine");
    assert_eq!(site.read("victim").await, b"untouched");
}

pub(super) async fn an_archive_cut_short_is_refused(site: &Site) {
    site.make_dir("from").await;
    site.write("from/file", &noise(300_000)).await;
    let archive = download(site, "from").await;
    assert!(upload(site, "to", &archive[..200_000]).await.is_err());
    let fault = upload(site, "to", b"no archive at all, but long enough to look at".repeat(50).as_slice()).await;
    assert_eq!(fault.unwrap_err().code, Code::InvalidRequest);
}

pub(super) async fn changes_are_told(site: &Site) {
    site.make_dir("w/below").await;
    let answer = site.file(FileOp::Watch { path: site.path("w"), recursive: true }).await.unwrap();
    let FileAnswer::Changes(mut changes) = answer else { panic!("a watch gives changes") };
    site.write("w/below/file", b"x").await;
    expect(&mut changes, "below/file", ChangeKind::Create).await;
    expect(&mut changes, "below/file", ChangeKind::Write).await;
    // A directory that is new is watched too, however fast something happens in it.
    site.shell("mkdir -p w/new/newer; echo x > w/new/newer/file").await;
    expect(&mut changes, "new/newer/file", ChangeKind::Create).await;
    site.shell("mv w/below/file w/renamed").await;
    expect(&mut changes, "renamed", ChangeKind::Rename).await;
    site.shell("chmod 600 w/renamed").await;
    expect(&mut changes, "renamed", ChangeKind::Attributes).await;
    site.remove("w/renamed").await;
    expect(&mut changes, "renamed", ChangeKind::Remove).await;
}

async fn expect(
    changes: &mut (impl futures::Stream<Item = Result<rf_places::place::Change, Fault>> + Unpin),
    path: &str,
    kind: ChangeKind,
) {
    let mut seen = Vec::new();
    while let Some(change) = changes.next().await {
        let change = change.unwrap();
        if change.path == path && change.kinds.contains(&kind) {
            return;
        }
        seen.push(change);
        assert!(seen.len() < 1000, "{kind:?} of {path} did not come: {seen:?}");
    }
    panic!("the watch ended before {kind:?} of {path}: {seen:?}");
}
