//! Layers made to break out or to confuse; each beside a control that shows the attack is real.

mod support;

use std::{
    fs,
    io::{Cursor, Write as _},
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        },
    },
    path::Path,
};

use rf_template::unpack::{UnpackError, unpack};
use rustix::fs::{getxattr, lgetxattr};
use sha2::{Digest as _, Sha256};
use support::{Field, Layer, caps, hex, untouched};

/// The same archive goes out of the directory when unpacked carelessly, and is refused by us with nothing touched.
fn breaks_out(layer: impl Fn(&Field) -> Vec<u8>) -> UnpackError {
    let field = Field::new();
    field.careless(&layer(&field));
    assert_ne!(field.outside(), untouched(), "control: this archive is no attack");
    let field = Field::new();
    let error = field.unpack(&layer(&field)).unwrap_err();
    assert_eq!(field.outside(), untouched());
    error
}

/// The archive goes out when unpacked carelessly; we take it, and it stays within.
fn stays_within(layer: impl Fn(&Field) -> Vec<u8>) -> Field {
    let field = Field::new();
    field.careless(&layer(&field));
    assert_ne!(field.outside(), untouched(), "control: this archive is no attack");
    let field = Field::new();
    field.unpack(&layer(&field)).unwrap();
    assert_eq!(field.outside(), untouched());
    field
}

