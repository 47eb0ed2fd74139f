//! Images from folders, archives, tarballs and directories.

mod support;

use std::{fs, io::Cursor, os::unix::fs::symlink, path::Path, sync::Mutex};

use rf_images::{Blobs, Digest, Image, ImageCaps, ImageError, Progress, import};
use rf_template::unpack::{Caps, unpack};
use support::{ARCH, Made, image, index, layer, quiet};

const CAPS: ImageCaps = ImageCaps::STANDARD;

fn store() -> (tempfile::TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    (dir, blobs)
}

/// An `oci-layout` folder with these documents; the index is theirs.
fn folder(index: &[u8], blobs: &[&[u8]]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(dir.path().join("index.json"), index).unwrap();
    for blob in blobs {
        fs::write(dir.path().join("blobs/sha256").join(Digest::of(blob).hex()), blob).unwrap();
    }
    dir
}

fn parts(made: &Made) -> Vec<&[u8]> {
    made.blobs.iter().chain([&made.manifest]).map(Vec::as_slice).collect()
}

fn check(image: &Image, made: &Made, blobs: &Blobs) {
    let found: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(found, made.diff_ids);
    assert_eq!(image.config.env, ["PATH=/bin", "A=b=c"]);
    assert_eq!((image.config.user.as_str(), image.config.cwd.as_str()), ("1000:1000", "/work"));
    assert_eq!((image.config.entrypoint.len(), image.config.cmd.len()), (2, 1));
    // The layers are what the unpacker takes, under the names that the image gives them.
    let target = tempfile::tempdir().unwrap();
    let caps = Caps { owners_kept: false, ..Caps::STANDARD };
    for layer in &image.layers {
        use std::os::fd::AsFd as _;
        let blob = blobs.get(&layer.blob).unwrap().unwrap();
        let root = fs::File::open(target.path()).unwrap();
        unpack(blob, root.as_fd(), &caps, Some(&layer.diff_id.to_string())).unwrap();
    }
    assert_eq!(fs::read_to_string(target.path().join("etc/high")).unwrap(), "high");
    assert_eq!(fs::read_to_string(target.path().join("etc/low")).unwrap().len(), 20_000);
}

#[test]
fn a_layout_folder_gives_the_image_for_this_machine() {
    let (ours, other) = (image(ARCH), image("riscv64"));
    let all = index(&[("riscv64", &other.manifest), (ARCH, &ours.manifest)]);
    let dir = folder(&all, &[parts(&ours), parts(&other)].concat());
    let (_keep, blobs) = store();
    let told = Mutex::new(Vec::new());
    let made =
        import::layout(dir.path(), None, &blobs, &CAPS, &|progress| told.lock().unwrap().push(progress)).unwrap();
    check(&made, &ours, &blobs);
    assert_eq!(made.digest, Digest::of(&ours.manifest));
    let told = told.into_inner().unwrap();
    let total: usize = ours.blobs.iter().map(Vec::len).sum();
    assert_eq!(told.last(), Some(&Progress { bytes_done: total as u64, bytes_total: total as u64 }));
    assert!(told.windows(2).all(|pair| pair[0].bytes_done <= pair[1].bytes_done));
    // By name, again from the blobs that are there, and one that is for another machine.
    check(&import::layout(dir.path(), Some(&format!("tag-{ARCH}")), &blobs, &CAPS, &quiet).unwrap(), &ours, &blobs);
    let other = import::layout(dir.path(), Some("tag-riscv64"), &blobs, &CAPS, &quiet).unwrap_err();
    assert!(matches!(&other, ImageError::Unusable(why) if why.contains("riscv64")), "{other}");
    assert!(matches!(import::layout(dir.path(), Some("none"), &blobs, &CAPS, &quiet), Err(ImageError::Absent(_))));
    // An index of an index.
    let outer = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        support::INDEX,
        Digest::of(&all),
        all.len()
    );
    let dir = folder(outer.as_bytes(), &[parts(&ours), vec![&all]].concat());
    check(&import::layout(dir.path(), None, &blobs, &CAPS, &quiet).unwrap(), &ours, &blobs);
}