#[test]
fn an_ordinary_layer_comes_out_as_it_is() {
    let field = Field::new();
    let bytes = Layer::default()
        .dir("./")
        .dir("./etc/")
        .file("./etc/hosts", "localhost\n")
        .symlink("etc/link", "hosts")
        .hard_link("etc/same", "etc/hosts")
        .raw(b'6', b"pipe", b"", 0o640, 0, b"")
        .file("deep/er/without-entries", "x")
        .raw(b'5', b"closed", b"", 0o500, 0, b"")
        .file("closed/file", "inside")
        .raw(b'0', b"tool", b"", 0o6755, 0, b"")
        .raw(b'5', b"tmp", b"", 0o1777, 0, b"")
        .end();
    let done = field.unpack(&bytes).unwrap();
    assert_eq!(done.diff_id, format!("sha256:{}", hex(&Sha256::digest(&bytes))));
    assert_eq!((done.bytes, done.files), (17, 12));
    assert_eq!(fs::read_to_string(field.path("etc/hosts")).unwrap(), "localhost\n");
    assert_eq!(fs::read_link(field.path("etc/link")).unwrap(), Path::new("hosts"));
    assert_eq!(field.path("etc/same").metadata().unwrap().ino(), field.path("etc/hosts").metadata().unwrap().ino());
    assert!(field.path("pipe").symlink_metadata().unwrap().file_type().is_fifo());
    let mode = |path: &str| field.path(path).metadata().unwrap().mode() & 0o7777;
    // One who keeps no owners keeps the right to remove what it made.
    assert_eq!(mode("closed"), if caps().owners_kept { 0o500 } else { 0o700 });
    assert_eq!(mode("tool"), 0o755, "set-user-id is cleared");
    assert_eq!(mode("tmp"), 0o1777);
    assert_eq!(mode("deep/er"), 0o755);
    assert_eq!(field.path("etc").metadata().unwrap().mtime(), 0o1750);
    assert_eq!(field.path("etc/link").symlink_metadata().unwrap().mtime(), 0o1750);
    fs::set_permissions(field.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn gzip_and_zstd_give_the_same_tree_and_digest() {
    let plain = Layer::default().file("a", "text").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(Cursor::new(&plain), 1).unwrap();
    let expected = format!("sha256:{}", hex(&Sha256::digest(&plain)));
    for bytes in [plain, gzip.finish().unwrap(), zstd] {
        let field = Field::new();
        assert_eq!(field.unpack(&bytes).unwrap().diff_id, expected);
        assert_eq!(fs::read_to_string(field.path("a")).unwrap(), "text");
    }
    let error = Field::new().unpack(b"BZh91AY&SY...").unwrap_err();
    assert!(matches!(error, UnpackError::Compression("bzip2")), "{error}");
    let error = Field::new().unpack(b"\xfd7zXZ\0rest").unwrap_err();
    assert!(matches!(error, UnpackError::Compression("xz")), "{error}");
}

#[test]
fn another_digest_than_the_expected_is_refused() {
    let bytes = Layer::default().file("a", "text").end();
    let right = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    let wrong = format!("sha256:{}", hex(&Sha256::digest(b"other")));
    let field = Field::new();
    let target = fs::File::open(field.target()).unwrap();
    let with = |expect: &str| unpack(Cursor::new(&bytes), target.as_fd(), &caps(), Some(expect));
    assert!(with(&right).is_ok());
    assert!(matches!(with(&wrong), Err(UnpackError::Digest { found, .. }) if found == right));
    // Bytes after the end of the archive count too.
    let longer = [bytes.clone(), b"tail".to_vec()].concat();
    assert!(matches!(
        unpack(Cursor::new(&longer), target.as_fd(), &caps(), Some(&right)),
        Err(UnpackError::Digest { .. })
    ));
}

#[test]
fn dotdot_in_a_name_is_refused() {
    let error = breaks_out(|_| Layer::default().file("../outside/new", "mine").end());
    assert!(matches!(error, UnpackError::Refused { why: "`..` is in its path", .. }), "{error}");
    let error = breaks_out(|_| Layer::default().dir("a").file("a/../../outside/kept", "mine").end());
    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
    // Control: names with dots that are no `..` are fine.
    let field = Field::new();
    field
        .unpack(&Layer::default().file("..a", "1").file("b..", "2").file("./.c/./d", "3").file("...", "4").end())
        .unwrap();
    assert_eq!(fs::read_to_string(field.path(".c/d")).unwrap(), "3");
    assert_eq!(fs::read_to_string(field.path("...")).unwrap(), "4");
}

#[test]
fn an_absolute_name_stays_beneath() {
    let inner = |field: &Field| field.base.path().join("outside/new").to_str().unwrap().to_owned();
    let layer = |field: &Field| Layer::default().file(&inner(field), "mine").end();
    // The tar crate's reader strips a leading slash only when it unpacks, so the careless one goes out.
    let field = stays_within(layer);
    assert_eq!(fs::read_to_string(field.path(inner(&field).trim_start_matches('/'))).unwrap(), "mine");
}

#[test]
fn a_link_is_not_a_way_out() {
    let outside = |field: &Field| field.base.path().join("outside").to_str().unwrap().to_owned();
    // Written through an absolute link to a directory: the link leads to that path within the tree.
    let field = stays_within(|field| Layer::default().symlink("door", &outside(field)).file("door/new", "mine").end());
    assert_eq!(fs::read_to_string(field.path(outside(&field).trim_start_matches('/')).join("new")).unwrap(), "mine");
    // Through a relative one that climbs: the root's parent is the root.
    let field = stays_within(|_| Layer::default().symlink("door", "../outside").file("door/new", "mine").end());
    assert_eq!(fs::read_to_string(field.path("outside/new")).unwrap(), "mine");
    // Through two.
    let field = stays_within(|_| {
        Layer::default().symlink("up", "..").symlink("door", "up/outside").file("door/new", "mine").end()
    });
    assert_eq!(fs::read_to_string(field.path("outside/new")).unwrap(), "mine");
    // Over a link to a file: the link is replaced, not followed.
    let field =
        stays_within(|field| Layer::default().symlink("file", &(outside(field) + "/kept")).file("file", "mine").end());
    assert!(field.path("file").symlink_metadata().unwrap().is_file());
    // A directory entry over a link replaces it too.
    let field = stays_within(|field| {
        Layer::default().symlink("door", &outside(field)).dir("door").file("door/new", "mine").end()
    });
    // The careless mkdir fails on the link and leaves it, so what follows goes out; ours is a directory now.
    assert!(field.path("door").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read_to_string(field.path("door/new")).unwrap(), "mine");
}

#[test]
fn a_parent_that_becomes_a_link_is_not_followed_out() {
    // First a directory, in use; then a link of the same name; then a file in it.
    let layer =
        |_: &Field| Layer::default().dir("d").file("d/one", "1").symlink("d", "../outside").file("d/new", "mine").end();
    let field = Field::new();
    let done = field.unpack(&layer(&field)).unwrap();
    assert_eq!(field.outside(), untouched());
    assert_eq!(fs::read_to_string(field.path("outside/new")).unwrap(), "mine");
    assert!(!field.path("outside/one").exists());
    assert_eq!(done.files, 5);
    // Control: where the link comes alone the same file goes out when unpacked carelessly.
    let field = Field::new();
    field.careless(&Layer::default().symlink("d", "../outside").file("d/new", "mine").end());
    assert_ne!(field.outside(), untouched());
}

#[test]
fn links_of_the_image_itself_are_followed_within() {
    let field = Field::new();
    let bytes = Layer::default()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/x86_64/a.so", "a")
        .symlink("abs", "/usr/lib")
        .file("abs/b.so", "b")
        .symlink("dangling", "made/later")
        .file("dangling/c", "c")
        .end();
    field.unpack(&bytes).unwrap();
    assert_eq!(fs::read_to_string(field.path("usr/lib/x86_64/a.so")).unwrap(), "a");
    assert_eq!(fs::read_to_string(field.path("usr/lib/b.so")).unwrap(), "b");
    assert_eq!(fs::read_to_string(field.path("made/later/c")).unwrap(), "c");
    assert_eq!(fs::read_link(field.path("lib")).unwrap(), Path::new("usr/lib"));
    // Links that go round are refused.
    for round in [
        Layer::default().symlink("a", "b").symlink("b", "a").file("a/x", ""),
        Layer::default().symlink("a", "a/a").file("a/x", ""),
        Layer::default().symlink("a", "a/../a").file("a/x", ""),
    ] {
        let error = Field::new().unpack(&round.end()).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_hard_link_reaches_only_what_the_layer_made() {
    let error = breaks_out(|_| Layer::default().hard_link("mine", "../outside/kept").file("mine", "changed").end());
    assert!(matches!(error, UnpackError::Refused { why: "`..` is in its path", .. }), "{error}");
    let error = breaks_out(|field| {
        let to = field.base.path().join("outside/kept");
        Layer::default().hard_link("mine", to.to_str().unwrap()).file("mine", "changed").end()
    });
    assert!(matches!(error, UnpackError::Refused { why: "a hard link to something that is not there", .. }), "{error}");
    // Through a link in its path, and to a link at its end: the link itself gets another name.
    let error = breaks_out(|_| {
        Layer::default().symlink("door", "../outside").hard_link("mine", "door/kept").file("mine", "changed").end()
    });
    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
    let field = Field::new();
    field.unpack(&Layer::default().symlink("l", "../outside/kept").hard_link("mine", "l").end()).unwrap();
    assert!(field.path("mine").symlink_metadata().unwrap().is_symlink());
    // To itself it is nothing, and the file stays.
    let field = Field::new();
    field.unpack(&Layer::default().file("a", "text").hard_link("a", "./a").end()).unwrap();
    assert_eq!(fs::read_to_string(field.path("a")).unwrap(), "text");
    for bad in [
        Layer::default().dir("d").hard_link("a", "d"),
        Layer::default().hard_link("a", "/"),
        Layer::default().file(".wh.gone", "").hard_link("a", "gone"),
        Layer::default().file("a", "").hard_link("b", ".wh.a"),
    ] {
        assert!(matches!(Field::new().unpack(&bad.end()), Err(UnpackError::Refused { .. })));
    }
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let field = Field::new();
    let bytes = Layer::default()
        .file("gone/.wh.file", "")
        .dir("new")
        .file("new/.wh..wh..opq", "")
        .file("both/.wh.a", "")
        .file("both/a", "mine")
        .file("late/a", "mine")
        .file("late/.wh.a", "")
        .file(".wh.dir", "")
        .file("dir/inner", "mine")
        .file(".wh..wh.plnk", "")
        .raw(b'5', b".wh..wh.aufs", b"", 0o755, 0, b"")
        .end();
    let done = field.unpack(&bytes).unwrap();
    let meta = field.path("gone/file").symlink_metadata().unwrap();
    assert!(meta.file_type().is_char_device());
    assert_eq!(meta.rdev(), 0);
    let opaque = |path: &str| {
        let mut value = [0; 8];
        getxattr(field.path(path), "user.overlay.opaque", &mut value).map(|length| value[..length].to_vec()).ok()
    };
    assert_eq!(opaque("new"), Some(b"y".to_vec()));
    assert_eq!(opaque("gone"), None);
    // A file of the same layer stays, whichever comes first; a directory hides the lower one.
    assert_eq!(fs::read_to_string(field.path("both/a")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(field.path("late/a")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(field.path("dir/inner")).unwrap(), "mine");
    assert_eq!(opaque("dir"), Some(b"y".to_vec()));
    assert_eq!(done.notes_skipped, 2);
    assert!(!field.path(".wh..wh.plnk").exists() && !field.path(".wh..wh.aufs").exists());
}

#[test]
fn whiteout_tricks_are_refused() {
    for (name, why) in [
        (".wh.", "a whiteout of no name"),
        ("a/.wh.", "a whiteout of no name"),
        (".wh..", "a whiteout of no name"),
        (".wh...", "a whiteout of no name"),
        ("a/.wh.b/c", "a whiteout is no directory"),
    ] {
        let error = Field::new().unpack(&Layer::default().file(name, "").end()).unwrap_err();
        assert!(matches!(&error, UnpackError::Refused { why: found, .. } if *found == why), "{name}: {error}");
    }
    for kind in [b'2', b'5', b'6', b'1'] {
        let bytes = Layer::default().file("to", "").raw(kind, b".wh.a", b"to", 0o644, 0, b"").end();
        let error = Field::new().unpack(&bytes).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { why: "a whiteout is an empty file", .. }), "{error}");
    }
    // Control: names that only look alike are ordinary.
    let field = Field::new();
    field
        .unpack(&Layer::default().file(".wh", "1").file("a.wh.b", "2").file(".who", "3").file("wh.x", "4").end())
        .unwrap();
    assert_eq!(fs::read_to_string(field.path("a.wh.b")).unwrap(), "2");
}

#[test]
fn nothing_but_a_directory_stands_where_the_sandbox_mounts() {
    for name in ["proc", "sys", "dev"] {
        for bad in [
            Layer::default().symlink(name, "etc"),
            Layer::default().dir(name).symlink(name, "etc"),
            Layer::default().file(name, ""),
            Layer::default().file(&format!("./.wh.{name}"), ""),
            Layer::default().file("a", "").hard_link(&format!("/{name}"), "a"),
            // A link back to the root makes another path of the same place.
            Layer::default().symlink("x", ".").file(&format!("x/{name}"), ""),
            Layer::default().symlink("x", "/").symlink(&format!("x/{name}"), "etc"),
            Layer::default().dir("d").symlink("d/x", "..").dir(name).symlink(&format!("d/x/{name}"), "etc"),
            Layer::default().symlink("x", ".").raw(b'6', format!("x/{name}").as_bytes(), b"", 0o644, 0, b""),
            Layer::default().symlink("x", ".").file(&format!("x/.wh.{name}"), ""),
            Layer::default().symlink("x", ".").file("a", "").hard_link(&format!("x/{name}"), "a"),
        ] {
            let error = Field::new().unpack(&bad.end()).unwrap_err();
            assert!(
                matches!(error, UnpackError::Refused { why: "a mount of the sandbox's own goes there", .. }),
                "{error}"
            );
        }
        // Control: as directories, with files in them, and deeper by the same name they are fine.
        let fine = Layer::default().dir(name).file(&format!("{name}/x"), "").symlink(&format!("a/{name}"), "b");
        Field::new().unpack(&fine.end()).unwrap();
        // By a link too, also when the link leads elsewhere than to the root.
        let fine = Layer::default().symlink("x", ".").dir(&format!("x/{name}")).file(&format!("x/{name}/y"), "");
        let field = Field::new();
        field.unpack(&fine.dir("e").symlink("z", "e").file(&format!("z/{name}"), "").end()).unwrap();
        assert!(field.path(name).join("y").exists() && field.path("e").join(name).is_file());
    }
}

#[test]
fn whiteouts_in_disguise_are_refused_and_devices_left_out() {
    let device = |kind: u8, major: &[u8], minor: &[u8]| {
        Layer::default().raw(kind, b"node", b"", 0o666, 0, b"").patch(329, major).patch(337, minor).end()
    };
    let error = Field::new().unpack(&device(b'3', b"0000000", b"0000000")).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { why: "it is a whiteout in disguise", .. }), "{error}");
    // /dev/mem and the first disk.
    for (kind, major, minor) in [(b'3', b"0000001", b"0000001"), (b'4', b"0000376", b"0000000")] {
        let field = Field::new();
        assert_eq!(field.unpack(&device(kind, major, minor)).unwrap().devices_skipped, 1);
        assert!(field.path("node").symlink_metadata().is_err());
    }
}

#[test]
fn attributes_are_left_out_and_those_of_overlayfs_refused() {
    for key in ["user.overlay.redirect", "trusted.overlay.opaque", "USER.Overlay.metacopy", "security.x.overlay.y"] {
        for family in ["SCHILY", "LIBARCHIVE"] {
            let bytes =
                Layer::default().pax(&[(&format!("{family}.xattr.{key}"), b"/etc")]).dir("d").file("d/f", "").end();
            let error = Field::new().unpack(&bytes).unwrap_err();
            assert!(
                matches!(error, UnpackError::Refused { why: "its attributes would steer overlayfs", .. }),
                "{error}"
            );
        }
    }
    let field = Field::new();
    let bytes = Layer::default()
        .pax(&[("SCHILY.xattr.user.mine", b"1"), ("SCHILY.xattr.security.capability", b"\x01\0\0\x02")])
        .file("f", "")
        .end();
    assert_eq!(field.unpack(&bytes).unwrap().xattrs_skipped, 2);
    for name in ["user.mine", "security.capability"] {
        assert!(lgetxattr(field.path("f"), name, &mut [0; 64]).is_err(), "{name} is there");
    }
}

#[test]
fn owners_beyond_the_mapped_ids_become_nobody() {
    if !rustix::process::geteuid().is_root() {
        // Without rights no owner is kept, which is what this holds then.
        let field = Field::new();
        field.unpack(&Layer::default().raw(b'0', b"a", b"", 0o644, 0, b"").patch(108, b"0001750").end()).unwrap();
        assert_eq!(field.path("a").metadata().unwrap().uid(), rustix::process::geteuid().as_raw());
        return;
    }
    let field = Field::new();
    let bytes = Layer::default()
        .raw(b'0', b"a", b"", 0o644, 0, b"")
        .patch(108, b"0001750")
        .patch(116, b"0001751")
        .pax(&[("uid", b"4294967295"), ("gid", b"7")])
        .file("b", "")
        .raw(b'5', b"d", b"", 0o755, 0, b"")
        .patch(108, &[0x80, 0, 0, 1, 0, 0, 0, 0])
        .end();
    assert_eq!(field.unpack(&bytes).unwrap().owners_squashed, 2);
    let owner = |path: &str| field.path(path).metadata().map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!(owner("a"), (1000, 1001));
    assert_eq!(owner("b"), (65534, 7));
    assert_eq!(owner("d"), (65534, 0));
}

#[test]
fn the_later_of_two_entries_wins() {
    let field = Field::new();
    let bytes = Layer::default()
        .file("a", "first and longer")
        .file("a", "second")
        .dir("b")
        .file("b/inner/deep", "x")
        .file("b", "a file now")
        .file("c", "a file")
        .dir("c")
        .file("c/inner", "in a directory now")
        .dir("d")
        .file("d/kept", "kept")
        .raw(b'5', b"d", b"", 0o700, 0, b"")
        .end();
    field.unpack(&bytes).unwrap();
    assert_eq!(fs::read_to_string(field.path("a")).unwrap(), "second");
    assert_eq!(fs::read_to_string(field.path("b")).unwrap(), "a file now");
    assert_eq!(fs::read_to_string(field.path("c/inner")).unwrap(), "in a directory now");
    assert_eq!(fs::read_to_string(field.path("d/kept")).unwrap(), "kept");
    assert_eq!(field.path("d").metadata().unwrap().mode() & 0o777, 0o700);
    // The root itself cannot be replaced.
    for bad in [Layer::default().symlink("/", "x"), Layer::default().file("./", "").file(".", "x")] {
        assert!(matches!(Field::new().unpack(&bad.end()), Err(UnpackError::Refused { .. })));
    }
    // Nor a file be used as a directory.
    let error = Field::new().unpack(&Layer::default().file("a", "").file("a/b", "").end()).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { why: "a part of its path is no directory", .. }), "{error}");
}

#[test]
fn names_of_any_bytes_but_nul_are_kept() {
    let field = Field::new();
    let long = "n".repeat(200);
    let deep = format!("{0}/{0}/{0}", "m".repeat(150));
    let bytes = Layer::default()
        .raw(b'0', b"latin-\xe9\xff", b"", 0o644, 1, b"1")
        .pax(&[("path", b"pax-\xf0\x28\n")])
        .file("short", "2")
        .raw(b'L', b"././@LongLink", b"", 0, long.len() as u64 + 1, format!("{long}\0").as_bytes())
        .file("short", "3")
        .pax(&[("path", deep.as_bytes())])
        .file("short", "4")
        .raw(b'K', b"././@LongLink", b"", 0, 121, format!("{}\0", "t".repeat(120)).as_bytes())
        .symlink("link", "short")
        .end();
    field.unpack(&bytes).unwrap();
    let read = |name: &[u8]| fs::read_to_string(field.target().join(std::ffi::OsStr::from_bytes(name))).unwrap();
    assert_eq!(read(b"latin-\xe9\xff"), "1");
    assert_eq!(read(b"pax-\xf0\x28\n"), "2");
    assert_eq!(read(long.as_bytes()), "3");
    assert_eq!(read(deep.as_bytes()), "4");
    assert_eq!(fs::read_link(field.path("link")).unwrap().as_os_str().len(), 120);
    for (key, value) in [("path", b"good\0/../evil".as_slice()), ("linkpath", b"a\0b")] {
        let error = Field::new().unpack(&Layer::default().pax(&[(key, value)]).symlink("x", "y").end()).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { why: "a NUL is in its name", .. }), "{error}");
    }
    let error = Field::new().unpack(&Layer::default().pax(&[("path", &[b'a'; 256])]).file("x", "").end()).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
    let error = Field::new().unpack(&Layer::default().raw(b'0', b"", b"", 0o644, 0, b"").end()).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { why: "it has no name", .. }), "{error}");
}