#[test]
fn a_layout_folder_that_lies_is_refused() {
    let ours = image(ARCH);
    let all = index(&[(ARCH, &ours.manifest)]);
    let with = |change: &dyn Fn(&Path)| {
        let dir = folder(&all, &parts(&ours));
        change(&dir.path().join("blobs/sha256"));
        let (_keep, blobs) = store();
        let result = import::layout(dir.path(), None, &blobs, &CAPS, &quiet);
        result.map(|image| image.layers.len())
    };
    // Control: unchanged it is fine.
    assert_eq!(with(&|_| ()).unwrap(), 2);
    let low = Digest::of(&ours.blobs[0]).hex();
    let changed = |blobs: &Path| {
        let mut bytes = ours.blobs[0].clone();
        bytes[30] ^= 1;
        fs::write(blobs.join(&low), bytes).unwrap();
    };
    assert!(matches!(with(&changed), Err(ImageError::Digest { .. })));
    let shorter = |blobs: &Path| fs::write(blobs.join(&low), &ours.blobs[0][..10]).unwrap();
    assert!(matches!(with(&shorter), Err(ImageError::Size { found: 10, .. })));
    let longer = |blobs: &Path| fs::write(blobs.join(&low), [ours.blobs[0].as_slice(), b"x"].concat()).unwrap();
    assert!(matches!(with(&longer), Err(ImageError::Size { .. })));
    let absent = |blobs: &Path| fs::remove_file(blobs.join(&low)).unwrap();
    assert!(matches!(with(&absent), Err(ImageError::Files { .. })));
    // A link that leads out of the folder, even to the right bytes, and a FIFO that would hang a reader.
    let link = |blobs: &Path| {
        fs::rename(blobs.join(&low), blobs.join("elsewhere")).unwrap();
        symlink("elsewhere", blobs.join(&low)).unwrap();
    };
    assert!(matches!(with(&link), Err(ImageError::Files { .. })));
    let fifo = |blobs: &Path| {
        fs::remove_file(blobs.join(&low)).unwrap();
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        rustix::fs::mknodat(rustix::fs::CWD, blobs.join(&low), kind, mode, 0).unwrap();
    };
    assert!(matches!(with(&fifo), Err(ImageError::Files { .. })));
    let (_keep, blobs) = store();
    let dir = folder(&vec![b' '; 5 << 20], &[]);
    assert!(matches!(import::layout(dir.path(), None, &blobs, &CAPS, &quiet), Err(ImageError::Bound { .. })));
}

fn tar_of(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, to) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, to).unwrap();
    }
    for (name, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn saved_archives_of_both_kinds_are_read() {
    let ours = image(ARCH);
    let (low, high) = (layer("etc/low", &"low ".repeat(5000)), layer("etc/high", "high"));
    let saved = r#"[{"Config":"abc.json","RepoTags":["thing:1"],"Layers":["one/layer.tar","two/layer.tar"]},
                    {"Config":"abc.json","RepoTags":["other:latest"],"Layers":["one/layer.tar","three/layer.tar"]}]"#;
    let docker = tar_of(
        &[
            ("one/layer.tar", &low),
            ("two/layer.tar", &high),
            ("abc.json", &ours.config),
            ("manifest.json", saved.as_bytes()),
        ],
        &[("three/layer.tar", "../two/layer.tar")],
    );
    let read = |bytes: &[u8], name: Option<&str>| {
        let (keep, blobs) = store();
        import::archive(&mut Cursor::new(bytes), name, &blobs, &CAPS, &quiet).map(|image| (image, blobs, keep))
    };
    for name in ["thing:1", "other", "other:latest"] {
        let (image, blobs, _keep) = read(&docker, Some(name)).unwrap();
        check(&image, &ours, &blobs);
    }
    assert!(matches!(read(&docker, None), Err(ImageError::Malformed(_))));
    assert!(matches!(read(&docker, Some("absent")), Err(ImageError::Absent(_))));
    let (image, blobs, _keep) = read(&support::gzip(&docker), Some("thing:1")).unwrap();
    check(&image, &ours, &blobs);
    let lost = tar_of(&[("abc.json", &ours.config), ("manifest.json", saved.as_bytes())], &[]);
    assert!(matches!(read(&lost, Some("thing:1")), Err(ImageError::Malformed(_))));
    // Layers swapped: the configuration's digests are what the unpacker holds them to, so it refuses.
    let swapped = saved.replacen("one/layer.tar", "TWO", 1).replacen("two/layer.tar", "one/layer.tar", 1).replacen(
        "TWO",
        "two/layer.tar",
        1,
    );
    let bytes = tar_of(
        &[
            ("one/layer.tar", &low),
            ("two/layer.tar", &high),
            ("abc.json", &ours.config),
            ("manifest.json", swapped.as_bytes()),
        ],
        &[],
    );
    let (image, blobs, _keep) = read(&bytes, Some("thing:1")).unwrap();
    let target = tempfile::tempdir().unwrap();
    let blob = blobs.get(&image.layers[0].blob).unwrap().unwrap();
    let root = fs::File::open(target.path()).unwrap();
    let caps = Caps { owners_kept: false, ..Caps::STANDARD };
    assert!(unpack(blob, std::os::fd::AsFd::as_fd(&root), &caps, Some(&image.layers[0].diff_id.to_string())).is_err());

    let all = index(&[(ARCH, &ours.manifest)]);
    let names: Vec<String> =
        parts(&ours).iter().map(|part| format!("./blobs/sha256/{}", Digest::of(part).hex())).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(parts(&ours)).collect();
    files.push(("./index.json", &all));
    let (image, blobs, _keep) = read(&tar_of(&files, &[]), None).unwrap();
    check(&image, &ours, &blobs);
    files.remove(0);
    assert!(matches!(read(&tar_of(&files, &[]), None), Err(ImageError::Malformed(_))));
    assert!(matches!(read(b"no archive at all", None), Err(ImageError::Archive(_))));
}

#[test]
fn what_an_upload_is_shows_by_what_is_in_it() {
    let ours = image(ARCH);
    let all = index(&[(ARCH, &ours.manifest)]);
    let names: Vec<String> =
        parts(&ours).iter().map(|part| format!("blobs/sha256/{}", Digest::of(part).hex())).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(parts(&ours)).collect();
    files.extend([("index.json", all.as_slice()), ("oci-layout", b"{}")]);
    let saved = tar_of(&files, &[]);
    for bytes in [saved.clone(), support::gzip(&saved)] {
        let (_keep, blobs) = store();
        check(&import::upload(&mut Cursor::new(&bytes), None, &blobs, &CAPS, &quiet).unwrap(), &ours, &blobs);
        assert!(blobs.get(&Digest::of(&bytes)).unwrap().is_none(), "the upload itself stays");
    }
    // A root stays a root, though it has such a file too.
    for root in [layer("etc/x", "text"), tar_of(&[("manifest.json", b"[]"), ("usr/bin/x", b"x")], &[])] {
        let (_keep, blobs) = store();
        let image = import::upload(&mut Cursor::new(&root), None, &blobs, &CAPS, &quiet).unwrap();
        assert_eq!(image, import::tarball(&mut Cursor::new(&root), &blobs, &CAPS, &quiet).unwrap());
    }
}

#[test]
fn a_tarball_is_an_image_of_one_layer() {
    let plain = layer("etc/x", "text");
    for bytes in [plain.clone(), support::gzip(&plain), zstd::encode_all(plain.as_slice(), 1).unwrap()] {
        let (_keep, blobs) = store();
        let image = import::tarball(&mut Cursor::new(&bytes), &blobs, &CAPS, &quiet).unwrap();
        assert_eq!(image.layers.len(), 1);
        assert_eq!((image.layers[0].diff_id, image.layers[0].blob), (Digest::of(&plain), Digest::of(&bytes)));
        assert_eq!(image.layers[0].size, bytes.len() as u64);
    }
    let (_keep, blobs) = store();
    let small = ImageCaps { layer_bytes_max: 100, ..CAPS };
    assert!(matches!(import::tarball(&mut Cursor::new(&plain), &blobs, &small, &quiet), Err(ImageError::Bound { .. })));
}

#[test]
fn a_directory_is_an_image_of_one_layer() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("etc/deep")).unwrap();
    fs::write(dir.path().join("etc/deep/file"), "text").unwrap();
    fs::write(dir.path().join("n".repeat(200)), "long").unwrap();
    symlink("/etc/deep", dir.path().join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let (_keep, blobs) = store();
    let image = import::directory(dir.path(), &blobs, &CAPS, &quiet).unwrap();
    // The same directory gives the same layer.
    assert_eq!(import::directory(dir.path(), &blobs, &CAPS, &quiet).unwrap(), image);
    let target = tempfile::tempdir().unwrap();
    let root = fs::File::open(target.path()).unwrap();
    let blob = blobs.get(&image.layers[0].blob).unwrap().unwrap();
    let caps = Caps { owners_kept: false, ..Caps::STANDARD };
    unpack(blob, std::os::fd::AsFd::as_fd(&root), &caps, Some(&image.layers[0].diff_id.to_string())).unwrap();
    assert_eq!(fs::read_to_string(target.path().join("etc/deep/file")).unwrap(), "text");
    assert_eq!(fs::read_to_string(target.path().join("n".repeat(200))).unwrap(), "long");
    // The link is a link, and what it leads to on the host was not read.
    assert_eq!(fs::read_link(target.path().join("link")).unwrap(), Path::new("/etc/deep"));
    assert!(target.path().join("socket").symlink_metadata().is_err());
    let few = ImageCaps { files_max: 3, ..CAPS };
    assert!(matches!(
        import::directory(dir.path(), &blobs, &few, &quiet),
        Err(ImageError::Bound { what: "files", .. })
    ));
}
